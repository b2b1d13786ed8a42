//! What a user may ask for ([`Settings`]), and what the engine is asked to do ([`Request`]).
//!
//! `Settings` are as the user typed them: every key may be missing. [`Settings::resolve`] fills in the defaults, checks
//! each value and draws the seed. A `Request` therefore repeats its video exactly; the ledger and the file's metadata
//! keep it.

use serde::{Deserialize, Serialize};

use crate::InvalidSetting;
use crate::defaults::{Defaults, NOISE_MULTIPROCESSORS};
use crate::lora::{self, LoraChoice};
use crate::model_file::check_name;
use crate::ranges;

pub use crate::defaults::NEGATIVE_PROMPT;
pub use crate::ranges::{MAX_FRAMES, MAX_PROMPT_BYTES, MAX_SEED};
pub use crate::size::{MAX_SIDE, Size};

/// The rule that fits a picture to a [`Size`] that is an area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The official rule: the picture's own shape, sides rounded to latents.
    #[default]
    Official,
    /// `LightX2V`'s rule: the nearest of three shapes (1:1 and about 16:9 either way), cropped to its centre.
    Adaptive,
}

/// The name of a sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// `UniPC` of order 2, for the released model.
    #[default]
    Unipc,
    /// Deterministic Euler over a few steps, four unless asked otherwise, for the step-distilled model.
    Distill,
    /// The distilled model with new noise between its steps.
    DistillRenoise,
}

impl Sampler {
    /// Returns whether the sampler is for step-distilled models.
    pub fn is_distilled(self) -> bool {
        self != Self::Unipc
    }
}

/// The method that saves forwards of the DiT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepCache {
    /// None: every forward is computed.
    #[default]
    None,
    /// `TeaCache` on the time embedding.
    Teacache,
    /// `TeaCache` on the modulation, the first five steps always computed.
    TeacacheRet,
    /// `MagCache`.
    Magcache,
}

impl StepCache {
    /// All of them.
    const ALL: [Self; 4] = [Self::None, Self::Teacache, Self::TeacacheRet, Self::Magcache];

    /// Returns the default of the step cache's threshold; 0 without a step cache.
    fn threshold(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Teacache | Self::TeacacheRet => 0.2,
            Self::Magcache => 0.12,
        }
    }
}

/// The random number generator that the initial noise matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// `torch.randn` with a CUDA generator, as the official code and `LightX2V` draw it.
    #[default]
    Cuda,
    /// `torch.randn` with a CPU generator, as `ComfyUI` draws it.
    Cpu,
}

/// Whether the VAE works on the whole picture or on tiles. The video is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tiling {
    /// Whole.
    #[default]
    Whole,
    /// In tiles as large as 2 GiB of memory allow: at 1280x720 a third of the memory for a seventh more work.
    Tiled,
}

