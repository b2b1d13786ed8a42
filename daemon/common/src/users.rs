//! The users of this machine by name.

use std::fs;
use std::path::PathBuf;

/// The file that has them.
const PASSWD: &str = "/etc/passwd";

/// Returns a user's name, or `user 1234` for one that the machine's file does not have.
pub fn name(uid: u32) -> String {
    known(uid).unwrap_or_else(|| format!("user {uid}"))
}

/// Returns a user's name, if the machine's file has the user.
pub fn known(uid: u32) -> Option<String> {
    name_in(&fs::read_to_string(PASSWD).ok()?, uid)
}

/// Returns the number of the user with this name, if the machine's file has the user.
pub fn uid(name: &str) -> Option<u32> {
    uid_in(&fs::read_to_string(PASSWD).ok()?, name)
}

/// Returns a user's home, if the machine's file has the user.
pub fn home(uid: u32) -> Option<PathBuf> {
    home_in(&fs::read_to_string(PASSWD).ok()?, uid)
}

/// Returns the name in a text such as `/etc/passwd`.
pub fn name_in(passwd: &str, uid: u32) -> Option<String> {
    entries(passwd).find(|(_, known)| *known == uid).map(|(name, _)| name.to_owned())
}

/// Returns the number in a text such as `/etc/passwd`.
pub fn uid_in(passwd: &str, name: &str) -> Option<u32> {
    entries(passwd).find(|(known, _)| *known == name).map(|(_, uid)| uid)
}

/// Returns the home in a text such as `/etc/passwd`.
pub fn home_in(passwd: &str, uid: u32) -> Option<PathBuf> {
    let line = passwd.lines().find(|line| line.split(':').nth(2).and_then(|id| id.parse().ok()) == Some(uid));
    line?.split(':').nth(5).map(PathBuf::from).filter(|home| home.is_absolute())
}

fn entries(passwd: &str) -> impl Iterator<Item = (&str, u32)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_both_ways() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(uid_in(passwd, "root"), Some(0));
        assert_eq!((name_in(passwd, 7), uid_in(passwd, "bob")), (None, None));
        assert_eq!(home_in(passwd, 1000), Some(PathBuf::from("/home/ann")));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(name(0), "root");
        assert_eq!(name(u32::MAX - 1), "user 4294967294");
    }
}
