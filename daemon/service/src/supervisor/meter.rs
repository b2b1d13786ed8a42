//! Meters the running attempt, and writes to the ledger what a job ran on and what it cost.

use animd_protocol::progress::Stage;

use super::gpu::meter::{Ending, Meter};
use super::gpu::nvml::Driver;
use super::profile::Profiles;
use crate::store::ledger::{Ended, Ledger, Placed};

/// The meter of the job that runs, if it runs on a GPU.
pub struct JobMeter {
    driver: Driver,
    profiles: Profiles,
    ledger: Ledger,
    /// The job and the attempt that run, with their meter.
    running: Option<(u64, u32, Meter)>,
    /// The jobs and attempts that ran last, with what they spent: the file of one may be finished while another runs.
    ended: Vec<(u64, u32, Ending)>,
    stage: Option<Stage>,
}

impl JobMeter {
    /// Returns a meter that asks this driver.
    pub fn new(driver: Driver, profiles: Profiles, ledger: Ledger) -> Self {
        Self { driver, profiles, ledger, running: None, ended: Vec::new(), stage: None }
    }

    /// Writes to the ledger what a job runs on, and starts to meter it.
    pub async fn job_starts(&mut self, id: u64, attempt: u32) {
        let choice = self.profiles.choice();
        let card = choice.used_gpu();
        let placed = Placed {
            profile: choice.profile.as_ref().map(|p| p.name.as_str().into()),
            gpu_uuid: card.map(|c| c.uuid.as_str().into()),
            gpu_name: card.map(|c| c.name.as_str().into()),
            driver: card.and_then(|_| self.profiles.machine().driver().map(Into::into)),
        };
        if let Err(e) = self.ledger.call(move |db| db.placed(id, &placed)).await {
            tracing::warn!(job = id, "cannot record the profile of job {id}: {e}");
        }
        self.stage = None;
        self.running = card
            .and_then(|card| Meter::start(&self.driver, &card.uuid, &self.ledger, id, attempt))
            .map(|meter| (id, attempt, meter));
    }

    /// Takes note of the stage that the engine has come to with a job.
    pub fn stage(&mut self, id: u64, stage: Stage) {
        let running = self.running.as_ref().filter(|(job, ..)| *job == id);
        if let Some((_, _, meter)) = running
            && self.stage.replace(stage) != Some(stage)
        {
            meter.stage(stage);
        }
    }

    /// Ends the metering of an attempt at a job, if it is the one that is metered.
    pub fn attempt_ends(&mut self, id: u64) {
        let Some((id, attempt, meter)) = self.running.take_if(|(job, ..)| *job == id) else { return };
        // Attempts that end without their jobs are forgotten here.
        self.ended.drain(..self.ended.len().saturating_sub(1));
        self.ended.push((id, attempt, meter.end()));
    }

    /// Writes to the ledger what a job with this end has cost.
    pub async fn job_ends(&mut self, id: u64, ended: &Ended) {
        let Some(at) = self.ended.iter().rposition(|(job, ..)| *job == id) else { return };
        let (_, attempt, spent) = self.ended.swap_remove(at);
        let Some(spent) = spent.sum().await else { return };
        let stages = match ended {
            Ended::Done(done) => done.report.seconds.iter().map(|(name, _)| name.clone()).collect(),
            _ => Vec::new(),
        };
        let written = self.ledger.call(move |db| db.spent(id, attempt, &spent, &stages)).await;
        if let Err(e) = written {
            tracing::warn!(job = id, "cannot record the energy of job {id}: {e}");
        }
    }
}
