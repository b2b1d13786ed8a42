//! What `animd-watch` reads and writes in its user's folders.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use animd_common::files::hex;
use animd_common::files::output_name;
use animd_common::files::{self, Identity, rename_new};
use animd_common::watch::away::sync_or_warn;
use animd_common::watch::{Ready, mounts, names, root, sidecar};
use animd_protocol::ErrorCode;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// SHA-256 of what a file contains.
pub type Contents = [u8; 32];

/// A picture, open and known by its contents.
pub struct Opened {
    /// The open file, for the bus.
    pub file: File,
    /// The hash of its contents.
    pub contents: Contents,
    /// The part that the keys of its jobs share.
    mark: String,
}

impl Opened {
    /// Returns the key of the picture's `n`th job: the same file gives the same keys, whoever asks and however often.
    pub fn key(&self, n: u32) -> String {
        format!("animd-watch:{}:{n}", self.mark)
    }
}

/// Opens and reads a complete picture. `None` if it has been replaced or is gone. `sidecars` is the result of
/// [`sidecars`].
///
/// # Errors
/// [`Error::Refused`] if it can never be read; [`Error::File`] if perhaps later.
pub fn open(ready: &Ready, sidecars: &Contents) -> Result<Option<Opened>> {
    let (mut file, meta) = match root::open_regular(&ready.root, &ready.path) {
        Ok(open) => open,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
            return Err(Error::refused(ErrorCode::File, format!("the picture cannot be read: {e}")));
        }
        Err(e) => return Err(Error::file("open", &ready.path)(e)),
    };
    if Identity::of(&meta) != ready.identity {
        return Ok(None);
    }
    // Reads at most one byte more than the service accepts, which then refuses the file.
    let most = animd_common::picture::MAX_BYTES + 1;
    let contents =
        files::hash((&mut file).take(most), |_| Ok(())).map_err(Error::file("read", &ready.path))?;
    let mut mark = Sha256::new();
    // The device is left out: its number may change when the machine restarts.
    let Identity { ino, mtime_ns, .. } = ready.identity;
    if mounts::renumbers(&ready.path).unwrap_or(false) {
        mark.update(ready.path.as_os_str().as_bytes());
    } else {
        mark.update(ino.to_le_bytes());
    }
    for part in [&mtime_ns.to_le_bytes()[..], &contents, sidecars] {
        mark.update(part);
    }
    Ok(Some(Opened { file, contents, mark: hex(&mark.finalize()) }))
}

/// Returns the hash of all of a picture's sidecars together.
pub fn sidecars(picture: &Ready) -> Contents {
    let found = sidecar::beside(&picture.root, &picture.path);
    let read = |path: &Path| {
        let is_last = path.file_name().and_then(names::of_last).is_some();
        let most = if is_last { animd_common::picture::MAX_BYTES } else { sidecar::MAX_BYTES };
        root::read_small(&picture.root, path, most).ok()
    };
    let mut all = Sha256::new();
    let mut add = |bytes: Option<Vec<u8>>| {
        all.update(bytes.as_ref().map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        all.update(bytes.unwrap_or_default());
    };
    // The first two are always there, so that a picture with these sidecars or none has the keys that earlier versions gave.
    let first = ["toml", "txt"].map(|ending| {
        let plain = picture.path.with_extension(ending);
        let is_plain = |path: &&PathBuf| path.as_os_str().eq_ignore_ascii_case(&plain);
        found.iter().find(is_plain)
    });
    for path in first {
        add(path.and_then(|path| read(path)));
    }
    for path in found.iter().filter(|path| !first.contains(&Some(path))) {
        add(Some(path.file_name().unwrap_or_default().as_bytes().to_vec()));
        add(read(path));
    }
    all.finalize().into()
}

/// Returns whether the picture is no longer at its place.
pub fn is_gone(ready: &Ready) -> bool {
    changed_us(ready).is_none()
}

/// Returns when the picture was last moved or changed, in microseconds since the epoch; `None` if it is gone or
/// another one.
pub fn changed_us(ready: &Ready) -> Option<i64> {
    let meta = root::metadata(&ready.root, &ready.path).ok()?;
    (Identity::of(&meta) == ready.identity).then(|| files::changed_us(&meta))
}

/// Copies a video into the outbox: under another name first, synced, and then under a name that nothing had before. A
/// video that is there already, from before a crash, is not written twice.
pub fn keep(mut video: File, outbox: &Path, picture: &Ready, seed: u64, uuid: &str) -> Result<PathBuf> {
    fs::create_dir_all(outbox).map_err(Error::file("create", outbox))?;
    let part = outbox.join(format!(".animd-{uuid}-0.part"));
    // Removes what an earlier run left.
    _ = fs::remove_file(&part);
    let written = copy(&mut video, &part).map_err(Error::file("write", &part));
    let kept = written.and_then(|sha256| {
        let name = picture.path.file_name().unwrap_or_default();
        for n in 1..u32::MAX {
            let path = outbox.join(output_name(name, seed, n));
            match rename_new(&part, &path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if same(&path, &part, &sha256).map_err(Error::file("read", &path))? {
                        _ = fs::remove_file(&part);
                        return Ok(path);
                    }
                }
                Err(e) => return Err(Error::file("create", &path)(e)),
            }
        }
        Err(Error::refused(ErrorCode::Output, "the outbox has no free name"))
    });
    if kept.is_err() {
        _ = fs::remove_file(&part);
    }
    sync_or_warn(outbox);
    kept
}

