//! Chooses the backend that computes.

use animd_engine::Result;
use animd_engine::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use animd_engine::backend::cuda::{Cuda, OLDEST_DRIVER, Options};
use animd_protocol::messages::Kernels;
#[cfg(feature = "cuda")]
use animd_protocol::messages::Target;
use animd_protocol::plan::Setup;
use animd_protocol::plan::cards::Card;
use animd_protocol::profile::Profile;

/// A backend that is ready for a model; [`setup`] says how to run the model.
pub enum Chosen {
    /// The processor.
    Cpu(Cpu),
    /// The first GPU.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

/// Returns the backend that a profile asks for, or the processor if there is no profile.
///
/// # Errors
/// Whatever keeps the GPU from computing.
pub fn choose(profile: Option<&Profile>) -> Result<Chosen> {
    choose_as(profile, None)
}

/// Returns the backend that a profile asks for; a GPU stands in for the card `pretend`, if there is one: with its kernels,
/// and no faster copies of weights.
///
/// # Errors
/// Whatever keeps the GPU from computing.
#[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "a GPU can be missing"))]
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only a GPU can stand in for a card"))]
pub fn choose_as(profile: Option<&Profile>, pretend: Option<&Card>) -> Result<Chosen> {
    match profile {
        #[cfg(feature = "cuda")]
        Some(profile) if profile.on_gpu() => {
            let options = Options {
                copy_rate: pretend.map(|card| card.copy_rate as u64),
                capability: pretend.map(kernels_of),
                ..Options::of(profile)
            };
            // Memory is allocated when the first job says how much it needs.
            Cuda::open(0, &options, 0, 0).map(Chosen::Cuda)
        }
        _ => Ok(Chosen::Cpu(Cpu::new())),
    }
}

/// Returns the compute capability whose kernels a card runs: cards after Hopper run those of Ada, compiled for them.
pub fn kernels_of(card: &Card) -> (u32, u32) {
    if card.capability > (9, 0) { (8, 9) } else { card.capability }
}

/// Returns how a profile wants the model run; without a profile, it runs on the processor.
pub fn setup(profile: Option<&Profile>) -> Setup {
    profile.map_or(Setup::CPU, Setup::from)
}

/// Returns the kernels that this build has, as the table of `animd-kernels` says.
pub fn kernels() -> Kernels {
    #[cfg(feature = "cuda")]
    {
        let native = animd_kernels::native()
            .into_iter()
            .map(|animd_kernels::Native { capability, only }| Target { capability, exact: only });
        let (native, ptx) = (native.collect(), animd_kernels::ptx());
        Kernels { native, ptx, driver: Some(OLDEST_DRIVER) }
    }
    #[cfg(not(feature = "cuda"))]
    Kernels::default()
}
