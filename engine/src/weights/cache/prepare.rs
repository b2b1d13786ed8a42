//! Writes the prepared copy of a transformer: its large matrices are rounded to 8 bits once, as the GPU would round them
//! at every start, so that later starts read half as much and round nothing. A copy is in fp8 in `LightX2V`'s layout, or
//! in rotated int8 with `ComfyUI`'s descriptions, which other programs read, too.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::statvfs;
use serde::Serialize;

use super::draft::Draft;
use super::room::{UNFINISHED, Writing, remove};
use super::{Cache, Origin, SOURCES, sources};
use crate::weights::layouts::{DESCRIPTION_SUFFIX, ROTATED_INT8, SCALE_SUFFIX};
use crate::weights::model::transformers;
use crate::weights::open::{open_dit, open_expert};
use crate::weights::{
    Component, DType, Encoding, Matrix, WeightSource, Weights, find, rounding, safetensors,
};
use crate::{Error, Result};
use animd_protocol::dims::schema;
use animd_protocol::plan::network::ROTATED;
use animd_protocol::profile::Precision;
use animd_protocol::recipe::ExpertName;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const CONFIG: &str = "config.json";
/// The number of bytes that are rounded before they are written.
const PART: usize = 64 << 20;

/// The result of preparing a transformer.
#[derive(Clone, Debug, Serialize)]
pub struct Prepared {
    /// Which of a model's two transformers it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert: Option<ExpertName>,
    /// The folder of the copy.
    pub folder: PathBuf,
    /// The bytes of the transformer's tensors in its own files.
    pub before: u64,
    /// The bytes of its tensors in the copy.
    pub after: u64,
}

/// A transformer that is about to be prepared.
struct Job {
    expert: Option<ExpertName>,
    dit: PathBuf,
    files: Vec<PathBuf>,
    weights: Weights,
    /// The tensors of the copy in their order.
    entries: Vec<(String, DType, Vec<usize>)>,
    /// The names of the matrices that are written in 8 bits, in order.
    large: Vec<String>,
}

