//! What jobs ran on, and what they cost.

use animd_common::text::Text;
use animd_protocol::progress::Stage;
use rusqlite::params;

use super::Store;
use super::text::{text, text_if_any};
use crate::error::Result;

/// The GPU at one moment. A value that the card does not tell is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuSample {
    /// Microseconds since the epoch.
    pub at_us: i64,
    /// Milliwatts of the whole board.
    pub power_mw: Option<u32>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// MHz.
    pub sm_clock_mhz: Option<u32>,
    /// MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Time in which a kernel ran, in per cent.
    pub gpu_percent: Option<u32>,
    /// Time in which memory was read or written, in per cent.
    pub memory_percent: Option<u32>,
    /// Bytes in use on the board, by anybody.
    pub memory_bytes: Option<u64>,
}

/// Where a figure of energy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnergyMethod {
    /// The card's own counter.
    Counter,
    /// Power times time, once a second.
    Sampled,
}

impl EnergyMethod {
    /// `counter` or `sampled`, as the ledger has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Sampled => "sampled",
        }
    }
}

/// The energy of one attempt at a job: of the whole board, idle power included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Millijoules.
    pub energy_mj: u64,
    /// Where it comes from.
    pub method: EnergyMethod,
    /// Millijoules of each stage that the engine told of, in order.
    pub stages: Vec<(Stage, u64)>,
}

/// What a job runs on: the profile, the GPU and its driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The profile's name.
    pub profile: Option<Text>,
    /// `GPU-...`
    pub gpu_uuid: Option<Text>,
    /// The product name.
    pub gpu_name: Option<Text>,
    /// The driver's version.
    pub driver: Option<Text>,
}

/// What an ended job did, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Known {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Frames.
    pub frames: u32,
    /// Forwards of the DiT that were computed.
    pub forwards: u32,
    /// From its start to its end, without loading the model.
    pub seconds: f64,
}

/// What one job cost in energy.
#[derive(Clone, Debug, PartialEq)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// `counter` or `sampled`.
    pub method: Text,
    /// Joules of each stage, in order.
    pub stages: Vec<(Text, f64)>,
}

/// What a job ran on last, and what that cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Costs {
    /// What the job ran on.
    pub placed: Placed,
    /// How much energy, if it was measured.
    pub energy: Option<Energy>,
}

impl Store {
    /// Writes down on what a job runs.
    pub fn placed(&mut self, id: u64, placed: &Placed) -> Result<()> {
        self.db.execute(
            "UPDATE job SET profile = ?2, gpu_uuid = ?3, gpu_name = ?4, driver = ?5, energy_mj = NULL,
               energy_method = NULL WHERE id = ?1",
            params![
                id as i64,
                placed.profile.as_deref(),
                placed.gpu_uuid.as_deref(),
                placed.gpu_name.as_deref(),
                placed.driver.as_deref()
            ],
        )?;
        Ok(())
    }

