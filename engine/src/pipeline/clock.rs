//! The progress of a job, and the seconds of each stage.

use std::time::Instant;

use crate::Result;
use crate::progress::{Costs, Observer, Progress, Stage};

/// Times the stages of one job and tells the observer.
pub struct Clock<'a> {
    observer: &'a dyn Observer,
    costs: Costs,
    progress: Progress,
    began: Instant,
    /// When the current stage began; `None` before the first.
    stage_began: Option<Instant>,
    /// When the last step ended.
    step_ended: Option<Instant>,
    seconds: Vec<(String, f64)>,
    steps: Vec<f64>,
}

impl<'a> Clock<'a> {
    /// Starts the clock; [`Clock::stage`] announces the first stage.
    pub fn start(observer: &'a dyn Observer, steps: u32, costs: Costs) -> Self {
        Self {
            observer,
            costs,
            progress: Progress { stage: Stage::Load, step: 0, steps, fraction: 0.0, seconds_left: None },
            began: Instant::now(),
            stage_began: None,
            step_ended: None,
            seconds: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Returns the observer that the stages ask whether to continue.
    pub fn observer(&self) -> &'a dyn Observer {
        self.observer
    }

    /// Ends the previous stage and begins this one.
    ///
    /// # Errors
    /// Returns [`crate::Error::Canceled`] if the work should stop.
    pub fn stage(&mut self, stage: Stage) -> Result<()> {
        self.close();
        self.stage_began = Some(Instant::now());
        self.progress.stage = stage;
        self.tell(0.0);
        self.observer.check()
    }

    /// Reports that `part` of the current stage, from 0 to 1, is done.
    pub fn part(&mut self, part: f64) {
        self.tell(part);
    }

    /// Reports the number of finished denoising steps.
    pub fn step(&mut self, done: u32) {
        let now = Instant::now();
        let since = self.step_ended.replace(now).or(self.stage_began).unwrap_or(now);
        self.steps.push((now - since).as_secs_f64());
        self.progress.step = done;
        self.tell(f64::from(done) / f64::from(self.progress.steps.max(1)));
    }

    /// Returns the seconds of each step, and whether it was computed.
    pub fn steps(&self, computed: &[bool]) -> Vec<(f64, bool)> {
        self.steps.iter().copied().zip(computed.iter().copied()).collect()
    }

    /// Returns the seconds of each stage.
    pub fn finish(mut self) -> Vec<(String, f64)> {
        self.close();
        self.progress.fraction = 1.0;
        self.progress.seconds_left = Some(0.0);
        self.observer.progress(&self.progress);
        self.seconds
    }

    /// Notes the seconds of the current stage, if any.
    fn close(&mut self) {
        let now = Instant::now();
        if let Some(began) = self.stage_began.take() {
            self.seconds.push((self.progress.stage.name().to_owned(), (now - began).as_secs_f64()));
        }
    }

    fn tell(&mut self, part: f64) {
        let stage = self.progress.stage;
        let fraction = self.costs.fraction(stage, part);
        self.progress.fraction = fraction.clamp(self.progress.fraction, 1.0);
        let elapsed = self.began.elapsed().as_secs_f64();
        // An estimate from less than a twentieth of the work would be a guess.
        self.progress.seconds_left = (self.progress.fraction > 0.05)
            .then(|| elapsed / self.progress.fraction * (1.0 - self.progress.fraction));
        self.observer.progress(&self.progress);
    }
}