/// The settings that a user has given. Every key may be missing; [`Settings::resolve`] fills in the defaults.
///
/// They are read by [`crate::given`], which refuses a wrong value with what would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// The name of the model [default: the configured one]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The `LoRAs` that change the model, each with its strength [default: none]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Vec<LoraChoice>>,
    /// What should happen in the video
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What to avoid in the video [default: the model's own list, in Chinese]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The number that the noise is drawn from; the same seed gives the same video [default: drawn]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// `480p` or `720p` (about so many pixels, in the picture's shape), or `WIDTHxHEIGHT` [default: 480p]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// How the picture's shape is kept where the size is an area [default: official]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Frames of the video, 4n+1 [default: 81]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<u32>,
    /// Frames a second [default: 16]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<u32>,
    /// Length of the video; what is longer than `frames` is made in parts [default: as `frames` says]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The name of the picture that the video ends at [default: none]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Whether the video ends at the picture that it starts from [default: false]
    #[serde(rename = "loop", skip_serializing_if = "Option::is_none")]
    pub looped: Option<bool>,
    /// H.264 quality, from 1 (the best) to 51; 18 looks lossless [default: 18]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<u32>,
    /// The sampler [default: unipc]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// The sampler in the steps of the low-noise expert of a model with two [default: as `sampler` says]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler_low: Option<Sampler>,
    /// Denoising steps [default: 40; the distilled samplers take 4, and 1 to 8 if asked]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// Steps of the high-noise expert of a model with two [default: those from timestep 900 on; half of the steps of a
    /// distilled sampler]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_high: Option<u32>,
    /// Steps before the others, which the high-noise expert of a model with two computes without the `LoRAs` and with guidance
    /// [default: none]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_base: Option<u32>,
    /// How far the steps lean towards the noisy end [default: 3 for undistilled Wan2.1 at 480p, 5 otherwise, and 16 between two pictures]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// The shift of the steps of the low-noise expert of a model with two [default: as `shift` says]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_low: Option<f64>,
    /// How strongly the prompt is followed; 1 halves the work [default: 5; the distilled samplers take 1]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// The guidance in the steps of the low-noise expert of a model with two [default: as `guidance` says]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_low: Option<f64>,
    /// The guidance in the steps of `steps_base` [default: the model's own, 3.5]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_base: Option<f64>,
    /// Which forwards are saved by reusing an earlier one's result [default: none]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<StepCache>,
    /// How much the step cache may err before it computes again [default: 0.2 for `TeaCache`, 0.12 for `MagCache`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_cache_threshold: Option<f64>,
    /// Whose random numbers the noise equals, for the same seed [default: cuda]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// Multiprocessors of the card whose CUDA noise to match [default: 132, an H200's]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_multiprocessors: Option<u32>,
    /// Whether the VAE works on tiles [default: whole]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
}

/// Everything that makes a video from a picture. An engine gets it with nothing left open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The name of the model; `None` is the one that the service is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The `LoRAs` that change the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<LoraChoice>,
    /// What should happen in the video.
    pub prompt: String,
    /// What should not be in the video.
    pub negative_prompt: String,
    /// The seed, at most [`MAX_SEED`].
    pub seed: u64,
    /// The area or exact size of the video.
    pub size: Size,
    /// The rule that fits a picture to an area.
    pub resize: Resize,
    /// The number of frames, 4n+1.
    pub frames: u32,
    /// Frames a second.
    pub fps: u32,
    /// The length of the video in seconds; 0 where `frames` says it. See [`Request::parts`].
    #[serde(default)]
    pub seconds: f64,
    /// The name of the picture that the video ends at; empty without one.
    #[serde(default)]
    pub last: String,
    /// Whether the video ends at the picture that it starts from.
    #[serde(default, rename = "loop")]
    pub looped: bool,
    /// x264's constant rate factor, 1 to 51. 0 is not allowed: it is lossless in a profile that few players support.
    pub quality: u32,
    /// The sampler.
    pub sampler: Sampler,
    /// The sampler in the steps of the low-noise expert of a model with two, where it differs from `sampler`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_low: Option<Sampler>,
    /// Denoising steps, apart from those of `steps_base`.
    pub steps: u32,
    /// How many of `steps` the high-noise expert of a model with two computes; without it, the model's own rule decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_high: Option<u32>,
    /// Steps before the others: the high-noise expert of a model with two computes them without the `LoRAs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_base: Option<u32>,
    /// The schedule's shift.
    pub shift: f64,
    /// The shift in the steps of the low-noise expert of a model with two, where it differs from `shift`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift_low: Option<f64>,
    /// The guidance scale; at 1 the negative prompt is not used.
    pub guidance: f64,
    /// The guidance scale in the steps of the low-noise expert of a model with two, where it differs from `guidance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_low: Option<f64>,
    /// The guidance scale in the steps of `steps_base`, where it is not the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_base: Option<f64>,
    /// The step cache.
    pub step_cache: StepCache,
    /// The step cache's threshold; without a step cache it has no meaning, and is 0 unless somebody gave another one
    /// than the defaults.
    pub step_cache_threshold: f64,
    /// The generator that the initial noise matches.
    pub noise: Noise,
    /// The multiprocessors of the card that `noise: cuda` stands for.
    pub noise_multiprocessors: u32,
    /// Whether the VAE works on tiles.
    pub tiling: Tiling,
    /// The settings that this was made from, while the family is not known whose defaults complete them ([`Self::settled`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Box<Settings>>,
}

