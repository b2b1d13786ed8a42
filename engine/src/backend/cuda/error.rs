//! Errors of the launchers and the driver, as messages.

use animd_kernels::cuda;
use animd_kernels::cuda::cudarc::driver::DriverError;
use animd_kernels::cuda::cudarc::driver::sys::CUresult;

use crate::{Error, Result};

/// Converts a launcher's result.
pub(super) fn kernel<T>(result: std::result::Result<T, cuda::Error>) -> Result<T> {
    result.map_err(|e| match e {
        cuda::Error::Driver(e) => device(e),
        e @ cuda::Error::Argument { .. } => Error::Internal(e.to_string()),
        e => Error::Device(e.to_string()),
    })
}

/// Converts a driver's failure to an error with a message.
pub(super) fn device(e: DriverError) -> Error {
    let name = format!("{:?}", e.0);
    match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory(
            "the GPU has too little memory left for its driver: end other programs on it, or use a profile for a smaller \
             card"
                .into(),
        ),
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => Error::Device(
            "NVIDIA's driver is installed, but finds no GPU: `nvidia-smi` shows what it sees".into(),
        ),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => Error::Device(
            "NVIDIA's driver was changed while it was in use: restart the machine".into(),
        ),
        CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::Device(format!(
            "NVIDIA's driver does not take the kernels ({name}): it is too old for this GPU; install a newer one"
        )),
        _ => Error::Device(format!("the GPU or its driver failed ({name}): `journalctl -k | grep NVRM` may say why")),
    }
}
