//! Finds out who calls, and what the caller may do.
//!
//! Root and the service's own user may do everything. On a session bus every other user has access to their own jobs
//! only; on the system bus polkit decides, with a password prompt only where the caller's message allows one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::proxy::CacheProperties;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::error::BusError;
use super::gate::{Gate, Leaving};

/// An action that polkit decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Other users' jobs: describe, cancel, fetch, retry, forget, put in another order.
    ManageOthers,
    /// A priority above 0.
    RaisePriority,
    /// Adding and removing watched folders, pausing the queue, reloading the configuration.
    Configure,
    /// Unloading the model now, and holding the queue from a program.
    Unload,
}

impl Action {
    /// Returns the action's name in polkit.
    pub fn id(self) -> &'static str {
        match self {
            Self::ManageOthers => "org.animd.animd1.manage-others",
            Self::RaisePriority => "org.animd.animd1.raise-priority",
            Self::Configure => "org.animd.animd1.configure",
            Self::Unload => "org.animd.animd1.unload",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::ManageOthers => "managing other users' jobs",
            Self::RaisePriority => "a priority above 0",
            Self::Configure => "changing what animd does",
            Self::Unload => "unloading the model or holding the queue",
        }
    }
}

/// The most questions to polkit that wait for an answer on behalf of one user.
const MOST_ASKED: usize = 4;
/// How long polkit may take to answer: somebody types a password.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long polkit may take to hear that nobody waits for an answer any more.
const TAKING_BACK: Duration = Duration::from_secs(5);

/// Tells who calls, and asks polkit what they may do.
pub struct Rights {
    system: bool,
    own_uid: u32,
    gate: Arc<Gate>,
    asking: Asking,
}

/// How many questions each user has with polkit. One user's questions must not keep polkit from the others'.
#[derive(Clone, Default)]
struct Asking(Arc<Mutex<HashMap<u32, usize>>>);

impl Asking {
    /// Counts a question until the returned value is dropped; `None` if the user has as many as one may have.
    fn begin(&self, uid: u32) -> Option<Asked> {
        let mut asking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asking.entry(uid).or_default();
        if *count >= MOST_ASKED {
            return None;
        }
        *count += 1;
        Some(Asked { uid, asking: self.clone() })
    }
}

/// A question to polkit.
struct Asked {
    uid: u32,
    asking: Asking,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut asking = self.asking.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = asking.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                asking.remove(&self.uid);
            }
        }
    }
}

impl Rights {
    /// Returns the rights of a service on the system bus if `system`, and else on a session bus.
    pub fn new(system: bool, gate: Arc<Gate>) -> Self {
        Self { system, own_uid: rustix::process::geteuid().as_raw(), gate, asking: Asking::default() }
    }

