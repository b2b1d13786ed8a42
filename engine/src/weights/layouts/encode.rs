//! How a weight is encoded: what its type, its shape and the tensors beside it say together.

use super::comfy_quant::{self, Format};
use super::layer::{Beside, Layer};
use super::{Encoded, Misfit, not_a_float};
use crate::weights::coded::{Coded, Factor, Scales, TILE};
use crate::weights::stored::Stored;
use crate::weights::{DType, Encoding, Granularity};

/// The side of the squares that share a scale in `TurboDiffusion`'s files.
const SQUARE: usize = 128;

/// Returns how a layer's weight is encoded, or what keeps it from being read. `scaled` says whether any weight of the
/// file has a scale: then an 8-bit float without one has lost it.
pub(super) fn encode(layer: &Layer, scaled: bool) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    if layer.get(Beside::PreQuantScale).is_some() {
        return mistyped(format!(
            "`{name}` is for inputs that are smoothed by `pre_quant_scale`, which animd does not do"
        ));
    }
    let format = comfy_quant::format(layer).map_err(|what| vec![Misfit::Mistyped(what)])?;
    match format {
        Some(Format::Float(dtype)) if stored.dtype() != Some(dtype) => {
            mistyped(format!("`{name}` is {}, not {} as its description says", stored.encoding, dtype.name()))
        }
        Some(Format::Float(_)) => scaled_numbers(layer, None),
        Some(Format::Int8 { .. }) if stored.dtype() != Some(DType::I8) => {
            mistyped(format!("`{name}` is {}, not I8 as its description says", stored.encoding))
        }
        Some(Format::Int8 { rotation }) => scaled_numbers(layer, rotation),
        Some(Format::Nvfp4) => nvfp4(layer),
        Some(Format::Mxfp8) => mxfp8(layer),
        None => undescribed(layer, scaled),
    }
}

fn mistyped<T>(what: String) -> Result<T, Vec<Misfit>> {
    Err(vec![Misfit::Mistyped(what)])
}

/// Returns the encoding of a weight that nothing describes: its type and what is beside it must do.
fn undescribed(layer: &Layer, scaled: bool) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    let scale = layer.get(Beside::WeightScale);
    let of_blocks = scale.and_then(Stored::dtype) == Some(DType::F8E8m0);
    if layer.get(Beside::SquareScale).is_some() {
        return squares(layer);
    }
    match stored.dtype() {
        Some(DType::U8) if layer.has_global_scale() => nvfp4(layer),
        Some(DType::U8 | DType::F8E4m3) if of_blocks => mxfp8(layer),
        Some(DType::U8) if scale.is_some() => mistyped(format!(
            "`{name}` is U8 beside a scale: bytes of F8_E4M3 under another name, or 4-bit numbers without their \
             tensor scale"
        )),
        Some(DType::F8E4m3 | DType::F8E5m2 | DType::I8) if layer.has_scale() => scaled_numbers(layer, None),
        Some(dtype) if dtype.is_plain_float() && layer.has_scale() => {
            mistyped(format!("`{name}` is {}, not F8_E4M3 as its scale says", dtype.name()))
        }
        Some(dtype) if dtype.is_plain_float() => Ok(Coded::plain(stored.clone())),
        // Some programs only round to 8 bits. One matrix without a scale among others with one is damage.
        Some(DType::F8E4m3 | DType::F8E5m2) if !scaled => Ok(Coded::plain(stored.clone())),
        Some(DType::F8E4m3 | DType::F8E5m2) if stored.shape.len() > 1 => {
            Err(vec![Misfit::Missing(format!("the scale of `{name}`"))])
        }
        None => Ok(Coded::plain(stored.clone())),
        Some(_) => Err(vec![not_a_float(name, stored)]),
    }
}

impl Layer {
    fn has_scale(&self) -> bool {
        self.get(Beside::WeightScale).is_some() || self.get(Beside::ScaleWeight).is_some()
    }

    fn has_global_scale(&self) -> bool {
        [Beside::WeightScale2, Beside::WeightGlobalScale, Beside::Alpha]
            .iter()
            .any(|purpose| self.get(*purpose).is_some())
    }
}

