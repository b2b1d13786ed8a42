//! Launchers of softmax(Q Kᵀ / √128) V, without a mask.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};
use std::f32::consts::LOG2_E;

use super::attention_layout::{
    Attention8bitLayout, Attention8bitWorkspace, CHUNK, EIGHT_BIT_KEYS, HEAD_DIM, INT8_KEYS,
};
use super::attention_sync::SyncAttention;
use super::module::{fatbin, load, load_all};
use super::tensor_map::{MapElement, TensorMap};
use super::{Card, Error, KeyValue, Rows};
use crate::Family;

/// The rows of Q of a block of `attention_bf16.cu`. After it come the keys of a tile and the dynamic shared memory: Q,
/// two tiles each of K and V, nine barriers, alignment.
const BF16_ROWS: usize = 128;
const BF16_KEYS: usize = 128;
const BF16_SHARED: u32 = 32_768 + 4 * 32_768 + 8 * 9 + 1024;

/// The rows of Q of a block of `attention_8bit.cu`. After it comes the dynamic shared memory: Q,
/// four tiles of K, four of V with their ones, sums, 17 barriers, alignment.
const EIGHT_BIT_ROWS: usize = 192;
const EIGHT_BIT_SHARED: u32 = 24_576 + 4 * 12_288 + 4 * (12_288 + 768) + 192 * 136 * 4 + 8 * 17 + 1024;

/// The rows of Q of a block of `attention_int8.cuh`. After it come its threads and the dynamic shared memory: Q, and
/// two stages of a tile of K and one of V.
const INT8_ROWS: usize = 192;
const INT8_THREADS: u32 = 384;
const INT8_SHARED: u32 = 192 * 128 + 2 * 2 * 128 * 128;

/// Rows of a block of `attention_quantize_query.cu`.
const QUERY_ROWS: usize = 96;
/// Threads that share a row of Q or K while it is quantised; after it the threads of a block of the other preparing
/// kernels.
pub(super) const ROW_THREADS: usize = 4;
pub(super) const THREADS: u32 = 256;

/// The dynamic shared memory of a block that quantises raw rows: a thread's cosines and sines of 16 pairs.
pub(super) const RAW_SHARED: u32 = (ROW_THREADS * EIGHT_BIT_KEYS * 2 * 16 * 4) as u32;

/// Attention over heads of 128 channels, loaded for one GPU.
///
/// Q is `[rows, heads * 128]` bf16, K and V are `[keys, heads * 128]` bf16, the output is like Q; `rows` and `keys` are
/// any numbers from 1. Softmax is computed in f32. The same input gives the same bits.
///
/// Hopper cards have kernels of their own. On the others 8-bit attention has all operands in int8.
#[derive(Debug)]
pub struct Attention {
    pub(super) kernels: Kernels,
    eight_bit: CudaFunction,
    statistics: CudaFunction,
    statistics_final: CudaFunction,
    quantize_query: CudaFunction,
    quantize_key: CudaFunction,
    quantize_value: CudaFunction,
}

/// The kernels that differ between the families of cards.
#[derive(Debug)]
pub(super) enum Kernels {
    Hopper { bf16: CudaFunction, value_mean: CudaFunction, raw: RawKernels },
    MmaSync { bf16: SyncAttention },
}

