//! The random numbers that a video begins with: those that `PyTorch` draws for the same seed.

mod cpu;
mod cuda;

use animd_protocol::request::{Noise, Request};

pub use cpu::CpuGenerator;
pub use cuda::{CudaGenerator, Launch};

/// The number of channels of a latent.
const CHANNELS: usize = 16;

/// Returns the generator of `torch.Generator("cpu").manual_seed(seed)`.
pub fn cpu(seed: u64) -> CpuGenerator {
    CpuGenerator::new(seed)
}

/// Returns the generator of `torch.Generator("cuda").manual_seed(seed)`, on a card that launches its kernels as
/// `launch` says.
pub fn cuda(seed: u64, launch: Launch) -> CudaGenerator {
    CudaGenerator::new(seed, launch)
}

/// The generator of the noise that a request asks for.
pub enum Generator {
    /// The noise as a CPU draws it.
    Cpu(Box<CpuGenerator>),
    /// The noise as a card draws it.
    Cuda(CudaGenerator),
}

impl Generator {
    /// Returns a generator at the start of the request's seed.
    pub fn new(request: &Request) -> Self {
        match request.noise {
            Noise::Cpu => Self::Cpu(Box::new(cpu(request.seed))),
            Noise::Cuda => {
                let launch = Launch { multiprocessors: request.noise_multiprocessors, ..Launch::default() };
                Self::Cuda(cuda(request.seed, launch))
            }
        }
    }

    /// Returns the next `n` numbers of a standard normal distribution, as one call of `torch.randn` draws them.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        match self {
            Self::Cpu(generator) => generator.randn(n),
            Self::Cuda(generator) => generator.randn(n),
        }
    }

    /// Returns the noise for a latent [16, frames, height, width], all in latent units. A sampler that adds noise
    /// between its steps draws again.
    pub fn latent(&mut self, frames: usize, height: usize, width: usize) -> Vec<f32> {
        self.randn(CHANNELS * frames * height * width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use animd_protocol::request::Settings;

    #[test]
    fn a_request_chooses_its_generator() {
        let draw = |noise, multiprocessors| {
            let settings = Settings {
                seed: Some(7),
                noise: Some(noise),
                noise_multiprocessors: Some(multiprocessors),
                ..Settings::default()
            };
            Generator::new(&settings.resolve(|| 0).expect("the settings are valid")).latent(1, 40, 40)
        };
        assert_eq!(draw(Noise::Cpu, 132), cpu(7).randn(16 * 1600));
        assert_eq!(draw(Noise::Cuda, 132), cuda(7, Launch::default()).randn(16 * 1600));
        // 25600 numbers are more than two multiprocessors draw in one pass.
        let small = Launch { multiprocessors: 2, ..Launch::default() };
        assert_eq!(draw(Noise::Cuda, 2), cuda(7, small).randn(16 * 1600));
        assert_ne!(draw(Noise::Cuda, 2), draw(Noise::Cuda, 132));
    }
}
