//! The way to what lies below a watched folder: no symbolic link is on it, whatever is swapped in meanwhile.
//!
//! Whoever may write in a watched folder, or in one above it, may put a link where a folder was, at any moment. So the
//! folder itself is opened once, compared with what it may not be, and held: all that is done in it afterwards starts at
//! the descriptor. A folder below it is opened step by step from there, and what lies in that is reached by its descriptor,
//! as a path below `/proc/self/fd`.
//!
//! Other names of files that their owner did not put there (hard links) are the kernel's business: it makes none of a file
//! that the caller could not read and write anyway (`fs.protected_hardlinks`), and a job belongs to its file's owner.

use std::error::Error;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::files::{self, show};
use crate::places::{self, Found, Id, Mounts, Place, Role, Shared, id_of, mount_of, path_of};

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A folder that is used by its path: a watched one, or one where videos appear. Cheap to clone.
///
/// Which folder that is must not be for others to decide, so [`Root::check`] asks before each use whether it still is the
/// folder that it was. The rule:
///
/// - It may not overlap what it has to be kept apart from (see [`places`]), through whatever links and mounts.
/// - The path may have links, but one that neither root nor we ourselves have made is followed only to a folder of the
///   link's own owner: nobody can lend us what is not theirs.
/// - Once it has been opened, the path without its links is known. The same folder may come back anywhere, and another
///   folder may come to the same place, as when a disk is mounted or a folder is made anew. Another folder at another
///   place is not used, until the first one is back or [`Root::forget`] is called, when the configuration is read again.
#[derive(Clone)]
pub struct Root(Arc<Inner>);

struct Inner {
    place: Place,
    /// Whether it no longer has a role: see [`Root::left`].
    left: bool,
    others: Shared,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The folder that was opened last, and the place where the first one was.
    known: Option<(Id, PathBuf)>,
    /// That folder and where it is, while the path leads to it.
    dir: Option<(Arc<OwnedFd>, PathBuf)>,
}

/// Why a folder is not the one to use.
#[derive(Debug)]
struct Swapped(String);

impl fmt::Display for Swapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Swapped {}

/// Returns whether an error says that a path leads to a folder that may not be used.
pub fn is_swapped(e: &io::Error) -> bool {
    e.get_ref().and_then(|e| e.downcast_ref::<Swapped>()).is_some()
}

impl Root {
    /// Returns a watched folder, or one where videos appear; `others` is what it has to be kept apart from, and may
    /// include it.
    pub fn new(place: Place, others: Shared) -> Self {
        Self::with(place, false, others)
    }

    /// Returns a folder that once was watched or took videos, where something still has to be moved or read: other
    /// folders may lie around and in it by now, and only the service's own folder is out of bounds.
    pub fn left(path: &Path, others: Shared) -> Self {
        Self::with(Place::new("", path, Role::Inbox), true, others)
    }

    /// Returns a folder that is kept apart from nothing, for tests.
    pub fn alone(path: &Path) -> Self {
        Self::new(Place::new("watch.path", path, Role::Inbox), Shared::default())
    }

    fn with(place: Place, left: bool, others: Shared) -> Self {
        Self(Arc::new(Inner { place, left, others, held: Mutex::default() }))
    }

