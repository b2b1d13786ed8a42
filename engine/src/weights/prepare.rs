//! A DiT prepared for the GPU: its large matrices are rounded to 8 bits once, as the GPU would round them at every
//! start, so that later starts read half as much and round nothing. A copy lies in a folder of its own beside the
//! DiT's files, one for each precision: fp8 in `LightX2V`'s layout, and rotated int8 with `ComfyUI`'s descriptions,
//! which other programs read, too.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use super::identity::Identity;
use super::layouts::{DESCRIPTION_SUFFIX, ROTATED_INT8, SCALE_SUFFIX};
use super::{
    Component, DType, Encoding, Matrix, WeightSource, Weights, find, open_dit, rounding, safetensors,
};
use crate::{Error, Result};
use animd_protocol::dims::schema;
use animd_protocol::plan::network::ROTATED;
use animd_protocol::profile::Precision;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const CONFIG: &str = "config.json";
/// The file that says which DiT the copy was made of. It is written last.
const SOURCES: &str = "sources.json";
/// The number of bytes that are rounded before they are written.
const PART: usize = 64 << 20;

/// The result of preparing a DiT.
#[derive(Clone, Debug, Serialize)]
pub struct Prepared {
    /// The folder of the copy.
    pub folder: PathBuf,
    /// The bytes of the DiT's tensors in its own files.
    pub before: u64,
    /// The bytes of the DiT's tensors in the copy.
    pub after: u64,
}

/// Returns the name of the folder of copies in this precision; `None` for one that none are made in.
fn name_of(precision: Precision) -> Option<&'static str> {
    match precision {
        Precision::Fp8 => Some("animd-fp8"),
        Precision::Int8 => Some("animd-int8"),
        Precision::Bf16 | Precision::Fp32 => None,
    }
}

/// Returns the path of the copy in this precision of a DiT, which is given by its folder or file. For a file, the
/// file's name comes before the folder's.
fn folder(dit: &Path, precision: Precision) -> Option<PathBuf> {
    let name = name_of(precision)?;
    Some(match dit.file_stem() {
        Some(stem) if !dit.is_dir() => dit.with_file_name(format!("{}.{name}", stem.to_string_lossy())),
        _ => dit.join(name),
    })
}

/// Returns the copy of a DiT that is prepared in this precision, if there is one and the DiT's files have not changed
/// since it was made. Copies in other precisions do not matter.
pub fn find_prepared(dit: &Path, precision: Precision) -> Option<PathBuf> {
    let folder = folder(dit, precision)?;
    let text = match fs::read_to_string(folder.join(SOURCES)) {
        Ok(text) => text,
        Err(e) => {
            if e.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(
                    "the prepared copy in `{}` is not used: it cannot be read: {e}",
                    folder.display()
                );
            }
            return None;
        }
    };
    let made_of: Option<Vec<Identity>> = serde_json::from_str(&text).ok();
    let now = sources(&find::files(dit, Component::Dit).ok()?).ok()?;
    // An older version's list says less of the files, which is not enough.
    if made_of.is_none_or(|made_of| made_of != now) {
        tracing::warn!(
            "`{}` is not known to be of these files and is not used; run `animd-engine prepare` again, or remove it",
            folder.display()
        );
        return None;
    }
    Some(folder)
}

