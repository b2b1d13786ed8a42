//! Finds out who calls, and what the caller may do.
//!
//! Root and the service's own user may do everything. On a session bus every other user has access to their own jobs
//! only; on the system bus polkit decides, with a password prompt only where the caller's message allows one.

use std::collections::HashMap;
use std::sync::Arc;

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

/// Tells who calls, and asks polkit what they may do.
pub struct Rights {
    system: bool,
    own_uid: u32,
    gate: Arc<Gate>,
}

impl Rights {
    /// Returns the rights of a service on the system bus if `system`, and else on a session bus.
    pub fn new(system: bool, gate: Arc<Gate>) -> Self {
        Self { system, own_uid: rustix::process::geteuid().as_raw(), gate }
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
        let answer = async {
            let authority =
                AuthorityProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
            let subject =
                Subject::new_for_message_header(header).map_err(|e| zbus::Error::Failure(e.to_string()))?;
            authority.check_authorization(&subject, action.id(), &HashMap::new(), flags, "").await
        };
        match answer.await {
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

fn sender<'h>(header: &'h Header<'_>) -> Result<&'h UniqueName<'h>, BusError> {
    header.sender().ok_or_else(|| BusError::NotAuthorized("the call has no sender".into()))
}
