//! The timeline of one job: its events, stages and steps, and what the GPU did meanwhile.

use animd_common::text::Text;
use rusqlite::{Row, params};

use super::Store;
use super::text::{text, text_if_any};
use crate::error::Result;

/// The most events of a timeline. A job's owner can make many: every change of its priority is one.
const MOST_EVENTS: u32 = 1000;
/// The kind of the events that are the engine's notes on a job.
pub(super) const NOTE: &str = "note";
/// The most notes of one attempt that are kept.
pub(super) const MOST_NOTES: usize = 16;

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Microseconds since the epoch.
    pub at_us: u64,
    /// What happened: `queued`, `started`, `requeued`, `finishing`, `ended`...
    pub kind: Text,
    /// Details of what happened.
    pub text: Option<Text>,
}

/// A stage of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCost {
    /// The stage's name ([`animd_protocol::progress::Stage::name`]).
    pub name: Text,
    /// Wall seconds.
    pub seconds: f64,
    /// Joules of the whole board.
    pub joules: Option<f64>,
}

/// A denoising step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Wall seconds.
    pub seconds: f64,
    /// Whether it was computed, or saved by a step cache.
    pub computed: bool,
}

/// The state of the GPU at one moment. Values that the device does not tell are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Microseconds since the epoch.
    pub at_us: u64,
    /// Watts of the board.
    pub watts: Option<f64>,
    /// Degrees Celsius.
    pub celsius: Option<u32>,
    /// The multiprocessors' clock, in MHz.
    pub sm_mhz: Option<u32>,
    /// Percent of the time in which a kernel ran.
    pub gpu_percent: Option<u32>,
    /// Bytes in use on the board, by anybody.
    pub memory_bytes: Option<u64>,
}

/// A job's last attempt, with everything that happened to the job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The newest thousand events, in their order.
    pub events: Vec<Event>,
    /// The stages of the last finished attempt, in their order.
    pub stages: Vec<StageCost>,
    /// The steps of the last finished attempt, in their order.
    pub steps: Vec<StepCost>,
    /// The samples of the last attempt, in their order.
    pub samples: Vec<Sample>,
}

impl Store {
    /// Returns the timeline of a job.
    pub fn timeline(&self, id: u64) -> Result<Timeline> {
        Ok(Timeline {
            events: self.rows(
                &format!(
                    "SELECT at_us, kind, text FROM
                       (SELECT * FROM event WHERE job = ?1 ORDER BY id DESC LIMIT {MOST_EVENTS}) ORDER BY id"
                ),
                id,
                |row| Ok(Event { at_us: row.get::<_, i64>(0)? as u64, kind: text(row, 1)?, text: text_if_any(row, 2)? }),
            )?,
            stages: self.rows(
                "SELECT name, wall_us, energy_mj FROM stage WHERE job = ?1
                   AND attempt = (SELECT max(attempt) FROM stage WHERE job = ?1) ORDER BY n",
                id,
                |row| {
                    Ok(StageCost {
                        name: text(row, 0)?,
                        seconds: row.get::<_, i64>(1)? as f64 / 1e6,
                        joules: row.get::<_, Option<i64>>(2)?.map(|mj| mj as f64 / 1e3),
                    })
                },
            )?,
            steps: self.rows(
                "SELECT wall_us, computed FROM step WHERE job = ?1
                   AND attempt = (SELECT max(attempt) FROM step WHERE job = ?1) ORDER BY n",
                id,
                |row| Ok(StepCost { seconds: row.get::<_, i64>(0)? as f64 / 1e6, computed: row.get(1)? }),
            )?,
            samples: self.rows(
                "SELECT at_us, power_mw, temperature_c, sm_clock_mhz, gpu_percent, memory_bytes FROM sample
                 WHERE job = ?1 AND attempt = (SELECT max(attempt) FROM sample WHERE job = ?1) ORDER BY at_us",
                id,
                |row| {
                    Ok(Sample {
                        at_us: row.get::<_, i64>(0)? as u64,
                        watts: row.get::<_, Option<i64>>(1)?.map(|mw| mw as f64 / 1e3),
                        celsius: row.get(2)?,
                        sm_mhz: row.get(3)?,
                        gpu_percent: row.get(4)?,
                        memory_bytes: row.get::<_, Option<i64>>(5)?.map(|bytes| bytes as u64),
                    })
                },
            )?,
        })
    }

    /// Returns the engine's notes on a job that is done, of its last attempt. Few events follow a job's start, so that few rows
    /// are read, however often the job was moved in the queue before.
    pub fn notes(&self, id: u64) -> Result<Vec<Text>> {
        let sql = format!(
            "SELECT text FROM event WHERE job = ?1 AND kind = '{NOTE}' AND id > (SELECT id FROM event
               WHERE job = ?1 AND kind = 'started' ORDER BY id DESC LIMIT 1) ORDER BY id"
        );
        self.rows(&sql, id, |row| text(row, 0))
    }

    fn rows<T>(
        &self,
        sql: &str,
        id: u64,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut find = self.db.prepare_cached(sql)?;
        Ok(find.query_map(params![id as i64], read)?.collect::<Result<_, _>>()?)
    }
}
