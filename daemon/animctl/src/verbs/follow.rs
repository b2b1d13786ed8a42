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
use zbus::fdo;

use super::exit::{Exit, Failure, Result};
use super::facts::completed;
use super::meter::{Meter, Moment};
use super::{Ctl, json_of};

/// How long to wait for a service that has gone away.
const AWAY: Duration = Duration::from_secs(60);
/// The pause between two previews.
const PREVIEW: Duration = Duration::from_secs(2);
/// The size of the largest preview, in bytes.
const MAX_PREVIEW: u64 = 4 << 20;

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
        match look(id, ctl).await {
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
                meter.show(&Moment {
                    facts: Value::Null,
                    note: Some("animd has stopped; waiting for it".into()),
                });
                if since.elapsed() > AWAY {
                    meter.end();
                    return Err(Failure::unreachable(format!(
                        "animd has stopped; job {id} is kept, and `animctl show {id}` shows later what became of it"
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

async fn look(id: u64, ctl: &Ctl) -> Result<Moment> {
    let facts = entry(id, ctl).await?.ok_or_else(|| Failure::new(format!("job {id} is forgotten")))?;
    let mut moment = Moment { facts, note: None };
    if moment.state() == "queued" {
        let service = ctl.manager.state().await?;
        if !ServiceState::from_name(&service).is_some_and(ServiceState::is_working) {
            moment.note = Some(format!("queued: {}", ctl.manager.state_text().await?));
        }
    }
    Ok(moment)
}

/// Returns a job's entry in the list of jobs; `None` where there is no such job.
pub async fn entry(id: u64, ctl: &Ctl) -> Result<Option<Value>> {
    let filter = HashMap::from([("before", id.saturating_add(1).into()), ("limit", 1_u32.into())]);
    let newest = ctl.manager.list(filter).await?.first().map(json_of).filter(|job| job["id"] == id);
    Ok(newest.map(completed))
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
