//! What can go wrong before a kernel runs.

use cudarc::driver::DriverError;

/// Why a kernel was not launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libcuda is not there or cannot be opened.
    #[error("NVIDIA's driver is not installed: `libcuda.so.1` cannot be opened")]
    NoDriver,
    /// The driver is older than the embedded machine code.
    #[error(
        "NVIDIA's driver is too old: it knows CUDA {major}.{minor}, and the kernels need {needs}.0: install driver {branch} or \
         newer"
    )]
    OldDriver {
        /// The major number of the driver's version of CUDA.
        major: i32,
        /// The minor number of the driver's version of CUDA.
        minor: i32,
        /// The major version of CUDA that the embedded code needs.
        needs: i32,
        /// The oldest branch of the driver that supports that version.
        branch: u32,
    },
    /// No embedded machine code serves this card.
    #[error(
        "the GPU `{name}` (compute capability {major}.{minor}) is not supported: the kernels need 8.0 (A100), 8.6 (RTX 30 series) or newer"
    )]
    UnsupportedGpu {
        /// The card's name, as the driver reports it.
        name: String,
        /// The major number of the compute capability.
        major: u32,
        /// The minor number of the compute capability.
        minor: u32,
    },
    /// The GPU cannot run the kernels that it was to be served by.
    #[error(
        "a GPU of compute capability {}.{} cannot run the kernels of {}.{}: it runs those of its own compute capability and, \
         from PTX, those of 8.0 to 8.9 that are older", .own.0, .own.1, .asked.0, .asked.1
    )]
    OtherKernels {
        /// The GPU's compute capability (major, minor).
        own: (u32, u32),
        /// The compute capability that was asked for.
        asked: (u32, u32),
    },
    /// The driver refused a call.
    #[error("the GPU driver failed: {0}")]
    Driver(#[from] DriverError),
    /// An argument of a launcher is not what its documentation asks for.
    #[error("`{kernel}` cannot take `{argument}`: {problem}")]
    Argument {
        /// The launcher's name.
        kernel: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What is wrong, with the value.
        problem: String,
    },
}
