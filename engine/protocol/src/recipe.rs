//! A recipe describes a family of models: its networks and their schemas, which of them denoises when, how the picture
//! conditions the family, and its default settings.
//!
//! Everything that handles a model (plans, profiles, progress, loading, inspection) iterates over its recipe. Another
//! family is another value of the same type.

mod remarks;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::InvalidSetting;
use crate::dims::schema::{self, Expected};
use crate::dims::{ClipConfig, DitConfig, T5Config, VaeConfig};
use crate::request::{Request, Sampler, StepCache};
use crate::schedule::SamplerConfig;
use crate::step_cache::{magcache, teacache};

pub use crate::defaults::{ByArea, Defaults};
pub use crate::expert::{BASE, BASE_NETWORK, ExpertName};

/// The number of timesteps in training, and the timestep of pure noise.
const TIMESTEPS: f64 = 1000.0;
/// The share of the timesteps from which on Wan2.2's high-noise expert computes a step.
const WAN22_BOUNDARY: f64 = 0.9;

/// A kind of network. A profile says for each kind in which precision and place its networks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The diffusion transformer.
    Dit,
    /// The `umT5` text encoder.
    T5,
    /// The CLIP vision tower.
    Clip,
    /// The causal video VAE.
    Vae,
}

impl Component {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Dit, Self::T5, Self::Clip, Self::Vae];

    /// Returns the name of this kind in sentences.
    pub fn title(self) -> &'static str {
        match self {
            Self::Dit => "DiT",
            Self::T5 => "umT5 encoder",
            Self::Clip => "CLIP vision tower",
            Self::Vae => "VAE",
        }
    }
}

/// One network of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network<C> {
    /// Its name in tables: `DiT`, `umT5`.
    pub name: String,
    /// The sizes, from which the tensors follow.
    pub config: C,
}

impl<C> Network<C> {
    /// Returns a network of this name and these sizes.
    pub fn new(name: &str, config: C) -> Self {
        Self { name: name.to_owned(), config }
    }
}

/// A diffusion transformer that computes some of the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expert {
    /// The network.
    pub network: Network<DitConfig>,
    /// The boundary: the expert computes the steps whose timestep is at least this share of 1000 and that no earlier
    /// expert computes. It is 0 for the last expert.
    pub from: f64,
    /// The guidance scale in the expert's steps, where a request has the family's default.
    pub guidance: f64,
}

/// How the picture conditions the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditioning {
    /// The channels of the mask that tells given frames from generated ones; the picture's latents follow them.
    pub mask_channels: usize,
    /// The network that encodes the picture as tokens for the transformer to attend to, in families that have one.
    pub image_encoder: Option<Network<ClipConfig>>,
    /// Whether a second picture can set the end of the video.
    pub last_frame: bool,
}

/// The published figures that step caches decide by. A family without figures for a step cache cannot use it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCaches {
    /// The polynomials of `TeaCache` on the time embedding, highest power first.
    pub teacache: Option<ByArea<Vec<f64>>>,
    /// The polynomials of `TeaCache` on the modulation.
    pub teacache_ret: Option<ByArea<Vec<f64>>>,
    /// The ratios of `MagCache`, one for each step of the published schedule.
    pub magcache: Option<ByArea<Vec<f64>>>,
    /// The ratios of `MagCache` where it decides for each forward, in families with two transformers: with the prompt and
    /// with the negative prompt, one for each step of the published schedule.
    #[serde(default)]
    pub magcache_by_forward: Option<[Vec<f64>; 2]>,
}

/// A family of models, or one member of a family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The name of the family.
    pub family: String,
    /// The diffusion transformers, ordered from the most noise to the least.
    pub experts: Vec<Expert>,
    /// The text encoder.
    pub text_encoder: Network<T5Config>,
    /// How the picture conditions the model.
    pub conditioning: Conditioning,
    /// The autoencoder.
    pub vae: Network<VaeConfig>,
    /// The defaults of a job's settings.
    pub defaults: Defaults,
    /// The published figures that step caches decide by.
    pub step_caches: StepCaches,
}

