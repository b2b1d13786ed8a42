//! Metrics for Prometheus: a file in its text format, which `node_exporter` reads (`[metrics] textfile`).
//!
//! The file is written when something has changed, at most once a second; an idle service does not wake up for it.
//! Counters start with the service, or when the file is configured.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{Display, Write as _};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use animd_common::bus::ServiceState;
use animd_common::clock::now_us;
use animd_common::files::{show, write_atomic};
use animd_common::tasks::blocking;
use animd_common::tasks::stopped;
use animd_common::text::Text;
use animd_protocol::ErrorCode;
use animd_protocol::progress::Stage;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::config::CurrentConfig;
use crate::error::Result;
use crate::events::{Change, Events, Status};
use crate::store::ledger::{Job, Ledger, State};

/// The least time between two writes.
const PACE: Duration = Duration::from_secs(1);
/// How long the last look may take when the service stops.
const PATIENCE: Duration = Duration::from_secs(1);
/// States that a job has before it has ended.
const OPEN: [State; 3] = [State::Queued, State::Running, State::Finishing];
/// States that a job has once it has ended.
const ENDED: [State; 3] = [State::Done, State::Failed, State::Canceled];

/// Keeps the file until `stop` turns true.
pub async fn run(config: CurrentConfig, ledger: Ledger, events: Events, mut stop: watch::Receiver<bool>) {
    let mut changes = events.listen();
    let mut status = events.status();
    let mut writer = Writer { config, ledger, events, figures: None, trouble: None };
    loop {
        let now = status.borrow_and_update().clone();
        writer.write(&now).await;
        let mut jobs = Jobs::default();
        tokio::select! {
            () = stopped(&mut stop) => break,
            any = gather(&mut changes, &mut jobs) => if !any { break },
            Ok(()) = status.changed() => {}
        }
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = sleep(PACE) => {}
        }
        while let Ok(change) = changes.try_recv() {
            jobs.note(&change);
        }
        writer.look(jobs).await;
    }
    // The file stays, and finally says that the service no longer works.
    let last = async {
        _ = status.wait_for(|status| status.state == ServiceState::Stopping).await;
        let status = status.borrow().clone();
        writer.write(&status).await;
    };
    _ = timeout(PATIENCE, last).await;
}

/// Waits for a change of some job's state; false when there will be none.
async fn gather(changes: &mut mpsc::UnboundedReceiver<Change>, jobs: &mut Jobs) -> bool {
    while let Some(change) = changes.recv().await {
        if jobs.note(&change) {
            return true;
        }
    }
    false
}

/// The jobs to look at.
#[derive(Default)]
struct Jobs {
    added: Vec<u64>,
    changed: HashSet<u64>,
}

impl Jobs {
    /// Takes note of a change; false if it changes no metric.
    fn note(&mut self, change: &Change) -> bool {
        match change {
            Change::Added(id) => self.added.push(*id),
            Change::State(_) => {}
            Change::Progress(_) => return false,
        }
        if let Change::Added(id) | Change::State(id) = change {
            self.changed.insert(*id);
        }
        true
    }
}

struct Writer {
    config: CurrentConfig,
    ledger: Ledger,
    events: Events,
    /// `None` while no file is configured.
    figures: Option<Figures>,
    /// The error that was logged last.
    trouble: Option<String>,
}

impl Writer {
    fn file(&self) -> Option<PathBuf> {
        self.config.get().metrics.textfile.clone()
    }

    /// Looks at jobs that may have changed.
    async fn look(&mut self, jobs: Jobs) {
        let Some(figures) = &mut self.figures else { return };
        for id in jobs.added {
            figures.open.entry(id).or_insert(State::Queued);
        }
        let wanted = jobs.changed;
        let found = self.ledger.call(move |db| {
            wanted
                .into_iter()
                .map(|id| {
                    let job = db.job(id)?;
                    let done = job.as_ref().is_some_and(|job| job.state == State::Done);
                    Ok((id, job, if done { db.stages(id)? } else { Vec::new() }))
                })
                .collect::<Result<Vec<_>>>()
        });
        match found.await {
            Ok(found) => found.iter().for_each(|(id, job, stages)| figures.take(*id, job.as_ref(), stages)),
            Err(e) => tracing::warn!("the metrics miss a change: {e}"),
        }
    }

    async fn write(&mut self, status: &Status) {
        let Some(path) = self.file() else {
            self.figures = None;
            return;
        };
        if self.figures.is_none() {
            self.figures = Figures::begin(&self.ledger).await.ok();
        }
        let Some(figures) = &self.figures else { return };
        let text = figures.text(status.state, self.events.restarts());
        let written = blocking(move || put(&path, &text)).await;
        let trouble = written.err().map(|e| e.to_string());
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != self.trouble) {
            tracing::warn!("cannot write the metrics: {trouble}");
        }
        self.trouble = trouble;
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, text.as_bytes(), 0o644)
        // Another user reads the file, whatever the umask of the service is.
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
        .map_err(|e| {
            let text = format!("metrics.textfile `{}` cannot be written: {e}", show(path));
            crate::error::Error::refused(ErrorCode::File, text)
        })
}

