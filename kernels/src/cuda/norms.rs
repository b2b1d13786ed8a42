//! Launchers of operations on rows: norms with what follows them, quantisation, splitting.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::module::{fatbin, load, load_all};
use super::rows::{check_vector, refuse};
use super::{Activation, Card, Element, Error, Rows};

/// The elements of a piece, and after it the pieces of a thread, as `rows.cuh` has them.
const VECTOR: usize = 8;
const PIECES: usize = 2;

/// A matrix and the type of its elements.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    /// Where the matrix is.
    pub rows: Rows,
    /// The type of its elements.
    pub element: Element,
    /// With e4m3 the address of the factors of the rows, `[rows]` f32; otherwise 0.
    pub scale: CUdeviceptr,
}

impl Typed {
    /// Returns a matrix of bf16.
    pub fn bf16(rows: Rows) -> Self {
        Self { rows, element: Element::Bf16, scale: 0 }
    }

    /// Returns a matrix of f32.
    pub fn f32(rows: Rows) -> Self {
        Self { rows, element: Element::F32, scale: 0 }
    }

    /// Returns a matrix of e4m3 with its scales.
    pub fn e4m3(rows: Rows, scale: CUdeviceptr) -> Self {
        Self { rows, element: Element::E4m3, scale }
    }
}

/// Rows of int8 to be written, rotated: each `group` columns of a row by the Kronecker power of
/// h4 = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], over the square root of `group`. The rotation is its own
/// inverse, so a product of rows that are rotated alike equals the product of the rows themselves.
#[derive(Clone, Copy, Debug)]
pub struct Int8Rows {
    /// Where the numbers go.
    pub rows: Rows,
    /// The factors of the rows, `[rows]` f32.
    pub scale: CUdeviceptr,
    /// Columns that are rotated together: a power of 4 up to 256 that divides the columns; 1 for no rotation. The group
    /// that [`rotation_group`] returns spreads large values the most.
    pub group: usize,
}

/// Returns the greatest power of 4 up to 256 that divides so many columns.
pub fn rotation_group(columns: usize) -> usize {
    [256, 64, 16, 4].into_iter().find(|group| columns.is_multiple_of(*group)).unwrap_or(1)
}

/// What a layer norm multiplies with and adds, each `[columns]` f32: `x * factor + summand`, or, `modulated`,
/// `x * (1 + factor) + summand`.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// The factor.
    pub factor: CUdeviceptr,
    /// The summand.
    pub summand: CUdeviceptr,
    /// Whether 1 is added to the factor.
    pub modulated: bool,
}

/// Cosines and sines of a rotary embedding, each `[rows, pairs]` f32.
#[derive(Clone, Copy, Debug)]
pub struct RopeTables {
    /// Cosines.
    pub cosines: CUdeviceptr,
    /// Sines.
    pub sines: CUdeviceptr,
    /// Half the width of a head; a multiple of 4.
    pub pairs: usize,
}

/// The kernel's argument: `Matrix` of `rms_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawMatrix {
    x: CUdeviceptr,
    weight: CUdeviceptr,
    y: CUdeviceptr,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for RawMatrix {}

/// Operations on rows, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct Norms {
    /// The kernels from bf16 to bf16, f32 and e4m3, then those from f32; `rms_norm` likewise.
    layer_norm: [CudaFunction; 6],
    rms_norm: [CudaFunction; 6],
    /// The kernels from bf16 and from f32; the three fields below likewise.
    quantize: [CudaFunction; 2],
    layer_norm_int8: [CudaFunction; 2],
    rms_norm_int8: [CudaFunction; 2],
    quantize_int8: [CudaFunction; 2],
    /// Whether this GPU knows e4m3: the kernels that write it are there, but do nothing elsewhere.
    e4m3: bool,
    split: CudaFunction,
}

