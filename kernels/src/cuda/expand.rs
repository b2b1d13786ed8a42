//! Launchers of the kernels that expand the numbers of model files to f32.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, PushKernelArg};

use super::module::{fatbin, load, load_all};
use super::norms::{grid, row_grid};
use super::rows::{check_vector, refuse};
use super::{Card, Error, Norms};

const KERNEL: &str = "expand";
const THREADS: usize = 256;

/// A type of numbers that is expanded one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 16-bit floats.
    F16,
    /// 8-bit floats with 4 bits of exponent and no infinities.
    E4m3,
    /// 8-bit floats with 5 bits of exponent.
    E5m2,
    /// 4-bit floats with 2 bits of exponent; the first of two in a byte has the lower half.
    E2m1,
    /// Signed bytes.
    Int8,
}

/// A format of blocks that hold numbers beside what scales them, by GGUF's names.
#[expect(missing_docs, non_camel_case_types, reason = "they are GGUF's names, which say everything")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The scales of a matrix: each rectangle has one, and those at the matrix's ends may be cut off.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales {
    /// Device address of the scales, f32, row-major without gaps.
    pub address: CUdeviceptr,
    /// The height and the width of a rectangle.
    pub extents: [usize; 2],
}

/// The kernels, loaded for one GPU. Values are those of the CPU to the bit.
#[derive(Debug)]
pub struct Expand {
    numbers: [CudaFunction; 5],
    blocks: [CudaFunction; 10],
    rotate: CudaFunction,
}

impl Expand {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        let numbers = ["expand_f16", "expand_e4m3", "expand_e5m2", "expand_e2m1", "expand_int8"];
        let blocks = [
            "expand_q4_0",
            "expand_q4_1",
            "expand_q5_0",
            "expand_q5_1",
            "expand_q8_0",
            "expand_q2_k",
            "expand_q3_k",
            "expand_q4_k",
            "expand_q5_k",
            "expand_q6_k",
        ];
        Ok(Self {
            numbers: load_all(card, fatbin!("any", "expand"), numbers, 0)?,
            blocks: load_all(card, fatbin!("any", "expand"), blocks, 0)?,
            rotate: load(card, fatbin!("any", "expand"), "rotate_rows", 0)?,
        })
    }

    /// Enqueues the expansion of a matrix `[rows, columns]` of numbers without gaps at `x`, each times its scale, to f32
    /// without gaps at `y`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for extents and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed this launch, without
    /// overlapping, and nothing else may write to it meanwhile.
    pub unsafe fn numbers(
        &self,
        stream: &CudaStream,
        number: Number,
        x: CUdeviceptr,
        scales: Option<BlockScales>,
        y: CUdeviceptr,
        [rows, columns]: [usize; 2],
    ) -> Result<(), Error> {
        let blocks = check(x, y, [rows, columns])?;
        if number == Number::E2m1 && !columns.is_multiple_of(2) {
            return refuse(KERNEL, "columns", format!("{columns} numbers of 4 bits end within a byte"));
        }
        let [height, width] = scales.map_or([rows, columns], |scales| scales.extents);
        if height == 0 || width == 0 || scales.is_some_and(|scales| scales.address == 0) {
            return refuse(KERNEL, "scales", format!("each is of {height} rows and {width} columns"));
        }
        let address = scales.map_or(0, |scales| scales.address);
        let (count, across) = ((rows * columns) as i64, columns.div_ceil(width) as i32);
        let (columns, height, width) = (columns as i32, height as i32, width as i32);
        let mut launch = stream.launch_builder(&self.numbers[number as usize]);
        launch.arg(&x).arg(&address).arg(&y).arg(&count).arg(&columns).arg(&height).arg(&width).arg(&across);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(blocks, 1, THREADS as u32))? };
        Ok(())
    }

    /// Enqueues the expansion of whole blocks at `x`, of `[rows, columns]` values, to f32 without gaps at `y`.
    ///
    /// # Errors
    ///
    /// As [`Self::numbers`].
    ///
    /// # Safety
    ///
    /// As [`Self::numbers`].
    pub unsafe fn blocks(
        &self,
        stream: &CudaStream,
        block: Block,
        x: CUdeviceptr,
        y: CUdeviceptr,
        [rows, columns]: [usize; 2],
    ) -> Result<(), Error> {
        let blocks = check(x, y, [rows, columns])?;
        let count = (rows * columns) as i64;
        let mut launch = stream.launch_builder(&self.blocks[block as usize]);
        launch.arg(&x).arg(&y).arg(&count);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(blocks, 1, THREADS as u32))? };
        Ok(())
    }

    /// Returns whether [`Self::rotate`] takes rows of so many columns.
    pub fn rotates(columns: usize, group: usize) -> bool {
        [4, 16, 64, 256].contains(&group)
            && columns.is_multiple_of(group.max(8))
            && columns <= Norms::MOST_COLUMNS
    }

    /// Enqueues the rotation, in place, of each `group` neighbouring columns of `[rows, columns]` f32 without gaps. The
    /// rotation keeps lengths and is its own inverse.
    ///
    /// # Errors
    ///
    /// As [`Self::numbers`].
    ///
    /// # Safety
    ///
    /// As [`Self::numbers`].
    pub unsafe fn rotate(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        [rows, columns]: [usize; 2],
        group: usize,
    ) -> Result<(), Error> {
        check(x, x, [rows, columns])?;
        if !Self::rotates(columns, group) {
            return refuse("rotate_rows", "group", format!("{group} for {columns} columns"));
        }
        let (norm, columns32, group) = (1.0 / (group as f32).sqrt(), columns as i32, group as i32);
        let mut launch = stream.launch_builder(&self.rotate);
        launch.arg(&x).arg(&columns32).arg(&group).arg(&norm);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(row_grid(rows, 1, columns))? };
        Ok(())
    }
}

/// Checks extents and addresses, and returns the blocks of threads for a thread for each value.
fn check(x: CUdeviceptr, y: CUdeviceptr, [rows, columns]: [usize; 2]) -> Result<usize, Error> {
    check_vector(KERNEL, "x", x)?;
    check_vector(KERNEL, "y", y)?;
    let blocks = rows.checked_mul(columns).map(|count| count.div_ceil(THREADS));
    match blocks.filter(|blocks| i32::try_from(*blocks).is_ok() && i32::try_from(columns).is_ok()) {
        Some(blocks) if blocks > 0 => Ok(blocks),
        _ => refuse(KERNEL, "y", format!("{rows} rows of {columns} values")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_the_kernels_cannot_expand() {
        assert_eq!(check(4096, 8192, [3, 100]).ok(), Some(2));
        for (x, y, extents) in
            [(4097, 8192, [3, 8]), (4096, 0, [3, 8]), (4096, 8192, [0, 8]), (4096, 8192, [1 << 40, 1 << 20])]
        {
            assert!(check(x, y, extents).is_err(), "{x} {y} {extents:?}");
        }
    }

    #[test]
    fn rotations_have_whole_groups() {
        for (columns, group, whole) in [
            (5120, 256, true),
            (520, 4, true),
            (12, 4, false),
            (384, 256, false),
            (64, 32, false),
            (32_768, 256, false),
        ] {
            assert_eq!(Expand::rotates(columns, group), whole, "{columns} by {group}");
        }
    }
}
