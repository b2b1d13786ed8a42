//! Launchers of matrix products: output = epilogue(A Bᵀ).

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, PushKernelArg};

use super::epilogue::{Epilogue, Gate, RawEpilogue, Squares};
use super::module::{fatbin, load, load_all};
use super::rows::{check_vector, refuse};
use super::tensor_map::{MapElement, TensorMap};
use super::tiles::{Int8Shape, ROW_BYTES, Shape, persistent, sync_grid};
use super::{Card, Element, Error, Rows};
use crate::{Activation, Family};

const KERNEL: &str = "gemm";

const INT8: Int8Shape = Int8Shape { rows: 128, columns: 256, stages: 4 };

const WIDE: Shape = Shape { parts: 1, columns: 256, cluster: 2 };
const NARROW: Shape = Shape { parts: 1, columns: 128, cluster: 2 };
const SYNC: Shape = Shape { parts: 1, columns: 128, cluster: 1 };

/// A and B of a product A Bᵀ: `[rows, inner]` and `[columns, inner]`, rows of both 16-byte aligned.
#[derive(Clone, Copy, Debug)]
pub enum Operands {
    /// Both in bf16; `inner` is a multiple of 8.
    Bf16 {
        /// `[rows, inner]`.
        a: Rows,
        /// `[columns, inner]`.
        b: Rows,
    },
    /// Both in e4m3 with a scale (f32) for each row of A and of B; `inner` is a multiple of 16.
    E4m3 {
        /// `[rows, inner]`.
        a: Rows,
        /// `[rows]` f32.
        a_scale: CUdeviceptr,
        /// `[columns, inner]`.
        b: Rows,
        /// `[columns]` f32.
        b_scale: CUdeviceptr,
        /// Whether sums stay in the tensor cores, which keep some 14 bits, instead of being added up in f32 every 128
        /// products.
        fast: bool,
    },
    /// Both in int8 with a scale (f32) for each row of A and of B, as [`super::Norms::quantize_int8`] writes them;
    /// `inner` is a multiple of 16 up to [`MOST_INT8`]. Both must be rotated alike. Sums are exact.
    Int8 {
        /// `[rows, inner]`.
        a: Rows,
        /// `[rows]` f32.
        a_scale: CUdeviceptr,
        /// `[columns, inner]`.
        b: Rows,
        /// `[columns]` f32.
        b_scale: CUdeviceptr,
    },
}

impl Operands {
    /// Returns the addresses of the scales of A's and of B's rows; zero for bf16, which has none.
    fn scales(&self) -> Result<(CUdeviceptr, CUdeviceptr), Error> {
        match *self {
            Self::Bf16 { .. } => Ok((0, 0)),
            Self::E4m3 { a_scale, b_scale, .. } | Self::Int8 { a_scale, b_scale, .. } => {
                check_vector(KERNEL, "a_scale", a_scale)?;
                check_vector(KERNEL, "b_scale", b_scale)?;
                Ok((a_scale, b_scale))
            }
        }
    }
}

/// The greatest `inner` of [`Operands::Int8`]: a sum of so many products of 127 and 127 stays within 32 bits.
pub const MOST_INT8: usize = 131_072;

/// The operands on cards other than Hopper: `sm80::Operands` of `sm80/gemm.cuh`, and `int8::Operands` of
/// `sm80/gemm_int8.cuh`.
#[repr(C)]
struct SyncOperands {
    a: CUdeviceptr,
    b: CUdeviceptr,
    a_stride: i64,
    b_stride: i64,
    rows: i32,
    columns: i32,
    row_bytes: i32,
}

// SAFETY: plain numbers in the layout of the kernels' structure.
unsafe impl DeviceRepr for SyncOperands {}

/// Loads the four kernels of a product.
macro_rules! kernels {
    ($card:expr, $folder:literal, $name:literal, $shared:expr) => {
        load_all(
            $card,
            fatbin!($folder, $name),
            [$name, concat!($name, "_f32"), concat!($name, "_activated"), concat!($name, "_activated_f32")],
            $shared,
        )
    };
}

/// Matrix products, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct Gemm {
    /// The kernels with bf16 and f32 output, then those with bf16 and f32 output after an activation.
    bf16: [CudaFunction; 4],
    /// The four kernels that add up in f32, then the four fast ones.
    e4m3: Option<[[CudaFunction; 4]; 2]>,
    int8: [CudaFunction; 4],
    /// The kernels that leave sums of squares: of bf16, the fast one of e4m3, and of int8.
    squared: Option<[CudaFunction; 3]>,
    family: Family,
    multiprocessors: usize,
}

