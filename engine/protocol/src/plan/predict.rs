//! Predicts how long the stages of a planned job take on a card.
//!
//! Work is divided by the rates of [`cards`](super::cards). Weights that are not on the device are copied while earlier
//! ones compute, so that a pass takes the longer of both; what nothing hides is added.

use std::fmt;

use serde::Serialize;

use super::cards::Card;
use super::{Network, Placement, Plan, Setup, what};
use crate::profile::{AttentionKind, Place};
use crate::progress::Stage;
use crate::recipe::{Component, Recipe};

/// The bytes that kernels of rows read and write in a block of the DiT, by token and channel: 9.1 GB for 32,760 tokens
/// of 5,120 (kernels/NOTES.md, "A block of the DiT").
const ROW_BYTES: f64 = 54.3;
/// What patches, head and everything else around the blocks add to that: 2.3 of 41.5 ms and launches.
const AROUND: f64 = 1.1;
/// Bytes a second from the page cache through a pinned ring to the device: three passes of the host's memory.
const STAGED: f64 = 7e9;
/// Seconds that the video encoder takes after the last frame, by pixel and frame: 0.3 s for 81 frames of 832x480.
const WRITE: f64 = 0.3 / (81.0 * 832.0 * 480.0);

/// The seconds of one forward of the DiT.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ForwardSeconds {
    /// Linear layers.
    pub linear: f64,
    /// Self-attention.
    pub self_attention: f64,
    /// Cross-attention.
    pub cross_attention: f64,
    /// Norms, rotary embedding, quantisation and what is around the blocks.
    pub rows: f64,
    /// Copies of the blocks that do not stay on the device, all together.
    pub copies: f64,
    /// The seconds of these copies that no computation hides.
    pub waiting: f64,
}

impl ForwardSeconds {
    /// Returns the seconds of a forward whose weights are all on the device.
    pub fn compute(&self) -> f64 {
        self.linear + self.self_attention + self.cross_attention + self.rows
    }

    /// Returns the seconds of a forward.
    pub fn total(&self) -> f64 {
        self.compute() + self.waiting
    }
}

/// The predicted seconds of a job whose model is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The card's name.
    pub card: String,
    /// The seconds of each stage, in order.
    pub stages: Vec<(Stage, f64)>,
    /// One forward of the DiT.
    pub forward: ForwardSeconds,
    /// What it takes that experts take turns; `None` for a job of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<Exchange>,
    /// The bytes of weights that are copied to the device in each forward.
    pub streamed_per_forward: u64,
    /// The bytes of weights that are copied to the device in the whole job.
    pub streamed: u64,
    /// The sum of all stages.
    pub seconds: f64,
}

/// What it takes that experts which have no room beside each other take turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// The bytes of weights that come to the device because another expert's turn begins. Those of the first expert come back
    /// for the next job.
    pub bytes: u64,
    /// The seconds of these copies that no computation hides.
    pub waiting: f64,
}

impl Exchange {
    /// The groups of the next expert come while the last forward before its turn leaves their place; the last group, and what is
    /// around the groups, come after it.
    fn new(dit: &Placement, turns: usize, copy_rate: f64, compute: f64) -> Self {
        let bytes = dit.exchanged_bytes();
        let around = if dit.turns == Some(0) { dit.around } else { 0 };
        let groups = bytes.saturating_sub(around);
        let last = dit.groups.iter().take(dit.resident).next_back().copied().unwrap_or_default().min(groups);
        let [groups, last, around] = [groups, last, around].map(|bytes| bytes as f64 / copy_rate);
        let waiting = around + last.max(groups - compute);
        Self { bytes: turns as u64 * bytes, waiting: (turns as f64 - 1.0) * waiting }
    }
}

