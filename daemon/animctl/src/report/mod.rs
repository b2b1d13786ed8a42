//! The report on what animd did, as one self-contained HTML page: sums, plots, and a card for each job.

mod page;
mod plots;

use animd_common::words::{energy, time};
use serde::Deserialize;
use serde_json::Value;

pub use page::page;

/// One row of the reply of `Statistics`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Sum {
    /// The day, the model or the profile that the row sums up.
    pub key: String,
    /// Jobs with a video.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that somebody cancelled.
    pub canceled: u64,
    /// Seconds of jobs with a video.
    pub seconds: f64,
    /// Joules of jobs with a video.
    pub joules: f64,
    /// Frames of all videos.
    pub frames: u64,
}

impl Sum {
    /// Returns what the row sums up, in words.
    pub fn name(&self) -> &str {
        if self.key.is_empty() { "not known" } else { &self.key }
    }

    /// Returns the row's figures: jobs with a video, failed and cancelled ones, then the time and the energy, each in all
    /// and per video.
    pub fn figures(&self) -> [String; 7] {
        let each = |all: f64, show: fn(f64) -> String| match self.done {
            0 => String::new(),
            done => show(all / done as f64),
        };
        [
            self.done.to_string(),
            self.failed.to_string(),
            self.canceled.to_string(),
            time(self.seconds),
            each(self.seconds, time),
            energy(self.joules),
            each(self.joules, energy),
        ]
    }
}

/// The reply of `Timeline`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// Each stage: its name, seconds, and joules (below 0 when not known).
    pub stages: Vec<(String, f64, f64)>,
    /// Each step: its seconds, and whether it was computed.
    pub steps: Vec<(f64, bool)>,
    /// Each sample: microseconds since the epoch, watts, degrees, MHz, percent, bytes (0 when not known).
    pub samples: Vec<(u64, f64, u32, u32, u32, u64)>,
}

/// One job on the page.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The reply of `Describe`.
    pub description: Value,
    /// The timeline of the job.
    pub timeline: Timeline,
    /// The thumbnail, a JPEG.
    pub thumbnail: Option<Vec<u8>>,
}

/// Everything on the page.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The service's version.
    pub version: String,
    /// When the page was made, in microseconds since the epoch.
    pub made_us: u64,
    /// The sums by day, the oldest first.
    pub days: Vec<Sum>,
    /// The sums by model.
    pub models: Vec<Sum>,
    /// The sums by profile.
    pub profiles: Vec<Sum>,
    /// The jobs, the newest first.
    pub jobs: Vec<Entry>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let sum = |key: &str, done, failed| Sum {
            key: key.into(),
            done,
            failed,
            seconds: 100.0 * done as f64,
            joules: 5e4 * done as f64,
            ..Sum::default()
        };
        let timeline = Timeline {
            stages: vec![("load".into(), 0.5, -1.0), ("denoise".into(), 80.0, 4e4)],
            steps: (0..40).map(|n| (2.0, n % 3 != 0)).collect(),
            samples: (0..80).map(|n| (n * 1_000_000, 600.0 + n as f64, 60, 1700, 99, 30 << 30)).collect(),
        };
        let description = serde_json::json!({
            "id": 7, "state": "done", "name": "<b>cup</b>.jpg", "created": 1_700_000_000_000_000_u64,
            "settings": {"prompt": "steam & \"tea\"", "seed": 42},
            "output": "/srv/my videos/cup-42.mp4", "source": "/srv/in/cup.jpg", "source_moved_to": "/srv/in/done/cup.jpg",
        });
        let failed =
            serde_json::json!({"id": 8, "state": "failed", "name": "x.png", "error_text": "it is empty"});
        Report {
            version: "1".into(),
            made_us: 1_700_000_000_000_000,
            days: vec![sum("2026-01-01", 3, 1), sum("2026-01-02", 0, 0), sum("2026-01-03", 5, 0)],
            models: vec![sum("Wan", 8, 1)],
            profiles: vec![],
            jobs: vec![
                Entry { description, timeline, thumbnail: Some(vec![0xff, 0xd8]) },
                Entry { description: failed, ..Entry::default() },
            ],
        }
    }

    #[test]
    fn the_page_is_whole_and_takes_nothing_from_elsewhere() {
        let html = page(&report());
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>"));
        assert!(html.contains("&lt;b&gt;cup&lt;/b&gt;.jpg") && !html.contains("<b>cup"), "names are escaped");
        assert!(html.contains("steam &amp; &quot;tea&quot;") && html.contains("it is empty"));
        assert!(html.contains("data:image/jpeg;base64,/9g="));
        assert_eq!(html.matches("<svg").count(), 4, "jobs and energy by day, power and steps of the job");
        assert!(html.contains("<a href=\"file:///srv/my%20videos/cup-42.mp4\">the video</a>"), "{html}");
        assert!(html.contains("<a href=\"file:///srv/in/done/cup.jpg\">its picture</a>"), "{html}");
        for elsewhere in ["src=\"http", "href=\"http", "<script", "@import", "url("] {
            assert!(!html.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn what_has_no_room_or_was_not_measured_is_left_out() {
        let html = page(&report());
        assert!(html.contains(">denoise</div>") && html.contains("<dt>load</dt>"), "{html}");
        assert!(!html.contains(">load</div>"), "half a second of 80 is too narrow for a word");
        assert!(html.contains("energy per video"));
        let mut report = report();
        report.days.iter_mut().chain(&mut report.models).for_each(|sum| sum.joules = 0.0);
        assert!(!page(&report).contains("energy per video"), "there was no meter");
    }

    #[test]
    fn a_page_without_jobs_says_so() {
        let html = page(&Report::default());
        assert!(html.contains("No job has ended so far") && !html.contains("<svg"));
    }
}