impl Norms {
    /// The most columns of a row.
    pub const MOST_COLUMNS: usize = 1024 * PIECES * VECTOR;

    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        macro_rules! six {
            ($name:literal) => {
                load_all(
                    card,
                    fatbin!("any", $name),
                    [
                        concat!($name, "_bf16_bf16"),
                        concat!($name, "_bf16_f32"),
                        concat!($name, "_bf16_e4m3"),
                        concat!($name, "_f32_bf16"),
                        concat!($name, "_f32_f32"),
                        concat!($name, "_f32_e4m3"),
                    ],
                    0,
                )?
            };
        }
        let quantize = ["quantize_rows_bf16", "quantize_rows_f32"];
        let layer_norm_int8 = ["layer_norm_bf16_int8", "layer_norm_f32_int8"];
        let rms_norm_int8 = ["rms_norm_bf16_int8", "rms_norm_f32_int8"];
        let quantize_int8 = ["quantize_rows_bf16_int8", "quantize_rows_f32_int8"];
        Ok(Self {
            layer_norm: six!("layer_norm"),
            rms_norm: six!("rms_norm"),
            quantize: load_all(card, fatbin!("any", "quantize_rows"), quantize, 0)?,
            layer_norm_int8: load_all(card, fatbin!("any", "layer_norm"), layer_norm_int8, 0)?,
            rms_norm_int8: load_all(card, fatbin!("any", "rms_norm"), rms_norm_int8, 0)?,
            quantize_int8: load_all(card, fatbin!("any", "quantize_rows"), quantize_int8, 0)?,
            e4m3: card.support().e4m3,
            split: load(card, fatbin!("any", "split_rows"), "split_rows", 0)?,
        })
    }

    /// Enqueues `y = (x - mean) / sqrt(variance + eps)` of each row, then `affine`. `x` is bf16 or f32, `y` any; `columns`
    /// is a multiple of 8 (of 16 to e4m3) up to [`Self::MOST_COLUMNS`].
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed this launch, without
    /// overlapping, and nothing else may write to it meanwhile. `y` may be `x` if both are of one type.
    pub unsafe fn layer_norm(
        &self,
        stream: &CudaStream,
        x: Typed,
        affine: &Affine,
        eps: f32,
        y: Typed,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "layer_norm";
        let function = &self.layer_norm[self.check(KERNEL, x, y, columns)?];
        check_vector(KERNEL, "factor", affine.factor)?;
        check_vector(KERNEL, "summand", affine.summand)?;
        let one = if affine.modulated { 1.0f32 } else { 0.0 };
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&x.rows.address)
            .arg(&x_stride)
            .arg(&affine.factor)
            .arg(&affine.summand)
            .arg(&one)
            .arg(&y.rows.address)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&columns32)
            .arg(&eps);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, 1, columns))? };
        Ok(())
    }

    /// Enqueues `y = x / sqrt(mean of squares + eps) * weight` of each row, then, with `rope`, rotates the adjacent pairs
    /// within each head. One or two matrices (x, weight `[columns]` f32, y) of one shape and one stride each for x and
    /// y; `x` is bf16 or f32, `y` any, e4m3 only for one matrix; `columns` as of [`Self::layer_norm`].
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`]. The tables must have a row for each row of x.
    pub unsafe fn rms_norm(
        &self,
        stream: &CudaStream,
        matrices: &[(Typed, CUdeviceptr, Typed)],
        eps: f32,
        rope: Option<RopeTables>,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "rms_norm";
        let (&first, &second) = match matrices {
            [one] => (one, one),
            [one, two] => (one, two),
            _ => return refuse(KERNEL, "matrices", format!("{} are not one or two", matrices.len())),
        };
        let (x, _, y) = first;
        let number = self.check(KERNEL, x, y, columns)?;
        let form = |t: Typed| (t.rows.rows, t.rows.stride);
        let alike = self.check(KERNEL, second.0, second.2, columns)? == number
            && form(second.0) == form(x)
            && form(second.2) == form(y);
        if !alike || (matrices.len() == 2 && y.element == Element::E4m3) {
            return refuse(KERNEL, "matrices", "two matrices have not one form, or are to become e4m3");
        }
        check_vector(KERNEL, "weight", first.1)?;
        check_vector(KERNEL, "weight", second.1)?;
        let (cosines, sines, pairs) = match rope {
            None => (0, 0, 4),
            Some(RopeTables { cosines, sines, pairs }) => {
                check_vector(KERNEL, "cosines", cosines)?;
                check_vector(KERNEL, "sines", sines)?;
                if pairs == 0 || !pairs.is_multiple_of(4) || !columns.is_multiple_of(2 * pairs) {
                    return refuse(KERNEL, "rope", format!("{pairs} pairs do not divide {columns} columns"));
                }
                (cosines, sines, pairs as i32)
            }
        };
        let raw = |(x, weight, y): (Typed, CUdeviceptr, Typed)| RawMatrix {
            x: x.rows.address,
            weight,
            y: y.rows.address,
        };
        let (first, second) = (raw(first), raw(second));
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let mut launch = stream.launch_builder(&self.rms_norm[number]);
        launch
            .arg(&first)
            .arg(&second)
            .arg(&x_stride)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&cosines)
            .arg(&sines)
            .arg(&pairs)
            .arg(&columns32)
            .arg(&eps);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, matrices.len(), columns))? };
        Ok(())
    }

    /// Enqueues the quantisation of rows of bf16 or f32 to e4m3: each row's greatest magnitude becomes 448.
    ///
    /// # Errors
    ///
    /// As [`Self::layer_norm`].
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`].
    pub unsafe fn quantize(
        &self,
        stream: &CudaStream,
        x: Typed,
        y: Typed,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "quantize_rows";
        self.check(KERNEL, x, y, columns)?;
        if y.element != Element::E4m3 {
            return refuse(KERNEL, "y", format!("it is {:?}", y.element));
        }
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let mut launch = stream.launch_builder(&self.quantize[usize::from(x.element == Element::F32)]);
        launch
            .arg(&x.rows.address)
            .arg(&x_stride)
            .arg(&y.rows.address)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&columns32);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, 1, columns))? };
        Ok(())
    }

    /// Enqueues [`Self::layer_norm`] to int8: each row's greatest magnitude, after the rotation, becomes 127. `x` is
    /// bf16 or f32; `columns` is a multiple of 16 up to 16384.
    ///
    /// # Errors
    ///
    /// As [`Self::layer_norm`], and for a group that does not divide the columns.
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`].
    pub unsafe fn layer_norm_int8(
        &self,
        stream: &CudaStream,
        x: Typed,
        affine: &Affine,
        eps: f32,
        y: Int8Rows,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "layer_norm_int8";
        let function = &self.layer_norm_int8[check_int8(KERNEL, x, y, columns)?];
        check_vector(KERNEL, "factor", affine.factor)?;
        check_vector(KERNEL, "summand", affine.summand)?;
        let one = if affine.modulated { 1.0f32 } else { 0.0 };
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let (group, norm) = rotation(y);
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&x.rows.address)
            .arg(&x_stride)
            .arg(&affine.factor)
            .arg(&affine.summand)
            .arg(&one)
            .arg(&y.rows.address)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&columns32)
            .arg(&eps)
            .arg(&group)
            .arg(&norm);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, 1, columns))? };
        Ok(())
    }

    /// Enqueues [`Self::rms_norm`] of one matrix, without a rotary embedding, to int8, as [`Self::layer_norm_int8`].
    /// `weight` is `[columns]` f32.
    ///
    /// # Errors
    ///
    /// As [`Self::layer_norm_int8`].
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`].
    pub unsafe fn rms_norm_int8(
        &self,
        stream: &CudaStream,
        x: Typed,
        weight: CUdeviceptr,
        eps: f32,
        y: Int8Rows,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "rms_norm_int8";
        let function = &self.rms_norm_int8[check_int8(KERNEL, x, y, columns)?];
        check_vector(KERNEL, "weight", weight)?;
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let (group, norm) = rotation(y);
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&x.rows.address)
            .arg(&x_stride)
            .arg(&weight)
            .arg(&y.rows.address)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&columns32)
            .arg(&eps)
            .arg(&group)
            .arg(&norm);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, 1, columns))? };
        Ok(())
    }

    /// Enqueues the quantisation of rows of bf16 or f32 to int8, of activations and of weights alike: each row's greatest
    /// magnitude, after `activation` and the rotation, becomes 127. `columns` as of [`Self::layer_norm_int8`].
    ///
    /// # Errors
    ///
    /// As [`Self::layer_norm_int8`].
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`].
    pub unsafe fn quantize_int8(
        &self,
        stream: &CudaStream,
        x: Typed,
        activation: Activation,
        y: Int8Rows,
        columns: usize,
    ) -> Result<(), Error> {
        let function = &self.quantize_int8[check_int8("quantize_rows_int8", x, y, columns)?];
        let activation = activation as i32;
        let (x_stride, y_stride, columns32) = (x.rows.stride as i64, y.rows.stride as i64, columns as i32);
        let (group, norm) = rotation(y);
        let mut launch = stream.launch_builder(function);
        launch
            .arg(&x.rows.address)
            .arg(&x_stride)
            .arg(&y.rows.address)
            .arg(&y_stride)
            .arg(&y.scale)
            .arg(&columns32)
            .arg(&activation)
            .arg(&group)
            .arg(&norm);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(x.rows.rows, 1, columns))? };
        Ok(())
    }

    /// Enqueues the splitting of f32 rows into bf16 rows three times as wide, so that the bf16 product of such an A and
    /// such a B comes within 2^-16 of the f32 product. `second`: for operand B.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::layer_norm`].
    pub unsafe fn split(
        &self,
        stream: &CudaStream,
        x: Rows,
        y: Rows,
        second: bool,
        columns: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "split_rows";
        x.check_as(KERNEL, "x", columns, Element::F32)?;
        y.check_as(KERNEL, "y", 3 * columns, Element::Bf16)?;
        if x.rows != y.rows || !columns.is_multiple_of(VECTOR) || !x.stride.is_multiple_of(4) {
            return refuse(KERNEL, "x", format!("{} rows of {columns} do not fit {} rows", x.rows, y.rows));
        }
        let (x_stride, y_stride) = (x.stride as i64, y.stride as i64);
        let pieces = x.rows * columns / VECTOR;
        let (second, columns, rows) = (i32::from(second), columns as i32, x.rows as i32);
        let mut launch = stream.launch_builder(&self.split);
        launch.arg(&x.address).arg(&x_stride).arg(&y.address).arg(&y_stride).arg(&second).arg(&columns);
        launch.arg(&rows);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(pieces.div_ceil(256), 1, 256))? };
        Ok(())
    }
}

