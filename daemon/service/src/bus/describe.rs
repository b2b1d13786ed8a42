//! The answer of `Describe`: everything about a job, for callers who may see it.

use animd_common::files::show;
use animd_common::text::Text;
use animd_protocol::request::Request;

use super::answer::{Answer, Dict};
use super::{costs, facts};
use crate::error::Result;
use crate::store::ledger::{Costs, Job, Store, ToldLora};

/// The approximate size in bytes of all values in a description whose length is bounded.
const SHORT_VALUES: usize = 3 << 10;

/// A job's row and the rows that belong to it.
pub struct Whole {
    job: Job,
    stages: Vec<(Text, f64)>,
    /// The `LoRAs` of the model's own file.
    model_loras: Vec<ToldLora>,
    costs: Costs,
}

impl Whole {
    /// Reads a job's rows from the ledger.
    pub fn of(job: Job, db: &Store) -> Result<Self> {
        let (stages, model_loras, costs) = (db.stages(job.id)?, db.model_loras(job.id)?, db.costs(job.id)?);
        Ok(Self { job, stages, model_loras, costs })
    }
}

/// Returns the approximate size in bytes of a job's description.
pub fn size(job: &Job) -> usize {
    let request =
        job.request.as_ref().map_or(0, |request| request.prompt.len() + request.negative_prompt.len());
    // Each is told twice, with its hash.
    let loras = job.request.iter().flat_map(|request| &request.lora);
    let loras: usize = loras.map(|choice| 2 * (choice.name.len() + 128)).sum();
    let paths = [job.source.as_ref().map(|s| &s.path), job.source_target.as_ref(), job.output.as_ref()];
    let paths: usize = paths.into_iter().flatten().map(|path| path.as_os_str().len()).sum();
    let error = job.error_text.as_ref().map_or(0, |text| text.len());
    SHORT_VALUES + request + loras + paths + error + job.name.len()
}

/// Returns the answer of `Describe`. Values that are not known are left out.
pub fn description(whole: Whole) -> Dict {
    let Whole { job, stages, model_loras, costs } = whole;
    let moved_to = job.source_target.as_ref().filter(|_| !job.state.is_open() && !job.source_left);
    let mut answer = Answer::default()
        .with("id", job.id)
        .with("loras", facts::loras(&job))
        .with("model_loras", Some(model_loras).filter(|loras| !loras.is_empty()))
        .with("uuid", job.uuid)
        .with("state", job.state.name())
        .with("owner", job.owner)
        .with("name", show(&job.name))
        .with("priority", job.priority)
        .with("created", job.created_us)
        .with("started", job.started_us)
        .with("finished", job.finished_us)
        .with("attempt", job.attempt)
        .with("retry_of", job.retry_of)
        .with("source", job.source.map(|source| show(source.path)))
        .with("source_moved_to", moved_to.map(show))
        .with("output", job.output.map(show))
        .with("output_bytes", job.output_bytes)
        .with("width", job.width)
        .with("height", job.height)
        .with("model", job.model)
        .with("family", job.family)
        .with("conditioning", job.request.as_ref().map(Request::conditioning))
        .with("backend", job.backend)
        .with("forwards_computed", job.forwards_computed)
        .with("forwards_skipped", job.forwards_skipped)
        .with("ram_peak_bytes", job.ram_peak_bytes)
        .with("gpu_peak_bytes", job.gpu_peak_bytes)
        .with("error_code", job.error_code)
        .with("error_text", job.error_text)
        .with("stages", Some(stages).filter(|stages| !stages.is_empty()))
        .with("settings", job.request.as_ref().and_then(settings));
    costs::describe(costs, &mut answer);
    answer.dict()
}

/// Returns the resolved settings as `a{sv}`.
fn settings(request: &Request) -> Option<Answer> {
    let serde_json::Value::Object(map) = serde_json::to_value(request).ok()? else { return None };
    let mut answer = Answer::default();
    for (key, value) in map {
        answer.put(&key, value);
    }
    Some(answer)
}
