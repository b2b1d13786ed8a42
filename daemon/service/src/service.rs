//! The service as systemd sees it: readiness, status, watchdog, a quick and lossless stop.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use animd_common::config::{Config, Loaded, Sources};
use animd_common::files::{open_private, show};
use animd_common::notify::notify;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::bus;
use crate::config::{CurrentConfig, Defaults};
use crate::delivery::{self, Delivery, Waiting};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::holds::Holds;
use crate::logind;
use crate::loras::Loras;
use crate::metrics;
use crate::queue::Queue;
use crate::reload::Reloader;
use crate::retention;
use crate::store::ledger::{PAUSED, Store, damage};
use crate::store::{Ledger, PartFolders, PictureFiles, Results, Spool, Watches, release_unheld};
use crate::supervisor::commands::{Command, Commands};
use crate::supervisor::gpu::nvml::Driver;
use crate::supervisor::profile::Profiles;
use crate::supervisor::profile::monitor::ProfileMonitor;
use crate::supervisor::{Supervisor, Tools};
use crate::watch::Folders;

/// The ledger's file in the state folder.
pub const LEDGER: &str = "ledger.db";

/// The file in the state folder that a running service has locked.
const LOCK: &str = "lock";

/// How long the service waits for the state folder's lock and for its name on the bus, which one that has just ended may still
/// have.
const PATIENCE: Duration = Duration::from_secs(2);

/// The parts of the service, connected with each other.
pub struct Parts {
    /// The configuration in force.
    pub config: CurrentConfig,
    /// The default settings of jobs.
    pub defaults: Defaults,
    /// The choice of a profile.
    pub profiles: Profiles,
    /// The list of watched folders.
    pub watches: Watches,
    /// The queue, with the ledger, the spool and everything that hangs on jobs.
    pub queue: Queue,
    /// The delivery, which ends jobs.
    pub delivery: Delivery,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// The receiver of the commands to the supervisor.
    pub commanded: mpsc::Receiver<Command>,
}

impl Parts {
    /// Returns the parts of a service with this configuration, whose state folder is there. Nothing runs, and nothing
    /// is changed on the disk but the ledger's schema.
    ///
    /// # Errors
    /// The error of the ledger or of the spool's folder.
    pub fn new(config: Config, sources: Sources) -> Result<Self> {
        let state = &config.folders.state;
        let ledger = Ledger::open(&state.join(LEDGER))?;
        let spool = Spool::open(state.join("spool"))?;
        let (pictures, parts, results) =
            (PictureFiles::new(state), PartFolders::new(state), Results::new(state));
        let (events, holds) = (Events::default(), Holds::default());
        let (profiles, watches) = (Profiles::default(), Watches::default());
        let (commands, commanded) = Commands::channel();
        let current = CurrentConfig::new(config.clone());
        let defaults = Defaults::new(current.clone(), profiles.recipes().clone());
        let delivery = Delivery {
            config: current.clone(),
            defaults: defaults.clone(),
            ledger: ledger.clone(),
            spool: spool.clone(),
            pictures: pictures.clone(),
            parts: parts.clone(),
            results: results.clone(),
            events: events.clone(),
            watches: watches.clone(),
            waiting: Waiting::default(),
        };
        let reloader = Reloader {
            sources: Arc::new(sources),
            config: current.clone(),
            ledger: ledger.clone(),
            spool: spool.clone(),
            events: events.clone(),
            profiles: profiles.clone(),
            watches: watches.clone(),
        };
        reloader.apply(config);
        let queue = Queue {
            config: current.clone(),
            defaults: defaults.clone(),
            ledger,
            spool,
            results,
            pictures,
            parts,
            events,
            holds,
            commands,
            profiles: profiles.clone(),
            loras: Loras::new(current.clone()),
        };
        Ok(Self { config: current, defaults, profiles, watches, queue, delivery, reloader, commanded })
    }

    /// Takes up what the last run left: added folders, the pause, and jobs that were cut short. Blocks.
    ///
    /// # Errors
    /// The error of the ledger or of a folder.
    pub fn recover(&self) -> Result<()> {
        self.watches.load(&self.queue.ledger)?;
        self.queue
            .holds
            .set_paused(self.queue.ledger.call_blocking(|db| db.setting(PAUSED))?.map(Into::into));
        self.delivery.recover()
    }
}