    /// Writes samples down; for a job that has been forgotten meanwhile, none.
    pub fn samples(&mut self, id: u64, attempt: u32, samples: &[GpuSample]) -> Result<()> {
        let change = self.db.transaction()?;
        {
            let mut insert = change.prepare_cached(
                "INSERT OR REPLACE INTO sample (job, attempt, at_us, power_mw, temperature_c, sm_clock_mhz, memory_clock_mhz,
                   gpu_percent, memory_percent, memory_bytes)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 WHERE EXISTS (SELECT 1 FROM job WHERE id = ?1)",
            )?;
            for s in samples {
                insert.execute(params![
                    id as i64,
                    attempt,
                    s.at_us,
                    s.power_mw,
                    s.temperature_c,
                    s.sm_clock_mhz,
                    s.memory_clock_mhz,
                    s.gpu_percent,
                    s.memory_percent,
                    s.memory_bytes.map(|bytes| bytes as i64),
                ])?;
            }
        }
        change.commit()?;
        Ok(())
    }

    /// Writes down what an attempt cost. `stages` are the names of the stages in the engine's report, in order.
    pub fn spent(&mut self, id: u64, attempt: u32, spent: &Spent, stages: &[String]) -> Result<()> {
        let change = self.db.transaction()?;
        change.execute(
            "UPDATE job SET energy_mj = ?2, energy_method = ?3 WHERE id = ?1",
            params![id as i64, spent.energy_mj as i64, spent.method.name()],
        )?;
        for (n, name) in stages.iter().enumerate() {
            let energy =
                spent.stages.iter().find(|(stage, _)| stage.name() == name).map(|(_, mj)| *mj as i64);
            // The seconds come with the job's end.
            change.execute(
                "INSERT INTO stage (job, attempt, n, name, wall_us, energy_mj) VALUES (?1, ?2, ?3, ?4, 0, ?5)
                 ON CONFLICT (job, attempt, n) DO UPDATE SET energy_mj = excluded.energy_mj",
                params![id as i64, attempt, n as i64, name, energy],
            )?;
        }
        change.commit()?;
        Ok(())
    }

    /// What a job ran on last, and what that cost.
    pub fn costs(&self, id: u64) -> Result<Costs> {
        let (placed, total, method) = self.db.query_row(
            "SELECT profile, gpu_uuid, gpu_name, driver, energy_mj, energy_method FROM job WHERE id = ?1",
            [id as i64],
            |row| {
                let placed = Placed {
                    profile: text_if_any(row, 0)?,
                    gpu_uuid: text_if_any(row, 1)?,
                    gpu_name: text_if_any(row, 2)?,
                    driver: text_if_any(row, 3)?,
                };
                Ok((placed, row.get::<_, Option<i64>>(4)?, text_if_any(row, 5)?))
            },
        )?;
        let Some((total, method)) = total.zip(method) else { return Ok(Costs { placed, energy: None }) };
        let mut find = self.db.prepare_cached(
            "SELECT name, energy_mj FROM stage WHERE job = ?1 AND energy_mj IS NOT NULL
               AND attempt = (SELECT max(attempt) FROM stage WHERE job = ?1) ORDER BY n",
        )?;
        let stages = find
            .query_map([id as i64], |row| Ok((text(row, 0)?, row.get::<_, i64>(1)? as f64 / 1e3)))?
            .collect::<Result<_, _>>()?;
        Ok(Costs { placed, energy: Some(Energy { joules: total as f64 / 1e3, method, stages }) })
    }

    /// Returns the newest finished jobs of a profile that name this model, of which `None` is the configured one; at most so
    /// many. Of several models that were configured, it is the one that the newest of these jobs had. Videos of `seconds`, which may
    /// have been made in several parts and over several attempts, are left out.
    pub fn known(&self, profile: &str, model: Option<&str>, limit: u32) -> Result<Vec<Known>> {
        let mut find = self.db.prepare_cached(
            "SELECT width, height, frames, forwards_computed,
               (finished_us - started_us - coalesce((SELECT sum(wall_us) FROM stage WHERE stage.job = job.id
                 AND stage.attempt = job.attempt AND name = 'load'), 0)) / 1e6
             FROM job WHERE state = 'done' AND profile = ?1 AND forwards_computed > 0 AND width IS NOT NULL
               AND coalesce(json_extract(settings_json, '$.seconds'), 0) = 0
               AND json_extract(settings_json, '$.model') IS ?3
               AND model IS (SELECT model FROM job WHERE state = 'done' AND profile = ?1
                 AND json_extract(settings_json, '$.model') IS ?3 ORDER BY id DESC LIMIT 1)
             ORDER BY id DESC LIMIT ?2",
        )?;
        let known = find
            .query_map(params![profile, limit, model], |row| {
                Ok(Known {
                    width: row.get(0)?,
                    height: row.get(1)?,
                    frames: row.get(2)?,
                    forwards: row.get(3)?,
                    seconds: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(known)
    }
}
