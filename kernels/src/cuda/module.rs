//! The embedded machine code.

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::nvrtc::Ptx;

use super::{Card, Error};

/// Embeds the fatbin that `build.rs` makes of `cuda/FOLDER/NAME.cu`.
macro_rules! fatbin {
    ($folder:literal, $name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $folder, "/", $name, ".fatbin"))
    };
}
pub(super) use fatbin;

/// Loads a kernel from its own fatbin and allows it `shared_bytes` of dynamic shared memory.
pub(super) fn load(card: &Card, fatbin: &[u8], name: &str, shared_bytes: u32) -> Result<CudaFunction, Error> {
    let [function] = load_all(card, fatbin, [name], shared_bytes)?;
    Ok(function)
}

/// Loads kernels of one fatbin and allows each `shared_bytes` of dynamic shared memory.
pub(super) fn load_all<const N: usize>(
    card: &Card,
    fatbin: &[u8],
    names: [&str; N],
    shared_bytes: u32,
) -> Result<[CudaFunction; N], Error> {
    let module = card.load_module(Ptx::from_binary(fatbin.to_vec()))?;
    let mut functions = Vec::with_capacity(N);
    for name in names {
        let function = module.load_function(name)?;
        // A block can have 48 KiB without asking, its static shared memory included.
        if shared_bytes > 0 {
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32)?;
        }
        functions.push(function);
    }
    Ok(functions.try_into().unwrap_or_else(|_| unreachable!("one function for each name")))
}
