//! A DiT prepared for the GPU: its large matrices are rounded to fp8 once, as the GPU would round them at every
//! start, so that later starts read half as much and round nothing. The copy lies in a folder of its own beside the
//! DiT's files, in `LightX2V`'s layout, which other programs read, too.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::layouts::SCALE_SUFFIX;
use super::{Component, DType, Encoding, Matrix, WeightSource, Weights, e4m3, find, open_dit, safetensors};
use crate::{Error, Result};
use animd_protocol::dims::schema;

/// The folder's name. For a DiT that is a single file, that file's name comes before it.
pub const FOLDER: &str = "animd-fp8";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const CONFIG: &str = "config.json";
/// The file that says which DiT the copy was made of. It is written last.
const SOURCES: &str = "sources.json";
/// The least magnitude that a row is assumed to have, so that a row of zeros has a scale, too.
const LEAST: f32 = 1e-10;
/// The number of bytes that are rounded before they are written.
const PART: usize = 64 << 20;

/// A file that the copy was made of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    name: String,
    bytes: u64,
    modified_ns: u64,
}

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

/// Returns the path of the prepared copy of a DiT, which is given by its folder or file.
fn folder(dit: &Path) -> PathBuf {
    match dit.file_stem() {
        Some(stem) if !dit.is_dir() => dit.with_file_name(format!("{}.{FOLDER}", stem.to_string_lossy())),
        _ => dit.join(FOLDER),
    }
}

/// Returns the prepared copy of a DiT, if there is one and the DiT's files have not changed since it was made.
pub fn find_prepared(dit: &Path) -> Option<PathBuf> {
    let folder = folder(dit);
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
    let made_of: Vec<Source> = serde_json::from_str(&text).ok()?;
    let now = sources(&find::files(dit, Component::Dit).ok()?).ok()?;
    if made_of != now {
        tracing::warn!(
            "`{}` is not of these files any more and is not used; run `animd-engine prepare` again, or remove it",
            folder.display()
        );
        return None;
    }
    Some(folder)
}

