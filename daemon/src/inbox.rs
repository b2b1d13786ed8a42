//! The watched folder: a picture that is complete becomes a job, with what its sidecar says.
//!
//! There is no list of files that were seen: what lies in the folder is what is to do. A picture is complete when it was
//! moved in, or closed after writing, and has then lain unchanged, with its sidecar, for the configured time.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use animd_engine::request::{Request, Settings};
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::board::{Change, stopped};
use crate::delivery::{DONE, Desk, FAILED, sidecars, target_of};
use crate::files::{self, Identity, show, split_name};
use crate::keys;
use crate::ledger::{Added, NewJob, Outcome, Refusal, Source, State};
use crate::{Error, Result};

/// Everything is looked at again this often, whatever the events said.
const RESCAN: Duration = Duration::from_secs(300);
/// The same where the kernel gives no events.
const POLL: Duration = Duration::from_secs(5);
/// After trouble of our own (a full disk, the ledger), the picture is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The largest sidecar, in bytes.
const MAX_SIDECAR: u64 = 1 << 20;

/// A picture and its sidecars as they lie there.
type Prints = [Option<(u64, u64, i64, i64, i64)>; 3];

struct Pending {
    prints: Prints,
    /// Since when it has lain like this.
    since: Instant,
    /// Whether its writer has let it go.
    closed: bool,
    due: Instant,
}

/// The folder's watcher.
pub struct Inbox {
    desk: Arc<Desk>,
    dir: PathBuf,
    pending: HashMap<OsString, Pending>,
    /// Names that were spoken of already, so that the log says it once.
    told: HashSet<OsString>,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
}

impl Inbox {
    /// Makes the folders and begins to listen. Nothing is taken before [`Self::run`].
    pub fn open(desk: Arc<Desk>) -> Result<Self> {
        let dir = desk.config().folders.inbox.clone();
        for folder in [dir.clone(), dir.join(DONE), dir.join(FAILED)] {
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = match notify::recommended_watcher(move |event| _ = sender.send(event)) {
            Ok(watcher) => Some(watcher),
            Err(e) => {
                tracing::warn!(
                    "the kernel gives no file events ({e}); the inbox is looked at every {POLL:?}"
                );
                None
            }
        };
        let mut inbox = Self { desk, dir, pending: HashMap::new(), told: HashSet::new(), watcher, events };
        inbox.listen();
        Ok(inbox)
    }

    fn listen(&mut self) {
        if let Some(watcher) = &mut self.watcher
            && let Err(e) = watcher.watch(&self.dir, RecursiveMode::NonRecursive)
        {
            tracing::warn!(
                "no file events for `{}` ({e}; fs.inotify.max_user_watches may be too low); it is looked at every {POLL:?}",
                show(&self.dir)
            );
            self.watcher = None;
        }
    }

    /// Takes pictures until `stop` turns true.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.scan();
        let mut rescan = Instant::now() + self.interval();
        loop {
            let due = self.pending.values().map(|p| p.due).min().unwrap_or(rescan).min(rescan);
            tokio::select! {
                () = stopped(&mut stop) => return,
                event = self.events.recv() => match event {
                    Some(Ok(event)) => self.take(&event),
                    Some(Err(e)) => {
                        tracing::warn!("file events: {e}");
                        self.scan();
                    }
                    None => return,
                },
                () = sleep_until(due) => {}
            }
            let now = Instant::now();
            if now >= rescan {
                self.scan();
                rescan = now + self.interval();
            }
            let ready: Vec<OsString> =
                self.pending.iter().filter(|(_, p)| p.due <= now).map(|(name, _)| name.clone()).collect();
            for name in ready {
                self.look(&name).await;
            }
        }
    }

    fn interval(&self) -> Duration {
        if self.watcher.is_some() { RESCAN } else { POLL }
    }

