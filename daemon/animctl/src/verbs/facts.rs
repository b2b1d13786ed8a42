//! A job's facts in words, the same in every verb: its state, what it does, when it ends, whose it is, why it failed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd_common::words::{date, time};
use animd_protocol::progress::under_way;
use serde_json::Value;

use super::term::Color;
use super::who;

/// The facts of one job, as `List` or `Describe` has them.
#[derive(Clone, Copy)]
pub struct Facts<'a>(pub &'a Value);

impl<'a> Facts<'a> {
    fn text(self, key: &str) -> &'a str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// Returns the job's number.
    pub fn id(self) -> u64 {
        self.0["id"].as_u64().unwrap_or(0)
    }

    /// Returns the state in a word.
    pub fn state(self) -> &'a str {
        match self.text("state") {
            "canceled" => "cancelled",
            "canceling" => "cancelling",
            _ if self.0["canceling"] == true => "cancelling",
            state => state,
        }
    }

    /// Returns the colour of the state.
    pub fn color(self) -> Option<Color> {
        color(self.state())
    }

    /// Returns the name of its picture; empty for a job of somebody else.
    pub fn name(self) -> &'a str {
        self.text("name")
    }

    /// Returns whose it is.
    pub fn owner(self) -> String {
        self.0["owner"].as_u64().map(who::name).unwrap_or_default()
    }

    /// Returns the stage and the step under way; empty while no stage is.
    pub fn stage(self) -> String {
        let step = |n: usize| self.0["step"][n].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        under_way(self.text("stage"), step(0), step(1))
    }

    /// Returns the fraction of the work that is done, from 0 to 1.
    pub fn fraction(self) -> f64 {
        self.0["progress"].as_f64().unwrap_or(0.0)
    }

    /// Returns its place in the queue: 1 is the next job.
    pub fn place(self) -> Option<u64> {
        self.0["position"].as_u64().filter(|place| *place > 0)
    }

    /// Returns why it failed, where that is known and the job is the caller's own.
    pub fn reason(self) -> &'a str {
        if self.state() == "failed" { self.text("error_text") } else { "" }
    }

    /// Returns what happens to it now, or why it failed.
    pub fn doing(self) -> String {
        match self.state() {
            "queued" => self.place().map(|place| format!("number {place} in the queue")).unwrap_or_default(),
            "running" if self.stage().is_empty() => "starting".to_owned(),
            "running" => format!("{}, {:.0}%", self.stage(), (self.fraction() * 100.0).floor()),
            "cancelling" => "stopping".to_owned(),
            "finishing" => "saving the video".to_owned(),
            _ => self.reason().to_owned(),
        }
    }

    /// Returns the remaining time in words, where it can be estimated.
    pub fn left(self) -> Option<String> {
        let end = self.0["expected_end"].as_u64().filter(|end| *end > 0)?;
        let left = (UNIX_EPOCH + Duration::from_micros(end)).duration_since(SystemTime::now()).ok()?;
        Some(format!("{} left", time(left.as_secs_f64().ceil().max(1.0)).replace(".0 s", " s")))
    }

    /// Returns how long it will take, or when it ended.
    pub fn when(self) -> String {
        match self.0["finished"].as_u64() {
            Some(finished @ 1..) => date(finished),
            _ => self.left().unwrap_or_default(),
        }
    }
}

/// Returns the colour of a job's state.
pub fn color(state: &str) -> Option<Color> {
    match state {
        "done" => Some(Color::Green),
        "failed" => Some(Color::Red),
        "running" | "finishing" => Some(Color::Blue),
        "cancelled" | "cancelling" => Some(Color::Yellow),
        _ => None,
    }
}

/// Adds to a job's facts what people's tables have besides: the owner's name, and that it is being cancelled.
pub fn completed(mut job: Value) -> Value {
    if let Some(uid) = job["owner"].as_u64() {
        job["owner_name"] = who::name(uid).into();
    }
    if job["canceling"] == true {
        job["state"] = "canceling".into();
    }
    if let Some(facts) = job.as_object_mut() {
        facts.remove("canceling");
    }
    job
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_state_says_what_happens() {
        let doing = |facts: Value| {
            let facts = Facts(&facts);
            format!("{}: {}", facts.state(), facts.doing())
        };
        assert_eq!(doing(json!({"state": "queued", "position": 3})), "queued: number 3 in the queue");
        let running = json!({"state": "running", "stage": "denoise", "step": [0, 4], "progress": 0.129});
        assert_eq!(doing(running), "running: denoise 1/4, 12%");
        let canceling = json!({"state": "running", "stage": "denoise", "step": [1, 4], "canceling": true});
        assert_eq!(doing(canceling.clone()), "cancelling: stopping");
        assert_eq!(completed(canceling)["state"], "canceling");
        assert_eq!(doing(json!({"state": "failed", "error_text": "it is empty"})), "failed: it is empty");
        assert_eq!(doing(json!({"state": "canceled", "error_text": "cancelled by ann"})), "cancelled: ");
        assert_eq!(Facts(&json!({"owner": 0})).owner(), "root");
    }
}
