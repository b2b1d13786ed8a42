//! Shows the queue while it changes.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use zbus::message::Type;
use zbus::{MatchRule, MessageStream};

use super::exit::{Exit, Result};
use super::facts::{Facts, color, completed};
use super::follow::entry;
use super::{Ctl, json_of, list, print, term};

/// The shortest pause between two reads of the queue.
const PACE: Duration = Duration::from_millis(250);
/// The longest pause between two reads, in case a signal is lost.
const LONGEST: Duration = Duration::from_secs(5);
/// The most signals that wait to be read; further ones carry no more information.
const SIGNALS: NonZeroUsize = NonZeroUsize::new(64).expect("it is not 0");
/// The most jobs that are shown at a time.
const SHOWN: usize = 15;
/// States of jobs that have not ended.
const OPEN: [&str; 3] = ["running", "finishing", "queued"];

/// Shows the jobs that wait and run; with `until_idle`, returns when there are none.
pub async fn watch(until_idle: bool, ctl: &Ctl) -> Result {
    let rule = MatchRule::builder().msg_type(Type::Signal).sender(animd_common::bus::NAME).build()?;
    let mut signals = MessageStream::for_match_rule(rule, &ctl.connection, Some(SIGNALS)).await?;
    let mut view = View::new(ctl.json);
    let mut known: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        let jobs = open(ctl).await?;
        let now: BTreeMap<u64, String> = jobs
            .iter()
            .filter_map(|job| Some((job["id"].as_u64()?, job["state"].as_str()?.to_owned())))
            .collect();
        for (id, state) in &now {
            if known.get(id) != Some(state) {
                let job = jobs.iter().find(|job| job["id"] == *id).cloned().unwrap_or_default();
                view.event(*id, state, &job);
            }
        }
        for id in known.keys().filter(|id| !now.contains_key(id)) {
            let job = entry(*id, ctl).await?.unwrap_or_else(|| json!({"state": "forgotten"}));
            view.event(*id, job["state"].as_str().unwrap_or_default(), &job);
        }
        known = now;
        view.show(&ctl.manager.state_text().await?, &jobs);
        if until_idle && jobs.is_empty() {
            view.end();
            return Ok(Exit::Done);
        }
        sleep(PACE).await;
        // One read covers all signals that came meanwhile.
        let mut came = false;
        while let Ok(Some(_)) = timeout(Duration::ZERO, signals.next()).await {
            came = true;
        }
        if !came {
            _ = timeout(LONGEST, signals.next()).await;
        }
    }
}

/// Returns the jobs that have not ended: the running one first, then the queue in its order.
async fn open(ctl: &Ctl) -> Result<Vec<Value>> {
    let mut jobs = Vec::new();
    for state in OPEN {
        let filter = HashMap::from([("state", state.into()), ("limit", 1000_u32.into())]);
        jobs.extend(ctl.manager.list(filter).await?.iter().map(json_of).map(completed));
    }
    jobs.sort_by_key(|job| job["position"].as_u64());
    Ok(jobs)
}

/// Returns a line about a job: its state, whose it is and its name where they are known, and why it failed.
fn sentence(id: u64, job: &Value) -> String {
    let facts = Facts(job);
    let whose = [facts.owner(), facts.name().to_owned()];
    let whose: Vec<String> = whose.into_iter().filter(|word| !word.is_empty()).collect();
    let whose = if whose.is_empty() { String::new() } else { format!(" ({})", whose.join(", ")) };
    let reason = if facts.reason().is_empty() { String::new() } else { format!(": {}", facts.reason()) };
    format!("job {id} {}{whose}{reason}", facts.state())
}

enum View {
    /// A table that is drawn anew.
    Table(ProgressBar),
    Lines,
    Json,
}

impl View {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stdout().is_terminal() || term::is_dumb() {
            return Self::Lines;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Self::Table(bar)
    }

    /// Tells that a job has come to another state.
    fn event(&self, id: u64, state: &str, job: &Value) {
        match self {
            Self::Table(bar) if animd_client::has_ended(state) => bar.println(sentence(id, job)),
            Self::Table(_) => {}
            Self::Lines => print(sentence(id, job)),
            Self::Json => print(json!({"id": id, "state": state})),
        }
    }

    fn show(&mut self, state: &str, jobs: &[Value]) {
        let Self::Table(bar) = self else { return };
        let mut lines = vec![state.to_owned()];
        if !jobs.is_empty() {
            let table = list::table(&jobs[..jobs.len().min(SHOWN)]);
            lines.extend(table.lines(term::width(), &|state| term::paint(state, color(state))));
        }
        if jobs.len() > SHOWN {
            lines.push(format!("and {} more", jobs.len() - SHOWN));
        }
        bar.set_message(lines.join("\n"));
        bar.tick();
    }

    fn end(&self) {
        if let Self::Table(bar) = self {
            bar.finish_and_clear();
        }
    }
}
