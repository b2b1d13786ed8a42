//! Made-up `DiT`s in the formats that people have: plain numbers, 8 and 4 bits with scales, GGUF's blocks. They are as large
//! as real ones, and are written by all cores at once, so that loading can be measured where nobody has the files.
//!
//! Numbers of quantised matrices are random bits. Their scales make values of the deviation that keeps activations near
//! one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use animd_protocol::dims::schema::Expected;
use animd_protocol::recipe::{Component, ExpertName, Part, Recipe};
use half::f16;
use rayon::prelude::*;

use super::values::{fill, noise_bytes, tensor_seed};
use super::{Temporary, check_room, dit_rule, expert_of, files::Plan, networks};
use crate::weights::{DType, safetensors};
use crate::{Error, Result};

/// The format of a made-up DiT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(missing_docs, non_camel_case_types, reason = "most are GGUF's names, which say everything")]
pub enum Format {
    /// 32-bit floats, as released
    F32,
    /// 16-bit floats
    F16,
    /// Brain floats
    Bf16,
    /// `ComfyUI`'s fp8 with a scale for each matrix
    Fp8Scaled,
    /// `LightX2V`'s fp8 with a scale for each row
    Fp8Rows,
    /// `ComfyUI`'s int8 with a scale for each row, rotated by 256 columns
    Int8Convrot,
    /// `ComfyUI`'s 4-bit floats with a scale for each 16
    Nvfp4,
    /// `ComfyUI`'s 8-bit floats with a scale for each 32
    Mxfp8,
    Q8_0,
    Q6_K,
    Q5_K,
    Q4_K,
    Q3_K,
    Q2_K,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
}

/// A format of GGUF's blocks.
struct Blocks {
    /// The format's number in GGUF files.
    kind: u32,
    /// The values of a block.
    values: usize,
    /// The bytes of a block.
    bytes: usize,
    /// Where the f16 factors lie in a block, and what each is for values of deviation one.
    factors: &'static [(usize, f32)],
}

impl Format {
    /// Returns the blocks of a GGUF format. A factor divides by the deviation that random bits give: of the numbers, times
    /// that of the scales that are among them.
    fn blocks(self) -> Option<Blocks> {
        let (kind, values, bytes, factors): (_, _, _, &'static [(usize, f32)]) = match self {
            Self::Q4_0 => (2, 32, 18, &[(0, 1.0 / 4.6)]),
            Self::Q4_1 => (3, 32, 20, &[(0, 1.0 / 4.6), (2, -7.5 / 4.6)]),
            Self::Q5_0 => (6, 32, 22, &[(0, 1.0 / 9.2)]),
            Self::Q5_1 => (7, 32, 24, &[(0, 1.0 / 9.2), (2, -15.5 / 9.2)]),
            Self::Q8_0 => (8, 32, 34, &[(0, 1.0 / 74.0)]),
            Self::Q2_K => (10, 256, 84, &[(80, 1.0 / 16.0), (82, 1.5 / 16.0)]),
            Self::Q3_K => (11, 256, 110, &[(108, 1.0 / 43.0)]),
            Self::Q4_K => (12, 256, 144, &[(0, 1.0 / 240.0), (2, 7.5 / 240.0)]),
            Self::Q5_K => (13, 256, 176, &[(0, 1.0 / 480.0), (2, 15.5 / 480.0)]),
            Self::Q6_K => (14, 256, 210, &[(208, 1.0 / 1366.0)]),
            _ => return None,
        };
        Some(Blocks { kind, values, bytes, factors })
    }

    /// Returns the type of the tensors that are not quantised.
    fn rest(self) -> DType {
        match self {
            Self::F16 | Self::Fp8Scaled => DType::F16,
            Self::Bf16 | Self::Int8Convrot | Self::Nvfp4 | Self::Mxfp8 => DType::Bf16,
            _ => DType::F32,
        }
    }
}

/// A function that makes the bytes of a tensor from an offset on, which is a multiple of the tensor's unit.
type Make = Box<dyn Fn(usize, &mut [u8]) + Sync>;

/// A tensor of a file.
struct Entry {
    name: String,
    dtype: DType,
    /// The number of the type in a GGUF file.
    kind: u32,
    shape: Vec<usize>,
    bytes: usize,
    /// The bytes that belong together.
    unit: usize,
    make: Make,
}

