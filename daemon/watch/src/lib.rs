//! `animd-watch`: watches folders of one user, sends their pictures to animd by descriptor, and writes the videos as
//! that user.
//!
//! It keeps no list of its own. The pictures in the folders are the work to do, and animd's ledger knows what became of
//! them: each picture is submitted with a key made of the file's identity and contents, so that submitting it again,
//! after a crash of either side, returns the same job.

mod config;
mod desktop;
mod error;
mod store;
mod uploader;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use animd_common::files::show;
use animd_common::notify::notify;
use animd_common::places;
use animd_common::watch::root::Root;
use animd_common::watch::{Fate, Options, Ready, Take, folder};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use zbus::Connection;

use desktop::Desktop;
use uploader::Uploader;

pub use config::{Config, Place, Sources};
pub use error::{Error, Result};

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

/// Watches until SIGTERM or SIGINT, or until the bus goes away, which is [`Error::BusGone`].
pub async fn run(config: Config, bus: Bus) -> Result<()> {
    let stopping = |e| Error::file("listen for signals in", "animd-watch")(e);
    let mut term = signal(SignalKind::terminate()).map_err(stopping)?;
    let mut int = signal(SignalKind::interrupt()).map_err(stopping)?;
    // A call that times out is repeated, which a picture's key makes harmless.
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
        let stable = Duration::from_secs_f64(place.stable_seconds.unwrap_or(config.stable_seconds));
        let options = Options {
            root: Root::new(inbox, places.clone()),
            create: true,
            stable,
            // A job over the bus has its words for good.
            early: stable,
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
    let mut uploader = Uploader::new(Arc::new(config), connection.clone(), desktop, pictures).await?;
    notify(&[("READY", "1")]);
    let lost = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        () = connection.closed() => Some(Error::BusGone),
        ended = uploader.run() => ended.err(),
    };
    notify(&[("STOPPING", "1")]);
    _ = stop.send(true);
    for end in ends {
        // The program does not wait for a hanging disk.
        _ = timeout(Duration::from_secs(1), end).await;
    }
    lost.map_or(Ok(()), Err)
}

/// Gives complete pictures to the uploader.
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
