//! What users have of the disk, as the ledger keeps account of it; [`super::shares`] has the rules.

use std::collections::HashMap;
use std::path::PathBuf;

use animd_common::files::path_from;
use rusqlite::params;

use super::job::Quota;
use super::shares::{Limits, ROW, Used, is_trusted, used_by};
use super::store::Store;
use crate::error::Result;

impl Store {
    /// Sets the limits of later jobs.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns for each picture, by its owner and its bytes, the share that it would exceed after those before it. This
    /// saves copying pictures in vain; [`Self::add`] decides.
    pub fn room_for(&self, pictures: &[(u32, u64)]) -> Result<Vec<Option<Quota>>> {
        let mut all: HashMap<u32, Used> = HashMap::new();
        let mut room = |&(owner, bytes): &(u32, u64)| {
            if is_trusted(owner) {
                return Ok(None);
            }
            let before = match all.get(&owner) {
                Some(used) => *used,
                None => used_by(&self.db, owner)?,
            };
            let used = Used { disk: before.disk.saturating_add(bytes), ledger: before.ledger + ROW };
            let over = self.limits.over(used);
            all.insert(owner, if over.is_none() { used } else { before });
            Ok(over)
        };
        pictures.iter().map(&mut room).collect()
    }

    /// Takes note that a picture has left the spool.
    pub fn picture_gone(&mut self, sha256: &[u8; 32]) -> Result<()> {
        for sql in [
            "UPDATE job SET image_bytes = 0 WHERE image_sha256 = ?1 AND image_bytes > 0",
            "UPDATE job SET last_bytes = 0 WHERE last_sha256 = ?1 AND last_bytes > 0",
        ] {
            self.db.prepare_cached(sql)?.execute(params![sha256])?;
        }
        Ok(())
    }

    /// Takes note of what the spool has: a crash may have come between a picture and its note, and earlier versions wrote
    /// none.
    pub fn pictures_are(&mut self, pictures: &[([u8; 32], u64)]) -> Result<()> {
        self.change(|db| {
            let there: HashMap<&[u8; 32], u64> = pictures.iter().map(|(sha, bytes)| (sha, *bytes)).collect();
            let gone: Vec<[u8; 32]> = db
                .prepare(
                    "SELECT image_sha256 FROM job WHERE image_bytes > 0
                     UNION SELECT last_sha256 FROM job WHERE last_bytes > 0",
                )?
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for sql in [
                "UPDATE job SET image_bytes = ?2 WHERE image_sha256 = ?1 AND image_bytes <> ?2",
                "UPDATE job SET last_bytes = ?2 WHERE last_sha256 = ?1 AND last_bytes <> ?2",
            ] {
                let mut set = db.prepare(sql)?;
                for sha256 in gone.iter().filter(|sha256| !there.contains_key(*sha256)) {
                    set.execute(params![sha256, 0])?;
                }
                for (sha256, bytes) in &there {
                    set.execute(params![sha256, *bytes as i64])?;
                }
            }
            Ok(())
        })
    }

