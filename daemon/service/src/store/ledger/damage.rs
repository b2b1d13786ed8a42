//! A damaged ledger: how it is noticed, and the way on, which deletes nothing.
//!
//! The service makes a copy of the ledger when it starts and once a day. It never takes the copy by itself: jobs that ended
//! since would run again, and whoever reads this has to decide that.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use animd_common::clock::now_us;
use animd_common::files::{self, show, sync_dir};
use rusqlite::{Connection, ErrorCode as Sqlite, OpenFlags};

use super::schema;
use super::store::Store;
use crate::error::{Error, Result};

/// The files that SQLite keeps beside a ledger.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Returns the path of the ledger's copy.
pub fn copy_path(ledger: &Path) -> PathBuf {
    with_suffix(ledger, ".backup")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Returns an error of a ledger at `path` with the remedy, if it says that the file is damaged.
pub fn explain(path: &Path, e: Error) -> Error {
    let why = match &e {
        Error::Ledger(rusqlite::Error::SqliteFailure(code, _))
            if matches!(code.code, Sqlite::NotADatabase | Sqlite::DatabaseCorrupt) =>
        {
            e.to_string().trim_start_matches("the ledger: ").to_owned()
        }
        Error::Common(animd_common::Error::File { source, .. })
            if source.kind() == io::ErrorKind::InvalidInput =>
        {
            source.to_string()
        }
        _ => return e,
    };
    let way = match is_whole(&copy_path(path)) {
        true => format!("goes on with the copy `{}`", show(copy_path(path))),
        false => {
            "begins a new one, since there is no copy of it; pictures in the inbox are queued again".into()
        }
    };
    Error::Damaged(format!(
        "the ledger `{}` is damaged ({why}), and nothing was changed: `animd --restore-ledger`, with the options and as the \
         user of the service, sets it aside under another name and {way}",
        show(path)
    ))
}

/// Returns whether a file is a ledger without damage.
fn is_whole(path: &Path) -> bool {
    let regular = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0);
    let opened = || Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    regular
        && opened().is_ok_and(|db| {
            let said = db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
            said.is_ok_and(|said| said == "ok")
        })
}

/// Sets a damaged ledger aside and puts its copy in its place, and returns what was done as a sentence. No service may
/// use it meanwhile. Blocks.
///
/// # Errors
/// [`Error::Config`](animd_common::Error::Config) for a ledger that is not damaged; the error of a file.
pub fn restore(path: &Path) -> Result<String> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::config(format!("there is no ledger `{}`; nothing was done", show(path))));
        }
        _ => {}
    }
    match schema::open(path).map(|_| ()).map_err(|e| explain(path, e)) {
        Ok(()) => {
            return Err(Error::config(format!(
                "the ledger `{}` is not damaged; nothing was done",
                show(path)
            )));
        }
        Err(Error::Damaged(_)) => {}
        Err(e) => return Err(e),
    }
    let aside = (0..u32::MAX)
        .map(|n| with_suffix(path, &format!(".damaged-{}", now_us() / 1_000_000 + i64::from(n))))
        .find(|aside| fs::symlink_metadata(aside).is_err())
        .unwrap_or_else(|| with_suffix(path, ".damaged"));
    // The ledger itself comes last: if this is cut short, it is done again.
    for suffix in BESIDE.into_iter().chain([""]) {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        match files::rename_new(&from, &to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("set aside", from)(e)),
            _ => {}
        }
    }
    let copy = copy_path(path);
    let told = if is_whole(&copy) {
        files::copy_new(&copy, path).map_err(Error::file("copy", &copy))?;
        format!("the copy `{}` is in its place: jobs that ended since it was made may run again", show(&copy))
    } else {
        "there is no copy of it: the next start begins a new one, and queues the pictures in the inbox again"
            .into()
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    sync_dir(dir).map_err(Error::file("sync", dir))?;
    Ok(format!("the damaged ledger is now `{}`, and {told}", show(aside)))
}

