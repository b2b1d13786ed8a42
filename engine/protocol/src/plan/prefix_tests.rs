//! The tokens that the two forwards of a guided step share take no weights' place.

use super::*;
use crate::request::Settings;

const GIB: u64 = 1 << 30;
/// The bytes of one value for each token and channel of 81 frames of 832x480, in f32.
const TOKENS: u64 = 4 * 32_760 * 5_120;

fn setup(dit: Precision, budget: Option<u64>) -> Setup {
    let mut setup = Setup::from(&Profile::built_in("h200").expect("it comes with animd"));
    (setup.precision.dit, setup.precision.text, setup.budget) = (dit, Precision::Int8, budget);
    setup
}

fn request(settings: Settings) -> Request {
    settings.resolve(|| 1).expect("valid settings")
}

/// Returns the bytes that denoising keeps.
fn kept(memory: &Memory) -> u64 {
    memory.phases.iter().find(|phase| phase.stage == Stage::Denoise).map_or(0, |phase| phase.kept)
}

/// Returns the memory of a plan's job without shared tokens.
fn apart(recipe: &Recipe, request: &Request, plan: &Plan, setup: &Setup) -> Memory {
    let recipe = &*recipe.of_job(request);
    let branches = if plan.guidance { 2 } else { 1 };
    Memory::new(recipe, request, plan.latent, branches, plan.tile, false, setup)
}

#[test]
fn shared_tokens_are_counted() {
    let recipe = Recipe::wan21_i2v_14b();
    let setup = setup(Precision::Fp8, None);
    let of = |settings: Settings| {
        let request = request(settings);
        let plan = Plan::new(&recipe, &request, [832, 480], &setup);
        let more = kept(&plan.memory) - kept(&apart(&recipe, &request, &plan, &setup));
        (plan.share_prefix, more)
    };
    assert_eq!(of(Settings::default()), (true, TOKENS));
    assert_eq!(
        of(Settings { guidance: Some(1.0), ..Settings::default() }),
        (false, 0),
        "there is one branch"
    );
    // The first branch has no residual until it has computed its blocks.
    let cached = Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() };
    assert_eq!(of(cached), (true, 0));
    let cpu = Plan::new(&recipe, &request(Settings::default()), [832, 480], &Setup::CPU);
    assert!(cpu.share_prefix);
}

#[test]
fn shared_tokens_take_the_place_of_nothing() {
    let (mut shared, mut not) = (0, 0);
    for recipe in [Recipe::wan21_i2v_14b(), Recipe::wan22_i2v_a14b()] {
        for dit in [Precision::Int8, Precision::Bf16] {
            for size in [[256, 256], [832, 480], [1280, 720]] {
                for step_cache in [StepCache::None, StepCache::Magcache] {
                    let request = request(Settings { step_cache: Some(step_cache), ..Settings::default() });
                    for eighths in (6 * 8..56 * 8).step_by(5) {
                        let setup = setup(dit, Some(eighths * GIB / 8));
                        let plan = Plan::new(&recipe, &request, size, &setup);
                        let apart = apart(&recipe, &request, &plan, &setup);
                        let what = format!("{dit:?} {size:?} {step_cache:?} in {eighths}/8 GiB");
                        assert!(plan.memory.holds_the_same(&apart), "{what}");
                        assert_eq!(plan.memory.fits(), apart.fits(), "{what}");
                        // With a step cache they take no more, so that every job that fits has them.
                        if step_cache == StepCache::Magcache {
                            assert_eq!(
                                (plan.share_prefix, &plan.memory),
                                (plan.memory.fits(), &apart),
                                "{what}"
                            );
                        } else {
                            assert_eq!(plan.share_prefix, kept(&plan.memory) > kept(&apart), "{what}");
                            *if plan.share_prefix { &mut shared } else { &mut not } +=
                                usize::from(apart.fits());
                        }
                    }
                }
            }
        }
    }
    assert!(shared > 0 && not > 0, "{shared} and {not}");
}

#[test]
fn one_byte_decides() {
    // With all weights on the card, the tokens stay until there is one byte too little for them.
    let recipe = Recipe::wan21_i2v_14b();
    let request = request(Settings::default());
    let of = |budget| Plan::new(&recipe, &request, [1280, 720], &setup(Precision::Int8, budget));
    let whole = of(None).memory.total();
    let [enough, less] = [whole, whole - 1].map(|budget| of(Some(budget)));
    assert!(enough.share_prefix && !less.share_prefix && less.memory.fits());
    assert!(less.memory.holds_the_same(&enough.memory));
}
