//! Reads the pickles that `torch.save` writes, without running anything. The reader knows dictionaries, numbers,
//! strings and the few callables that rebuild tensors, and refuses every other callable by its name.
//!
//! Values live in one arena and refer to each other by index, so that neither nesting nor cycles nor a long memo can
//! make reading or dropping them recurse. Every operation adds at most one value, so memory stays proportional to the
//! pickle's own length.

mod input;
mod machine;
mod rebuild;
#[cfg(test)]
mod tests;
mod value;

use super::DType;
use machine::Machine;
use value::{Read, Value};

/// The length of the longest pickle that is read. A real one, with a thousand tensors, has about 100 kB.
pub(crate) const MAX_BYTES: u64 = 4 << 20;
/// The longest name of a tensor or a storage, and the most tensors: a few bytes of pickle can repeat a long name, so
/// that without a limit a small file would ask for much memory.
const MAX_NAME: usize = 512;
const MAX_TENSORS: usize = 65_536;

/// A tensor as a pickle describes it: a view of a storage that lies elsewhere in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PickledTensor {
    /// The type of the storage's numbers.
    pub dtype: DType,
    /// The storage's key: its record is `data/KEY`.
    pub key: String,
    /// The number of elements of the storage.
    pub storage_elements: usize,
    /// The index of the tensor's first element in the storage.
    pub offset: usize,
    /// The tensor's extents, outermost first.
    pub shape: Vec<usize>,
    /// The tensor's steps along each axis, in elements.
    pub strides: Vec<usize>,
}

/// Returns the tensors of the dictionary that a pickle holds, in its order; other values are left out. If a dictionary
/// only wraps another one as `state_dict`, the inner one is read.
///
/// # Errors
/// A clause for a sentence about the file: the pickle is broken, or wants something that is not a tensor.
pub(crate) fn read(bytes: &[u8]) -> Read<Vec<(String, PickledTensor)>> {
    let (values, mut top) = Machine::new(bytes).run()?;
    for _ in 0..2 {
        let Value::Dict(items) = &values[top] else {
            return Err("its pickle holds no dictionary of tensors".to_owned());
        };
        let mut tensors = Vec::new();
        let mut inner = None;
        for (key, value) in items {
            if tensors.len() > MAX_TENSORS {
                return Err(format!("its pickle has more than {MAX_TENSORS} tensors"));
            }
            match (&values[*key], &values[*value]) {
                (Value::Text(name), Value::Tensor(_)) if name.len() > MAX_NAME => {
                    return Err(format!(
                        "its pickle has a tensor whose name is longer than {MAX_NAME} bytes"
                    ));
                }
                (Value::Text(name), Value::Tensor(tensor)) => tensors.push((name.clone(), tensor.clone())),
                (Value::Text(name), Value::Dict(_)) if name == "state_dict" => inner = Some(*value),
                _ => {}
            }
        }
        match inner {
            Some(id) if tensors.is_empty() => top = id,
            _ => return Ok(tensors),
        }
    }
    Ok(Vec::new())
}
