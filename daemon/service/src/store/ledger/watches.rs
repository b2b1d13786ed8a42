//! Watched folders that were added over the bus, and pictures in watched folders.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use animd_common::clock::now_us;
use animd_common::files::{Identity, path_from};
use rusqlite::params;

use super::job::{Added, Job, NewJob};
use super::shares::Shares;
use super::store::{Store, event, insert};
use crate::error::Result;

/// A watched folder that was added over the bus.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedWatch {
    /// The folder.
    pub path: PathBuf,
    /// Where its videos go; `None` is the configured place.
    pub outbox: Option<PathBuf>,
    /// Seconds that a picture must lie unchanged; `None` is the configured number.
    pub stable_seconds: Option<f64>,
    /// Look into it this often, in seconds, and use no events.
    pub poll_seconds: Option<f64>,
    /// Who added it.
    pub owner: u32,
}

impl Store {
    /// Returns the folders that were added over the bus, by their paths.
    pub fn watches(&self) -> Result<Vec<AddedWatch>> {
        let mut find = self.db.prepare_cached(
            "SELECT path, outbox, stable_seconds, poll_seconds, owner_uid FROM watch ORDER BY path",
        )?;
        let watches = find
            .query_map([], |row| {
                Ok(AddedWatch {
                    path: path_from(row.get(0)?),
                    outbox: row.get::<_, Option<Vec<u8>>>(1)?.map(path_from),
                    stable_seconds: row.get(2)?,
                    poll_seconds: row.get(3)?,
                    owner: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(watches)
    }

    /// Writes a folder down.
    pub fn add_watch(&mut self, watch: &AddedWatch) -> Result<()> {
        self.db.execute(
            "INSERT INTO watch (path, outbox, stable_seconds, poll_seconds, owner_uid, added_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                watch.path.as_os_str().as_bytes(),
                watch.outbox.as_ref().map(|p| p.as_os_str().as_bytes()),
                watch.stable_seconds,
                watch.poll_seconds,
                watch.owner,
                now_us(),
            ],
        )?;
        Ok(())
    }

    /// Removes a folder. Returns false if the ledger does not have it.
    pub fn remove_watch(&mut self, path: &Path) -> Result<bool> {
        let path = path.as_os_str().as_bytes();
        Ok(self.db.execute("DELETE FROM watch WHERE path = ?1", params![path])? == 1)
    }

    /// Adds many jobs as [`Self::add`] does, in one transaction with one sync of the disk.
    pub fn add_all(&mut self, new: &[NewJob], spooled: impl Fn(&NewJob) -> bool) -> Result<Vec<Added>> {
        let limits = self.limits;
        let mut shares = Shares::new(limits);
        self.change(|db| {
            new.iter().map(|new| insert(db, limits, &mut shares, new, || spooled(new))).collect()
        })
    }

    /// Returns for each of many files what [`Self::taken`] returns.
    pub fn taken_all(&self, identities: &[Identity]) -> Result<Vec<Option<Job>>> {
        identities.iter().map(|identity| self.taken(*identity)).collect()
    }

    /// Takes note that the picture of an open job was renamed or moved by its user.
    pub fn source_renamed(&mut self, id: u64, path: &Path) -> Result<()> {
        self.change(|db| {
            let changed = db.execute(
                "UPDATE job SET source_path = ?2 WHERE id = ?1 AND state IN ('queued','running')",
                params![id as i64, path.as_os_str().as_bytes()],
            )?;
            if changed == 1 {
                event(db, id, "source-renamed", None)?;
            }
            Ok(())
        })
    }

    /// Takes note that a job's sidecars were read again.
    pub fn settings_read(&mut self, id: u64, read_us: i64) -> Result<()> {
        self.db.execute("UPDATE job SET settings_us = ?2 WHERE id = ?1", params![id as i64, read_us])?;
        Ok(())
    }
}
