//! How a job's progress is shown: a bar on a terminal, a line for each step elsewhere, objects for programs.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::facts::Facts;
use super::inline::Screen;
use super::{print, tell, term};

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
        Facts(&self.facts).fraction()
    }

    /// Returns the stage and its step; empty while the engine has not reported any.
    fn stage(&self) -> String {
        Facts(&self.facts).stage()
    }

    /// Returns the moment as one line; `still` leaves out what changes all the time.
    fn words(&self, still: bool) -> String {
        if let Some(note) = &self.note {
            return note.clone();
        }
        let facts = Facts(&self.facts);
        let now = match (facts.state(), facts.place(), self.stage()) {
            ("running", _, stage) if stage.is_empty() => "starting".to_owned(),
            ("running", _, stage) => stage,
            // A job that fails is finishing, too: its picture goes to `failed`.
            ("finishing", ..) => "saving the video".to_owned(),
            ("queued", Some(place), _) => format!("queued, number {place} in the queue"),
            (state, ..) => return state.to_owned(),
        };
        match facts.left().filter(|_| !still) {
            Some(left) => format!("{now}, {left}"),
            None => now,
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
    /// Lines on standard error that is not a terminal, or one that can only append lines.
    Lines { last: String },
    /// One JSON object per line on standard output.
    Json { last: Value },
}

impl Meter {
    /// Returns a meter for people, on standard error; with pictures if `pictures` is set and the terminal can show
    /// them.
    pub fn new(id: u64, pictures: bool) -> Self {
        if !std::io::stderr().is_terminal() || term::is_dumb() {
            return Self { view: View::Lines { last: String::new() }, worked: false };
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
        let color = if term::allows_color() { ".green" } else { "" };
        let template = format!("{{prefix}} {{bar:30{color}}} {{percent:>3}}% {{wide_msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars(if term::has_utf8() { "━╸┄" } else { "=>-" }));
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
                        true => tell(&format!("{:3.0}% {}", moment.fraction() * 100.0, moment.words(false))),
                        false => tell(&moment.words(false)),
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
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_one_line() {
        let of = |facts: Value| Moment { facts, note: None }.words(true);
        assert_eq!(of(json!({"state": "queued", "position": 3})), "queued, number 3 in the queue");
        assert_eq!(of(json!({"state": "running", "stage": "denoise", "step": [4, 20]})), "denoise 5/20");
        assert_eq!(of(json!({"state": "running", "stage": ""})), "starting");
        assert_eq!(of(json!({"state": "finishing"})), "saving the video");
        let soon =
            SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970") + Duration::from_secs(7200);
        let facts = json!({"state": "running", "stage": "text", "expected_end": soon.as_micros() as u64});
        let words = Moment { facts, note: None }.words(false);
        assert!(["text, 2 h 00 min left", "text, 1 h 59 min left"].contains(&words.as_str()), "{words}");
    }
}
