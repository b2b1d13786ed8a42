//! First and last frame: the conditioning, which all families share, and Wan2.1-FLF2V's transformer.

use animd_engine::backend::cpu::Cpu;
use animd_engine::backend::{Backend, Keeping, TensorOps};
use animd_engine::image::{self, Picture};
use animd_engine::model::clip::Clip;
use animd_engine::model::dit::{Blocks, Context, Dit, Inputs};
use animd_engine::model::vae::{self, Footage, Vae};
use animd_engine::progress::Quiet;
use animd_engine::sampler::{self, Guidance, SamplerConfig, schedule};
use animd_engine::weights::{open_clip, open_dit, open_vae};
use animd_protocol::profile::AttentionKind;
use animd_protocol::recipe::Defaults;
use anyhow::{Context as _, Result};

use super::{ABSOLUTE, Goldens, LATENTS, MODEL};

type Tensor = <Cpu as TensorOps>::Tensor;

/// Checks `flf.*` and `flf21.*`. Last frames of another size are cut by rules that animd does not follow, because they distort
/// or pad the picture: what the references made of them is taken as given, and what follows from it is checked.
pub fn check(goldens: &mut Goldens) -> Result<()> {
    let b = Cpu::new();
    let loader = b.loader(Keeping::F32);
    let (folder, shared) = (goldens.dir.join("flf2v"), goldens.dir.join("official"));
    let (weights, config) = open_vae(&shared)?;
    let vae = Vae::load(&loader, &weights, &config)?;
    let y = conditioning(goldens, &b, &vae)?;

    let (weights, config) = open_clip(&folder)?;
    let clip = Clip::load(&loader, &weights, &config)?;
    let (weights, config) = open_dit(&folder)?;
    let dit = Dit::load(&loader, &weights, &config).context("the transformer")?;
    let images = clip_tokens(goldens, &b, &clip)?;
    other_sizes(goldens, &b, &vae, &clip)?;
    forward(goldens, &b, &dit)?;
    sampling(goldens, &b, &dit, &y, &images)
}

/// Returns a picture of the fixture.
fn picture(goldens: &Goldens, which: &str) -> Result<Picture> {
    Ok(image::decode(&goldens.dir.join(goldens.text(&format!("images/files/{which}/file"))?))?)
}

/// Checks `flf.last_frame`, `flf.y`; returns the engine's own conditioning.
fn conditioning(goldens: &mut Goldens, b: &Cpu, vae: &Vae<Cpu>) -> Result<Tensor> {
    let [first, last] = ["first", "last"].map(|which| picture(goldens, which));
    let (first, last) = (first?, last?);
    let area = goldens.count("images/max_area")? as u32;
    let (lat_h, lat_w) = image::official(first.width, first.height, area)?;
    let (h, w) = (lat_h as usize * 8, lat_w as usize * 8);
    let [first, last] = [first, last].map(|picture| image::bicubic(&picture, h, w));
    goldens.relative("flf.last_frame", &last, MODEL)?;
    let (first, last) = (b.upload(&first, &[3, 1, h, w])?, b.upload(&last, &[3, 1, h, w])?);
    let footage =
        Footage::Picture { picture: &first, last: Some(&last), latent_frames: latent_frames(goldens)? };
    let mut mu = Vec::new();
    let mut probe = |name: &str, t: &Tensor| {
        if name == "enc.mu" {
            mu.push(t.clone());
        }
    };
    let latents = vae.encode(b, footage, None, &Quiet, Some(&mut probe))?;
    for mu in mu {
        goldens.relative("flf.mu", &b.download(&mu)?, MODEL)?;
    }
    let y = vae::condition(b, &latents, true)?;
    goldens.relative("flf.y", &b.download(&y)?, MODEL)?;
    Ok(y)
}

fn latent_frames(goldens: &Goldens) -> Result<usize> {
    Ok((goldens.count("images/frames")? - 1) / 4 + 1)
}