    /// Looks at the whole folder.
    fn scan(&mut self) {
        if !self.dir.exists() {
            tracing::warn!("the inbox `{}` is gone; it is made again", show(&self.dir));
            if let Err(e) = fs::create_dir_all(&self.dir) {
                tracing::error!("cannot create `{}`: {e}", show(&self.dir));
                return;
            }
        }
        self.listen();
        let interval = self.interval();
        match fs::read_dir(&self.dir) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    let name = entry.file_name();
                    match self.pending.get_mut(&name) {
                        // Found twice, unchanged, a whole interval apart: its writer's close was missed.
                        Some(pending) if pending.since.elapsed() + POLL >= interval => {
                            pending.closed = true;
                            pending.due = Instant::now();
                        }
                        Some(_) => {}
                        None => self.note(&name, true),
                    }
                }
            }
            Err(e) => tracing::error!("cannot read the inbox `{}`: {e}", show(&self.dir)),
        }
    }

    fn take(&mut self, event: &notify::Event) {
        if event.need_rescan() {
            tracing::info!("file events were lost; the inbox is looked at as a whole");
            self.scan();
            return;
        }
        let closed = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => true,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => false,
            _ => return,
        };
        for path in &event.paths {
            if path.parent() == Some(&self.dir)
                && let Some(name) = path.file_name()
            {
                // A second name for a finished file: there is no writer whose close could come.
                let linked = || fs::symlink_metadata(path).is_ok_and(|meta| meta.nlink() > 1);
                self.note(name, closed || linked());
            }
        }
    }

    fn note(&mut self, name: &OsStr, closed: bool) {
        if is_ignored(name) {
            return;
        }
        let due = Instant::now();
        let pending = self.pending.entry(name.to_owned()).or_insert(Pending {
            prints: [None; 3],
            since: due,
            closed,
            due,
        });
        pending.closed = closed;
        pending.due = pending.due.min(due);
    }

    /// Looks at one name: it is waited for, taken, or no business of ours.
    async fn look(&mut self, name: &OsStr) {
        let path = self.dir.join(name);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(meta) if meta.is_dir() => return self.forget(name),
            Ok(meta) => {
                if self.told.insert(name.to_owned()) {
                    let kind = files::kind(&meta);
                    tracing::warn!(
                        "something in the inbox is {kind} and stays there: drop the picture itself"
                    );
                    tracing::debug!("`{}` in the inbox is {kind}", show(name));
                }
                return self.forget(name);
            }
            Err(_) => return self.forget(name),
        };
        let prints = prints(&path);
        let stable = self.desk.config().inbox.stable();
        let Some(pending) = self.pending.get_mut(name) else { return };
        let now = Instant::now();
        if pending.prints != prints {
            pending.prints = prints;
            pending.since = now;
        }
        if !pending.closed {
            pending.due = now + RESCAN;
            return;
        }
        if now < pending.since + stable {
            pending.due = pending.since + stable;
            return;
        }
        match self.admit(&path, Identity::of(&meta), meta.uid()).await {
            Ok(()) => self.forget(name),
            Err(e) => {
                let why = match &e {
                    Error::File { action, source, .. } => format!("cannot {action} a file: {source}"),
                    e => e.to_string(),
                };
                tracing::error!("a picture waits in the inbox and is tried again: {why}");
                tracing::debug!("`{}` waits in the inbox: {e}", show(name));
                if let Some(pending) = self.pending.get_mut(name) {
                    pending.due = now + RETRY;
                }
            }
        }
    }

    fn forget(&mut self, name: &OsStr) {
        self.pending.remove(name);
    }

    /// Makes a job of a picture, or a failed one of what cannot be one.
    async fn admit(&mut self, path: &Path, identity: Identity, owner: u32) -> Result<()> {
        if let Some(job) = self.desk.ledger.call(move |db| db.taken(identity)).await? {
            return self.known(job.id).await;
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        let source = Some(Source { path: path.to_owned(), identity });
        let base = NewJob {
            owner,
            watched: true,
            idempotency_key: None,
            priority: 0,
            outbox: None,
            retry_of: None,
            per_user: u32::MAX,
            name,
            source,
            work: Err(Refusal { code: String::new(), text: String::new(), target: None }),
        };
        for _ in 0..3 {
            let (desk, path) = (self.desk.clone(), path.to_owned());
            let read = tokio::task::spawn_blocking(move || read(&desk, &path, identity))
                .await
                .map_err(|_| Error::Stopping)?;
            let (new, spooled) = match read {
                Ok((spooled, request)) => {
                    (NewJob { work: Ok((spooled.sha256, Box::new(request))), ..base.clone() }, Some(spooled))
                }
                Err(Error::Refused { code, text }) => {
                    let source = base.source.as_ref().map(|s| s.path.as_path());
                    let target = source.and_then(|path| target_of(path, Outcome::Failed));
                    (NewJob { work: Err(Refusal { code: code.into(), text, target }), ..base.clone() }, None)
                }
                Err(e) => return Err(e),
            };
            let refused = new.work.is_err();
            let there = spooled.as_ref().map(|s| self.desk.spool.path(&s.sha256));
            let added = self
                .desk
                .ledger
                .call(move |db| db.add(&new, || there.is_some_and(|path| path.exists())))
                .await?;
            drop(spooled);
            match added {
                Added::New(id) => {
                    tracing::info!(job = id, "job {id} comes from the inbox");
                    tracing::debug!(job = id, "job {id} is of `{}`", show(&base.name));
                    self.desk.board.tell(Change::Added(id));
                    if refused {
                        self.desk.settle(id).await?;
                    }
                    return Ok(());
                }
                Added::Known(id) => return self.known(id).await,
                Added::Unspooled | Added::Full => {}
            }
        }
        Err(Error::refused(
            "file",
            "its copy in the spool is removed again and again; is another program cleaning there?",
        ))
    }

    /// An event for a file that has its job. One whose job has ended could not be moved then; perhaps now.
    async fn known(&mut self, id: u64) -> Result<()> {
        let Some(job) = self.desk.ledger.call(move |db| db.job(id)).await? else { return Ok(()) };
        // Refused unread, and the ledger or the disk refused in its turn: nobody else settles such a job.
        if job.state == State::Finishing && job.image_sha256.is_none() {
            return self.desk.settle(id).await;
        }
        if !job.state.is_open()
            && let Err(e) = self.desk.move_left(job).await
        {
            tracing::debug!(job = id, "the picture of job {id} still cannot be moved: {e}");
        }
        Ok(())
    }
}

