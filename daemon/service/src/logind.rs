//! Asks logind for a signal before the machine sleeps, and to keep the machine awake while a job runs.

use animd_common::bus::ServiceState;
use animd_common::tasks::stopped;
use futures_util::StreamExt;
use tokio::sync::watch;
use zbus::{Connection, OwnedFd, connection, proxy};

use crate::config::CurrentConfig;
use crate::error::Result;
use crate::events::Events;
use crate::supervisor::commands::Commands;

/// A part of logind's manager.
#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Login {
    /// Holds something up for as long as the descriptor is open.
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;
    /// True before the machine sleeps, false when it is awake again.
    #[zbus(signal)]
    fn prepare_for_sleep(&self, start: bool) -> zbus::Result<()>;
}

/// Runs until `stop` turns true, or at once to its end where nobody manages logins. `system` is a connection to the
/// system's bus, if there is one already.
pub async fn run(
    system: Option<Connection>,
    config: CurrentConfig,
    events: Events,
    commands: Commands,
    stop: watch::Receiver<bool>,
) {
    if let Err(e) = attend(system, config, events, commands, stop).await {
        tracing::info!("cannot watch for suspend: logind is not reachable ({e})");
    }
}

async fn attend(
    system: Option<Connection>,
    config: CurrentConfig,
    events: Events,
    commands: Commands,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let bus = match system {
        Some(bus) => bus,
        None => connection::Builder::system().build().await?,
    };
    let login = LoginProxy::new(&bus).await?;
    let mut sleeps = login.receive_prepare_for_sleep().await?;
    let mut status = events.status();
    let mut delay = Some(delay(&login).await?);
    let mut awake = Awake::default();
    loop {
        let busy = status.borrow_and_update().state == ServiceState::Busy;
        awake.set(&login, busy && config.get().power.inhibit_sleep).await;
        tokio::select! {
            () = stopped(&mut stop) => return Ok(()),
            Ok(()) = status.changed() => {}
            signal = sleeps.next() => {
                let Some(signal) = signal else { return Ok(()) };
                if signal.args()?.start {
                    if commands.sleep().await.is_err() {
                        return Ok(());
                    }
                    // The machine may sleep now.
                    delay = None;
                } else if delay.is_none() {
                    delay = Some(self::delay(&login).await?);
                    if commands.wake().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Asks for time to end the engine before the machine sleeps.
async fn delay(login: &LoginProxy<'_>) -> Result<OwnedFd> {
    Ok(login.inhibit("sleep", "animd", "The model is taken off the GPU", "delay").await?)
}

/// Whether the machine is kept awake.
#[derive(Default)]
struct Awake {
    held: Option<OwnedFd>,
    /// Whether logind has refused once; that is logged only once.
    refused: bool,
}

impl Awake {
    async fn set(&mut self, login: &LoginProxy<'_>, wanted: bool) {
        if !wanted {
            self.held = None;
        } else if self.held.is_none() && !self.refused {
            match login.inhibit("sleep", "animd", "A video is being made", "block").await {
                Ok(held) => self.held = Some(held),
                Err(e) => {
                    self.refused = true;
                    tracing::warn!(
                        "the machine may go to sleep while a job runs: logind refuses to keep it awake ({e}); allow it \
                         with a rule of polkit for org.freedesktop.login1.inhibit-block-sleep, or set \
                         power.inhibit_sleep = false"
                    );
                }
            }
        }
    }
}
