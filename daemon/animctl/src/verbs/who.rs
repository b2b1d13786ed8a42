//! Users by name: whose a job is, and whose jobs are asked for.

use std::process::{Command, Stdio};

use animd_common::users;

/// Returns a user's name, or the number of one that the machine does not know.
pub fn name(uid: u64) -> String {
    let known = u32::try_from(uid)
        .ok()
        .and_then(|uid| users::known(uid).or_else(|| users::name_in(&getent(&uid.to_string())?, uid)));
    known.unwrap_or_else(|| uid.to_string())
}

/// Returns the number of a user who is given by name or by number.
pub fn uid(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let known = users::uid(text).or_else(|| users::uid_in(&getent(text)?, text));
    known.ok_or_else(|| "there is no such user; give a name or a number".into())
}

/// Asks the machine's other directories of users, such as LDAP.
fn getent(key: &str) -> Option<String> {
    let sensible = |c: char| c.is_alphanumeric() || "._-@\\".contains(c);
    if key.starts_with('-') || !key.chars().all(sensible) {
        return None;
    }
    let mut getent = Command::new("getent");
    let output = getent.args(["passwd", key]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    String::from_utf8(output.ok()?.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named() {
        assert_eq!((name(0).as_str(), uid("root"), uid("7")), ("root", Ok(0), Ok(7)));
        assert_eq!(name(4_000_000_123), "4000000123");
        assert!(uid("no such user").is_err());
    }
}