/// Runs the service until SIGTERM or SIGINT, or until the bus goes away.
pub async fn run(loaded: Loaded, sources: Sources) -> Result<()> {
    let user = sources.user;
    let Loaded { config, files, .. } = loaded;
    let folders = config.folders.clone();
    let _lock = alone(&folders.state, user).await?;
    let ledger_file = folders.state.join(LEDGER);
    let explain = |e| damage::explain(&ledger_file, e);
    let parts = Parts::new(config, sources).map_err(explain)?;
    // The list and the recovery come before anything can be claimed, scanned or asked for.
    parts.watches.keep_apart(&files);
    parts.recover().map_err(explain)?;
    // The outbox is made after the recovery, which must see that it is missing: its disk may not be mounted.
    // The service starts without an outbox: jobs then fail with a sentence.
    if let Err(e) = parts.watches.outbox(&folders.outbox).make() {
        tracing::error!("cannot make the outbox `{}`: {e}", show(&folders.outbox));
    }

    // Signals are listened for before READY: one that comes early must not kill what it should stop.
    let stopping = |e| Error::file("listen for signals in", "the service")(e);
    let mut term = signal(SignalKind::terminate()).map_err(stopping)?;
    let mut int = signal(SignalKind::interrupt()).map_err(stopping)?;
    let mut hup = signal(SignalKind::hangup()).map_err(stopping)?;

    let (stop, stopped) = watch::channel(false);
    let Parts { config, defaults, profiles, watches, queue, delivery, reloader, commanded } = parts;
    let Queue { ledger, spool, pictures, events, holds, commands, .. } = queue.clone();
    let changes = events.listen();
    let served = bus::Served {
        queue: queue.clone(),
        defaults: defaults.clone(),
        profiles: profiles.clone(),
        watches: watches.clone(),
        reloader: reloader.clone(),
    };
    let (connection, hub) = bus::connect(user, served).await?;
    let mirror = tokio::spawn(bus::mirror(connection.clone(), hub.clone(), changes, stopped.clone()));
    let watchdog =
        systemd::daemon::watchdog_enabled().ok().filter(|us| *us > 0).map(|us| Duration::from_micros(us / 3));
    let monitor = ProfileMonitor::new(config.clone(), defaults, profiles.clone(), Driver::default());
    let tools = Tools {
        config: config.clone(),
        ledger: ledger.clone(),
        spool,
        pictures,
        events: events.clone(),
        holds,
        delivery: delivery.clone(),
        loras: queue.loras.clone(),
        profiles: profiles.clone(),
    };
    let supervisor = Supervisor::new(tools, monitor, commanded, stopped.clone(), watchdog);
    let supervisor = tokio::spawn(supervisor.run());
    let folders_watched = Folders::new(config.clone(), watches, queue.clone(), delivery.clone());
    let watchers = tokio::spawn(folders_watched.run(stopped.clone()));
    let system = (!user).then(|| connection.clone());
    let logind = tokio::spawn(logind::run(system, config.clone(), events.clone(), commands, stopped.clone()));
    let metrics = tokio::spawn(metrics::run(config, ledger.clone(), events.clone(), stopped.clone()));
    let unheld = release_unheld(queue.ledger.clone(), queue.spool.clone(), stopped.clone());
    let unheld = tokio::spawn(unheld);
    let retention = tokio::spawn(retention::run(queue, stopped.clone()));
    let waiting = tokio::spawn(delivery::deliver_waiting(delivery, delivery::AWAY, stopped));
    notify(&[("READY", "1")]);
    tracing::info!(
        "animd {} is ready: inbox `{}`, outbox `{}`",
        env!("CARGO_PKG_VERSION"),
        show(&folders.inbox),
        show(&folders.outbox)
    );

    let mut status = events.status();
    let mut new_start = profiles.new_start();
    let lost: Option<&str> = loop {
        let text = status.borrow_and_update().text.clone();
        notify(&[("STATUS", &text)]);
        tokio::select! {
            _ = term.recv() => break None,
            _ = int.recv() => break None,
            _ = hup.recv() => drop(reloader.reload().await),
            () = connection.closed() => break Some("the message bus has gone away"),
            () = hub.name_lost() => break Some("the bus has given this service's name to another program"),
            Ok(_) = new_start.wait_for(|asked| *asked) => break None,
            Ok(()) = status.changed() => {}
        }
    };
    notify(&[("STOPPING", "1")]);
    tracing::info!("the service stops");
    _ = stop.send(true);
    _ = supervisor.await;
    // None of these tasks holds anything that is not in the ledger; a picture that is being copied is still in the
    // inbox.
    for task in [mirror, watchers, logind, metrics, unheld, retention, waiting] {
        _ = timeout(Duration::from_secs(2), task).await;
    }
    // After a stop, the ledger is one file, which a person may copy without its log. A disk without room keeps the log.
    _ = timeout(Duration::from_secs(2), ledger.call(Store::checkpoint)).await;
    if *profiles.new_start().borrow() {
        return Err(Error::NewStart(
            "the NVIDIA driver has appeared, and its devices need a new start of the service".into(),
        ));
    }
    lost.map_or(Ok(()), |why| Err(Error::NewStart(why.into())))
}

/// Sets a damaged ledger aside and goes on with its copy; see [`damage::restore`]. Blocks.
///
/// # Errors
/// The errors of [`damage::restore`], and of a state folder that a service uses.
pub fn restore_ledger(config: &Config) -> Result<String> {
    let state = &config.folders.state;
    let _lock = lock(state)?;
    damage::restore(&state.join(LEDGER))
}

/// Makes the state folder, if it is not there, and returns its lock. A service that is not alone is refused before it has made
/// anything, because what it makes would be left behind.
async fn alone(state: &Path, user: bool) -> Result<fs::File> {
    let there = state.join(LOCK).exists();
    let locked = there.then(|| lock(state)).transpose()?;
    bus::check_name(user, PATIENCE).await?;
    if let Some(locked) = locked {
        return Ok(locked);
    }
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700).create(state).map_err(Error::file("create", state))?;
    lock(state)
}

/// Locks the state folder, so that only one service uses it.
fn lock(state: &Path) -> Result<fs::File> {
    let path = state.join(LOCK);
    let file = open_private(&path).map_err(Error::file("open", &path))?;
    // A service that was killed while it started a program has left a child that holds the lock until it ends.
    let start = Instant::now();
    let mut locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    while locked == Err(Errno::WOULDBLOCK) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::config(format!(
            "another animd works on `{}`; stop it, or give this one its own --state",
            show(state)
        ))),
        Err(e) => Err(Error::file("lock", &path)(e.into())),
    }
}
