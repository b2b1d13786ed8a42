//! Starts the engine when one is wanted, with the chosen profile, and not too often.

use std::time::Duration;

use animd_common::bus::ServiceState;
use tokio::time::Instant;

use super::Supervisor;
use super::state::{Absence, EngineState, Trouble};
use crate::error::Result;

/// The first pause before an engine that ended is started again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause before an engine is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Makes the choice of the profile again when it may have changed, and ends an idle engine that no longer matches
    /// it.
    pub(super) async fn look(&mut self) -> Result<()> {
        if self.engine.is_working() {
            return Ok(());
        }
        let job = self.monitor.is_stale() && self.has_work().await?;
        if self.monitor.is_due() || job {
            self.monitor.look(self.engine.pid()).await;
        }
        // Without systemd nobody would start the service again.
        if self.monitor.needs_new_start() && std::env::var_os("NOTIFY_SOCKET").is_some() {
            self.tools.profiles.ask_new_start();
        }
        if self.engine.absence().is_none() && self.monitor.outdated() {
            self.replace_engine("another profile or model is configured").await;
        }
        Ok(())
    }

    /// Ends an idle engine, so that another one is started at once.
    pub(super) async fn replace_engine(&mut self, why: &str) {
        if let (Some(engine), _) = self.engine.take(Absence::Due) {
            tracing::info!("the engine is ended: {why}");
            self.patiently(engine.end(Duration::ZERO)).await;
            self.next_start = Instant::now();
        }
    }

    /// Starts an engine if there is none, one is wanted, and the pause is over.
    pub(super) async fn start_engine(&mut self) -> Result<()> {
        if self.engine.absence().is_none() {
            return Ok(());
        }
        self.wanted = false;
        let config = &self.tools.config.get();
        // Without a model nothing is started; the state says so.
        let Some(model) = &self.choose_model().await? else { return Ok(()) };
        self.wanted = self.is_wanted().await?;
        if !self.wanted || Instant::now() < self.start_due() {
            return Ok(());
        }
        if !self.monitor.is_fresh() {
            // The engine takes its memory now, so the driver is asked about it now.
            self.monitor.look(None).await;
        }
        let start = match self.monitor.start() {
            Ok(Some(start)) => start,
            Ok(None) => {
                self.wanted = false;
                let text = self.tools.profiles.choice().text();
                self.trouble = Some(Trouble { state: ServiceState::NoGpu, text });
                return Ok(());
            }
            Err(e) => {
                self.trouble = Some(Trouble::no_engine(e.to_string()));
                self.pause();
                return Ok(());
            }
        };
        self.engine = EngineState::Absent(Absence::Due);
        if self.model.name().is_none() {
            self.unusable = None;
        }
        let greeted = match self.launch.launch(config, model, &start) {
            Ok(mut engine) => match engine.greet().await {
                Ok(()) => Ok(engine),
                // It has ended already, and what it said before that is still to be read.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(engine),
                Err(e) => Err(format!("the engine does not listen: {e}")),
            },
            Err(e) => Err(e.to_string()),
        };
        match greeted {
            Ok(engine) => self.engine = EngineState::Starting(engine),
            Err(text) => {
                tracing::error!("{text}");
                self.trouble = Some(Trouble::no_engine(text));
                self.pause();
            }
        }
        Ok(())
    }

    /// Returns when the next engine may be started with the chosen model.
    pub(super) fn start_due(&self) -> Instant {
        let configured = self.configured_model_is_due().filter(|_| self.model.name().is_none());
        configured.map_or(self.next_start, |due| due.max(self.next_start))
    }

    /// Starts no engine for a while, which grows with every end of an engine. After an end for a configured model that cannot be
    /// used, an engine with another model is started at once.
    pub(super) fn pause(&mut self) {
        let pause = (FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(16))).min(LONGEST_PAUSE);
        self.failures += 1;
        let end = Instant::now() + pause;
        if !self.configured_model_rests_until(end) {
            self.next_start = end;
        }
    }
}
