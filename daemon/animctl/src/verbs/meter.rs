//! How a job's progress is shown: a bar on a terminal, a line for each step elsewhere, objects for programs.

use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd_common::words::time;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::inline::Screen;
use super::print;

/// The state of a job at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// The job's public facts: id, state, stage, step, progress, `expected_end`, position.
    pub facts: Value,
    /// Why the job does not go on, if it does not.
    pub note: Option<String>,
}

impl Moment {
    pub fn state(&self) -> &str {
        self.facts["state"].as_str().unwrap_or_default()
    }

    fn fraction(&self) -> f64 {
        self.facts["progress"].as_f64().unwrap_or(0.0)
    }

    /// Returns the stage and its step; empty while the engine has not reported any.
    fn stage(&self) -> String {
        let stage = self.facts["stage"].as_str().unwrap_or_default();
        match (stage, &self.facts["step"][0], &self.facts["step"][1]) {
            ("denoise", done, all) => format!("denoise {done}/{all}"),
            _ => stage.to_owned(),
        }
    }

    /// Returns the remaining time in words.
    fn left(&self) -> Option<String> {
        let end = self.facts["expected_end"].as_u64().filter(|end| *end > 0)?;
        let left = (UNIX_EPOCH + Duration::from_micros(end)).duration_since(SystemTime::now()).ok()?;
        Some(format!("{} left", time(left.as_secs_f64().ceil().max(1.0)).replace(".0 s", " s")))
    }

    /// Returns the moment as one line; `still` leaves out what changes all the time.
    fn words(&self, still: bool) -> String {
        if let Some(note) = &self.note {
            return note.clone();
        }
        match (self.state(), self.stage()) {
            ("running", stage) if stage.is_empty() => "it starts".to_owned(),
            ("running", stage) => match self.left().filter(|_| !still) {
                Some(left) => format!("{stage}, {left}"),
                None => stage,
            },
            // A job that fails is finishing, too: its picture goes to `failed`.
            ("finishing", _) => "its files are put in place".to_owned(),
            ("queued", _) => match self.facts["position"].as_u64() {
                Some(position @ 1..) => format!("waiting, number {position} in the queue"),
                _ => "waiting".to_owned(),
            },
            (state, _) => state.to_owned(),
        }
    }
}

/// Shows the progress of a job, one moment after another.
pub struct Meter {
    view: View,
    /// Whether the engine has reported a stage. It reports nothing more once the video is written.
    worked: bool,
}

enum View {
    /// A progress bar on a terminal.
    Bar { bar: ProgressBar, screen: Option<Screen> },
    /// Lines on standard error that is not a terminal.
    Lines { last: String },
    /// One JSON object per line on standard output.
    Json { last: Value },
}

impl Meter {
    /// Returns a meter for people, on standard error; with pictures if `pictures` is set and the terminal can show
    /// them.
    pub fn new(id: u64, pictures: bool) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { view: View::Lines { last: String::new() }, worked: false };
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30.green} {percent:>3}% {wide_msg}") {
            bar.set_style(style.progress_chars("━╸┄"));
        }
        bar.set_prefix(format!("job {id}"));
        let screen = Screen::of_terminal().filter(|_| pictures);
        Self { view: View::Bar { bar, screen }, worked: false }
    }

    /// Returns a meter for programs.
    pub fn json() -> Self {
        Self { view: View::Json { last: Value::Null }, worked: false }
    }

    /// Returns whether [`Self::picture`] does anything.
    pub fn shows_pictures(&self) -> bool {
        matches!(self.view, View::Bar { screen: Some(_), .. })
    }

    pub fn show(&mut self, moment: &Moment) {
        let stage = moment.state() == "running" && !moment.stage().is_empty();
        if moment.state() == "running" && !stage && self.worked && !matches!(self.view, View::Json { .. }) {
            return;
        }
        self.worked = stage;
        match &mut self.view {
            View::Bar { bar, .. } => {
                match moment.state() {
                    "running" => bar.set_position((moment.fraction() * 1000.0) as u64),
                    "finishing" | "done" => bar.set_position(1000),
                    _ => {}
                }
                bar.set_message(moment.words(false));
            }
            View::Lines { last } => {
                let still = moment.words(true);
                if *last != still {
                    match stage && moment.note.is_none() {
                        true => eprintln!("{:3.0}% {}", moment.fraction() * 100.0, moment.words(false)),
                        false => eprintln!("{still}"),
                    }
                    *last = still;
                }
            }
            View::Json { last } => {
                let mut facts = moment.facts.clone();
                if let Some(note) = &moment.note {
                    facts["note"] = note.as_str().into();
                }
                if *last != facts {
                    print(&facts);
                    *last = facts;
                }
            }
        }
    }

    /// Shows a JPEG above the bar, in place of the previous one.
    pub fn picture(&mut self, jpeg: &[u8]) {
        if let View::Bar { bar, screen: Some(screen) } = &mut self.view {
            bar.suspend(|| screen.show(jpeg));
        }
    }

    pub fn end(&self) {
        if let View::Bar { bar, .. } = &self.view {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_one_line() {
        let of = |facts: Value| Moment { facts, note: None }.words(true);
        assert_eq!(of(json!({"state": "queued", "position": 3})), "waiting, number 3 in the queue");
        assert_eq!(of(json!({"state": "running", "stage": "denoise", "step": [4, 20]})), "denoise 4/20");
        assert_eq!(of(json!({"state": "running", "stage": ""})), "it starts");
        assert_eq!(of(json!({"state": "finishing"})), "its files are put in place");
        let soon =
            SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + Duration::from_secs(7200);
        let facts = json!({"state": "running", "stage": "text", "expected_end": soon.as_micros() as u64});
        let words = Moment { facts, note: None }.words(false);
        assert!(["text, 2 h 00 min left", "text, 1 h 59 min left"].contains(&words.as_str()), "{words}");
    }
}
