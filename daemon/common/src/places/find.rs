//! Resolves paths step by step, so that the folder that is compared with others is the one that is then used.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::files::show;

/// The most links on a path, as in the kernel.
const MOST_LINKS: u32 = 40;

/// A folder or file of the machine, by its device and inode: the same under every name.
pub type Id = (u64, u64);

/// What a path leads to, held open, as far as it exists.
pub struct Found {
    /// The folders on the way; the first is the root of all, the last is what was found.
    way: Vec<Step>,
    /// The names after the last folder, which do not exist.
    missing: Vec<OsString>,
    /// Why the path could not be followed further.
    ended: Option<Errno>,
    /// The links that were followed, with their owners.
    links: Vec<(PathBuf, u32)>,
    /// The disk and the path on it, which are the same under every mount point.
    disk: Option<(String, PathBuf)>,
}

/// A folder on the way; the last one may be a file.
struct Step {
    held: OwnedFd,
    name: OsString,
    stat: Stat,
}

impl Step {
    fn id(&self) -> Id {
        id(&self.stat)
    }
}

fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// Returns the identity of an open folder.
pub fn id_of(dir: BorrowedFd<'_>) -> io::Result<Id> {
    Ok(id(&rustix::fs::fstat(dir)?))
}

/// Returns the path of an open folder as the kernel has it now.
pub fn path_of(dir: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Returns the number of the mount that an open folder was reached by.
pub fn mount_of(dir: BorrowedFd<'_>) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_raw_fd())).ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned())
}

impl Found {
    /// Follows an absolute path, and every link on it, as far as it goes.
    pub fn of(path: &Path, mounts: &Mounts) -> Self {
        let mut found =
            Self { way: Vec::new(), missing: Vec::new(), ended: None, links: Vec::new(), disk: None };
        found.ended = found.follow(path).err();
        found.locate(mounts);
        found
    }

    /// Finds a folder that is open already, with the folders above it.
    pub fn held(dir: BorrowedFd<'_>, mounts: &Mounts) -> io::Result<Self> {
        let real = path_of(dir)?;
        let names: Vec<&OsStr> = real.iter().collect();
        let mut way = Vec::new();
        let mut next = dir.try_clone_to_owned()?;
        loop {
            let stat = rustix::fs::fstat(&next)?;
            let above = rustix::fs::openat(&next, "..", flags(), Mode::empty())?;
            let top = id_of(above.as_fd())? == id(&stat);
            let name = names.len().checked_sub(way.len() + 1).map_or(OsStr::new(""), |at| names[at]);
            way.push(Step { held: next, name: name.to_owned(), stat });
            if top {
                break;
            }
            next = above;
        }
        way.reverse();
        let mut found = Self { way, missing: Vec::new(), ended: None, links: Vec::new(), disk: None };
        found.locate(mounts);
        Ok(found)
    }

    fn follow(&mut self, path: &Path) -> Result<(), Errno> {
        let mut todo: Vec<OsString> = Vec::new();
        push(&mut todo, path);
        while let Some(name) = todo.pop() {
            let step = self.step(&name);
            match step {
                Ok(Some(target)) => push(&mut todo, &target),
                Ok(None) => {}
                Err(e) => {
                    // Names after a missing folder cannot be opened, only recorded.
                    self.missing.push(name);
                    for name in todo.into_iter().rev() {
                        match name.as_bytes() {
                            b".." if self.missing.pop().is_some() => {}
                            b".." if self.way.len() > 1 => _ = self.way.pop(),
                            b".." => {}
                            _ => self.missing.push(name),
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Follows one name; returns the target if the name is a link.
    fn step(&mut self, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
        let held = match (name.as_bytes(), self.way.last()) {
            (b"/", _) | (_, None) => {
                self.way.clear();
                rustix::fs::openat(CWD, "/", flags(), Mode::empty())?
            }
            (b"..", Some(_)) => {
                if self.way.len() > 1 {
                    self.way.pop();
                }
                return Ok(None);
            }
            (_, Some(here)) => {
                let open = |more| {
                    rustix::fs::openat(&here.held, name, flags() | OFlags::NOFOLLOW | more, Mode::empty())
                };
                // Opens it as a folder first, because only that triggers an automount.
                match open(OFlags::DIRECTORY) {
                    Err(Errno::NOTDIR) => open(OFlags::empty())?,
                    opened => opened?,
                }
            }
        };
        let stat = rustix::fs::fstat(&held)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            if self.links.len() as u32 == MOST_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&held, "", Vec::new())?;
            self.links.push((self.existing().join(name), stat.st_uid));
            return Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))));
        }
        self.way.push(Step { held, name: name.to_owned(), stat });
        Ok(None)
    }

    fn locate(&mut self, mounts: &Mounts) {
        self.disk = self.way.last().and_then(|last| {
            let (disk, path) = mounts.locate(&last.held, &self.existing())?;
            Some((disk, self.with_missing(path)))
        });
    }

    /// Returns the existing part of the path, without links.
    fn existing(&self) -> PathBuf {
        [OsStr::new("/")].into_iter().chain(self.way.iter().skip(1).map(|step| &*step.name)).collect()
    }

    /// Returns the path without links.
    pub fn real(&self) -> PathBuf {
        self.with_missing(self.existing())
    }

    fn with_missing(&self, mut path: PathBuf) -> PathBuf {
        path.extend(&self.missing);
        path
    }

    /// Returns what was found; an error if the path does not exist, or cannot be followed.
    pub fn whole(&self) -> io::Result<Id> {
        match (self.ended, self.way.last()) {
            (None, Some(last)) => Ok(last.id()),
            (ended, _) => Err(ended.unwrap_or(Errno::NOENT).into()),
        }
    }

    /// Returns the folder that was found, or an error.
    pub fn into_dir(mut self) -> io::Result<OwnedFd> {
        self.whole()?;
        let last = self.way.pop().ok_or(Errno::NOENT)?;
        match FileType::from_raw_mode(last.stat.st_mode) {
            FileType::Directory => Ok(last.held),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// Returns the deepest folder that exists, and the names behind it that do not.
    pub fn into_parts(mut self) -> io::Result<(OwnedFd, Vec<OsString>)> {
        if let Some(e) = self.ended.filter(|e| *e != Errno::NOENT) {
            return Err(e.into());
        }
        let last = self.way.pop().ok_or(Errno::NOENT)?;
        Ok((last.held, self.missing))
    }

    /// Returns whether this lies in another folder, or is the same: by name, by inode, or by its place on the disk.
    pub fn lies_in(&self, other: &Self) -> bool {
        let by_inode = other.whole().is_ok_and(|id| self.way.iter().any(|step| step.id() == id));
        let by_disk = match (&self.disk, &other.disk) {
            (Some((disk, path)), Some((other_disk, other))) => disk == other_disk && path.starts_with(other),
            _ => false,
        };
        by_inode || by_disk || self.real().starts_with(other.real())
    }

    /// Returns the first link on the way that neither root nor we ourselves have made, and whose it is: its owner
    /// decides where the path leads.
    fn link_of_others(&self) -> Option<&(PathBuf, u32)> {
        // In a user namespace, root may have another number. The file system's root always belongs to root.
        let root = self.way.first()?.stat.st_uid;
        let trusted = [0, root, rustix::process::geteuid().as_raw()];
        self.links.iter().find(|(_, owner)| !trusted.contains(owner))
    }

    /// Returns whether another user decides where the path leads, by a link.
    pub fn is_by_others(&self) -> bool {
        self.link_of_others().is_some()
    }

    /// Returns a sentence about a link that may not be followed: one of another user, to a folder that is not that
    /// user's.
    pub fn strange_link(&self) -> Option<String> {
        let (link, owner) = self.link_of_others()?;
        let last = self.way.last()?.stat.st_uid;
        (*owner != last).then(|| {
            format!(
                "the link `{}` of user {owner} leads to `{}`, which is a folder of user {last}; such links are not followed: \
                 name the folder itself, or let root make the link",
                show(link),
                show(self.real())
            )
        })
    }
}

fn flags() -> OFlags {
    OFlags::PATH | OFlags::CLOEXEC
}

/// Puts a path's names before what is still to be followed, which is kept in reverse.
fn push(todo: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|part| match part {
        Component::CurDir | Component::Prefix(_) => None,
        part => Some(part.as_os_str().to_owned()),
    });
    todo.extend(names);
}

/// The mounts of the machine as we see them: the text of `/proc/self/mountinfo`.
pub struct Mounts(String);

/// The beginnings of the names of file systems whose mounts do not say which folder of theirs they show.
const REMOTE: [&str; 8] = ["nfs", "cifs", "smb", "ceph", "9p", "afs", "lustre", "fuse"];

impl Mounts {
    /// Reads the current mounts; if that fails, folders are compared by their names and inodes only.
    pub fn read() -> Self {
        Self(fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Returns the disk of an open folder whose path is `real`, and its path on that disk.
    fn locate(&self, dir: &OwnedFd, real: &Path) -> Option<(String, PathBuf)> {
        self.on_disk(&mount_of(dir.as_fd())?, real)
    }

    fn on_disk(&self, id: &str, real: &Path) -> Option<(String, PathBuf)> {
        let line = self.0.lines().find(|line| line.split(' ').next() == Some(id))?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        if REMOTE.iter().any(|remote| kind.starts_with(remote)) {
            return None;
        }
        let mut fields = line.split(' ').skip(1);
        let (disk, root, point) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let below = real.strip_prefix(plain(point)).ok()?;
        Some((disk.to_owned(), plain(root).join(below)))
    }
}

/// Returns a path of the mounts' table, where some bytes are three octal digits behind a backslash.
fn plain(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = || u8::from_str_radix(str::from_utf8(after.get(..3)?).ok()?, 8).ok();
        match if first == b'\\' { code() } else { None } {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_dots_are_followed_and_what_is_missing_is_read() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let dir = fs::canonicalize(dir.path())?;
        fs::create_dir_all(dir.join("real/sub"))?;
        symlink("real/sub", dir.join("link"))?;
        symlink(dir.join("nowhere/deep"), dir.join("dangling"))?;
        symlink("loop", dir.join("loop"))?;
        fs::write(dir.join("file"), "")?;
        let real = |path: &str| {
            let found = Found::of(&dir.join(path), &Mounts::read());
            (found.real().strip_prefix(&dir).map(Path::to_owned).unwrap_or_default(), found.whole().is_ok())
        };
        for (path, leads, whole) in [
            ("real/sub/", "real/sub", true),
            ("link", "real/sub", true),
            ("link/..", "real", true),
            ("link/./../sub//", "real/sub", true),
            ("link/new/../other", "real/sub/other", false),
            ("link/new/../../other", "real/other", false),
            ("dangling/x", "nowhere/deep/x", false),
            ("real/none", "real/none", false),
            ("loop", "loop", false),
            ("file/x", "file/x", false),
        ] {
            assert_eq!(real(path), (leads.into(), whole), "{path}");
        }
        Ok(())
    }

    #[test]
    fn mounts_say_where_a_folder_lies_on_its_disk() {
        let mounts = Mounts(
            "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 25 8:1 /home/ann/my\\040pictures /mnt/p rw - ext4 /dev/sda1 rw\n\
             44 25 0:50 / /mnt/nfs rw - nfs4 server:/pictures rw\n"
                .into(),
        );
        let on_disk = |id, real: &str| mounts.on_disk(id, Path::new(real));
        let ann = Some(("8:1".to_owned(), PathBuf::from("/home/ann/my pictures/x")));
        assert_eq!(on_disk("31", "/mnt/p/x"), ann);
        assert_eq!(on_disk("25", "/home/ann/my pictures/x"), ann);
        assert_eq!(on_disk("40", "/mnt/p/x"), None);
        assert_eq!(on_disk("44", "/mnt/nfs/x"), None, "all exports of a server look the same");
    }

    #[test]
    fn what_is_held_is_found_with_all_above_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("a/b"))?;
        let mounts = Mounts::read();
        let by_path = |path: &str| Found::of(&dir.path().join(path), &mounts);
        let held = by_path("a/b").into_dir()?;
        fs::rename(dir.path().join("a"), dir.path().join("moved"))?;
        let found = Found::held(held.as_fd(), &mounts)?;
        assert_eq!(found.real(), fs::canonicalize(dir.path().join("moved/b"))?);
        assert!(found.lies_in(&by_path("moved")) && !found.lies_in(&by_path("a")));
        Ok(())
    }
}
