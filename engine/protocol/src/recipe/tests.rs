//! Tests with a family that differs from the first one: two experts of 14B, no CLIP.

use super::*;
use crate::plan::{Plan, Setup};
use crate::profile::{Place, Profile};
use crate::progress::Stage;
use crate::request::Settings;
use crate::step_cache::StepPlan;

/// Returns the recipe of Wan2.2-I2V-A14B as published.
fn two_experts() -> Recipe {
    let mut recipe = Recipe::wan21_i2v_14b();
    let [wan21] = &recipe.experts[..] else { panic!("Wan2.1 has one transformer") };
    let config = DitConfig { image_dim: None, ..wan21.network.config.clone() };
    let expert =
        |name, from, guidance| Expert { network: Network::new(name, config.clone()), from, guidance };
    recipe.experts = vec![expert("DiT, high", 0.9, 3.5), expert("DiT, low", 0.0, 4.5)];
    recipe.family = "two experts".into();
    recipe.conditioning.image_encoder = None;
    recipe.defaults.shift = ByArea { p480: 5.0, p720: 5.0 };
    recipe.defaults.guidance = 3.5;
    recipe
}

fn request(recipe: &Recipe, settings: Settings) -> Request {
    settings.resolve_for(&recipe.defaults, || 1).expect("valid settings")
}

const SIZE: [usize; 2] = [832, 480];

#[test]
fn its_networks_are_listed_and_have_their_tensors() {
    let recipe = two_experts();
    let networks: Vec<_> = recipe.networks().map(|part| (part.name, part.component())).collect();
    assert_eq!(
        networks,
        [
            ("DiT, high", Component::Dit),
            ("DiT, low", Component::Dit),
            ("umT5", Component::T5),
            ("VAE", Component::Vae)
        ]
    );
    for part in recipe.networks().filter(|part| part.component() == Component::Dit) {
        let tensors = part.schema();
        // The published files have so many parameters.
        assert_eq!(tensors.len(), 1095);
        assert!(!tensors.iter().any(|e| e.name.contains("img")));
    }
    assert_eq!((recipe.input_channels(), recipe.image_tokens()), (36, 0));
}

#[test]
fn each_step_has_its_expert() {
    let recipe = two_experts();
    assert_eq!([999.0, 900.0, 899.9, 0.0].map(|t| recipe.expert_at(t)), [0, 0, 1, 1]);
    let request = request(&recipe, Settings::default());
    let steps = recipe.step_experts(&request);
    // With a shift of 5 the timestep 902 is that of step 14, 892 that of step 15.
    assert_eq!(steps, [vec![0; 15], vec![1; 25]].concat());
    let single = Recipe::wan21_i2v_14b();
    assert!(single.step_experts(&request).iter().all(|&expert| expert == 0));
}

#[test]
fn guidance_is_the_experts_own_unless_somebody_asks() {
    let recipe = two_experts();
    let default = request(&recipe, Settings::default());
    assert_eq!([0, 1].map(|expert| recipe.guidance(expert, &default)), [3.5, 4.5]);
    let asked = request(&recipe, Settings { guidance: Some(2.0), ..Settings::default() });
    assert_eq!([0, 1].map(|expert| recipe.guidance(expert, &asked)), [2.0, 2.0]);
    assert!(recipe.uses_guidance(&asked));
    let alone = request(&recipe, Settings { guidance: Some(1.0), ..Settings::default() });
    assert!(!recipe.uses_guidance(&alone));
    let distilled = request(&recipe, Settings { sampler: Some(Sampler::Distill), ..Settings::default() });
    assert!(!recipe.uses_guidance(&distilled));
}

