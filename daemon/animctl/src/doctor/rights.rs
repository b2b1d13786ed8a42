//! Whether a user may reach a file, and which folder on the way refuses.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use animd_common::files::show;
use animd_common::users;

/// The right to read.
pub const READ: u32 = 4;
/// The right to write.
pub const WRITE: u32 = 2;
/// The right to go through a folder.
pub const SEARCH: u32 = 1;

/// A user as far as file rights are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The numbers of all groups.
    pub groups: Vec<u32>,
}

impl User {
    /// Returns the user of this name in the texts of `/etc/passwd` and `/etc/group`, where system users are.
    pub fn named(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let fields = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&name)).then_some(fields)
        })?;
        let mut groups = vec![fields.get(3)?.parse().ok()?];
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [_, _, gid, members, ..] = fields[..]
                && members.split(',').any(|member| member == name)
                && let Ok(gid) = gid.parse()
            {
                groups.push(gid);
            }
        }
        Some(Self { name: name.to_owned(), uid: fields.get(2)?.parse().ok()?, groups })
    }

    /// Returns the user who runs this program.
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let mut groups: Vec<u32> =
            rustix::process::getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect();
        groups.push(rustix::process::getegid().as_raw());
        Self { name: users::known(uid).unwrap_or_else(|| uid.to_string()), uid, groups }
    }

    /// Returns whether the mode bits of a file of this owner and group give all of `wanted`. Access control lists are
    /// ignored.
    fn may(&self, owner: u32, group: u32, mode: u32, wanted: u32) -> bool {
        let bits = match () {
            () if self.uid == 0 => return true,
            () if self.uid == owner => mode >> 6,
            () if self.groups.contains(&group) => mode >> 3,
            () => mode,
        };
        bits & wanted == wanted
    }
}

/// Returns why `user` lacks some of the `wanted` rights to `path`: the first folder on the way that refuses, or the
/// file itself.
pub fn refusal(path: &Path, user: &User, wanted: u32) -> Option<String> {
    refusal_from(Path::new("/"), path, user, wanted)
}

/// Returns what [`refusal`] returns, without checking the folders above `start`, for what systemd mounts at another
/// place.
pub fn refusal_from(start: &Path, path: &Path, user: &User, wanted: u32) -> Option<String> {
    let mut steps: Vec<&Path> = path.ancestors().filter(|step| step.starts_with(start)).collect();
    steps.reverse();
    for step in steps {
        let meta = match fs::metadata(step) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Some(format!("there is no `{}`", show(step)));
            }
            Err(e) => return Some(format!("`{}` cannot be looked at: {e}", show(step))),
        };
        let last = step == path;
        let wanted = if last { wanted | if meta.is_dir() { SEARCH } else { 0 } } else { SEARCH };
        if !user.may(meta.uid(), meta.gid(), meta.mode(), wanted) {
            let what = match () {
                () if !last => "go through",
                () if wanted & WRITE != 0 => "write to",
                () => "read",
            };
            return Some(format!(
                "user `{}` may not {what} `{}` (mode {:04o}, owner {})",
                user.name,
                show(step),
                meta.mode() & 0o7777,
                meta.uid()
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn users_come_from_their_files() {
        let passwd = "root:x:0:0::/root:/bin/sh\nanimd:x:998:997::/var/lib/animd:/bin/false\n";
        let group = "render:x:105:animd,ann\nvideo:x:44:ann\n";
        let user = User::named("animd", passwd, group);
        assert_eq!(user, Some(User { name: "animd".into(), uid: 998, groups: vec![997, 105] }));
        assert_eq!(User::named("nobody", passwd, group), None);
    }

    #[test]
    fn the_first_folder_that_refuses_is_named() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let (closed, inner) = (dir.path().join("closed"), dir.path().join("closed/inner"));
        fs::create_dir_all(&inner)?;
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700))?;
        // A user who owns nothing here.
        let user = User { name: "ann".into(), uid: u32::MAX - 1, groups: vec![] };
        let why = refusal(&inner, &user, READ).expect("refused");
        assert!(why.contains("may not go through") && why.contains("closed` (mode 0700"), "{why}");
        assert_eq!(refusal_from(&inner, &inner, &user, READ), None);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755))?;
        assert_eq!(refusal(&inner, &user, READ), None);
        let why = refusal(&inner, &user, READ | WRITE).expect("refused");
        assert!(why.contains("may not write to"), "{why}");
        assert!(refusal(&inner.join("none"), &user, READ).expect("refused").starts_with("there is no"));
        Ok(())
    }
}
