//! The ledger's statements. Each method is one transaction.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use animd_common::clock::now_us;
use animd_common::files::{Identity, path_from};
use animd_common::text::Text;
use animd_protocol::ErrorCode;
use animd_protocol::request::Request;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, named_params, params};

use super::job::{Added, Ended, Job, NewJob, Outcome, Source, State};
use super::schema;
use super::settings;
use super::shares::{Limits, Shares, row_bytes};
use super::text::text;
use super::timeline::{MOST_NOTES, NOTE};
use crate::error::{Error, Result};

/// Which jobs a list should have.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only jobs in one of these states; all jobs where there is none.
    pub states: Vec<State>,
    /// Only jobs of this user.
    pub owner: Option<u32>,
    /// Only jobs with a smaller number.
    pub before: Option<u64>,
    /// At most so many, the newest.
    pub limit: u32,
}

/// The connection, on the ledger's own thread.
pub struct Store {
    pub(super) db: Connection,
    /// The ledger's file.
    pub(super) path: PathBuf,
    /// What [`Self::set_limits`] has set.
    pub(super) limits: Limits,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { db: schema::open(path)?, path: path.to_owned(), limits: Limits::default() })
    }

    pub(super) fn change<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let change = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&change)?;
        change.commit()?;
        Ok(done)
    }

    /// Writes a job down, queued, or with a [`super::Refusal`] as `finishing`. `spooled` says whether the picture is
    /// still there.
    pub fn add(&mut self, new: &NewJob, spooled: impl FnOnce() -> bool) -> Result<Added> {
        let limits = self.limits;
        self.change(|db| insert(db, limits, &mut Shares::new(limits), new, spooled))
    }

    /// Returns what [`Self::add`] would say without the picture: the job that the key names, or that there is no
    /// room.
    pub fn foresee(
        &self,
        owner: u32,
        key: Option<&str>,
        per_user: u32,
        picture_bytes: u64,
    ) -> Result<Option<Added>> {
        if let Some(key) = key
            && let Some(id) = keyed(&self.db, owner, key)?
        {
            return Ok(Some(Added::Known(id)));
        }
        if open_of(&self.db, owner)? >= per_user {
            return Ok(Some(Added::Full));
        }
        room(&self.db, self.limits.total)?;
        Ok(self.room_for(&[(owner, picture_bytes)])?[0].map(Added::Over))
    }

    /// Returns the open job that this state of a file belongs to, if it has one.
    pub fn taken(&self, identity: Identity) -> Result<Option<Job>> {
        Ok(self
            .db
            .query_row(
                "SELECT * FROM job WHERE source_dev = ?1 AND source_ino = ?2 AND source_mtime_ns = ?3
                   AND (state IN ('queued','running','finishing') OR source_left = 1)",
                params![identity.dev, identity.ino, identity.mtime_ns],
                Job::from_row,
            )
            .optional()?)
    }

    /// Returns the job that runs next among those whose outbox, as the ledger has it, is `open`. With `named` it is one among
    /// those that name their model.
    pub fn next(&self, named: bool, open: impl Fn(Option<&Path>) -> bool) -> Result<Option<Job>> {
        let mut find = self.db.prepare_cached(
            "SELECT id, outbox FROM job WHERE state = 'queued'
               AND (NOT ?1 OR json_extract(settings_json, '$.model') IS NOT NULL)
             ORDER BY priority DESC, id",
        )?;
        let mut rows = find.query([named])?;
        while let Some(row) = rows.next()? {
            let outbox = row.get::<_, Option<Vec<u8>>>(1)?.map(path_from);
            if open(outbox.as_deref()) {
                return self.job(row.get::<_, i64>(0)? as u64);
            }
        }
        Ok(None)
    }

    /// Takes a job that waits: it is `running` from here on. `None` if it no longer waits.
    pub fn claim(&mut self, id: u64) -> Result<Option<Job>> {
        self.change(|db| {
            let job = db
                .query_row(
                    "UPDATE job SET state = 'running', attempt = attempt + 1, started_us = ?1
                     WHERE id = ?2 AND state = 'queued' RETURNING *",
                    params![now_us(), id as i64],
                    Job::from_row,
                )
                .optional()?;
            if let Some(job) = &job {
                event(db, job.id, "started", Some(&format!("attempt {}", job.attempt)))?;
            }
            Ok(job)
        })
    }

    /// Writes down which engine works on a job, and which model of which family.
    pub fn engine(
        &mut self,
        id: u64,
        version: &str,
        backend: &str,
        model: &str,
        family: Option<&str>,
    ) -> Result<()> {
        self.db.execute(
            "UPDATE job SET engine_version = ?2, backend = ?3, model = ?4, family = ?5 WHERE id = ?1",
            params![id as i64, version, backend, model, family],
        )?;
        Ok(())
    }

    /// Writes down with which files of its `LoRAs` a job runs: its request has their hashes now.
    pub fn pin_loras(&mut self, id: u64, request: &Request) -> Result<()> {
        let json = settings::json(request)?;
        self.change(|db| {
            db.execute("UPDATE job SET settings_json = ?2 WHERE id = ?1", params![id as i64, json])?;
            settings::set_loras(db, id, request)
        })
    }

    /// Writes down the settings of a running job, which were open until its model was.
    pub fn settle(&mut self, id: u64, request: &Request) -> Result<()> {
        let json = settings::json(request)?;
        self.db.execute(
            "UPDATE job SET settings_json = ?2, frames = ?3, steps = ?4 WHERE id = ?1",
            params![id as i64, json, request.frames, request.total_steps()],
        )?;
        Ok(())
    }

    /// Puts a running job back in the queue without counting its start, because the service was told to stop.
    pub fn give_back(&mut self, id: u64, why: &str) -> Result<()> {
        self.requeue(id, "attempt = attempt - 1", why)
    }

    /// Puts a running job back in the queue after the engine died while working on it.
    pub fn crashed(&mut self, id: u64, why: &str) -> Result<()> {
        self.requeue(id, "crashes = crashes + 1", why)
    }

    /// Puts a running job back in the queue after the service died while the job ran.
    pub fn interrupted(&mut self, id: u64) -> Result<()> {
        self.requeue(id, "interruptions = interruptions + 1", "the service ended while it ran")
    }

    fn requeue(&mut self, id: u64, count: &str, why: &str) -> Result<()> {
        self.change(|db| {
            let sql = format!("UPDATE job SET state = 'queued', {count} WHERE id = ?1 AND state = 'running'");
            if db.execute(&sql, params![id as i64])? == 1 {
                event(db, id, "requeued", Some(why))?;
            }
            Ok(())
        })
    }

    /// Puts a finishing job whose video cannot be found back in the queue.
    pub fn vanished(&mut self, id: u64) -> Result<()> {
        self.change(|db| {
            db.execute(
                "UPDATE job SET state = 'queued', outcome = NULL, output_path = NULL, output_sha256 = NULL,
                   output_bytes = NULL, source_target = NULL, outbox_dev = NULL, outbox_ino = NULL WHERE id = ?1 AND state = 'finishing'",
                params![id as i64],
            )?;
            event(db, id, "requeued", Some("its finished file was gone"))
        })
    }

    /// Commits how a queued or running job ends. False if it is in neither state any more: somebody else ended it.
    /// After this its files are put in place by [`crate::delivery`], whatever happens.
    pub fn finishing(
        &mut self,
        id: u64,
        from: State,
        ended: &Ended,
        source_target: Option<&Path>,
    ) -> Result<bool> {
        self.change(|db| {
            let target = source_target.map(|p| p.as_os_str().as_bytes());
            let changed = match ended {
                Ended::Done(done) => {
                    let report = &done.report;
                    let changed = db.execute(
                        "UPDATE job SET state = 'finishing', outcome = 'done', source_target = :target,
                           output_path = :path, output_bytes = :bytes, output_sha256 = :sha, width = :width, height = :height,
                           frames = :frames, forwards_computed = :computed, forwards_skipped = :skipped,
                           gpu_peak_bytes = :gpu, ram_peak_bytes = :ram, outbox_dev = :dev, outbox_ino = :ino
                         WHERE id = :id AND state = :from",
                        named_params! {
                            ":id": id as i64,
                            ":from": from,
                            ":target": target,
                            ":path": done.output.as_os_str().as_bytes(),
                            ":bytes": done.bytes as i64,
                            ":sha": done.sha256,
                            ":width": report.width,
                            ":height": report.height,
                            ":frames": report.frames,
                            ":computed": report.forwards_computed,
                            ":skipped": report.forwards_skipped,
                            ":gpu": report.peak_gpu_bytes as i64,
                            ":ram": report.peak_ram_bytes as i64,
                            ":dev": done.folder.0,
                            ":ino": done.folder.1,
                        },
                    )?;
                    if changed == 1 {
                        costs(db, id, done)?;
                    }
                    changed
                }
                Ended::Failed { code, text } => db.execute(
                    "UPDATE job SET state = 'finishing', outcome = 'failed', source_target = ?3, error_code = ?4,
                       error_text = ?5 WHERE id = ?1 AND state = ?2",
                    params![id as i64, from, target, code.name(), text],
                )?,
                Ended::Canceled { text } => db.execute(
                    "UPDATE job SET state = 'finishing', outcome = 'canceled', source_target = ?3,
                       error_code = 'canceled', error_text = ?4 WHERE id = ?1 AND state = ?2",
                    params![id as i64, from, target, text],
                )?,
            };
            if changed == 1 {
                event(db, id, "finishing", Some(ended.outcome().name()))?;
            }
            Ok(changed == 1)
        })
    }

    /// Gives a finishing job another place for its video, because the name is taken.
    pub fn set_output(&mut self, id: u64, output: &Path) -> Result<()> {
        self.change(|db| {
            db.execute(
                "UPDATE job SET output_path = ?2 WHERE id = ?1 AND state = 'finishing'",
                params![id as i64, output.as_os_str().as_bytes()],
            )?;
            event(db, id, "renamed", Some("the video's name was taken; it got a number"))
        })
    }

    /// Gives a finishing job another place for its source.
    pub fn set_source_target(&mut self, id: u64, target: &Path) -> Result<()> {
        self.db.execute(
            "UPDATE job SET source_target = ?2 WHERE id = ?1",
            params![id as i64, target.as_os_str().as_bytes()],
        )?;
        Ok(())
    }

    /// Gives a finishing job with a video another end, because its video could not be put in place or is no longer wanted.
    /// Returns false if it has no video, or is not finishing.
    pub fn give_up_delivery(
        &mut self,
        id: u64,
        outcome: Outcome,
        (code, text): (ErrorCode, &str),
        source_target: Option<&Path>,
    ) -> Result<bool> {
        self.change(|db| {
            let changed = db.execute(
                "UPDATE job SET outcome = ?5, error_code = ?2, error_text = ?3, output_path = NULL, output_bytes = NULL,
                   output_sha256 = NULL, source_target = ?4 WHERE id = ?1 AND state = 'finishing' AND outcome = 'done'",
                params![
                    id as i64,
                    code.name(),
                    text,
                    source_target.map(|p| p.as_os_str().as_bytes()),
                    outcome
                ],
            )?;
            if changed == 1 {
                event(db, id, "undelivered", Some(text))?;
            }
            Ok(changed == 1)
        })
    }

    /// Commits a job's end: whether its source was moved, or why that was not possible, and whether its video is kept for
    /// its caller.
    pub fn close(&mut self, id: u64, moved: Result<bool, &str>, kept: bool) -> Result<()> {
        self.change(|db| {
            db.execute(
                "UPDATE job SET state = outcome, finished_us = ?2, source_left = ?3, parts_bytes = 0,
                   source_target = CASE WHEN ?4 THEN source_target END,
                   result_bytes = CASE WHEN ?5 AND outcome = 'done' THEN coalesce(output_bytes, 0) ELSE 0 END
                 WHERE id = ?1 AND state = 'finishing'",
                params![id as i64, now_us(), moved.is_err(), moved != Ok(false), kept],
            )?;
            if let Err(text) = moved {
                event(db, id, "source-left", Some(text))?;
            }
            event(db, id, "ended", None)
        })
    }

    /// Takes note that a source which had been left was moved after all, or is not there any more.
    pub fn source_moved(&mut self, id: u64, moved: bool) -> Result<()> {
        self.db.execute(
            "UPDATE job SET source_left = 0, source_target = CASE WHEN ?2 THEN source_target END WHERE id = ?1",
            params![id as i64, moved],
        )?;
        Ok(())
    }

    /// Returns one job.
    pub fn job(&self, id: u64) -> Result<Option<Job>> {
        Ok(self
            .db
            .query_row("SELECT * FROM job WHERE id = ?1", params![id as i64], Job::from_row)
            .optional()?)
    }

    /// Returns whether a job with this UUID is known.
    pub fn knows(&self, uuid: &str) -> Result<bool> {
        Ok(self
            .db
            .query_row("SELECT EXISTS (SELECT 1 FROM job WHERE uuid = ?1)", [uuid], |row| row.get(0))?)
    }

    /// Returns every job that is queued, running or finishing, in the order of their numbers.
    pub fn open_jobs(&self) -> Result<Vec<Job>> {
        let mut find = self.db.prepare_cached(
            "SELECT * FROM job WHERE state IN ('queued','running','finishing') ORDER BY id",
        )?;
        let jobs = find.query_map([], Job::from_row)?.collect::<Result<_, _>>()?;
        Ok(jobs)
    }

    /// Returns every folder that a job was told to put its video in.
    pub fn outboxes(&self) -> Result<Vec<PathBuf>> {
        let mut find = self.db.prepare("SELECT DISTINCT outbox FROM job WHERE outbox IS NOT NULL")?;
        let folders =
            find.query_map([], |row| row.get::<_, Vec<u8>>(0).map(path_from))?.collect::<Result<_, _>>()?;
        Ok(folders)
    }

    /// Returns the numbers of the queued jobs, in the order in which they will run.
    pub fn queue(&self) -> Result<Vec<u64>> {
        let mut find =
            self.db.prepare_cached("SELECT id FROM job WHERE state = 'queued' ORDER BY priority DESC, id")?;
        let ids =
            find.query_map([], |row| row.get::<_, i64>(0).map(|id| id as u64))?.collect::<Result<_, _>>()?;
        Ok(ids)
    }

    /// Returns the jobs that a filter selects, the newest first.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Job>> {
        self.list_while(filter, |job| Ok(Some(job)))
    }

    /// Returns what `take` makes of the jobs that [`Self::list`] returns, up to the first one of which it makes nothing.
    pub fn list_while<T>(
        &self,
        filter: &Filter,
        mut take: impl FnMut(Job) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        // The states between commas, so that no name is found in another one.
        let states: String = filter.states.iter().flat_map(|state| [",", state.name(), ","]).collect();
        let mut find = self.db.prepare_cached(
            "SELECT * FROM job WHERE (?1 = '' OR instr(?1, ',' || state || ',')) AND (?2 IS NULL OR owner_uid = ?2) AND (?3 IS NULL OR id < ?3)
             ORDER BY id DESC LIMIT ?4",
        )?;
        let jobs = find.query_map(
            params![states, filter.owner, filter.before.map(|id| id as i64), filter.limit],
            Job::from_row,
        )?;
        jobs.map_while(|job| job.map_err(Into::into).and_then(&mut take).transpose()).collect()
    }

    /// Returns the wall seconds of each stage of a job's last finished attempt, in order.
    pub fn stages(&self, id: u64) -> Result<Vec<(Text, f64)>> {
        let mut find = self.db.prepare_cached(
            "SELECT name, wall_us FROM stage WHERE job = ?1 AND attempt = (SELECT max(attempt) FROM stage WHERE job = ?1)
             ORDER BY n",
        )?;
        let stages = find
            .query_map(params![id as i64], |row| Ok((text(row, 0)?, row.get::<_, i64>(1)? as f64 / 1e6)))?
            .collect::<Result<_, _>>()?;
        Ok(stages)
    }

    /// Returns whether a job needs this spooled picture: an open one, or one that ended after `since_us` and may be
    /// retried. Not one that never started, or whose picture is none: who submits and cancels must not fill the disk.
    pub fn needs_image(&self, sha256: &[u8; 32], since_us: i64) -> Result<bool> {
        let mut find = self.db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM job WHERE (image_sha256 = ?1 OR last_sha256 = ?1)
               AND (state IN ('queued','running','finishing')
                 OR (finished_us > ?2 AND attempt > 0 AND error_code IS NOT 'invalid-image')))",
        )?;
        Ok(find.query_row(params![sha256, since_us], |row| row.get(0))?)
    }

    /// Writes down what happened to a job.
    pub fn event(&mut self, id: u64, kind: &str, text: &str) -> Result<()> {
        event(&self.db, id, kind, Some(text))
    }
}