/// Writes the copies in fp8 or int8 of a model's transformer, or of both that Wan2.2 has; a transformer's own folder or
/// file will do. Each copy appears complete or not at all, and replaces an older one of the same files. Copies that were
/// not used for the longest time are dropped where the cache would be too large. `wrote` receives the bytes written so far
/// and the total, and can stop the work.
///
/// # Errors
/// [`Error::Setting`] for another precision, or if the copies do not fit into the cache; [`Error::Model`] if a transformer
/// has a mistake or is already in 8 bits; [`Error::File`] if writing fails or the disk has too little room.
pub fn prepare(
    model: &Path,
    precision: Precision,
    cache: &Cache,
    wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<Prepared>> {
    if super::name_of(precision).is_none() {
        return Err(Error::Setting("a DiT is prepared in 8 bits: `int8` or `fp8`".into()));
    }
    let found = transformers(model)?.into_iter();
    let jobs: Vec<Job> =
        found.map(|(expert, dit)| Job::open(expert, dit, precision)).collect::<Result<_>>()?;
    let all: u64 = jobs.iter().map(Job::bytes).sum();
    let writing = cache.lock()?;
    cache.make_room(&writing, all)?;
    let free = free(cache.folder())?;
    if free < all {
        let short =
            format!("it needs {:.1} GB, and the disk has {:.1} GB free", all as f64 / 1e9, free as f64 / 1e9);
        return Err(Error::file("write", cache.folder())(io::Error::new(io::ErrorKind::StorageFull, short)));
    }
    let mut before = 0;
    let mut copies = Vec::new();
    for job in jobs {
        copies.push(job.run(precision, cache, &writing, &mut |done, _| wrote(before + done, all))?);
        before += job.bytes();
    }
    Ok(copies)
}

/// Returns the bytes that are free on the disk of a folder.
fn free(folder: &Path) -> Result<u64> {
    let disk = statvfs(folder).map_err(|e| Error::file("read", folder)(e.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

impl Job {
    fn open(expert: Option<ExpertName>, dit: PathBuf, precision: Precision) -> Result<Self> {
        // No file says that it is one of two.
        let alone = || if expert.is_none() { open_dit(&dit) } else { open_expert(&dit) };
        let (weights, config) = open_expert(&dit).or_else(|_| alone())?;
        let files = find::files(&dit, Component::Dit)?;
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
        let entries = entries(&weights, &large, precision);
        Ok(Self { expert, dit, files, weights, entries, large })
    }

    /// Returns the bytes of the copy's tensors.
    fn bytes(&self) -> u64 {
        self.entries.iter().map(|(_, dtype, shape)| dtype.bytes(shape.iter().product()) as u64).sum()
    }

    /// Writes the copy.
    fn run(
        &self,
        precision: Precision,
        cache: &Cache,
        writing: &Writing,
        wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Prepared> {
        let Self { expert, dit, files, weights, .. } = self;
        let made_of = sources(files)?;
        let real = fs::canonicalize(dit).map_err(Error::file("find", dit))?;
        // A link into the Hugging Face cache has a name, and what it leads to has none.
        let dit = if dit.is_dir() { real } else { std::path::absolute(dit).unwrap_or(real) };
        let folder = cache
            .place(&dit, &made_of, precision)
            .ok_or_else(|| Error::Internal("a copy in this precision has no name".into()))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let draft = Draft::begin(cache.folder().join(format!(".{name}{UNFINISHED}")))?;
        let result = (|| {
            let mut made =
                vec![self.write(precision, draft.create(WEIGHTS)?, &draft.path().join(WEIGHTS), wrote)?];
            let beside = files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")).join(CONFIG);
            let mut texts = Vec::new();
            if beside.exists() {
                texts.push((CONFIG, fs::read(&beside).map_err(Error::file("read", &beside))?));
            }
            let origin = Origin { dit, precision, bytes: weights.stored_bytes() as u64, files: made_of };
            let text = serde_json::to_string_pretty(&origin).map_err(|e| Error::Internal(e.to_string()))?;
            texts.push((SOURCES, (text + "\n").into_bytes()));
            for (name, text) in texts {
                let mut file = draft.create(name)?;
                let written = file.write_all(&text).and_then(|()| file.sync_all());
                written.map_err(Error::file("write", &draft.path().join(name)))?;
                made.push(file);
            }
            draft.finish(&made, cache.folder(), files.first().unwrap_or(&origin.dit))?;
            cache.put(writing, draft.path(), &folder)
        })();
        if let Err(e) = result {
            // Nobody needs what is left of the copy, and the error already says what matters.
            let _ = remove(draft.path());
            return Err(e);
        }
        Ok(Prepared { expert: *expert, folder, before: weights.stored_bytes() as u64, after: self.bytes() })
    }
}

/// Returns the tensors of a copy, in the order of their names; those in `large` are in 8 bits with a scale for each row.
fn entries(weights: &Weights, large: &[String], precision: Precision) -> Vec<(String, DType, Vec<usize>)> {
    let (dtype, description) = written_as(precision);
    let mut entries = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        if large.iter().any(|other| other == name) {
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
    entries
}

/// Returns the type of matrices in 8 bits, and the description that each of them has.
fn written_as(precision: Precision) -> (DType, Option<&'static str>) {
    match precision {
        Precision::Int8 => (DType::I8, Some(ROTATED_INT8)),
        _ => (DType::F8E4m3, None),
    }
}

impl Job {
    /// Writes all tensors to a new file, and returns it; `path` is where it lies.
    fn write(
        &self,
        precision: Precision,
        file: File,
        path: &Path,
        wrote: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<File> {
        let (_, description) = written_as(precision);
        let all = self.bytes();
        let failed = || Error::file("write", path);
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&safetensors::header(
            self.entries.iter().map(|(name, dtype, shape)| (&**name, *dtype, &**shape)),
        ))
        .map_err(failed())?;
        let mut done = 0;
        for name in self.weights.names() {
            let matrix = self.weights.matrix(name)?;
            if self.large.iter().any(|other| other == name) {
                let mut scales = Vec::with_capacity(4 * matrix.rows);
                let rows = (PART / matrix.cols.max(1)).max(1);
                for first in (0..matrix.rows).step_by(rows) {
                    let (codes, of_rows) =
                        rounded(&matrix.part(first, rows.min(matrix.rows - first)), precision);
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
        Ok(file)
    }
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
