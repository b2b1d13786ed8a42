//! The progress of a job, and the seconds of each stage.

use std::time::Instant;

use crate::Result;
use crate::progress::{Costs, Observer, Progress, Stage};

/// Times the stages of one job and tells the observer.
pub struct Clock<'a> {
    observer: &'a dyn Observer,
    costs: Costs,
    /// The part of each stage that is done, from 0 to 1, in the order of [`Stage::ALL`].
    done: [f64; Stage::ALL.len()],
    progress: Progress,
    /// The seconds of the whole job at the pace of the last stage that told; `None` before.
    pace: Option<f64>,
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
            done: [0.0; Stage::ALL.len()],
            progress: Progress { stage: Stage::Load, step: 0, steps, fraction: 0.0, seconds_left: None },
            pace: None,
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

    /// Ends the previous stage and begins this one, or goes on with it: weights are loaded in turn with the encoders that
    /// need them. Nothing happens if this stage runs already.
    ///
    /// # Errors
    /// Returns [`crate::Error::Canceled`] if the work should stop.
    pub fn stage(&mut self, stage: Stage) -> Result<()> {
        if self.stage_began.is_none() || self.progress.stage != stage {
            self.close();
            self.stage_began = Some(Instant::now());
            self.progress.stage = stage;
            for (done, before) in self.done.iter_mut().zip(Stage::ALL) {
                // All weights are there when the transformer begins.
                if before < stage && (before != Stage::Load || stage >= Stage::Denoise) {
                    *done = 1.0;
                }
            }
        }
        self.tell(self.done[stage as usize]);
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

    /// Returns the seconds that the whole job takes at the pace of this stage, of which `part` is done. Only the two long
    /// stages tell: loading reads a disk and computes nothing. `None` too from less than a twentieth of the work, which
    /// would be a guess.
    fn pace_of(&self, stage: Stage, part: f64) -> Option<f64> {
        let done = part.min(1.0) * self.costs.share(stage);
        let long = matches!(stage, Stage::Denoise | Stage::VaeDecode);
        let elapsed = self.stage_began?.elapsed().as_secs_f64();
        (long && done > 0.05).then(|| elapsed / done)
    }

    /// Returns the seconds of each step, and whether it was computed.
    pub fn steps(&self, computed: &[bool]) -> Vec<(f64, bool)> {
        self.steps.iter().copied().zip(computed.iter().copied()).collect()
    }

    /// Returns the seconds of the stages that have ended, when the current one began, and how far the job is.
    pub fn leave(self) -> (Vec<(String, f64)>, Instant, Progress) {
        (self.seconds, self.stage_began.unwrap_or_else(Instant::now), self.progress)
    }

    /// Notes the seconds of the current stage, if any.
    fn close(&mut self) {
        let now = Instant::now();
        let Some(began) = self.stage_began.take() else { return };
        let (name, seconds) = (self.progress.stage.name(), (now - began).as_secs_f64());
        match self.seconds.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((name.to_owned(), seconds)),
        }
    }

    fn tell(&mut self, part: f64) {
        let stage = self.progress.stage;
        self.done[stage as usize] = part.min(1.0);
        let fraction: f64 =
            Stage::ALL.iter().zip(self.done).map(|(stage, done)| done * self.costs.share(*stage)).sum();
        // A job that begins again has done what it did before.
        self.progress.fraction = fraction.min(1.0).max(self.progress.fraction);
        if let Some(pace) = self.pace_of(stage, part) {
            self.pace = Some(pace);
        }
        self.progress.seconds_left = self.pace.map(|pace| pace * (1.0 - self.progress.fraction));
        self.observer.progress(&self.progress);
    }
}