/// Writes one job down, within a transaction.
pub(super) fn insert(
    db: &Connection,
    limits: Limits,
    shares: &mut Shares,
    new: &NewJob,
    spooled: impl FnOnce() -> bool,
) -> Result<Added> {
    if let Some(key) = &new.idempotency_key
        && let Some(id) = keyed(db, new.owner, key)?
    {
        return Ok(Added::Known(id));
    }
    if let Some(source) = &new.source
        && let Some(id) = taken(db, source, new)?
    {
        return Ok(Added::Known(id));
    }
    if new.per_user < u32::MAX && open_of(db, new.owner)? >= new.per_user {
        return Ok(Added::Full);
    }
    if !new.watched {
        room(db, limits.total)?;
    }
    if new.work.is_ok() && !spooled() {
        return Ok(Added::Unspooled);
    }
    if let Some(quota) = shares.take(db, new)? {
        return Ok(Added::Over(quota));
    }
    let (sha, request) = match &new.work {
        Ok((sha, request)) => (Some(sha), Some(request)),
        Err(_) => (None, None),
    };
    let refusal = new.work.as_ref().err();
    let json = request.map(|request| settings::json(request)).transpose()?;
    let source = new.source.as_ref();
    let mut insert = db.prepare_cached(
        "INSERT INTO job (uuid, state, outcome, created_us, owner_uid, origin, idempotency_key, name, source_path,
           source_dev, source_ino, source_mtime_ns, source_target, image_sha256, settings_json, seed, frames, steps,
           version, error_code, error_text, priority, outbox, retry_of, settings_us,
           image_bytes, row_bytes, last_sha256, last_bytes, parts_bytes)
         VALUES (:uuid, :state, :outcome, :now, :owner, :origin, :key, :name, :path, :dev, :ino, :mtime, :target, :sha,
           :json, :seed, :frames, :steps, :version, :code, :text, :priority, :outbox, :retry_of, :read, :image_bytes,
           :row_bytes, :last, :last_bytes, :parts_bytes)",
    )?;
    insert.execute(named_params! {
        ":uuid": uuid::Uuid::new_v4().to_string(),
        ":state": if refusal.is_some() { State::Finishing } else { State::Queued },
        ":outcome": refusal.map(|_| Outcome::Failed),
        ":now": now_us(),
        ":owner": new.owner,
        ":origin": if new.watched { "watch" } else { "bus" },
        ":key": new.idempotency_key,
        ":name": new.name.as_bytes(),
        ":path": source.map(|s| s.path.as_os_str().as_bytes()),
        ":dev": source.map(|s| s.identity.dev),
        ":ino": source.map(|s| s.identity.ino),
        ":mtime": source.map(|s| s.identity.mtime_ns),
        ":target": refusal.and_then(|r| r.target.as_ref()).map(|p| p.as_os_str().as_bytes()),
        ":sha": sha,
        ":json": json,
        ":seed": request.map(|r| r.seed as i64),
        ":frames": request.map(|r| r.frames),
        ":steps": request.map(|r| r.total_steps()),
        ":version": env!("CARGO_PKG_VERSION"),
        ":code": refusal.map(|r| r.code.name()),
        ":text": refusal.map(|r| &r.text),
        ":priority": new.priority,
        ":outbox": new.outbox.as_ref().map(|p| p.as_os_str().as_bytes()),
        ":retry_of": new.retry_of.map(|id| id as i64),
        ":read": source.map(|s| s.read_us),
        ":image_bytes": sha.map_or(0, |_| new.picture_bytes as i64),
        ":row_bytes": row_bytes(new) as i64,
        ":last": new.last.map(|(sha256, _)| sha256),
        ":last_bytes": new.last.map_or(0, |(_, bytes)| bytes as i64),
        ":parts_bytes": new.parts_bytes as i64,
    })?;
    let id = db.last_insert_rowid() as u64;
    event(db, id, "queued", None)?;
    if let Some(request) = request {
        settings::set_loras(db, id, request)?;
    }
    if let Some(refusal) = refusal {
        event(db, id, "refused", Some(&refusal.text))?;
    }
    Ok(Added::New(id))
}