/// The arguments of the int8 kernel: `int8_attention::Arguments` of `attention_int8.cuh`.
#[repr(C)]
struct Int8Arguments {
    query: CUdeviceptr,
    key: CUdeviceptr,
    value: CUdeviceptr,
    query_scale: CUdeviceptr,
    key_scale: CUdeviceptr,
    value_scale: CUdeviceptr,
    value_mean: CUdeviceptr,
    output: CUdeviceptr,
    stride: i64,
    rows: i32,
    keys: i32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for Int8Arguments {}

/// The kernels that read rows as their product leaves them; `attention_raw.rs` launches them.
#[derive(Debug)]
pub(super) struct RawKernels {
    pub statistics: CudaFunction,
    pub query: CudaFunction,
    pub key: CudaFunction,
}

impl RawKernels {
    pub fn load(card: &Card) -> Result<Self, Error> {
        let statistics = fatbin!("sm90", "attention_statistics_raw");
        let quantize = fatbin!("sm90", "attention_quantize_raw");
        let names = ["attention_quantize_raw_query", "attention_quantize_raw_key"];
        let [query, key] = load_all(card, quantize, names, RAW_SHARED)?;
        Ok(Self { statistics: load(card, statistics, "attention_statistics_raw", 0)?, query, key })
    }
}

impl Attention {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        macro_rules! kernel {
            ($folder:literal, $name:literal, $shared:expr) => {
                load(card, fatbin!($folder, $name), $name, $shared)?
            };
        }
        let [key_of_96, key_of_128] = load_all(
            card,
            fatbin!("any", "attention_quantize_key"),
            ["attention_quantize_key_96", "attention_quantize_key_128"],
            0,
        )?;
        let (kernels, eight_bit, quantize_key, quantize_value) = match card.support().family {
            Family::Wgmma => (
                Kernels::Hopper {
                    bf16: kernel!("sm90", "attention_bf16", BF16_SHARED),
                    value_mean: kernel!("sm90", "attention_value_mean", 0),
                    raw: RawKernels::load(card)?,
                },
                kernel!("sm90", "attention_8bit", EIGHT_BIT_SHARED),
                key_of_96,
                kernel!("sm90", "attention_quantize_value", 0),
            ),
            Family::MmaSync => (
                Kernels::MmaSync { bf16: SyncAttention::load(card)? },
                kernel!("sm80", "attention_int8", INT8_SHARED),
                key_of_128,
                kernel!("sm80", "attention_quantize_value", 0),
            ),
        };
        Ok(Self {
            kernels,
            eight_bit,
            statistics: kernel!("any", "attention_statistics", 0),
            statistics_final: kernel!("any", "attention_statistics_final", 0),
            quantize_query: kernel!("any", "attention_quantize_query", 0),
            quantize_key,
            quantize_value,
        })
    }

    /// Returns whether [`Self::eight_bit`] has all its operands in int8, which is more exact than e4m3.
    pub fn is_int8(&self) -> bool {
        matches!(self.kernels, Kernels::MmaSync { .. })
    }

