//! Writers for the two file formats, which never hold more than a part of one tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::values::{Fill, fill, tensor_seed};
use crate::weights::{DType, safetensors, torch};
use crate::{Error, Result};

/// A tensor that is to be made up.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub fill: Fill,
}

impl Plan {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.elements()) as u64
    }

    /// Returns the number of positions in a row, which has all axes but the first.
    pub fn columns(&self) -> usize {
        self.shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>().max(1))
    }

    /// Returns all values as bytes, as files have them.
    pub fn make(&self, seed: u64) -> Vec<u8> {
        self.make_part(seed, 0, self.elements())
    }

    /// Returns `count` values from `start` on as bytes.
    pub fn make_part(&self, seed: u64, start: usize, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.dtype.bytes(count)];
        fill(&mut bytes, self.dtype, tensor_seed(seed, &self.name), start, self.columns(), &self.fill);
        bytes
    }

    /// Writes the values part by part.
    fn write(
        &self,
        seed: u64,
        out: &mut impl Write,
        path: &Path,
        wrote: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let seed = tensor_seed(seed, &self.name);
        let columns = self.columns();
        let mut buffer = vec![0; self.dtype.bytes(self.elements().min(PART))];
        let mut start = 0;
        while start < self.elements() {
            let count = PART.min(self.elements() - start);
            let part = &mut buffer[..self.dtype.bytes(count)];
            fill(part, self.dtype, seed, start, columns, &self.fill);
            out.write_all(part).map_err(Error::file("write", path))?;
            wrote(part.len() as u64)?;
            start += count;
        }
        Ok(())
    }
}

/// The number of values that are made before they are written: 32 MiB of brain floats.
const PART: usize = 1 << 24;
/// The largest shard, in bytes. The released files have up to 9.98 GB.
const SHARD: u64 = 9_900_000_000;

/// Writes tensors as `BASE.safetensors`, or as numbered files with an index if one file cannot hold them.
pub(super) fn safetensors(
    folder: &Path,
    base: &str,
    plans: &[Plan],
    seed: u64,
    wrote: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut shards: Vec<Vec<&Plan>> = vec![Vec::new()];
    let mut size = 0;
    for plan in plans {
        if size > 0 && size + plan.bytes() > SHARD {
            shards.push(Vec::new());
            size = 0;
        }
        size += plan.bytes();
        shards.last_mut().expect("there is at least one shard").push(plan);
    }
    let count = shards.len();
    let mut map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = match count {
            1 => format!("{base}.safetensors"),
            _ => format!("{base}-{:05}-of-{count:05}.safetensors", i + 1),
        };
        write_shard(&folder.join(&name), shard, seed, wrote)?;
        map.extend(shard.iter().map(|plan| (plan.name.clone(), json!(name))));
    }
    if count > 1 {
        let total: u64 = plans.iter().map(Plan::bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_text(&folder.join(format!("{base}.safetensors.index.json")), &format!("{index:#}\n"))?;
    }
    Ok(())
}

fn write_shard(
    path: &Path,
    plans: &[&Plan],
    seed: u64,
    wrote: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let header = safetensors::header(plans.iter().map(|plan| (&*plan.name, plan.dtype, &*plan.shape)));
    let mut file = File::create_new(path).map_err(Error::file("create", path))?;
    file.write_all(&header).map_err(Error::file("write", path))?;
    for plan in plans {
        plan.write(seed, &mut file, path, wrote)?;
    }
    file.sync_all().map_err(Error::file("write", path))
}

/// Writes tensors in the format in which `torch.save` writes an `OrderedDict` of them.
pub(super) fn torch(
    folder: &Path,
    stem: &str,
    plans: &[Plan],
    seed: u64,
    wrote: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let path: PathBuf = folder.join(format!("{stem}.pth"));
    let file = File::create_new(&path).map_err(Error::file("create", &path))?;
    let fail = |e: zip::result::ZipError| Error::file("write", &path)(e.into());
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, file));
    // Tensors begin at multiples of 64 bytes, as in torch's files.
    let options =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let small = |zip: &mut ZipWriter<_>, name: &str, content: &[u8]| {
        zip.start_file(format!("{stem}/{name}"), options).map_err(fail)?;
        zip.write_all(content).map_err(Error::file("write", &path))
    };
    small(&mut zip, "data.pkl", &pickle(plans)?)?;
    small(&mut zip, "byteorder", b"little")?;
    for (key, plan) in plans.iter().enumerate() {
        let options = options.large_file(plan.bytes() > u32::MAX.into());
        zip.start_file(format!("{stem}/data/{key}"), options).map_err(fail)?;
        plan.write(seed, &mut zip, &path, wrote)?;
    }
    small(&mut zip, "version", b"3\n")?;
    let file =
        zip.finish().map_err(fail)?.into_inner().map_err(|e| Error::file("write", &path)(e.into_error()))?;
    file.sync_all().map_err(Error::file("write", &path))
}

/// Returns the pickle (protocol 2) of an `OrderedDict` of tensors, each with a storage of its own.
fn pickle(plans: &[Plan]) -> Result<Vec<u8>> {
    let mut p = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, plan) in plans.iter().enumerate() {
        text(&mut p, &plan.name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        let class = torch::storage_class(plan.dtype).ok_or_else(|| {
            Error::Internal(format!("torch has no storage for `{}`, {}", plan.name, plan.dtype.name()))
        })?;
        p.extend(format!("ctorch\n{class}\n").into_bytes());
        text(&mut p, &key.to_string());
        text(&mut p, "cpu");
        int(&mut p, plan.elements());
        p.extend(b"tQK\0(");
        for extent in &plan.shape {
            int(&mut p, *extent);
        }
        p.extend(b"t(");
        for axis in 0..plan.shape.len() {
            int(&mut p, plan.shape[axis + 1..].iter().product());
        }
        p.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    p.extend(b"u.");
    Ok(p)
}

/// Writes a string as BINUNICODE.
fn text(p: &mut Vec<u8>, text: &str) {
    p.push(b'X');
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.as_bytes());
}

/// Writes an integer as BININT, or as LONG1 beyond 31 bits.
fn int(p: &mut Vec<u8>, value: usize) {
    if let Ok(value) = i32::try_from(value) {
        p.push(b'J');
        p.extend(value.to_le_bytes());
    } else {
        p.extend([0x8a, 8]);
        p.extend((value as u64).to_le_bytes());
    }
}

/// Writes a small file.
pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut file = File::create_new(path).map_err(Error::file("create", path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::file("write", path))
}
