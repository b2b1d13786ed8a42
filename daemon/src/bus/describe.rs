//! Everything about a job, as a dictionary for those who may see it.

use std::collections::HashMap;

use animd_engine::request::Request;
use zbus::{OwnedVariant, Variant};

use super::costs;
use crate::Result;
use crate::files::show;
use crate::ledger::{Costs, Job, Store};

/// About the bytes of everything in a description that has no length of its own choice.
const SHORT_VALUES: usize = 3 << 10;

/// A job's row and what hangs on it.
pub struct Whole {
    job: Job,
    stages: Vec<(String, f64)>,
    costs: Costs,
}

impl Whole {
    /// All of one job, out of the ledger.
    pub fn of(job: Job, db: &Store) -> Result<Self> {
        Ok(Self { stages: db.stages(job.id)?, costs: db.costs(job.id)?, job })
    }
}

/// About the bytes of a job's description.
pub fn size(job: &Job) -> usize {
    let request =
        job.request.as_ref().map_or(0, |request| request.prompt.len() + request.negative_prompt.len());
    let paths = [job.source.as_ref().map(|s| &s.path), job.source_target.as_ref(), job.output.as_ref()];
    let paths: usize = paths.into_iter().flatten().map(|path| path.as_os_str().len()).sum();
    let error = job.error_text.as_ref().map_or(0, String::len);
    SHORT_VALUES + request + paths + error + job.name.len()
}

/// What `Describe` answers: unknown values are left out.
pub fn description(whole: Whole) -> HashMap<String, OwnedVariant> {
    let Whole { job, stages, costs } = whole;
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
    put("priority", Some(job.priority.into()));
    put("created", Some(job.created_us.into()));
    put("started", job.started_us.map(Into::into));
    put("finished", job.finished_us.map(Into::into));
    put("attempt", Some(job.attempt.into()));
    put("retry_of", job.retry_of.map(Into::into));
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
    costs::describe(costs, &mut dict);
    dict
}

/// The resolved settings as `a{sv}`.
fn settings(request: &Request) -> Option<Variant<'static>> {
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
