//! Plans of two experts: on cards from 12 to 141 GiB.

use super::*;
use crate::recipe::Component;
use crate::request::{Sampler, Settings};

const GIB: u64 = 1 << 30;
const P480: [usize; 2] = [832, 480];

fn setup(profile: &str, budget: Option<u64>) -> Setup {
    let profile = Profile::built_in(profile).expect("it comes with animd");
    Setup { budget, ..Setup::from(&profile) }
}

fn request(settings: Settings) -> Request {
    settings.resolve_for(&Recipe::wan22_i2v_a14b().defaults, || 1).expect("valid settings")
}

fn plan(settings: Settings, setup: &Setup) -> Plan {
    Plan::new(&Recipe::wan22_i2v_a14b(), &request(settings), P480, setup)
}

fn distilled() -> Settings {
    Settings { sampler: Some(Sampler::Distill), ..Settings::default() }
}

fn experts(memory: &Memory) -> Vec<&Placement> {
    let dits = memory.networks.iter().filter(|network| network.component == Component::Dit);
    dits.map(|network| &network.placement).collect()
}

/// Returns how many leading groups of both experts stay, and how many of them stay all the time.
fn stay(memory: &Memory) -> (usize, usize) {
    let [high, low] = experts(memory)[..] else { panic!("there are two") };
    assert_eq!((high.resident, high.slots, high.turns), (low.resident, low.slots, low.turns));
    (high.resident, high.turns.unwrap_or(high.resident))
}

#[test]
fn a_large_card_holds_both() {
    // 43 GiB is what the pipeline may take with everything there.
    let plan = plan(Settings::default(), &setup("h200", None));
    assert!(plan.memory.networks.iter().all(|network| network.placement.place == Place::Device));
    assert!(plan.memory.total() <= 43 * GIB, "{}", gib(plan.memory.total()));
    assert_eq!((plan.memory.host.pinned, &plan.forwards_of[..]), (0, &[30, 50][..]));
}

#[test]
fn a_card_of_48_gib_sets_the_text_encoder_aside() {
    let memory = plan(Settings::default(), &setup("l40s", Some(40 * GIB))).memory;
    let at = |component| {
        let mut those = memory.networks.iter().filter(move |network| network.component == component);
        those.next().expect("it is planned").placement.place
    };
    assert_eq!((at(Component::Dit), at(Component::T5)), (Place::Device, Place::Disk));
    assert!(memory.fits() && memory.host.pinned == 0);
}

#[test]
fn smaller_cards_share_what_there_is() {
    let mut before = (0, 0);
    for budget in 8..=40 {
        let memory = plan(distilled(), &setup("rtx4090", Some(budget * GIB))).memory;
        if !memory.fits() {
            assert!(budget < 10, "{budget} GiB are enough for two blocks at a time");
            continue;
        }
        let [high, low] = experts(&memory)[..] else { panic!("there are two") };
        let now = stay(&memory);
        assert!(now >= before, "{budget} GiB: {now:?} after {before:?}");
        before = now;
        if high.place == Place::Device {
            continue;
        }
        let (resident, own) = now;
        assert!(
            own == 0 || resident == high.groups.len(),
            "blocks pass through while others have two places"
        );
        // Host memory has both, each once.
        let both = high.bytes() + low.bytes();
        assert!(memory.host.pinned >= both && memory.host.pinned < both + GIB, "{budget} GiB");
        let denoise =
            memory.phases.iter().find(|phase| phase.stage == Stage::Denoise).expect("it is planned");
        let held = high.working() + low.own_bytes();
        assert!(denoise.weights() >= held && denoise.weights() < held + GIB, "{budget} GiB");
        assert!(memory.total() <= budget * GIB);
        // One more group would have been too much.
        let room = budget * GIB - memory.context - memory.work_to_take();
        if resident == high.groups.len() && own < resident {
            let more = Placement { turns: Some(own + 1), ..low.clone() };
            assert!(high.working() + more.own_bytes() > room, "{budget} GiB: {own} stay for each");
        }
    }
    let of = |gib: u64| stay(&plan(distilled(), &setup("rtx4090", Some(gib * GIB))).memory);
    assert_eq!(of(22).0, 40, "24 GB hold one expert");
    assert!(of(22).1 < 20 && of(30).1 > 20 && of(15).0 < 40);
}

