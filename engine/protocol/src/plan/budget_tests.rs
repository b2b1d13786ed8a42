//! Plans of the 14B model within budgets: every card from 6 to 80 GiB, every length and size that people ask for.

use super::*;
use crate::request::{Sampler, Settings, Tiling};

const GIB: u64 = 1 << 30;

/// Returns how a card without e4m3 runs the model, with everything on the card where the budget has room.
fn setup(dit: Precision, budget: Option<u64>) -> Setup {
    let profile = Profile::built_in("h200").expect("it comes with animd");
    let mut setup = Setup { budget, ..Setup::from(&profile) };
    (setup.precision.dit, setup.precision.text) = (dit, Precision::Int8);
    setup
}

fn request(frames: u32) -> Request {
    let settings = Settings { sampler: Some(Sampler::Distill), frames: Some(frames), ..Settings::default() };
    settings.resolve(|| 1).expect("valid settings")
}

fn plan(size: [usize; 2], frames: u32, setup: &Setup) -> Memory {
    Plan::new(&Recipe::wan21_i2v_14b(), &request(frames), size, setup).memory
}

#[test]
fn a_budget_is_kept_or_the_job_refused() {
    let recipe = Recipe::wan21_i2v_14b();
    for dit in [Precision::Int8, Precision::Fp8, Precision::Bf16] {
        for size in [[256, 256], [480, 832], [832, 480], [1280, 720]] {
            for frames in [1, 5, 81, 241] {
                let least = plan(size, frames, &setup(dit, Some(0)));
                let mut before = 0;
                for budget in [6, 8, 10, 11, 12, 15, 16, 20, 22, 24, 32, 40, 48, 80] {
                    let setup = setup(dit, Some(budget * GIB));
                    let memory = plan(size, frames, &setup);
                    let what = format!("{dit:?} {size:?} {frames} frames in {budget} GiB");
                    assert_eq!(memory.fits(), least.total() <= budget * GIB, "{what}");
                    assert_eq!(
                        refusal(&recipe, &request(frames), size, &setup).is_none(),
                        memory.fits(),
                        "{what}"
                    );
                    if !memory.fits() {
                        continue;
                    }
                    assert!(memory.total() <= budget * GIB, "{what}");
                    for phase in &memory.phases {
                        assert!(phase.weights() <= memory.weights_to_take(), "{what}");
                        assert!(phase.work() <= memory.work_to_take(), "{what}");
                    }
                    // More memory never holds less of the DiT.
                    let dit = &memory.networks[0].placement;
                    assert!(dit.resident >= before, "{what}: {} after {before}", dit.resident);
                    before = dit.resident;
                    // What does not stay passes through two slots, each as large as any of it.
                    assert_eq!(dit.slots, if dit.resident == dit.groups.len() { 0 } else { 2 }, "{what}");
                    assert_eq!(
                        dit.streamed_bytes() + dit.resident_bytes() + dit.around,
                        memory.networks[0].bytes
                    );
                    // At least one more group would have been too much.
                    if dit.slots > 0 {
                        let room = budget * GIB - memory.context - memory.work_to_take();
                        let more = dit.streamed(dit.resident + 1, 2);
                        assert!(more.working() > room, "{what}: {} groups would stay, too", more.resident);
                    }
                }
            }
        }
    }
}

#[test]
fn the_cards_that_people_have_hold_what_is_wanted_of_them() {
    // The 8-bit model at both sizes in 22.0 GiB, at 480p in 15.0 and 11.0, and the 16-bit one at 480p in 22.0.
    for (dit, size, budget) in [
        (Precision::Int8, [832, 480], 22),
        (Precision::Int8, [1280, 720], 22),
        (Precision::Int8, [832, 480], 15),
        (Precision::Int8, [832, 480], 11),
        (Precision::Bf16, [832, 480], 22),
    ] {
        let memory = plan(size, 81, &setup(dit, Some(budget * GIB)));
        assert!(memory.fits(), "{dit:?} {size:?} in {budget} GiB takes {}", gib(memory.total()));
        let allowed = if dit == Precision::Bf16 { 36_000_000_000 } else { 20_000_000_000 };
        assert!(memory.host.pinned <= allowed, "{dit:?}: {} are pinned", memory.host.pinned);
    }
    let whole = plan([832, 480], 81, &setup(Precision::Int8, Some(22 * GIB)));
    assert_eq!(whole.networks[0].placement.resident, 40);
    assert_eq!(whole.host.pinned, 0, "the DiT stays, and the encoders are read from their files");
}

#[test]
fn everything_stays_where_there_is_room() {
    for budget in [None, Some(40 * GIB), Some(80 * GIB)] {
        let memory = plan([832, 480], 81, &setup(Precision::Int8, budget));
        assert!(memory.networks.iter().all(|n| n.placement.place == Place::Device), "{budget:?}");
        assert_eq!(memory.host.pinned, 0);
    }
    // The encoders leave before the DiT, and the largest first.
    let memory = plan([832, 480], 81, &setup(Precision::Int8, Some(24 * GIB)));
    let places: Vec<_> = memory.networks.iter().map(|n| n.placement.place).collect();
    assert_eq!(places, [Place::Device, Place::Disk, Place::Device, Place::Device]);
}