#[test]
fn the_plan_counts_both_experts() {
    let (recipe, single) = (two_experts(), Recipe::wan21_i2v_14b());
    let request = request(&recipe, Settings::default());
    let profile = Profile::built_in("h200").expect("it comes with animd");
    let setup = Setup::from(&profile);
    let plan = Plan::new(&recipe, &request, SIZE, &setup);
    assert_eq!((plan.forwards.computed, plan.steps), (80, 40));
    assert_eq!(plan.work.clip, 0.0);
    // Both experts take the same operations, so it does not matter here which one computes a step.
    let all = 80.0 * plan.work.forward.flops();
    assert!((plan.work.denoise / all - 1.0).abs() < 1e-12);
    // Self-attention and the linear layers are those of one expert with CLIP; the context is smaller.
    let with_clip = Plan::new(&single, &request, SIZE, &setup).work;
    assert_eq!(plan.work.forward.self_attention, with_clip.forward.self_attention);
    assert_eq!(plan.work.forward.cross_attention * 769.0, with_clip.forward.cross_attention * 512.0);

    // A file in 16 bits has 28.6 GB.
    let networks = &plan.memory.networks;
    let names: Vec<_> = networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["DiT, high", "DiT, low", "umT5", "VAE"]);
    assert!((networks[0].parameters as f64 / 14.3e9 - 1.0).abs() < 0.005, "{}", networks[0].parameters);
    assert_eq!(networks[0].parameters, networks[1].parameters);
    // Without CLIP there is nothing to compute while the picture is read.
    let stages: Vec<_> = plan.memory.phases.iter().map(|p| p.stage).collect();
    assert_eq!(stages, [Stage::Text, Stage::VaeEncode, Stage::Denoise, Stage::VaeDecode]);
    // With the place `device`, both experts are there at once; with `host` they are loaded one at a time.
    let resident: u64 = networks.iter().map(|n| n.bytes).sum();
    assert!(plan.memory.phases.iter().all(|p| p.weights() == resident));
    let mut streamed = setup;
    streamed.residency.dit = Place::Host;
    let memory = Plan::new(&recipe, &request, SIZE, &streamed).memory;
    let denoise = memory.phases.iter().find(|p| p.stage == Stage::Denoise).expect("it is planned");
    let around: u64 = memory.networks.iter().filter(|n| n.component != Component::Dit).map(|n| n.bytes).sum();
    assert_eq!(denoise.weights(), around + memory.networks[0].placement.working());
    assert_eq!(memory.host.pinned, plan.memory.host.pinned + networks[0].bytes + networks[1].bytes);
}

#[test]
fn experts_of_different_sizes_count_by_their_steps() {
    let mut recipe = two_experts();
    recipe.experts[1].network.config.num_layers = 20;
    let request = request(&recipe, Settings::default());
    let plan = Plan::new(&recipe, &request, SIZE, &Setup::CPU);
    let of = |layers| {
        let mut recipe = two_experts();
        recipe.experts.truncate(1);
        recipe.experts[0].network.config.num_layers = layers;
        Plan::new(&recipe, &request, SIZE, &Setup::CPU).work.forward.flops()
    };
    // With 40 steps, 15 have much noise and 25 have little, with two forwards each.
    let want = 30.0 * of(40) + 50.0 * of(20);
    assert!((plan.work.denoise / want - 1.0).abs() < 1e-12);
    // The time limit for a sign of life follows the larger expert.
    assert_eq!(plan.work.forward.flops(), of(40));
}

#[test]
fn progress_runs_over_all_stages() {
    let recipe = two_experts();
    let request = request(&recipe, Settings::default());
    let work = Plan::new(&recipe, &request, SIZE, &Setup::CPU).work;
    let costs = work.costs(0.0);
    assert_eq!((costs.of(Stage::Image), costs.share(Stage::Load)), (0.0, 0.0));
    let total = work.flops() + 0.01 * work.vae_decode;
    assert!((costs.share(Stage::Denoise) / (work.denoise / total) - 1.0).abs() < 1e-9);
    let all: f64 = Stage::ALL.map(|stage| costs.share(stage)).iter().sum();
    assert!((all - 1.0).abs() < 1e-9);
}

