//! The settings of a video as command-line options, which `animd-engine` and `animctl` share.

use animd_protocol::InvalidSetting;
use animd_protocol::given::{self, Given};
use animd_protocol::lora::{self, LoraChoice};
use animd_protocol::request::{Noise, Resize, Sampler, Settings, Size, StepCache, Tiling};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde::de::value::Error;
use serde::de::{DeserializeOwned, IntoDeserializer};

/// A user's settings, as typed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SettingsOptions {
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// Change the model by a LoRA, as strongly as it was trained or STRENGTH times that; in a model of two transformers,
    /// `NAME:HIGH:LOW` for each of them, or `NAME:BASE:HIGH:LOW` for the steps of `steps_base`, too. Several
    /// are added up; `--lora ''` asks for none [default: none]
    #[arg(long, value_name = "NAME[:STRENGTH]", value_parser = loras)]
    pub lora: Option<Vec<Loras>>,
    /// What should happen in the video
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// What to avoid in the video [default: the model's own list, in Chinese]
    #[arg(short, long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// The number that the noise is drawn from; the same seed gives the same video [default: drawn]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = typed("seed", |s| s.seed))]
    pub seed: Option<u64>,
    /// `480p` or `720p` (about so many pixels, in the picture's shape), or `WIDTHxHEIGHT` [default: 480p]
    #[arg(long, value_name = "SIZE", value_parser = typed("size", |s| s.size))]
    pub size: Option<Size>,
    /// How the picture's shape is kept where the size is an area [default: official]
    #[arg(long, value_name = "RULE", value_parser = one_of::<Resize>(RESIZE))]
    pub resize: Option<Resize>,
    /// Frames of the video, 4n+1 [default: 81]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("frames", |s| s.frames))]
    pub frames: Option<u32>,
    /// Frames a second [default: 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("fps", |s| s.fps))]
    pub fps: Option<u32>,
    /// Length of the video; what is longer than `frames` is made in parts [default: as `frames` says]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("seconds", |s| s.seconds))]
    pub seconds: Option<f64>,
    /// End the video at the picture that it starts from
    #[arg(long = "loop", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub looped: Option<bool>,
    /// H.264 quality, from 1 (the best) to 51; 18 looks lossless [default: 18]
    #[arg(long, value_name = "CRF", allow_negative_numbers = true, value_parser = typed("quality", |s| s.quality))]
    pub quality: Option<u32>,
    /// The sampler [default: unipc]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Sampler>(SAMPLER))]
    pub sampler: Option<Sampler>,
    /// The sampler in the steps of the low-noise expert of a model with two [default: as `sampler` says]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Sampler>(SAMPLER), hide_possible_values = true)]
    pub sampler_low: Option<Sampler>,
    /// Denoising steps [default: 40; the distilled samplers take 4, and 1 to 8 if asked]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("steps", |s| s.steps))]
    pub steps: Option<u32>,
    /// Steps of the high-noise expert of a model with two [default: those from timestep 900 on; half of the steps of a
    /// distilled sampler]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("steps_high", |s| s.steps_high))]
    pub steps_high: Option<u32>,
    /// Steps before the others, which the high-noise expert of a model with two computes without the LoRAs and with guidance
    /// [default: none]
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("steps_base", |s| s.steps_base))]
    pub steps_base: Option<u32>,
    /// How far the steps lean towards the noisy end [default: 3 for undistilled Wan2.1 at 480p, 5 otherwise, and 16 between two pictures]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("shift", |s| s.shift))]
    pub shift: Option<f64>,
    /// The shift of the steps of the low-noise expert of a model with two [default: as `shift` says]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("shift_low", |s| s.shift_low))]
    pub shift_low: Option<f64>,
    /// How strongly the prompt is followed; 1 halves the work [default: 5; the distilled samplers take 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("guidance", |s| s.guidance))]
    pub guidance: Option<f64>,
    /// The guidance in the steps of the low-noise expert of a model with two [default: as `guidance` says]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("guidance_low", |s| s.guidance_low))]
    pub guidance_low: Option<f64>,
    /// The guidance in the steps of `steps_base` [default: the model's own, 3.5]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("guidance_base", |s| s.guidance_base))]
    pub guidance_base: Option<f64>,
    /// Which forwards are saved by reusing an earlier one's result [default: none]
    #[arg(long, value_name = "NAME", value_parser = one_of::<StepCache>(STEP_CACHE))]
    pub step_cache: Option<StepCache>,
    /// How much the step cache may err before it computes again [default: 0.2 for `TeaCache`, 0.12 for `MagCache`]
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = typed("step_cache_threshold", |s| s.step_cache_threshold))]
    pub step_cache_threshold: Option<f64>,
    /// Whose random numbers the noise equals, for the same seed [default: cuda]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Noise>(NOISE))]
    pub noise: Option<Noise>,
    /// Multiprocessors of the card whose CUDA noise to match [default: 132, an H200's]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = typed("noise_multiprocessors", |s| s.noise_multiprocessors))]
    pub noise_multiprocessors: Option<u32>,
    /// Whether the VAE works on tiles [default: whole]
    #[arg(long, value_name = "HOW", value_parser = tiling())]
    pub tiling: Option<Tiling>,
}

