//! A job's latents and frames as numbers, for measurements: without a video file, and so without a video encoder.

use animd_protocol::progress::Stage;

use super::clock::Clock;
use super::{Denoised, Job, Parts, Pipeline};
use crate::Result;
use crate::backend::Backend;
use crate::progress::Observer;

/// What a job computes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frames {
    /// The last step's latents, `[16, t, h, w]`.
    pub latents: Vec<f32>,
    /// The frames that the video encoder would get, `[frames, height, width, 3]`.
    pub rgb: Vec<u8>,
    /// How often a step cache has saved a forward of the DiT.
    pub forwards_skipped: u32,
}

impl<B: Backend> Pipeline<B> {
    /// Makes the frames of `job`, and keeps them in memory. The VAE works on tiles with sides of at most `tile` latent pixels, or
    /// as the job's plan says.
    ///
    /// # Errors
    /// Returns those of [`Self::run`], apart from those of the file.
    pub fn frames(&mut self, job: &Job, tile: Option<usize>, observer: &dyn Observer) -> Result<Frames> {
        self.begin();
        self.check(job)?;
        let mut clock = Clock::start(observer, job.request.total_steps(), self.costs(job));
        let tile = tile.or(self.plan(job).tile);
        let Denoised { latents, plan, mut outputs } =
            self.latents(job, tile, None, &mut Vec::new(), &mut clock)?;
        let parts = self.parts()?;
        clock.stage(Stage::VaeDecode)?;
        let mut rgb = Vec::new();
        let mut keep = |_, frames: &[u8]| {
            rgb.extend_from_slice(frames);
            outputs.check()
        };
        parts.rescue(tile, observer)?.decode(&latents, &mut keep)?;
        let Parts { backend, .. } = parts;
        Ok(Frames { latents: backend.download(&latents)?, rgb, forwards_skipped: plan.forwards().1 })
    }
}