#[test]
fn a_step_cache_computes_where_the_expert_changes() {
    let recipe = two_experts();
    let with = |threshold| Settings {
        step_cache: Some(StepCache::Magcache),
        step_cache_threshold: Some(threshold),
        ..Settings::default()
    };
    let request = request(&recipe, with(100.0));
    let plan = |recipe: &Recipe| {
        let Ok(plan) = StepPlan::new(recipe, &request, |_| Ok::<_, std::convert::Infallible>(Vec::new()));
        plan
    };
    let mut alone = recipe.clone();
    alone.experts.truncate(1);
    let (two, one) = (plan(&recipe), plan(&alone));
    assert_eq!((&two.compute[15][..], &one.compute[15][..]), (&[true; 2][..], &[false; 2][..]));
    let differ = two.compute.iter().zip(&one.compute).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 1);
    let by_expert = two.forwards_of(&recipe.step_experts(&request));
    assert_eq!(by_expert.iter().sum::<u32>(), two.forwards().0);
}

#[test]
fn a_family_without_figures_refuses_the_step_cache() {
    let mut recipe = two_experts();
    recipe.step_caches = StepCaches::default();
    let cached = Settings { step_cache: Some(StepCache::Teacache), ..Settings::default() };
    let cached = request(&recipe, cached);
    let error = recipe.check(&cached).expect_err("there are none").to_string();
    assert!(error.contains("no figures for two experts"), "{error}");
    assert!(recipe.check(&request(&recipe, Settings::default())).is_ok());
    assert!(Recipe::wan21_i2v_14b().check(&cached).is_ok());
}

#[test]
fn it_crosses_to_the_service_and_back() {
    for recipe in [two_experts(), Recipe::wan21_i2v_14b()] {
        let text = serde_json::to_string(&recipe).expect("plain data");
        assert!(text.len() < crate::messages::MAX_LINE / 8, "{}", text.len());
        let back: Recipe = serde_json::from_str(&text).expect("plain data");
        assert_eq!(back, recipe);
    }
}

#[test]
fn turns_are_those_of_the_published_schedules() {
    let recipe = Recipe::wan22_i2v_a14b();
    let high = |settings: Settings| {
        let experts = recipe.step_experts(&request(&recipe, settings));
        experts.iter().filter(|expert| **expert == 0).count()
    };
    let released =
        |steps, shift| high(Settings { steps: Some(steps), shift: Some(shift), ..Settings::default() });
    for (steps, shift, wanted) in
        [(40, 5.0, 15), (40, 3.0, 10), (40, 16.0, 26), (50, 5.0, 18), (30, 5.0, 11), (20, 5.0, 8)]
    {
        assert_eq!(released(steps, shift), wanted, "{steps} steps, shift {shift}");
    }
    // Of these, a step has exactly the timestep 900, and is the high-noise expert's.
    for steps in [31, 45, 48, 59] {
        let settings = Settings { steps: Some(steps), ..Settings::default() };
        let timesteps = recipe.sampler(&request(&recipe, settings)).expect("a schedule").timesteps().to_vec();
        let at = timesteps.iter().position(|timestep| *timestep == 900.0).expect("it has that step");
        assert_eq!(released(steps, 5.0), at + 1, "{steps} steps");
    }
    // Distilled, the halves of the steps, whatever the timesteps are: between two pictures the third one is above 900.
    for (steps, shift) in [(4, 5.0), (4, 7.0), (4, 16.0), (5, 7.0), (6, 7.0), (8, 7.0)] {
        let settings = Settings {
            sampler: Some(Sampler::Distill),
            steps: Some(steps),
            shift: Some(shift),
            ..Settings::default()
        };
        assert_eq!(high(settings), steps.div_ceil(2) as usize, "{steps} steps, shift {shift}");
    }
}