impl Norms {
    /// Calls [`check`], and checks that this GPU knows the type of `y`.
    fn check(&self, kernel: &'static str, x: Typed, y: Typed, columns: usize) -> Result<usize, Error> {
        if y.element == Element::Int8 {
            return refuse(kernel, "y", "int8 is written by the kernels that rotate");
        }
        if y.element == Element::E4m3 && !self.e4m3 {
            return refuse(kernel, "y", "e4m3 takes a card of compute capability 8.9 or newer");
        }
        check(kernel, x, y, columns)
    }
}

/// Checks both matrices of a row kernel to int8, and returns the number of its instance.
fn check_int8(kernel: &'static str, x: Typed, y: Int8Rows, columns: usize) -> Result<usize, Error> {
    let group = y.group;
    if ![1, 4, 16, 64, 256].contains(&group) || !columns.is_multiple_of(group) || !columns.is_multiple_of(16)
    {
        return refuse(kernel, "group", format!("{group} for {columns} columns"));
    }
    let y = Typed { rows: y.rows, element: Element::Int8, scale: y.scale };
    Ok(usize::from(check(kernel, x, y, columns)? >= 3))
}

/// Returns the group and 1 / sqrt(group), which is a power of 2.
fn rotation(y: Int8Rows) -> (i32, f32) {
    (y.group as i32, 1.0 / (y.group as f32).sqrt())
}