#[test]
fn umt5_stays_for_a_second_prompt_and_streams_for_one() {
    let of = |sampler| {
        let request =
            Settings { sampler: Some(sampler), ..Settings::default() }.resolve(|| 1).expect("valid");
        let setup = setup(Precision::Int8, Some(15 * GIB));
        Plan::new(&Recipe::wan21_i2v_14b(), &request, [832, 480], &setup).memory
    };
    assert_eq!(of(Sampler::Distill).networks[1].placement.slots, 2);
    assert_eq!(of(Sampler::Unipc).networks[1].placement.resident, 24);
    // Meanwhile as much of the DiT stays as has room beside it.
    let memory = of(Sampler::Unipc);
    for phase in &memory.phases {
        let dit = phase.held.iter().find(|held| held.network == "DiT").expect("some of it always stays");
        assert_eq!(dit.slots > 0, phase.stage == Stage::Denoise);
        assert!(dit.resident <= memory.networks[0].placement.resident);
    }
}

#[test]
fn the_vae_takes_no_weights_place() {
    // A short video is little work for the DiT, and its frames are as large as a long one's.
    let request = request(5);
    let of =
        |budget| Plan::new(&Recipe::wan21_i2v_14b(), &request, [1280, 720], &setup(Precision::Int8, budget));
    let (whole, tiled) = (of(None), of(Some(11 * GIB)));
    assert_eq!(whole.tile, None);
    assert!(tiled.tile.is_some());
    assert!(tiled.memory.work_to_take() < whole.memory.work_to_take());
    // With room for all weights there is no need.
    assert_eq!(of(Some(80 * GIB)).tile, None);
    // A frame that is no larger than a tile is not divided.
    let setup = setup(Precision::Int8, Some(8 * GIB));
    assert_eq!(Plan::new(&Recipe::wan21_i2v_14b(), &request, [256, 256], &setup).tile, None);
    // What the user asked for stays.
    let asked = Request { tiling: Tiling::Tiled, ..request };
    assert!(Plan::new(&Recipe::wan21_i2v_14b(), &asked, [1280, 720], &setup).tile.is_some());
}

#[test]
fn the_machines_memory_counts() {
    let of = |dit, host: u64| {
        let setup = Setup { host_memory: Some(host * GIB), ..setup(dit, Some(15 * GIB)) };
        (plan([832, 480], 81, &setup), refusal(&Recipe::wan21_i2v_14b(), &request(81), [832, 480], &setup))
    };
    assert!(of(Precision::Int8, 24).1.is_none());
    let (memory, refused) = of(Precision::Bf16, 24);
    assert!(!memory.fits());
    let text = refused.expect("the DiT alone has 31 GiB").to_string();
    for part in ["31.70 GiB of the machine's memory", "24.00 GiB can be used", "`dit` in 8 bits"] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    for dit in [Precision::Int8, Precision::Fp8] {
        let text = of(dit, 10).1.expect("the DiT alone has more than 15 GiB").to_string();
        assert!(
            !text.contains("8 bits") && text.contains("can be used: use a card with more memory"),
            "{text}"
        );
    }
    // Encoders that a profile wants in pinned memory are read from their files where it is short.
    let mut wanted = Setup { host_memory: Some(20 * GIB), ..setup(Precision::Int8, Some(15 * GIB)) };
    wanted.residency = Residency { dit: Place::Host, ..Residency::all(Place::Host) };
    let memory = plan([832, 480], 81, &wanted);
    assert_eq!(memory.networks[1].placement.place, Place::Disk);
    assert!(memory.fits() && memory.host.pinned <= 20 * GIB);
}

#[test]
fn a_refusal_has_the_arithmetic_and_what_fits() {
    let recipe = Recipe::wan21_i2v_14b();
    let of = |size, frames, budget| {
        let setup = setup(Precision::Int8, Some(budget * GIB));
        let refusal = refusal(&recipe, &request(frames), size, &setup)?;
        // What is offered fits, and the next larger does not.
        let fits = |size, frames| plan(size, frames, &setup).fits();
        if let Some(smaller) = refusal.smaller {
            assert!(fits(smaller, frames), "{refusal}");
            let larger = smaller.map(|side| side + 16);
            assert!(!fits(larger, frames), "{refusal}: {larger:?} fits, too");
        }
        if let Some(fewer) = refusal.fewer_frames {
            assert!(fits(size, fewer) && !fits(size, fewer + 4), "{refusal}");
        }
        Some(refusal.to_string())
    };
    let text = of([16_384, 16_384], 4093, 141).expect("it fits no card");
    assert!(text.starts_with("16384x16384 with 4093 frames needs "), "{text}");
    assert!(
        text.contains(" GiB of the GPU's memory (") && text.contains("141.00 GiB can be used: "),
        "{text}"
    );
    let text = of([832, 480], 81, 6).expect("it takes 6.9 GiB");
    assert!(text.contains("2.10 GiB weights + ") && text.contains("6.00 GiB can be used: "), "{text}");
    assert!(text.ends_with(" frames at 832x480"), "{text}");
    let text = of([832, 480], 81, 2).expect("the driver and two blocks take more");
    assert!(text.ends_with("no size fits; use a smaller model, or a card with more memory"), "{text}");
    assert_eq!(of([1280, 720], 81, 24), None);

    let cpu = Setup { budget: Some(32 * GIB), ..Setup::CPU };
    let text = refusal_text(&recipe, &cpu);
    assert!(text.contains("of the machine's memory") && !text.contains("driver"), "{text}");
}

fn refusal_text(recipe: &Recipe, setup: &Setup) -> String {
    refusal(recipe, &request(81), [832, 480], setup).expect("f32 weights take more").to_string()
}
