//! `~` in paths that a person writes, as a shell expands it.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Returns a path with `~` or `~NAME` at its beginning replaced by a home folder; `home` is the writer's own, where it
/// is known. A path that begins with neither stays as it is.
///
/// # Errors
/// Returns the end of a sentence about the path where there is no such home.
pub fn expand(path: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    let mut parts = path.components();
    let name = match parts.next() {
        Some(Component::Normal(first)) => first.to_str().and_then(|first| first.strip_prefix('~')),
        _ => None,
    };
    let Some(name) = name else { return Ok(path.to_owned()) };
    let found = if name.is_empty() { home.map(Path::to_owned) } else { of_user(name) };
    match (found, name) {
        (Some(home), _) => Ok(home.join(parts.as_path())),
        (None, "") => {
            Err("`~` is nobody's home here; write the whole path, or `~NAME` with a user's name".into())
        }
        (None, name) => Err(format!("there is no user `{name}`; write the whole path")),
    }
}

/// Returns a path of the command line with `~` expanded, for words that the shell has left as they are, such as
/// `--output=~/cup.mp4`. A path that cannot be expanded stays as it is, since a file may be called so.
pub fn typed(path: PathBuf) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    expand(&path, home.as_deref()).unwrap_or(path)
}

/// Returns the home folder of a user of this machine.
fn of_user(name: &str) -> Option<PathBuf> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = users.lines().map(|line| line.split(':'));
    let mut user = fields.find(|fields| fields.clone().next() == Some(name))?;
    user.nth(5).filter(|home| home.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_as_a_shell_finds_them() {
        let of = |path: &str, home: Option<&str>| expand(Path::new(path), home.map(Path::new));
        let ann = Some("/home/ann");
        assert_eq!(of("~/models/wan", ann), Ok("/home/ann/models/wan".into()));
        assert_eq!(of("~", ann), Ok("/home/ann".into()));
        assert_eq!(of("~root/x", None), Ok("/root/x".into()));
        for same in ["/srv/~/x", "models/~", "a~b/c", ""] {
            assert_eq!(of(same, ann), Ok(same.into()));
        }
        assert!(of("~/x", None).is_err_and(|why| why.contains("write the whole path")));
        assert!(of("~no-such-user/x", ann).is_err_and(|why| why.contains("`no-such-user`")));
    }
}