/// Checks both matrices of a row kernel, and returns the number of its instance.
fn check(kernel: &'static str, x: Typed, y: Typed, columns: usize) -> Result<usize, Error> {
    x.rows.check_as(kernel, "x", columns, x.element)?;
    y.rows.check_as(kernel, "y", columns, y.element)?;
    if columns == 0 || !columns.is_multiple_of(VECTOR) || columns > Norms::MOST_COLUMNS {
        let most = Norms::MOST_COLUMNS;
        return refuse(kernel, "columns", format!("{columns} are no multiple of 8 up to {most}"));
    }
    if x.rows.rows != y.rows.rows {
        return refuse(kernel, "y", format!("{} rows instead of {}", y.rows.rows, x.rows.rows));
    }
    let from = match x.element {
        Element::Bf16 => 0,
        Element::F32 => 3,
        Element::E4m3 | Element::Int8 => return refuse(kernel, "x", format!("it is {:?}", x.element)),
    };
    if y.element.bytes() == 1 {
        check_vector(kernel, "scale", y.scale)?;
    }
    Ok(from
        + match y.element {
            Element::Bf16 => 0,
            Element::F32 => 1,
            Element::E4m3 | Element::Int8 => 2,
        })
}

/// Returns a grid with a block for each row of each matrix, and a thread for each 16 elements of the row.
pub(super) fn row_grid(rows: usize, matrices: usize, columns: usize) -> LaunchConfig {
    grid(rows, matrices, columns.div_ceil(PIECES * VECTOR).next_multiple_of(32) as u32)
}