    /// Returns the path as it is written.
    pub fn path(&self) -> &Path {
        &self.0.place.path
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the folder, unless it is open and still at its place, and checks that it is the one to use.
    ///
    /// # Errors
    /// What opening it says; or, by [`is_swapped`], why it is not used.
    pub fn check(&self) -> io::Result<Arc<OwnedFd>> {
        let mut held = self.lock();
        if let Some(dir) = held.still(self.path()) {
            return Ok(dir);
        }
        held.dir = None;
        let mounts = Mounts::read();
        let found = Found::of(self.path(), &mounts);
        let (id, real) = (found.whole()?, found.real());
        self.compare(&found, held.known.as_ref(), &mounts)?;
        let dir = Arc::new(found.into_dir()?);
        let place = held.known.take().map_or_else(|| real.clone(), |(_, place)| place);
        *held = Held { known: Some((id, place)), dir: Some((dir.clone(), real)) };
        Ok(dir)
    }

    /// Makes the folder if it is missing, where it may be made. [`Self::check`] opens it.
    ///
    /// # Errors
    /// The errors of [`Self::check`].
    pub fn make(&self) -> io::Result<()> {
        let held = self.lock();
        let mounts = Mounts::read();
        let found = Found::of(self.path(), &mounts);
        self.compare(&found, held.known.as_ref(), &mounts)?;
        let (mut dir, missing) = found.into_parts()?;
        for name in missing {
            match rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            dir = rustix::fs::openat(&dir, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(())
    }

    /// Forgets which folder was used: the next check accepts any folder that may be used.
    pub fn forget(&self) {
        *self.lock() = Held::default();
    }

    /// Returns the folder that was checked, wherever its path leads now; checks it if nobody has.
    fn dir(&self) -> io::Result<Arc<OwnedFd>> {
        let held = self.lock().dir.clone();
        held.map_or_else(|| self.check(), |(dir, _)| Ok(dir))
    }

    fn compare(&self, found: &Found, known: Option<&(Id, PathBuf)>, mounts: &Mounts) -> io::Result<()> {
        let refuse = |text: String| Err(io::Error::other(Swapped(text)));
        let (id, real) = (found.whole().ok(), found.real());
        // It was compared already. Should the path of another folder lead here by now, that one is not used.
        if known.is_some_and(|known| (Some(known.0), &known.1) == (id, &real)) {
            return Ok(());
        }
        if let Some(text) = found.strange_link() {
            return refuse(text);
        }
        if let Some(text) = self.overlap(found, mounts) {
            return refuse(text);
        }
        match known {
            Some((known, before)) if *before != real && id != Some(*known) => refuse(format!(
                "`{}` has led to `{}` and leads to another folder now, `{}`; it is not used before it is as it was, or the \
                     configuration is read again (`animctl reload`)",
                show(self.path()),
                show(before),
                show(&real)
            )),
            _ => Ok(()),
        }
    }

    fn overlap(&self, found: &Found, mounts: &Mounts) -> Option<String> {
        let inner = &*self.0;
        let others = inner.others.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !inner.left {
            return places::refusal(&inner.place, found, &others, mounts);
        }
        // Others may have their folders around and in it by now.
        let state = others.iter().find(|other| other.role == Role::State)?;
        found.lies_in(&Found::of(&state.path, mounts)).then(|| {
            format!("`{}` leads into the service's own folder `{}` now", show(self.path()), show(&state.path))
        })
    }

    /// Checks that nothing which must be kept apart from the root is mounted at a folder below it.
    fn check_mounted(&self, top: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<()> {
        // On the root's own mount, what holds for the root holds for all below it.
        if mount_of(dir).is_some_and(|mount| mount_of(top) == Some(mount)) {
            return Ok(());
        }
        let mounts = Mounts::read();
        match self.overlap(&Found::held(dir, &mounts)?, &mounts) {
            Some(text) => Err(io::Error::other(Swapped(text))),
            None => Ok(()),
        }
    }
}

impl Held {
    /// Returns the folder if it is open and the path leads to it, and nothing has changed on the way.
    fn still(&self, path: &Path) -> Option<Arc<OwnedFd>> {
        let (Some((id, _)), Some((dir, real))) = (&self.known, &self.dir) else { return None };
        let now = rustix::fs::openat(CWD, path, FOLDER, Mode::empty()).ok()?;
        let same = id_of(now.as_fd()).ok()? == *id && path_of(now.as_fd()).ok()? == *real;
        same.then(|| dir.clone())
    }
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        self.0.place == other.0.place
    }
}

impl Eq for Root {}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Root").field(&self.0.place).finish()
    }
}

/// A watched folder or one below it, held open.
#[derive(Clone)]
pub struct Dir(Arc<OwnedFd>);

impl Dir {
    /// Opens the folder `below` a root.
    pub fn open(root: &Root, below: &Path) -> io::Result<Self> {
        Self::walk(root, below, false)
    }

