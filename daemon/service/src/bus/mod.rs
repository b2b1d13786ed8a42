//! The message bus: `org.animd.Animd1`, a manager and an object for each job. `dbus/org.animd.Animd1.xml` is the contract.
//!
//! Everybody on the bus reads properties, signals and the object manager, so these hold public facts only; what is
//! private comes from methods that look at the caller's uid. No object is ever locked for writing: a call that waits,
//! for a slow disk or a password, holds nobody else up.

mod answer;
mod copies;
mod costs;
mod describe;
mod error;
mod facts;
mod gate;
mod heap;
mod hold;
mod introspect;
mod job;
mod manager;
mod mirror;
pub mod options;
mod plan;
mod rights;
mod socket;
mod stats;
mod watches;

use std::sync::Arc;

use animd_common::bus::NAME;
use tokio::sync::{Notify, mpsc};
use zbus::fdo::{self, RequestNameFlags};
use zbus::{Connection, Message, ObjectPath, OwnedObjectPath};

use crate::config::Defaults;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::holds::Holds;
use crate::queue::Queue;
use crate::reload::Reloader;
use crate::store::ledger::Job;
use crate::store::{Ledger, PictureFiles, Watches};
use crate::supervisor::commands::Commands;
use crate::supervisor::profile::Profiles;
use copies::Copies;
use gate::Gate;
use rights::Rights;

pub use error::BusError;
pub use facts::{Card, Cards, Facts};
pub use job::JobObject;
pub use manager::Manager;
pub use mirror::mirror;

/// The manager's path.
pub const PATH: &str = "/org/animd/Animd1";
/// What a video's name begins with when its sender gives no name.
pub const DEFAULT_NAME: &str = "video";
/// Refusals and questions of the gate that wait to be written; when there are more, the gate waits.
const OUTGOING: usize = 64;

/// What the objects on the bus speak for.
pub struct Served {
    /// The queue, with everything that it has.
    pub queue: Queue,
    /// What jobs get that say nothing else.
    pub defaults: Defaults,
    /// The choice of a profile.
    pub profiles: Profiles,
    /// Which folders are watched.
    pub watches: Watches,
    /// Reads the configuration again.
    pub reloader: Reloader,
}

/// What all objects on the bus share.
pub struct Hub {
    queue: Queue,
    ledger: Ledger,
    defaults: Defaults,
    events: Events,
    holds: Holds,
    profiles: Profiles,
    watches: Watches,
    pictures: PictureFiles,
    commands: Commands,
    reloader: Reloader,
    rights: Rights,
    cards: Cards,
    copies: Copies,
    gate: Arc<Gate>,
    tree: introspect::Tree,
    /// The manager's properties may have changed.
    look: Notify,
}

impl Hub {
    /// Returns when the bus has taken the service's name away.
    pub async fn name_lost(&self) {
        self.gate.name_lost().await;
    }

    /// Makes a job's object, if it is not there.
    async fn serve(self: &Arc<Self>, connection: &Connection, job: &Job) -> zbus::Result<()> {
        let card = self.cards.card(Facts::new(job, self.events.live(job.id)));
        let object = JobObject::new(card, self.clone());
        connection.object_server().at(object_path(job.id), object).await?;
        self.tree.grown(connection, self).await
    }

    /// Makes the object of the job with this number, if it is not there. False if there is no such job.
    async fn serve_id(self: &Arc<Self>, connection: &Connection, id: u64) -> Result<bool> {
        let job = self.ledger.call(move |db| db.job(id)).await?;
        if let Some(job) = &job {
            self.serve(connection, job).await?;
        }
        Ok(job.is_some())
    }

    /// Removes a job's object.
    async fn withdraw(&self, connection: &Connection, id: u64) -> zbus::Result<()> {
        self.cards.remove(id);
        let removed = connection.object_server().remove::<JobObject, _>(object_path(id)).await;
        self.tree.shrunk(self.cards.is_empty());
        match removed {
            Ok(_) | Err(zbus::Error::InterfaceNotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// Returns the path of a job's object.
///
/// # Panics
/// Never: a number is always a valid part of a path.
pub fn object_path(id: u64) -> OwnedObjectPath {
    ObjectPath::try_from(format!("{PATH}/job/{id}")).expect("letters and digits only").into()
}

/// Connects to the session's bus or the system's, with everything that is to be seen there, and takes the name last.
pub async fn connect(user: bool, served: Served) -> Result<(Connection, Arc<Hub>)> {
    let Served { queue, defaults, profiles, watches, reloader } = served;
    let Queue { ledger, events, holds, pictures, commands, .. } = queue.clone();
    let gate = Arc::new(Gate::new(allow_many_files()));
    let (say, outgoing) = mpsc::channel(OUTGOING);
    let builder = socket::connect(user, &gate, say)?;
    let hub = Arc::new(Hub {
        queue,
        ledger: ledger.clone(),
        defaults,
        events,
        holds,
        profiles,
        watches,
        pictures,
        commands,
        reloader,
        rights: Rights::new(!user, gate.clone()),
        cards: Cards::default(),
        copies: Copies::default(),
        gate: gate.clone(),
        tree: introspect::Tree::default(),
        look: Notify::new(),
    });
    let connection = builder.serve_at(PATH, Manager { hub: hub.clone() }).build().await?;
    tokio::spawn(speak(connection.clone(), outgoing));
    tokio::spawn(heap::give_back(gate));
    watch_leaving(&connection).await?;
    for job in ledger.call(|db| db.open_jobs()).await? {
        hub.serve(&connection, &job).await?;
    }
    introspect::plant(&connection, &hub).await?;
    // After the objects, so that it tells of them all at once.
    connection.object_server().at(PATH, fdo::ObjectManager).await?;
    // This service neither replaces another one nor lets itself be replaced: a second service needs another bus, or ends.
    match connection.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await {
        Ok(_) => Ok((connection, hub)),
        Err(zbus::Error::NameTaken) => Err(Error::config(format!(
            "another program has the name {NAME} on this bus; is animd running already? (`animctl status` tells)"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// Writes what the gate has to say.
async fn speak(connection: Connection, mut outgoing: mpsc::Receiver<Message>) {
    while let Some(message) = outgoing.recv().await {
        if let Err(e) = connection.send(&message).await {
            tracing::debug!("the bus does not take a message any more: {e}");
            return;
        }
    }
}

/// Asks the bus to tell of every connection that leaves: by one rule, and not of those that come.
async fn watch_leaving(connection: &Connection) -> zbus::Result<()> {
    let rule = "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',\
                interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''";
    let bus = "org.freedesktop.DBus";
    connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "AddMatch", &rule).await?;
    Ok(())
}

/// As many open files as the system lets us have, which is returned: every call that brings a picture brings a descriptor,
/// and one too many would end the connection to the bus.
fn allow_many_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("the limit of open files stays {:?}: {e}", limit.current);
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}