#[test]
fn the_low_noise_expert_can_have_a_schedule_of_its_own() {
    let recipe = Recipe::wan22_i2v_a14b();
    let of = |settings| {
        let request = request(&recipe, settings);
        (recipe.sampler(&request).expect("a schedule"), request)
    };
    let mixed = Settings { sampler_low: Some(Sampler::Distill), steps_high: Some(3), ..Settings::default() };
    let (sampler, asked) = of(mixed.clone());
    // Few steps are enough if one of the experts is distilled; each expert has the guidance that its sampler asks for.
    assert_eq!((asked.steps, sampler.samplers()[2..4].to_vec()), (8, vec![Sampler::Unipc, Sampler::Distill]));
    assert_eq!([0, 1].map(|expert| recipe.guidance(expert, &asked)), [3.5, 1.0]);
    assert_eq!([0, 1].map(|expert| recipe.branches(expert, &asked)), [2, 1]);
    let (_, other) = of(Settings {
        sampler: Some(Sampler::Distill),
        sampler_low: Some(Sampler::Unipc),
        ..Settings::default()
    });
    assert_eq!([0, 1].map(|expert| recipe.guidance(expert, &other)), [1.0, 3.5]);
    let (_, asked) = of(Settings { guidance_low: Some(2.0), ..mixed.clone() });
    assert_eq!(recipe.guidance(1, &asked), 2.0);

    // The high-noise expert's turn follows from its own schedule.
    let (plain, _) = of(Settings::default());
    let (sampler, _) = of(Settings { shift_low: Some(3.0), ..Settings::default() });
    let low = SamplerConfig::of(Sampler::Unipc, 40, 3.0).expect("a schedule");
    assert_eq!(
        (&sampler.sigmas()[..15], &sampler.sigmas()[15..]),
        (&plain.sigmas()[..15], &low.sigmas()[15..])
    );
    // What says the same changes nothing.
    let (same, _) =
        of(Settings { shift_low: Some(5.0), sampler_low: Some(Sampler::Unipc), ..Settings::default() });
    assert_eq!(same, plain);

    // A family with one transformer has one schedule, and says so.
    let single = Recipe::wan21_i2v_14b();
    let asked =
        request(&single, Settings { shift_low: Some(1.0), guidance_low: Some(2.0), ..Settings::default() });
    assert_eq!(
        single.sampler(&asked).expect("a schedule"),
        SamplerConfig::of(Sampler::Unipc, 40, 3.0).expect("one")
    );
    let remark = single.remarks(&asked).concat();
    assert!(remark.contains("one transformer, so `shift_low`, `guidance_low` change nothing"), "{remark}");
    assert_eq!(single.remarks(&request(&single, Settings::default())), [""; 0]);
}

#[test]
fn settings_of_both_experts_that_contradict_are_refused() {
    let recipe = Recipe::wan22_i2v_a14b();
    let rising = request(
        &recipe,
        Settings { shift: Some(1.0), shift_low: Some(100.0), steps_high: Some(15), ..Settings::default() },
    );
    let error = recipe.check(&rising).expect_err("the noise would grow").to_string();
    assert!(error.contains("lower `shift_low`, or leave it out"), "{error}");
    // Without a step before or after it, there is no such change.
    for high in [0, 40] {
        assert_eq!(recipe.check(&Request { steps_high: Some(high), ..rising.clone() }), Ok(()), "{high}");
    }
    assert_eq!(recipe.check(&Request { shift_low: Some(0.9), ..rising }), Ok(()));
    let many = Settings { sampler_low: Some(Sampler::Distill), steps: Some(9), ..Settings::default() };
    let error = many.resolve_for(&recipe.defaults, || 1).expect_err("too many steps").to_string();
    assert!(error.contains("from 1 to 8") && error.contains("set `sampler_low` to `unipc`"), "{error}");
}

#[test]
fn an_empty_negative_prompt_is_the_models_own() {
    for recipe in [Recipe::wan22_i2v_a14b(), Recipe::wan21_i2v_14b()] {
        let of = |text: &str| {
            request(&recipe, Settings { negative_prompt: Some(text.into()), ..Settings::default() })
                .negative_prompt
        };
        assert_eq!((of(""), of("snow")), (recipe.defaults.negative_prompt.clone(), "snow".to_owned()));
    }
}