/// Reads a DiT (a folder or a file) and writes its prepared copy, which appears complete or not at all. An older copy
/// is replaced. `wrote` receives the bytes written so far and the total, and can stop the work.
///
/// # Errors
/// [`Error::Model`] if the DiT has a mistake or is already in 8 bits; [`Error::File`] if writing fails.
pub fn prepare(dit: &Path, wrote: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<Prepared> {
    let files = find::files(dit, Component::Dit)?;
    let made_of = sources(&files)?;
    let (weights, config) = open_dit(dit)?;
    let large: Vec<String> =
        schema::dit(&config).into_iter().filter(|e| e.quantisable).map(|e| e.name).collect();
    if !large.iter().all(|name| weights.encoding(name).is_some_and(Encoding::is_plain)) {
        return Err(Error::Model(format!(
            "`{}` is in 8 bits already, or in fewer: there is nothing to prepare",
            dit.display()
        )));
    }

    let folder = folder(dit);
    let part = unfinished(&folder);
    let result = (|| {
        remove(&part)?;
        fs::create_dir(&part).map_err(Error::file("create", &part))?;
        let after = write(&weights, &large, &part.join(WEIGHTS), wrote)?;
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

fn sources(files: &[PathBuf]) -> Result<Vec<Source>> {
    let source = |path: &PathBuf| {
        let meta = fs::metadata(path).map_err(Error::file("read", path))?;
        let modified = meta.modified().map_err(Error::file("read", path))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Source { name, bytes: meta.len(), modified_ns: since.as_nanos() as u64 })
    };
    files.iter().map(source).collect()
}

/// Writes all tensors in the order of their names; those in `large` are written in 8 bits with a scale for each row.
fn write(
    weights: &Weights,
    large: &[String],
    path: &Path,
    wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<u64> {
    let is_large = |name: &str| large.iter().any(|other| other == name);
    let mut entries = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        if is_large(name) {
            entries.push((format!("{name}{SCALE_SUFFIX}"), DType::F32, vec![shape[0], 1]));
            entries.push((name.to_owned(), DType::F8E4m3, shape));
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
            let tops = tops(&matrix);
            let scales: Vec<u8> = tops.iter().flat_map(|top| (top / e4m3::MAX).to_le_bytes()).collect();
            out.write_all(&scales).map_err(failed())?;
            done += scales.len() as u64;
            let rows = (PART / matrix.cols.max(1)).max(1);
            for first in (0..matrix.rows).step_by(rows) {
                let part = matrix.part(first, rows.min(matrix.rows - first));
                let bytes = rounded(&part, &tops[first..]);
                out.write_all(&bytes).map_err(failed())?;
                done += bytes.len() as u64;
                wrote(done, all)?;
            }
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

/// Returns the greatest magnitude of each row.
fn tops(matrix: &Matrix<'_>) -> Vec<f32> {
    let top = |row: usize| {
        matrix.part(row, 1).to_f32().into_iter().fold(LEAST, |top: f32, value| top.max(value.abs()))
    };
    (0..matrix.rows).into_par_iter().map(top).collect()
}

/// Returns rows in 8 bits, each scaled so that its greatest magnitude becomes e4m3's, as the kernels' `quantize_rows`
/// does.
fn rounded(matrix: &Matrix<'_>, tops: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; matrix.rows * matrix.cols];
    bytes.par_chunks_mut(matrix.cols.max(1)).enumerate().for_each(|(row, out)| {
        let inverse = e4m3::MAX / tops[row];
        for (to, value) in out.iter_mut().zip(matrix.part(row, 1).to_f32()) {
            *to = e4m3::encode(value * inverse);
        }
    });
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Size, synth_model};

    fn model(folder: &Path) {
        synth_model(folder, Size::Tiny, DType::F32, Some(Component::Dit), 3, &mut |_, _| Ok(())).unwrap();
    }

    #[test]
    fn a_prepared_dit_is_the_same_but_for_the_rounding() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        model(&folder);
        assert_eq!(find_prepared(&folder), None);
        let mut last = (0, 0);
        let prepared = prepare(&folder, &mut |done, all| {
            last = (done, all);
            Ok(())
        })
        .unwrap();
        assert_eq!((last.0, last.1), (prepared.after, prepared.after));
        assert_eq!(find_prepared(&folder).as_deref(), Some(&*prepared.folder));

        let (official, config) = open_dit(&folder).unwrap();
        let (copy, same) = open_dit(&prepared.folder).unwrap();
        assert_eq!((copy.layout().name(), &same), ("lightx2v-fp8", &config));
        assert!(copy.names().eq(official.names()));
        let mut rounded = 0;
        for name in official.names() {
            let (a, b) = (official.matrix(name).unwrap(), copy.matrix(name).unwrap());
            if b.encoding.is_plain() {
                assert_eq!((a.encoding, &a.bytes), (b.encoding, &b.bytes), "{name}");
                continue;
            }
            rounded += 1;
            let (a, b) = (a.to_f32(), b.to_f32());
            for (a, b) in a.chunks(copy.shape(name).unwrap()[1]).zip(b.chunks(copy.shape(name).unwrap()[1])) {
                let top = a.iter().fold(0f32, |top, value| top.max(value.abs()));
                for (a, b) in a.iter().zip(b) {
                    // The bound is half a step of e4m3 (2^-4 of a normal number, 2^-10 of the scale below) and f32's
                    // own roundings.
                    let step = (a.abs() / 16.0).max(top / 448.0 / 1024.0) * 1.000_001;
                    assert!((a - b).abs() <= step, "{name}: {a} became {b}, at most {top}");
                }
            }
        }
        assert_eq!(rounded, schema::dit(&config).iter().filter(|e| e.quantisable).count());
    }

    #[test]
    fn a_copy_of_other_files_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        let prepared = prepare(dir.path(), &mut |_, _| Ok(())).unwrap();
        let file = &find::files(dir.path(), Component::Dit).unwrap()[0];
        let earlier = UNIX_EPOCH + std::time::Duration::from_secs(1);
        File::options().write(true).open(file).unwrap().set_modified(earlier).unwrap();
        assert_eq!(find_prepared(dir.path()), None);
        // A second copy replaces the first.
        assert_eq!(prepare(dir.path(), &mut |_, _| Ok(())).unwrap().folder, prepared.folder);
        assert_eq!(find_prepared(dir.path()), Some(prepared.folder.clone()));
        let again = prepare(&prepared.folder, &mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(again.contains("in 8 bits already"), "{again}");
    }

    #[test]
    fn what_is_stopped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path());
        let stopped = prepare(dir.path(), &mut |_, _| Err(Error::Canceled));
        assert!(matches!(stopped, Err(Error::Canceled)));
        assert!(!dir.path().join(FOLDER).exists() && !unfinished(&dir.path().join(FOLDER)).exists());
    }
}