    /// Enqueues attention with bf16 operands: the exponentials are rounded to bf16 before they meet V, nothing else is.
    ///
    /// All strides must be multiples of 8 and all addresses of 16.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// The four matrices must lie in memory of the stream's GPU until the stream has passed this launch, `output` without
    /// overlapping the others, and nothing else may write to them meanwhile.
    pub unsafe fn bf16(
        &self,
        stream: &CudaStream,
        q: Rows,
        k: Rows,
        v: Rows,
        output: Rows,
        heads: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "attention_bf16";
        check(KERNEL, q, k, v, output, heads)?;
        let bf16 = match &self.kernels {
            Kernels::Hopper { bf16, .. } => bf16,
            Kernels::MmaSync { bf16 } => {
                // SAFETY: the caller vouches for the memory.
                return unsafe { bf16.run(stream, q, KeyValue::new(k, v), None, output, heads) };
            }
        };
        // [heads * 2][rows][64 channels]: a box of both halves of a head becomes two panels of 128-byte rows.
        let map = |x: Rows, rows: usize| {
            TensorMap::new(
                MapElement::Bf16,
                x.address,
                [64, x.rows as u64, 2 * heads as u64],
                &[2 * x.stride as u64, 128],
                [64, rows as u32, 2],
            )
        };
        let (q_map, k_map, v_map) = (map(q, BF16_ROWS)?, map(k, BF16_KEYS)?, map(v, BF16_KEYS)?);
        let (stride, rows, keys) = (output.stride as i64, q.rows as i32, k.rows as i32);
        let scale = LOG2_E / (HEAD_DIM as f32).sqrt();
        let mut launch = stream.launch_builder(bf16);
        launch
            .arg(&q_map)
            .arg(&k_map)
            .arg(&v_map)
            .arg(&output.address)
            .arg(&stride)
            .arg(&rows)
            .arg(&keys)
            .arg(&scale);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(q.rows.div_ceil(BF16_ROWS), heads, 384, BF16_SHARED))? };
        Ok(())
    }

    /// Enqueues attention with 8-bit operands: [`Self::quantize_8bit`], then [`Self::multiply_8bit`].
    ///
    /// # Errors
    ///
    /// Those of the two functions.
    ///
    /// # Safety
    ///
    /// What the two functions ask for.
    pub unsafe fn eight_bit(
        &self,
        stream: &CudaStream,
        q: Rows,
        k: Rows,
        v: Rows,
        output: Rows,
        workspace: &Attention8bitWorkspace,
    ) -> Result<(), Error> {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            self.quantize_8bit(stream, q, k, v, workspace)?;
            self.multiply_8bit(stream, output, workspace)
        }
    }

    /// Enqueues the preparation of 8-bit attention: Q, rotated, to int8 with a scale a row; K, without its
    /// mean and rotated, to int8 with a scale for a tile of keys, 96 on Hopper cards and 128 on others; V, without its mean, to
    /// e4m3 or int8 with a scale a channel, in int8 every other tile of 128 keys negated. Reads K and V twice, Q once.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes other than the workspace's, strides and addresses, [`Error::Driver`] if a launch
    /// fails.
    ///
    /// # Safety
    ///
    /// The matrices and the workspace, of [`Attention8bitLayout::bytes`], must lie in memory of the stream's GPU until the
    /// stream has passed these launches, without overlapping, and nothing else may write to them meanwhile.
    pub unsafe fn quantize_8bit(
        &self,
        stream: &CudaStream,
        q: Rows,
        k: Rows,
        v: Rows,
        workspace: &Attention8bitWorkspace,
    ) -> Result<(), Error> {
        const KERNEL: &str = "attention_8bit";
        let Attention8bitWorkspace { layout, address } = *workspace;
        let Attention8bitLayout { rows, keys, heads, .. } = layout;
        check(KERNEL, q, k, v, q, heads)?;
        same(KERNEL, "q", "rows", q.rows, rows)?;
        same(KERNEL, "k", "rows", k.rows, keys)?;
        let at = |offset: usize| address + offset as u64;
        let (q_stride, k_stride, v_stride) = (q.stride as i64, k.stride as i64, v.stride as i64);
        let (rows32, keys32, chunk) = (rows as i32, keys as i32, CHUNK as i32);
        let (partial, key_mean) = (at(layout.partial), at(layout.key_mean));
        let (query, query_scale) = (at(layout.query), at(layout.query_scale));
        let (key, key_scale) = (at(layout.key), at(layout.key_scale));
        let tile = self.tile();

        let mut statistics = stream.launch_builder(&self.statistics);
        statistics
            .arg(&k.address)
            .arg(&k_stride)
            .arg(&v.address)
            .arg(&v_stride)
            .arg(&partial)
            .arg(&keys32)
            .arg(&chunk);
        let mut queries = stream.launch_builder(&self.quantize_query);
        queries.arg(&q.address).arg(&q_stride).arg(&query).arg(&query_scale).arg(&rows32);
        let mut key_tiles = stream.launch_builder(&self.quantize_key);
        key_tiles.arg(&k.address).arg(&k_stride).arg(&key_mean).arg(&key).arg(&key_scale).arg(&keys32);
        // SAFETY: the arguments are those of the kernels' signatures; the caller vouches for the memory.
        unsafe {
            statistics.launch(grid(heads, keys.div_ceil(CHUNK), THREADS, 0))?;
            self.finish_statistics(stream, workspace, keys)?;
            queries.launch(grid(rows.div_ceil(QUERY_ROWS), heads, (ROW_THREADS * QUERY_ROWS) as u32, 0))?;
            key_tiles.launch(grid(keys.div_ceil(tile), heads, (ROW_THREADS * tile) as u32, 0))?;
            self.quantize_values(stream, v, workspace)
        }
    }

    /// Returns the number of keys of a tile.
    fn tile(&self) -> usize {
        match self.kernels {
            Kernels::Hopper { .. } => EIGHT_BIT_KEYS,
            Kernels::MmaSync { .. } => INT8_KEYS,
        }
    }

    /// Enqueues the second half of the statistics, of which those of K are over `summed` keys.
    ///
    /// # Safety
    ///
    /// What [`Self::quantize_8bit`] asks for.
    pub(super) unsafe fn finish_statistics(
        &self,
        stream: &CudaStream,
        workspace: &Attention8bitWorkspace,
        summed: usize,
    ) -> Result<(), Error> {
        let Attention8bitWorkspace { layout, address } = *workspace;
        let at = |offset: usize| address + offset as u64;
        let most = match self.kernels {
            Kernels::Hopper { .. } => 448.0f32,
            Kernels::MmaSync { .. } => 127.0,
        };
        let (partial, key_mean) = (at(layout.partial), at(layout.key_mean));
        let (value_mean, value_scale) = (at(layout.value_mean), at(layout.value_scale));
        let (keys, summed, chunks) = (layout.keys as i32, summed as i32, layout.keys.div_ceil(CHUNK) as i32);
        let mut last = stream.launch_builder(&self.statistics_final);
        last.arg(&partial)
            .arg(&key_mean)
            .arg(&value_mean)
            .arg(&value_scale)
            .arg(&keys)
            .arg(&summed)
            .arg(&chunks)
            .arg(&most);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { last.launch(grid(2 * layout.heads, 1, THREADS, 0))? };
        Ok(())
    }

    /// Enqueues the quantisation of V, after the statistics.
    ///
    /// # Safety
    ///
    /// What [`Self::quantize_8bit`] asks for.
    pub(super) unsafe fn quantize_values(
        &self,
        stream: &CudaStream,
        v: Rows,
        workspace: &Attention8bitWorkspace,
    ) -> Result<(), Error> {
        let Attention8bitWorkspace { layout, address } = *workspace;
        let Attention8bitLayout { keys, heads, .. } = layout;
        let at = |offset: usize| address + offset as u64;
        let (value_mean, value_scale) = (at(layout.value_mean), at(layout.value_scale));
        let (value, residual) = (at(layout.value), at(layout.residual));
        let tiles = keys.div_ceil(self.tile());
        let (v_stride, keys32, tiles32) = (v.stride as i64, keys as i32, tiles as i32);
        let mut values = stream.launch_builder(&self.quantize_value);
        values.arg(&v.address).arg(&v_stride).arg(&value_mean).arg(&value_scale).arg(&value);
        if matches!(self.kernels, Kernels::Hopper { .. }) {
            values.arg(&residual);
        }
        values.arg(&keys32);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { values.launch(grid(tiles, heads, THREADS, 0))? };
        if let Kernels::Hopper { value_mean: function, .. } = &self.kernels {
            let mut means = stream.launch_builder(function);
            means.arg(&residual).arg(&value_scale).arg(&value_mean).arg(&keys32).arg(&tiles32);
            // SAFETY: as above.
            unsafe { means.launch(grid(4 * heads, 1, THREADS, 0))? };
        }
        Ok(())
    }

    /// Enqueues attention over what [`Self::quantize_8bit`] left in the workspace.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for the output's shape, stride and address, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// What [`Self::quantize_8bit`] asks for; and that function must have been called for this workspace before, on
    /// this stream or on one that this stream waits for.
    pub unsafe fn multiply_8bit(
        &self,
        stream: &CudaStream,
        output: Rows,
        workspace: &Attention8bitWorkspace,
    ) -> Result<(), Error> {
        const KERNEL: &str = "attention_8bit";
        let Attention8bitWorkspace { layout, address } = *workspace;
        let Attention8bitLayout { rows, keys, heads, .. } = layout;
        output.check(KERNEL, "output", heads * HEAD_DIM)?;
        same(KERNEL, "output", "rows", output.rows, rows)?;
        let at = |offset: usize| address + offset as u64;
        if matches!(self.kernels, Kernels::MmaSync { .. }) {
            let arguments = Int8Arguments {
                query: at(layout.query),
                key: at(layout.key),
                value: at(layout.value),
                query_scale: at(layout.query_scale),
                key_scale: at(layout.key_scale),
                value_scale: at(layout.value_scale),
                value_mean: at(layout.value_mean),
                output: output.address,
                stride: output.stride as i64,
                rows: rows as i32,
                keys: keys as i32,
            };
            let mut launch = stream.launch_builder(&self.eight_bit);
            launch.arg(&arguments);
            // SAFETY: the argument is that of the kernel's signature; the caller vouches for the memory.
            unsafe { launch.launch(grid(rows.div_ceil(INT8_ROWS), heads, INT8_THREADS, INT8_SHARED))? };
            return Ok(());
        }
        let width = (heads * HEAD_DIM) as u64;
        let map = |offset: usize, all: usize, rows: usize| {
            TensorMap::new(
                MapElement::U8,
                at(offset),
                [width, all as u64],
                &[width],
                [HEAD_DIM as u32, rows as u32],
            )
        };
        let query = map(layout.query, rows, EIGHT_BIT_ROWS)?;
        let key = map(layout.key, keys, EIGHT_BIT_KEYS)?;
        let value = at(layout.value);
        let (query_scale, key_scale) = (at(layout.query_scale), at(layout.key_scale));
        let (value_scale, value_mean) = (at(layout.value_scale), at(layout.value_mean));
        let (stride, rows32, keys32) = (output.stride as i64, rows as i32, keys as i32);
        let mut launch = stream.launch_builder(&self.eight_bit);
        launch
            .arg(&query)
            .arg(&key)
            .arg(&value)
            .arg(&query_scale)
            .arg(&key_scale)
            .arg(&value_scale)
            .arg(&value_mean);
        launch.arg(&output.address).arg(&stride).arg(&rows32).arg(&keys32);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(rows.div_ceil(EIGHT_BIT_ROWS), heads, 512, EIGHT_BIT_SHARED))? };
        Ok(())
    }
}

