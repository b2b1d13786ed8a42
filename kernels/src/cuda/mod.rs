//! Launchers of the kernels.
//!
//! Launchers take device addresses ([`Rows`]) rather than owned memory, so that a caller may place tensors as it likes;
//! they check shapes, strides and alignment, enqueue on the given stream and return. What they cannot check is in their
//! safety sections.

mod attention;
mod attention_any;
mod attention_layout;
mod attention_raw;
mod attention_sync;
mod card;
mod conv;
mod conv_geometry;
mod copies;
mod cross_attention;
mod epilogue;
mod error;
mod expand;
mod gemm;
mod module;
mod norms;
mod rows;
mod tensor_map;
mod tiles;
mod volumes;

pub use crate::{Activation, Spatial, Time};
pub use attention::Attention;
pub use attention_any::{AnyAttention, AnyAttentionArguments, Batches};
pub use attention_layout::{Attention8bitLayout, Attention8bitPlaces, Attention8bitWorkspace, HEAD_DIM};
pub use attention_raw::RawHeads;
pub use card::Card;
pub use conv::{Conv, ConvEpilogue};
pub use conv_geometry::{ConvLayer, Volume, fold_for_doubling};
pub use copies::{Copies, Strided};
pub use cross_attention::{CrossAttention, KeyValue};
pub use cudarc;
pub use epilogue::{Epilogue, Gate, Squares};
pub use error::Error;
pub use expand::{Block, BlockScales, Expand, Number};
pub use gemm::{Gemm, MOST_INT8, Operands};
pub use norms::{Affine, Int8Rows, Norms, RopeTables, Typed, rotation_group};
pub use rows::{Element, Rows};
pub use volumes::{Term, Volumes};

use cudarc::driver::CudaContext;

/// The major version of CUDA that the embedded code was compiled with.
const CUDA_MAJOR: i32 = match env!("ANIMD_CUDA_MAJOR").as_bytes() {
    [tens, ones] => (*tens - b'0') as i32 * 10 + (*ones - b'0') as i32,
    _ => panic!("a version of CUDA has two digits"),
};

/// The oldest branch of NVIDIA's driver that runs the embedded code.
pub const OLDEST_DRIVER: u32 = if CUDA_MAJOR < 13 { 525 } else { 580 };

/// Opens the GPU of this number, to be served by the kernels of its own compute capability or, for checks and
/// measurements, by those of an older one (major, minor).
///
/// # Errors
///
/// [`Error::NoDriver`] without NVIDIA's driver, [`Error::OldDriver`] if it is older than the embedded code,
/// [`Error::Driver`] if there is no GPU of this number or it does not start, [`Error::UnsupportedGpu`] if no embedded code
/// serves it, [`Error::OtherKernels`] if the GPU cannot run the ones that are asked for.
pub fn open(ordinal: usize, capability: Option<(u32, u32)>) -> Result<Card, Error> {
    #[cfg(feature = "emulator")]
    emulate()?;
    // SAFETY: opens libcuda and looks at nothing in it; cudarc keeps it open. Asked first because cudarc panics at the
    // first call without it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes one number; it may be asked before anything else.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version).result()? };
    if version / 1000 < CUDA_MAJOR {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(Error::OldDriver { major, minor, needs: CUDA_MAJOR, branch: OLDEST_DRIVER });
    }
    Card::new(CudaContext::new(ordinal)?, capability)
}

/// Opens the emulator, so that the search for NVIDIA's driver finds it: a library that is already open is found by its
/// name. `ANIMD_EMULATOR` can hold the path of another emulator, such as those that `emulator/mutate.py` builds.
#[cfg(feature = "emulator")]
fn emulate() -> Result<(), Error> {
    static LOADED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let own = || concat!(env!("OUT_DIR"), "/emulator/libcuda.so.1").into();
    let path = std::env::var_os("ANIMD_EMULATOR").unwrap_or_else(own);
    // SAFETY: the library was built from this crate's sources and runs nothing when it is opened. It is never closed.
    let load = || unsafe { libloading::Library::new(&path) }.map(std::mem::forget).is_ok();
    if *LOADED.get_or_init(load) { Ok(()) } else { Err(Error::NoDriver) }
}
