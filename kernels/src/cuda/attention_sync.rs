//! The launcher of attention in bf16 for heads of 128 channels by `mma.sync`, to few keys and to many.

use std::f32::consts::LOG2_E;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::module::{fatbin, load};
use super::{Card, Error, HEAD_DIM, KeyValue, Rows};

/// The rows of Q of a block of `sm80/attention_bf16.cuh`. After it come the keys of a tile, the threads of a block, and the
/// dynamic shared memory: Q, and two tiles each of K and V.
const ROWS: usize = 128;
const KEYS: usize = 64;
const THREADS: u32 = 256;
const SHARED: u32 = (2 * HEAD_DIM * (ROWS + 4 * KEYS)) as u32;

/// The kernel's argument: `attention_bf16::Arguments` of `sm80/attention_bf16.cuh`.
#[repr(C)]
struct Arguments {
    q: CUdeviceptr,
    k: CUdeviceptr,
    v: CUdeviceptr,
    residual: CUdeviceptr,
    output: CUdeviceptr,
    /// The strides of q, k, v, residual and output.
    strides: [i64; 5],
    rows: i32,
    keys: i32,
    scale: f32,
    extra: f32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for Arguments {}

/// Attention over heads of 128 channels on cards without `wgmma`, loaded for one GPU.
#[derive(Debug)]
pub(super) struct SyncAttention(CudaFunction);

impl SyncAttention {
    /// Loads the kernel.
    pub fn load(card: &Card) -> Result<Self, Error> {
        load(card, fatbin!("sm80", "attention_bf16"), "attention_bf16_sync", SHARED).map(Self)
    }

    /// Enqueues `residual + softmax(q kᵀ / √128) v`. The callers have checked shapes, strides and addresses.
    ///
    /// # Safety
    ///
    /// The matrices must lie in memory of the stream's GPU until the stream has passed this launch, `output` without
    /// overlapping any but `residual`, and nothing else may write to them meanwhile.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        q: Rows,
        set: KeyValue,
        residual: Option<Rows>,
        output: Rows,
        heads: usize,
    ) -> Result<(), Error> {
        let KeyValue { k, v, .. } = set;
        let scale = LOG2_E / (HEAD_DIM as f32).sqrt();
        let none = Rows { address: 0, rows: 0, stride: 0 };
        let more = residual.unwrap_or(none);
        let arguments = Arguments {
            q: q.address,
            k: k.address,
            v: v.address,
            residual: more.address,
            output: output.address,
            strides: [q, k, v, more, output].map(|x| x.stride as i64),
            rows: q.rows as i32,
            keys: k.rows as i32,
            scale,
            extra: set.extra(scale),
        };
        let grid = LaunchConfig {
            grid_dim: (q.rows.div_ceil(ROWS) as u32, heads as u32, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: SHARED,
        };
        let mut launch = stream.launch_builder(&self.0);
        launch.arg(&arguments);
        // SAFETY: the argument is that of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid)? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_shared_memory() {
        // A block of compute capability 8.6 can have 99 KiB.
        const { assert!(SHARED <= 101_376) };
        assert_eq!(size_of::<Arguments>(), 10 * 8 + 16);
    }
}