impl Gemm {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        let (support, multiprocessors) = (card.support(), card.multiprocessors()?);
        let (bf16, e4m3, int8, squared) = match support.family {
            Family::Wgmma => (
                kernels!(card, "sm90", "gemm_bf16", WIDE.shared_bytes())?,
                Some([
                    kernels!(card, "sm90", "gemm_e4m3", NARROW.shared_bytes())?,
                    kernels!(card, "sm90", "gemm_e4m3_fast", WIDE.shared_bytes())?,
                ]),
                kernels!(card, "sm90", "gemm_int8", WIDE.shared_bytes())?,
                Some([
                    load(card, fatbin!("sm90", "gemm_bf16"), "gemm_bf16_squared", WIDE.shared_bytes())?,
                    load(
                        card,
                        fatbin!("sm90", "gemm_e4m3_fast"),
                        "gemm_e4m3_fast_squared",
                        WIDE.shared_bytes(),
                    )?,
                    load(card, fatbin!("sm90", "gemm_int8"), "gemm_int8_squared", WIDE.shared_bytes())?,
                ]),
            ),
            Family::MmaSync => {
                let shared = SYNC.sync_shared_bytes();
                let e4m3 = if support.e4m3 {
                    Some([
                        kernels!(card, "sm89", "gemm_e4m3", shared)?,
                        kernels!(card, "sm89", "gemm_e4m3_fast", shared)?,
                    ])
                } else {
                    None
                };
                let int8 = kernels!(card, "sm80", "gemm_int8", INT8.shared_bytes())?;
                (kernels!(card, "sm80", "gemm_bf16", shared)?, e4m3, int8, None)
            }
        };
        Ok(Self { bf16, e4m3, int8, squared, family: support.family, multiprocessors })
    }

    /// Returns the rows and columns that a block, or a cluster of blocks, computes of a product of int8, and how many of them
    /// run at a time.
    pub fn int8_tiles(&self) -> ([usize; 2], usize) {
        match self.family {
            Family::Wgmma => {
                ([WIDE.rows() * WIDE.cluster, WIDE.columns], (self.multiprocessors / WIDE.cluster).max(1))
            }
            Family::MmaSync => ([INT8.rows, INT8.columns], self.multiprocessors.max(1)),
        }
    }

    /// Returns whether this GPU has kernels for [`Operands::E4m3`].
    pub fn has_e4m3(&self) -> bool {
        self.e4m3.is_some()
    }

    /// The columns of a tile, over which [`Epilogue::squares`] sums up.
    pub const SQUARED: usize = WIDE.columns;

    /// Returns whether a product of these operands can have [`Epilogue::squares`].
    pub fn has_squares(&self, operands: &Operands) -> bool {
        self.squared(operands).is_some()
    }

    fn squared(&self, operands: &Operands) -> Option<&CudaFunction> {
        let [bf16, fast, int8] = self.squared.as_ref()?;
        match operands {
            Operands::Bf16 { .. } => Some(bf16),
            Operands::E4m3 { fast: true, .. } => Some(fast),
            Operands::Int8 { .. } => Some(int8),
            Operands::E4m3 { .. } => None,
        }
    }

    /// Enqueues `output = epilogue(A Bᵀ)`: `output` is `[rows, columns]` of bf16 or f32, sums run over `inner`
    /// products.
    ///
    /// `columns` (the rows of B) and all strides must be multiples of 8 (strides of 8-bit operands multiples of 16,
    /// of f32 multiples of 4), all addresses multiples of 16. Nothing needs padding: tiles may end beyond rows, columns
    /// and `inner`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides, addresses, an activation together with a residual and operands that this
    /// GPU has no kernel for, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed this launch, `output`
    /// without overlapping anything but `residual`, and nothing else may write to them meanwhile.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        operands: &Operands,
        inner: usize,
        epilogue: &Epilogue,
        output: Rows,
        element: Element,
    ) -> Result<(), Error> {
        let (functions, shape, map_element, kind, a, b) = match *operands {
            Operands::Bf16 { a, b } => (&self.bf16, WIDE, MapElement::Bf16, Element::Bf16, a, b),
            Operands::E4m3 { a, b, fast, .. } => {
                let Some(e4m3) = &self.e4m3 else {
                    return refuse(
                        KERNEL,
                        "operands",
                        "e4m3 takes a card of compute capability 8.9 or newer",
                    );
                };
                let shape = if fast { WIDE } else { NARROW };
                (&e4m3[usize::from(fast)], shape, MapElement::U8, Element::E4m3, a, b)
            }
            Operands::Int8 { a, b, .. } => {
                if inner > MOST_INT8 {
                    return refuse(
                        KERNEL,
                        "inner",
                        format!("{inner} products of int8 are more than {MOST_INT8}"),
                    );
                }
                (&self.int8, WIDE, MapElement::U8, Element::Int8, a, b)
            }
        };
        let (rows, columns) = (a.rows, b.rows);
        check(a, b, inner, kind, epilogue, output, element)?;
        let raw = RawEpilogue::new(operands.scales()?, epilogue, output);
        let activated = usize::from(epilogue.activation != Activation::None);
        let function = match epilogue.squares {
            None => &functions[2 * activated + usize::from(element == Element::F32)],
            Some(_) => match self.squared(operands) {
                Some(function) => function,
                None => return refuse(KERNEL, "squares", "these operands have no kernel for them"),
            },
        };
        if self.family == Family::MmaSync {
            let bytes = |elements: usize| (elements * kind.bytes()) as i64;
            let operands = SyncOperands {
                a: a.address,
                b: b.address,
                a_stride: bytes(a.stride),
                b_stride: bytes(b.stride),
                rows: rows as i32,
                columns: columns as i32,
                row_bytes: bytes(inner) as i32,
            };
            let grid = if kind == Element::Int8 {
                INT8.grid(rows, columns)
            } else {
                sync_grid(rows.div_ceil(SYNC.rows()) * columns.div_ceil(SYNC.columns), SYNC)
            };
            let mut launch = stream.launch_builder(function);
            launch.arg(&operands).arg(&raw);
            // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
            unsafe { launch.launch(grid)? };
            return Ok(());
        }

        let block = ROW_BYTES / kind.bytes();
        let map = |x: Rows, rows: usize| {
            TensorMap::new(
                map_element,
                x.address,
                [inner as u64, x.rows as u64],
                &[(x.stride * kind.bytes()) as u64],
                [block as u32, rows as u32],
            )
        };
        let (a_map, b_map) = (map(a, shape.rows())?, map(b, shape.columns / shape.cluster)?);
        let tiles = rows.div_ceil(shape.rows() * shape.cluster) * columns.div_ceil(shape.columns);
        let (rows, columns, blocks) = (rows as i32, columns as i32, inner.div_ceil(block) as i32);
        let mut launch = stream.launch_builder(function);
        launch.arg(&a_map).arg(&b_map).arg(&raw).arg(&rows).arg(&columns).arg(&blocks);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(persistent(tiles, shape, self.multiprocessors))? };
        Ok(())
    }
}

