//! Shows progress on the terminal: a bar with steps and time left, or plain lines where standard error is no terminal.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use animd_engine::progress::{Observer, Progress, Stage};
use indicatif::{ProgressBar, ProgressStyle};

use super::stop::Stop;

/// An observer that draws a progress bar.
pub struct Bar {
    drawn: Option<ProgressBar>,
    /// The last plain line that was printed.
    last: Mutex<Option<String>>,
    quiet: bool,
    stop: Stop,
}

const TICKS: u64 = 10_000;

impl Bar {
    /// Returns a bar on standard error if that is a terminal; it shows nothing at all if `quiet`.
    pub fn new(quiet: bool, stop: Stop) -> Self {
        let drawn = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{msg:24} {bar:32.cyan/dim} {percent:>3} %  {elapsed} {prefix}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(TICKS).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { drawn, last: Mutex::new(None), quiet, stop }
    }

    /// Removes the bar from the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.drawn {
            bar.finish_and_clear();
        }
    }
}

fn label(p: &Progress) -> String {
    match p.stage {
        // A model that is being written has no steps.
        Stage::Write if p.steps == 0 => format!("writing, {:.0} % done", (p.fraction * 10.0).floor() * 10.0),
        _ => p.to_string(),
    }
}

fn left(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s left"),
        (0, m, s) => format!("{m} min {s} s left"),
        (h, m, _) => format!("{h} h {m} min left"),
    }
}

impl Observer for Bar {
    fn progress(&self, p: &Progress) {
        let eta = p.seconds_left.map(left);
        if let Some(bar) = &self.drawn {
            bar.set_position((p.fraction * TICKS as f64) as u64);
            bar.set_message(label(p));
            bar.set_prefix(eta.unwrap_or_default());
            return;
        }
        if self.quiet {
            return;
        }
        let label = label(p);
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.as_ref() == Some(&label) {
            return;
        }
        let eta = eta.map(|t| format!(", {t}")).unwrap_or_default();
        eprintln!("{:3.0} %  {label}{eta}", p.fraction * 100.0);
        *last = Some(label);
    }

    fn canceled(&self) -> bool {
        self.stop.asked()
    }
}
