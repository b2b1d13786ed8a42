//! The message bus: `org.animd.Animd1`, a manager and an object for each job.
//!
//! Everybody on the bus reads properties, signals and the object manager, so these hold public facts only; what is
//! private comes from methods that look at the caller's uid.

mod costs;
mod error;
mod facts;
mod job;
mod manager;
mod mirror;
mod options;

use std::sync::Arc;

use zbus::message::Header;
use zbus::{Connection, ObjectPath, OwnedObjectPath, connection, fdo};

pub use error::BusError;
pub use facts::Facts;
pub use job::JobObject;
pub use manager::Manager;
pub use mirror::mirror;
pub use options::json;

use crate::delivery::Desk;
use crate::wishes::Wishes;
use crate::{Error, Result};

/// The name on the bus.
pub const NAME: &str = "org.animd.Animd1";
/// The manager's path.
pub const PATH: &str = "/org/animd/Animd1";
/// What a video's name begins with when its sender gives no name.
pub const DEFAULT_NAME: &str = "video";

/// The path of a job's object.
///
/// # Panics
/// Never: a number is always a valid part of a path.
pub fn object_path(id: u64) -> OwnedObjectPath {
    ObjectPath::try_from(format!("{PATH}/job/{id}")).expect("letters and digits only").into()
}

/// Connects to the session's bus or the system's, with everything that is to be seen there, and takes the name last.
pub async fn connect(user: bool, desk: &Arc<Desk>, wishes: &Wishes) -> Result<Connection> {
    let builder = if user { connection::Builder::session() } else { connection::Builder::system() };
    let queue = desk.ledger.call(|db| db.queue()).await?;
    let manager = Manager { desk: desk.clone(), wishes: wishes.clone(), queued: queue.len() as u32 };
    let connection = builder.serve_at(PATH, fdo::ObjectManager).serve_at(PATH, manager).build().await?;
    for job in desk.ledger.call(|db| db.open_jobs()).await? {
        serve(&connection, desk, wishes, job.id).await?;
    }
    match connection.request_name(NAME).await {
        Ok(()) => Ok(connection),
        Err(zbus::Error::NameTaken) => Err(Error::Config(format!(
            "another program has the name {NAME} on this bus; is animd running already? (`animctl status` tells)"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// Makes a job's object, if it is not there.
async fn serve(connection: &Connection, desk: &Arc<Desk>, wishes: &Wishes, id: u64) -> Result<()> {
    let found = desk.ledger.call(move |db| Ok(db.job(id)?.zip(Some(db.queue()?)))).await?;
    if let Some((job, queue)) = found {
        let facts = Facts::new(&job, desk.board.live(id), &queue);
        let object = JobObject { facts, desk: desk.clone(), wishes: wishes.clone() };
        connection.object_server().at(object_path(id), object).await?;
    }
    Ok(())
}

/// Who calls, as the bus knows it.
async fn uid_of(connection: &Connection, header: &Header<'_>) -> Result<u32, BusError> {
    let sender = header.sender().ok_or_else(|| BusError::NotAuthorized("the call has no sender".into()))?;
    let bus = fdo::DBusProxy::new(connection).await?;
    bus.get_connection_unix_user(sender.clone().into())
        .await
        .map_err(|e| BusError::NotAuthorized(e.to_string()))
}

/// Whether `uid` may see and end what belongs to `owner`: its owner, root, and the service's own user.
fn may(uid: u32, owner: u32) -> bool {
    uid == owner || uid == 0 || uid == rustix::process::geteuid().as_raw()
}