fn check(
    a: Rows,
    b: Rows,
    inner: usize,
    kind: Element,
    epilogue: &Epilogue,
    output: Rows,
    element: Element,
) -> Result<(), Error> {
    a.check_as(KERNEL, "a", inner, kind)?;
    b.check_as(KERNEL, "b", inner, kind)?;
    let (rows, columns) = (a.rows, b.rows);
    let multiple = 16 / kind.bytes();
    if inner == 0 || !inner.is_multiple_of(multiple) {
        return refuse(KERNEL, "inner", format!("{inner} is no multiple of {multiple}"));
    }
    if !columns.is_multiple_of(8) {
        return refuse(KERNEL, "b", format!("{columns} rows are no multiple of 8"));
    }
    if element.bytes() == 1 {
        return refuse(KERNEL, "element", "a product is written as bf16 or f32");
    }
    if epilogue.activation != Activation::None && epilogue.residual.is_some() {
        return refuse(KERNEL, "residual", "there is an activation, too");
    }
    if let Some(Squares { to, tiles }) = epilogue.squares {
        let alone = epilogue.activation == Activation::None
            && epilogue.gate.is_none()
            && epilogue.residual.is_none()
            && element == Element::Bf16;
        if !alone || !columns.is_multiple_of(Gemm::SQUARED) {
            return refuse(KERNEL, "squares", format!("{columns} columns of {element:?} and {epilogue:?}"));
        }
        if tiles == 0 || tiles * Gemm::SQUARED > columns || to == 0 || !to.is_multiple_of(4) {
            return refuse(KERNEL, "squares", format!("{tiles} tiles of {columns} columns at {to:#x}"));
        }
    }
    let same_rows = |argument, x: Rows| {
        if x.rows == rows {
            return Ok(());
        }
        refuse(KERNEL, argument, format!("{} rows instead of {rows}", x.rows))
    };
    output.check_as(KERNEL, "output", columns, element)?;
    same_rows("output", output)?;
    if let Some(residual) = epilogue.residual {
        residual.check_as(KERNEL, "residual", columns, element)?;
        same_rows("residual", residual)?;
    }
    if let Some(bias) = epilogue.bias {
        check_vector(KERNEL, "bias", bias)?;
    }
    match epilogue.gate {
        Some(Gate::Columns(gate)) => check_vector(KERNEL, "gate", gate),
        Some(Gate::Elements(gate)) => {
            gate.check_as(KERNEL, "gate", columns, Element::Bf16)?;
            same_rows("gate", gate)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiles::{MAX_SHARED, SYNC_MAX_SHARED};
    use super::*;

    #[test]
    fn a_block_has_the_shared_memory() {
        assert_eq!(WIDE.shared_bytes(), 4 * 49_152 + 32_768 + 4 * 16 + 1024);
        assert_eq!(NARROW.shared_bytes(), 6 * 32_768 + 32_768 + 6 * 16 + 1024);
        assert!(WIDE.shared_bytes() as usize <= MAX_SHARED && NARROW.shared_bytes() as usize <= MAX_SHARED);
    }

    #[test]
    fn mma_sync_has_less_shared_memory() {
        assert_eq!(SYNC.sync_shared_bytes(), 3 * 32_768);
    }

    #[test]
    fn tiles_of_int8_fit() {
        assert!(INT8.shared_bytes() as usize <= SYNC_MAX_SHARED);
        // The epilogue has 4 KiB for each warp.
        assert!(INT8.grid(1, 8).block_dim.0 / 32 * 4096 <= INT8.shared_bytes());
        let grid = INT8.grid(129, 264);
        assert_eq!((grid.grid_dim.0, grid.block_dim.0), (4, 256));
        assert!(MOST_INT8 as i64 * 127 * 127 <= i64::from(i32::MAX));
    }

    #[test]
    fn refuses_what_the_kernels_cannot_take() {
        let (a, b) = (Rows::dense(4096, 7, 64), Rows::dense(4096, 16, 64));
        let y = Rows::dense(4096, 7, 16);
        let end = Epilogue::default();
        let bf16 = Element::Bf16;
        assert!(check(a, b, 64, bf16, &end, y, bf16).is_ok());
        assert!(check(a, b, 60, bf16, &end, y, bf16).is_err());
        assert!(check(a, b, 72, bf16, &end, y, bf16).is_err());
        assert!(check(a, Rows { rows: 12, ..b }, 64, bf16, &end, y, bf16).is_err());
        assert!(check(a, b, 64, bf16, &end, Rows { rows: 8, ..y }, bf16).is_err());
        assert!(check(a, b, 64, bf16, &end, y, Element::E4m3).is_err());
        let both = Epilogue { activation: Activation::Silu, residual: Some(y), ..end };
        assert!(check(a, b, 64, bf16, &both, y, bf16).is_err());
        let gate = Epilogue { gate: Some(Gate::Elements(Rows { rows: 1, ..y })), ..end };
        assert!(check(a, b, 64, bf16, &gate, y, bf16).is_err());
        assert!(check(a, b, 64, bf16, &Epilogue { bias: Some(4), ..end }, y, bf16).is_err());

        let (b, y) = (Rows { rows: 512, ..b }, Rows::dense(4096, 7, 512));
        let squares = |tiles| Epilogue { squares: Some(Squares { to: 4096, tiles }), ..end };
        assert!(check(a, b, 64, bf16, &squares(1), y, bf16).is_ok());
        assert!(check(a, b, 64, bf16, &squares(2), y, bf16).is_ok());
        assert!(check(a, b, 64, bf16, &squares(3), y, bf16).is_err());
        assert!(check(a, b, 64, bf16, &squares(0), y, bf16).is_err());
        assert!(check(a, b, 64, bf16, &squares(1), y, Element::F32).is_err());
        assert!(check(a, b, 64, bf16, &Epilogue { residual: Some(y), ..squares(1) }, y, bf16).is_err());
        assert!(check(a, Rows { rows: 264, ..b }, 64, bf16, &squares(1), y, bf16).is_err());
    }
}
