//! The preparation of 8-bit attention on Hopper cards from what the product of queries, keys and values leaves: norms and
//! the rotary embedding are applied where rows are quantised.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DeviceRepr, PushKernelArg};

use super::attention::{Attention, Kernels, RAW_SHARED, ROW_THREADS, THREADS, check, grid, same};
use super::attention_layout::{Attention8bitLayout, Attention8bitWorkspace, CHUNK, EIGHT_BIT_KEYS, HEAD_DIM};
use super::rows::{check_vector, refuse};
use super::{Error, Gemm, RopeTables, Rows};

const KERNEL: &str = "attention_quantize_raw";

/// Heads that a block takes one after the other, so that it reads its rows' cosines and sines once.
const HEADS: usize = 8;

/// The least number of keys that give the mean that is taken from all: it then differs from the mean of all keys by 2 % of
/// their deviation, which adds 0.05 % to the squares of what is quantised.
const SAMPLED: usize = 2048;

/// Queries, keys and values of one product, before the RMS norms and the rotary embedding of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct RawHeads {
    /// `[rows, heads * 128]` bf16.
    pub q: Rows,
    /// As `q`.
    pub k: Rows,
    /// As `q`; it gets neither.
    pub v: Rows,
    /// What the product left by [`super::Epilogue::squares`] of the columns of `q` and then of `k`:
    /// `[rows, 2 * heads * 128 / Gemm::SQUARED]` f32.
    pub squares: CUdeviceptr,
    /// The factors of the norms of `q` and `k`, `[heads * 128]` f32 each.
    pub weights: [CUdeviceptr; 2],
    /// Added to the mean squares, under the root.
    pub eps: f32,
    /// The rotary embedding, with a row for each row of `q`, of heads of 128.
    pub rope: RopeTables,
}

/// The kernels' argument: `RawNorm` of `attention_raw.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawNorm {
    squares: CUdeviceptr,
    weight: CUdeviceptr,
    cosines: CUdeviceptr,
    sines: CUdeviceptr,
    parts: i32,
    stride: i32,
    eps: f32,
}

// SAFETY: plain numbers in the layout of the kernels' structure.
unsafe impl DeviceRepr for RawNorm {}

impl Attention {
    /// Returns whether [`Self::quantize_8bit_raw`] serves this GPU and so many heads.
    pub fn takes_raw(&self, heads: usize) -> bool {
        matches!(self.kernels, Kernels::Hopper { .. })
            && heads > 0
            && (heads * HEAD_DIM).is_multiple_of(Gemm::SQUARED)
    }

    /// Enqueues what [`Self::quantize_8bit`] does, with the norms and the rotary embedding before it, whose results are not
    /// rounded to bf16. Every key has the same vector taken from it, which softmax does not see: the mean of some
    /// keys. Reads Q, K and V once, V's statistics apart.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes other than the workspace's, heads that [`Self::takes_raw`] does not allow, strides
    /// and addresses; [`Error::Driver`] if a launch fails.
    ///
    /// # Safety
    ///
    /// The matrices, vectors and tables and the workspace, of [`Attention8bitLayout::bytes`], must lie in memory of the
    /// stream's GPU until the stream has passed these launches, without overlapping, and nothing else may write to them
    /// meanwhile.
    pub unsafe fn quantize_8bit_raw(
        &self,
        stream: &CudaStream,
        raw: &RawHeads,
        workspace: &Attention8bitWorkspace,
    ) -> Result<(), Error> {
        let Attention8bitWorkspace { layout, address } = *workspace;
        let Attention8bitLayout { rows, keys, heads, .. } = layout;
        let Kernels::Hopper { raw: kernels, .. } = &self.kernels else {
            return refuse(KERNEL, "card", "it takes a card of compute capability 9.0");
        };
        check_raw(raw, &layout)?;
        let RawHeads { q, k, v, squares, weights, eps, rope } = *raw;
        let at = |offset: usize| address + offset as u64;
        let parts = heads * HEAD_DIM / Gemm::SQUARED;
        let norm = |part: usize| RawNorm {
            squares: squares + (4 * part * parts) as u64,
            weight: weights[part],
            cosines: rope.cosines,
            sines: rope.sines,
            parts: parts as i32,
            stride: 2 * parts as i32,
            eps,
        };
        let (query_norm, key_norm) = (norm(0), norm(1));
        let (q_stride, k_stride, v_stride) = (q.stride as i64, k.stride as i64, v.stride as i64);
        let every = sampled(keys);
        let (rows32, keys32, heads32, group) = (rows as i32, keys as i32, heads as i32, HEADS as i32);
        let (every32, chunk) = (every as i32, CHUNK as i32);
        let (partial, key_mean) = (at(layout.partial), at(layout.key_mean));
        let (query, query_scale) = (at(layout.query), at(layout.query_scale));
        let (key, key_scale) = (at(layout.key), at(layout.key_scale));

        let mut statistics = stream.launch_builder(&kernels.statistics);
        statistics.arg(&k.address).arg(&k_stride).arg(&key_norm).arg(&every32);
        statistics.arg(&v.address).arg(&v_stride).arg(&partial).arg(&keys32).arg(&chunk);
        let mut queries = stream.launch_builder(&kernels.query);
        queries.arg(&q.address).arg(&q_stride).arg(&query_norm).arg(&query).arg(&query_scale);
        queries.arg(&rows32).arg(&heads32).arg(&group);
        let mut tiles = stream.launch_builder(&kernels.key);
        tiles.arg(&k.address).arg(&k_stride).arg(&key_norm).arg(&key_mean).arg(&key).arg(&key_scale);
        tiles.arg(&keys32).arg(&heads32).arg(&group);
        let (groups, threads) = (heads.div_ceil(HEADS), (ROW_THREADS * EIGHT_BIT_KEYS) as u32);
        // SAFETY: the arguments are those of the kernels' signatures; the caller vouches for the memory.
        unsafe {
            statistics.launch(grid(heads, keys.div_ceil(CHUNK), THREADS, 0))?;
            self.finish_statistics(stream, workspace, keys.div_ceil(every))?;
            queries.launch(grid(rows.div_ceil(EIGHT_BIT_KEYS), groups, threads, RAW_SHARED))?;
            tiles.launch(grid(keys.div_ceil(EIGHT_BIT_KEYS), groups, threads, RAW_SHARED))?;
            self.quantize_values(stream, v, workspace)
        }
    }
}