#[test]
fn a_job_can_begin_without_its_loras() {
    let recipe = Recipe::wan22_i2v_a14b();
    let distilled = Settings { sampler: Some(Sampler::Distill), steps_base: Some(2), ..Settings::default() };
    let asked = request(&recipe, distilled.clone());
    assert_eq!((asked.steps, asked.total_steps()), (4, 6));
    assert_eq!(recipe.step_experts(&asked), [2, 2, 0, 0, 1, 1]);
    // All phases have one schedule, and each its guidance.
    assert_eq!(recipe.sampler(&asked), SamplerConfig::of(Sampler::Distill, 6, 5.0));
    assert_eq!([2, 0, 1].map(|expert| recipe.guidance(expert, &asked)), [3.5, 1.0, 1.0]);
    assert!(recipe.uses_guidance(&asked) && recipe.check(&asked).is_ok());
    let (of, without) = (|n| recipe.guidance(2, n), Request { guidance_base: Some(1.0), ..asked.clone() });
    assert_eq!(of(&without), 1.0);
    assert!(!recipe.uses_guidance(&without));
    // The turns within the other steps are counted from there.
    let later = Settings { steps_high: Some(1), ..distilled.clone() };
    assert_eq!(recipe.step_experts(&request(&recipe, later)), [2, 2, 0, 1, 1, 1]);
    let mixed =
        Settings { sampler: None, sampler_low: Some(Sampler::Distill), steps_high: Some(1), ..distilled };
    let mixed = recipe.sampler(&request(&recipe, mixed)).expect("a schedule");
    assert_eq!(mixed.samplers()[2..4], [Sampler::Unipc, Sampler::Distill]);

    // The recipe of the job has a third network, and that of the next one has not.
    let of_job = recipe.of_job(&asked).into_owned();
    let names: Vec<_> = of_job.networks().map(|part| part.name.to_owned()).collect();
    assert_eq!(names, ["DiT, high", "DiT, low", "DiT, base", "umT5", "VAE"]);
    assert_eq!(*of_job.of_job(&asked), of_job);
    let next = request(&recipe, Settings::default());
    assert_eq!((&*of_job.of_job(&next), &*recipe.of_job(&next)), (&recipe, &recipe));
}

#[test]
fn steps_without_loras_that_cannot_be_are_refused() {
    let recipe = Recipe::wan22_i2v_a14b();
    let base = |steps| Settings { steps_base: Some(steps), ..Settings::default() };
    // 45 steps at shift 5 have 17 from timestep 900 on.
    assert!(recipe.check(&request(&recipe, base(5))).is_ok());
    let error = recipe.check(&request(&recipe, base(40))).expect_err("too many").to_string();
    assert!(error.contains("`steps_base` is 40, and the high-noise transformer computes 29"), "{error}");
    let single = Recipe::wan21_i2v_14b();
    let error = single.check(&request(&single, base(2))).expect_err("one transformer").to_string();
    assert!(error.contains("has one transformer") && error.contains("set it to 0"), "{error}");
    let lora = crate::lora::parse("x:0:1:1").expect("a LoRA");
    let settings = Settings { lora: Some(lora), ..Settings::default() };
    let error = settings.resolve(|| 1).expect_err("no such steps").to_string();
    assert!(error.contains("set `steps_base`, or write `x:HIGH:LOW`"), "{error}");
}

