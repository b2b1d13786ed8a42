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
mod hold;
mod introspect;
mod job;
mod manager;
mod mirror;
pub mod options;
mod plan;
mod rights;
mod stats;
mod watches;

use std::sync::Arc;

use animd_common::bus::NAME;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use zbus::{Connection, ObjectPath, OwnedObjectPath, connection, fdo};

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
/// Answers of many jobs that are put together at once; others wait, so that a flood of them stays small in memory.
const READERS: usize = 8;

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
    readers: Semaphore,
    tree: introspect::Tree,
    /// The manager's properties may have changed.
    look: Notify,
}

impl Hub {
    /// A turn to read from the ledger at length.
    async fn reading(&self) -> Result<SemaphorePermit<'_>, BusError> {
        self.readers.acquire().await.map_err(|_| BusError::stopping())
    }

    /// Makes a job's object, if it is not there.
    async fn serve(self: &Arc<Self>, connection: &Connection, job: &Job) -> zbus::Result<()> {
        let card = self.cards.card(Facts::new(job, self.events.live(job.id)));
        let object = JobObject::new(card, self.clone());
        connection.object_server().at(object_path(job.id), object).await?;
        self.tree.grown(connection, self).await
    }

    /// The same by its number; false if there is no such job.
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

/// The path of a job's object.
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
    let builder = if user { connection::Builder::session() } else { connection::Builder::system() };
    allow_many_files();
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
        rights: Rights::new(!user),
        cards: Cards::default(),
        copies: Copies::default(),
        readers: Semaphore::new(READERS),
        tree: introspect::Tree::default(),
        look: Notify::new(),
    });
    let connection = builder.serve_at(PATH, Manager { hub: hub.clone() }).build().await?;
    for job in ledger.call(|db| db.open_jobs()).await? {
        hub.serve(&connection, &job).await?;
    }
    introspect::plant(&connection, &hub).await?;
    // After the objects, so that it tells of them all at once.
    connection.object_server().at(PATH, fdo::ObjectManager).await?;
    match connection.request_name(NAME).await {
        Ok(()) => Ok((connection, hub)),
        Err(zbus::Error::NameTaken) => Err(Error::config(format!(
            "another program has the name {NAME} on this bus; is animd running already? (`animctl status` tells)"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// As many open files as the system lets us have: every call that brings a picture brings a descriptor, and one too many
/// would end the connection to the bus.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("the limit of open files stays {:?}: {e}", limit.current);
    }
}
