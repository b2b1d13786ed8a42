//! Matrices in device memory.

use cudarc::driver::sys::CUdeviceptr;

use super::Error;

/// Types of elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 16 bits with the exponent of f32.
    Bf16,
    /// 32 bits.
    F32,
    /// 8 bits, 4 of them the exponent; up to 448.
    E4m3,
    /// Whole numbers from -127 to 127.
    Int8,
}

impl Element {
    /// Returns the size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::E4m3 | Self::Int8 => 1,
        }
    }
}

/// A matrix in device memory by its address, row after row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Device address of the first element.
    pub address: CUdeviceptr,
    /// Number of rows.
    pub rows: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Rows {
    /// Returns a matrix whose rows follow each other without gaps.
    pub fn dense(address: CUdeviceptr, rows: usize, columns: usize) -> Self {
        Self { address, rows, stride: columns }
    }

    /// Checks that a kernel can access rows of `columns` elements of 2 bytes 16 bytes at a time.
    pub(super) fn check(
        &self,
        kernel: &'static str,
        argument: &'static str,
        columns: usize,
    ) -> Result<(), Error> {
        self.check_as(kernel, argument, columns, Element::Bf16)
    }

    /// Checks that a kernel can access rows of `columns` elements 16 bytes at a time.
    pub(super) fn check_as(
        &self,
        kernel: &'static str,
        argument: &'static str,
        columns: usize,
        element: Element,
    ) -> Result<(), Error> {
        let multiple = 16 / element.bytes();
        let problem = if self.rows == 0 {
            "it has no rows".to_owned()
        } else if i32::try_from(self.rows).is_err() {
            format!("{} rows are more than 2^31 - 1", self.rows)
        } else if self.stride < columns {
            format!("a stride of {} elements is less than its {columns} columns", self.stride)
        } else if !self.stride.is_multiple_of(multiple) {
            format!("a stride of {} elements is no multiple of {multiple}", self.stride)
        } else if self.address == 0 || !self.address.is_multiple_of(16) {
            format!("its address {:#x} is no multiple of 16", self.address)
        } else {
            return Ok(());
        };
        Err(Error::Argument { kernel, argument, problem })
    }
}

/// Returns the error for an argument that a kernel cannot take.
pub(super) fn refuse<T>(
    kernel: &'static str,
    argument: &'static str,
    problem: impl Into<String>,
) -> Result<T, Error> {
    Err(Error::Argument { kernel, argument, problem: problem.into() })
}

/// Checks the address of a vector that a kernel reads 16 bytes at a time.
pub(super) fn check_vector(
    kernel: &'static str,
    argument: &'static str,
    address: CUdeviceptr,
) -> Result<(), Error> {
    if address == 0 || !address.is_multiple_of(16) {
        return refuse(kernel, argument, format!("its address {address:#x} is no multiple of 16"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_kernels_cannot_read() {
        let good = Rows { address: 4096, rows: 7, stride: 256 };
        assert!(good.check("k", "q", 256).is_ok());
        for (bad, word) in [
            (Rows { rows: 0, ..good }, "no rows"),
            (Rows { rows: 1 << 31, ..good }, "2^31"),
            (Rows { stride: 248, ..good }, "less than"),
            (Rows { stride: 260, ..good }, "multiple of 8"),
            (Rows { address: 4104, ..good }, "multiple of 16"),
            (Rows { address: 0, ..good }, "multiple of 16"),
        ] {
            let message = bad.check("k", "q", 256).expect_err("a bad matrix").to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
