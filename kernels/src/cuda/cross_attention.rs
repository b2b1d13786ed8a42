//! Launchers of attention of many queries to few keys.

use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use std::f32::consts::LOG2_E;

use super::attention_sync::SyncAttention;
use super::module::{fatbin, load};
use super::rows::refuse;
use super::tensor_map::{MapElement, TensorMap};
use super::{Card, Error, HEAD_DIM, Rows};
use crate::Family;

const KERNEL: &str = "cross_attention_bf16";
/// The rows of Q of a block, and the keys of a tile.
const TILE: usize = 128;
/// Dynamic shared memory: two blocks of Q, two tiles of K and of V, outputs, twelve barriers, alignment.
const SHARED: u32 = 2 * 32_768 + 4 * 32_768 + 32_768 + 8 * 12 + 1024;

/// Keys and values, each `[keys, heads * 128]` bf16.
#[derive(Clone, Copy, Debug)]
pub struct KeyValue {
    /// Keys.
    pub k: Rows,
    /// Values.
    pub v: Rows,
    /// How many times the last key and its value count: as if so many lay there, all alike.
    pub copies: usize,
}

impl KeyValue {
    /// Returns keys and values of which each counts once.
    pub fn new(k: Rows, v: Rows) -> Self {
        Self { k, v, copies: 1 }
    }

    /// Returns what is added to the last key's product with a query, which a kernel multiplies by `scale` and raises 2 to,
    /// for that key to count so many times.
    pub(super) fn extra(&self, scale: f32) -> f32 {
        (self.copies as f32).log2() / scale
    }
}

/// The kernel's argument: `Maps` of `cross_attention_bf16.cu`.
#[repr(C)]
struct Maps {
    query: TensorMap,
    keys: [TensorMap; 2],
    values: [TensorMap; 2],
}

// SAFETY: tensor maps, which are passed by value.
unsafe impl DeviceRepr for Maps {}

/// Attention to few keys over heads of 128 channels, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct CrossAttention(Kernel);

#[derive(Debug)]
enum Kernel {
    Hopper { function: CudaFunction, multiprocessors: usize },
    Sync(SyncAttention),
}

impl CrossAttention {
    /// Loads the kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load it.
    pub fn load(card: &Card) -> Result<Self, Error> {
        Ok(Self(match card.support().family {
            Family::Wgmma => Kernel::Hopper {
                function: load(card, fatbin!("sm90", "cross_attention_bf16"), KERNEL, SHARED)?,
                multiprocessors: card.multiprocessors()?,
            },
            Family::MmaSync => Kernel::Sync(SyncAttention::load(card)?),
        }))
    }

    /// Enqueues `residual + the sum over sets of softmax(q kᵀ / √128) v`, for one or two sets, each with a softmax of its
    /// own. `q`, `residual` and `output` are `[rows, heads * 128]` bf16.
    ///
    /// All strides must be multiples of 8 and all addresses of 16. The first set's result is rounded to bf16.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// The matrices must lie in memory of the stream's GPU until the stream has passed this launch, `output` without
    /// overlapping any but `residual`, and nothing else may write to them meanwhile.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        q: Rows,
        sets: &[KeyValue],
        residual: Option<Rows>,
        output: Rows,
        heads: usize,
    ) -> Result<(), Error> {
        let (first, second) = match sets {
            [one] => (one, one),
            [one, two] => (one, two),
            _ => return refuse(KERNEL, "sets", format!("{} are not one or two", sets.len())),
        };
        if heads == 0 || heads * q.rows.div_ceil(TILE) > i32::MAX as usize {
            return refuse(KERNEL, "heads", format!("{heads} for {} rows", q.rows));
        }
        let width = heads * HEAD_DIM;
        q.check(KERNEL, "q", width)?;
        for (name, x) in [("output", Some(output)), ("residual", residual)] {
            let Some(x) = x else { continue };
            x.check(KERNEL, name, width)?;
            if x.rows != q.rows {
                return refuse(KERNEL, name, format!("{} rows instead of {}", x.rows, q.rows));
            }
        }
        for set in sets {
            set.k.check(KERNEL, "k", width)?;
            set.v.check(KERNEL, "v", width)?;
            if set.copies == 0 {
                return refuse(KERNEL, "copies", "the last key counts 0 times");
            }
            if set.k.rows != set.v.rows {
                return refuse(KERNEL, "v", format!("{} rows instead of {}", set.v.rows, set.k.rows));
            }
        }
        let (function, multiprocessors) = match &self.0 {
            Kernel::Hopper { function, multiprocessors } => (function, *multiprocessors),
            Kernel::Sync(attention) => {
                // The sets come one after the other; each adds to the result of the sets before it.
                let mut before = residual;
                for set in sets {
                    // SAFETY: the caller vouches for the memory.
                    unsafe { attention.run(stream, q, *set, before, output, heads)? };
                    before = Some(output);
                }
                return Ok(());
            }
        };
        let map = |x: Rows| {
            TensorMap::new(
                MapElement::Bf16,
                x.address,
                [64, x.rows as u64, 2 * heads as u64],
                &[2 * x.stride as u64, 128],
                [64, TILE as u32, 2],
            )
        };
        let maps = Maps {
            query: map(q)?,
            keys: [map(first.k)?, map(second.k)?],
            values: [map(first.v)?, map(second.v)?],
        };
        let (output_stride, residual_stride) =
            (output.stride as i64, residual.map_or(0, |r| r.stride as i64));
        let residual = residual.map_or(0, |r| r.address);
        let (rows, heads32, keys0) = (q.rows as i32, heads as i32, first.k.rows as i32);
        let keys1 = if sets.len() == 2 { second.k.rows as i32 } else { 0 };
        let scale = LOG2_E / (HEAD_DIM as f32).sqrt();
        let (extra0, extra1) = (first.extra(scale), second.extra(scale));
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&maps)
            .arg(&output.address)
            .arg(&output_stride)
            .arg(&residual)
            .arg(&residual_stride)
            .arg(&rows)
            .arg(&heads32)
            .arg(&keys0)
            .arg(&keys1)
            .arg(&extra0)
            .arg(&extra1)
            .arg(&scale);
        let blocks = (heads * q.rows.div_ceil(TILE)).min(multiprocessors) as u32;
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe {
            launch.launch(LaunchConfig {
                grid_dim: (blocks, 1, 1),
                block_dim: (384, 1, 1),
                shared_mem_bytes: SHARED,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_shared_memory() {
        const { assert!(SHARED <= 232_448 && size_of::<Maps>() == 5 * 128) };
    }
}
