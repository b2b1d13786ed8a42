//! The kernel's file events of a folder and everything below it, from the `notify` crate.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{
    AccessKind, AccessMode, CreateKind, Event, EventKind, ModifyKind, RemoveKind, RenameMode,
};
use notify::{Config, ErrorKind, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::root::Dir;

/// The most events that wait. When there are more, they are dropped, and everything is scanned in their place.
const MOST: usize = 4096;

/// A file event; paths are relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A file was moved in, or closed by a program that may have written to it.
    Whole(PathBuf),
    /// A name appeared: a file that is being written, or one that no close will follow, such as a hard link.
    Begun(PathBuf),
    /// A folder was made or moved in.
    Folder(PathBuf),
    /// A folder was moved out or removed.
    FolderGone(PathBuf),
    /// Events were lost, or the root itself was moved or removed, so that everything must be scanned.
    Lost,
}

/// The watches on the folders.
pub struct Events {
    watcher: INotifyWatcher,
    news: Arc<News>,
    /// Kept open so that the path leads to this folder and to no other one.
    _dir: Dir,
    root: PathBuf,
    /// The folders with a watch, relative to the root.
    dirs: HashSet<PathBuf>,
}

/// Events on their way from the thread of `notify`: a bounded number, however many come.
#[derive(Default)]
struct News {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Default)]
struct Waiting {
    seen: Vec<Seen>,
    /// The folders that have come or gone, to notice those that do so again and again.
    folders: HashSet<PathBuf>,
    lost: bool,
    failed: Option<io::Error>,
}

impl News {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_lost(&self) -> bool {
        self.lock().lost
    }

    /// Adds an event. A folder that comes again before anybody has looked at it is scanned with everything else, because
    /// its events may go on for ever.
    fn add(&self, seen: Seen) {
        let mut waiting = self.lock();
        if waiting.lost {
            return;
        }
        let again = matches!(&seen, Seen::Folder(path) if !waiting.folders.insert(path.clone()));
        if again || seen == Seen::Lost || waiting.seen.len() >= MOST {
            *waiting = Waiting { lost: true, failed: waiting.failed.take(), ..Waiting::default() };
        } else {
            waiting.seen.push(seen);
        }
        drop(waiting);
        self.some.notify_one();
    }

    fn fail(&self, e: io::Error) {
        self.lock().failed = Some(e);
        self.some.notify_one();
    }

    /// Takes all that has come; `None` if nothing has.
    fn take(&self) -> Option<io::Result<Vec<Seen>>> {
        let Waiting { mut seen, lost, failed, .. } = std::mem::take(&mut *self.lock());
        if let Some(e) = failed {
            return Some(Err(e));
        }
        if lost {
            seen.push(Seen::Lost);
        }
        (!seen.is_empty()).then_some(Ok(seen))
    }
}

impl Events {
    /// Returns the events of a folder, without any watch.
    pub fn new(dir: Dir) -> io::Result<Self> {
        let news = Arc::new(News::default());
        let told = news.clone();
        let root = dir.path();
        let above = root.clone();
        // Filters in the thread of `notify`, so that unimportant events such as reads wake no other thread.
        let tell = move |event: notify::Result<Event>| match event {
            // What is lost anyway need not be looked at.
            Ok(_) if told.is_lost() => {}
            Ok(event) => {
                if let Some(seen) = translate(&above, &event) {
                    told.add(seen);
                }
            }
            Err(e) => told.fail(plain(e)),
        };
        let watcher = INotifyWatcher::new(tell, Config::default()).map_err(plain)?;
        Ok(Self { watcher, news, _dir: dir, root, dirs: HashSet::new() })
    }

    /// Watches one folder, by its path relative to the root. Doing it again is free.
    pub fn add(&mut self, below: &Path) -> io::Result<()> {
        // Each folder by itself, because some are left out.
        self.watcher.watch(&self.full(below), RecursiveMode::NonRecursive).map_err(plain)?;
        self.dirs.insert(below.to_owned());
        Ok(())
    }

    /// Ends the watches on a folder that is gone, and on everything below it.
    pub fn remove(&mut self, below: &Path) {
        let gone: Vec<PathBuf> = self.dirs.extract_if(|dir| dir.starts_with(below)).collect();
        for dir in gone {
            // The kernel has already ended the watch if the folder was removed.
            _ = self.watcher.unwatch(&self.full(&dir));
        }
    }

