//! `ComfyUI`'s own words for how a layer is quantised: a JSON object, in a tensor of bytes beside the weight or in the
//! header of the file (<https://github.com/Comfy-Org/ComfyUI/blob/master/QUANTIZATION.md>).

use serde::Deserialize;
use serde_json::Value;

use super::layer::{Beside, Layer};
use crate::weights::DType;
use animd_protocol::plan::network::ROTATED;

/// The longest description that is read.
const MAX_BYTES: usize = 4096;
/// The number of columns that are rotated together if a description does not say it.
const GROUP: usize = 256;

/// The description of a layer in int8 that is rotated in groups of [`GROUP`] columns. Its length keeps what follows it
/// in a file aligned.
pub(in crate::weights) const ROTATED_INT8: &str =
    r#"{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}"#;
const _: () = assert!(ROTATED_INT8.len().is_multiple_of(8) && GROUP == ROTATED);

/// A format that animd reads.
pub(super) enum Format {
    /// 8-bit floats of this type, with a scale.
    Float(DType),
    /// 8-bit integers with a scale, or a scale for each row; in a rotated basis if `rotation` says how many columns were
    /// rotated together.
    Int8 { rotation: Option<usize> },
    /// Pairs of 4-bit floats with scales of 8 bits.
    Nvfp4,
    /// 8-bit floats with powers of two as scales.
    Mxfp8,
}

#[derive(Deserialize)]
struct Description {
    format: String,
    #[serde(flatten)]
    options: Options,
    /// Newer files have the options in an object of their own.
    params: Option<Options>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Options {
    convrot: Option<bool>,
    convrot_groupsize: Option<usize>,
}

/// Returns the format that a layer's description says, if there is one. A description in the header counts more than
/// one beside the weight.
///
/// # Errors
/// A clause for a sentence about the file: the description cannot be read, or names a format that animd does not read.
pub(super) fn format(layer: &Layer) -> Result<Option<Format>, String> {
    let name = &layer.weight;
    let broken = |e: &dyn std::fmt::Display| format!("the description of `{name}` cannot be read: {e}");
    let value: Value = match (&layer.described, layer.get(Beside::ComfyQuant)) {
        (Some(value), _) => value.clone(),
        (None, Some(stored)) if stored.dtype() == Some(DType::U8) && stored.size <= MAX_BYTES => {
            let bytes = stored.bytes().map_err(|e| broken(&e))?;
            serde_json::from_slice(&bytes).map_err(|e| broken(&e))?
        }
        (None, Some(_)) => return Err(broken(&"it is not a short text")),
        (None, None) => return Ok(None),
    };
    let Description { format, options, params } = serde_json::from_value(value).map_err(|e| broken(&e))?;
    let params = params.unwrap_or_default();
    let rotated = params.convrot.or(options.convrot).unwrap_or(false);
    let group = params.convrot_groupsize.or(options.convrot_groupsize).unwrap_or(GROUP);
    Ok(Some(match format.as_str() {
        "float8_e4m3fn" => Format::Float(DType::F8E4m3),
        "float8_e5m2" => Format::Float(DType::F8E5m2),
        "int8_tensorwise" => Format::Int8 { rotation: rotated.then_some(group) },
        "nvfp4" => Format::Nvfp4,
        "mxfp8" => Format::Mxfp8,
        other => {
            let other: String = other.chars().take(60).collect();
            return Err(format!(
                "`{name}` has ComfyUI's format `{}`, which animd does not read; it reads `float8_e4m3fn`, \
                 `float8_e5m2`, `int8_tensorwise`, `nvfp4` and `mxfp8`",
                other.escape_debug()
            ));
        }
    }))
}
