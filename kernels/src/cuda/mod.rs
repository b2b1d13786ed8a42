//! Launchers of the kernels.
//!
//! Launchers take device addresses ([`Rows`]) rather than owned memory, so that a caller may place tensors as it likes;
//! they check shapes, strides and alignment, enqueue on the given stream and return. What they cannot check is in the
//! safety section of each.

mod attention;
mod attention_any;
mod conv;
mod copies;
mod cross_attention;
mod error;
mod gemm;
mod module;
mod norms;
mod rows;
mod tensor_map;
mod volumes;

pub use attention::{Attention, Attention8bitLayout, Attention8bitWorkspace};
pub use attention_any::{AnyAttention, AnyAttentionArguments, Batches};
pub use conv::{Conv, ConvEnding, ConvLayer, Spatial, Time, Volume, fold_for_doubling};
pub use copies::{Copies, Strided};
pub use cross_attention::{CrossAttention, KeyValue};
pub use cudarc;
pub use error::Error;
pub use gemm::{Activation, Ending, Gate, Gemm, Operands};
pub use norms::{Affine, Norms, RopeTables, Typed};
pub use rows::{Element, Rows};
pub use volumes::{Term, Volumes};

use std::sync::Arc;

use cudarc::driver::CudaContext;

/// Opens a GPU that the embedded kernels run on.
///
/// # Errors
///
/// [`Error::NoDriver`] without NVIDIA's driver, [`Error::Driver`] if there is no GPU of this number or it does not
/// start, [`Error::UnsupportedGpu`] if no embedded code serves it.
pub fn open(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    // SAFETY: opens libcuda and looks at nothing in it; cudarc keeps it open. Asked first because cudarc panics at the
    // first call without it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    let context = CudaContext::new(ordinal)?;
    module::target(&context)?;
    Ok(context)
}
