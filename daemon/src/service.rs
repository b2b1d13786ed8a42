//! The service as systemd sees it: readiness, status, watchdog, a quick and lossless stop.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::bus;
use crate::config::{Loaded, Sources};
use crate::delivery::{self, Desk};
use crate::files::show;
use crate::ledger::Ledger;
use crate::logind;
use crate::metrics;
use crate::reload::reload;
use crate::retention;
use crate::spool::Spool;
use crate::supervisor::Supervisor;
use crate::watch::Folders;
use crate::wishes::Wishes;
use crate::{Error, Result};

/// The ledger's file in the state folder.
pub const LEDGER: &str = "ledger.db";

/// How long the state folder's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Tells systemd, if it is there.
pub fn notify(state: &[(&str, &str)]) {
    if let Err(e) = systemd::daemon::notify(state.iter()) {
        tracing::debug!("systemd was not told: {e}");
    }
}

/// Runs the service until SIGTERM or SIGINT, or until the bus goes away.
pub async fn run(loaded: Loaded, sources: Sources) -> Result<()> {
    let user = sources.user;
    let Loaded { config, files, .. } = loaded;
    let folders = config.folders.clone();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folders.state)
        .map_err(Error::file("create", &folders.state))?;
    let _lock = lock(&folders.state)?;
    let ledger = Ledger::open(&folders.state.join(LEDGER))?;
    let mut desk = Desk::new(config, ledger, Spool::open(folders.state.join("spool"))?);
    desk.sources = sources;
    let desk = Arc::new(desk);
    // Before anything can be claimed, scanned or asked for.
    desk.watches.keep_apart(&files);
    desk.watches.load(&desk.ledger)?;
    desk.recover()?;
    // After the recovery, which must see that it is not there: it may lie on a disk that is not mounted.
    // Without it jobs fail with a sentence; the service has more to say than that.
    if let Err(e) = desk.watches.outbox(&folders.outbox).make() {
        tracing::error!("the outbox `{}` cannot be made: {e}", show(&folders.outbox));
    }

    // Before READY: a signal that comes early must not kill what it should stop.
    let stopping = |e| Error::File { action: "listen for signals in", path: "the service".into(), source: e };
    let mut term = signal(SignalKind::terminate()).map_err(stopping)?;
    let mut int = signal(SignalKind::interrupt()).map_err(stopping)?;
    let mut hup = signal(SignalKind::hangup()).map_err(stopping)?;

    let (stop, stopped) = watch::channel(false);
    let (wishes, wished) = Wishes::channel();
    let changes = desk.board.listen();
    let (connection, hub) = bus::connect(user, &desk, &wishes).await?;
    let mirror = tokio::spawn(bus::mirror(connection.clone(), hub.clone(), changes, stopped.clone()));
    let watchdog =
        systemd::daemon::watchdog_enabled().ok().filter(|us| *us > 0).map(|us| Duration::from_micros(us / 3));
    let supervisor = tokio::spawn(Supervisor::new(desk.clone(), wished, stopped.clone(), watchdog).run());
    let watchers = tokio::spawn(Folders::new(desk.clone()).run(stopped.clone()));
    let system = (!user).then(|| connection.clone());
    let logind = tokio::spawn(logind::run(system, desk.clone(), wishes.clone(), stopped.clone()));
    let metrics = tokio::spawn(metrics::run(desk.clone(), stopped.clone()));
    let retention = tokio::spawn(retention::run(desk.clone(), stopped.clone()));
    let waiting = tokio::spawn(delivery::deliver_waiting(desk.clone(), delivery::AWAY, stopped));
    notify(&[("READY", "1")]);
    tracing::info!(
        "animd {} is ready: inbox `{}`, outbox `{}`",
        env!("CARGO_PKG_VERSION"),
        show(&folders.inbox),
        show(&folders.outbox)
    );

    let mut status = desk.board.status();
    let mut new_start = desk.profiles.new_start();
    let lost: Option<&str> = loop {
        let text = status.borrow_and_update().text.clone();
        notify(&[("STATUS", &text)]);
        tokio::select! {
            _ = term.recv() => break None,
            _ = int.recv() => break None,
            _ = hup.recv() => drop(reload(&desk).await),
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
    // Neither holds anything that is not in the ledger; a picture that is just being copied is still in the inbox.
    for task in [mirror, watchers, logind, metrics, retention, waiting] {
        _ = timeout(Duration::from_secs(2), task).await;
    }
    if *desk.profiles.new_start().borrow() {
        return Err(Error::NewStart(
            "the NVIDIA driver has appeared, and its devices need a new start of the service".into(),
        ));
    }
    lost.map_or(Ok(()), |why| Err(Error::NewStart(why.into())))
}

/// One service for one state folder.
fn lock(state: &std::path::Path) -> Result<fs::File> {
    let path = state.join("lock");
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("create", &path))?;
    // A service that was killed while it started a program has left a child that holds the lock until it ends.
    let start = Instant::now();
    let mut locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    while locked == Err(Errno::WOULDBLOCK) && start.elapsed() < LOCK_PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::Config(format!(
            "another animd works on `{}`; stop it, or give this one its own --state",
            show(state)
        ))),
        Err(e) => Err(Error::file("lock", &path)(e.into())),
    }
}