pub(super) fn grid(x: usize, y: usize, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_a_thread() {
        for columns in (8..=Norms::MOST_COLUMNS).step_by(8) {
            let threads = row_grid(1, 1, columns).block_dim.0 as usize;
            assert!(threads <= 1024 && threads.is_multiple_of(32) && threads * PIECES * VECTOR >= columns);
        }
        assert_eq!(row_grid(1, 1, 5120).block_dim.0, 320);
    }

    #[test]
    fn rotations_divide_rows() {
        for (columns, group) in
            [(5120, 256), (13_824, 256), (1536, 256), (8960, 256), (320, 64), (80, 16), (4, 4), (6, 1)]
        {
            assert_eq!(rotation_group(columns), group, "{columns}");
        }
        let rows = Rows::dense(4096, 3, 320);
        let y = |group| Int8Rows { rows, scale: 4096, group };
        assert_eq!(check_int8("k", Typed::bf16(rows), y(64), 320).ok(), Some(0));
        assert_eq!(check_int8("k", Typed::f32(rows), y(1), 320).ok(), Some(1));
        assert!(check_int8("k", Typed::f32(rows), y(256), 320).is_err());
        assert!(check_int8("k", Typed::f32(rows), y(2), 320).is_err());
        assert!(check_int8("k", Typed::f32(rows), Int8Rows { scale: 0, ..y(64) }, 320).is_err());
        assert_eq!(rotation(y(64)), (64, 0.125));
    }

    #[test]
    fn instances_are_numbered_as_they_are_loaded() {
        let rows = Rows::dense(4096, 3, 64);
        assert_eq!(check("k", Typed::bf16(rows), Typed::bf16(rows), 64).ok(), Some(0));
        assert_eq!(check("k", Typed::bf16(rows), Typed::e4m3(rows, 4096), 64).ok(), Some(2));
        assert_eq!(check("k", Typed::f32(rows), Typed::f32(rows), 64).ok(), Some(4));
        assert!(check("k", Typed::e4m3(rows, 4096), Typed::f32(rows), 64).is_err());
        assert!(check("k", Typed::f32(rows), Typed::e4m3(rows, 0), 64).is_err());
        assert!(check("k", Typed::f32(rows), Typed::f32(rows), 60).is_err());
        assert!(check("k", Typed::f32(rows), Typed::f32(Rows { rows: 2, ..rows }), 64).is_err());
    }
}
