//! Announces the service's state to everybody who shows it.

use animd_common::bus::ServiceState;

use animd_protocol::progress::Stage;

use super::Supervisor;
use super::state::{Absence, EngineState, Trouble};

impl Supervisor {
    /// Announces the current state.
    pub(super) fn show(&self) {
        let (state, text) = self.status();
        self.tools.events.set_status(state, text);
    }

    fn status(&self) -> (ServiceState, String) {
        let (state, text) = self.engine_status();
        let rests = self.rest.sentence().map(|why| format!("jobs wait, because {why}"));
        let waits = self.tools.delivery.waiting.sentence();
        let Some(trouble) = self.refusal().or(rests).or(waits) else { return (state, text) };
        match state {
            ServiceState::Idle => (ServiceState::NoOutput, format!("{trouble}; it is tried again by itself")),
            state => (state, format!("{text}; {trouble}")),
        }
    }

    fn engine_status(&self) -> (ServiceState, String) {
        let paused = self.paused_text();
        let unusable = self.configured_model_trouble();
        if let Some(running) = self.engine.jobs().next() {
            let id = running.job.id;
            // Not with the step: the sentence is sent to systemd whenever it changes.
            let live = self.tools.events.live(id);
            let stage = live.map_or(Stage::Load, |live| live.progress.stage).name();
            let then = paused.map(|text| format!("; then {text}")).unwrap_or_default();
            return (ServiceState::Busy, format!("job {id} is running: {stage}{then}"));
        }
        if let Some(text) = self.held_text() {
            return (ServiceState::Busy, text);
        }
        match &self.engine {
            EngineState::Absent(Absence::Asleep { .. }) => (
                ServiceState::Paused,
                "the machine is going to sleep; the queue continues when it wakes".into(),
            ),
            EngineState::Absent(absence) => match (&self.trouble, unusable, paused, absence) {
                (Some(Trouble { state, text }), ..) => (*state, text.clone()),
                (None, Some(text), ..) => (ServiceState::NoWeights, text),
                (None, None, Some(text), _) => (ServiceState::Paused, text),
                (None, None, None, Absence::Unloaded) => (
                    ServiceState::Idle,
                    "waiting for pictures; the model is unloaded, and the next job loads it".into(),
                ),
                (None, None, None, _) => (ServiceState::Starting, "the service is starting".into()),
            },
            EngineState::Starting(_) => match paused {
                Some(text) => (ServiceState::Paused, text),
                None => (ServiceState::Loading, "the engine is starting".into()),
            },
            EngineState::Idle { hello, .. } | EngineState::Busy { hello, .. } => match (paused, unusable) {
                (Some(text), _) => (ServiceState::Paused, text),
                // The engine has another model, and jobs of the configured one wait.
                (None, Some(text)) => (ServiceState::NoWeights, text),
                (None, None) => (
                    ServiceState::Idle,
                    format!("waiting for pictures; {} on {}", hello.model, hello.backend),
                ),
            },
        }
    }

    /// Returns a sentence that says who paused the queue and what continues it, if it is paused.
    fn paused_text(&self) -> Option<String> {
        let who = self.tools.holds.paused()?;
        let end = match self.tools.holds.paused_until_resumed() {
            Some(_) => "`animctl resume` continues it",
            None => "it continues when that program ends",
        };
        Some(format!("the queue is paused {who}; {end}"))
    }
}
