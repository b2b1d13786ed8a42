//! The facts of a job that everybody on the bus may know: no prompt, no paths, no errors.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use animd_common::files::show;
use animd_protocol::lora::LoraChoice;
use animd_protocol::request::Request;
use zbus::Variant;

use super::answer::{Answer, Dict};
use crate::events::Live;
use crate::store::ledger::{Job, Outcome, State, ToldLora};

/// The public facts of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The job's number.
    pub id: u64,
    /// The uid of the job's owner.
    pub owner: u32,
    /// The job's state.
    pub state: State,
    /// The stage that runs; empty if none does.
    pub stage: &'static str,
    /// Denoising steps: how many are done, and how many there are.
    pub step: (u32, u32),
    /// The progress, from 0 to 1.
    pub progress: f64,
    /// When the end is expected, in microseconds since the epoch; 0 while it is not known.
    pub expected_end: u64,
    /// The priority: a waiting job with a larger one runs first.
    pub priority: i32,
    /// Microseconds since the epoch.
    pub created: u64,
    /// Microseconds since the epoch; 0 before.
    pub started: u64,
    /// Microseconds since the epoch; 0 before.
    pub finished: u64,
}

impl Facts {
    /// Returns the facts from a job's row and from what the engine reported last.
    pub fn new(job: &Job, live: Option<Live>) -> Self {
        let live = live.filter(|_| job.state == State::Running);
        let steps = job.request.as_ref().map_or(0, Request::total_steps);
        let (stage, step, progress) = match (job.state, live) {
            (_, Some(live)) => (
                live.progress.stage.name(),
                (live.progress.step, live.progress.steps),
                live.progress.fraction,
            ),
            // A job whose video is being saved must not look as if it started again.
            (State::Done, _) => ("", (steps, steps), 1.0),
            (State::Finishing, _) if job.outcome == Some(Outcome::Done) => ("", (steps, steps), 1.0),
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
            priority: job.priority,
            created: job.created_us,
            started: job.started_us.unwrap_or(0),
            finished: job.finished_us.unwrap_or(0),
        }
    }

    /// Returns the job's entry in `List`; `canceling` says whether it runs and has been cancelled.
    pub fn dict(&self, position: u32, canceling: bool) -> Dict {
        Answer::default()
            .with("id", self.id)
            .with("owner", self.owner)
            .with("created", self.created)
            .with("started", self.started)
            .with("finished", self.finished)
            .with("position", position)
            .with("state", self.state.name())
            .with("stage", self.stage)
            .with("step", self.step)
            .with("progress", self.progress)
            .with("expected_end", self.expected_end)
            .with("priority", self.priority)
            .with("canceling", canceling)
            .dict()
    }

    /// Returns the properties whose changes are signalled, with their values.
    fn properties(&self) -> [(&'static str, Variant<'static>); 6] {
        [
            ("State", self.state.name().into()),
            ("Stage", self.stage.into()),
            ("Step", Variant::new(self.step)),
            ("Progress", self.progress.into()),
            ("ExpectedEnd", self.expected_end.into()),
            ("Priority", self.priority.into()),
        ]
    }

    /// Returns the properties that differ from `before`.
    pub fn changed(&self, before: &Self) -> HashMap<&'static str, Variant<'static>> {
        let old = before.properties();
        self.properties().into_iter().zip(old).filter(|(new, old)| new != old).map(|(new, _)| new).collect()
    }
}

/// Returns what an entry in `List` has besides for callers who may know it.
pub fn private(job: &Job) -> Dict {
    Answer::default()
        .with("name", show(&job.name))
        .with("error_code", job.error_code.clone())
        .with("error_text", job.error_text.clone())
        .with("loras", loras(job))
        .dict()
}

/// Returns the `LoRAs` of a job that has any: the name, one strength or one for each of two transformers, perhaps with that in steps
/// which leave `LoRAs` out before them, and the SHA-256 of the file in hexadecimal, which is empty while it is not known.
pub fn loras(job: &Job) -> Option<Vec<ToldLora>> {
    let wanted = job.request.as_ref().map(|request| &request.lora).filter(|wanted| !wanted.is_empty())?;
    let row = |choice: &LoraChoice| {
        let strengths = choice.strengths().collect();
        (choice.name.as_str().into(), strengths, choice.sha256.clone().unwrap_or_default().into())
    };
    Some(wanted.iter().map(row).collect())
}

