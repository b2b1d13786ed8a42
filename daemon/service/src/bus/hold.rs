//! Holds that callers of the bus take. A hold ends when its descriptor is closed, and so with the program that took it.

use std::io::ErrorKind;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::net::unix::pipe::Receiver;
use zbus::OwnedFd;

use super::error::BusError;
use crate::holds::{Hold, Holds, What};

/// The most holds of one user.
const PER_USER: usize = 16;
/// The longest name and reason, in characters.
const MAX_TEXT: usize = 100;

/// Returns a hold as a caller asks for it.
///
/// # Errors
/// [`BusError::InvalidOption`] for another `what`, or without a name and a reason.
pub fn checked(what: &str, who: &str, why: &str, uid: u32) -> Result<Hold, BusError> {
    let what = What::from_name(what).ok_or_else(|| {
        BusError::InvalidOption("`what` is neither `warm` (keep the model) nor `pause` (start no job)".into())
    })?;
    let text = |name: &str, given: &str| {
        let line: String =
            given.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
        match line.trim() {
            "" => Err(BusError::InvalidOption(format!(
                "`{name}` is empty; say it in a word, others will want to know"
            ))),
            line => Ok(line.to_owned()),
        }
    };
    Ok(Hold { what, uid, who: text("who", who)?, why: text("why", why)? })
}

/// Takes the hold and returns the descriptor that keeps it.
///
/// # Errors
/// [`BusError::Busy`] when this user has [`PER_USER`] holds already.
pub fn hold(holds: &Holds, hold: Hold) -> Result<OwnedFd, BusError> {
    let own = holds.list().iter().filter(|other| other.uid == hold.uid).count();
    if own >= PER_USER {
        return Err(BusError::Busy(format!("you have {own} holds, which is the limit; close one first")));
    }
    let internal = |e: std::io::Error| BusError::Internal(format!("a hold cannot be made: {e}"));
    let (ours, theirs) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|e| internal(e.into()))?;
    let ours = Receiver::from_owned_fd(ours).map_err(internal)?;
    let (number, holds) = (holds.take(hold), holds.clone());
    tokio::spawn(async move {
        until_closed(ours).await;
        holds.release(number);
    });
    Ok(theirs.into())
}

/// Waits until the other end of the pipe is closed. What somebody writes into the pipe is discarded.
async fn until_closed(ours: Receiver) {
    let mut ignored = [0; 4096];
    while let Ok(ready) = ours.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        match ours.try_read(&mut ignored) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd as StdOwnedFd;

    use super::*;

    fn pause(uid: u32) -> Hold {
        Hold { what: What::Pause, uid, who: "a".into(), why: "b".into() }
    }

    #[tokio::test]
    async fn a_hold_ends_with_its_descriptor() -> Result<(), Box<dyn std::error::Error>> {
        let holds = Holds::default();
        let mut changes = holds.changes();
        let mut kept = std::fs::File::from(StdOwnedFd::from(hold(&holds, pause(1))?));
        let second = hold(&holds, pause(1))?;
        kept.write_all(b"what is written does not matter")?;
        drop(second);
        changes.borrow_and_update();
        while holds.list().len() > 1 {
            changes.changed().await?;
        }
        assert!(holds.any(What::Pause));
        drop(kept);
        while holds.any(What::Pause) {
            changes.changed().await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn one_user_has_so_many_holds_and_no_more() -> Result<(), BusError> {
        let holds = Holds::default();
        let _kept = (0..PER_USER).map(|_| hold(&holds, pause(1))).collect::<Result<Vec<_>, _>>()?;
        assert!(matches!(hold(&holds, pause(1)), Err(BusError::Busy(_))));
        hold(&holds, pause(2)).map(|_| ())
    }

    #[test]
    fn a_hold_says_who_and_why_on_one_line() -> Result<(), BusError> {
        assert!(checked("cold", "a", "b", 0).is_err_and(|e| e.to_string().contains("warm")));
        assert!(checked("warm", " ", "b", 0).is_err());
        assert_eq!(checked("warm", "a\nb", "c", 0)?.who, "a b");
        Ok(())
    }
}
