//! The kernel's file events (inotify) of a folder and everything below it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Bytes for one reading of events: some two thousand with short names.
const BUFFER: usize = 1 << 16;

/// Something that happened; paths are relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A file was moved in, or closed by one who may have written.
    Whole(PathBuf),
    /// A name appeared: a file that is being written, or one that no close will follow, as a second name of a file.
    Begun(PathBuf),
    /// A folder was made or moved in.
    Folder(PathBuf),
    /// A folder was moved out or removed.
    FolderGone(PathBuf),
    /// Events were lost, or the root itself was moved, removed or unmounted: only looking at everything helps.
    Lost,
}

/// The watches on the folders.
pub struct Events {
    fd: AsyncFd<OwnedFd>,
    root: PathBuf,
    /// The watch on the root's parent: only it tells that a folder is removed which somebody, as we, holds open.
    above: Option<i32>,
    /// Folders by the kernel's number of their watch.
    dirs: HashMap<i32, PathBuf>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Events {
    /// Without any watch yet.
    pub fn new(root: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::ONLYDIR | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        // One that may not be read leaves it to the rescan.
        let above = root.parent().and_then(|above| inotify::add_watch(&fd, above, flags).ok());
        // SAFETY: an `OwnedFd` is one open descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self {
            fd,
            above,
            root: root.to_owned(),
            dirs: HashMap::new(),
            buffer: vec![MaybeUninit::uninit(); BUFFER],
        })
    }

    /// Watches one folder, by its path relative to the root. Doing it again is free.
    pub fn add(&mut self, below: &Path) -> io::Result<()> {
        let mut flags = WatchFlags::ONLYDIR
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE_SELF
            | WatchFlags::EXCL_UNLINK;
        // The root may be a link to a folder, and only its own moves are news: other folders' parents tell of theirs.
        flags |= if below.as_os_str().is_empty() { WatchFlags::MOVE_SELF } else { WatchFlags::DONT_FOLLOW };
        let number = inotify::add_watch(self.fd.get_ref(), self.root.join(below), flags)?;
        self.dirs.insert(number, below.to_owned());
        Ok(())
    }

    /// Ends the watches on a folder that has left, and on everything below it.
    pub fn remove(&mut self, below: &Path) {
        let fd = self.fd.get_ref();
        self.dirs.retain(|number, dir| {
            let gone = dir.starts_with(below);
            if gone {
                // The kernel has ended it itself if the folder was removed.
                _ = inotify::remove_watch(fd, *number);
            }
            !gone
        });
    }

    /// Waits for events and reads as many as fit.
    pub async fn next(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut seen = Vec::new();
            let mut ended = Vec::new();
            let mut reader = Reader::new(ready.get_inner(), &mut self.buffer);
            let blocked = loop {
                match reader.next() {
                    Ok(event) => {
                        if event.events().contains(ReadFlags::IGNORED) {
                            ended.push(event.wd());
                        }
                        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                        if self.above == Some(event.wd()) {
                            if name.is_some() && name == self.root.file_name() {
                                seen.push(Seen::Lost);
                            }
                        } else {
                            translate(&self.dirs, event.wd(), event.events(), name, &mut seen);
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break true,
                    Err(e) => return Err(e.into()),
                }
                if reader.is_buffer_empty() {
                    break false;
                }
            };
            if blocked {
                ready.clear_ready();
            }
            for number in ended {
                self.dirs.remove(&number);
            }
            if !seen.is_empty() || !blocked {
                return Ok(seen);
            }
        }
    }
}

fn translate(
    dirs: &HashMap<i32, PathBuf>,
    number: i32,
    events: ReadFlags,
    name: Option<&OsStr>,
    seen: &mut Vec<Seen>,
) {
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        seen.push(Seen::Lost);
        return;
    }
    // One that was ended by us has events on their way still.
    let Some(dir) = dirs.get(&number) else { return };
    let at_root = dir.as_os_str().is_empty();
    if events
        .intersects(ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED)
    {
        if at_root {
            seen.push(Seen::Lost);
        }
        return;
    }
    let Some(name) = name else { return };
    let path = dir.join(name);
    let folder = events.contains(ReadFlags::ISDIR);
    if events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) && folder {
        seen.push(Seen::Folder(path));
    } else if events.contains(ReadFlags::MOVED_FROM) && folder {
        seen.push(Seen::FolderGone(path));
    } else if events.intersects(ReadFlags::MOVED_TO | ReadFlags::CLOSE_WRITE) {
        seen.push(Seen::Whole(path));
    } else if events.contains(ReadFlags::CREATE) {
        seen.push(Seen::Begun(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_events_and_a_lost_root_are_told() {
        let dirs = HashMap::from([(1, PathBuf::new()), (2, PathBuf::from("sub"))]);
        let see = |number, events, name: Option<&str>| {
            let mut seen = Vec::new();
            translate(&dirs, number, events, name.map(OsStr::new), &mut seen);
            seen
        };
        assert_eq!(see(-1, ReadFlags::QUEUE_OVERFLOW, None), [Seen::Lost]);
        assert_eq!(see(1, ReadFlags::UNMOUNT, None), [Seen::Lost]);
        assert_eq!(see(1, ReadFlags::MOVE_SELF, None), [Seen::Lost]);
        assert_eq!(see(2, ReadFlags::IGNORED, None), []);
        assert_eq!(see(9, ReadFlags::CLOSE_WRITE, Some("a.png")), []);
        assert_eq!(see(2, ReadFlags::CLOSE_WRITE, Some("a.png")), [Seen::Whole("sub/a.png".into())]);
        assert_eq!(see(1, ReadFlags::CREATE | ReadFlags::ISDIR, Some("d")), [Seen::Folder("d".into())]);
    }

    #[tokio::test]
    async fn files_and_folders_are_seen() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut events = Events::new(dir.path())?;
        events.add(Path::new(""))?;
        std::fs::create_dir(dir.path().join("sub"))?;
        assert_eq!(events.next().await?, [Seen::Folder("sub".into())]);
        events.add(Path::new("sub"))?;
        std::fs::write(dir.path().join("sub/a"), "a")?;
        let mut seen = events.next().await?;
        if seen.len() < 2 {
            seen.extend(events.next().await?);
        }
        assert_eq!(seen, [Seen::Begun("sub/a".into()), Seen::Whole("sub/a".into())]);
        std::fs::rename(dir.path().join("sub"), dir.path().join("other"))?;
        let seen = events.next().await?;
        assert_eq!(seen[0], Seen::FolderGone("sub".into()));
        // Held open by somebody, its removal is told by its parent only.
        let _held = std::fs::File::open(dir.path())?;
        std::fs::remove_dir_all(dir.path())?;
        while !events.next().await?.contains(&Seen::Lost) {}
        Ok(())
    }
}