impl Entry {
    /// A tensor whose bytes repeat.
    fn constant(name: String, dtype: DType, shape: Vec<usize>, pattern: Vec<u8>) -> Self {
        let bytes = dtype.bytes(shape.iter().product());
        let unit = pattern.len().max(1);
        let make = move |_: usize, out: &mut [u8]| {
            out.chunks_mut(pattern.len().max(1))
                .for_each(|part| part.copy_from_slice(&pattern[..part.len()]));
        };
        Self { name, dtype, kind: 0, shape, bytes, unit, make: Box::new(make) }
    }

    /// A tensor of random bits, of which `finite` makes numbers.
    fn noise(name: String, dtype: DType, shape: Vec<usize>, seed: u64, finite: fn(&mut [u8])) -> Self {
        let bytes = dtype.bytes(shape.iter().product());
        let make = move |start: usize, out: &mut [u8]| {
            noise_bytes(out, seed, start);
            finite(out);
        };
        Self { name, dtype, kind: 0, shape, bytes, unit: 8, make: Box::new(make) }
    }
}

/// Makes another number of each code that is NaN.
fn without_nan(codes: &mut [u8]) {
    codes.iter_mut().filter(|code| **code & 0x7f == 0x7f).for_each(|code| *code ^= 1);
}

/// The root mean square of the numbers that random bits are: e4m3 without NaN, whole numbers of 8 bits, e2m1.
const E4M3: f32 = 104.0;
const INT8: f32 = 74.0;
const E2M1: f32 = 2.93;