/// Checks `flf.other.*.y` from the references' own last frames, and CLIP of the picture.
fn other_sizes(goldens: &mut Goldens, b: &Cpu, vae: &Vae<Cpu>, clip: &Clip<Cpu>) -> Result<()> {
    let first = picture(goldens, "first")?;
    for rule in ["official", "lightx2v"] {
        let name = format!("flf.other.{rule}.last_frame");
        goldens.given(&format!("images/other_cropped_hw/{rule}"))?;
        let last = goldens.taken(&name)?;
        let (h, w) = (last.shape[1], last.shape[2]);
        let first = b.upload(&image::bicubic(&first, h, w), &[3, 1, h, w])?;
        let last = b.upload(&last.f32(), &[3, 1, h, w])?;
        let footage =
            Footage::Picture { picture: &first, last: Some(&last), latent_frames: latent_frames(goldens)? };
        let y = vae::condition(b, &vae.encode(b, footage, None, &Quiet, None)?, true)?;
        goldens.relative(&format!("flf.other.{rule}.y"), &b.download(&y)?, MODEL)?;
    }
    // LightX2V shows CLIP the whole picture, which checks a picture of another shape; animd shows CLIP what the video ends with.
    let tokens = clip.encode(b, &image::clip_pixels(&picture(goldens, "other")?), None)?;
    let every = b.shape(&tokens)[0].div_ceil(goldens.get("flf21.clip.other_lightx2v_rows")?.shape[0]);
    let rows: Vec<f32> =
        b.download(&tokens)?.chunks(b.shape(&tokens)[1]).step_by(every).flatten().copied().collect();
    goldens.relative("flf21.clip.other_lightx2v_rows", &rows, MODEL)?;
    goldens.taken("flf21.clip.other_official_rows")?;
    Ok(())
}

/// Checks `flf21.clip.out`; returns the tokens of both pictures.
fn clip_tokens(goldens: &mut Goldens, b: &Cpu, clip: &Clip<Cpu>) -> Result<Tensor> {
    let tokens = ["first", "last"].map(|which| -> Result<Tensor> {
        Ok(clip.encode(b, &image::clip_pixels(&picture(goldens, which)?), None)?)
    });
    let [first, last] = tokens;
    let both = b.concat(&[&first?, &last?], 0)?;
    goldens.relative("flf21.clip.out", &b.download(&both)?, MODEL)?;
    Ok(both)
}

/// Returns the context of a golden text with image tokens.
fn context(goldens: &Goldens, b: &Cpu, dit: &Dit<Cpu>, text: &str, images: &Tensor) -> Result<Context<Cpu>> {
    let text = goldens.get(text)?;
    Ok(dit.context(b, &b.upload(&text.f32(), &text.shape)?, Some(images))?)
}

/// Checks `flf21.dit.*`: one forward from golden inputs.
fn forward(goldens: &mut Goldens, b: &Cpu, dit: &Dit<Cpu>) -> Result<()> {
    let golden = |goldens: &Goldens, key: &str| -> Result<(Vec<f32>, Vec<usize>)> {
        let golden = goldens.get(goldens.text(&format!("flf21/dit/{key}"))?)?;
        Ok((golden.f32(), golden.shape.clone()))
    };
    let ((x, shape), (y, y_shape)) = (golden(goldens, "x")?, golden(goldens, "y")?);
    let (clip, clip_shape) = golden(goldens, "clip")?;
    let images = b.upload(&clip, &[clip_shape[0] * clip_shape[1], clip_shape[2]])?;
    let text = goldens.text("flf21/dit/context")?.to_owned();
    let context = context(goldens, b, dit, &text, &images)?;
    let time = dit.time(b, goldens.real("flf21/dit/t")?)?;
    for key in ["x", "y", "context", "clip", "t"] {
        goldens.given(&format!("flf21/dit/{key}"))?;
    }
    let every = goldens.count("flf21/rows")?;
    goldens.given("flf21/rows")?;
    let grid = dit.grid(b, shape[1], shape[2], shape[3])?;
    let (x, y) = (b.upload(&x, &shape)?, b.upload(&y, &y_shape)?);
    let inputs =
        Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention: AttentionKind::Exact };
    let mut parts = Vec::new();
    let mut probe = |name: &str, t: &Tensor| parts.push((name.to_owned(), t.clone()));
    dit.forward(b, &inputs, Blocks::Compute { keep_residual: false }, &Quiet, Some(&mut probe))?;
    for (part, tensor) in parts {
        let values = b.download(&tensor)?;
        let name = format!("flf21.dit.{part}");
        if part == "context_img" {
            let width = b.shape(&tensor)[1];
            let rows: Vec<f32> = values.chunks(width).step_by(every).flatten().copied().collect();
            goldens.relative("flf21.dit.context_img_rows", &rows, MODEL)?;
        } else if goldens.has(&name) {
            goldens.relative(&name, &values, MODEL)?;
        }
    }
    Ok(())
}