/// The sizes of a network of any kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sizes<'a> {
    /// The sizes of a diffusion transformer.
    Dit(&'a DitConfig),
    /// The sizes of a text encoder.
    T5(&'a T5Config),
    /// The sizes of a vision tower.
    Clip(&'a ClipConfig),
    /// The sizes of an autoencoder.
    Vae(&'a VaeConfig),
}

/// A network of a recipe, of any kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part<'a> {
    /// The network's name in tables.
    pub name: &'a str,
    /// The network's sizes.
    pub sizes: Sizes<'a>,
}

impl Part<'_> {
    /// Returns the kind of network.
    pub fn component(&self) -> Component {
        match self.sizes {
            Sizes::Dit(_) => Component::Dit,
            Sizes::T5(_) => Component::T5,
            Sizes::Clip(_) => Component::Clip,
            Sizes::Vae(_) => Component::Vae,
        }
    }

    /// Returns the network's tensors.
    pub fn schema(&self) -> Vec<Expected> {
        match self.sizes {
            Sizes::Dit(c) => schema::dit(c),
            Sizes::T5(c) => schema::t5(c),
            Sizes::Clip(c) => schema::clip(c),
            Sizes::Vae(c) => schema::vae(c),
        }
    }
}

impl Recipe {
    /// Returns the recipe of Wan2.1 image-to-video with networks of these sizes; of Wan2.1 first-and-last-frame if the
    /// transformer has positions for two pictures.
    pub fn wan21_i2v(dit: DitConfig, t5: T5Config, clip: ClipConfig, vae: VaeConfig) -> Self {
        let last_frame = dit.image_positions.is_some();
        let (family, defaults) = match last_frame {
            true => ("Wan2.1 first-and-last-frame", Defaults::wan21_flf2v()),
            false => ("Wan2.1 image-to-video", Defaults::wan21_i2v()),
        };
        let guidance = defaults.guidance;
        Self {
            family: family.into(),
            experts: vec![Expert { network: Network::new("DiT", dit), from: 0.0, guidance }],
            text_encoder: Network::new("umT5", t5),
            conditioning: Conditioning {
                mask_channels: 4,
                image_encoder: Some(Network::new("CLIP", clip)),
                last_frame,
            },
            vae: Network::new("VAE", vae),
            defaults,
            step_caches: StepCaches::wan21_i2v(),
        }
    }

    /// Returns the recipe of Wan2.1-I2V-14B, as released for 480P and 720P.
    pub fn wan21_i2v_14b() -> Self {
        let dit = dit_14b();
        let t5 = T5Config {
            dim: 4096,
            rows: 256_384,
            heads: 64,
            inner: 4096,
            ffn_dim: 10_240,
            layers: 24,
            buckets: 32,
        };
        let clip = ClipConfig { dim: 1280, patch: 14, image_size: 224, heads: 16, mlp_dim: 5120, layers: 32 };
        let vae = VaeConfig { base: 96, z_dim: 16, multipliers: vec![1, 2, 4, 4] };
        Self::wan21_i2v(dit, t5, clip, vae)
    }

    /// Returns the recipe of the first-and-last-frame model whose networks have the sizes of this image-to-video model, which takes
    /// pictures by an image encoder; any other recipe as it is.
    #[must_use]
    pub fn between_two_pictures(self) -> Self {
        match (&self.experts[..], &self.conditioning.image_encoder) {
            ([expert], Some(clip)) => {
                let clip = clip.config.clone();
                let positions = Some(2 * clip.tokens());
                let dit = DitConfig { image_positions: positions, ..expert.network.config.clone() };
                Self::wan21_i2v(dit, self.text_encoder.config, clip, self.vae.config)
            }
            _ => self,
        }
    }

    /// Returns the recipe of Wan2.2 image-to-video with networks of these sizes; the experts are the high-noise and the
    /// low-noise one.
    pub fn wan22_i2v(experts: [DitConfig; 2], t5: T5Config, vae: VaeConfig) -> Self {
        let defaults = Defaults::wan22_i2v();
        let from = [WAN22_BOUNDARY, 0.0];
        let experts = ExpertName::ALL.into_iter().zip(experts).zip(from);
        let expert = |((name, config), from): ((ExpertName, _), _)| Expert {
            network: Network::new(name.network(), config),
            from,
            guidance: defaults.guidance,
        };
        Self {
            family: "Wan2.2 image-to-video".into(),
            experts: experts.map(expert).collect(),
            text_encoder: Network::new("umT5", t5),
            conditioning: Conditioning { mask_channels: 4, image_encoder: None, last_frame: true },
            vae: Network::new("VAE", vae),
            defaults,
            step_caches: StepCaches::wan22_i2v(),
        }
    }

    /// Returns the recipe of Wan2.2-I2V-A14B, as released.
    pub fn wan22_i2v_a14b() -> Self {
        let expert = DitConfig { image_dim: None, ..dit_14b() };
        let Self { text_encoder, vae, .. } = Self::wan21_i2v_14b();
        Self::wan22_i2v([expert.clone(), expert], text_encoder.config, vae.config)
    }

    /// Returns the recipe of a Wan2.1 image-to-video model that is smaller than any that somebody would use. What it takes,
    /// every model of the family takes.
    pub fn wan21_i2v_least() -> Self {
        let dit = DitConfig {
            dim: 128,
            ffn_dim: 128,
            freq_dim: 256,
            in_dim: 36,
            out_dim: 16,
            num_heads: 1,
            num_layers: 1,
            eps: 1e-6,
            text_len: 1,
            text_dim: 8,
            image_dim: Some(8),
            image_positions: None,
        };
        let t5 = T5Config { dim: 8, rows: 8, heads: 1, inner: 8, ffn_dim: 8, layers: 1, buckets: 32 };
        let clip = ClipConfig { dim: 8, patch: 14, image_size: 14, heads: 1, mlp_dim: 8, layers: 1 };
        let vae = VaeConfig { base: 8, z_dim: 16, multipliers: vec![1, 2, 4, 4] };
        Self::wan21_i2v(dit, t5, clip, vae)
    }

    /// Returns all networks: the experts, the text encoder, the image encoder if there is one, the autoencoder.
    pub fn networks(&self) -> impl Iterator<Item = Part<'_>> {
        let part = |name, sizes| Part { name, sizes };
        let experts = self.experts.iter().map(|e| &e.network);
        let experts = experts.map(move |n| part(n.name.as_str(), Sizes::Dit(&n.config)));
        let text = part(&self.text_encoder.name, Sizes::T5(&self.text_encoder.config));
        let image = self.conditioning.image_encoder.as_ref();
        let image = image.map(|n| part(n.name.as_str(), Sizes::Clip(&n.config)));
        let vae = part(&self.vae.name, Sizes::Vae(&self.vae.config));
        experts.chain([text]).chain(image).chain([vae])
    }

    /// Returns the number of channels that a transformer reads: the noisy latents, the mask, the picture's latents.
    pub fn input_channels(&self) -> usize {
        2 * self.vae.config.z_dim + self.conditioning.mask_channels
    }

    /// Returns the number of the pictures' tokens that the transformers attend to.
    pub fn image_tokens(&self) -> usize {
        let pictures = if self.needs_last_frame() { 2 } else { 1 };
        self.conditioning.image_encoder.as_ref().map_or(0, |n| pictures * n.config.tokens())
    }

    /// Returns whether the family makes no video without a last picture: its transformers attend to the tokens of two.
    pub fn needs_last_frame(&self) -> bool {
        self.experts.iter().any(|expert| expert.network.config.image_positions.is_some())
    }

    /// Returns the steps of a request. The low-noise expert of a model with two can have a sampler and a shift of its own: its
    /// steps are then the last ones of its own schedule.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] for a schedule that a checked request does not have.
    pub fn sampler(&self, request: &Request) -> Result<SamplerConfig, InvalidSetting> {
        let steps = request.total_steps();
        let first = SamplerConfig::of(request.sampler, steps, request.shift)?;
        let high = self.steps_before_low(request);
        if self.experts.len() < 2 || high == first.timesteps().len() {
            return Ok(first);
        }
        let (sampler, shift) =
            (request.sampler_low.unwrap_or(request.sampler), request.shift_low.unwrap_or(request.shift));
        Ok(first.then(high, SamplerConfig::of(sampler, steps, shift)?))
    }

    /// Returns, for each step of a request, the index of the expert that computes it.
    ///
    /// The released experts take turns by the timestep. Those of step-distilled models do so by the number of the step, half
    /// of them each, whatever the timesteps are; and `steps_high` says so for any sampler. The steps of `steps_base` come before
    /// these, and are computed by the expert [`BASE`] of the job's recipe.
    pub fn step_experts(&self, request: &Request) -> Vec<usize> {
        // A resolved request has a schedule.
        let schedule = SamplerConfig::of(request.sampler, request.total_steps(), request.shift);
        let timesteps = schedule.map(|sampler| sampler.timesteps().to_vec()).unwrap_or_default();
        let several = self.experts.len() > 1;
        let distilled = (request.sampler != Sampler::Unipc).then(|| request.steps.div_ceil(2));
        let base = if several { request.steps_base() as usize } else { 0 };
        let high = request.steps_high.or(distilled).filter(|_| several).map(|steps| base + steps as usize);
        let expert = |(step, timestep)| match high {
            _ if step < base => BASE,
            Some(high) => usize::from(step >= high),
            None => self.expert_at(timestep),
        };
        timesteps.into_iter().enumerate().map(expert).collect()
    }

    /// Returns the number of steps before those of the low-noise expert.
    pub fn steps_before_low(&self, request: &Request) -> usize {
        let low = ExpertName::LowNoise.index();
        self.step_experts(request).iter().take_while(|expert| **expert != low).count()
    }

    /// Returns the recipe of a job: with the expert [`BASE`] if the job begins with steps of it, and without it otherwise. That
    /// is the high-noise expert once more, with weights of its own, so that plans, loading and progress count three.
    pub fn of_job(&self, request: &Request) -> Cow<'_, Self> {
        let wanted = if request.steps_base() > 0 { BASE + 1 } else { BASE };
        let there = self.experts.len();
        if there < BASE || there == wanted {
            return Cow::Borrowed(self);
        }
        let mut recipe = self.clone();
        recipe.experts.truncate(BASE);
        if wanted > BASE {
            let high = &self.experts[ExpertName::HighNoise.index()];
            let network = Network::new(BASE_NETWORK, high.network.config.clone());
            recipe.experts.push(Expert { network, ..high.clone() });
        }
        Cow::Owned(recipe)
    }

    /// Returns the index of the expert that computes a step with this timestep.
    pub fn expert_at(&self, timestep: f64) -> usize {
        let at = self.experts.iter().position(|e| timestep >= e.from * TIMESTEPS);
        at.unwrap_or(self.experts.len().saturating_sub(1))
    }

    /// Returns the guidance scale in an expert's steps: the expert's own where the request has the family's default. The last
    /// of several experts has `guidance_low`, if that is given, and else what its own sampler asks for.
    #[expect(clippy::float_cmp, reason = "a default is recognised by being the same number")]
    pub fn guidance(&self, expert: usize, request: &Request) -> f64 {
        if expert == BASE {
            let own = self.experts.first().map_or(self.defaults.guidance, |high| high.guidance);
            return request.guidance_base.unwrap_or(own);
        }
        if let Some(low) = request.guidance_low.filter(|_| expert > 0) {
            return low;
        }
        match request
            .sampler_low
            .filter(|low| expert > 0 && low.is_distilled() != request.sampler.is_distilled())
        {
            Some(low) if low.is_distilled() => return self.defaults.distilled_guidance,
            Some(_) => return self.experts.get(expert).map_or(self.defaults.guidance, |e| e.guidance),
            None => {}
        }
        let default = request.sampler == Sampler::Unipc && request.guidance == self.defaults.guidance;
        self.experts.get(expert).filter(|_| default).map_or(request.guidance, |e| e.guidance)
    }

    /// Returns whether the steps take a second forward, for the negative prompt.
    #[expect(clippy::float_cmp, reason = "exactly 1 makes the second forward cancel out")]
    pub fn uses_guidance(&self, request: &Request) -> bool {
        let base = (request.steps_base() > 0).then_some(BASE);
        let mut experts = (0..self.experts.len().min(BASE)).chain(base);
        experts.any(|expert| self.guidance(expert, request) != 1.0)
    }

    /// Returns the number of forwards that a step of an expert takes: two with guidance, for the negative prompt.
    #[expect(clippy::float_cmp, reason = "exactly 1 makes the second forward cancel out")]
    pub fn branches(&self, expert: usize, request: &Request) -> usize {
        if self.guidance(expert, request) == 1.0 { 1 } else { 2 }
    }

    /// Refuses settings that the family does not support.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] that names the setting and what would do.
    pub fn check(&self, request: &Request) -> Result<(), InvalidSetting> {
        let has = match request.step_cache {
            StepCache::None => true,
            StepCache::Teacache => self.step_caches.teacache.is_some(),
            StepCache::TeacacheRet => self.step_caches.teacache_ret.is_some(),
            StepCache::Magcache => {
                self.step_caches.magcache.is_some() || self.step_caches.magcache_by_forward.is_some()
            }
        };
        if !has {
            return Err(InvalidSetting(format!(
                "the step cache has no figures for {}; leave `step_cache` out, or use a model that it has some for",
                self.family
            )));
        }
        self.check_last_frame(request)?;
        self.check_sampler_low(request)?;
        self.check_base(request)?;
        self.check_levels(request)
    }

    /// Refuses a sampler of few steps beside one of many for a family with one transformer: the number of steps is that of both,
    /// and one of them computes nothing.
    fn check_sampler_low(&self, request: &Request) -> Result<(), InvalidSetting> {
        if self.experts.len() >= BASE || !request.is_mixed() {
            return Ok(());
        }
        Err(InvalidSetting(format!(
            "{} has one transformer, and `sampler_low` is for models with two, such as Wan2.2-I2V-A14B; leave `sampler_low` out, or set it \
             to what `sampler` is",
            self.family
        )))
    }

    /// Refuses steps before the others that the high-noise transformer does not compute.
    fn check_base(&self, request: &Request) -> Result<(), InvalidSetting> {
        let base = request.steps_base();
        if base == 0 {
            return Ok(());
        }
        if self.experts.len() < BASE {
            return Err(InvalidSetting(format!(
                "{} has one transformer, and `steps_base` is for models with two, such as Wan2.2-I2V-A14B; set it to 0",
                self.family
            )));
        }
        let sampler = SamplerConfig::of(request.sampler, request.total_steps(), request.shift)?;
        let noisy = sampler.timesteps().iter().filter(|t| self.expert_at(**t) == 0).count();
        let follows_noise = request.sampler == Sampler::Unipc && request.steps_high.is_none();
        if follows_noise && base as usize > noisy {
            return Err(InvalidSetting(format!(
                "`steps_base` is {base}, and the high-noise transformer computes {noisy} of these steps; lower `steps_base`, or \
                 raise `steps` or `shift`"
            )));
        }
        Ok(())
    }

    /// Refuses a change of experts at which the noise would have to grow.
    fn check_levels(&self, request: &Request) -> Result<(), InvalidSetting> {
        let sampler = self.sampler(request)?;
        let (sigmas, high) = (sampler.sigmas(), self.steps_before_low(request));
        match sigmas.get(high.wrapping_sub(1)).zip(sigmas.get(high)) {
            Some((before, after)) if after >= before => Err(InvalidSetting(format!(
                "the high-noise expert's last step begins at a noise level of {before:.3}, and with `shift_low` {} the \
                 low-noise expert would begin at {after:.3}, which must be less: lower `shift_low`, or leave it out",
                request.shift_low.unwrap_or(request.shift)
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a last picture for a family that cannot aim at one, and none for a family that cannot do without.
    fn check_last_frame(&self, request: &Request) -> Result<(), InvalidSetting> {
        let family = &self.family;
        let refuse = |why: String| Err(InvalidSetting(why));
        match (self.conditioning.last_frame, request.has_last_frame()) {
            (false, true) => refuse(format!(
                "{family} cannot end at a given picture; leave `last` and `loop` out, or use a model that can, such as \
                 Wan2.1-FLF2V-14B-720P or Wan2.2-I2V-A14B"
            )),
            (true, false) if self.needs_last_frame() => refuse(format!(
                "{family} makes a video between two pictures and needs the second one: give `last`, or set `loop` to true; or \
                 use an image-to-video model"
            )),
            (true, true) if self.needs_last_frame() && request.parts().len() > 1 => refuse(format!(
                "{family} needs a last picture in every part of a longer video, and only the last part has one; leave \
                 `seconds` out, or use a model that can continue, such as Wan2.2-I2V-A14B"
            )),
            _ => Ok(()),
        }
    }
}

/// Returns the sizes of the transformer of Wan2.1-I2V-14B.
fn dit_14b() -> DitConfig {
    DitConfig {
        dim: 5120,
        ffn_dim: 13_824,
        freq_dim: 256,
        in_dim: 36,
        out_dim: 16,
        num_heads: 40,
        num_layers: 40,
        eps: 1e-6,
        text_len: 512,
        text_dim: 4096,
        image_dim: Some(1280),
        image_positions: None,
    }
}

impl StepCaches {
    /// Returns the figures published for Wan2.1 image-to-video.
    pub fn wan21_i2v() -> Self {
        let teacache = |ret| ByArea {
            p480: teacache::coefficients(true, ret).to_vec(),
            p720: teacache::coefficients(false, ret).to_vec(),
        };
        let magcache =
            ByArea { p480: magcache::ratios(true).to_vec(), p720: magcache::ratios(false).to_vec() };
        Self {
            teacache: Some(teacache(false)),
            teacache_ret: Some(teacache(true)),
            magcache: Some(magcache),
            magcache_by_forward: None,
        }
    }

    /// Returns the figures published for Wan2.2 image-to-video.
    pub fn wan22_i2v() -> Self {
        let ratios = magcache::WAN22_RATIOS.map(|branch| branch.to_vec());
        Self { magcache_by_forward: Some(ratios), ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