#[test]
fn settings_that_change_nothing_are_told() {
    use crate::request::{Noise, Resize, Size};
    let (one, two) = (Recipe::wan21_i2v_14b(), Recipe::wan22_i2v_a14b());
    let none = Settings::default;
    let distilled = || Settings { sampler: Some(Sampler::Distill), ..none() };
    let base = || Settings { guidance_base: Some(2.0), ..distilled() };
    let low = Settings { shift_low: Some(3.0), guidance_low: Some(2.0), steps_high: Some(40), ..none() };
    let own = || Some("snow".to_owned());
    let cpu = || Settings { noise: Some(Noise::Cpu), noise_multiprocessors: Some(108), ..none() };
    let exact = Some(Size::Exact { width: 320, height: 192 });
    for (settings, in_one, in_two) in [
        (none(), "", ""),
        (distilled(), "", ""),
        (base(), "one transformer, so `guidance_base`", "no steps of `steps_base`, so `guidance_base`"),
        (Settings { steps_base: Some(0), ..base() }, "`guidance_base`", "so `guidance_base`"),
        (
            low.clone(),
            "one transformer, so `steps_high`, `shift_low`, `guidance_low`",
            "computes none of the steps, so `shift_low`, `guidance_low`",
        ),
        (Settings { steps_high: Some(39), ..low }, "so `steps_high`, `shift_low`", ""),
        (
            Settings { sampler_low: Some(Sampler::DistillRenoise), ..distilled() },
            "one transformer, so `sampler_low`",
            "",
        ),
        (Settings { negative_prompt: own(), ..distilled() }, "so `negative_prompt`", "so `negative_prompt`"),
        (Settings { negative_prompt: own(), ..none() }, "", ""),
        (Settings { negative_prompt: Some(String::new()), ..distilled() }, "", ""),
        (
            Settings { step_cache_threshold: Some(0.1), ..none() },
            "no `step_cache`, so `step_cache_threshold`",
            "no `step_cache`, so `step_cache_threshold`",
        ),
        (
            Settings { step_cache_threshold: Some(0.1), step_cache: Some(StepCache::Magcache), ..none() },
            "",
            "",
        ),
        (cpu(), "so `noise_multiprocessors`", "so `noise_multiprocessors`"),
        (Settings { noise: None, ..cpu() }, "", ""),
        (
            Settings { size: exact, resize: Some(Resize::Adaptive), ..none() },
            "exact, so `resize`",
            "exact, so `resize`",
        ),
        (Settings { resize: Some(Resize::Adaptive), ..none() }, "", ""),
    ] {
        for (recipe, wanted) in [(&one, in_one), (&two, in_two)] {
            let request = request(recipe, settings.clone());
            assert_eq!(recipe.check(&request), Ok(()));
            let told = recipe.remarks(&request).join("; ");
            let right = if wanted.is_empty() { told.is_empty() } else { told.contains(wanted) };
            assert!(right, "{}: `{wanted}` is wanted, and `{told}` is told of {settings:?}", recipe.family);
        }
    }
    // The steps without LoRAs have a guidance where the others have none.
    let base = Settings { steps_base: Some(2), negative_prompt: own(), ..base() };
    assert_eq!(two.remarks(&request(&two, base)), [""; 0]);
    // What only the high-noise transformer would use, where it computes none of the steps.
    let low = Settings { steps_high: Some(0), shift_low: Some(5.0), guidance_low: Some(3.0), ..none() };
    assert_eq!(two.remarks(&request(&two, low.clone())), [""; 0]);
    let said =
        two.remarks(&request(&two, Settings { shift: Some(9.0), guidance: Some(4.0), ..low })).concat();
    assert_eq!(
        said,
        "the high-noise transformer computes none of the steps, so `shift`, `guidance` change nothing"
    );
    let both = Settings { steps_high: Some(0), shift: Some(9.0), guidance: Some(4.0), ..none() };
    assert_eq!(two.remarks(&request(&two, both)), [""; 0], "the low-noise transformer uses them");
    // MagCache's sentence names what is not as it was measured, and nothing else.
    let cached = || Settings { step_cache: Some(StepCache::Magcache), ..none() };
    assert_eq!(two.remarks(&request(&two, cached())), [""; 0]);
    for (settings, wanted) in [
        (Settings { steps_high: Some(10), ..cached() }, "and not with a `steps_high` of 10:"),
        (Settings { shift_low: Some(4.0), ..cached() }, "and not with a `shift_low` of 4:"),
        (
            Settings { steps: Some(20), shift: Some(3.0), ..cached() },
            "and not with 20 steps and a shift of 3:",
        ),
    ] {
        let said = two.remarks(&request(&two, settings)).concat();
        assert!(said.contains(wanted), "{said}");
    }
    // Two things can be wrong at once.
    let several = Settings { negative_prompt: own(), guidance_base: Some(2.0), ..distilled() };
    assert_eq!(two.remarks(&request(&two, several)).len(), 2);
    // Another kind of sampler for steps that are not there would change the number of those that are.
    for (sampler, low) in [(Sampler::Unipc, Sampler::Distill), (Sampler::Distill, Sampler::Unipc)] {
        let mixed = Settings { sampler: Some(sampler), sampler_low: Some(low), ..none() };
        let error = one.check(&request(&one, mixed.clone())).expect_err("one transformer").to_string();
        assert!(
            error.contains("has one transformer") && error.contains("leave `sampler_low` out"),
            "{error}"
        );
        assert_eq!(two.check(&request(&two, mixed)), Ok(()));
    }
}