/// Checks `flf21.unipc.*`: a run from the engine's own conditioning and the golden texts.
fn sampling(goldens: &mut Goldens, b: &Cpu, dit: &Dit<Cpu>, y: &Tensor, images: &Tensor) -> Result<()> {
    let prompts = |goldens: &Goldens, wanted: &str| -> Result<usize> {
        let count = goldens.len("tokenizer/prompts")?;
        (0..count)
            .find(|i| goldens.text(&format!("tokenizer/prompts/{i}/raw")).is_ok_and(|raw| raw == wanted))
            .context("a prompt of the run is not among the prompts")
    };
    let negative = goldens.text("flf21/negative")?.to_owned();
    for path in ["flf21/negative", "prompt_rules/flf21_default_negative"] {
        goldens.fact(path, Defaults::wan21_flf2v().negative_prompt)?;
    }
    let positive = prompts(goldens, goldens.text("flf21/prompt")?)?;
    let negative = prompts(goldens, &negative)?;
    let [positive, negative] =
        [positive, negative].map(|i| context(goldens, b, dit, &format!("t5.{i}.out"), images));
    let contexts = [positive?, negative?];
    let noise = goldens.get("noise")?;
    let (noise, shape) = (noise.f32(), noise.shape.clone());
    let grid = dit.grid(b, shape[1], shape[2], shape[3])?;
    let velocity = |x: &Tensor, t: f64, branch: usize| -> animd_engine::Result<Tensor> {
        let time = dit.time(b, t)?;
        let inputs = Inputs {
            x,
            y,
            time: &time,
            context: &contexts[branch],
            grid: &grid,
            attention: AttentionKind::Exact,
        };
        Ok(dit.forward(b, &inputs, Blocks::Compute { keep_residual: false }, &Quiet, None)?.velocity)
    };
    let guide = Guidance { scale: goldens.real("flf21/guide")? };
    let schedule = schedule::unipc(goldens.count("flf21/steps")?, goldens.real("flf21/shift")?);
    let mut trajectory = vec![noise.clone()];
    let mut guided = |_: usize, x: &Tensor, t: f64| guide.apply(b, &velocity(x, t, 0)?, &velocity(x, t, 1)?);
    let mut after = |_: usize, x: &Tensor| {
        trajectory.push(b.download(x)?);
        Ok(())
    };
    let config = SamplerConfig::unipc(schedule.clone());
    sampler::run(b, &config, b.upload(&noise, &shape)?, &mut guided, &mut Vec::new, &mut after)?;
    goldens.relative("flf21.unipc.latents", &trajectory.concat(), LATENTS)?;
    for (i, latents) in trajectory.iter().enumerate() {
        goldens.number(&format!("flf21/latent_std/{i}"), super::goldens::std(latents), LATENTS)?;
    }
    // Each forward at the golden latents, so that no error of an earlier step is in it.
    let golden = goldens.get("flf21.unipc.latents")?.f32();
    let mut outputs = Vec::new();
    for (latents, &t) in golden.chunks(shape.iter().product()).zip(&schedule.timesteps) {
        outputs.extend(b.download(&velocity(&b.upload(latents, &shape)?, t as f64, 0)?)?);
    }
    goldens.relative("flf21.unipc.cond", &outputs, MODEL)?;
    for given in
        ["model", "image", "last_image", "prompt", "seed", "frames", "max_area", "steps", "shift", "guide"]
    {
        goldens.given(&format!("flf21/{given}"))?;
    }
    let defaults = Defaults::wan21_flf2v();
    goldens.near("flf21/shift", *defaults.shift.of("720p".parse()?), ABSOLUTE)
}
