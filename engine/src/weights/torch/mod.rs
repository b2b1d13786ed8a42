//! The zip archives that `torch.save` writes: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the storages,
//! stored without compression and therefore mapped in place.

mod pickle;

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::Arc;

use zip::{CompressionMethod, ZipArchive};

use self::pickle::PickledTensor;
use super::mapped::Mapped;
use super::stored::{Stored, Tensors};
use super::{DType, Encoding};
use crate::{Error, Result};

/// The classes of storages, without their module, and the types of the numbers in them.
const STORAGES: [(&str, DType); 10] = [
    ("FloatStorage", DType::F32),
    ("HalfStorage", DType::F16),
    ("BFloat16Storage", DType::Bf16),
    ("DoubleStorage", DType::F64),
    ("LongStorage", DType::I64),
    ("IntStorage", DType::I32),
    ("ShortStorage", DType::I16),
    ("CharStorage", DType::I8),
    ("ByteStorage", DType::U8),
    ("BoolStorage", DType::Bool),
];

/// The names of types that have no class of storage; storages of bytes hold their numbers.
const NUMBERS: [(&str, DType); 6] = [
    ("float8_e4m3fn", DType::F8E4m3),
    ("float8_e5m2", DType::F8E5m2),
    ("float8_e8m0fnu", DType::F8E8m0),
    ("uint16", DType::U16),
    ("uint32", DType::U32),
    ("uint64", DType::U64),
];

/// Returns the class of a storage of numbers of this type, if torch has one.
pub(crate) fn storage_class(dtype: DType) -> Option<&'static str> {
    STORAGES.iter().find(|(_, numbers)| *numbers == dtype).map(|(class, _)| *class)
}

/// The position of a record's content in the file.
struct Record {
    start: u64,
    size: u64,
}

/// Returns the tensors of a torch file.
///
/// # Errors
/// [`Error::Model`] if the archive is incomplete, compressed, big-endian or wants to run code.
pub(crate) fn read(file: &Arc<Mapped>) -> Result<Tensors> {
    tensors(file).map_err(|what| Error::Model(format!("`{}` is not usable: {what}", file.path.display())))
}

fn tensors(file: &Arc<Mapped>) -> Result<Tensors, String> {
    let mut archive = ZipArchive::new(Cursor::new(&file.bytes[..])).map_err(|e| {
        format!("its zip directory cannot be read ({e}), so the file is cut short or damaged; copy it again")
    })?;
    let pickle_name = archive
        .file_names()
        .filter_map(|name| name.ok().map(std::borrow::Cow::into_owned))
        .find(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or("it is a zip archive without a `data.pkl`, which torch files have")?;
    let prefix = pickle_name.trim_end_matches("data.pkl").to_owned();
    if let Ok(order) = small_record(&mut archive, &format!("{prefix}byteorder"), 16)
        && order != b"little"
    {
        return Err("it was written on a big-endian machine".to_owned());
    }
    let described = pickle::read(&small_record(&mut archive, &pickle_name, pickle::MAX_BYTES)?)?;
    let mut records = HashMap::new();
    for (_, tensor) in &described {
        if !records.contains_key(&tensor.key) {
            records
                .insert(tensor.key.clone(), record(&mut archive, &format!("{prefix}data/{}", tensor.key))?);
        }
    }
    let place = |(name, tensor): (String, PickledTensor)| {
        let stored = locate(file, &records[&tensor.key], &tensor)
            .map_err(|what| format!("its tensor `{name}` {what}"))?;
        Ok((name, stored))
    };
    described.into_iter().map(place).collect()
}

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// Returns a record's content, after comparing it with its checksum.
fn small_record(archive: &mut Archive<'_>, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let entry = archive.by_name(name).map_err(|e| format!("its record `{name}` cannot be read: {e}"))?;
    if entry.size() > limit {
        return Err(format!("its record `{name}` has {} bytes; {limit} at most are read", entry.size()));
    }
    entry
        .take(limit + 1)
        .read_to_end(&mut content)
        .map_err(|e| format!("its record `{name}` cannot be read: {e}"))?;
    if content.len() as u64 > limit {
        return Err(format!("its record `{name}` is longer than {limit} bytes"));
    }
    Ok(content)
}

fn record(archive: &mut Archive<'_>, name: &str) -> Result<Record, String> {
    let index = archive
        .index_for_name(name)
        .ok_or_else(|| format!("its record `{name}` is missing; copy it again"))?;
    let entry =
        archive.by_index_raw(index).map_err(|e| format!("its record `{name}` cannot be read: {e}"))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(format!("its record `{name}` is compressed; torch stores tensors as they are"));
    }
    let start = entry.data_start().ok_or_else(|| format!("its record `{name}` has no place in the file"))?;
    Ok(Record { start, size: entry.compressed_size() })
}

/// Checks that all elements of a tensor lie in its storage, and the storage in the file.
fn locate(file: &Arc<Mapped>, record: &Record, tensor: &PickledTensor) -> Result<Stored, String> {
    let size = tensor.dtype.bytes(1);
    let storage_bytes =
        tensor.storage_elements.checked_mul(size).ok_or("has a storage of impossible size")?;
    let file_end = record.start.checked_add(record.size).filter(|end| *end <= file.bytes.len() as u64);
    if storage_bytes as u64 > record.size || file_end.is_none() {
        return Err(format!(
            "needs {storage_bytes} bytes, of which the file has {}; copy it again",
            record.size
        ));
    }
    let outside =
        || format!("{:?} with strides {:?} is outside of its storage", tensor.shape, tensor.strides);
    let elements =
        tensor.shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent)).ok_or_else(outside)?;
    // A view that repeats elements would let a small file ask for much memory.
    if elements > tensor.storage_elements {
        return Err(outside());
    }
    let mut last = Some(tensor.offset);
    for (&extent, &stride) in tensor.shape.iter().zip(&tensor.strides) {
        last = last.and_then(|last| last.checked_add(extent.saturating_sub(1).checked_mul(stride)?));
    }
    if elements > 0 && last.is_none_or(|last| last >= tensor.storage_elements) {
        return Err(outside());
    }
    Ok(Stored {
        file: Arc::clone(file),
        encoding: Encoding::Plain(tensor.dtype),
        shape: tensor.shape.clone(),
        strides: (!contiguous(&tensor.shape, &tensor.strides)).then(|| tensor.strides.clone()),
        start: record.start as usize + if elements > 0 { tensor.offset * size } else { 0 },
        size: elements * size,
    })
}

fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1;
    for (&extent, &stride) in shape.iter().zip(strides).rev() {
        if extent != 1 && stride != step {
            return shape.contains(&0);
        }
        step *= extent;
    }
    true
}