/// Reads a DiT (a folder or a file) and writes its copy in fp8 or int8, which appears complete or not at all. An older
/// copy in this precision is replaced. `wrote` receives the bytes written so far and the total, and can stop the work.
///
/// # Errors
/// [`Error::Setting`] for another precision; [`Error::Model`] if the DiT has a mistake or is already in 8 bits;
/// [`Error::File`] if writing fails.
pub fn prepare(
    dit: &Path,
    precision: Precision,
    wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Prepared> {
    let Some(folder) = folder(dit, precision) else {
        return Err(Error::Setting("a DiT is prepared in 8 bits: `int8` or `fp8`".into()));
    };
    let files = find::files(dit, Component::Dit)?;
    let made_of = sources(&files)?;
    let (weights, config) = open_dit(dit)?;
    let mut large: Vec<String> =
        schema::dit(&config).into_iter().filter(|e| e.quantisable).map(|e| e.name).collect();
    if !large.iter().all(|name| weights.encoding(name).is_some_and(Encoding::is_plain)) {
        return Err(Error::Model(format!(
            "`{}` is in 8 bits already, or in fewer: there is nothing to prepare",
            dit.display()
        )));
    }
    if precision == Precision::Int8 {
        // Matrices with other columns stay in bf16 on the GPU.
        large.retain(|name| {
            weights.shape(name).and_then(<[_]>::last).is_some_and(|cols| cols.is_multiple_of(ROTATED))
        });
    }

    let part = unfinished(&folder);
    let result = (|| {
        remove(&part)?;
        fs::create_dir(&part).map_err(Error::file("create", &part))?;
        let after = write(&weights, &large, precision, &part.join(WEIGHTS), wrote)?;
        let beside = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).join(CONFIG);
        if beside.exists() {
            fs::copy(&beside, part.join(CONFIG)).map_err(Error::file("copy", &beside))?;
        }
        let text = serde_json::to_string_pretty(&made_of).map_err(|e| Error::Internal(e.to_string()))?;
        let path = part.join(SOURCES);
        fs::write(&path, text + "\n").map_err(Error::file("write", &path))?;
        for name in [CONFIG, SOURCES] {
            if let Ok(file) = File::open(part.join(name)) {
                file.sync_all().map_err(Error::file("sync", &part))?;
            }
        }
        if folder.exists() && !folder.join(SOURCES).exists() {
            return Err(Error::Model(format!("`{}` is no prepared copy; move it away", folder.display())));
        }
        // Everyone who can read the DiT can read its copy.
        for (of, to) in [(files.first().map_or(dit, |file| file), part.join(WEIGHTS))]
            .into_iter()
            .chain([(beside.parent().unwrap_or(dit), part.clone())])
        {
            let mode = fs::metadata(of).map_err(Error::file("read", of))?.permissions();
            fs::set_permissions(&to, mode).map_err(Error::file("set the rights of", &to))?;
        }
        remove(&folder)?;
        fs::rename(&part, &folder).map_err(Error::file("rename", &part))?;
        Ok(Prepared { folder, before: weights.stored_bytes() as u64, after })
    })();
    if result.is_err() {
        // Nobody needs what is left of the copy, and the error already says what matters.
        let _ = remove(&part);
    }
    result
}