/// The metrics.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    /// When counting began, in microseconds since the epoch.
    begun_us: i64,
    /// Every job that has not ended, or whose end was not yet counted.
    open: HashMap<u64, State>,
    ended: [u64; ENDED.len()],
    stages: BTreeMap<String, f64>,
    joules: f64,
    last_seconds: f64,
}

impl Figures {
    /// Begins to count now.
    async fn begin(ledger: &Ledger) -> Result<Self> {
        let open = ledger.call(|db| db.open_jobs()).await?;
        let open = open.into_iter().map(|job| (job.id, job.state)).collect();
        let stages = Stage::ALL.into_iter().map(|stage| (stage.name().to_owned(), 0.0)).collect();
        Ok(Self { begun_us: now_us(), open, stages, ..Self::default() })
    }

    /// Counts a job as it is now; `None` if it was forgotten.
    fn take(&mut self, id: u64, job: Option<&Job>, stages: &[(Text, f64)]) {
        match job {
            Some(job) if job.state.is_open() => _ = self.open.insert(id, job.state),
            // A job that was not open before is an old one that somebody looks at.
            Some(job) if self.open.remove(&id).is_some() => self.count(job, stages),
            Some(_) => {}
            None => _ = self.open.remove(&id),
        }
    }

    fn count(&mut self, job: &Job, stages: &[(Text, f64)]) {
        if let Some(n) = ENDED.iter().position(|state| *state == job.state) {
            self.ended[n] += 1;
        }
        for (stage, seconds) in stages {
            *self.stages.entry(stage.to_string()).or_default() += seconds;
        }
        self.joules += job.energy_mj.unwrap_or(0) as f64 / 1e3;
        if job.state == State::Done
            && let (Some(start), Some(end)) = (job.started_us, job.finished_us)
        {
            self.last_seconds = end.saturating_sub(start) as f64 / 1e6;
        }
    }

    /// Returns the file's text. `state` is the service's.
    fn text(&self, state: ServiceState, restarts: u64) -> String {
        let open = |state: &State| self.open.values().filter(|s| *s == state).count();
        let mut text = Page::default();
        text.metric("animd_info", "gauge", "The version of animd.");
        text.labelled("animd_info", "version", env!("CARGO_PKG_VERSION"), 1);
        text.metric("animd_state", "gauge", "The state of the service.");
        text.labelled("animd_state", "state", state.name(), 1);
        text.metric("animd_start_time_seconds", "gauge", "When counting began, in seconds since 1970.");
        text.plain("animd_start_time_seconds", self.begun_us as f64 / 1e6);
        text.metric("animd_jobs", "gauge", "Jobs that have not ended; those in state queued are the queue.");
        for state in &OPEN {
            text.labelled("animd_jobs", "state", state.name(), open(state));
        }
        text.metric("animd_jobs_ended_total", "counter", "Jobs that have ended.");
        for (state, count) in ENDED.iter().zip(self.ended) {
            text.labelled("animd_jobs_ended_total", "result", state.name(), count);
        }
        text.metric("animd_stage_seconds_total", "counter", "Time that finished videos took in each stage.");
        for (stage, seconds) in &self.stages {
            text.labelled("animd_stage_seconds_total", "stage", stage, seconds);
        }
        text.metric("animd_energy_joules_total", "counter", "Energy of the GPU's board while jobs ran.");
        text.plain("animd_energy_joules_total", self.joules);
        text.metric(
            "animd_last_job_duration_seconds",
            "gauge",
            "Time from start to end of the last video; 0 before.",
        );
        text.plain("animd_last_job_duration_seconds", self.last_seconds);
        text.metric(
            "animd_engine_restarts_total",
            "counter",
            "Engines that died or hung, and were replaced.",
        );
        text.plain("animd_engine_restarts_total", restarts);
        text.0
    }
}

/// Prometheus' text format.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Begins a metric: the values that follow belong to it.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn plain(&mut self, name: &str, value: impl Display) {
        _ = writeln!(self.0, "{name} {value}");
    }

    fn labelled(&mut self, name: &str, label: &str, of: &str, value: impl Display) {
        let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_conventions() {
        let mut figures = Figures { ended: [3, 1, 0], joules: 12.5, ..Figures::default() };
        figures.open.insert(4, State::Queued);
        figures.open.insert(5, State::Queued);
        figures.stages.insert("denoise".into(), 80.25);
        let text = figures.text(ServiceState::Busy, 2);
        for line in [
            "animd_state{state=\"busy\"} 1",
            "animd_jobs{state=\"queued\"} 2",
            "animd_jobs{state=\"running\"} 0",
            "animd_jobs_ended_total{result=\"done\"} 3",
            "animd_stage_seconds_total{stage=\"denoise\"} 80.25",
            "animd_energy_joules_total 12.5",
            "animd_engine_restarts_total 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.ends_with('\n'));
        let mut kind = ("", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                kind = rest.split_once(' ').expect("a name and a kind");
                assert!(["gauge", "counter"].contains(&kind.1), "{line}");
                // Counters end in _total, nothing else does; what has a unit names a base unit.
                assert_eq!(kind.0.ends_with("_total"), kind.1 == "counter", "{line}");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert_eq!(name.split('{').next(), Some(kind.0), "{line}");
                assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            }
        }
    }
}