    /// Does what [`Self::open`] does, and makes what is missing below the root.
    pub fn make(root: &Root, below: &Path) -> io::Result<Self> {
        Self::walk(root, below, true)
    }

    /// Opens the folder that a path below the root lies in.
    pub fn of(root: &Root, path: &Path) -> io::Result<Self> {
        let below = path.strip_prefix(root.path()).map_err(|_| outside())?;
        Self::open(root, below.parent().unwrap_or(Path::new("")))
    }

    /// Opens a folder of the service's own, whose path nobody else can change.
    pub fn own(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::fs::openat(CWD, path, FOLDER, Mode::empty())?)))
    }

    fn walk(root: &Root, below: &Path, make: bool) -> io::Result<Self> {
        let top = root.dir()?;
        let mut dir = top.clone();
        if below.as_os_str().is_empty() {
            return Ok(Self(dir));
        }
        // In one step where nothing is to be made, no link is on the way and no other file system.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        if let Ok(dir) = rustix::fs::openat2(&*dir, below, FOLDER, Mode::empty(), resolve) {
            return Ok(Self(Arc::new(dir)));
        }
        for part in below.components() {
            let Component::Normal(name) = part else { return Err(outside()) };
            let open = || rustix::fs::openat(&*dir, name, FOLDER | OFlags::NOFOLLOW, Mode::empty());
            let next = match open() {
                Err(Errno::NOENT) if make => {
                    match rustix::fs::mkdirat(&*dir, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => open(),
                        Err(e) => Err(e),
                    }
                }
                opened => opened,
            };
            dir = match next {
                Ok(next) => Arc::new(next),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let text = "a symbolic link or a file is in the place of a folder; put a folder there";
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
                }
                Err(e) => return Err(e.into()),
            };
        }
        root.check_mounted(top.as_fd(), dir.as_fd())?;
        Ok(Self(dir))
    }

    /// Returns the numbers of the folder's device and inode.
    pub fn id(&self) -> io::Result<(i64, i64)> {
        let stat = rustix::fs::fstat(&*self.0)?;
        Ok((stat.st_dev as i64, stat.st_ino as i64))
    }

    /// Returns a path to the folder itself, for as long as it is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Returns a path to what has the last name of `path`, in this folder.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.path().join(path.file_name().unwrap_or_default())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the metadata of what lies at a path below the root, without following a link.
pub fn metadata(root: &Root, path: &Path) -> io::Result<Metadata> {
    let dir = Dir::of(root, path)?;
    fs::symlink_metadata(dir.at(path))
}

/// Does what [`files::open_regular`] does, for a path below the root.
pub fn open_regular(root: &Root, path: &Path) -> io::Result<(File, Metadata)> {
    let dir = Dir::of(root, path)?;
    files::open_regular(&dir.at(path))
}