/// Returns the name of a copy that is still being written.
fn unfinished(folder: &Path) -> PathBuf {
    folder.with_file_name(format!(".{}.part", folder.file_name().unwrap_or_default().to_string_lossy()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", folder)(e)),
        _ => Ok(()),
    }
}

fn sources(files: &[PathBuf]) -> Result<Vec<Identity>> {
    files.iter().map(|path| Identity::of(path)).collect()
}

/// Writes all tensors in the order of their names; those in `large` are written in 8 bits with a scale for each row.
fn write(
    weights: &Weights,
    large: &[String],
    precision: Precision,
    path: &Path,
    wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<u64> {
    let is_large = |name: &str| large.iter().any(|other| other == name);
    let (dtype, description) = match precision {
        Precision::Int8 => (DType::I8, Some(ROTATED_INT8)),
        _ => (DType::F8E4m3, None),
    };
    let mut entries = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        if is_large(name) {
            let rows = shape[0];
            entries.push((name.to_owned(), dtype, shape));
            entries.push((format!("{name}{SCALE_SUFFIX}"), DType::F32, vec![rows, 1]));
            if let Some(description) = description {
                let layer = name.strip_suffix(".weight").unwrap_or(name);
                entries.push((format!("{layer}{DESCRIPTION_SUFFIX}"), DType::U8, vec![description.len()]));
            }
        } else if let Some(Encoding::Plain(dtype)) = weights.encoding(name) {
            entries.push((name.to_owned(), dtype, shape));
        }
    }
    let all: u64 = entries.iter().map(|(_, dtype, shape)| dtype.bytes(shape.iter().product()) as u64).sum();
    let failed = || Error::file("write", path);
    let mut out =
        BufWriter::with_capacity(1 << 20, File::create_new(path).map_err(Error::file("create", path))?);
    out.write_all(&safetensors::header(
        entries.iter().map(|(name, dtype, shape)| (&**name, *dtype, &**shape)),
    ))
    .map_err(failed())?;
    let mut done = 0;
    for name in weights.names() {
        let matrix = weights.matrix(name)?;
        if is_large(name) {
            let mut scales = Vec::with_capacity(4 * matrix.rows);
            let rows = (PART / matrix.cols.max(1)).max(1);
            for first in (0..matrix.rows).step_by(rows) {
                let (codes, of_rows) = rounded(&matrix.part(first, rows.min(matrix.rows - first)), precision);
                scales.extend(of_rows.into_iter().flat_map(f32::to_le_bytes));
                out.write_all(&codes).map_err(failed())?;
                done += codes.len() as u64;
                wrote(done, all)?;
            }
            for bytes in [&scales[..], description.unwrap_or_default().as_bytes()] {
                out.write_all(bytes).map_err(failed())?;
                done += bytes.len() as u64;
            }
            wrote(done, all)?;
        } else {
            out.write_all(&matrix.bytes).map_err(failed())?;
            done += matrix.bytes.len() as u64;
            wrote(done, all)?;
        }
    }
    let file = out.into_inner().map_err(|e| failed()(e.into_error()))?;
    file.sync_all().map_err(failed())?;
    Ok(all)
}

/// Returns rows in 8 bits and the scale of each, as the kernels' `quantize_rows` gives them.
fn rounded(matrix: &Matrix<'_>, precision: Precision) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![0; matrix.rows * matrix.cols], vec![0.0; matrix.rows]);
    let rows = codes.par_chunks_mut(matrix.cols.max(1)).zip(&mut scales).enumerate();
    rows.for_each(|(row, (codes, scale))| {
        let mut values = matrix.part(row, 1).to_f32();
        if precision == Precision::Int8 {
            *scale = rounding::to_int8(&mut values);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = (value as i8).cast_unsigned();
            }
        } else {
            *scale = rounding::to_e4m3(&values, codes);
        }
    });
    (codes, scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Size, synth_model};

    fn model(folder: &Path) {
        synth_model(folder, Size::Tiny, DType::F32, Some(Component::Dit), 3, &mut |_, _| Ok(())).unwrap();
    }

    const BOTH: [Precision; 2] = [Precision::Fp8, Precision::Int8];

    /// Returns the greatest error that rounding a row in this precision may have at one of its values.
    fn allowed(row: &[f32], value: f32, precision: Precision) -> f32 {
        let top = row.iter().fold(0f32, |top, value| top.max(value.abs()));
        match precision {
            // Half a step of e4m3 (2^-4 of a normal number, 2^-10 of the scale below) and f32's own roundings.
            Precision::Fp8 => (value.abs() / 16.0).max(top / 448.0 / 1024.0) * 1.000_001,
            // Half a unit of each of 256 rotated numbers, whose greatest is at most 16 times the row's: the rotation
            // back keeps the root of the sum of squares.
            _ => (16.0 * top / 127.0) / 2.0 * 16.0,
        }
    }

    #[test]
    fn a_prepared_dit_is_the_same_but_for_the_rounding() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        model(&folder);
        for (precision, layout) in BOTH.into_iter().zip(["lightx2v-fp8", "comfy-quant"]) {
            assert_eq!(find_prepared(&folder, precision), None);
            let mut last = (0, 0);
            let prepared = prepare(&folder, precision, &mut |done, all| {
                last = (done, all);
                Ok(())
            })
            .unwrap();
            assert_eq!((last.0, last.1), (prepared.after, prepared.after));
            assert_eq!(find_prepared(&folder, precision).as_deref(), Some(&*prepared.folder));

            let (official, config) = open_dit(&folder).unwrap();
            let (copy, same) = open_dit(&prepared.folder).unwrap();
            assert_eq!((copy.layout().name(), &same), (layout, &config));
            assert!(copy.names().eq(official.names()));
            let mut large = 0;
            for name in official.names() {
                let (a, b) = (official.matrix(name).unwrap(), copy.matrix(name).unwrap());
                if b.encoding.is_plain() {
                    assert_eq!((a.encoding, &a.bytes), (b.encoding, &b.bytes), "{name}");
                    continue;
                }
                large += 1;
                let (a, b, cols) = (a.to_f32(), b.to_f32(), a.cols);
                let (mut squares, mut of_values) = (0.0, 0.0);
                for (a, b) in a.chunks(cols).zip(b.chunks(cols)) {
                    for (x, y) in a.iter().zip(b) {
                        let allowed = allowed(a, *x, precision);
                        assert!((x - y).abs() <= allowed, "{name}: {x} became {y}, {allowed} allowed");
                        squares += f64::from(x - y).powi(2);
                        of_values += f64::from(*x).powi(2);
                    }
                }
                // Rounding to 3 bits of mantissa errs by 2^-4 at most, evenly spread: 2^-4 / sqrt(3) of the values. Int8
                // errs less.
                assert!(squares.sqrt() <= of_values.sqrt() * 0.0361, "{name}: {squares} of {of_values}");
            }
            assert_eq!(large, schema::dit(&config).iter().filter(|e| e.quantisable).count());
        }
    }

    /// The copy holds the numbers and scales of the rounding that backends do when they load, not others close to them.
    #[test]
    fn an_int8_copy_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        let prepared = prepare(dir.path(), Precision::Int8, &mut |_, _| Ok(())).unwrap();
        let ((official, _), (copy, _)) = (open_dit(dir.path()).unwrap(), open_dit(&prepared.folder).unwrap());
        for name in copy.names() {
            let matrix = copy.matrix(name).unwrap();
            let Some((dtype, scales, group)) = matrix.rotated_rows() else { continue };
            assert_eq!((dtype, group), (DType::I8, ROTATED));
            let mut values = official.matrix(name).unwrap().to_f32();
            let wanted: Vec<f32> = values.chunks_mut(matrix.cols).map(rounding::to_int8).collect();
            assert!(scales[..] == wanted && matrix.numbers() == values, "{name}");
        }
    }

    #[test]
    fn copies_in_both_precisions_lie_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        let whole = find::files(dir.path(), Component::Dit).unwrap();
        let int8 = prepare(dir.path(), Precision::Int8, &mut |_, _| Ok(())).unwrap().folder;
        assert_eq!(find_prepared(dir.path(), Precision::Fp8), None);
        let fp8 = prepare(dir.path(), Precision::Fp8, &mut |_, _| Ok(())).unwrap().folder;
        assert_eq!(find_prepared(dir.path(), Precision::Int8), Some(int8));
        assert_eq!(find_prepared(dir.path(), Precision::Fp8), Some(fp8));
        assert_eq!(find_prepared(dir.path(), Precision::Bf16), None);
        assert_eq!(find::files(dir.path(), Component::Dit).unwrap(), whole);
        let refused = prepare(dir.path(), Precision::Bf16, &mut |_, _| Ok(()));
        assert!(matches!(refused, Err(Error::Setting(_))), "{refused:?}");
    }

    #[test]
    fn a_copy_of_other_files_is_not_taken() {
        for precision in BOTH {
            let dir = tempfile::tempdir().unwrap();
            model(dir.path());
            let prepare = |dit: &Path| prepare(dit, precision, &mut |_, _| Ok(()));
            let prepared = prepare(dir.path()).unwrap();
            let file = &find::files(dir.path(), Component::Dit).unwrap()[0];
            let earlier = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
            File::options().write(true).open(file).unwrap().set_modified(earlier).unwrap();
            assert_eq!(find_prepared(dir.path(), precision), None);
            // A second copy replaces the first.
            assert_eq!(prepare(dir.path()).unwrap().folder, prepared.folder);
            assert_eq!(find_prepared(dir.path(), precision), Some(prepared.folder.clone()));
            // So does one in place of a copy whose list an older version wrote.
            fs::write(prepared.folder.join(SOURCES), r#"[{"name": "a", "bytes": 1, "modified_ns": 2}]"#)
                .unwrap();
            assert_eq!(find_prepared(dir.path(), precision), None);
            prepare(dir.path()).unwrap();
            // Other values in the same place, with the size and the time of those before.
            let (of, end) = (file.metadata().unwrap(), file.metadata().unwrap().len() - 4);
            let open = File::options().write(true).open(file).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&open, &[0; 4], end).unwrap();
            open.set_modified(of.modified().unwrap()).unwrap();
            assert_eq!(find_prepared(dir.path(), precision), None);
            let again = prepare(&prepared.folder).unwrap_err().to_string();
            assert!(again.contains("in 8 bits already"), "{again}");
        }
    }

    #[test]
    fn what_is_stopped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        for precision in BOTH {
            let stopped = prepare(dir.path(), precision, &mut |_, _| Err(Error::Canceled));
            assert!(matches!(stopped, Err(Error::Canceled)));
            let folder = folder(dir.path(), precision).unwrap();
            assert!(!folder.exists() && !unfinished(&folder).exists());
        }
    }
}