pub(super) fn check(
    kernel: &'static str,
    q: Rows,
    k: Rows,
    v: Rows,
    output: Rows,
    heads: usize,
) -> Result<(), Error> {
    if heads == 0 || heads > 65_535 {
        let problem = format!("{heads} heads are not between 1 and 65535");
        return Err(Error::Argument { kernel, argument: "heads", problem });
    }
    for (name, x) in [("q", q), ("k", k), ("v", v), ("output", output)] {
        x.check(kernel, name, heads * HEAD_DIM)?;
    }
    same(kernel, "v", "rows", v.rows, k.rows)?;
    same(kernel, "output", "rows", output.rows, q.rows)
}

pub(super) fn same(
    kernel: &'static str,
    argument: &'static str,
    what: &str,
    given: usize,
    wanted: usize,
) -> Result<(), Error> {
    if given == wanted {
        return Ok(());
    }
    Err(Error::Argument { kernel, argument, problem: format!("{given} {what} instead of {wanted}") })
}

pub(super) fn grid(x: usize, y: usize, threads: u32, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (threads, 1, 1), shared_mem_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_shared_memory() {
        // A block of compute capability 9.0 can have 227 KiB.
        const { assert!(BF16_SHARED <= 232_448 && EIGHT_BIT_SHARED <= 232_448) };
        // A block of compute capability 8.6, 8.9 or 12.0 can have 99 KiB.
        const { assert!(INT8_SHARED <= 101_376) };
        assert_eq!(size_of::<Int8Arguments>(), 9 * 8 + 8);
    }

    #[test]
    fn shapes_must_agree() {
        let x = Rows::dense(4096, 10, 256);
        assert!(check("k", x, x, x, x, 2).is_ok());
        let longer = Rows { rows: 11, ..x };
        assert!(check("k", x, longer, x, x, 2).is_err());
        assert!(check("k", x, x, x, longer, 2).is_err());
        assert!(check("k", x, x, x, x, 0).is_err());
        assert!(check("k", x, x, x, x, 3).is_err());
    }
}
