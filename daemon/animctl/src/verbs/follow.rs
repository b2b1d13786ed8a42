//! Follows a job until it has ended, across restarts of the service.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use animd_client::{JobProxy, has_ended};
use animd_common::bus::ServiceState;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;
use zbus::names::InterfaceName;
use zbus::{OwnedVariant, fdo};

use super::Ctl;
use super::exit::{Exit, Failure, Result};
use super::meter::{Meter, Moment};

/// How long to wait for a service that has gone away.
const AWAY: Duration = Duration::from_secs(60);
/// The pause between two previews.
const PREVIEW: Duration = Duration::from_secs(2);
/// The size of the largest preview, in bytes.
const MAX_PREVIEW: u64 = 4 << 20;

/// A job's properties by their names in JSON.
const FACTS: [(&str, &str); 9] = [
    ("Id", "id"),
    ("Owner", "owner"),
    ("State", "state"),
    ("Stage", "stage"),
    ("Step", "step"),
    ("Progress", "progress"),
    ("ExpectedEnd", "expected_end"),
    ("Position", "position"),
    ("Priority", "priority"),
];

/// Shows the job until it has ended, and returns its last state.
pub async fn follow(id: u64, ctl: &Ctl, meter: &mut Meter) -> Result<String> {
    let path = ctl.manager.get_job(id).await?;
    let bus = fdo::PropertiesProxy::builder(&ctl.connection)
        .destination(animd_common::bus::NAME)
        .path(path)
        .build()
        .await?;
    let mut changes = bus.receive_properties_changed().await?;
    let mut away: Option<Instant> = None;
    let mut preview = Preview::default();
    loop {
        match look(&bus, ctl).await {
            Ok(moment) => {
                away = None;
                meter.show(&moment);
                if has_ended(moment.state()) {
                    meter.end();
                    return Ok(moment.state().to_owned());
                }
                if meter.shows_pictures() && moment.state() == "running" {
                    preview.show(id, ctl, meter).await;
                }
            }
            Err(e) if e.exit == Exit::Unreachable || away.is_some() => {
                let since = *away.get_or_insert_with(Instant::now);
                meter.show(&Moment { facts: Value::Null, note: Some("animd is away".into()) });
                if since.elapsed() > AWAY {
                    meter.end();
                    return Err(Failure::unreachable(format!(
                        "animd is away; job {id} is kept, `animctl show {id}` tells later what became of it"
                    )));
                }
                // A restarted service makes the job's object when it is asked for.
                _ = ctl.manager.get_job(id).await;
            }
            // The job's object is removed ten minutes after the job's end; the ledger still has the job.
            Err(e) => {
                if ctl.manager.get_job(id).await.is_err() {
                    return Err(e);
                }
            }
        }
        let pause = if away.is_some() { Duration::from_secs(1) } else { Duration::from_secs(5) };
        // A signal only says when to look; the state is always read anew.
        if let Ok(None) = timeout(pause, changes.next()).await {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn look(bus: &fdo::PropertiesProxy<'_>, ctl: &Ctl) -> Result<Moment> {
    let interface = InterfaceName::from_static_str_unchecked("org.animd.Animd1.Job");
    let facts = facts(&bus.get_all(interface).await?);
    let mut moment = Moment { facts, note: None };
    if moment.state() == "queued" {
        let service = ctl.manager.state().await?;
        if !ServiceState::from_name(&service).is_some_and(ServiceState::is_working) {
            moment.note = Some(format!("waiting: {}", ctl.manager.state_text().await?));
        }
    }
    Ok(moment)
}

fn facts(properties: &HashMap<String, OwnedVariant>) -> Value {
    let fact =
        |(name, key): (&str, &str)| Some((key.to_owned(), animd_common::bus::json(properties.get(name)?)?));
    FACTS.into_iter().filter_map(fact).collect()
}

/// The preview of a running job's video.
#[derive(Default)]
struct Preview {
    asked: Option<Instant>,
    last: Vec<u8>,
}

impl Preview {
    /// Shows the preview if there is a new one.
    async fn show(&mut self, id: u64, ctl: &Ctl, meter: &mut Meter) {
        if self.asked.is_some_and(|asked| asked.elapsed() < PREVIEW) {
            return;
        }
        self.asked = Some(Instant::now());
        let Ok(job) = ctl.job(id).await else { return };
        // There is no preview in the beginning, and none of another user's job.
        let Ok(jpeg) = preview(&job).await else { return };
        if jpeg != self.last {
            meter.picture(&jpeg);
            self.last = jpeg;
        }
    }
}

async fn preview(job: &JobProxy<'_>) -> Result<Vec<u8>> {
    let file = File::from(OwnedFd::from(job.open_preview().await?));
    let mut jpeg = Vec::new();
    file.take(MAX_PREVIEW).read_to_end(&mut jpeg).map_err(Failure::file("read", "the preview"))?;
    Ok(jpeg)
}