fn copy(from: &mut File, part: &Path) -> io::Result<[u8; 32]> {
    let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(part)?;
    let sha256 = files::hash(from, |bytes| to.write_all(bytes))?;
    to.sync_all()?;
    Ok(sha256)
}

/// Returns whether a file has the contents of the unfinished one.
fn same(path: &Path, part: &Path, sha256: &[u8; 32]) -> io::Result<bool> {
    let length = fs::symlink_metadata(part)?.len();
    match files::open_regular(path) {
        Ok((mut file, meta)) => Ok(meta.len() == length && files::hash(&mut file, |_| Ok(()))? == *sha256),
        // A folder, a link, or another user's file: the video needs another name.
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use animd_common::watch::root::Root;

    fn ready(path: PathBuf) -> Result<Ready> {
        let meta = fs::metadata(&path).map_err(Error::file("read", &path))?;
        let root = Root::alone(path.parent().unwrap_or(Path::new("/")));
        Ok(Ready { identity: Identity::of(&meta), owner: 0, below: PathBuf::new(), root, path, early: false })
    }

    #[test]
    fn a_video_is_written_once_and_replaces_nothing() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| fs::write(at(name), text).map_err(Error::file("write", name));
        write("photo.png", "picture")?;
        write("video", "video")?;
        let picture = ready(at("photo.png"))?;
        let outbox = at("out");
        let keep = || {
            let video = File::open(at("video")).map_err(Error::file("open", "video"))?;
            keep(video, &outbox, &picture, 7, "u")
        };
        assert_eq!(keep()?, outbox.join("photo-7.mp4"));
        // As after a crash before the picture was moved.
        assert_eq!(keep()?, outbox.join("photo-7.mp4"));
        write("video", "other")?;
        assert_eq!(keep()?, outbox.join("photo-7-2.mp4"));
        assert_eq!(fs::read_dir(&outbox).map(Iterator::count).ok(), Some(2));
        Ok(())
    }

    #[test]
    fn keys_are_of_the_file_and_its_contents() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let path = dir.path().join("photo.png");
        fs::write(&path, "picture").map_err(Error::file("write", &path))?;
        let first = ready(path.clone())?;
        let key = |ready: &Ready| Ok::<_, Error>(open(ready, &sidecars(ready))?.map(|opened| opened.key(0)));
        assert_eq!(key(&first)?, key(&first)?);
        let moved = dir.path().join("moved.png");
        fs::rename(&path, &moved).map_err(Error::file("rename", &path))?;
        assert_eq!(key(&first)?, None);
        assert!(key(&ready(moved.clone())?)?.is_some());
        fs::copy(&moved, &path).map_err(Error::file("copy", &path))?;
        assert!(key(&ready(path)?)? != key(&ready(moved.clone())?)?);
        // With another sidecar it is another wish; a file system may be mounted under another number.
        let mut moved = ready(moved)?;
        let before = key(&moved)?;
        moved.identity.dev += 1;
        assert_eq!(key(&moved)?, None, "it is still the file that was seen");
        moved.identity.dev -= 1;
        let sidecar = dir.path().join("moved.txt");
        fs::write(&sidecar, "a wave").map_err(Error::file("write", &sidecar))?;
        assert!(key(&moved)? != before);
        Ok(())
    }
}