/// The steps of the distilled samplers: the model was distilled for these four timesteps.
pub const DISTILL_TIMESTEPS: [u32; 4] = [1000, 750, 500, 250];
/// The most steps of the distilled samplers.
pub const MAX_DISTILL_STEPS: u32 = 8;

/// Returns the timesteps of a distilled sampler with another number of steps, evenly from 1000 down, before the shift.
pub fn distill_timesteps(steps: u32) -> Vec<u32> {
    (0..steps).map(|i| (1000 * (steps - i) + steps / 2) / steps).collect()
}

impl Settings {
    /// Returns these settings, with the values of `defaults` where one is missing.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            model: self.model.or(defaults.model),
            lora: self.lora.or(defaults.lora),
            prompt: self.prompt.or(defaults.prompt),
            negative_prompt: self.negative_prompt.or(defaults.negative_prompt),
            seed: self.seed.or(defaults.seed),
            size: self.size.or(defaults.size),
            resize: self.resize.or(defaults.resize),
            frames: self.frames.or(defaults.frames),
            fps: self.fps.or(defaults.fps),
            seconds: self.seconds.or(defaults.seconds),
            last: self.last.or(defaults.last),
            looped: self.looped.or(defaults.looped),
            quality: self.quality.or(defaults.quality),
            sampler: self.sampler.or(defaults.sampler),
            sampler_low: self.sampler_low.or(defaults.sampler_low),
            steps: self.steps.or(defaults.steps),
            steps_high: self.steps_high.or(defaults.steps_high),
            steps_base: self.steps_base.or(defaults.steps_base),
            shift: self.shift.or(defaults.shift),
            shift_low: self.shift_low.or(defaults.shift_low),
            guidance: self.guidance.or(defaults.guidance),
            guidance_low: self.guidance_low.or(defaults.guidance_low),
            guidance_base: self.guidance_base.or(defaults.guidance_base),
            step_cache: self.step_cache.or(defaults.step_cache),
            step_cache_threshold: self.step_cache_threshold.or(defaults.step_cache_threshold),
            noise: self.noise.or(defaults.noise),
            noise_multiprocessors: self.noise_multiprocessors.or(defaults.noise_multiprocessors),
            tiling: self.tiling.or(defaults.tiling),
        }
    }

    /// Fills in the defaults of Wan2.1 image-to-video and checks every value. `draw_seed` is called when no seed is
    /// given.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] that names every value that is out of its range or conflicts with another one.
    pub fn resolve(self, draw_seed: impl FnOnce() -> u64) -> Result<Request, InvalidSetting> {
        self.resolve_for(&Defaults::wan21_i2v(), draw_seed)
    }

    /// Fills in a family's defaults and checks every value. `draw_seed` is called when no seed is given.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] that names every value that is out of its range or conflicts with another one.
    #[expect(clippy::float_cmp, reason = "a default is recognised by being the same number")]
    pub fn resolve_for(
        self,
        defaults: &Defaults,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<Request, InvalidSetting> {
        let sampler = self.sampler.unwrap_or_default();
        let size = self.size.unwrap_or(Size::P480);
        let steps = if sampler.is_distilled() { DISTILL_TIMESTEPS.len() as u32 } else { defaults.steps };
        // A sampler of few steps among others still has few.
        let mixed = self.sampler_low.is_some_and(|low| low.is_distilled() != sampler.is_distilled());
        let steps = if mixed { MAX_DISTILL_STEPS } else { steps };
        let (last, looped) = (self.last.unwrap_or_default(), self.looped.unwrap_or_default());
        let shift = defaults.shift_of(sampler.is_distilled(), size, looped || !last.is_empty());
        let step_cache = self.step_cache.unwrap_or_default();
        // Without a step cache, the threshold of a configuration that only says what the default is has nothing to tell.
        let is_default = |threshold: &f64| StepCache::ALL.iter().any(|cache| cache.threshold() == *threshold);
        let threshold =
            self.step_cache_threshold.filter(|given| step_cache != StepCache::None || !is_default(given));
        let request = Request {
            model: self.model,
            lora: self.lora.unwrap_or_default(),
            prompt: self.prompt.unwrap_or_default(),
            // As in the official code, an empty one says nothing.
            negative_prompt: self
                .negative_prompt
                .filter(|prompt| !prompt.is_empty())
                .unwrap_or_else(|| defaults.negative_prompt.clone()),
            seed: self.seed.unwrap_or_else(draw_seed),
            size,
            resize: self.resize.unwrap_or_default(),
            frames: self.frames.unwrap_or(defaults.frames),
            fps: self.fps.unwrap_or(defaults.fps),
            seconds: self.seconds.unwrap_or_default(),
            last,
            looped,
            quality: self.quality.unwrap_or(18),
            sampler,
            sampler_low: self.sampler_low,
            steps: self.steps.unwrap_or(steps),
            steps_high: self.steps_high,
            steps_base: self.steps_base,
            shift: self.shift.unwrap_or(shift),
            shift_low: self.shift_low,
            guidance: self.guidance.unwrap_or(defaults.guidance_of(sampler.is_distilled())),
            guidance_low: self.guidance_low,
            guidance_base: self.guidance_base,
            step_cache,
            step_cache_threshold: threshold.unwrap_or(step_cache.threshold()),
            noise: self.noise.unwrap_or_default(),
            noise_multiprocessors: self.noise_multiprocessors.unwrap_or(NOISE_MULTIPROCESSORS),
            tiling: self.tiling.unwrap_or_default(),
            open: None,
        };
        request.check()?;
        Ok(request)
    }

    /// Does what [`Self::resolve_for`] does while it is not known of which family the model is: with the defaults of Wan2.1
    /// image-to-video, and in a way that [`Request::settled`] can fill in the right ones.
    ///
    /// # Errors
    /// Those of [`Self::resolve_for`].
    pub fn resolve_open(self, draw_seed: impl FnOnce() -> u64) -> Result<Request, InvalidSetting> {
        let given = Box::new(self.clone());
        Ok(Request { open: Some(given), ..self.resolve(draw_seed)? })
    }
}