impl Prediction {
    /// Predicts a job on a card; `None` if the card has no kernels for the setup's precisions.
    pub fn new(recipe: &Recipe, plan: &Plan, setup: &Setup, card: &Card) -> Option<Self> {
        let (memory, work, rates) = (&plan.memory, &plan.work, &card.rates);
        let of = |component| memory.networks.iter().filter(move |n| n.component == component);
        let branches = if plan.guidance { 2.0 } else { 1.0 };

        let dit = &of(Component::Dit).next()?.placement;
        let forward = forward(recipe, plan, setup, card, dit)?;
        // The keys and values of the context take one pass over the blocks for each prompt and expert, which computes next to
        // nothing. The first pass also brings the blocks whose place another network had.
        let gone = dit.resident_bytes().saturating_sub(kept_before(plan, dit));
        let turns = plan.forwards_of.iter().filter(|forwards| **forwards > 0).count().max(1);
        let context = turns as f64 * branches * dit.streamed_bytes() as f64 + gone as f64;
        let exchange = (turns > 1).then(|| Exchange::new(dit, turns, card.copy_rate, forward.compute()));
        let waiting = exchange.map_or(0.0, |exchange| exchange.waiting);
        let denoise =
            context / card.copy_rate + waiting + f64::from(plan.forwards.computed) * forward.total();

        // An encoder is read once for each prompt or picture, and computes while it is read.
        let visit = |component: Component, passes: f64, flops: f64| -> Option<f64> {
            let rate = match component {
                Component::Vae => rates.convolutions,
                _ => rates.linear(setup.precision.of(component))?,
            };
            let read: f64 = of(component).map(|network| passes * reading(network, card)).sum();
            Some(read.max(flops / rate))
        };
        let passes = |component| match of(component).next() {
            Some(Network { placement: Placement { slots: 1.., .. }, .. }) => branches,
            _ => 1.0,
        };
        let mut stages = vec![(Stage::Text, visit(Component::T5, passes(Component::T5), work.text)?)];
        if work.clip > 0.0 {
            stages.push((Stage::Image, visit(Component::Clip, 1.0, work.clip)?));
        }
        let pixels = (plan.width * plan.height) as f64 * f64::from(plan.frames);
        stages.extend([
            (Stage::VaeEncode, visit(Component::Vae, 1.0, work.vae_encode)?),
            (Stage::Denoise, denoise),
            (Stage::VaeDecode, visit(Component::Vae, 1.0, work.vae_decode)?),
            (Stage::Write, WRITE * pixels),
        ]);
        let streamed_per_forward = dit.streamed_bytes();
        let encoders = memory.networks.iter().filter(|n| n.component != Component::Dit);
        let visits: f64 = encoders.map(|n| passes(n.component) * visited_bytes(n) as f64).sum();
        let exchanged = exchange.map_or(0, |exchange| exchange.bytes);
        let streamed =
            u64::from(plan.forwards.computed) * streamed_per_forward + exchanged + (visits + context) as u64;
        let seconds = stages.iter().map(|(_, seconds)| seconds).sum();
        let card = card.name.clone();
        Some(Self { card, stages, forward, exchange, streamed_per_forward, streamed, seconds })
    }

    /// Returns whether copies take no time of their own: whether a forward waits for less than a hundredth of its time.
    pub fn streaming_is_hidden(&self) -> bool {
        self.forward.waiting <= 0.01 * self.forward.compute()
    }
}

/// Returns the bytes that come to the device when a network works.
fn visited_bytes(network: &Network) -> u64 {
    if network.placement.place == Place::Device { 0 } else { network.bytes }
}

/// Returns the seconds until a network has come to the device once.
fn reading(network: &Network, card: &Card) -> f64 {
    match network.placement.place {
        Place::Device => 0.0,
        Place::Host => network.bytes as f64 / card.copy_rate,
        // Files have the encoders in 16 bits.
        Place::Disk => 2.0 * network.parameters as f64 / STAGED.min(card.copy_rate),
    }
}

/// Returns the bytes of the DiT's leading groups that are on the device in every stage before it works.
fn kept_before(plan: &Plan, dit: &Placement) -> u64 {
    if dit.place == Place::Device {
        return dit.resident_bytes();
    }
    let earlier = plan.memory.phases.iter().take_while(|phase| phase.stage != Stage::Denoise);
    let name = plan.memory.networks.first().map(|network| network.name.as_str());
    let kept = earlier.map(|phase| {
        let held = phase.held.iter().find(|held| Some(held.network.as_str()) == name);
        held.map_or(0, |held| dit.groups.iter().take(held.resident).sum::<u64>())
    });
    kept.min().unwrap_or_default()
}