/// Spools the picture and resolves its settings. [`Error::Refused`] is final, anything else may pass.
fn read(desk: &Desk, path: &Path, identity: Identity) -> Result<(crate::spool::Spooled, Request)> {
    let settings = settings(path)?;
    let request = settings.clone().or(desk.defaults()).resolve(draw_seed).map_err(|e| {
        match sidecars(path).iter().find(|p| p.exists()).and_then(|p| p.file_name()) {
            Some(sidecar) => Error::refused(e.code(), format!("{}: {e}", show(sidecar))),
            None => e.into(),
        }
    })?;
    let what = format!("the picture `{}`", show(path.file_name().unwrap_or_default()));
    let (file, meta) = files::open_regular(path).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => Error::refused(
            "file",
            format!("{what} may not be read by the service; copy it with `install -m 644`, or use `animctl submit`"),
        ),
        io::ErrorKind::InvalidInput => Error::refused("invalid-image", format!("{what} cannot be taken: {e}")),
        _ => Error::file("open", path)(e),
    })?;
    if Identity::of(&meta) != identity {
        return Err(Error::file("read", path)(io::Error::other("it changed just now")));
    }
    let spooled = match desk.spool.put(&file, &what) {
        Err(Error::Refused { .. }) if file.metadata().is_ok_and(|now| Identity::of(&now) != identity) => {
            return Err(Error::file("read", path)(io::Error::other("it changed while it was read")));
        }
        spooled => spooled?,
    };
    Ok((spooled, request))
}

/// A seed for a job that has none: short enough for a file's name.
pub fn draw_seed() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64 & 0xffff_ffff
}

