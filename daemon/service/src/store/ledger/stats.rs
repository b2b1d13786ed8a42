//! Sums over jobs that have ended: their number, time and energy.

use animd_common::text::Text;
use rusqlite::params;

use super::Store;
use super::text::text;
use crate::error::Result;

/// What jobs are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The day, in universal time, on which a job ended.
    Day,
    /// The model's name for itself.
    Model,
    /// The profile.
    Profile,
}

impl By {
    /// All groupings.
    pub const ALL: [Self; 3] = [Self::Day, Self::Model, Self::Profile];

    /// Returns `day`, `model` or `profile`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Model => "model",
            Self::Profile => "profile",
        }
    }

    /// Returns the grouping with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.name() == name)
    }

    fn sql(self) -> &'static str {
        match self {
            Self::Day => "date(finished_us / 1000000, 'unixepoch')",
            Self::Model => "coalesce(model, '')",
            Self::Profile => "coalesce(profile, '')",
        }
    }
}

/// One row of sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    /// The day, the model or the profile; empty where a job has none.
    pub key: Text,
    /// Jobs with a video.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that somebody cancelled.
    pub canceled: u64,
    /// Seconds from the last start to the end, of jobs with a video.
    pub seconds: f64,
    /// Joules of jobs with a video, where they are known.
    pub joules: f64,
    /// Frames of all videos.
    pub frames: u64,
}

impl Store {
    /// Returns the sums over the jobs of `owner`, or of everybody, that ended at or after `since_us`.
    pub fn sums(&self, by: By, owner: Option<u32>, since_us: u64) -> Result<Vec<Sum>> {
        let key = by.sql();
        let mut find = self.db.prepare_cached(&format!(
            "SELECT {key}, sum(state = 'done'), sum(state = 'failed'), sum(state = 'canceled'),
               total(CASE state WHEN 'done' THEN finished_us - started_us END) / 1e6,
               total(CASE state WHEN 'done' THEN energy_mj END) / 1e3,
               coalesce(sum(CASE state WHEN 'done' THEN frames END), 0)
             FROM job WHERE state IN ('done','failed','canceled') AND finished_us >= ?1 AND (?2 IS NULL OR owner_uid = ?2)
             GROUP BY 1 ORDER BY 1"
        ))?;
        let rows = find.query_map(params![since_us as i64, owner], |row| {
            let whole = |n| row.get::<_, i64>(n).map(|n| n as u64);
            Ok(Sum {
                key: text(row, 0)?,
                done: whole(1)?,
                failed: whole(2)?,
                canceled: whole(3)?,
                seconds: row.get(4)?,
                joules: row.get(5)?,
                frames: whole(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