/// Returns what a format stores of a tensor.
fn entries(expected: Expected, format: Format, seed: u64) -> Vec<Entry> {
    let seed = tensor_seed(seed, &expected.name);
    let (rows, cols) = (expected.shape[0], expected.shape[1..].iter().product::<usize>());
    let blocks = format.blocks().filter(|blocks| cols.is_multiple_of(blocks.values));
    let plain = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
    if !expected.quantisable || plain || (format.blocks().is_some() && blocks.is_none()) {
        return vec![unquantised(expected, format.rest(), seed)];
    }
    let deviation = 1.0 / (cols as f32).sqrt();
    let Expected { name, shape, .. } = expected;
    if let Some(blocks) = blocks {
        return vec![of_blocks(name, shape, &blocks, seed, deviation)];
    }
    let layer = name.trim_end_matches(".weight").to_owned();
    let described = |text: &str| {
        let (name, bytes) = (format!("{layer}.comfy_quant"), text.as_bytes().to_vec());
        Entry::constant(name, DType::U8, vec![bytes.len()], bytes)
    };
    let scale = |suffix: &str, shape: Vec<usize>, value: f32| {
        Entry::constant(format!("{layer}.{suffix}"), DType::F32, shape, value.to_le_bytes().to_vec())
    };
    // Scales in tiles are filled up to whole ones.
    let tiled = |width: usize| vec![rows.next_multiple_of(128), cols.div_ceil(width).next_multiple_of(4)];
    let e4m3 = |name: &str| Entry::noise(name.to_owned(), DType::F8E4m3, shape.clone(), seed, without_nan);
    match format {
        Format::Fp8Scaled => vec![e4m3(&name), scale("scale_weight", Vec::new(), deviation / E4M3)],
        Format::Fp8Rows => vec![e4m3(&name), scale("weight_scale", vec![rows, 1], deviation / E4M3)],
        Format::Int8Convrot => vec![
            Entry::noise(name, DType::I8, shape, seed, |_| ()),
            scale("weight_scale", vec![rows, 1], deviation / INT8),
            described(r#"{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}"#),
        ],
        Format::Nvfp4 => vec![
            Entry::noise(name, DType::U8, vec![rows, cols / 2], seed, |_| ()),
            // An e4m3 of 1.
            Entry::constant(format!("{layer}.weight_scale"), DType::F8E4m3, tiled(16), vec![0x38]),
            scale("weight_scale_2", Vec::new(), deviation / E2M1),
            described(r#"{"format": "nvfp4"}"#),
        ],
        _ => {
            let exponent = 127.0 + (deviation / E4M3).log2().round();
            vec![
                e4m3(&name),
                Entry::constant(format!("{layer}.weight_scale"), DType::U8, tiled(32), vec![exponent as u8]),
                described(r#"{"format": "mxfp8"}"#),
            ]
        }
    }
}

/// Returns a tensor that is not quantised, with the values that [`super::synth_model`] gives it.
fn unquantised(expected: Expected, dtype: DType, seed: u64) -> Entry {
    let plan = Plan { fill: dit_rule(&expected), name: expected.name, shape: expected.shape, dtype };
    let (columns, rule) = (plan.columns(), plan.fill);
    let (bytes, unit) = (dtype.bytes(plan.shape.iter().product()), dtype.bytes(1));
    let make = move |start: usize, out: &mut [u8]| fill(out, dtype, seed, start / unit, columns, &rule);
    Entry { name: plan.name, dtype, kind: 0, shape: plan.shape, bytes, unit, make: Box::new(make) }
}

/// Returns a matrix in GGUF's blocks.
fn of_blocks(name: String, shape: Vec<usize>, blocks: &Blocks, seed: u64, deviation: f32) -> Entry {
    let size = blocks.bytes;
    let factors: Vec<(usize, [u8; 2])> = (blocks.factors.iter())
        .map(|(at, factor)| (*at, f16::from_f32(factor * deviation).to_le_bytes()))
        .collect();
    let make = move |start: usize, out: &mut [u8]| {
        noise_bytes(out, seed, start);
        for block in out.chunks_exact_mut(size) {
            for (at, factor) in &factors {
                block[*at..][..2].copy_from_slice(factor);
            }
        }
    };
    let bytes = shape.iter().product::<usize>() / blocks.values * size;
    // The random bits repeat every eight bytes.
    let unit = 8 * size;
    Entry { name, dtype: DType::U8, kind: blocks.kind, shape, bytes, unit, make: Box::new(make) }
}

/// The multiple at which tensors of GGUF files begin.
const ALIGNMENT: usize = 32;

/// Returns the header of a GGUF file.
fn gguf_header(entries: &[Entry]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend(1u64.to_le_bytes());
    text(&mut out, "general.architecture");
    // The type of a string.
    out.extend(8u32.to_le_bytes());
    text(&mut out, "wan");
    let mut offset = 0u64;
    for entry in entries {
        text(&mut out, &entry.name);
        out.extend((entry.shape.len() as u32).to_le_bytes());
        entry.shape.iter().rev().for_each(|extent| out.extend((*extent as u64).to_le_bytes()));
        out.extend(entry.kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += entry.bytes.next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

/// The bytes that a core makes and writes at a time, and the parts between two reports of progress.
const PART: usize = 4 << 20;
const PARTS: usize = 64;

/// Writes a model's made-up DiT in this format into a folder, as one file; two transformers are two files, whose names have
/// `high_noise` and `low_noise`. Returns the files' paths. `progress` receives the bytes written and the total, and can stop
/// the work with an error. The folder appears when everything is written, or not at all.
///
/// # Errors
/// The errors are those of [`super::synth_model`].
pub fn synth_dit(
    folder: &Path,
    model: impl Into<Recipe>,
    format: Format,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    let recipe = model.into();
    let parts = networks(&recipe, seed).filter(|(part, _)| part.component() == Component::Dit);
    let files: Vec<Written> =
        parts.map(|(part, seed)| Written::new(&part, expert_of(&recipe, part.name), format, seed)).collect();
    let total = files.iter().map(|file| file.bytes as u64).sum();
    let temporary = Temporary::beside(folder)?;
    check_room(&temporary.0, folder, total)?;
    let mut written = 0;
    for file in &files {
        file.write(&temporary.0, &mut |bytes| {
            written += bytes;
            progress(written, total)
        })?;
    }
    temporary.rename(folder)?;
    Ok(files.into_iter().map(|file| folder.join(file.name)).collect())
}

/// A file of a made-up DiT.
struct Written {
    name: String,
    entries: Vec<Entry>,
    header: Vec<u8>,
    /// What the first byte of each tensor's data is a multiple of.
    alignment: usize,
    bytes: usize,
}

impl Written {
    fn new(part: &Part<'_>, expert: Option<ExpertName>, format: Format, seed: u64) -> Self {
        let mut entries: Vec<Entry> =
            part.schema().into_iter().flat_map(|e| entries(e, format, seed)).collect();
        if format == Format::Fp8Scaled {
            entries.push(Entry::constant("scaled_fp8".into(), DType::F8E4m3, vec![0], Vec::new()));
        }
        let (kind, alignment, header) = match format.blocks() {
            Some(_) => ("gguf", ALIGNMENT, gguf_header(&entries)),
            None => {
                let list = entries.iter().map(|entry| (&*entry.name, entry.dtype, &*entry.shape));
                ("safetensors", 1, safetensors::header(list))
            }
        };
        let data = entries.iter().map(|entry| entry.bytes.next_multiple_of(alignment)).sum::<usize>();
        let name = match expert {
            Some(ExpertName::HighNoise) => format!("dit_high_noise.{kind}"),
            Some(ExpertName::LowNoise) => format!("dit_low_noise.{kind}"),
            None => format!("dit.{kind}"),
        };
        Self { name, entries, alignment, bytes: header.len() + data, header }
    }

    /// Writes the file, and tells the bytes of each part.
    fn write(&self, folder: &Path, wrote: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let Self { name, entries, header, alignment, bytes } = self;
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(Error::file("create", &path))?;
        file.set_len(*bytes as u64).map_err(Error::file("write", &path))?;
        file.write_all_at(header, 0).map_err(Error::file("write", &path))?;
        wrote(header.len() as u64)?;
        let mut at = header.len();
        let mut parts = Vec::new();
        for entry in entries {
            let step = (PART / entry.unit).max(1) * entry.unit;
            parts.extend(
                (0..entry.bytes).step_by(step).map(|start| (entry, at, start, step.min(entry.bytes - start))),
            );
            at += entry.bytes.next_multiple_of(*alignment);
        }
        for some in parts.chunks(PARTS) {
            some.par_iter().try_for_each_init(Vec::new, |buffer, (entry, at, start, bytes)| {
                buffer.resize(*bytes, 0);
                (entry.make)(*start, buffer);
                file.write_all_at(buffer, (at + start) as u64).map_err(Error::file("write", &path))
            })?;
            wrote(some.iter().map(|(.., bytes)| *bytes as u64).sum())?;
        }
        file.sync_all().map_err(Error::file("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::synth::{Family, Size, cut};
    use crate::weights::{WeightSource, open_dit, open_expert};

    #[test]
    fn every_format_is_read_and_keeps_activations_near_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut recipe = Size::Tiny.recipe();
        cut(&mut recipe, 2);
        for format in Format::value_variants() {
            let name = format.to_possible_value().unwrap();
            let folder = dir.path().join(name.get_name());
            let mut last = (0, 0);
            let mut progress = |done, all| {
                last = (done, all);
                Ok(())
            };
            let paths = synth_dit(&folder, recipe.clone(), *format, 5, &mut progress).unwrap();
            assert!(last.0 > 0 && last.0 <= last.1, "{format:?}: {last:?}");
            let (weights, config) = open_dit(&paths[0]).unwrap_or_else(|e| panic!("{format:?}: {e}"));
            assert_eq!(config.num_layers, 2);
            for name in weights.names() {
                let values = weights.tensor(name).unwrap().data;
                assert!(values.iter().all(|value| value.is_finite()), "{format:?} {name}");
            }
            let matrix = weights.matrix("blocks.1.ffn.0.weight").unwrap();
            let plain = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
            assert_eq!(matrix.encoding.is_plain(), plain, "{format:?}");
            let values = matrix.to_f32();
            let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let deviation = (squares / values.len() as f64 * matrix.cols as f64).sqrt();
            assert!((0.5..2.0).contains(&deviation), "{format:?}: {deviation}");
            assert!(matrix.bytes[..512] != matrix.bytes[512..1024], "{format:?} repeats itself");
        }
    }
    #[test]
    fn two_transformers_are_a_pair_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut recipe = Size::Tiny.recipe_of(Family::Wan22);
        cut(&mut recipe, 1);
        let folder = dir.path().join("pair");
        let paths = synth_dit(&folder, recipe, Format::Q4_K, 5, &mut |_, _| Ok(())).unwrap();
        assert_eq!(paths, ["dit_high_noise.gguf", "dit_low_noise.gguf"].map(|name| folder.join(name)));
        let first = |path: &PathBuf| {
            let (weights, config) = open_expert(path).unwrap();
            assert_eq!(config.image_dim, None);
            weights.tensor("blocks.0.ffn.0.weight").unwrap().data
        };
        assert!(first(&paths[0]) != first(&paths[1]), "each has weights of its own");
    }
}