/// Does what [`files::read_small`] does, for a path below the root.
pub fn read_small(root: &Root, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let dir = Dir::of(root, path)?;
    files::read_small(&dir.at(path), limit)
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it does not lie below the watched folder")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, lchown, symlink};

    use super::*;

    #[test]
    fn nothing_is_reached_through_a_link() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (real, elsewhere) = (dir.path().join("real"), dir.path().join("elsewhere"));
        fs::create_dir_all(real.join("sub"))?;
        fs::create_dir_all(elsewhere.join("deep"))?;
        fs::write(real.join("sub/a"), "ours")?;
        fs::write(elsewhere.join("a"), "theirs")?;
        symlink(&elsewhere, real.join("link"))?;
        // The root may be one.
        let path = dir.path().join("root");
        symlink(&real, &path)?;
        let root = Root::alone(&path);
        assert_eq!(read_small(&root, &path.join("sub/a"), 10)?, b"ours");
        assert!(metadata(&root, &path.join("link"))?.is_symlink());
        let no_folder = |e: io::Error| e.kind() == io::ErrorKind::NotADirectory;
        assert!(Dir::open(&root, Path::new("link")).is_err_and(no_folder));
        assert!(Dir::make(&root, Path::new("link/new")).is_err_and(no_folder));
        assert!(metadata(&root, &path.join("link/a")).is_err_and(no_folder));
        assert!(open_regular(&root, &path.join("link/a")).is_err_and(no_folder));
        assert!(read_small(&root, &path.join("link/deep/a"), 10).is_err_and(no_folder));
        assert!(!elsewhere.join("new").exists());
        assert!(Dir::open(&root, Path::new("sub/../../elsewhere")).is_err());
        assert!(metadata(&root, &elsewhere.join("a")).is_err());
        Ok(())
    }

    #[test]
    fn a_folder_that_is_held_stays_the_same() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (root, elsewhere) = (dir.path().join("root"), dir.path().join("elsewhere"));
        fs::create_dir(&root)?;
        fs::create_dir(&elsewhere)?;
        let held = Dir::make(&Root::alone(&root), Path::new("sub/deep"))?;
        fs::write(root.join("sub/deep/a"), "ours")?;
        fs::write(elsewhere.join("a"), "theirs")?;
        fs::rename(root.join("sub/deep"), root.join("old"))?;
        symlink(&elsewhere, root.join("sub/deep"))?;
        assert_eq!(fs::read(held.at(Path::new("a")))?, b"ours");
        files::rename_new(&held.at(Path::new("a")), &held.at(Path::new("b")))?;
        files::sync_dir(&held.path())?;
        assert_eq!(fs::read(root.join("old/b"))?, b"ours");
        Ok(())
    }

    /// A watched folder at `ann/pictures`, with a state folder, an outbox and another folder beside.
    struct House {
        dir: tempfile::TempDir,
        root: Root,
    }

    impl House {
        fn new() -> io::Result<Self> {
            let dir = tempfile::tempdir()?;
            for folder in ["ann/pictures", "state/spool", "out", "other/pictures"] {
                fs::create_dir_all(dir.path().join(folder))?;
            }
            let place = |key, path: &str, role| Place::new(key, dir.path().join(path), role);
            let watched = place("watch.path", "ann/pictures", Role::Inbox);
            let others = vec![
                watched.clone(),
                place("folders.state", "state", Role::State),
                place("folders.outbox", "out", Role::Outbox),
            ];
            let root = Root::new(watched, Shared::new(others.into()));
            Ok(Self { dir, root })
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        /// Puts a link in a folder's place, and the folder at `away`.
        fn swap(&self, path: &str, target: &str) -> io::Result<()> {
            fs::rename(self.at(path), self.at("away"))?;
            symlink(self.at(target), self.at(path))
        }

        fn swap_back(&self, path: &str) -> io::Result<()> {
            fs::remove_file(self.at(path))?;
            fs::rename(self.at("away"), self.at(path))
        }

        fn refused(&self) -> String {
            let e = self.root.check().expect_err("it is another folder");
            assert!(is_swapped(&e), "{e}");
            e.to_string()
        }
    }

    #[test]
    fn a_swapped_root_is_not_used_until_it_is_back() -> io::Result<()> {
        let house = House::new()?;
        // Nothing is known of it yet.
        house.swap("ann/pictures", "state/spool")?;
        let said = house.refused();
        assert!(said.contains("(watch.path; it leads to `") && said.contains("(folders.state)"), "{said}");
        house.swap_back("ann/pictures")?;
        house.root.check()?;
        for (path, target, with) in [
            ("ann/pictures", "state", "overlap"),
            ("ann/pictures", ".", "overlap"),
            ("ann/pictures", "out", "is where videos appear"),
            ("ann/pictures", "other", "leads to another folder now"),
            ("ann", "other", "leads to another folder now"),
        ] {
            house.swap(path, target)?;
            let said = house.refused();
            assert!(said.contains(with), "{path} to {target}: {said}");
            assert_eq!(house.refused(), said, "the sentence stays the same");
            assert!(Dir::open(&house.root, Path::new("")).is_err() && house.root.make().is_err());
            house.swap_back(path)?;
            house.root.check()?;
        }
        // Meant so, says whoever has the configuration read again.
        house.swap("ann", "other")?;
        house.refused();
        house.root.forget();
        house.root.check()?;
        Ok(())
    }

    #[test]
    fn the_same_folder_elsewhere_and_another_at_its_place_are_used() -> io::Result<()> {
        let house = House::new()?;
        let first = id_of(house.root.check()?.as_fd())?;
        // As it was, by a link.
        house.swap("ann", "away")?;
        assert_eq!(id_of(house.root.check()?.as_fd())?, first);
        house.swap_back("ann")?;
        // Gone, and made anew.
        fs::remove_dir(house.at("ann/pictures"))?;
        let gone = house.root.check().expect_err("it is gone");
        assert!(gone.kind() == io::ErrorKind::NotFound && !is_swapped(&gone));
        fs::create_dir_all(house.at("ann/pictures"))?;
        house.root.check()?;
        Ok(())
    }

    #[test]
    fn whose_path_is_swapped_does_not_shut_others_out() -> io::Result<()> {
        let house = House::new()?;
        let outbox = Place::new("folders.outbox", house.at("out"), Role::Outbox);
        let outbox = Root::new(outbox, house.root.0.others.clone());
        outbox.check()?;
        house.swap("ann/pictures", "out")?;
        house.refused();
        for _ in 0..2 {
            outbox.make()?;
            outbox.check()?;
        }
        // One that is new cannot know who was first, unless the link is another user's.
        outbox.forget();
        assert!(outbox.check().is_err_and(|e| is_swapped(&e)));
        if rustix::process::geteuid().is_root() {
            lchown(house.root.path(), Some(4001), Some(4001))?;
            outbox.check()?;
            house.refused();
        }
        Ok(())
    }

    #[test]
    fn nothing_is_made_where_a_swapped_parent_leads() -> io::Result<()> {
        let house = House::new()?;
        house.root.check()?;
        house.swap("ann", "state")?;
        assert!(house.root.make().is_err_and(|e| is_swapped(&e)));
        assert!(!house.at("state/pictures").exists());
        house.swap_back("ann")?;
        fs::remove_dir_all(house.at("ann"))?;
        house.root.make()?;
        house.root.check()?;
        Ok(())
    }

    #[test]
    fn what_was_checked_is_used_whatever_comes_after() -> io::Result<()> {
        let house = House::new()?;
        let picture = house.root.path().join("a.png");
        fs::write(&picture, "ours")?;
        fs::write(house.at("state/spool/a.png"), "theirs")?;
        house.root.check()?;
        house.swap("ann/pictures", "state/spool")?;
        assert_eq!(read_small(&house.root, &picture, 10)?, b"ours");
        Dir::make(&house.root, Path::new("done"))?;
        assert!(house.at("away/done").exists() && !house.at("state/spool/done").exists());
        Ok(())
    }

    /// Links of other users need root, who alone can give files away.
    #[test]
    fn links_of_others_lead_only_to_what_is_theirs() -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let house = House::new()?;
        house.swap("ann/pictures", "other/pictures")?;
        house.root.check()?;
        let (ann, bob) = (Some(4001), Some(4002));
        lchown(house.root.path(), ann, ann)?;
        house.root.forget();
        let said = house.refused();
        assert!(said.contains("of user 4001 leads to `") && said.contains("a folder of user 0"), "{said}");
        chown(house.at("other/pictures"), bob, bob)?;
        assert!(house.refused().contains("a folder of user 4002"));
        chown(house.at("other/pictures"), ann, ann)?;
        house.root.check()?;
        Ok(())
    }
}
