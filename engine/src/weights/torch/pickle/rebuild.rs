//! The values that a pickle's calls make: dictionaries, storages, and tensors out of storages. Nothing is called: each
//! callable that tensors need has its meaning here, and every other one is refused by its name.

use super::value::{Global, Id, Read, Value, broken};
use super::{DType, MAX_NAME, PickledTensor};

/// Returns the global that a pickle asks for.
pub(super) fn global(module: &str, name: &str) -> Read<Value> {
    if let Some(global) = Global::find(module, name) {
        return Ok(Value::Global(global));
    }
    let full: String = format!("{module}.{name}").chars().take(100).collect();
    let full = full.escape_debug();
    Err(if module.split('.').next() == Some("torch") {
        format!("it needs torch's `{full}`, which animd does not read; it reads plain tensors")
    } else {
        format!("it wants to call `{full}`, which no tensor needs; a model file that runs code is not loaded")
    })
}

/// Returns the result of calling a global with a tuple of arguments.
pub(super) fn call(values: &[Value], callable: Id, arguments: Id) -> Read<Value> {
    let Value::Tuple(arguments) = &values[arguments] else {
        return broken("a call without arguments");
    };
    let Value::Global(global) = &values[callable] else {
        return broken("a call of something that is no function");
    };
    match global {
        Global::OrderedDict if arguments.is_empty() => Ok(Value::Dict(Vec::new())),
        Global::OrderedDict => broken("a dictionary made from something"),
        Global::RebuildTensor => tensor(values, arguments, None).map(Value::Tensor),
        Global::RebuildTyped => match arguments.get(6).map(|id| &values[*id]) {
            Some(Value::Global(Global::Numbers(dtype))) => {
                tensor(values, arguments, Some(*dtype)).map(Value::Tensor)
            }
            _ => broken("a tensor without a type of numbers"),
        },
        Global::Numbers(dtype) => Err(format!("it calls the type `{}`", dtype.name())),
        Global::RebuildParameter => match arguments.first().map(|id| &values[*id]) {
            Some(Value::Tensor(tensor)) => Ok(Value::Tensor(tensor.clone())),
            _ => broken("a parameter without a tensor"),
        },
        Global::StorageClass(name, _) => Err(format!("it makes a `torch.{name}` of its own")),
    }
}

/// Rebuilds a tensor: `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])`; with
/// `_rebuild_tensor_v3`, the storage is of bytes, and the numbers' type follows the hooks.
fn tensor(values: &[Value], arguments: &[Id], numbers: Option<DType>) -> Read<PickledTensor> {
    let (4.., Some(storage)) = (arguments.len(), arguments.first()) else {
        return broken("a tensor with too few arguments");
    };
    let Value::Storage { dtype, key, elements } = &values[*storage] else {
        return broken("a tensor without a storage");
    };
    let (dtype, elements) = match (numbers, dtype) {
        (None, dtype) => (*dtype, *elements),
        (Some(numbers), DType::U8) => (numbers, elements / numbers.bytes(1)),
        (Some(_), _) => return broken("a type of numbers for a storage that has one"),
    };
    let (shape, strides) = (extents(values, arguments[2])?, extents(values, arguments[3])?);
    if shape.len() != strides.len() {
        return broken("a tensor with other strides than extents");
    }
    Ok(PickledTensor {
        dtype,
        key: key.clone(),
        storage_elements: elements,
        offset: size(values, arguments[1])?,
        shape,
        strides,
    })
}

/// Returns the storage that a persistent id describes: `('storage', class, key, location, elements)`.
pub(super) fn storage(values: &[Value], id: Id) -> Read<Value> {
    let Value::Tuple(items) = &values[id] else {
        return broken("a storage without a description");
    };
    let [tag, class, key, _, elements] = items[..] else {
        return broken("a storage without a description");
    };
    match (&values[tag], &values[class], &values[key]) {
        (Value::Text(tag), Value::Global(Global::StorageClass(_, dtype)), Value::Text(key))
            if tag == "storage" && key.len() <= MAX_NAME =>
        {
            Ok(Value::Storage { dtype: *dtype, key: key.clone(), elements: size(values, elements)? })
        }
        _ => broken("a storage without a class or a key"),
    }
}

fn size(values: &[Value], id: Id) -> Read<usize> {
    match &values[id] {
        Value::Int(v) => usize::try_from(*v).or_else(|_| broken("a negative size")),
        _ => broken("a size that is no number"),
    }
}

/// Returns a tuple of at most eight sizes.
fn extents(values: &[Value], id: Id) -> Read<Vec<usize>> {
    match &values[id] {
        Value::Tuple(items) if items.len() <= 8 => items.iter().map(|id| size(values, *id)).collect(),
        _ => broken("a shape that is none"),
    }
}
