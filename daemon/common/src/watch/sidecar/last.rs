//! The picture that a video ends at: the second one of a pair (`photo.jpg` and `photo.last.jpg`), or one that a sidecar names.
//!
//! It lies in the folder of the first picture, and counts from those users only whose sidecars count.

use std::fs::File;
use std::io;
use std::path::Path;

use animd_protocol::ErrorCode;
use animd_protocol::request::Settings;

use super::find::{self, Deciders, Kind, Sidecar};
use crate::files::show;
use crate::watch::root::{self, Dir, Root};
use crate::{Error, Result};

/// Returns the name of the second picture of the pair that `picture` is the first one of, if there is one; `said` is what the
/// sidecars say.
///
/// # Errors
/// [`Error::Refused`] if there are two, or if `said` names another one or asks for a loop.
pub(super) fn beside(root: &Root, picture: &Path, said: &Settings) -> Result<Option<String>> {
    let Ok(dir) = Dir::of(root, picture) else { return Ok(None) };
    let name = picture.file_name().unwrap_or_default();
    let mut found = find::found(&dir, name, find::owner(&dir, name));
    found.retain(|sidecar| sidecar.kind == Kind::Last);
    let exact = found.iter().any(|sidecar| sidecar.exact);
    found.retain(|sidecar| sidecar.exact == exact);
    let refuse = |text: String| Err(Error::refused(ErrorCode::InvalidSetting, text));
    match &found[..] {
        [] => Ok(None),
        [Sidecar { name, .. }] => {
            let shown = show(name);
            // The request carries the name as text; a name that is none can still be a pair.
            match (said.last.as_deref().filter(|said| !said.is_empty()), said.looped) {
                (Some(other), _) if *other != *name.to_string_lossy() => {
                    refuse(format!("both `{shown}` and `last` (`{other}`) give the last picture; keep one"))
                }
                (_, Some(true)) => refuse(format!(
                    "`loop` ends the video at its first picture, and `{shown}` is there to end it; keep one"
                )),
                _ => Ok(Some(name.to_string_lossy().into_owned())),
            }
        }
        [one, other, ..] => refuse(format!(
            "both `{}` and `{}` give the last picture; keep one",
            show(&one.name),
            show(&other.name)
        )),
    }
}

/// Opens the picture called `last` in the folder of `picture`, which a request names as the end of its video. Returns `None`
/// for no name.
///
/// # Errors
/// [`Error::Refused`] if it is another user's, or no file that can be read; [`Error::File`] while it is not there: it may come.
pub fn open_last(root: &Root, picture: &Path, last: &str) -> Result<Option<File>> {
    if last.is_empty() {
        return Ok(None);
    }
    let path = picture.with_file_name(last);
    let refuse = |why: String| {
        Error::refused(ErrorCode::InvalidImage, format!("the last picture `{}` {why}", show(last)))
    };
    let opened = Dir::of(root, picture).and_then(|dir| {
        let owner = find::owner(&dir, picture.file_name().unwrap_or_default());
        Deciders::new(owner, &dir)?.open(&dir, last.as_ref())
    });
    match opened {
        Ok(Some(file)) => Ok(Some(file)),
        Ok(None) => Err(refuse("belongs to another user; copy it, so that it is yours".into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = format!("`last` names `{}`, which is not there so far", show(last));
            Err(Error::file("find", &path)(io::Error::other(text)))
        }
        Err(e) if root::is_swapped(&e) => Err(Error::file("read", &path)(e)),
        Err(e) => Err(refuse(format!("cannot be read: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::settings;
    use super::*;

    #[test]
    fn a_pair_or_a_name_gives_the_last_picture() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let (root, picture) = (Root::alone(dir.path()), dir.path().join("a.png"));
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).map_err(Error::file("write", name))
        };
        let last = || settings(&root, &picture).map(|settings| settings.last);
        let error = || settings(&root, &picture).expect_err("refused").to_string();
        write("a.png", "first")?;
        assert_eq!(last()?, None);
        write("a.last.JPG", "last")?;
        assert_eq!(last()?.as_deref(), Some("a.last.JPG"));
        assert!(open_last(&root, &picture, "a.last.JPG")?.is_some());
        assert_eq!(find::beside(&root, &picture), [dir.path().join("a.last.JPG")]);
        // The whole name comes first.
        write("a.png.last.webp", "mine")?;
        assert_eq!(last()?.as_deref(), Some("a.png.last.webp"));
        write("a.png.last.gif", "two")?;
        assert_eq!(error(), "both `a.png.last.webp` and `a.png.last.gif` give the last picture; keep one");
        for name in ["a.png.last.webp", "a.png.last.gif"] {
            fs::remove_file(dir.path().join(name)).map_err(Error::file("remove", name))?;
        }
        write("a.toml", "last = \"b.png\"")?;
        assert_eq!(error(), "both `a.last.JPG` and `last` (`b.png`) give the last picture; keep one");
        write("a.toml", "loop = true")?;
        assert!(error().contains("`loop` ends the video at its first picture"));
        fs::remove_file(dir.path().join("a.last.JPG")).map_err(Error::file("remove", "a.last.JPG"))?;
        let read = settings(&root, &picture)?;
        assert_eq!((read.looped, read.last.as_deref()), (Some(true), Some("")));
        write("a.toml", "last = \"b.png\"")?;
        // A folder's loop does not conflict with a picture's own end.
        write("folder.toml", "loop = true")?;
        let read = settings(&root, &picture)?;
        assert_eq!((read.looped, read.last.as_deref()), (Some(false), Some("b.png")));
        let later = open_last(&root, &picture, "b.png").expect_err("it is not there");
        assert!(matches!(&later, Error::File { .. }), "{later}");
        write("b.png", "last")?;
        assert!(open_last(&root, &picture, "b.png")?.is_some());
        write("a.toml", "last = \"../b.png\"")?;
        assert!(error().contains("without `/`"), "{}", error());
        Ok(())
    }

    #[test]
    fn only_those_who_may_decide_give_the_last_picture() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).map_err(Error::file("create", &folder))?;
        let (root, picture) = (Root::alone(dir.path()), folder.join("a.png"));
        let own = |path: &Path, uid| {
            std::os::unix::fs::chown(path, Some(uid), None).map_err(Error::file("own", path))
        };
        for name in ["a.png", "a.last.png", "b.png"] {
            fs::write(folder.join(name), name).map_err(Error::file("write", name))?;
        }
        own(&folder, 3)?;
        own(&picture, 4)?;
        for (uid, counts) in [(0, true), (3, true), (4, true), (5, false)] {
            own(&folder.join("a.last.png"), uid)?;
            own(&folder.join("b.png"), uid)?;
            assert_eq!(settings(&root, &picture)?.last.is_some(), counts, "user {uid}");
            assert_eq!(open_last(&root, &picture, "b.png").is_ok(), counts, "user {uid}");
        }
        Ok(())
    }
}