impl Request {
    /// Returns the request with the defaults of its model's family where settings were open, with the seed that was drawn; as it
    /// is, if the family has none.
    ///
    /// # Errors
    /// Those of [`Settings::resolve_for`].
    pub fn settled(self, defaults: Option<&Defaults>) -> Result<Self, InvalidSetting> {
        let Self { open, seed, .. } = self;
        match open.zip(defaults) {
            Some((given, defaults)) => given.resolve_for(defaults, || seed),
            None => Ok(Self { open: None, ..self }),
        }
    }

    /// Checks every value, for a request that comes from outside.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] that names every value that is out of its range or conflicts with another one.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let mistakes: Vec<String> = [
            self.model.as_deref().map_or(Ok(()), check_name).map_err(InvalidSetting),
            lora::check(&self.lora),
            ranges::prompt("prompt", &self.prompt),
            ranges::prompt("negative_prompt", &self.negative_prompt),
            ranges::SEED.check(self.seed.into()).map(drop),
            ranges::frames(self.frames.into()).map(drop),
            ranges::FPS.check(self.fps.into()).map(drop),
            ranges::SECONDS.check(self.seconds).map(drop),
            ranges::last(&self.last),
            self.check_ends(),
            ranges::QUALITY.check(self.quality.into()).map(drop),
            ranges::STEPS.check(self.steps.into()).map(drop),
            ranges::NOISE_MULTIPROCESSORS.check(self.noise_multiprocessors.into()).map(drop),
            ranges::SHIFT.check(self.shift).map(drop),
            self.shift_low.map_or(Ok(()), |low| ranges::SHIFT_LOW.check(low).map(drop)),
            ranges::GUIDANCE.check(self.guidance).map(drop),
            self.guidance_low.map_or(Ok(()), |low| ranges::GUIDANCE_LOW.check(low).map(drop)),
            self.guidance_base.map_or(Ok(()), |base| ranges::GUIDANCE_BASE.check(base).map(drop)),
            self.check_steps_high(),
            self.check_base(),
            ranges::STEP_CACHE_THRESHOLD.check(self.step_cache_threshold).map(drop),
            self.check_distilled(),
        ]
        .into_iter()
        .filter_map(Result::err)
        .map(|mistake| mistake.0)
        .collect();
        if mistakes.is_empty() { Ok(()) } else { Err(InvalidSetting(mistakes.join("; "))) }
    }

    /// Checks what the video ends at.
    fn check_ends(&self) -> Result<(), InvalidSetting> {
        if self.looped && !self.last.is_empty() {
            return Err(InvalidSetting(
                "`loop` ends the video at its first picture, and `last` at another one; leave one of them out"
                    .into(),
            ));
        }
        if self.has_last_frame() && self.parts().last().is_some_and(|part| part.frames < 5) {
            return Err(InvalidSetting(
                "a video between two pictures needs `frames` to be at least 5".into(),
            ));
        }
        Ok(())
    }

    /// Checks that the high-noise expert has no more steps than there are.
    fn check_steps_high(&self) -> Result<(), InvalidSetting> {
        match self.steps_high {
            Some(high) if high > self.steps => Err(InvalidSetting(format!(
                "`steps_high` is {high}, and there are {} steps in all; set `steps_high` to at most that, or raise `steps`",
                self.steps
            ))),
            _ => Ok(()),
        }
    }

    /// Checks the steps before the others, and what is only for them.
    fn check_base(&self) -> Result<(), InvalidSetting> {
        ranges::STEPS_BASE.check(self.steps_base().into())?;
        let only_for_them = self.lora.iter().find(|choice| choice.strength_base.is_some());
        match only_for_them.filter(|_| self.steps_base() == 0) {
            Some(choice) => Err(InvalidSetting(format!(
                "`lora` gives `{0}` a strength in the steps of `steps_base`, and there are none: set `steps_base`, or write \
                 `{0}:HIGH:LOW`",
                choice.name
            ))),
            None => Ok(()),
        }
    }

    /// Checks what only the released model's sampler can do.
    fn check_distilled(&self) -> Result<(), InvalidSetting> {
        let name = match self.sampler_low {
            _ if self.sampler.is_distilled() => "sampler",
            Some(low) if low.is_distilled() => "sampler_low",
            _ => return Ok(()),
        };
        if !(1..=MAX_DISTILL_STEPS).contains(&self.steps) {
            return Err(InvalidSetting(format!(
                "`steps` must be from 1 to {MAX_DISTILL_STEPS} for the distilled samplers, not {}; leave `steps` out, or set `{name}` to `unipc`",
                self.steps
            )));
        }
        if self.step_cache != StepCache::None {
            return Err(InvalidSetting(
                "`step_cache` saves nothing in the few steps of a distilled sampler; leave `step_cache` out"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Returns whether one of the samplers takes few steps and the other one many.
    pub fn is_mixed(&self) -> bool {
        self.sampler_low.is_some_and(|low| low.is_distilled() != self.sampler.is_distilled())
    }

    /// Returns the number of steps before the others, which are computed without the `LoRAs`.
    pub fn steps_base(&self) -> u32 {
        self.steps_base.unwrap_or_default()
    }

    /// Returns the number of all steps.
    pub fn total_steps(&self) -> u32 {
        self.steps_base() + self.steps
    }

    /// Returns the number of latent frames: one for the first frame, and one for every four more.
    pub fn latent_frames(&self) -> usize {
        (self.frames as usize - 1) / 4 + 1
    }

    /// Returns whether a given picture is the last frame.
    pub fn has_last_frame(&self) -> bool {
        self.looped || !self.last.is_empty()
    }

    /// Returns what of the video is given, for records: its `first` frame, or `first-and-last`.
    pub fn conditioning(&self) -> &'static str {
        if self.has_last_frame() { "first-and-last" } else { "first" }
    }

    /// Returns whether each step takes a second forward, for the negative prompt; steps before the others have a guidance
    /// of their own.
    #[expect(clippy::float_cmp, reason = "exactly 1 makes the second forward cancel out")]
    pub fn uses_guidance(&self) -> bool {
        self.guidance != 1.0
    }

    /// Returns the number of forwards of all steps, as far as it is known without the model: guidance for the low-noise
    /// transformer alone counts for all, and the steps before the others have the model's own unless they say 1.
    #[expect(clippy::float_cmp, reason = "exactly 1 makes the second forward cancel out")]
    pub fn forwards(&self) -> u32 {
        let each = |guided| if guided { 2 } else { 1 };
        let base = self.guidance_base.is_none_or(|guidance| guidance != 1.0);
        each(base) * self.steps_base() + each(self.uses_guidance()) * self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All keys of a resolved request but the negative prompt, with their values.
    fn resolved(settings: Settings) -> String {
        let request = settings.resolve(|| 7).expect("valid settings");
        assert_eq!(request.negative_prompt, NEGATIVE_PROMPT);
        let value = serde_json::to_value(request).expect("plain data");
        let keys = value.as_object().expect("an object").iter().filter(|(key, _)| *key != "negative_prompt");
        keys.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_and_defaults_do_not_change() {
        // Ledgers, sidecars and scripts use these names.
        assert_eq!(
            resolved(Settings::default()),
            r#"fps=16 frames=81 guidance=5.0 last="" loop=false noise="cuda" noise_multiprocessors=132 prompt="" quality=18 resize="official" sampler="unipc" seconds=0.0 seed=7 shift=3.0 size="480p" step_cache="none" step_cache_threshold=0.0 steps=40 tiling="whole""#
        );
        let distilled =
            Settings { sampler: Some(Sampler::Distill), size: Some(Size::P720), ..Settings::default() };
        assert_eq!(
            resolved(distilled),
            r#"fps=16 frames=81 guidance=1.0 last="" loop=false noise="cuda" noise_multiprocessors=132 prompt="" quality=18 resize="official" sampler="distill" seconds=0.0 seed=7 shift=5.0 size="720p" step_cache="none" step_cache_threshold=0.0 steps=4 tiling="whole""#
        );
        let cached = |step_cache| {
            let settings =
                Settings { step_cache: Some(step_cache), size: Some(Size::P720), ..Settings::default() };
            settings.resolve(|| 7).map(|request| (request.step_cache_threshold, request.shift))
        };
        assert_eq!(cached(StepCache::Teacache), Ok((0.2, 5.0)));
        assert_eq!(cached(StepCache::TeacacheRet), Ok((0.2, 5.0)));
        assert_eq!(cached(StepCache::Magcache), Ok((0.12, 5.0)));
    }

    #[test]
    fn what_is_open_gets_the_defaults_of_its_family() -> Result<(), Box<dyn std::error::Error>> {
        let given = Settings { guidance: Some(5.0), last: Some("b.png".into()), ..Settings::default() };
        let open = given.clone().resolve_open(|| 7)?;
        assert_eq!((open.guidance, open.shift, open.steps), (5.0, 3.0, 40));
        let stored: Request = serde_json::from_value(serde_json::to_value(&open)?)?;
        assert_eq!(stored, open);
        // A value that somebody asked for stays, though it is the default of the other family.
        let family = Defaults::wan22_i2v();
        let settled = stored.settled(Some(&family))?;
        assert_eq!(settled, given.clone().resolve_for(&family, || 7)?);
        assert_eq!((settled.guidance, settled.shift, settled.seed), (5.0, 16.0, 7));
        assert_eq!(open.settled(None)?, given.resolve(|| 7)?);
        // What is settled stays.
        assert_eq!(settled.clone().settled(Some(&Defaults::wan21_i2v()))?, settled);
        Ok(())
    }

    #[test]
    fn a_request_is_read_as_settings_with_every_key_given() -> Result<(), Box<dyn std::error::Error>> {
        let request = Settings::default().resolve(|| 7)?;
        let settings: Settings = serde_json::from_value(serde_json::to_value(&request)?)?;
        assert_eq!(settings.resolve(|| 8)?, request);
        Ok(())
    }
}