    /// Returns the jobs whose videos are kept for their callers.
    pub fn kept_results(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut find = self.db.prepare_cached("SELECT id, output_path FROM job WHERE result_bytes > 0")?;
        let kept = find
            .query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, path_from(row.get(1)?))))?
            .collect::<Result<_, _>>()?;
        Ok(kept)
    }

    /// Takes note that the video of a job is no longer kept for its caller.
    pub fn result_gone(&mut self, id: u64) -> Result<()> {
        self.db.execute("UPDATE job SET result_bytes = 0 WHERE id = ?1", params![id as i64])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use animd_protocol::request::Settings;

    use super::*;
    use crate::error::Error;
    use crate::store::ledger::{Added, Ended, NewJob, Refusal, State};

    const ANN: u32 = 70_001;
    const BEN: u32 = 70_002;

    fn job(owner: u32, picture: u8, prompt: &str) -> NewJob {
        let settings = Settings { prompt: Some(prompt.into()), ..Settings::default() };
        let new = NewJob::made_up([picture; 32], settings.resolve(|| 7).expect("valid"));
        NewJob { owner, picture_bytes: 100, ..new }
    }

    fn store(limits: Limits) -> Result<(tempfile::TempDir, Store)> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let mut store = Store::open(&dir.path().join("ledger.db"))?;
        store.set_limits(limits);
        Ok((dir, store))
    }

    #[test]
    fn pictures_count_until_they_go_and_for_their_user_alone() -> Result<()> {
        let (_dir, mut store) = store(Limits { disk_bytes: 250, ..Limits::default() })?;
        let mut add = |owner, picture| store.add(&job(owner, picture, "a"), || true);
        let first = add(ANN, 1)?;
        assert!(matches!(first, Added::New(_)));
        // The same picture is there once.
        assert!(matches!(add(ANN, 1)?, Added::New(_)));
        assert!(matches!(add(ANN, 2)?, Added::New(_)));
        assert_eq!(add(ANN, 3)?, Added::Over(Quota::Disk));
        assert!(matches!(add(BEN, 3)?, Added::New(_)), "nobody else pays for it");
        assert!(matches!(add(0, 3)?, Added::New(_)), "root has no limit");
        for id in 1..=3 {
            let text = "cancelled".into();
            assert!(store.finishing(id, State::Queued, &Ended::Canceled { text }, None)?);
            store.close(id, Ok(false), false)?;
        }
        assert_eq!(store.add(&job(ANN, 3, "a"), || true)?, Added::Over(Quota::Disk), "they are still there");
        assert_eq!(store.foresee(ANN, None, 100, 100)?, Some(Added::Over(Quota::Disk)));
        store.picture_gone(&[1; 32])?;
        assert_eq!(store.foresee(ANN, None, 100, 100)?, None);
        assert!(matches!(store.add(&job(ANN, 3, "a"), || true)?, Added::New(_)));
        // What the spool really has decides.
        store.pictures_are(&[([2; 32], 1000)])?;
        assert_eq!(store.foresee(ANN, None, 100, 0)?, Some(Added::Over(Quota::Disk)));
        store.pictures_are(&[])?;
        assert_eq!(store.foresee(ANN, None, 100, 250)?, None);
        Ok(())
    }

    #[test]
    fn last_pictures_and_parts_count_like_the_first_picture() -> Result<()> {
        let (_dir, mut store) = store(Limits { disk_bytes: 250, ..Limits::default() })?;
        let with = |picture, last: Option<u8>, parts_bytes| NewJob {
            last: last.map(|last| ([last; 32], 100)),
            parts_bytes,
            ..job(ANN, picture, "a")
        };
        assert!(matches!(store.add(&with(1, Some(2), 0), || true)?, Added::New(_)));
        assert_eq!(store.add(&with(3, None, 0), || true)?, Added::Over(Quota::Disk));
        // The last picture of one job may be the first one of another: it is there once.
        assert!(matches!(store.add(&with(2, Some(1), 0), || true)?, Added::New(_)));
        assert!(store.needs_image(&[2; 32], i64::MAX)?, "open jobs need both");
        let cancel = |store: &mut Store, id| -> Result<()> {
            let text = "cancelled".into();
            assert!(store.finishing(id, State::Queued, &Ended::Canceled { text }, None)?);
            store.close(id, Ok(false), false)
        };
        cancel(&mut store, 1)?;
        cancel(&mut store, 2)?;
        assert!(!store.needs_image(&[2; 32], i64::MAX)?);
        store.picture_gone(&[2; 32])?;
        // What is set aside for parts is free again when the job has ended.
        assert_eq!(store.add(&with(1, None, 200), || true)?, Added::Over(Quota::Disk));
        assert!(matches!(store.add(&with(1, None, 150), || true)?, Added::New(3)));
        assert_eq!(store.foresee(ANN, None, 100, 1)?, Some(Added::Over(Quota::Disk)));
        cancel(&mut store, 3)?;
        assert_eq!(store.foresee(ANN, None, 100, 150)?, None);
        // What the spool has decides of last pictures, too.
        store.pictures_are(&[([2; 32], 1000)])?;
        assert_eq!(store.foresee(ANN, None, 100, 0)?, Some(Added::Over(Quota::Disk)));
        Ok(())
    }

    #[test]
    fn rows_count_with_their_loras() -> Result<()> {
        let (_dir, mut store) = store(Limits { ledger_bytes: 100_000, ..Limits::default() })?;
        let name = "n".repeat(240);
        let loras: Vec<String> = (0..16).map(|n| format!("{name}{n}:1:1")).collect();
        let settings =
            Settings { lora: Some(animd_protocol::lora::parse(&loras.join(","))?), ..Settings::default() };
        let request = settings.resolve(|| 1)?;
        let with_loras = |n| NewJob { owner: ANN, ..NewJob::made_up([n; 32], request.clone()) };
        let added = store.add_all(&(0..10).map(with_loras).collect::<Vec<_>>(), |_| true)?;
        let count = added.iter().filter(|added| matches!(added, Added::New(_))).count();
        assert!((5..9).contains(&count), "{count}");
        Ok(())
    }

    #[test]
    fn rows_count_with_their_texts_also_within_one_transaction() -> Result<()> {
        let (_dir, mut store) = store(Limits { ledger_bytes: 100_000, ..Limits::default() })?;
        let long = "p".repeat(15_000);
        let jobs: Vec<NewJob> = (0..10).map(|n| job(ANN, n, &long)).collect();
        let added = store.add_all(&jobs, |_| true)?;
        let count = added.iter().filter(|added| matches!(added, Added::New(_))).count();
        assert!((3..7).contains(&count), "{count}");
        assert!(added[count..].iter().all(|added| *added == Added::Over(Quota::Ledger)));
        let refused = Refusal { code: animd_protocol::ErrorCode::InvalidImage, text: long, target: None };
        let mut none = job(ANN, 1, "a");
        none.work = Err(refused);
        assert_eq!(store.add(&none, || true)?, Added::Over(Quota::Ledger), "refusals take rows, too");
        for id in 1..=count as u64 {
            let text = "cancelled".into();
            store.finishing(id, State::Queued, &Ended::Canceled { text }, None)?;
            store.close(id, Ok(false), false)?;
        }
        assert_eq!(store.add(&job(ANN, 1, &"p".repeat(15_000)), || true)?, Added::Over(Quota::Ledger));
        assert!(store.forget(1)?);
        assert!(matches!(store.add(&job(ANN, 1, &"p".repeat(15_000)), || true)?, Added::New(_)));
        Ok(())
    }
}