/// Returns the encoding of numbers with one scale for all, or one for each row, as the scale's shape says. `rotation`
/// is the number of columns that were rotated together before they were quantised.
fn scaled_numbers(layer: &Layer, rotation: Option<usize>) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    let Some(scale) = layer.get(Beside::WeightScale).or_else(|| layer.get(Beside::ScaleWeight)) else {
        return Err(vec![Misfit::Missing(format!("the scale of `{name}`"))]);
    };
    let Some(dtype) = stored.dtype() else { return Err(vec![not_a_float(name, stored)]) };
    let rows = stored.shape.first().copied().unwrap_or(0);
    let mut misfits = Vec::new();
    if ![&[][..], &[1], &[1, 1], &[rows], &[rows, 1]].contains(&&scale.shape[..]) {
        misfits
            .push(Misfit::Misshapen(format!("the scale of `{name}` is {:?}, not [{rows}, 1]", scale.shape)));
    }
    if !scale.dtype().is_some_and(DType::is_plain_float) {
        let found = scale.encoding;
        misfits.push(Misfit::Mistyped(format!("the scale of `{name}` is {found}, not F32")));
    }
    let by = if scale.elements() == 1 { Granularity::Tensor } else { Granularity::Row };
    let cols = stored.shape.get(1..).map_or(0, |rest| rest.iter().product());
    let encoding = match rotation {
        None => Encoding::Scaled { dtype, by },
        Some(group) if group.is_power_of_two() && group.ilog2().is_multiple_of(2) && cols % group == 0 => {
            Encoding::Rotated { dtype, by, group }
        }
        Some(group) => {
            misfits.push(Misfit::Misshapen(format!(
                "`{name}` has {cols} columns, rotated in groups of {group}, which is not a power of 4 that divides them"
            )));
            Encoding::Scaled { dtype, by }
        }
    };
    if !misfits.is_empty() {
        return Err(misfits);
    }
    Ok(Coded { encoding, scales: Scales::Listed(scale.clone()), ..Coded::plain(stored.clone()) })
}

/// Returns the encoding of pairs of 4-bit floats, of which each 16 share an 8-bit scale, and all a 32-bit one.
fn nvfp4(layer: &Layer) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    let missing = |what: &str| Err(vec![Misfit::Missing(format!("{what} of `{name}`"))]);
    let [rows, pairs] = stored.shape[..] else {
        return Err(vec![Misfit::Misshapen(format!("`{name}` is {:?}, not a matrix", stored.shape))]);
    };
    if stored.dtype() != Some(DType::U8) {
        return mistyped(format!("`{name}` is {}, not U8 as NVFP4 is", stored.encoding));
    }
    let Some(scale) = layer.get(Beside::WeightScale) else { return missing("the scale") };
    // Which half of a byte comes first is not in the file: it follows from whose global scale it is.
    let (theirs, alpha) = (layer.get(Beside::WeightGlobalScale), layer.get(Beside::Alpha));
    let (factor, upper_first) = match (layer.get(Beside::WeightScale2), theirs, alpha) {
        (Some(scale), None, None) => (Factor::Product(vec![scale.clone()]), true),
        (None, Some(scale), None) => (Factor::Inverse(scale.clone()), false),
        (None, None, Some(alpha)) => match layer.get(Beside::InputGlobalScale) {
            Some(input) => (Factor::Product(vec![alpha.clone(), input.clone()]), false),
            None => return missing("the global scale of the input (`input_global_scale`)"),
        },
        (None, None, None) => return missing("the tensor scale (`weight_scale_2`)"),
        _ => {
            return mistyped(format!(
                "`{name}` has the tensor scales of two programs, so that the order of its 4-bit numbers is not clear"
            ));
        }
    };
    let dtype = match scale.dtype() {
        Some(DType::F8E4m3 | DType::U8) => DType::F8E4m3,
        _ => return mistyped(format!("the scale of `{name}` is {}, not F8_E4M3", scale.encoding)),
    };
    if let Factor::Product(scalars) = &factor {
        scalars.iter().try_for_each(|scalar| is_scalar(name, scalar))?;
    } else if let Factor::Inverse(scalar) = &factor {
        is_scalar(name, scalar)?;
    }
    let shape = vec![rows, pairs.saturating_mul(2)];
    let scales = tiled(name, scale, dtype, factor, [rows, shape[1].div_ceil(16)])?;
    let encoding = Encoding::Scaled { dtype: DType::F4E2m1, by: Granularity::Block { rows: 1, cols: 16 } };
    Ok(Coded { stored: stored.clone(), shape, encoding, scales, upper_first })
}

