//! A model with exchanged `LoRA`s is the one that was loaded with them, to the bit.

use std::path::Path;
use std::sync::Arc;

use animd_protocol::dims::DitConfig;
use animd_protocol::plan::Setup;
use animd_protocol::profile::AttentionKind;
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Sampler, Settings, Size};

use super::super::adapters::{Adapters, Shared};
use super::*;
use crate::backend::TensorOps;
use crate::backend::cpu::Cpu;
use crate::image::Picture;
use crate::model::dit::{Blocks, Inputs};
use crate::pipeline::Job;
use crate::progress::Quiet;
use crate::synth::{self, Family, Source};
use crate::weights::{DType, made_up_lora};

type Tested = std::result::Result<(), Box<dyn std::error::Error>>;

fn pipeline() -> Result<Pipeline<Cpu>> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official");
    Pipeline::open(Cpu::new(), &Setup::CPU, &model, None, None)
}

fn choices(text: &str) -> Result<Vec<LoraChoice>> {
    Ok(animd_protocol::lora::parse(text)?)
}

/// Returns what the transformer computes from made-up inputs, after everything that is to be loaded is loaded.
fn velocity(pipeline: &mut Pipeline<Cpu>) -> Result<Vec<f32>> {
    let size = Size::Exact { width: 32, height: 32 };
    let request = Settings { size: Some(size), frames: Some(1), ..Settings::default() }.resolve(|| 1)?;
    let picture = Picture { width: 32, height: 32, rgb: vec![128; 32 * 32 * 3] };
    pipeline.prepare(&Job::new(&picture, request)?, &Quiet)?;
    let parts = pipeline.parts()?;
    let (b, dit, config) = (parts.backend, parts.models.expert(0)?, &parts.recipe.experts[0].network.config);
    let noise =
        |name: &str, shape: &[usize]| b.upload(&synth::noise(1, name, 1.0, shape.iter().product()), shape);
    let image = config.image_dim.map(|dim| noise("image", &[257, dim])).transpose()?;
    let context = &dit.context(b, &noise("text", &[5, config.text_dim])?, image.as_ref())?;
    let (time, grid) = (&dit.time(b, 500.0)?, &dit.grid(b, 1, 4, 4)?);
    let (x, y) = (&noise("x", &[16, 1, 4, 4])?, &noise("y", &[20, 1, 4, 4])?);
    let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
    let blocks = Blocks::Compute { keep_residual: false };
    b.download(&dit.forward(b, &inputs, blocks, &Quiet, None)?.velocity)
}

/// Writes two `LoRA`s that change every kind of tensor, some of them both.
fn two(folder: &Path) -> [PathBuf; 2] {
    let square = [256, 256];
    let first = made_up_lora::write(
        folder,
        "first.safetensors",
        &[
            ("blocks.0.self_attn.k", square),
            ("blocks.1.cross_attn.v_img", square),
            ("blocks.2.ffn.2", [256, 512]),
            ("text_embedding.0", [256, 64]),
            ("time_projection.1", [6 * 256, 256]),
            ("img_emb.proj.1", [160, 160]),
        ],
        &[
            ("blocks.0.norm3.diff", 256),
            ("blocks.1.diff_m", 6 * 256),
            ("blocks.2.self_attn.norm_q.diff", 256),
            ("blocks.2.cross_attn.norm_k_img.diff", 256),
            ("head.head.diff_b", 64),
            ("head.diff_m", 2 * 256),
            ("img_emb.proj.4.diff_b", 256),
            ("patch_embedding.diff", 256 * 144),
        ],
        1,
    );
    let second = made_up_lora::write(
        folder,
        "second.safetensors",
        &[("blocks.0.self_attn.k", square), ("blocks.1.ffn.0", [512, 256])],
        &[("blocks.0.norm3.diff_b", 256)],
        2,
    );
    [first, second]
}

#[test]
fn exchanged_loras_leave_no_trace() -> Tested {
    let folder = tempfile::tempdir()?;
    let [first, second] = two(folder.path());
    let sets: [(&str, Vec<PathBuf>); 5] = [
        ("first:0.5", vec![first.clone()]),
        ("first:0.5, second", vec![first.clone(), second.clone()]),
        ("second, first:-1", vec![second.clone(), first.clone()]),
        ("", vec![]),
        ("second:0", vec![second]),
    ];
    let mut exchanged = pipeline()?;
    let plain = velocity(&mut exchanged)?;
    let mut before = plain.clone();
    for (text, files) in sets {
        let wanted = choices(text)?;
        exchanged.adapt(&wanted, &files)?;
        let now = velocity(&mut exchanged)?;
        let mut fresh = pipeline()?;
        fresh.adapt(&wanted, &files)?;
        assert!(now == velocity(&mut fresh)?, "`{text}` is not what a fresh model has");
        let is_plain = matches!(text, "" | "second:0");
        assert_eq!(now == plain, is_plain, "`{text}` has the plain model's result, or has not");
        assert!(is_plain || now != before, "`{text}` changes nothing");
        before = now;
    }
    Ok(())
}

