//! Sets what was measured beside what is predicted: for the card that was measured, and for one that it stood in for.

use animd_protocol::plan::cards::Card;
use animd_protocol::plan::{Plan, Prediction, Setup};
use animd_protocol::progress::Stage;
use animd_protocol::recipe::Recipe;
use serde::Serialize;

use super::{Measurement, Row};

/// The cards that times are predicted for.
#[derive(Clone, Debug, Default)]
pub struct Cards {
    /// The card that is measured, with the kernels that it runs; `None` if its rates are not known.
    pub here: Option<Card>,
    /// The card that the measured one stands in for.
    pub pretended: Option<Card>,
}

/// A row's stages, in seconds of one job.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The row.
    pub row: Row,
    /// The stages in their order, then one forward of the DiT, then the whole job.
    pub stages: Vec<Compared>,
    /// The bytes of weights that each forward copies to the GPU.
    pub streamed_per_forward: u64,
}

/// One stage's seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The stage's name, `forward` or `job`.
    pub what: &'static str,
    /// As measured.
    pub measured: f64,
    /// As predicted for the card that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f64>,
    /// As predicted for the card that it stood in for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretended: Option<f64>,
}

impl Comparison {
    /// Compares a row with the predictions for its plan; `branches` is the number of its prompts.
    pub(super) fn new(
        cards: &Cards,
        recipe: &Recipe,
        plan: &Plan,
        setup: &Setup,
        measured: &Measurement,
        branches: f64,
    ) -> Self {
        let predict =
            |card: &Option<Card>| card.as_ref().and_then(|card| Prediction::new(recipe, plan, setup, card));
        let (here, pretended) = (predict(&cards.here), predict(&cards.pretended));
        let stage = |prediction: &Option<Prediction>, stage: Stage| {
            let stages = prediction.as_ref().map(|prediction| &prediction.stages);
            stages.and_then(|stages| stages.iter().find(|(of, _)| *of == stage).map(|(_, seconds)| *seconds))
        };
        let m = measured;
        let skipped = m.forward_skipped.as_ref().map_or(0.0, |seconds| seconds.median);
        let forwards = f64::from(m.computed) * m.forward.median + f64::from(m.skipped) * skipped;
        let mut stages: Vec<Compared> = [
            (Stage::Text, branches * m.text.median),
            (Stage::Image, m.image.median),
            (Stage::VaeEncode, m.vae_encode.median),
            (Stage::Denoise, branches * m.context.median + forwards),
            (Stage::VaeDecode, m.vae_decode.median),
            (Stage::Write, (m.vae_decode_and_write.median - m.vae_decode.median).max(0.0)),
        ]
        .into_iter()
        .map(|(of, measured)| Compared {
            what: of.name(),
            measured,
            predicted: stage(&here, of),
            pretended: stage(&pretended, of),
        })
        .collect();
        let all = |what, measured, of: fn(&Prediction) -> f64| Compared {
            what,
            measured,
            predicted: here.as_ref().map(of),
            pretended: pretended.as_ref().map(of),
        };
        stages.push(all("forward", m.forward.median, |prediction| prediction.forward.total()));
        stages.push(all("job", m.job, |prediction| prediction.seconds));
        let dit = plan.memory.networks.first();
        let streamed_per_forward = dit.map_or(0, |dit| dit.placement.streamed_bytes());
        Self { row: m.row, stages, streamed_per_forward }
    }
}
