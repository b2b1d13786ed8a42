//! The temporary path at which a video is written, and the rename to its final name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::{Error, Result};

/// The longest file name, in bytes, that Linux file systems take.
const MAX_NAME: usize = 255;

/// Returns a temporary, unique name beside `target`: `.NAME.UUID.part`. A long name is cut.
///
/// # Errors
/// `Output` if `target` names no file, or its name is too long.
pub fn part_path(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(Error::Output(format!("`{}` names no file to write", target.display())));
    };
    if name.len() > MAX_NAME {
        let (name, bytes) = (name.display(), name.len());
        return Err(Error::Output(format!(
            "the file name `{name}` has {bytes} bytes; {MAX_NAME} are the most"
        )));
    }
    let end = format!(".{}.part", uuid::Uuid::new_v4());
    let mut part = OsString::from(".");
    part.push(cut(name, MAX_NAME - part.len() - end.len()));
    part.push(end);
    Ok(target.with_file_name(part))
}

/// Returns at most `bytes` bytes from the start of a name, without splitting a character.
fn cut(name: &OsStr, bytes: usize) -> OsString {
    let name = name.as_bytes();
    if name.len() <= bytes {
        return OsString::from_vec(name.to_vec());
    }
    let inside = |at: &usize| name[*at] & 0b1100_0000 == 0b1000_0000;
    let end = (0..=bytes).rev().find(|at| !inside(at)).unwrap_or(bytes);
    OsString::from_vec(name[..end].to_vec())
}

/// Gives the finished file `part` the name `target` in the same folder, and syncs the folder. Never replaces a file.
///
/// # Errors
/// `Output` if `target` exists; `File` if the file system refuses. In both cases `part` still exists.
pub fn place(part: &Path, target: &Path) -> Result<()> {
    match rename_noreplace(part, target) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            return Err(Error::Output(format!(
                "`{}` exists already; move it away, or choose another name",
                target.display()
            )));
        }
        Err(e) => return Err(Error::file("rename the finished video to", target)(e.into())),
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems cannot sync folders, and do not need to.
        Err(e) if e.raw_os_error() != Some(Errno::INVAL.raw_os_error()) => {
            Err(Error::file("sync", folder)(e))
        }
        _ => Ok(()),
    }
}

/// Renames, or fails with `EXIST` if `target` exists.
fn rename_noreplace(part: &Path, target: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, part, CWD, target, RenameFlags::NOREPLACE) {
        // NFS and some other file systems do not support this.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_and_unlink(part, target),
        result => result,
    }
}

/// Renames where the file system has no rename that refuses to replace.
fn link_and_unlink(part: &Path, target: &Path) -> Result<(), Errno> {
    rustix::fs::link(part, target)?;
    rustix::fs::unlink(part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_part_lies_beside_its_target() -> Result<()> {
        let part = part_path(Path::new("/out/photo-42.mp4"))?;
        assert_eq!(part.parent(), Some(Path::new("/out")));
        let name = part.file_name().and_then(OsStr::to_str).expect("plain letters");
        let id = name.strip_prefix(".photo-42.mp4.").and_then(|rest| rest.strip_suffix(".part"));
        assert!(uuid::Uuid::parse_str(id.expect("the form of the name")).is_ok());
        assert_ne!(part_path(Path::new("a.mp4"))?, part_path(Path::new("a.mp4"))?);
        Ok(())
    }

    #[test]
    fn long_names_are_cut_between_characters() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in [
            format!("{}.mp4", "a".repeat(251)),
            format!("{}.mp4", "雾".repeat(83)),
            format!("x{}.mp4", "雾".repeat(83)),
        ] {
            let part = part_path(&folder.path().join(&name))?;
            let short = part.file_name().and_then(OsStr::to_str).expect("no character torn");
            assert!((253..=255).contains(&short.len()), "{}", short.len());
            fs::write(&part, "video").expect("a name that the file system takes");
            place(&part, &folder.path().join(&name))?;
        }
        assert!(part_path(Path::new(&"a".repeat(256))).is_err());
        assert!(part_path(Path::new("/")).is_err());
        assert!(part_path(Path::new("a/..")).is_err());
        Ok(())
    }

    #[test]
    fn nothing_is_replaced() {
        for move_file in [rename_noreplace, link_and_unlink] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (part, target) = (folder.path().join("part"), folder.path().join("target"));
            fs::write(&part, "new").expect("writable");
            fs::write(&target, "old").expect("writable");
            assert_eq!(move_file(&part, &target), Err(Errno::EXIST));
            assert_eq!(fs::read(&target).expect("readable"), b"old");
            assert_eq!(fs::read(&part).expect("readable"), b"new");
            fs::remove_file(&target).expect("there");
            assert_eq!(move_file(&part, &target), Ok(()));
            assert_eq!(fs::read(&target).expect("readable"), b"new");
            assert!(!part.exists());
        }
    }

    #[test]
    fn an_existing_target_is_a_sentence() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (part, target) = (folder.path().join("part"), folder.path().join("a.mp4"));
        fs::write(&part, "new").expect("writable");
        fs::write(&target, "old").expect("writable");
        let error = place(&part, &target).expect_err("a target that exists");
        assert_eq!(error.code().name(), "output");
        assert!(error.to_string().contains("a.mp4` exists already"), "{error}");
    }
}