#[test]
fn the_change_of_experts_is_hidden() {
    let recipe = Recipe::wan22_i2v_a14b();
    let predicted = |card: &str, profile: &str, budget: u64| {
        let setup = setup(profile, Some(budget * GIB));
        let plan = plan(distilled(), &setup);
        let card = cards::named(card).expect("it is known");
        Prediction::new(&recipe, &plan, &setup, &card).expect("it has the kernels")
    };
    for (card, profile, budget) in
        [("h200", "h200", 26), ("rtx4090", "rtx4090", 22), ("rtx5090", "rtx5090", 30)]
    {
        let prediction = predicted(card, profile, budget);
        let exchange = prediction.exchange.expect("two take turns");
        assert!(exchange.bytes > GIB && exchange.waiting <= 0.2, "{card}: {exchange:?}");
        assert!(prediction.to_string().contains("because experts take turns"), "{prediction}");
    }
    let all_there = predicted("h200", "h200", 100);
    assert_eq!(all_there.exchange.map(|exchange| (exchange.bytes, exchange.waiting)), Some((0, 0.0)));
    // A job of one expert changes nothing.
    let alone = Settings { steps_high: Some(4), ..distilled() };
    let setup = setup("h200", Some(26 * GIB));
    let plan = plan(alone, &setup);
    let card = cards::named("h200").expect("it is known");
    assert_eq!(Prediction::new(&recipe, &plan, &setup, &card).expect("it has the kernels").exchange, None);
}

#[test]
fn steps_without_loras_take_a_third_transformer() {
    let three = || Settings { steps_base: Some(2), ..distilled() };
    let forwards = |plan: &Plan| (plan.steps, plan.forwards.computed, plan.forwards_of.clone());
    let (two, all) = (plan(distilled(), &setup("h200", None)), plan(three(), &setup("h200", None)));
    assert_eq!(forwards(&all), (6, 8, vec![2, 2, 4]), "two steps with guidance, four without");
    // It stays on a large card beside the others.
    let [high, _, base] = experts(&all.memory)[..] else { panic!("there are three") };
    assert_eq!((base.place, base.bytes()), (Place::Device, high.bytes()));
    let more = all.memory.weights_to_take() - two.memory.weights_to_take();
    assert_eq!(more, base.bytes());
    assert!(all.to_string().contains("4 of them by the high-noise expert without LoRAs"), "{all}");

    // On a smaller one it takes its turn, and waits in the machine's memory, which may be too small.
    let mut small = setup("rtx4090", Some(22 * GIB));
    let plan = plan(three(), &small);
    let placed = experts(&plan.memory);
    assert!(placed.iter().all(|dit| dit.turns == placed[0].turns && dit.resident == 40 && dit.slots == 0));
    assert!(plan.memory.fits() && plan.memory.host.pinned >= 3 * placed[0].bytes());
    let recipe = Recipe::wan22_i2v_a14b();
    let card = cards::named("rtx4090").expect("it is known");
    let prediction = Prediction::new(&recipe, &plan, &small, &card).expect("it has the kernels");
    let exchange = prediction.exchange.expect("three take turns");
    assert!(exchange.bytes > 2 * 10 * GIB && exchange.waiting < 0.4, "{exchange:?}");
    small.host_memory = Some(32 * GIB);
    let refused = refusal(&recipe, &request(three()), P480, &small).expect("it has no room").to_string();
    assert!(refused.contains("of the machine's memory to wait in"), "{refused}");
    assert_eq!(refusal(&recipe, &request(distilled()), P480, &small), None);
}
