//! What a person does to a job besides running it: giving it another place in the queue, and forgetting it. Also the
//! settings that outlive a restart.

use animd_common::text::Text;
use rusqlite::{OptionalExtension, params};

use super::store::{Store, event};
use super::text::text;
use crate::error::Result;

/// The setting under which a pause is kept: who paused, as a sentence.
pub const PAUSED: &str = "paused";

impl Store {
    /// Gives a queued job another place among those that wait. Returns false if it does not wait.
    pub fn set_priority(&mut self, id: u64, priority: i32) -> Result<bool> {
        self.change(|db| {
            let mut find =
                db.prepare_cached("SELECT priority FROM job WHERE id = ?1 AND state = 'queued'")?;
            let old: Option<i32> = find.query_row([id as i64], |row| row.get(0)).optional()?;
            if old.is_some_and(|old| old != priority) {
                db.execute("UPDATE job SET priority = ?2 WHERE id = ?1", params![id as i64, priority])?;
                event(db, id, "priority", Some(&priority.to_string()))?;
            }
            Ok(old.is_some())
        })
    }

    /// Removes an ended job's row and all rows that belong to it. Returns false if no ended job has this number.
    pub fn forget(&mut self, id: u64) -> Result<bool> {
        let sql = "DELETE FROM job WHERE id = ?1 AND state IN ('done','failed','canceled')";
        Ok(self.db.execute(sql, params![id as i64])? == 1)
    }

    /// Copies the write-ahead log into the file and empties it, so that no removed data is left in it.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Returns whether any job waits.
    pub fn waits(&self) -> Result<bool> {
        let mut find = self.db.prepare_cached("SELECT EXISTS (SELECT 1 FROM job WHERE state = 'queued')")?;
        Ok(find.query_row([], |row| row.get(0))?)
    }

    /// Returns the value of a setting that was made while the service ran.
    pub fn setting(&self, key: &str) -> Result<Option<Text>> {
        let mut find = self.db.prepare_cached("SELECT value FROM setting WHERE key = ?1")?;
        Ok(find.query_row([key], |row| text(row, 0)).optional()?)
    }

    /// Sets a setting, or removes it if `value` is `None`.
    pub fn set_setting(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => self.db.execute(
                "INSERT INTO setting (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
                [key, value],
            )?,
            None => self.db.execute("DELETE FROM setting WHERE key = ?1", [key])?,
        };
        Ok(())
    }
}
