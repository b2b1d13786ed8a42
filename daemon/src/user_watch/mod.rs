//! `animd-watch`: watches folders of one user, sends their pictures to animd by descriptor, and writes the videos as
//! that user.
//!
//! It keeps no list of its own. What lies in the folders is what is to do, and animd's ledger knows what became of it:
//! each picture is submitted with a key made of the file's identity and contents, so that asking again, after a crash of
//! either side, gives the same job.

mod carrier;
mod config;
mod desktop;
mod store;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zbus::Connection;

pub use config::{Config, Place, Sources};

use crate::files::show;
use crate::places;
use crate::service::notify;
use crate::watch::root::Root;
use crate::watch::{Fate, Options, Ready, Take, folder};
use crate::{Error, Result};
use carrier::Carrier;
use desktop::Desktop;

/// How long animd may take to answer: it copies a picture before it does.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which bus animd is asked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The service of the machine.
    System,
    /// The service of this session.
    Session,
}

/// Watches until SIGTERM or SIGINT, or until the bus goes away, which is [`Error::NewStart`].
pub async fn run(config: Config, bus: Bus) -> Result<()> {
    let stopping = |e| Error::File { action: "listen for signals in", path: "animd-watch".into(), source: e };
    let mut term = signal(SignalKind::terminate()).map_err(stopping)?;
    let mut int = signal(SignalKind::interrupt()).map_err(stopping)?;
    // What hangs is asked again: a picture's key makes that harmless.
    let connection = match bus {
        Bus::System => zbus::connection::Builder::system(),
        Bus::Session => zbus::connection::Builder::session(),
    };
    let connection = connection.method_timeout(PATIENCE).build().await?;
    // A machine without a desktop has no session bus, and needs no notifications.
    let desktop = Desktop::new(match config.notifications {
        true => Connection::session().await.ok(),
        false => None,
    });

    let (stop, stopped) = watch::channel(false);
    let (hand, pictures) = mpsc::unbounded_channel();
    let mut ends = Vec::new();
    let places: places::Shared = Arc::new(RwLock::new(config.watch.iter().flat_map(Place::places).collect()));
    for place in &config.watch {
        let [inbox, _] = place.places();
        let options = Options {
            root: Root::new(inbox, places.clone()),
            create: true,
            stable: Duration::from_secs_f64(place.stable_seconds.unwrap_or(config.stable_seconds)),
            poll_stable: Duration::from_secs_f64(
                place.stable_seconds.unwrap_or(config.stable_seconds.max(folder::POLL_STABLE.as_secs_f64())),
            ),
            poll: place.poll_seconds.map(Duration::from_secs_f64),
            default_poll: Duration::from_secs_f64(config.poll_seconds),
            rescan: Duration::from_secs_f64(config.rescan_seconds),
        };
        ends.push(
            folder::spawn(options, Hand { sender: hand.clone() }, stopped.clone())
                .map_err(Error::file("start a thread for", &place.path))?,
        );
        tracing::info!("videos of `{}` go to `{}`", show(&place.path), show(&place.outbox));
    }
    let mut carrier = Carrier::new(Arc::new(config), connection.clone(), desktop, pictures).await?;
    notify(&[("READY", "1")]);
    let lost = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        () = connection.closed() => Some(Error::NewStart("the message bus has gone away".into())),
        ended = carrier.run() => ended.err(),
    };
    notify(&[("STOPPING", "1")]);
    _ = stop.send(true);
    for end in ends {
        // A hanging disk is not waited for.
        _ = timeout(Duration::from_secs(1), end).await;
    }
    lost.map_or(Ok(()), Err)
}

/// Gives complete pictures to the carrier.
struct Hand {
    sender: mpsc::UnboundedSender<Ready>,
}

impl Take for Hand {
    async fn take(&mut self, pictures: &[Ready]) -> Vec<Fate> {
        for ready in pictures {
            _ = self.sender.send(ready.clone());
        }
        vec![Fate::Taken; pictures.len()]
    }
}
