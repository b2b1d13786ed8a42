//! The embedded machine code.

use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaContext, CudaFunction};
use cudarc::nvrtc::Ptx;

use super::Error;
use super::rows::refuse;
use crate::Support;

/// Embeds the fatbin that `build.rs` makes of `cuda/FOLDER/NAME.cu`.
macro_rules! fatbin {
    ($folder:literal, $name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $folder, "/", $name, ".fatbin"))
    };
}
pub(super) use fatbin;

static SERVED_AS: OnceLock<(i32, i32)> = OnceLock::new();

/// Serves all cards of this process as if they were of this compute capability, so that checks can run the kernels of an
/// older card on a newer one, from their PTX. It must be called before anything is loaded.
///
/// # Errors
///
/// [`Error::Argument`] if it has been called with another compute capability before.
pub fn serve_as(major: i32, minor: i32) -> Result<(), Error> {
    let served = *SERVED_AS.get_or_init(|| (major, minor));
    if served == (major, minor) {
        return Ok(());
    }
    refuse("kernels", "compute capability", format!("cards are served as {}.{} already", served.0, served.1))
}

/// Returns which kernels run on this GPU.
pub(super) fn support(context: &CudaContext) -> Result<Support, Error> {
    let (major, minor) = match SERVED_AS.get() {
        Some(served) => *served,
        None => context.compute_capability()?,
    };
    match crate::support((major as u32, minor as u32)) {
        Some(support) => Ok(support),
        None => Err(Error::UnsupportedGpu { name: context.name()?, major, minor }),
    }
}

/// Loads a kernel from its own fatbin and allows it `shared_bytes` of dynamic shared memory.
pub(super) fn load(
    context: &Arc<CudaContext>,
    fatbin: &[u8],
    name: &str,
    shared_bytes: u32,
) -> Result<CudaFunction, Error> {
    let [function] = load_all(context, fatbin, [name], shared_bytes)?;
    Ok(function)
}

/// Loads kernels of one fatbin and allows each `shared_bytes` of dynamic shared memory.
pub(super) fn load_all<const N: usize>(
    context: &Arc<CudaContext>,
    fatbin: &[u8],
    names: [&str; N],
    shared_bytes: u32,
) -> Result<[CudaFunction; N], Error> {
    let module = context.load_module(Ptx::from_binary(fatbin.to_vec()))?;
    let mut functions = Vec::with_capacity(N);
    for name in names {
        let function = module.load_function(name)?;
        // A block can have up to 48 KiB without asking.
        if shared_bytes > 48 << 10 {
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32)?;
        }
        functions.push(function);
    }
    Ok(functions.try_into().unwrap_or_else(|_| unreachable!("one function for each name")))
}