impl From<SettingsOptions> for Settings {
    fn from(options: SettingsOptions) -> Self {
        let SettingsOptions {
            lora,
            prompt,
            negative_prompt,
            seed,
            size,
            resize,
            frames,
            fps,
            seconds,
            looped,
            quality,
            sampler,
            sampler_low,
            steps,
            steps_high,
            steps_base,
            shift,
            shift_low,
            guidance,
            guidance_low,
            guidance_base,
            step_cache,
            step_cache_threshold,
            noise,
            noise_multiprocessors,
            tiling,
        } = options;
        Self {
            model: None,
            lora: lora.map(|each| each.into_iter().flat_map(|loras| loras.0).collect()),
            prompt,
            negative_prompt,
            seed,
            size,
            resize,
            frames,
            fps,
            seconds,
            // The picture is an option of the commands that take a first one.
            last: None,
            looped,
            quality,
            sampler,
            sampler_low,
            steps,
            steps_high,
            steps_base,
            shift,
            shift_low,
            guidance,
            guidance_low,
            guidance_base,
            step_cache,
            step_cache_threshold,
            noise,
            noise_multiprocessors,
            tiling,
        }
    }
}

/// The `LoRAs` that one option names: none, one, or several with commas between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Loras(Vec<LoraChoice>);

fn loras(text: &str) -> Result<Loras, InvalidSetting> {
    lora::parse(text).map(Loras)
}

/// The names that are a setting's values, each with its meaning.
type Values = &'static [(&'static str, &'static str)];

const RESIZE: Values = &[
    ("official", "The official rule: the picture's own shape, sides rounded to latents"),
    (
        "adaptive",
        "`LightX2V`'s rule: the nearest of three shapes (1:1 and about 16:9 either way), cropped to its centre",
    ),
];

const SAMPLER: Values = &[
    ("unipc", "`UniPC` of order 2, for the released model"),
    (
        "distill",
        "Deterministic Euler over a few steps, four unless asked otherwise, for the step-distilled model",
    ),
    ("distill-renoise", "The distilled model with new noise between its steps"),
];

const STEP_CACHE: Values = &[
    ("none", "None: every forward is computed"),
    ("teacache", "`TeaCache` on the time embedding"),
    ("teacache-ret", "`TeaCache` on the modulation, the first five steps always computed"),
    ("magcache", "`MagCache`"),
];

const NOISE: Values = &[
    ("cuda", "`torch.randn` with a CUDA generator, as the official code and `LightX2V` draw it"),
    ("cpu", "`torch.randn` with a CPU generator, as `ComfyUI` draws it"),
];

const TILING: Values = &[
    ("whole", "Whole"),
    ("tiled", "In tiles: the same video, from at most 2 GiB of memory and with a little more work"),
];

/// Returns the parser for the value of an option that says how the VAE works.
pub fn tiling() -> impl TypedValueParser<Value = Tiling> {
    one_of(TILING)
}

/// Returns a parser that reads the setting `name` as a sidecar or the bus does; `of` takes it out of all settings.
fn typed<T>(
    name: &'static str,
    of: fn(&Settings) -> Option<T>,
) -> impl Fn(&str) -> Result<T, InvalidSetting> + Clone {
    move |word| {
        let mut settings = Settings::default();
        given::set(&mut settings, name, &Given::word(word))?;
        of(&settings).ok_or_else(|| InvalidSetting(format!("`{name}` cannot be `{word}`")))
    }
}