fn is_scalar(name: &str, scalar: &Stored) -> Result<(), Vec<Misfit>> {
    if scalar.elements() != 1 || !scalar.dtype().is_some_and(DType::is_plain_float) {
        return mistyped(format!(
            "the tensor scale of `{name}` is {} {:?}, not one number of F32",
            scalar.encoding, scalar.shape
        ));
    }
    Ok(())
}

/// Returns the encoding of 8-bit floats, of which each 32 share a power of two.
fn mxfp8(layer: &Layer) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    let [rows, cols] = stored.shape[..] else {
        return Err(vec![Misfit::Misshapen(format!("`{name}` is {:?}, not a matrix", stored.shape))]);
    };
    if !matches!(stored.dtype(), Some(DType::F8E4m3 | DType::U8)) {
        return mistyped(format!("`{name}` is {}, not F8_E4M3 as MXFP8 is", stored.encoding));
    }
    let Some(scale) = layer.get(Beside::WeightScale) else {
        return Err(vec![Misfit::Missing(format!("the scale of `{name}`"))]);
    };
    if !matches!(scale.dtype(), Some(DType::F8E8m0 | DType::U8)) {
        return mistyped(format!("the scale of `{name}` is {}, not F8_E8M0", scale.encoding));
    }
    let factor = Factor::Product(Vec::new());
    let scales = tiled(name, scale, DType::F8E8m0, factor, [rows, cols.div_ceil(32)])?;
    let encoding = Encoding::Scaled { dtype: DType::F8E4m3, by: Granularity::Block { rows: 1, cols: 32 } };
    Ok(Coded { encoding, scales, ..Coded::plain(stored.clone()) })
}

/// Returns the scales of blocks in the order of tiles, which fill up whole tiles.
fn tiled(
    name: &str,
    scale: &Stored,
    dtype: DType,
    factor: Factor,
    [rows, across]: [usize; 2],
) -> Result<Scales, Vec<Misfit>> {
    let [height, width] = TILE;
    let padded = rows.checked_next_multiple_of(height).zip(across.checked_next_multiple_of(width));
    if padded.and_then(|(rows, across)| rows.checked_mul(across)) != Some(scale.elements()) {
        let (rows, across) = padded.unwrap_or((rows, across));
        return Err(vec![Misfit::Misshapen(format!(
            "the scale of `{name}` is {:?}, not [{rows}, {across}]",
            scale.shape
        ))]);
    }
    Ok(Scales::Tiled { stored: scale.clone(), dtype, factor })
}

/// Returns the encoding of 8-bit integers of which each square shares a scale.
fn squares(layer: &Layer) -> Encoded {
    let Layer { weight: name, stored, .. } = layer;
    let Some(scale) = layer.get(Beside::SquareScale) else {
        return Err(vec![Misfit::Missing(format!("the scale of `{name}`"))]);
    };
    let [rows, cols] = stored.shape[..] else {
        return Err(vec![Misfit::Misshapen(format!("`{name}` is {:?}, not a matrix", stored.shape))]);
    };
    let expected = [rows.div_ceil(SQUARE), cols.div_ceil(SQUARE)];
    let mut misfits = Vec::new();
    if stored.dtype() != Some(DType::I8) {
        misfits.push(Misfit::Mistyped(format!("`{name}` is {}, not I8", stored.encoding)));
    }
    if scale.shape != expected {
        misfits
            .push(Misfit::Misshapen(format!("the scale of `{name}` is {:?}, not {expected:?}", scale.shape)));
    }
    if !scale.dtype().is_some_and(DType::is_plain_float) {
        misfits.push(Misfit::Mistyped(format!("the scale of `{name}` is {}, not F32", scale.encoding)));
    }
    if !misfits.is_empty() {
        return Err(misfits);
    }
    let by = Granularity::Block { rows: SQUARE, cols: SQUARE };
    Ok(Coded {
        encoding: Encoding::Scaled { dtype: DType::I8, by },
        scales: Scales::Listed(scale.clone()),
        ..Coded::plain(stored.clone())
    })
}
