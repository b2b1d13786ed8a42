//! What the VAE does without enough memory on the device: it works in smaller tiles, in the end on the processor.
//!
//! A job's latents have cost minutes by then. So a decode that finds no room is begun again with less, and goes on with
//! the frame after the last one that was written.

use animd_protocol::plan::SMALLEST_TILE;

use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Keeping, TensorOps};
use crate::model::vae::{Footage, Rendered, Vae};
use crate::progress::Observer;
use crate::weights::{VaeConfig, WeightSource};
use crate::{Error, Result};

/// The VAE of a job, with what it takes to do its work elsewhere.
pub struct Rescue<'a, B: Backend> {
    pub backend: &'a B,
    pub vae: &'a Vae<B>,
    pub config: &'a VaeConfig,
    pub weights: &'a dyn WeightSource,
    /// The longest side of the plan's tiles, in latent pixels; `None` for whole frames.
    pub tile: Option<usize>,
    pub observer: &'a dyn Observer,
}

/// A way to do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Where the job runs, in tiles with sides of at most so many latent pixels.
    Here(Option<usize>),
    /// On the processor, in the smallest tiles.
    OnCpu,
}

impl<B: Backend> Rescue<'_, B> {
    /// Encodes a picture, and the one at the video's end if there is one, as [`Vae::encode`] does. The second result says how that went otherwise than asked for.
    ///
    /// # Errors
    /// Returns the errors of [`Vae::encode`].
    pub fn encode(
        &self,
        picture: &B::Tensor,
        last: Option<&B::Tensor>,
        latent_frames: usize,
    ) -> Result<(B::Tensor, Option<String>)> {
        self.attempt("encode the picture", |way| match way {
            Way::Here(tile) => {
                let footage = Footage::Picture { picture, last, latent_frames };
                self.vae.encode(self.backend, footage, tile, self.observer, None)
            }
            Way::OnCpu => {
                let (cpu, vae) = self.on_cpu()?;
                let picture = &self.moved(picture, &cpu)?;
                let last = last.map(|last| self.moved(last, &cpu)).transpose()?;
                let footage = Footage::Picture { picture, last: last.as_ref(), latent_frames };
                let latents = vae.encode(&cpu, footage, Some(SMALLEST_TILE), self.observer, None)?;
                self.backend.upload(&cpu.download(&latents)?, &cpu.shape(&latents))
            }
        })
    }

    /// Decodes latents as [`Vae::render`] does; `write` gets the share of the work that is done, and the frames that this
    /// completed. The result says how that went otherwise than asked for.
    ///
    /// # Errors
    /// Returns the errors of [`Vae::render`] and of `write`.
    pub fn decode(
        &self,
        latents: &B::Tensor,
        write: &mut dyn FnMut(f64, &[u8]) -> Result<()>,
    ) -> Result<Option<String>> {
        let mut written = 0_usize;
        let ((), note) = self.attempt("decode the frames", |way| {
            // What an earlier attempt has written is passed over.
            let mut seen = 0_usize;
            let mut rest = |Rendered { done, frames }: Rendered| {
                let known = written.saturating_sub(seen).min(frames.len());
                seen += frames.len();
                written = written.max(seen);
                write(done, &frames[known..])
            };
            match way {
                Way::Here(tile) => self.vae.render(self.backend, latents, tile, self.observer, &mut rest),
                Way::OnCpu => {
                    let (cpu, vae) = self.on_cpu()?;
                    let latents = self.moved(latents, &cpu)?;
                    vae.render(&cpu, &latents, Some(SMALLEST_TILE), self.observer, &mut rest)
                }
            }
        })?;
        Ok(note)
    }

    /// Does the work in one way after the other, until one finds room. The second result says which one did, if it was not
    /// the first.
    fn attempt<T>(&self, work: &str, mut run: impl FnMut(Way) -> Result<T>) -> Result<(T, Option<String>)> {
        let mut ways = vec![Way::Here(self.tile)];
        ways.extend(smaller(self.tile).map(|tile| Way::Here(Some(tile))));
        if self.backend.name() != "cpu" {
            ways.push(Way::OnCpu);
        }
        let mut shortage = None;
        for way in ways {
            match (run(way), &shortage) {
                (Err(e @ Error::Memory(_)), _) => {
                    tracing::debug!("no room to {work} ({way:?}): {e}");
                    // The first one says what was missing for what was asked for.
                    shortage.get_or_insert(e);
                }
                (Err(e), _) => return Err(e),
                (Ok(done), None) => return Ok((done, None)),
                (Ok(done), Some(shortage)) => {
                    let how = match way {
                        Way::Here(_) => "so it was done in smaller tiles",
                        Way::OnCpu => "so the processor did it, which takes long",
                    };
                    return Ok((done, Some(format!("the GPU had no room to {work}, {how}: {shortage}"))));
                }
            }
        }
        Err(shortage.unwrap_or_else(|| Error::Internal(format!("no way to {work}"))))
    }

    fn on_cpu(&self) -> Result<(Cpu, Vae<Cpu>)> {
        let cpu = Cpu::new();
        let vae = Vae::load(&cpu.loader(Keeping::F32), self.weights, self.config)?;
        Ok((cpu, vae))
    }

    /// Returns a tensor of the job's backend as one of the processor's.
    fn moved(&self, tensor: &B::Tensor, cpu: &Cpu) -> Result<<Cpu as TensorOps>::Tensor> {
        cpu.upload(&self.backend.download(tensor)?, &self.backend.shape(tensor))
    }
}

