//! The ledger's tables, and the migration of older ledgers to this version of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use animd_common::files::{open_private, show};
use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Error, Result};

/// The migrations: the first one leads to version 1, and so on. A released migration is never changed.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema-1.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
];

/// The value of `PRAGMA auto_vacuum` with which free pages are given back on request.
pub(super) const INCREMENTAL: u32 = 2;

/// The largest ledger that is read as a whole when it is opened, in bytes: that takes a fraction of a second. Damage of a
/// larger one is noticed when it is met.
const CHECKED: u64 = 64 << 20;

/// Opens or makes the file, and migrates it to this version.
pub fn open(path: &Path) -> Result<Connection> {
    private(path)?;
    let mut db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    // A new file takes this over at once, an older one when it is vacuumed.
    db.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // NORMAL may lose the last commits at a power cut, and with them a video that somebody was told of.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is overwritten: prompts are private.
    db.pragma_update(None, "secure_delete", true)?;
    check(&db, path)?;
    migrate(&mut db, path, &MIGRATIONS)?;
    if db.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, u32>(0))? != INCREMENTAL {
        tracing::info!("rewriting the ledger once, so that it can return free space");
        db.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
        // VACUUM needs the file's size again on the disk for a moment; if it fails, the ledger only stays large.
        if let Err(e) = db.execute_batch("VACUUM") {
            tracing::warn!("cannot compact the ledger, so it keeps its free space: {e}");
        }
    }
    Ok(db)
}

/// Reads a ledger of moderate size as a whole.
///
/// # Errors
/// The error of SQLite for a damaged one.
fn check(db: &Connection, path: &Path) -> Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > CHECKED) {
        return Ok(());
    }
    let said: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match said.as_str() {
        "ok" => Ok(()),
        _ => {
            let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            Err(rusqlite::Error::SqliteFailure(corrupt, Some(said)).into())
        }
    }
}

/// Makes the file readable for nobody but the service: it holds everybody's prompts. SQLite gives its own files beside
/// it the same rights.
fn private(path: &Path) -> Result<()> {
    open_private(path)
        .and_then(|_| fs::set_permissions(path, Permissions::from_mode(0o600)))
        .map_err(Error::file("open", path))
}

fn version(db: &Connection) -> Result<usize> {
    Ok(db.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))? as usize)
}

fn migrate(db: &mut Connection, path: &Path, migrations: &[&str]) -> Result<()> {
    let found = version(db)?;
    if found > migrations.len() {
        return Err(Error::Schema(format!(
            "the ledger `{}` has schema {found}, written by a newer animd; this one knows up to {}: install the newer \
             animd, or put back the copy `{}` that the upgrade made",
            show(path),
            migrations.len(),
            show(backup_path(path, migrations.len())),
        )));
    }
    if found > 0 && found < migrations.len() {
        let copy = backup_path(path, found);
        private(&copy)?;
        db.backup("main", &copy, None)?;
        tracing::info!(
            "upgrading the ledger from schema {found} to {}; a copy is in `{}`",
            migrations.len(),
            show(&copy)
        );
    }
    for (n, sql) in migrations.iter().enumerate().skip(found) {
        let change = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        change.execute_batch(sql)?;
        change.pragma_update(None, "user_version", n as u32 + 1)?;
        change.commit()?;
    }
    Ok(())
}

fn backup_path(path: &Path, version: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{version}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_refused_in_words() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let path = dir.path().join("ledger.db");
        open(&path)?.pragma_update(None, "user_version", 99)?;
        assert_eq!(
            fs::metadata(&path).map_err(Error::file("read", &path))?.permissions().mode() & 0o777,
            0o600
        );
        let error = open(&path).expect_err("newer").to_string();
        assert!(error.contains("schema 99") && error.contains("newer animd"), "{error}");
        Ok(())
    }

    #[test]
    fn a_migration_keeps_a_copy_and_is_all_or_nothing() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let path = dir.path().join("ledger.db");
        let mut db = open(&path)?;
        db.execute_batch("INSERT INTO event (at_us, kind) VALUES (1, 'kept')")?;
        let now = MIGRATIONS.len();
        let with = |sql| [&MIGRATIONS[..], &[sql]].concat();
        let bad = with("CREATE TABLE extra (a); CREATE TABLE extra (a);");
        assert!(migrate(&mut db, &path, &bad).is_err());
        assert_eq!(version(&db)?, now);
        migrate(&mut db, &path, &with("CREATE TABLE extra (a);"))?;
        assert_eq!(version(&db)?, now + 1);
        let copy = Connection::open(backup_path(&path, now))?;
        assert_eq!(version(&copy)?, now);
        assert_eq!(copy.query_row("SELECT kind FROM event", [], |r| r.get::<_, String>(0))?, "kept");
        Ok(())
    }
}