impl Store {
    /// Makes the ledger's copy anew.
    pub fn make_copy(&mut self) -> Result<()> {
        let copy = copy_path(&self.path);
        let part = with_suffix(&copy, ".part");
        match fs::remove_file(&part) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("remove", part)(e)),
            _ => {}
        }
        let file = files::open_private(&part).map_err(Error::file("create", &part))?;
        self.db.backup("main", &part, None)?;
        let dir = copy.parent().unwrap_or(Path::new("/"));
        let put = file.sync_all().and_then(|()| fs::rename(&part, &copy)).and_then(|()| sync_dir(dir));
        put.map_err(Error::file("make", copy))
    }

    /// Makes the ledger's copy if there is none.
    pub fn make_missing_copy(&mut self) -> Result<()> {
        if copy_path(&self.path).exists() { Ok(()) } else { self.make_copy() }
    }

    /// Removes the ledger's copy, because it holds what is to be forgotten.
    pub fn drop_copy(&mut self) -> Result<()> {
        let copy = copy_path(&self.path);
        match fs::remove_file(&copy) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", copy)(e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    fn ledger() -> Result<(tempfile::TempDir, PathBuf)> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let path = dir.path().join("ledger.db");
        let mut store = Store::open(&path)?;
        store.set_setting("kept", Some("a value"))?;
        store.make_copy()?;
        store.checkpoint()?;
        Ok((dir, path))
    }

    fn kept(path: &Path) -> Option<String> {
        Store::open(path).ok()?.setting("kept").ok()?.map(Into::into)
    }

    #[test]
    fn every_damage_is_told_with_its_remedy_and_mended() -> Result<()> {
        for damage in ["text", "pages", "cut", "pipe"] {
            let (dir, path) = ledger()?;
            let failed = Error::file("damage", &path);
            match damage {
                "text" => fs::write(&path, "this is no ledger, but text ".repeat(50)),
                "cut" => fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(5000)),
                "pipe" => fs::remove_file(&path)
                    .and_then(|()| Ok(mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0)?)),
                _ => fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.write_all_at(&[0xff; 8000], 4096)),
            }
            .map_err(failed)?;
            let told = Store::open(&path).map(|_| ()).map_err(|e| explain(&path, e)).expect_err("damaged");
            let text = told.to_string();
            assert!(matches!(told, Error::Damaged(_)), "{damage}: {text}");
            assert!(text.contains(&*path.to_string_lossy()) && text.contains("--restore-ledger"), "{text}");
            let before = fs::read_dir(dir.path()).map_err(Error::file("read", "x"))?.count();
            let done = restore(&path)?;
            assert!(done.contains("the copy `"), "{done}");
            assert_eq!(kept(&path).as_deref(), Some("a value"), "{damage}");
            let after = fs::read_dir(dir.path()).map_err(Error::file("read", "x"))?.count();
            assert!(after > before, "{damage}: nothing is deleted");
            let again = restore(&path).expect_err("it is whole").to_string();
            assert!(again.contains("is not damaged; nothing was done"), "{again}");
        }
        Ok(())
    }

    #[test]
    fn without_a_copy_a_new_ledger_begins_and_the_old_one_stays() -> Result<()> {
        let (dir, path) = ledger()?;
        fs::write(&path, "no ledger").map_err(Error::file("write", &path))?;
        fs::write(copy_path(&path), "no copy").map_err(Error::file("write", "the copy"))?;
        let told =
            Store::open(&path).map(|_| ()).map_err(|e| explain(&path, e)).expect_err("damaged").to_string();
        assert!(told.contains("begins a new one"), "{told}");
        assert!(restore(&path)?.contains("there is no copy of it"));
        assert_eq!(kept(&path), None);
        let entries = fs::read_dir(dir.path()).map_err(Error::file("read", "x"))?;
        let names: Vec<String> = entries.flatten().map(|entry| show(entry.file_name())).collect();
        assert!(names.iter().any(|name| name.starts_with("ledger.db.damaged-")), "{names:?}");
        let missing = restore(&dir.path().join("other.db")).expect_err("there is none").to_string();
        assert!(missing.contains("there is no ledger"), "{missing}");
        Ok(())
    }

    #[test]
    fn what_is_forgotten_is_in_no_copy() -> Result<()> {
        let (_dir, path) = ledger()?;
        let mut store = Store::open(&path)?;
        store.drop_copy()?;
        assert!(!copy_path(&path).exists());
        store.make_missing_copy()?;
        assert!(copy_path(&path).exists());
        store.drop_copy()
    }
}