/// The facts of one job's object. The object's properties read them, and the mirror keeps them up to date.
pub struct Card(Mutex<Facts>);

impl Card {
    /// Returns the facts as they are now.
    pub fn facts(&self) -> Facts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, facts: Facts) -> Facts {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), facts)
    }
}

/// All jobs that have an object, and the queue in its order. With a longer queue no operation costs more than a search
/// in a sorted list does.
#[derive(Default)]
pub struct Cards(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    cards: HashMap<u64, Arc<Card>>,
    waiting: Vec<(Reverse<i32>, u64)>,
}

impl Cards {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the job's card; makes one from `facts` if there is none.
    #[expect(clippy::needless_pass_by_value, reason = "callers have made it for this")]
    pub fn card(&self, facts: Facts) -> Arc<Card> {
        let mut inner = self.lock();
        if let Some(card) = inner.cards.get(&facts.id) {
            return card.clone();
        }
        inner.stand(&facts);
        let card = Arc::new(Card(Mutex::new(facts.clone())));
        inner.cards.insert(facts.id, card.clone());
        card
    }

    /// Replaces the facts of a job that has a card, and returns the old ones.
    pub fn replace(&self, facts: Facts) -> Option<Facts> {
        let mut inner = self.lock();
        let card = inner.cards.get(&facts.id)?.clone();
        let before = card.facts();
        if (before.state, before.priority) != (facts.state, facts.priority) {
            inner.leave(&before);
            inner.stand(&facts);
        }
        Some(card.replace(facts))
    }

    /// Removes a job that no longer has an object.
    pub fn remove(&self, id: u64) {
        let mut inner = self.lock();
        if let Some(card) = inner.cards.remove(&id) {
            inner.leave(&card.facts());
        }
    }

    /// Returns a job's position in the queue: 1 for the next job, 0 for one that does not wait.
    pub fn position(&self, facts: &Facts) -> u32 {
        if facts.state != State::Queued {
            return 0;
        }
        let place = (Reverse(facts.priority), facts.id);
        self.lock().waiting.binary_search(&place).map_or(0, |at| at as u32 + 1)
    }

    /// Returns whether the job has an object.
    pub fn has(&self, id: u64) -> bool {
        self.lock().cards.contains_key(&id)
    }

    /// Returns how many jobs wait.
    pub fn waiting(&self) -> u32 {
        self.lock().waiting.len() as u32
    }

    /// Returns whether no job has an object.
    pub fn is_empty(&self) -> bool {
        self.lock().cards.is_empty()
    }

    /// Returns the numbers of all jobs that have an object.
    pub fn ids(&self) -> Vec<u64> {
        self.lock().cards.keys().copied().collect()
    }
}

impl Inner {
    fn stand(&mut self, facts: &Facts) {
        let place = (Reverse(facts.priority), facts.id);
        if facts.state == State::Queued
            && let Err(at) = self.waiting.binary_search(&place)
        {
            self.waiting.insert(at, place);
        }
    }

    fn leave(&mut self, facts: &Facts) {
        if let Ok(at) = self.waiting.binary_search(&(Reverse(facts.priority), facts.id)) {
            self.waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(id: u64, state: State, priority: i32) -> Facts {
        Facts {
            id,
            owner: 0,
            state,
            stage: "",
            step: (0, 4),
            progress: 0.0,
            expected_end: 0,
            priority,
            created: 0,
            started: 0,
            finished: 0,
        }
    }

    #[test]
    fn positions_follow_priority_then_number() {
        let cards = Cards::default();
        for (id, priority) in [(3, 0), (1, 0), (2, 5)] {
            cards.card(facts(id, State::Queued, priority));
        }
        let position = |id, priority| cards.position(&facts(id, State::Queued, priority));
        assert_eq!([position(2, 5), position(1, 0), position(3, 0)], [1, 2, 3]);
        cards.replace(facts(2, State::Running, 5));
        assert_eq!([position(1, 0), position(3, 0)], [1, 2]);
        cards.replace(facts(3, State::Queued, 1));
        assert_eq!([position(3, 1), position(1, 0)], [1, 2]);
        cards.remove(3);
        assert_eq!((position(1, 0), cards.waiting()), (1, 1));
        assert_eq!(cards.position(&facts(2, State::Running, 5)), 0);
    }
}
