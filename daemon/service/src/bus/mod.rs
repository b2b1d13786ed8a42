//! The service on the message bus: `org.animd.Animd1` with a manager and an object for each job. Its contract is
//! `dbus/org.animd.Animd1.xml`.
//!
//! Everybody on the bus can read properties, signals and the object manager, so these hold public facts only. Private
//! facts come from methods that check the caller's uid. No object is ever locked for writing, so that a call which
//! waits for a slow disk or a password holds up no other call.

mod answer;
mod copies;
mod costs;
mod describe;
mod error;
mod facts;
mod forecast;
mod gate;
mod guarded;
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
use std::time::{Duration, Instant};

use animd_common::bus::NAME;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use zbus::connection::Builder;
use zbus::fdo::{self, RequestNameFlags};
use zbus::names::BusName;
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
use guarded::Guarded;
use rights::Rights;

pub use error::BusError;
pub use facts::{Card, Cards, Facts};
pub use job::JobObject;
pub use manager::Manager;
pub use mirror::mirror;

/// The manager's path.
pub const PATH: &str = "/org/animd/Animd1";
/// The beginning of a video's name when the sender gives none.
pub const DEFAULT_NAME: &str = "video";
/// The most refusals and questions of the gate that wait to be written; when there are more, the gate waits.
const OUTGOING: usize = 64;

/// How often a name that another program has is asked for.
const PAUSE: Duration = Duration::from_millis(50);

/// The parts of the service that the objects on the bus use.
pub struct Served {
    /// The queue, with the ledger, the spool and everything that belongs to jobs.
    pub queue: Queue,
    /// The default settings of jobs.
    pub defaults: Defaults,
    /// The choice of a profile.
    pub profiles: Profiles,
    /// The watched folders.
    pub watches: Watches,
    /// Reads the configuration again.
    pub reloader: Reloader,
}

/// The state that all objects on the bus share.
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
    /// Signalled when the manager's properties may have changed.
    look: Notify,
}

impl Hub {
    /// Waits until the bus has taken the service's name away.
    pub async fn name_lost(&self) {
        self.gate.name_lost().await;
    }

    /// Makes a job's object if it does not exist.
    async fn serve(self: &Arc<Self>, connection: &Connection, job: &Job) -> zbus::Result<()> {
        let card = self.cards.card(Facts::new(job, self.events.live(job.id)));
        let object = Guarded(JobObject::new(card, self.clone()));
        connection.object_server().at(object_path(job.id), object).await?;
        self.tree.grown(connection, self).await
    }

    /// Makes the object of the job with this number if it does not exist. Returns false if there is no such job.
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
        let removed = connection.object_server().remove::<Guarded<JobObject>, _>(object_path(id)).await;
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

/// Refuses to go on if another program has the service's name and does not give it up in the time that `patience` says.
///
/// [`connect`] takes the name when everything is there, and refuses as well: the name may be taken meanwhile.
///
/// # Errors
/// The sentence for a name that is taken, and the error of a bus that cannot be reached.
pub async fn check_name(user: bool, patience: Duration) -> Result<()> {
    let builder = if user { Builder::session() } else { Builder::system() };
    let connection = builder.build().await?;
    let bus = fdo::DBusProxy::new(&connection).await?;
    let start = Instant::now();
    let name = BusName::try_from(NAME)?;
    while bus.name_has_owner(name.clone()).await.map_err(zbus::Error::from)? {
        if start.elapsed() > patience {
            return Err(name_taken());
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

fn name_taken() -> Error {
    Error::config(format!(
        "another program has the name {NAME} on this bus; is animd running already? (`animctl status` tells)"
    ))
}

/// Connects to the session bus or the system bus, adds all objects, and takes the name last.
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
    let connection = builder.serve_at(PATH, Guarded(Manager { hub: hub.clone() })).build().await?;
    tokio::spawn(speak(connection.clone(), outgoing));
    tokio::spawn(heap::give_back(gate));
    watch_leaving(&connection).await?;
    for job in ledger.call(|db| db.open_jobs()).await? {
        hub.serve(&connection, &job).await?;
    }
    introspect::plant(&connection, &hub).await?;
    // The object manager comes after the objects, so that it announces all of them at once.
    connection.object_server().at(PATH, fdo::ObjectManager).await?;
    // The service neither replaces another one nor lets itself be replaced: a second service needs another bus, or
    // ends.
    match connection.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await {
        Ok(_) => Ok((connection, hub)),
        Err(zbus::Error::NameTaken) => Err(name_taken()),
        Err(e) => Err(e.into()),
    }
}

/// Writes the gate's messages to the bus.
async fn speak(connection: Connection, mut outgoing: mpsc::Receiver<Message>) {
    while let Some(message) = outgoing.recv().await {
        if let Err(e) = connection.send(&message).await {
            tracing::debug!("the bus does not take a message any more: {e}");
            return;
        }
    }
}

/// Asks the bus, by one match rule, for a signal about every connection that leaves, but not about those that arrive.
async fn watch_leaving(connection: &Connection) -> zbus::Result<()> {
    let rule = "type='signal',sender='org.freedesktop.DBus',path='/org/freedesktop/DBus',\
                interface='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''";
    let bus = "org.freedesktop.DBus";
    connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "AddMatch", &rule).await?;
    Ok(())
}

/// Raises the limit of open files as far as the system allows, and returns it. Every call that brings a picture brings
/// a descriptor, and one too many would end the connection to the bus.
fn allow_many_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("the limit of open files stays {:?}: {e}", limit.current);
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}