/// Returns the job with this key of this user.
fn keyed(db: &Connection, owner: u32, key: &str) -> Result<Option<u64>> {
    Ok(db
        .query_row(
            "SELECT id FROM job WHERE owner_uid = ?1 AND idempotency_key = ?2",
            params![owner, key],
            |row| row.get::<_, i64>(0).map(|id| id as u64),
        )
        .optional()?)
}

/// Returns how many open jobs a user has that came over the bus.
fn open_of(db: &Connection, owner: u32) -> Result<u32> {
    Ok(db.query_row(
        "SELECT count(*) FROM job WHERE owner_uid = ?1 AND origin = 'bus' AND state IN ('queued','running','finishing')",
        params![owner],
        |row| row.get(0),
    )?)
}

/// Refuses when the queue has as many jobs from the bus as it may have.
fn room(db: &Connection, total: u32) -> Result<()> {
    let open: u32 = db
        .prepare_cached(
            "SELECT count(*) FROM job WHERE origin = 'bus' AND state IN ('queued','running','finishing')",
        )?
        .query_row([], |row| row.get(0))?;
    if open >= total {
        let text = format!(
            "the queue has {total} jobs, which is its limit (queue.total); try again when some are done"
        );
        return Err(Error::refused(ErrorCode::QueueFull, text));
    }
    Ok(())
}

