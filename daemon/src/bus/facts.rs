//! What everybody on the bus may know of a job: no prompt, no paths, no errors.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::board::Live;
use crate::ledger::{Job, State};

/// The public facts of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The number.
    pub id: u64,
    /// Whose it is.
    pub owner: u32,
    /// Where it stands.
    pub state: State,
    /// The stage under way; empty without one.
    pub stage: &'static str,
    /// Denoising steps done and in all.
    pub step: (u32, u32),
    /// 0 to 1.
    pub progress: f64,
    /// Microseconds since the epoch; 0 while not known.
    pub expected_end: u64,
    /// Jobs before it in the queue, plus one; 0 when it does not wait.
    pub position: u32,
    /// Microseconds since the epoch.
    pub created: u64,
    /// Microseconds since the epoch; 0 before.
    pub started: u64,
    /// Microseconds since the epoch; 0 before.
    pub finished: u64,
}

impl Facts {
    /// Of a row, the engine's last word, and the queue in its order.
    pub fn new(job: &Job, live: Option<Live>, queue: &[u64]) -> Self {
        let live = live.filter(|_| job.state == State::Running);
        let steps = job.request.as_ref().map_or(0, |r| r.steps);
        let (stage, step, progress) = match (job.state, live) {
            (_, Some(live)) => (
                live.progress.stage.name(),
                (live.progress.step, live.progress.steps),
                live.progress.fraction,
            ),
            (State::Done, _) => ("", (steps, steps), 1.0),
            _ => ("", (0, steps), 0.0),
        };
        Self {
            id: job.id,
            owner: job.owner,
            state: job.state,
            stage,
            step,
            progress,
            expected_end: live.and_then(|l| l.expected_end_us).unwrap_or(0),
            position: queue.iter().position(|id| *id == job.id).map_or(0, |at| at as u32 + 1),
            created: job.created_us,
            started: job.started_us.unwrap_or(0),
            finished: job.finished_us.unwrap_or(0),
        }
    }

    /// As one entry of `List`.
    pub fn dict(&self) -> HashMap<String, OwnedVariant> {
        let mut dict = HashMap::from([
            ("id".to_owned(), OwnedVariant::from(self.id)),
            ("owner".to_owned(), self.owner.into()),
            ("created".to_owned(), self.created.into()),
            ("started".to_owned(), self.started.into()),
            ("finished".to_owned(), self.finished.into()),
        ]);
        for (name, value) in self.properties() {
            if let Ok(value) = value.try_into_owned() {
                dict.insert(snake(name), value);
            }
        }
        dict
    }

    /// The properties that change, with their values.
    fn properties(&self) -> [(&'static str, Variant<'static>); 6] {
        [
            ("State", self.state.name().into()),
            ("Stage", self.stage.into()),
            ("Step", Variant::new(self.step)),
            ("Progress", self.progress.into()),
            ("ExpectedEnd", self.expected_end.into()),
            ("Position", self.position.into()),
        ]
    }

    /// The properties that differ from `before`.
    pub fn changed(&self, before: &Self) -> HashMap<&'static str, Variant<'static>> {
        let old = before.properties();
        self.properties().into_iter().zip(old).filter(|(new, old)| new != old).map(|(new, _)| new).collect()
    }
}

/// `ExpectedEnd` as `expected_end`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}