/// What the sidecars say: `photo.toml` has settings, `photo.txt` is the prompt, which the first may leave out.
fn settings(picture: &Path) -> Result<Settings> {
    let [toml, txt] = sidecars(picture);
    let mut settings = Settings::default();
    if let Some(text) = sidecar(&toml)? {
        let name = PathBuf::from(toml.file_name().unwrap_or_default());
        settings =
            keys::settings_from_toml(&name, &text).map_err(|e| Error::refused("invalid-setting", e))?;
    }
    if let Some(text) = sidecar(&txt)? {
        if settings.prompt.is_some() {
            return Err(Error::refused(
                "invalid-setting",
                format!(
                    "both `{}` and `{}` give a prompt; keep one",
                    show(toml.file_name().unwrap_or_default()),
                    show(txt.file_name().unwrap_or_default())
                ),
            ));
        }
        settings.prompt = Some(text.trim().to_owned());
    }
    Ok(settings)
}

fn sidecar(path: &Path) -> Result<Option<String>> {
    let name = || show(path.file_name().unwrap_or_default());
    let bytes = match files::read_small(path, MAX_SIDECAR) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => {
            return Err(Error::refused("file", format!("the sidecar `{}` cannot be read: {e}", name())));
        }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].split(|b| *b == b'\n').count();
        Error::refused(
            "invalid-setting",
            format!("{}:{line}: it is not valid UTF-8; save it as UTF-8", name()),
        )
    })?;
    // Windows editors begin a file with a mark.
    Ok(Some(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)))
}

fn prints(picture: &Path) -> Prints {
    let print = |path: &Path| {
        let meta = fs::symlink_metadata(path).ok()?;
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Some((
            meta.ino(),
            meta.len(),
            ns(meta.mtime(), meta.mtime_nsec()),
            ns(meta.ctime(), meta.ctime_nsec()),
            i64::from(meta.mode()),
        ))
    };
    let [toml, txt] = sidecars(picture);
    [print(picture), print(&toml), print(&txt)]
}

/// Whether a name is not a picture's: hidden, temporary, a sidecar, or litter of file managers.
pub fn is_ignored(name: &OsStr) -> bool {
    const ENDINGS: [&str; 10] =
        ["part", "crdownload", "tmp", "temp", "filepart", "partial", "download", "swp", "toml", "txt"];
    const LITTER: [&str; 3] = ["thumbs.db", "desktop.ini", "@eadir"];
    let lower = name.as_bytes().to_ascii_lowercase();
    let ending = split_name(OsStr::from_bytes(&lower)).1.as_bytes().strip_prefix(b".").map(<[u8]>::to_vec);
    lower.starts_with(b".")
        || lower.ends_with(b"~")
        || LITTER.iter().any(|l| l.as_bytes() == lower)
        || ending.is_some_and(|ending| ENDINGS.iter().any(|e| e.as_bytes() == ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_names_are_looked_at() {
        for name in [
            ".hidden.png",
            "a.png~",
            "a.png.part",
            "a.PNG.crdownload",
            "Thumbs.db",
            "a.txt",
            "a.TOML",
            "@eaDir",
        ] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
        for name in ["a.png", "a", "part", "toml.jpg", "a b\n.jpeg"] {
            assert!(!is_ignored(OsStr::new(name)), "{name}");
        }
        assert!(!is_ignored(OsStr::from_bytes(b"\xff\xfe.png")));
    }

    #[test]
    fn sidecars_give_settings_and_prompt_or_a_sentence() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let picture = dir.path().join("photo.png");
        let write = |name: &str, bytes: &[u8]| {
            fs::write(dir.path().join(name), bytes).map_err(Error::file("write", name))
        };
        assert_eq!(settings(&picture)?, Settings::default());
        write("photo.txt", "\u{feff} a wave\n".as_bytes())?;
        write("photo.toml", b"seed = 5\n")?;
        let read = settings(&picture)?;
        assert_eq!((read.prompt.as_deref(), read.seed), (Some("a wave"), Some(5)));
        let error = || settings(&picture).expect_err("refused").to_string();
        write("photo.toml", b"prompt = \"b\"")?;
        assert_eq!(error(), "both `photo.toml` and `photo.txt` give a prompt; keep one");
        write("photo.toml", b"\nsed = 5\n")?;
        assert_eq!(error(), "photo.toml:2: unknown key `sed`; did you mean `seed`?");
        write("photo.toml", b"")?;
        write("photo.txt", b"one\ntwo \xff")?;
        assert_eq!(error(), "photo.txt:2: it is not valid UTF-8; save it as UTF-8");
        Ok(())
    }
}
