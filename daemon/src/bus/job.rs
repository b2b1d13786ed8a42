//! One job on the bus: public facts as properties, everything else by methods that look at who asks.

use std::collections::HashMap;
use std::os::fd::OwnedFd as StdOwnedFd;
use std::sync::Arc;

use zbus::message::Header;
use zbus::{Connection, OwnedFd, OwnedVariant, Variant, interface};

use super::costs;
use super::error::BusError;
use super::facts::Facts;
use super::{may, uid_of};
use crate::delivery::Desk;
use crate::files::{open_regular, show};
use crate::ledger::{Job, State};
use crate::wishes::Wishes;

/// The object `/org/animd/Animd1/job/ID`.
pub struct JobObject {
    /// What the properties say; the mirror keeps it fresh.
    pub facts: Facts,
    pub(super) desk: Arc<Desk>,
    pub(super) wishes: Wishes,
}

impl JobObject {
    async fn authorized(&self, header: &Header<'_>, connection: &Connection) -> Result<u32, BusError> {
        let uid = uid_of(connection, header).await?;
        if may(uid, self.facts.owner) {
            return Ok(uid);
        }
        Err(BusError::NotAuthorized(format!(
            "job {} belongs to another user; ask them, or root",
            self.facts.id
        )))
    }

    async fn job(&self) -> Result<Job, BusError> {
        let id = self.facts.id;
        let job = self.desk.ledger.call(move |db| db.job(id)).await?;
        job.ok_or_else(|| BusError::NotFound(format!("job {id} is no longer in the ledger")))
    }
}

#[interface(name = "org.animd.Animd1.Job")]
impl JobObject {
    /// Cancels the job, queued or running. Owner or root. A running job ends a little later than this returns, and as
    /// done if its video is finished first.
    async fn cancel(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), BusError> {
        let uid = self.authorized(&header, connection).await?;
        let id = self.facts.id;
        if self.wishes.cancel(id, format!("cancelled by user {uid}")).await? {
            return Ok(());
        }
        let state = self.job().await?.state.name();
        Err(BusError::NotReady(format!("job {id} is {state}; there is nothing to cancel")))
    }

    /// Everything about the job: settings, paths, error, costs. Owner or root. Unknown values are left out.
    #[zbus(out_args("description"))]
    async fn describe(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<HashMap<String, OwnedVariant>, BusError> {
        self.authorized(&header, connection).await?;
        let id = self.facts.id;
        let job = self.job().await?;
        let (stages, costs) = self.desk.ledger.call(move |db| Ok((db.stages(id)?, db.costs(id)?))).await?;
        let mut dict = description(&job, stages);
        costs::describe(costs, &mut dict);
        Ok(dict)
    }

    /// The video, open for reading. Owner or root.
    #[zbus(out_args("video"))]
    async fn open_result(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, BusError> {
        self.authorized(&header, connection).await?;
        let job = self.job().await?;
        let Some(path) = job.output.filter(|_| job.state == State::Done) else {
            return Err(BusError::NotReady(format!(
                "job {} is {}; it has no video",
                job.id,
                job.state.name()
            )));
        };
        let opened = tokio::task::spawn_blocking(move || open_regular(&path).map_err(|e| (path, e)))
            .await
            .map_err(|_| BusError::Internal("the service is stopping".into()))?;
        match opened {
            Ok((file, _)) => Ok(OwnedFd::from(StdOwnedFd::from(file))),
            Err((path, e)) => {
                Err(BusError::NotFound(format!("the video `{}` cannot be opened: {e}", show(path))))
            }
        }
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> u64 {
        self.facts.id
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn owner(&self) -> u32 {
        self.facts.owner
    }

    /// queued, running, finishing, done, failed, canceled
    #[zbus(property)]
    fn state(&self) -> &str {
        self.facts.state.name()
    }

    /// load, text, image, vae-encode, denoise, vae-decode, write; empty while it does not run
    #[zbus(property)]
    fn stage(&self) -> &str {
        self.facts.stage
    }

    /// Denoising steps done and in all.
    #[zbus(property)]
    fn step(&self) -> (u32, u32) {
        self.facts.step
    }

    /// 0 to 1 over the whole job.
    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.facts.progress
    }

    /// Microseconds since the epoch; 0 while not known.
    #[zbus(property)]
    fn expected_end(&self) -> u64 {
        self.facts.expected_end
    }

    /// 1 for the next job of the queue; 0 when it does not wait.
    #[zbus(property)]
    fn position(&self) -> u32 {
        self.facts.position
    }
}

fn description(job: &Job, stages: Vec<(String, f64)>) -> HashMap<String, OwnedVariant> {
    let mut dict = HashMap::new();
    let mut put = |key: &str, value: Option<Variant<'_>>| {
        if let Some(Ok(value)) = value.map(Variant::try_into_owned) {
            dict.insert(key.to_owned(), value);
        }
    };
    put("id", Some(job.id.into()));
    put("uuid", Some(job.uuid.as_str().into()));
    put("state", Some(job.state.name().into()));
    put("owner", Some(job.owner.into()));
    put("name", Some(show(&job.name).into()));
    put("created", Some(job.created_us.into()));
    put("started", job.started_us.map(Into::into));
    put("finished", job.finished_us.map(Into::into));
    put("attempt", Some(job.attempt.into()));
    put("source", job.source.as_ref().map(|s| show(&s.path).into()));
    put(
        "source_moved_to",
        job.source_target.as_ref().filter(|_| !job.state.is_open()).map(|p| show(p).into()),
    );
    put("output", job.output.as_ref().map(|p| show(p).into()));
    put("output_bytes", job.output_bytes.map(Into::into));
    put("width", job.width.map(Into::into));
    put("height", job.height.map(Into::into));
    put("model", job.model.as_deref().map(Into::into));
    put("backend", job.backend.as_deref().map(Into::into));
    put("forwards_computed", job.forwards_computed.map(Into::into));
    put("forwards_skipped", job.forwards_skipped.map(Into::into));
    put("ram_peak_bytes", job.ram_peak_bytes.map(Into::into));
    put("gpu_peak_bytes", job.gpu_peak_bytes.map(Into::into));
    put("error_code", job.error_code.as_deref().map(Into::into));
    put("error_text", job.error_text.as_deref().map(Into::into));
    put("stages", Some(stages).filter(|s| !s.is_empty()).map(Variant::new));
    put("settings", job.request.as_ref().and_then(settings));
    dict
}

/// The resolved settings as `a{sv}`.
fn settings(request: &animd_engine::request::Request) -> Option<Variant<'static>> {
    let serde_json::Value::Object(map) = serde_json::to_value(request).ok()? else { return None };
    let dict: HashMap<String, Variant<'static>> = map
        .into_iter()
        .filter_map(|(key, value)| {
            let value = match value {
                serde_json::Value::String(text) => text.into(),
                serde_json::Value::Bool(b) => b.into(),
                serde_json::Value::Number(n) => match n.as_u64() {
                    Some(n) => n.into(),
                    None => n.as_f64()?.into(),
                },
                _ => return None,
            };
            Some((key, value))
        })
        .collect();
    Some(dict.into())
}
