//! Attention for any width of heads, with an optional bias by distance.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::module::{fatbin, load};
use super::rows::{check_vector, refuse};
use super::{Card, Error, Rows};

const KERNEL: &str = "attention_any";
const ROWS: usize = 64;
/// For each instance of the kernel: the greatest width of a head, the keys of a tile, the parts of V.
const SHAPES: [(usize, usize, usize); 3] = [(64, 64, 1), (128, 64, 1), (384, 32, 3)];
/// The instance that takes the place of the last one where a block has only 99 KiB of shared memory.
const NARROW: (usize, usize, usize) = (384, 16, 3);

const fn shared_bytes((width, keys, _): (usize, usize, usize)) -> u32 {
    ((ROWS + 4 * keys) * (width + 8) * 2) as u32
}

/// Matrices of one shape and stride, `step` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// The first matrix.
    pub rows: Rows,
    /// Elements from one matrix to the next; a multiple of 8.
    pub step: usize,
}

impl Batches {
    /// Returns a batch of a single matrix.
    pub fn one(rows: Rows) -> Self {
        Self { rows, step: 0 }
    }
}

/// The arguments of `residual + softmax(scale * q kᵀ + bias) v` for each head and batch, all bf16.
#[derive(Clone, Copy, Debug)]
pub struct AnyAttentionArguments {
    /// `[rows, heads * width]`.
    pub q: Batches,
    /// `[keys, heads * width]`.
    pub k: Batches,
    /// `[keys, heads * width]`, like `k`.
    pub v: Batches,
    /// `[heads, rows + keys - 1]` f32: for query r and key k the element `k - r + rows - 1` of its head.
    pub bias: Option<CUdeviceptr>,
    /// A matrix like `q` that is added to the result.
    pub residual: Option<Batches>,
    /// The result, like `q`; may be the residual.
    pub output: Batches,
    /// Heads.
    pub heads: usize,
    /// Channels of a head: a multiple of 8, up to 384.
    pub width: usize,
    /// How many matrices each argument has.
    pub batches: usize,
    /// The factor of the products.
    pub scale: f32,
    /// How many times the last key and its value count: as if so many lay there, all alike.
    pub copies: usize,
}

/// The kernel's arguments: `attention_any::Arguments` of `attention_any.cuh`.
#[repr(C)]
struct Raw {
    q: CUdeviceptr,
    k: CUdeviceptr,
    v: CUdeviceptr,
    residual: CUdeviceptr,
    output: CUdeviceptr,
    bias: CUdeviceptr,
    /// The strides of q, k, v, output and residual.
    strides: [i64; 5],
    steps: [i64; 5],
    rows: i32,
    keys: i32,
    width: i32,
    scale: f32,
    extra: f32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for Raw {}

/// Attention for any width of heads, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct AnyAttention {
    functions: [CudaFunction; 3],
    shapes: [(usize, usize, usize); 3],
}

impl AnyAttention {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        let (widest, name) = if card.support().large_shared {
            (SHAPES[2], "attention_any_384")
        } else {
            (NARROW, "attention_any_384_narrow")
        };
        let shapes = [SHAPES[0], SHAPES[1], widest];
        let one = |name, shape| load(card, fatbin!("any", "attention_any"), name, shared_bytes(shape));
        let functions =
            [one("attention_any_64", shapes[0])?, one("attention_any_128", shapes[1])?, one(name, widest)?];
        Ok(Self { functions, shapes })
    }

    /// Enqueues attention.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed this launch, `output` without
    /// overlapping anything but the residual, and nothing else may write to them meanwhile.
    pub unsafe fn run(&self, stream: &CudaStream, a: &AnyAttentionArguments) -> Result<(), Error> {
        let number = check(a)?;
        let none = Batches::one(Rows { address: 0, rows: 0, stride: 0 });
        let all = [a.q, a.k, a.v, a.output, a.residual.unwrap_or(none)];
        let raw = Raw {
            q: a.q.rows.address,
            k: a.k.rows.address,
            v: a.v.rows.address,
            residual: all[4].rows.address,
            output: a.output.rows.address,
            bias: a.bias.unwrap_or(0),
            strides: all.map(|x| x.rows.stride as i64),
            steps: all.map(|x| x.step as i64),
            rows: a.q.rows.rows as i32,
            keys: a.k.rows.rows as i32,
            width: a.width as i32,
            scale: a.scale,
            extra: (a.copies as f32).log2(),
        };
        let shape = self.shapes[number];
        let mut launch = stream.launch_builder(&self.functions[number]);
        launch.arg(&raw);
        // SAFETY: the argument is that of the kernel's signature; the caller vouches for the memory.
        unsafe {
            launch.launch(LaunchConfig {
                grid_dim: (a.q.rows.rows.div_ceil(ROWS) as u32, a.heads as u32, a.batches as u32),
                block_dim: (128 * shape.2 as u32, 1, 1),
                shared_mem_bytes: shared_bytes(shape),
            })?;
        }
        Ok(())
    }
}

/// Checks the arguments, and returns the number of the instance for them.
fn check(a: &AnyAttentionArguments) -> Result<usize, Error> {
    let number = SHAPES.iter().position(|shape| a.width <= shape.0);
    let Some(number) = number.filter(|_| a.width > 0 && a.width.is_multiple_of(8)) else {
        return refuse(KERNEL, "width", format!("{} is no multiple of 8 up to 384", a.width));
    };
    if [a.heads, a.batches].iter().any(|n| !(1..=65_535).contains(n)) {
        return refuse(KERNEL, "heads", format!("{} heads, {} batches", a.heads, a.batches));
    }
    if a.copies == 0 {
        return refuse(KERNEL, "copies", "the last key counts 0 times");
    }
    let (rows, keys) = (a.q.rows.rows, a.k.rows.rows);
    let residual = a.residual.map(|r| ("residual", r, rows));
    let all = [("q", a.q, rows), ("k", a.k, keys), ("v", a.v, keys), ("output", a.output, rows)];
    for (name, x, wanted) in all.into_iter().chain(residual) {
        x.rows.check(KERNEL, name, a.heads * a.width)?;
        if x.rows.rows != wanted {
            return refuse(KERNEL, name, format!("{} rows instead of {wanted}", x.rows.rows));
        }
        if !x.step.is_multiple_of(8) {
            return refuse(KERNEL, name, format!("a step of {} is no multiple of 8", x.step));
        }
    }
    a.bias.map_or(Ok(()), |bias| check_vector(KERNEL, "bias", bias))?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_shared_memory() {
        // A block of compute capability 8.0 can have 163 KiB, one of 8.6 can have 99 KiB.
        assert!(SHAPES.iter().all(|&shape| shared_bytes(shape) <= 166_912));
        assert!([SHAPES[0], SHAPES[1], NARROW].iter().all(|&shape| shared_bytes(shape) <= 101_376));
        assert_eq!(size_of::<Raw>(), 6 * 8 + 10 * 8 + 24);
    }
}