/// Returns the open job that a file belongs to: the same state of it, or the same picture at the same place, written
/// once more (a copy that was repeated, a `touch`), which then is what will be moved away.
fn taken(db: &Connection, source: &Source, new: &NewJob) -> Result<Option<u64>> {
    let identity = source.identity;
    let same = db
        .query_row(
            "SELECT id FROM job WHERE source_dev = ?1 AND source_ino = ?2 AND source_mtime_ns = ?3
               AND (state IN ('queued','running','finishing') OR source_left = 1)",
            params![identity.dev, identity.ino, identity.mtime_ns],
            |row| row.get::<_, i64>(0),
        )
        .optional()?;
    if let Some(id) = same {
        return Ok(Some(id as u64));
    }
    let Ok((sha, request)) = &new.work else { return Ok(None) };
    let again = db
        .query_row(
            "SELECT id, settings_json FROM job WHERE source_path = ?1 AND image_sha256 = ?2 AND state IN ('queued','running')",
            params![source.path.as_os_str().as_bytes(), sha],
            |row| Ok((row.get::<_, i64>(0)?, text(row, 1)?)),
        )
        .optional()?;
    let Some((id, json)) = again else { return Ok(None) };
    // The seed may have been drawn; everything else must be the same for it to be the same wish.
    let known: Option<Request> = serde_json::from_str(&json).ok();
    if known.is_none_or(|mut known| {
        known.seed = request.seed;
        known != **request
    }) {
        return Ok(None);
    }
    db.execute(
        "UPDATE job SET source_dev = ?2, source_ino = ?3, source_mtime_ns = ?4 WHERE id = ?1",
        params![id, identity.dev, identity.ino, identity.mtime_ns],
    )?;
    event(db, id as u64, "same-again", None)?;
    Ok(Some(id as u64))
}

