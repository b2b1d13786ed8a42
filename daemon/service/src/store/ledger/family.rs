//! Jobs that are tries at one picture: a job, its retries, and theirs.

use std::os::unix::ffi::OsStrExt;

use rusqlite::{Connection, OptionalExtension, params};

use super::job::{Job, Source, State};
use super::store::Store;
use crate::error::Result;

impl Store {
    /// Returns a job that is about to end, with the picture to move. A retry has none of its own: it gets the one that
    /// the newest ended job of its family has moved to `failed` or `cancelled`, and this is written down.
    ///
    /// A picture in `done` has its video, which no later job takes away. A file that belongs to another job by now,
    /// because somebody has put it back into its watched folder, stays with that job.
    pub fn adopt_source(&mut self, id: u64) -> Result<Option<Job>> {
        self.change(|db| {
            let find = || {
                db.query_row("SELECT * FROM job WHERE id = ?1", params![id as i64], Job::from_row).optional()
            };
            let Some(job) = find()? else { return Ok(None) };
            if job.retry_of.is_none() || !matches!(job.state, State::Queued | State::Running) {
                return Ok(Some(job));
            }
            let source = moved_by_family(db, id)?;
            let source = match source {
                Some(source) if !is_taken(db, id, &source)? => Some(source),
                _ => None,
            };
            db.execute(
                "UPDATE job SET source_path = ?2, source_dev = ?3, source_ino = ?4, source_mtime_ns = ?5 WHERE id = ?1",
                params![
                    id as i64,
                    source.as_ref().map(|source| source.path.as_os_str().as_bytes()),
                    source.as_ref().map(|source| source.identity.dev),
                    source.as_ref().map(|source| source.identity.ino),
                    source.as_ref().map(|source| source.identity.mtime_ns),
                ],
            )?;
            Ok(find()?)
        })
    }
}

/// Returns the picture that the newest ended job of a family has moved, at its new place, unless that is in `done`.
fn moved_by_family(db: &Connection, id: u64) -> Result<Option<Source>> {
    let newest = db
        .query_row(
            "WITH RECURSIVE
               elder(id, retry_of) AS (
                 SELECT id, retry_of FROM job WHERE id = ?1
                 UNION SELECT job.id, job.retry_of FROM job JOIN elder ON job.id = elder.retry_of),
               family(id) AS (
                 SELECT id FROM elder
                 UNION SELECT job.id FROM job JOIN family ON job.retry_of = family.id)
             SELECT job.* FROM job JOIN family ON job.id = family.id
             WHERE job.id <> ?1 AND job.state IN ('done','failed','canceled')
               AND job.source_target IS NOT NULL AND job.source_left = 0
             ORDER BY job.finished_us DESC, job.id DESC LIMIT 1",
            params![id as i64],
            Job::from_row,
        )
        .optional()?;
    let newest = newest.filter(|job| job.state != State::Done);
    Ok(newest.and_then(|job| Some(Source { path: job.source_target?, ..job.source? })))
}

/// Returns whether a file belongs to another job, as the index `job_source_once` has it.
fn is_taken(db: &Connection, id: u64, source: &Source) -> Result<bool> {
    let identity = source.identity;
    Ok(db.query_row(
        "SELECT EXISTS (SELECT 1 FROM job WHERE source_dev = ?1 AND source_ino = ?2 AND source_mtime_ns = ?3 AND id <> ?4
           AND (state IN ('queued','running','finishing') OR source_left = 1))",
        params![identity.dev, identity.ino, identity.mtime_ns, id as i64],
        |row| row.get(0),
    )?)
}