    /// Waits for events.
    pub async fn next(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            if let Some(news) = self.news.take() {
                return news;
            }
            self.news.some.notified().await;
        }
    }

    fn full(&self, below: &Path) -> PathBuf {
        // Joining nothing would put a slash behind the root, and events have it without.
        if below.as_os_str().is_empty() { self.root.clone() } else { self.root.join(below) }
    }
}

fn plain(e: notify::Error) -> io::Error {
    match e.kind {
        ErrorKind::Io(e) => e,
        ErrorKind::PathNotFound => io::ErrorKind::NotFound.into(),
        kind => io::Error::other(notify::Error::new(kind)),
    }
}

/// Returns what an event says of a folder's content; `None` for an event that does not matter.
fn translate(root: &Path, event: &Event) -> Option<Seen> {
    if event.need_rescan() {
        return Some(Seen::Lost);
    }
    let path = event.paths.first()?;
    if path == root {
        return match event.kind {
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => Some(Seen::Lost),
            _ => None,
        };
    }
    let below = path.strip_prefix(root).ok()?.to_owned();
    let is_folder = || fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    match event.kind {
        EventKind::Create(CreateKind::Folder) => Some(Seen::Folder(below)),
        EventKind::Create(_) => Some(Seen::Begun(below)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) if is_folder() => Some(Seen::Folder(below)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To))
        | EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Seen::Whole(below)),
        // The kernel reports a file in the same way; treating it as a folder does no harm, because nothing lies below
        // it.
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(RemoveKind::Folder) => {
            Some(Seen::FolderGone(below))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{Flag, MetadataKind};

    use super::*;

    #[test]
    fn lost_events_and_a_lost_root_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        let see = |kind, path: &Path| translate(root, &Event::new(kind).add_path(path.to_owned()));
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(translate(root, &overflow), Some(Seen::Lost));
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        assert_eq!(see(moved, root), Some(Seen::Lost));
        assert_eq!(see(EventKind::Remove(RemoveKind::Folder), root), Some(Seen::Lost));
        assert_eq!(see(EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), root), None);
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert_eq!(see(closed, &root.join("sub/a.png")), Some(Seen::Whole("sub/a.png".into())));
        assert_eq!(see(EventKind::Access(AccessKind::Open(AccessMode::Any)), &root.join("a.png")), None);
        assert_eq!(see(closed, Path::new("/elsewhere/a.png")), None);
    }

    #[test]
    fn a_storm_is_one_look_however_long_it_lasts() {
        let news = News::default();
        for n in 0..3 * MOST {
            news.add(Seen::Whole(format!("{n}.png").into()));
        }
        assert!(news.is_lost());
        assert!(matches!(news.take(), Some(Ok(seen)) if seen == [Seen::Lost]));
        assert!(news.take().is_none());
        // Two folders that change names.
        for _ in 0..2 {
            news.add(Seen::FolderGone("a".into()));
            news.add(Seen::Folder("a".into()));
        }
        assert!(matches!(news.take(), Some(Ok(seen)) if seen == [Seen::Lost]));
        news.add(Seen::Folder("a".into()));
        news.add(Seen::Folder("b".into()));
        assert!(matches!(news.take(), Some(Ok(seen)) if seen.len() == 2));
        news.fail(io::Error::other("it has ended"));
        assert!(matches!(news.take(), Some(Err(_))));
    }

    #[tokio::test]
    async fn files_and_folders_are_seen() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut events = Events::new(Dir::own(dir.path())?)?;
        events.add(Path::new(""))?;
        fs::create_dir(dir.path().join("sub"))?;
        assert_eq!(events.next().await?, [Seen::Folder("sub".into())]);
        events.add(Path::new("sub"))?;
        fs::write(dir.path().join("sub/a"), "a")?;
        let mut seen = events.next().await?;
        if seen.len() < 2 {
            seen.extend(events.next().await?);
        }
        assert_eq!(seen, [Seen::Begun("sub/a".into()), Seen::Whole("sub/a".into())]);
        fs::rename(dir.path().join("sub"), dir.path().join("other"))?;
        let seen = events.next().await?;
        assert_eq!(seen[0], Seen::FolderGone("sub".into()));
        // The kernel does not report that a folder has gone while somebody holds it open.
        let away = tempfile::tempdir()?;
        fs::rename(dir.path(), away.path().join("moved"))?;
        while !events.next().await?.contains(&Seen::Lost) {}
        Ok(())
    }
}