/// Returns the sides of smaller tiles, in latent pixels, that are tried where a plan's tiles find no room.
fn smaller(tile: Option<usize>) -> impl Iterator<Item = usize> {
    [4 * SMALLEST_TILE, SMALLEST_TILE].into_iter().filter(move |&side| tile.is_none_or(|tile| side < tile))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::backend::cuda::{Cuda, Options};
    use crate::progress::Quiet;
    use crate::synth::{Size, Source};
    use crate::weights::{Component, DType};

    /// Frames of latents, and their height and width.
    const LATENT: [usize; 3] = [4, 4, 6];
    const BYTES: usize = 13 * 3 * 8 * 4 * 8 * 6;

    /// Runs `test` with a VAE on a GPU with so many bytes for work, and with latents of noise.
    fn with_vae(work: usize, test: impl FnOnce(&Cuda, &Rescue<'_, Cuda>, &[f32])) {
        let b = Cuda::open(0, &Options::default(), 0, work).expect("there is a GPU or the emulator");
        let recipe = Size::Tiny.recipe();
        let part = recipe.networks().find(|part| part.component() == Component::Vae).expect("a VAE");
        let (source, config) = (Source::new(&part, DType::F32, 1), &recipe.vae.config);
        let vae = &Vae::load(&b.loader(Keeping::F32), &source, config).expect("there is room");
        let (tile, observer) = (None, &Quiet);
        let rescue = Rescue { backend: &b, vae, config, weights: &source, tile, observer };
        let [t, h, w] = LATENT;
        test(&b, &rescue, &crate::synth::noise(1, "latents", 1.0, 16 * t * h * w));
    }

    fn shape() -> [usize; 4] {
        let [t, h, w] = LATENT;
        [16, t, h, w]
    }

    /// Takes all memory that is left for work.
    fn fill(b: &Cuda) -> Vec<crate::backend::cuda::Tensor> {
        let sizes = [1 << 20, 1 << 14, 1 << 9, 1 << 6];
        sizes.iter().flat_map(|n| std::iter::from_fn(|| b.upload(&vec![0.0; *n], &[*n]).ok())).collect()
    }

    #[test]
    #[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
    fn a_decode_without_room_goes_on_elsewhere() {
        with_vae(64 << 20, |b, rescue, values| {
            let latents = b.upload(values, &shape()).expect("there is room");
            let mut whole = Vec::new();
            let note = rescue.decode(&latents, &mut |_, rgb| {
                whole.extend_from_slice(rgb);
                Ok(())
            });
            assert_eq!((note.expect("there is room"), whole.len()), (None, BYTES));

            // Memory ends when the first frame is written; the others come from the processor.
            let (mut taken, mut frames, mut calls) = (Vec::new(), Vec::new(), Vec::new());
            let note = rescue.decode(&latents, &mut |_, rgb| {
                if taken.is_empty() {
                    taken = fill(b);
                }
                calls.push(rgb.len());
                frames.extend_from_slice(rgb);
                Ok(())
            });
            let note = note.expect("the processor has room").expect("it is said");
            assert!(note.contains("the processor did it"), "{note}");
            assert_eq!(frames.len(), BYTES, "{calls:?}");
            // Both compute in f32 or near it, so that the last bit of a byte may differ.
            assert!(frames.iter().zip(&whole).all(|(a, b)| a.abs_diff(*b) <= 1));
        });
    }

    #[test]
    #[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
    fn a_picture_without_room_is_encoded_elsewhere() {
        with_vae(64 << 20, |b, rescue, _| {
            let (picture, shape) = (crate::synth::noise(1, "picture", 0.4, 3 * 32 * 48), [3, 1, 32, 48]);
            let first = b.upload(&picture, &shape).expect("there is room");
            assert_eq!(rescue.encode(&first, None, 2).expect("there is room").1, None);

            let mut taken = fill(b);
            // There is room for the latents alone.
            taken.iter().position(|piece| b.shape(piece) == [1 << 14]).map(|small| taken.remove(small));
            let (latents, note) = rescue.encode(&first, None, 2).expect("the processor has room");
            assert!(note.is_some_and(|note| note.contains("the processor did it")));
            let (cpu, vae) = rescue.on_cpu().expect("there is room");
            let first = &cpu.upload(&picture, &shape).expect("there is room");
            let footage = Footage::Picture { picture: first, last: None, latent_frames: 2 };
            let right = vae.encode(&cpu, footage, Some(SMALLEST_TILE), &Quiet, None).expect("there is room");
            let right = cpu.download(&right).expect("it can be read");
            assert_eq!(b.download(&latents).expect("it can be read"), right);
        });
    }

    #[test]
    fn only_a_lack_of_memory_is_helped() {
        let cpu = Cpu::new();
        let recipe = Size::Tiny.recipe();
        let part = recipe.networks().find(|part| part.component() == Component::Vae).expect("a VAE");
        let (source, config) = (Source::new(&part, DType::F32, 1), &recipe.vae.config);
        let vae = &Vae::load(&cpu.loader(Keeping::F32), &source, config).expect("there is room");
        let (tile, observer) = (None, &Quiet);
        let rescue = Rescue { backend: &cpu, vae, config, weights: &source, tile, observer };
        let mut ways = Vec::new();
        let full = rescue.attempt("do it", |way| {
            ways.push(way);
            Err::<(), _>(Error::Memory(format!("number {}", ways.len())))
        });
        assert_eq!(ways, [None, Some(4 * SMALLEST_TILE), Some(SMALLEST_TILE)].map(Way::Here));
        assert!(matches!(full, Err(Error::Memory(text)) if text == "number 1"), "the first one counts");
        let mut calls = 0;
        let canceled = rescue.attempt("do it", |_| {
            calls += 1;
            Err::<(), _>(Error::Canceled)
        });
        assert!(matches!(canceled, Err(Error::Canceled)));
        assert_eq!(calls, 1);
    }
}
