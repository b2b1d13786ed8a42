//! The values of a pickle, which refer to each other by their index in one arena.

use super::super::{DType, NUMBERS, STORAGES};
use super::PickledTensor;

/// A value's index in the arena.
pub(super) type Id = usize;

/// The result of a step of reading, or a clause for a sentence about the file.
pub(super) type Read<T> = Result<T, String>;

/// Returns the error for a pickle that no program writes.
pub(super) fn broken<T>(what: &str) -> Read<T> {
    Err(format!("its pickle is broken ({what}); copy it again"))
}

/// A value of a pickle.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    /// Floats, bytes and sets: a file can contain them, but no tensor needs them.
    Opaque,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        dtype: DType,
        key: String,
        elements: usize,
    },
    Tensor(PickledTensor),
}

/// A class or function that a pickle names and that tensors need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    /// The same for a storage of bytes, with the type of the numbers as an argument.
    RebuildTyped,
    RebuildParameter,
    /// A type of numbers.
    Numbers(DType),
    StorageClass(&'static str, DType),
}

impl Global {
    /// Returns the global with this name, if tensors need it.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTyped),
            ("torch.storage", "UntypedStorage") => Some(Self::StorageClass("UntypedStorage", DType::U8)),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", _) => {
                let class = STORAGES.into_iter().find(|(class, _)| *class == name);
                let numbers = || NUMBERS.into_iter().find(|(numbers, _)| *numbers == name);
                class
                    .map(|(class, dtype)| Self::StorageClass(class, dtype))
                    .or_else(|| numbers().map(|(_, dtype)| Self::Numbers(dtype)))
            }
            _ => None,
        }
    }
}
