//! Each user's share of the disk: what their jobs take in the spool, among the videos that are kept for them, and in the
//! ledger itself.
//!
//! A picture counts for as long as the spool has it, whatever has become of its job: whoever submits and cancels must not
//! fill the disk. Root and the service's own user have no limit.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::job::{NewJob, Quota};
use crate::error::Result;

/// What a row takes in the ledger besides its texts, with its events and indices, in bytes.
pub(super) const ROW: u64 = 1 << 10;
/// Limits of the jobs that the ledger takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many jobs that came over the bus may be open, of all users together.
    pub total: u32,
    /// How many bytes one user's pictures and kept videos may take.
    pub disk_bytes: u64,
    /// How many bytes the rows of one user's jobs may take.
    pub ledger_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: u32::MAX, disk_bytes: u64::MAX, ledger_bytes: u64::MAX }
    }
}

/// What the users of one transaction have, and what its jobs add.
pub(super) struct Shares {
    limits: Limits,
    used: HashMap<u32, Used>,
}

/// The bytes that a user has.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    /// Of pictures, what is set aside for parts of videos, and kept videos.
    pub disk: u64,
    /// Of rows.
    pub ledger: u64,
}

impl Shares {
    pub fn new(limits: Limits) -> Self {
        Self { limits, used: HashMap::new() }
    }

    /// Counts a new job, unless its owner has no room for it.
    pub fn take(&mut self, db: &Connection, new: &NewJob) -> Result<Option<Quota>> {
        if is_trusted(new.owner) {
            return Ok(None);
        }
        let mut used = match self.used.get(&new.owner) {
            Some(used) => *used,
            None => used_by(db, new.owner)?,
        };
        used.ledger += row_bytes(new);
        if let Ok((sha256, _)) = &new.work
            && !has_picture(db, new.owner, sha256)?
        {
            used.disk += new.picture_bytes;
        }
        if let Some((sha256, bytes)) = &new.last
            && !has_picture(db, new.owner, sha256)?
        {
            used.disk += bytes;
        }
        used.disk += new.parts_bytes;
        let over = self.limits.over(used);
        if over.is_none() {
            self.used.insert(new.owner, used);
        }
        Ok(over)
    }
}

impl Limits {
    pub(super) fn over(self, used: Used) -> Option<Quota> {
        if used.disk > self.disk_bytes {
            Some(Quota::Disk)
        } else if used.ledger > self.ledger_bytes {
            Some(Quota::Ledger)
        } else {
            None
        }
    }
}

pub(super) fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Returns about how many bytes the name, the strengths and the hash of a `LoRA` take, in the ledger and over the bus.
pub fn lora_bytes(name: &str) -> usize {
    name.len() + 128
}

/// Returns about how many bytes a job takes in the ledger.
pub(super) fn row_bytes(new: &NewJob) -> u64 {
    let texts = match &new.work {
        Ok((_, request)) => {
            // A LoRA stands among the settings and in a row of its own.
            let loras: usize = request.lora.iter().map(|choice| 2 * lora_bytes(&choice.name)).sum();
            request.prompt.len() + request.negative_prompt.len() + loras
        }
        Err(refusal) => 2 * refusal.text.len(),
    };
    let path = new.source.as_ref().map_or(0, |source| source.path.as_os_str().len());
    ROW + (new.name.len() + 2 * path + texts) as u64
}

pub(super) fn used_by(db: &Connection, owner: u32) -> Result<Used> {
    let sum = |sql: &str| -> Result<u64> {
        let bytes: i64 = db.prepare_cached(sql)?.query_row(params![owner], |row| row.get(0))?;
        Ok(bytes.unsigned_abs())
    };
    let pictures = sum("SELECT coalesce(sum(bytes), 0) FROM (SELECT max(bytes) AS bytes FROM (
           SELECT image_sha256 AS sha256, image_bytes AS bytes FROM job WHERE owner_uid = ?1 AND image_bytes > 0
           UNION ALL SELECT last_sha256, last_bytes FROM job WHERE owner_uid = ?1 AND last_bytes > 0) GROUP BY sha256)")?;
    let parts =
        sum("SELECT coalesce(sum(parts_bytes), 0) FROM job WHERE owner_uid = ?1 AND parts_bytes > 0")?;
    let results =
        sum("SELECT coalesce(sum(result_bytes), 0) FROM job WHERE owner_uid = ?1 AND result_bytes > 0")?;
    let ledger = sum("SELECT coalesce(sum(row_bytes), 0) FROM job WHERE owner_uid = ?1")?;
    Ok(Used { disk: pictures + parts + results, ledger })
}

fn has_picture(db: &Connection, owner: u32, sha256: &[u8; 32]) -> Result<bool> {
    let mut find = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM job WHERE owner_uid = ?1 AND image_sha256 = ?2 AND image_bytes > 0)
           OR EXISTS (SELECT 1 FROM job WHERE owner_uid = ?1 AND last_sha256 = ?2 AND last_bytes > 0)",
    )?;
    Ok(find.query_row(params![owner, sha256], |row| row.get(0))?)
}
