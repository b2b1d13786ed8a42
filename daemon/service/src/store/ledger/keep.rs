//! Removes old rows from the ledger, and keeps its file small.

use rusqlite::params;

use super::job::Job;
use super::store::Store;
use crate::error::Result;

/// How many jobs lose their rows in one transaction.
const PIECE: u32 = 200;
/// How many free pages go back to the disk in one transaction.
const PAGES: u32 = 1000;

/// A kind of rows that belong to a job and are removed before its own row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The seconds of single steps.
    Step,
    /// Samples of the GPU while a job ran.
    Sample,
    /// The events of a job.
    Event,
}

impl Kind {
    fn table(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Sample => "sample",
            Self::Event => "event",
        }
    }
}

impl Store {
    /// Removes one kind of rows of some jobs that ended before `before_us`. Returns true if there may be more.
    pub fn drop_old(&mut self, kind: Kind, before_us: i64) -> Result<bool> {
        let table = kind.table();
        let removed = self.db.execute(
            &format!(
                "DELETE FROM {table} WHERE job IN (SELECT id FROM job WHERE finished_us < ?1
                   AND EXISTS (SELECT 1 FROM {table} WHERE job = job.id) LIMIT {PIECE})"
            ),
            params![before_us],
        )?;
        Ok(removed > 0)
    }

    /// Returns some jobs that ended before `before_us`, in the order of their numbers, which are larger than `after`. A
    /// job whose picture could not be moved away is not among them: without its row the picture would be taken again.
    pub fn jobs_ended_before(&self, before_us: i64, after: u64) -> Result<Vec<Job>> {
        let mut find = self.db.prepare_cached(
            "SELECT * FROM job WHERE id > ?2 AND finished_us < ?1 AND source_left = 0
               AND state IN ('done','failed','canceled') ORDER BY id LIMIT 100",
        )?;
        let jobs =
            find.query_map(params![before_us, after as i64], Job::from_row)?.collect::<Result<_, _>>()?;
        Ok(jobs)
    }

    /// Gives some free pages of the file back to the disk. Returns true if there are more.
    pub fn shrink(&mut self) -> Result<bool> {
        {
            let mut pages = self.db.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
            let mut rows = pages.query([])?;
            // Each step frees one page.
            while rows.next()?.is_some() {}
        }
        let free: u32 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free == 0 {
            self.checkpoint()?;
        }
        Ok(free > 0 && self.auto_vacuums()?)
    }

    /// Lets SQLite update its statistics, which it recommends to do once a day.
    pub fn optimize(&mut self) -> Result<()> {
        Ok(self.db.execute_batch("PRAGMA optimize")?)
    }

    fn auto_vacuums(&self) -> Result<bool> {
        Ok(self.db.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, u32>(0))?
            == super::schema::INCREMENTAL)
    }
}
