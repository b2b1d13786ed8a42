//! Matrices in device memory.

use cudarc::driver::sys::CUdeviceptr;

use super::Error;

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
    /// A matrix whose rows follow each other without gaps.
    pub fn dense(address: CUdeviceptr, rows: usize, columns: usize) -> Self {
        Self { address, rows, stride: columns }
    }

    /// Checks for 16-byte accesses to rows of `columns` elements of 2 bytes.
    pub(super) fn check(
        &self,
        kernel: &'static str,
        argument: &'static str,
        columns: usize,
    ) -> Result<(), Error> {
        let problem = if self.rows == 0 {
            "it has no rows".to_owned()
        } else if i32::try_from(self.rows).is_err() {
            format!("{} rows are more than 2^31 - 1", self.rows)
        } else if self.stride < columns {
            format!("a stride of {} elements is less than its {columns} columns", self.stride)
        } else if !self.stride.is_multiple_of(8) {
            format!("a stride of {} elements is no multiple of 8", self.stride)
        } else if self.address == 0 || !self.address.is_multiple_of(16) {
            format!("its address {:#x} is no multiple of 16", self.address)
        } else {
            return Ok(());
        };
        Err(Error::Argument { kernel, argument, problem })
    }
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