/// Returns a parser that reads a value by its name.
fn one_of<T>(values: Values) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    let values = values.iter().map(|(name, help)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(values)
        .try_map(|name| T::deserialize(IntoDeserializer::<Error>::into_deserializer(name)))
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn command() -> Command {
        SettingsOptions::augment_args(Command::new("test").term_width(100).disable_help_flag(true))
    }

    fn read(arguments: &[&str]) -> Result<Settings, clap::Error> {
        let matches = command().try_get_matches_from(["test"].iter().chain(arguments))?;
        SettingsOptions::from_arg_matches(&matches).map(Settings::from)
    }

    #[test]
    fn names_values_and_defaults_do_not_change() {
        // Scripts use these options; a deliberate change of one must also change the list.
        let text = command().render_long_help().to_string();
        let lines = |text: &str| -> Vec<String> {
            let options = text.lines().skip_while(|line| *line != "Options:");
            options.map(|line| line.trim_end().to_owned()).collect()
        };
        assert_eq!(lines(&text), lines(include_str!("options.txt")), "the list now:\n{text}");
    }

    #[test]
    fn what_is_typed_arrives() -> Result<(), clap::Error> {
        assert_eq!(read(&[])?, Settings::default());
        let typed = [
            "--lora=a:0.5",
            "--lora=b,c:1:0",
            "-p=p",
            "-n=n",
            "-s=1",
            "--size=64x48",
            "--resize=adaptive",
            "--frames=5",
            "--fps=24",
            "--seconds=7.5",
            "--loop",
            "--quality=20",
            "--sampler=distill",
            "--steps=4",
            "--shift=2.5",
            "--guidance=1",
            "--steps-high=2",
            "--steps-base=3",
            "--sampler-low=distill-renoise",
            "--shift-low=1.5",
            "--guidance-low=2",
            "--guidance-base=3.5",
            "--step-cache=teacache-ret",
            "--step-cache-threshold=0.1",
            "--noise=cpu",
            "--noise-multiprocessors=128",
            "--tiling=tiled",
        ];
        let settings = read(&typed)?;
        let expected = Settings {
            model: None,
            lora: Some(vec![
                "a:0.5".parse().expect("a LoRA"),
                "b".parse().expect("a LoRA"),
                "c:1:0".parse().expect("a LoRA"),
            ]),
            prompt: Some("p".into()),
            negative_prompt: Some("n".into()),
            seed: Some(1),
            size: Some(Size::Exact { width: 64, height: 48 }),
            resize: Some(Resize::Adaptive),
            frames: Some(5),
            fps: Some(24),
            seconds: Some(7.5),
            last: None,
            looped: Some(true),
            quality: Some(20),
            sampler: Some(Sampler::Distill),
            steps: Some(4),
            shift: Some(2.5),
            guidance: Some(1.0),
            steps_high: Some(2),
            steps_base: Some(3),
            sampler_low: Some(Sampler::DistillRenoise),
            shift_low: Some(1.5),
            guidance_low: Some(2.0),
            guidance_base: Some(3.5),
            step_cache: Some(StepCache::TeacacheRet),
            step_cache_threshold: Some(0.1),
            noise: Some(Noise::Cpu),
            noise_multiprocessors: Some(128),
            tiling: Some(Tiling::Tiled),
        };
        assert_eq!(settings, expected);
        assert!(read(&["--sampler=euler"]).is_err());
        for (typed, sentence) in [
            (&["--seed", "-1"][..], "`seed` must be a whole number from 0 to "),
            (&["--frames", "80"], "`frames` must be 4n+1, up to 4093; the nearest to 80 is 81"),
            (&["--steps=many"], "`steps` must be a whole number from 1 to 1000, not `many`"),
            (&["--shift=inf"], "`shift` must be a number from 0.01 to 100, not inf"),
            (&["--size=100x100"], "the nearest to 100 is 96"),
        ] {
            let error = read(typed).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}");
        }
        Ok(())
    }

    #[test]
    fn every_value_of_the_contract_has_its_name_here() {
        fn of<T: DeserializeOwned>(values: Values) {
            for (name, _) in values {
                let read: Result<T, Error> = T::deserialize((*name).into_deserializer());
                assert!(read.is_ok(), "{name}");
            }
            let unknown: Result<T, Error> = T::deserialize("?".into_deserializer());
            // The error's sentence lists all names.
            let said = unknown.err().expect("no value is called so").to_string();
            assert_eq!(said.matches('`').count(), 2 * (values.len() + 1), "{said}");
        }
        of::<Resize>(RESIZE);
        of::<Sampler>(SAMPLER);
        of::<StepCache>(STEP_CACHE);
        of::<Noise>(NOISE);
        of::<Tiling>(TILING);
    }
}