/// Returns which multiples of a number the keys are that give the mean. It is odd, so that a grid of tokens whose width is a
/// power of 2 is not met in one of its columns.
fn sampled(keys: usize) -> usize {
    match keys / SAMPLED {
        0 => 1,
        every => (every - 1) | 1,
    }
}

fn check_raw(raw: &RawHeads, layout: &Attention8bitLayout) -> Result<(), Error> {
    let &RawHeads { q, k, v, squares, weights, rope, .. } = raw;
    let heads = layout.heads;
    check(KERNEL, q, k, v, q, heads)?;
    same(KERNEL, "q", "rows", q.rows, layout.rows)?;
    same(KERNEL, "k", "rows", k.rows, layout.keys)?;
    same(KERNEL, "k", "rows", k.rows, q.rows)?;
    if !(heads * HEAD_DIM).is_multiple_of(Gemm::SQUARED) {
        return refuse(KERNEL, "heads", format!("{heads} heads are not whole tiles of {}", Gemm::SQUARED));
    }
    if 2 * rope.pairs != HEAD_DIM {
        return refuse(KERNEL, "rope", format!("{} pairs are not those of heads of {HEAD_DIM}", rope.pairs));
    }
    check_vector(KERNEL, "squares", squares)?;
    check_vector(KERNEL, "weight", weights[0])?;
    check_vector(KERNEL, "weight", weights[1])?;
    check_vector(KERNEL, "cosines", rope.cosines)?;
    check_vector(KERNEL, "sines", rope.sines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_keys_give_the_mean() {
        for keys in [1, 2, 95, 2047, 2048, 4095, 4096, 6144, 32_760, 75_600, 1 << 20] {
            let every = sampled(keys);
            assert!(every % 2 == 1 && keys.div_ceil(every) >= keys.min(SAMPLED), "{keys}: {every}");
        }
        assert_eq!(sampled(32_760), 15);
        assert_eq!(sampled(75_600), 35);
    }

    #[test]
    fn refuses_what_the_kernels_cannot_take() {
        let x = Rows { address: 4096, rows: 10, stride: 768 };
        let rope = RopeTables { cosines: 4096, sines: 4096, pairs: 64 };
        let raw = RawHeads { q: x, k: x, v: x, squares: 4096, weights: [4096; 2], eps: 1e-6, rope };
        let layout = Attention8bitLayout::new(10, 10, 2);
        assert!(check_raw(&raw, &layout).is_ok());
        assert!(check_raw(&raw, &Attention8bitLayout::new(11, 10, 2)).is_err());
        assert!(check_raw(&raw, &Attention8bitLayout::new(10, 10, 3)).is_err());
        assert!(check_raw(&RawHeads { squares: 0, ..raw }, &layout).is_err());
        assert!(check_raw(&RawHeads { weights: [4096, 4], ..raw }, &layout).is_err());
        let narrow = RopeTables { pairs: 32, ..rope };
        assert!(check_raw(&RawHeads { rope: narrow, ..raw }, &layout).is_err());
        assert_eq!(size_of::<RawNorm>(), 48);
    }
}
