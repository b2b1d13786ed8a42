//! The way to what lies below a watched folder: no symbolic link is on it, whatever is swapped in meanwhile.
//!
//! Whoever may write in a watched folder may put a link where a folder was, at any moment. So a folder is opened step by
//! step from the root, and what lies in it is reached by its descriptor, as a path below `/proc/self/fd`.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::files;

/// A watched folder or one below it, held open.
pub struct Dir(OwnedFd);

impl Dir {
    /// Opens the folder `below` a root, which may itself be a link to a folder.
    pub fn open(root: &Path, below: &Path) -> io::Result<Self> {
        Self::walk(root, below, false)
    }

    /// The same; what is missing below the root is made.
    pub fn make(root: &Path, below: &Path) -> io::Result<Self> {
        Self::walk(root, below, true)
    }

    /// Opens the folder that a path below the root lies in.
    pub fn of(root: &Path, path: &Path) -> io::Result<Self> {
        let below = path.strip_prefix(root).map_err(|_| outside())?;
        Self::open(root, below.parent().unwrap_or(Path::new("")))
    }

    fn walk(root: &Path, below: &Path, make: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(root, flags, Mode::empty())?;
        for part in below.components() {
            let Component::Normal(name) = part else { return Err(outside()) };
            let open = || rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
            let next = match open() {
                Err(Errno::NOENT) if make => {
                    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => open(),
                        Err(e) => Err(e),
                    }
                }
                opened => opened,
            };
            dir = match next {
                Ok(next) => next,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let text = "a symbolic link or a file is in the place of a folder; put a folder there";
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
                }
                Err(e) => return Err(e.into()),
            };
        }
        Ok(Self(dir))
    }

    /// A path to the folder itself, for as long as it is held.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// A path to what has the last name of `path`, in this folder.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.path().join(path.file_name().unwrap_or_default())
    }
}

/// What lies at a path below the root; of a link, the link.
pub fn metadata(root: &Path, path: &Path) -> io::Result<Metadata> {
    let dir = Dir::of(root, path)?;
    fs::symlink_metadata(dir.at(path))
}

/// As [`files::open_regular`], for a path below the root.
pub fn open_regular(root: &Path, path: &Path) -> io::Result<(File, Metadata)> {
    let dir = Dir::of(root, path)?;
    files::open_regular(&dir.at(path))
}

/// As [`files::read_small`], for a path below the root.
pub fn read_small(root: &Path, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let dir = Dir::of(root, path)?;
    files::read_small(&dir.at(path), limit)
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it does not lie below the watched folder")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
        let root = dir.path().join("root");
        symlink(&real, &root)?;
        assert_eq!(read_small(&root, &root.join("sub/a"), 10)?, b"ours");
        assert!(metadata(&root, &root.join("link"))?.is_symlink());
        let no_folder = |e: io::Error| e.kind() == io::ErrorKind::NotADirectory;
        assert!(Dir::open(&root, Path::new("link")).is_err_and(no_folder));
        assert!(Dir::make(&root, Path::new("link/new")).is_err_and(no_folder));
        assert!(metadata(&root, &root.join("link/a")).is_err_and(no_folder));
        assert!(open_regular(&root, &root.join("link/a")).is_err_and(no_folder));
        assert!(read_small(&root, &root.join("link/deep/a"), 10).is_err_and(no_folder));
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
        let held = Dir::make(&root, Path::new("sub/deep"))?;
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
}
