//! Who computes.

use animd_engine::Result;
use animd_engine::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use animd_engine::backend::cuda::{Cuda, OLDEST_DRIVER, Options};
use animd_protocol::messages::Kernels;
#[cfg(feature = "cuda")]
use animd_protocol::messages::Target;
use animd_protocol::plan::Setup;
use animd_protocol::profile::Profile;

/// A backend, ready for a model, which it is to run as [`setup`] says.
pub enum Chosen {
    /// The processor.
    Cpu(Cpu),
    /// The first GPU.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

/// The backend that a profile asks for; without one the processor.
///
/// # Errors
/// What keeps the GPU from computing.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "a GPU can be missing"))]
pub fn choose(profile: Option<&Profile>) -> Result<Chosen> {
    match profile {
        #[cfg(feature = "cuda")]
        Some(profile) if profile.on_gpu() => {
            let options = Options::of(profile);
            // Memory is taken when the first job says how much.
            Cuda::open(0, &options, 0, 0).map(Chosen::Cuda)
        }
        _ => Ok(Chosen::Cpu(Cpu::new())),
    }
}

/// How a profile wants the model run; without one on the processor.
pub fn setup(profile: Option<&Profile>) -> Setup {
    profile.map_or(Setup::CPU, Setup::from)
}

/// What this build has code for.
pub fn kernels() -> Kernels {
    #[cfg(feature = "cuda")]
    {
        let target = |capability| Target { capability, exact: true, eight_bit_attention: true };
        let native = vec![target((8, 9)), target((9, 0))];
        Kernels { native, ptx: Some((8, 9)), driver: Some(OLDEST_DRIVER), offload: false }
    }
    #[cfg(not(feature = "cuda"))]
    Kernels::default()
}
