//! Whether this program may use a folder, and if not, which folder on the way there refuses.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use crate::files::show;

/// Says in a sentence why this program cannot watch the folder, if it cannot: it must be able to pass every folder above,
/// and to read and write in the folder itself.
pub fn refusal(dir: &Path) -> Option<String> {
    refusal_by(dir, |path, access| {
        rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS).map_err(io::Error::from)
    })
}

fn refusal_by(dir: &Path, may: impl Fn(&Path, Access) -> io::Result<()>) -> Option<String> {
    let mut way: Vec<&Path> = dir.ancestors().skip(1).collect();
    way.reverse();
    for above in way {
        if let Err(e) = may(above, Access::EXEC_OK) {
            return Some(format!(
                "the folder `{}` lies in `{}`, which {}",
                show(dir),
                show(above),
                why(above, &e, "passed", "x")
            ));
        }
    }
    for (access, verb, right) in [
        (Access::EXEC_OK, "passed", "x"),
        (Access::READ_OK, "read", "rx"),
        (Access::WRITE_OK, "written to", "rwx"),
    ] {
        if let Err(e) = may(dir, access) {
            return Some(format!("the folder `{}` {}", show(dir), why(dir, &e, verb, right)));
        }
    }
    None
}

fn why(dir: &Path, error: &io::Error, verb: &str, right: &str) -> String {
    let us = rustix::process::geteuid().as_raw();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS) => {
            let state = fs::metadata(dir).map_or(String::new(), |meta| {
                format!(" (mode {:04o}, user {}, group {})", meta.mode() & 0o7777, meta.uid(), meta.gid())
            });
            format!(
                "may not be {verb} by user {us}{state}; allow it: `setfacl -m u:{us}:{right} '{}'`, or have animd-watch watch it for the user whose folder it is",
                show(dir)
            )
        }
        Some(Errno::ROFS) => format!(
            "is read-only for the service; if its unit's sandbox does that, allow it with `systemctl edit animd` and \
             `ReadWritePaths={}`, or have animd-watch watch it for the user whose folder it is",
            show(dir)
        ),
        Some(Errno::NOENT) => "does not exist, or is hidden from the service by its unit's sandbox; make it, or let animd-watch \
             watch it"
            .to_owned(),
        Some(Errno::NOTDIR) => "is no folder".to_owned(),
        _ => format!("cannot be {verb}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_that_refuses_is_named() {
        let deny = |which: &'static str, access, errno: Errno| {
            refusal_by(Path::new("/home/anna/Pictures"), move |path, asked| {
                if path == Path::new(which) && asked == access { Err(errno.into()) } else { Ok(()) }
            })
        };
        let text = deny("/home/anna", Access::EXEC_OK, Errno::ACCESS).unwrap_or_default();
        assert!(text.contains("lies in `/home/anna`, which may not be passed by user"), "{text}");
        let text = deny("/home/anna/Pictures", Access::WRITE_OK, Errno::ACCESS).unwrap_or_default();
        assert!(text.contains("`/home/anna/Pictures` may not be written to by user"), "{text}");
        let text = deny("/home/anna/Pictures", Access::WRITE_OK, Errno::ROFS).unwrap_or_default();
        assert!(text.contains("ReadWritePaths=/home/anna/Pictures"), "{text}");
        assert_eq!(deny("/elsewhere", Access::EXEC_OK, Errno::ACCESS), None);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let text = refusal(Path::new("/nowhere/at/all")).unwrap_or_default();
        assert!(text.contains("lies in `/nowhere`, which does not exist"), "{text}");
    }
}
