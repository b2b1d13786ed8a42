//! Plans of the 14B model, compared with figures from elsewhere.

use super::*;
use crate::request::{Sampler, Settings, Tiling};

fn plan(settings: Settings, size: [usize; 2], profile: &str) -> Plan {
    let request = settings.resolve(|| 1).expect("valid settings");
    let profile = Profile::built_in(profile).expect("it comes with animd");
    Plan::new(&Recipe::wan21_i2v_14b(), &request, size, &Setup::from(&profile))
}

#[track_caller]
fn near(got: f64, want: f64, by: f64) {
    assert!((got / want - 1.0).abs() <= by, "{got:e} is not {want:e}");
}

#[test]
fn the_released_models_work_at_both_sizes() {
    let small = plan(Settings::default(), [832, 480], "h200");
    assert_eq!((small.latent, small.tokens), ([21, 60, 104], 32_760));
    assert_eq!(small.forwards, Forwards { computed: 80, skipped: 0, exact: true });
    let large = plan(Settings::default(), [1280, 720], "h200");
    assert_eq!((large.latent, large.tokens), ([21, 90, 160], 75_600));
    for (plan, linear, own, cross, exponentials) in
        [(&small, 7.83e14, 8.79e14, 2.1e13, 1.72e12), (&large, 1.81e15, 4.68e15, 4.8e13, 9.14e12)]
    {
        let forward = &plan.work.forward;
        near(forward.linear, linear, 0.005);
        near(forward.self_attention, own, 0.005);
        near(forward.cross_attention, cross, 0.03);
        near(forward.exponentials, exponentials, 0.005);
        near(plan.work.denoise, 80.0 * forward.flops(), 1e-12);
    }
    // The lower bound is the VAE's first layer alone, counted by hand; the upper bound is the DiT.
    let first = 2.0 * 27.0 * 96.0 * 96.0 * 6.0 * 81.0 * (832.0 * 480.0);
    assert!(
        (first..small.work.forward.flops()).contains(&small.work.vae_decode),
        "{:e}",
        small.work.vae_decode
    );
    assert!(small.work.vae_encode < 0.3 * small.work.vae_decode);
}

#[test]
fn fewer_steps_and_step_caches_are_fewer_forwards() {
    let with = |settings| plan(settings, [832, 480], "h200").forwards;
    let distilled = Settings { sampler: Some(Sampler::Distill), ..Settings::default() };
    assert_eq!(with(distilled), Forwards { computed: 4, skipped: 0, exact: true });
    let magcache = Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() };
    assert_eq!(with(magcache), Forwards { computed: 34, skipped: 46, exact: true });
    let teacache = Settings { step_cache: Some(StepCache::Teacache), ..Settings::default() };
    assert_eq!(with(teacache), Forwards { computed: 80, skipped: 0, exact: false });
}

#[test]
fn weights_are_counted_in_their_types() {
    let of = |profile: &str| plan(Settings::default(), [832, 480], profile).memory;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let h200 = of("h200");
    let names: Vec<_> = h200.networks.iter().map(|n| (n.name.as_str(), n.parameters)).collect();
    // umT5 counts without its embedding, CLIP without its last block.
    assert_eq!(names[0], ("DiT", 16_394_878_784));
    assert_eq!(names[1], ("umT5", 5_680_910_336 - 256_384 * 4096));
    assert_eq!(names[3], ("VAE", 126_892_531));

    let cpu = of("cpu");
    assert_eq!(cpu.networks[0].bytes, 4 * 16_394_878_784);
    // umT5's matrices and norms in f32; the rows of its embedding are read from the file, on a CPU as on a GPU.
    assert_eq!(cpu.networks[1].bytes, 4 * h200.networks[1].parameters);
    assert_eq!(cpu.host, memory::Host { pinned: 0, page_cache: 2 * 256_384 * 4096 });
    assert!(h200.host.page_cache >= cpu.host.page_cache);
    let all: u64 = cpu.networks.iter().map(|n| n.bytes).sum();
    assert!(cpu.phases.iter().all(|p| p.weights() == all));

    // In 8 bits the 480 matrices with their scales, and the rest in f32 or bf16.
    let request = Settings::default().resolve(|| 1).expect("valid");
    let with = |sensitive, dit, place| {
        let mut setup = Setup::from(&Profile::built_in("h200").expect("it comes with animd"));
        (setup.precision.sensitive, setup.precision.dit, setup.residency.dit) = (sensitive, dit, place);
        Plan::new(&Recipe::wan21_i2v_14b(), &request, [832, 480], &setup).memory
    };
    let fp8 = with(Sensitive::Same, Precision::Fp8, Place::Device);
    near(gib(fp8.networks[0].bytes), 15.5, 0.01);
    near(gib(with(Sensitive::Same, Precision::Bf16, Place::Device).networks[0].bytes), 30.5, 0.01);
    let streamed = with(Sensitive::Same, Precision::Fp8, Place::Host);
    let block = 385.5 * (1u64 << 20) as f64;
    near(streamed.networks[0].placement.working() as f64, 2.0 * block + 2.0 * 241.3e6, 0.002);
    assert_eq!(streamed.host.pinned, fp8.host.pinned + fp8.networks[0].bytes);
    assert!(streamed.peak().0 < fp8.peak().0);
}

#[test]
fn more_of_everything_takes_more_memory() {
    let memory = |settings: Settings, size| plan(settings, size, "h200").memory.phases;
    let base = memory(Settings::default(), [832, 480]);
    let at = |phases: &[memory::Phase], stage| {
        phases
            .iter()
            .find(|p| p.stage == stage)
            .map(|p| (p.activations, p.kept))
            .expect("the stage is planned")
    };
    let large = memory(Settings::default(), [1280, 720]);
    assert!(at(&large, Stage::Denoise).0 > 2 * at(&base, Stage::Denoise).0);
    assert!(at(&large, Stage::VaeDecode).0 > 2 * at(&base, Stage::VaeDecode).0);
    let cached = Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() };
    assert!(at(&memory(cached, [832, 480]), Stage::Denoise).1 > at(&base, Stage::Denoise).1);
    let alone = Settings { guidance: Some(1.0), ..Settings::default() };
    assert!(at(&memory(alone, [832, 480]), Stage::Denoise).1 < at(&base, Stage::Denoise).1);
    let tiled = Settings { tiling: Some(Tiling::Tiled), ..Settings::default() };
    assert!(at(&memory(tiled.clone(), [832, 480]), Stage::VaeDecode).0 < at(&base, Stage::VaeDecode).0);
    // A frame that fits into one tile is not divided.
    let whole = at(&memory(Settings::default(), [256, 128]), Stage::VaeDecode);
    assert_eq!(at(&memory(tiled, [256, 128]), Stage::VaeDecode), whole);
}

#[test]
fn it_reads_as_a_table() {
    let text = plan(Settings::default(), [832, 480], "rtx4090").to_string();
    for line in
        ["32760 tokens", "80 forwards", "16394878784", "one forward of the DiT", "decoding the frames"]
    {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}