fn forward(
    recipe: &Recipe,
    plan: &Plan,
    setup: &Setup,
    card: &Card,
    dit: &Placement,
) -> Option<ForwardSeconds> {
    let (work, rates) = (&plan.work.forward, &card.rates);
    let config = recipe.experts.first().map(|expert| &expert.network.config)?;
    let attention = if work.self_attention > 0.0 { setup.attention } else { AttentionKind::Exact };
    let bytes = ROW_BYTES * (plan.tokens * config.dim * config.num_layers) as f64;
    let mut seconds = ForwardSeconds {
        linear: work.linear / rates.linear(setup.precision.dit)?,
        self_attention: work.self_attention / rates.attention(attention),
        cross_attention: work.cross_attention / rates.exact_attention,
        rows: AROUND * bytes / rates.rows,
        copies: dit.streamed_bytes() as f64 / card.copy_rate,
        waiting: 0.0,
    };
    seconds.waiting = waiting(dit, seconds.compute(), seconds.copies);
    Some(seconds)
}

/// Returns the seconds that a forward waits for copies, in a row of forwards. The slots are filled while the resident
/// groups compute; what has no slot is copied when the first streamed group has left its own, and then the last one
/// computes.
fn waiting(dit: &Placement, compute: f64, copies: f64) -> f64 {
    let groups = dit.groups.len();
    let streamed = groups - dit.resident.min(groups);
    if streamed == 0 {
        return 0.0;
    }
    let (one, copy) = (compute / groups as f64, copies / streamed as f64);
    let without_slot = streamed.saturating_sub(dit.slots) as f64;
    let last = (dit.resident as f64 + 2.0) * one + without_slot * copy;
    (copies.max(last) - compute).max(0.0)
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "predicted for {}, with the model loaded    seconds", self.card)?;
        for (stage, seconds) in &self.stages {
            writeln!(f, "  {:40} {seconds:9.2}", what(*stage))?;
        }
        writeln!(f, "  {:40} {:9.2}", "the whole job", self.seconds)?;
        let ForwardSeconds { linear, self_attention, cross_attention, rows, copies, .. } = self.forward;
        write!(
            f,
            "a forward of the DiT takes {:.2} s: linear layers {linear:.2}, self-attention {self_attention:.2}, \
             cross-attention {cross_attention:.2}, rows {rows:.2}",
            self.forward.total()
        )?;
        if let Some(Exchange { bytes, waiting }) = self.exchange.filter(|exchange| exchange.bytes > 0) {
            let bytes = super::gib(bytes);
            write!(
                f,
                "\n{bytes} are copied to the GPU because experts take turns, for which it waits {waiting:.2} s"
            )?;
        }
        let streamed = super::gib(self.streamed_per_forward);
        match (self.streamed_per_forward, self.streaming_is_hidden()) {
            (0, _) => Ok(()),
            (_, true) => write!(
                f,
                "\nit copies {streamed} to the GPU meanwhile, in {copies:.2} s that it does not wait for"
            ),
            (_, false) => write!(
                f,
                "\nit copies {streamed} to the GPU in {copies:.2} s, of which it waits for {:.2} s",
                self.forward.waiting
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cards::named;
    use super::*;
    use crate::profile::{Precision, Profile};
    use crate::request::{Sampler, Settings};

    fn predict(card: &str, size: [usize; 2], precision: Precision, budget: Option<u64>) -> Prediction {
        let mut setup = Setup::from(&Profile::built_in("h200").expect("it comes with animd"));
        (setup.precision.dit, setup.budget) = (precision, budget.map(|gib| gib << 30));
        let settings = Settings { sampler: Some(Sampler::Distill), ..Settings::default() };
        let request = settings.resolve(|| 1).expect("valid settings");
        let recipe = Recipe::wan21_i2v_14b();
        let plan = Plan::new(&recipe, &request, size, &setup);
        setup.precision.text = if card == "h200" { Precision::Bf16 } else { Precision::Int8 };
        Prediction::new(&recipe, &plan, &setup, &named(card).expect("it is known"))
            .expect("it has the kernels")
    }

    #[track_caller]
    fn near(got: f64, want: f64, by: f64) {
        assert!((got / want - 1.0).abs() <= by, "{got} is not {want}");
    }

    #[test]
    fn an_h200_is_predicted_as_it_was_measured() {
        // kernels/NOTES.md, 2026-11-23: forwards of 1.66 and 6.53 s, stages of a distilled job added up to 7.45 s.
        let small = predict("h200", [832, 480], Precision::Fp8, None);
        near(small.forward.total(), 1.66, 0.05);
        near(small.seconds, 7.5, 0.07);
        let large = predict("h200", [1280, 720], Precision::Fp8, None);
        near(large.forward.total(), 6.53, 0.05);
        near(large.seconds, 28.9, 0.05);
        near(predict("h200", [832, 480], Precision::Bf16, None).forward.total(), 2.19, 0.05);
        assert_eq!((small.streamed, small.streamed_per_forward), (0, 0));
    }

    #[test]
    fn an_rtx_4090_is_predicted_as_its_peaks_say() {
        // int8 at 430 T, attention at 500 T, rows at 0.83 TB/s: 4.2 and 15.0 s a forward.
        let small = predict("rtx4090", [832, 480], Precision::Int8, Some(22));
        near(small.forward.total(), 4.25, 0.03);
        near(small.seconds, 23.0, 0.1);
        let large = predict("rtx4090", [1280, 720], Precision::Int8, Some(22));
        near(large.forward.total(), 15.0, 0.04);
        near(large.seconds, 71.0, 0.1);
    }

    #[test]
    fn copies_are_hidden_or_waited_for() {
        // 15 GiB in 0.65 s lie beneath 4 s; through half the lanes of a slower card, beneath 17 s.
        for (card, budget) in [("rtx4090", 11), ("rtx4060ti", 11), ("rtx3060", 11)] {
            let prediction = predict(card, [832, 480], Precision::Int8, Some(budget));
            assert!(prediction.streamed_per_forward > 10 << 30 && prediction.streaming_is_hidden(), "{card}");
        }
        // A small video computes less than the copies take.
        let small = predict("rtx4090", [256, 256], Precision::Int8, Some(11));
        assert!(!small.streaming_is_hidden());
        let ForwardSeconds { copies, .. } = small.forward;
        assert!(small.forward.total() <= copies + small.forward.compute() && small.forward.waiting > 0.0);
        assert!(small.to_string().contains("of which it waits for"), "{small}");
    }

    #[test]
    fn a_forward_waits_for_what_its_copies_take_beyond_its_work() {
        let dit = |resident, slots| Placement {
            place: Place::Host,
            groups: vec![1; 10],
            around: 0,
            resident,
            slots,
            turns: None,
        };
        // All stay; copies and work take the same time; copies twice as long, without and with resident groups.
        assert_eq!(waiting(&dit(10, 0), 10.0, 0.0), 0.0);
        assert_eq!(waiting(&dit(0, 2), 10.0, 10.0), 0.0);
        assert_eq!(waiting(&dit(0, 2), 10.0, 20.0), 10.0);
        assert_eq!(waiting(&dit(4, 2), 10.0, 12.0), 4.0);
        assert_eq!(waiting(&dit(4, 2), 10.0, 6.0), 0.0);
    }

    #[test]
    fn a_card_without_the_kernels_is_not_predicted() {
        let recipe = Recipe::wan21_i2v_14b();
        let request = Settings::default().resolve(|| 1).expect("valid settings");
        let mut setup = Setup::from(&Profile::built_in("h200").expect("it comes with animd"));
        setup.precision.dit = Precision::Fp8;
        let plan = Plan::new(&recipe, &request, [832, 480], &setup);
        let ampere = named("rtx3090").expect("it is known");
        assert_eq!(Prediction::new(&recipe, &plan, &setup, &ampere), None, "it has no e4m3");
    }
}