#[test]
fn only_what_differs_is_loaded_again() -> Tested {
    let folder = tempfile::tempdir()?;
    let [first, second] = two(folder.path());
    let mut pipeline = pipeline()?;
    velocity(&mut pipeline)?;
    let stale = |pipeline: &Pipeline<Cpu>| pipeline.sources.adapters.transformers[0].stale.clone();
    assert!(stale(&pipeline).is_empty());
    pipeline.adapt(&choices("first")?, std::slice::from_ref(&first))?;
    assert_eq!(stale(&pipeline).len(), 14);
    velocity(&mut pipeline)?;
    assert!(stale(&pipeline).is_empty());
    // The first one stays, and the sums begin with it in the same order.
    pipeline.adapt(&choices("first, second")?, &[first.clone(), second.clone()])?;
    let names = ["blocks.0.norm3.bias", "blocks.0.self_attn.k.weight", "blocks.1.ffn.0.weight"];
    assert_eq!(stale(&pipeline).into_iter().collect::<Vec<_>>(), names);
    assert_eq!(pipeline.sources.adapters.stale_parameters(), 256 + 256 * 256 + 512 * 256);
    // Nothing was loaded meanwhile, so what the second one would have changed may be stale or not.
    pipeline.adapt(&choices("first")?, std::slice::from_ref(&first))?;
    velocity(&mut pipeline)?;
    // A file that was written anew is another LoRA, whatever its name is.
    made_up_lora::write(folder.path(), "first.safetensors", &[("blocks.0.self_attn.q", [256, 256])], &[], 3);
    pipeline.adapt(&choices("first")?, &[first])?;
    assert_eq!(stale(&pipeline).len(), 15);
    Ok(())
}

#[test]
fn a_lora_goes_to_the_transformer_that_it_is_for() -> Tested {
    let folder = tempfile::tempdir()?;
    let write =
        |name: &str| made_up_lora::write(folder.path(), name, &[("blocks.0.ffn.0", [512, 256])], &[], 1);
    let tiny = synth::Size::Tiny.recipe();
    let dit = DitConfig { image_dim: None, ..tiny.experts[0].network.config.clone() };
    let recipe = Recipe::wan22_i2v([dit.clone(), dit], tiny.text_encoder.config, tiny.vae.config);
    let transformers = recipe.networks().zip(&recipe.experts).map(|(part, expert)| {
        let source: Shared = Arc::new(Source::new(&part, DType::F32, 1));
        (part.name.to_owned(), expert.network.config.clone(), source)
    });
    let mut adapters = Adapters::new(Vec::new(), transformers);
    let changes = |adapters: &mut Adapters, text: &str, file: &PathBuf| -> Result<[bool; 2]> {
        adapters.set(Vec::new());
        adapters.loaded();
        adapters.set(adapters.open(&choices(text)?, std::slice::from_ref(file))?);
        Ok([0, 1].map(|i| !adapters.transformers[i].stale.is_empty()))
    };
    for (name, text, changed) in [
        ("x_high_noise.safetensors", "x:0.5", [true, false]),
        ("x_low_noise.safetensors", "x:0.5", [false, true]),
        ("x_high_noise.safetensors", "x:0:1", [false, true]),
        ("x.safetensors", "x:1:1", [true, true]),
        ("x.safetensors", "x:1:0", [true, false]),
    ] {
        assert_eq!(changes(&mut adapters, text, &write(name))?, changed, "{name} as {text}");
    }
    let untold =
        changes(&mut adapters, "x:0.5", &write("x.safetensors")).expect_err("nothing tells").to_string();
    assert!(untold.contains("does not say which") && untold.contains("`NAME:1:0`"), "{untold}");
    Ok(())
}

#[test]
fn three_phases_are_their_steps_one_after_the_other() -> Tested {
    let folder = tempfile::tempdir()?;
    let file = made_up_lora::write(folder.path(), "x.safetensors", &[("blocks.0.ffn.0", [512, 256])], &[], 1);
    let model = synth::Size::Tiny.recipe_of(Family::Wan22);
    let mut pipeline = Pipeline::made_up(Cpu::new(), &Setup::CPU, model, 1)?;
    let mut run = |lora: &str, settings: &Settings| -> Result<Vec<f32>> {
        let wanted = choices(lora)?;
        let files = vec![file.clone(); wanted.len()];
        pipeline.adapt(&wanted, &files)?;
        let settings = Settings {
            lora: Some(wanted),
            size: Some(Size::Exact { width: 32, height: 32 }),
            frames: Some(5),
            sampler: Some(Sampler::Distill),
            ..settings.clone()
        };
        let request = settings.resolve_for(&pipeline.recipe().defaults, || 1)?;
        let picture = Picture { width: 32, height: 32, rgb: vec![128; 32 * 32 * 3] };
        Ok(pipeline.frames(&Job::new(&picture, request)?, None, &Quiet)?.latents)
    };
    let two = Settings { steps: Some(3), steps_high: Some(2), ..Settings::default() };
    let three =
        Settings { steps: Some(2), steps_base: Some(1), guidance_base: Some(1.0), ..Settings::default() };
    // Where the first two phases have the same weights, they are one phase of as many steps.
    let (without, with) = (run("x:0:1", &two)?, run("x:1:1", &two)?);
    assert!(run("x:0:0:1", &three)? == without && run("x:1:1:1", &three)? == with);
    // A LoRA is left out of the first phase, if nothing else is said.
    let left_out = run("x:1:1", &three)?;
    assert!(left_out != without && left_out != with && left_out == run("x:0:1:1", &three)?);
    // That phase has the guidance of the released model.
    assert!(left_out != run("x:1:1", &Settings { guidance_base: None, ..three.clone() })?);
    // The next job has no trace of the third transformer.
    assert!(run("x:0:1", &two)? == without);
    let error = run("", &three).expect_err("nothing is left out").to_string();
    assert!(error.contains("neither the job nor the model's file has one"), "{error}");
    Ok(())
}