pub(super) fn event(db: &Connection, id: u64, kind: &str, text: Option<&str>) -> Result<()> {
    db.prepare_cached("INSERT INTO event (job, at_us, kind, text) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id as i64, now_us(), kind, text])?;
    Ok(())
}

fn costs(db: &Connection, id: u64, done: &super::Succeeded) -> Result<()> {
    let attempt: u32 =
        db.query_row("SELECT attempt FROM job WHERE id = ?1", params![id as i64], |row| row.get(0))?;
    let us = |seconds: f64| (seconds * 1e6).clamp(0.0, 1e18) as i64;
    let mut stage = db.prepare_cached(
        "INSERT INTO stage (job, attempt, n, name, wall_us) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (job, attempt, n) DO UPDATE SET name = excluded.name, wall_us = excluded.wall_us",
    )?;
    for (n, (name, seconds)) in done.report.seconds.iter().enumerate() {
        stage.execute(params![id as i64, attempt, n as i64, name, us(*seconds)])?;
    }
    let mut step = db.prepare_cached(
        "INSERT OR REPLACE INTO step (job, attempt, n, wall_us, computed) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (n, (seconds, computed)) in done.report.steps.iter().enumerate() {
        step.execute(params![id as i64, attempt, n as i64, us(*seconds), computed])?;
    }
    for note in done.report.notes.iter().take(MOST_NOTES) {
        event(db, id, NOTE, Some(note))?;
    }
    settings::set_model_loras(db, id, &done.report.model_loras)
}

impl Job {
    /// Returns the unfinished file of the current attempt, in the folder where the video will be.
    pub fn part(&self, outbox: &Path) -> PathBuf {
        let dir = self.output.as_deref().and_then(Path::parent).or(self.outbox.as_deref()).unwrap_or(outbox);
        dir.join(format!("{PART_PREFIX}{}-{}{PART_SUFFIX}", self.uuid, self.attempt))
    }
}

/// How names of unfinished files begin.
pub const PART_PREFIX: &str = ".animd-";
/// How names of unfinished files end.
pub const PART_SUFFIX: &str = ".part";