    /// Returns whether `uid` may do everything: root, and the service's own user.
    pub fn trusted(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    /// Returns the caller's uid, as the bus knows it.
    ///
    /// # Errors
    /// [`BusError::NotAuthorized`] for a caller that has gone away.
    pub fn uid(&self, header: &Header<'_>) -> Result<u32, BusError> {
        let left = || BusError::NotAuthorized("the caller has left the bus".into());
        self.gate.uid(sender(header)?).ok_or_else(left)
    }

    /// Returns a value that tells when the caller leaves.
    ///
    /// # Errors
    /// [`BusError::NotAuthorized`] for a call without a sender.
    pub fn leaving(&self, header: &Header<'_>) -> Result<Leaving, BusError> {
        Ok(self.gate.leaving(sender(header)?))
    }

    /// Returns the caller's uid, if the caller is `owner` or may manage other users' jobs.
    pub async fn owner(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        owner: u32,
    ) -> Result<u32, BusError> {
        let uid = self.uid(header)?;
        if uid != owner {
            self.check(connection, header, Action::ManageOthers).await?;
        }
        Ok(uid)
    }

    /// Returns the caller's uid, if the caller may do this.
    ///
    /// # Errors
    /// [`BusError::NotAuthorized`] says what would help.
    pub async fn check(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
    ) -> Result<u32, BusError> {
        let uid = self.uid(header)?;
        if self.trusted(uid) {
            return Ok(uid);
        }
        let words = action.words();
        let refuse = |why: String| Err(BusError::NotAuthorized(why));
        if !self.system {
            return refuse(format!(
                "this animd is user {}'s own: {words} is for them and root",
                self.own_uid
            ));
        }
        let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let flags = match interactive {
            true => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
            false => CheckAuthorizationFlags::empty(),
        };
        let Some(_asked) = self.asking.begin(uid) else {
            return Err(BusError::Busy(format!(
                "polkit is being asked {MOST_ASKED} questions for you already; answer them, or call again later"
            )));
        };
        let question = uuid::Uuid::new_v4().to_string();
        let answer = async {
            let authority = authority(connection).await?;
            let subject =
                Subject::new_for_message_header(header).map_err(|e| zbus::Error::Failure(e.to_string()))?;
            authority.check_authorization(&subject, action.id(), &HashMap::new(), flags, &question).await
        };
        let mut leaving = self.leaving(header)?;
        let answer = tokio::select! {
            answer = timeout(PATIENCE, answer) => answer.ok(),
            () = leaving.left() => None,
        };
        let Some(answer) = answer else {
            tokio::spawn(timeout(TAKING_BACK, take_back(connection.clone(), question)));
            return refuse(format!(
                "polkit has not said within {} seconds whether you may ({}); call again, and answer its question",
                PATIENCE.as_secs(),
                action.id()
            ));
        };
        match answer {
            Ok(answer) if answer.is_authorized => Ok(uid),
            Ok(answer) if answer.is_challenge && !interactive => refuse(format!(
                "{words} asks for a password ({}), and the call does not allow that: run it with sudo, or let the call allow \
                 interactive authorization",
                action.id()
            )),
            Ok(answer) if answer.is_challenge => refuse(format!(
                "{words} asks for a password ({}), and nobody is there to ask for it: run it with sudo, or in a session with \
                 a polkit agent",
                action.id()
            )),
            Ok(_) => refuse(format!("polkit does not allow you {words} ({}); ask root", action.id())),
            Err(e) => {
                tracing::debug!("polkit does not answer: {e}");
                refuse(format!(
                    "{words} is for root: polkit, which could allow it to others, does not answer ({e}); run it with sudo, or \
                     install polkitd"
                ))
            }
        }
    }
}

async fn authority(connection: &Connection) -> zbus::Result<AuthorityProxy<'_>> {
    AuthorityProxy::builder(connection).cache_properties(CacheProperties::No).build().await
}

/// Tells polkit that nobody waits for the answer to a question any more, so that it takes a dialog off the screen.
async fn take_back(connection: Connection, question: String) {
    let taken_back = async { authority(&connection).await?.cancel_check_authorization(&question).await };
    if let Err(e) = taken_back.await {
        tracing::debug!("polkit keeps a question that nobody waits for: {e}");
    }
}

fn sender<'h>(header: &'h Header<'_>) -> Result<&'h UniqueName<'h>, BusError> {
    header.sender().ok_or_else(|| BusError::NotAuthorized("the call has no sender".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_users_questions_keep_nobody_elses_from_polkit() {
        let asking = Asking::default();
        let mut asked: Vec<_> = (0..MOST_ASKED).filter_map(|_| asking.begin(1)).collect();
        assert_eq!(asked.len(), MOST_ASKED);
        assert!(asking.begin(1).is_none());
        assert!(asking.begin(2).is_some());
        asked.pop();
        assert!(asking.begin(1).is_some(), "an answer makes room");
        asked.clear();
        assert!(asking.0.lock().is_ok_and(|asking| asking.is_empty()), "nothing is kept of who asks nothing");
    }
}
