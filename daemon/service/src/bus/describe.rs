//! The answer of `Describe`: everything about a job, for callers who may see it.

use animd_common::files::show;
use animd_common::text::Text;
use animd_protocol::request::Request;

use super::answer::{Answer, Dict};
use super::{costs, facts};
use crate::error::Result;
use crate::store::ledger::{Costs, Job, State, Store, ToldLora, lora_bytes};

/// The approximate size in bytes of all values in a description whose length is bounded.
const SHORT_VALUES: usize = 3 << 10;

/// A job's row and the rows that belong to it.
pub struct Whole {
    job: Job,
    stages: Vec<(Text, f64)>,
    /// The `LoRAs` of the model's own file.
    model_loras: Vec<ToldLora>,
    /// What the engine has to say about a job that is done.
    notes: Vec<Text>,
    costs: Costs,
}

impl Whole {
    /// Reads a job's rows from the ledger.
    pub fn of(job: Job, db: &Store) -> Result<Self> {
        let (stages, model_loras, costs) = (db.stages(job.id)?, db.model_loras(job.id)?, db.costs(job.id)?);
        let notes = if job.state == State::Done { db.notes(job.id)? } else { Vec::new() };
        Ok(Self { job, stages, model_loras, notes, costs })
    }

    /// Returns the approximate size in bytes of the job's description.
    pub fn size(&self) -> usize {
        let Self { job, model_loras, notes, .. } = self;
        let request =
            job.request.as_ref().map_or(0, |request| request.prompt.len() + request.negative_prompt.len());
        // Those of the job are told twice, with their hashes: as they are and among the settings.
        let loras = job.request.iter().flat_map(|request| &request.lora);
        let loras: usize = loras.map(|choice| 2 * lora_bytes(&choice.name)).sum();
        let own: usize = model_loras.iter().map(|(name, ..)| lora_bytes(name)).sum();
        let paths = [job.source.as_ref().map(|s| &s.path), job.source_target.as_ref(), job.output.as_ref()];
        let paths: usize = paths.into_iter().flatten().map(|path| path.as_os_str().len()).sum();
        let error = job.error_text.as_ref().map_or(0, |text| text.len());
        let notes: usize = notes.iter().map(|note| note.len() + 8).sum();
        SHORT_VALUES + request + loras + own + notes + paths + error + job.name.len()
    }
}

/// Returns the answer of `Describe`. Values that are not known are left out.
pub fn description(whole: Whole) -> Dict {
    let Whole { job, stages, model_loras, notes, costs } = whole;
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
        .with("notes", Some(notes).filter(|notes| !notes.is_empty()))
        .with("stages", Some(stages).filter(|stages| !stages.is_empty()))
        .with("settings", job.request.as_ref().and_then(settings));
    costs::describe(costs, &mut answer);
    answer.dict()
}

/// Returns the resolved settings as `a{sv}`.
fn settings(request: &Request) -> Option<Answer> {
    let serde_json::Value::Object(map) = serde_json::to_value(request).ok()? else { return None };
    let mut answer = Answer::default();
    // What is open is no setting.
    for (key, value) in map.into_iter().filter(|(key, _)| key != "open") {
        answer.put(&key, value);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use animd_protocol::lora;
    use animd_protocol::request::Settings;
    use zbus::Message;

    use super::*;
    use crate::error::Error;
    use crate::store::Ledger;
    use crate::store::ledger::{Added, NewJob};

    #[test]
    fn the_size_of_a_description_counts_everything_that_can_be_long() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let ledger = Ledger::open(&dir.path().join("ledger.db"))?;
        let long = "n".repeat(200);
        let whole = |n: u8, settings: Settings, own: usize| -> Result<Whole> {
            let new = NewJob::made_up([n; 32], settings.resolve(|| 7)?);
            let whole = ledger.call_blocking(move |db| {
                let Added::New(id) = db.add(&new, || true)? else { panic!("it is new") };
                Whole::of(db.job(id)?.expect("it is there"), db)
            })?;
            let lora = (Text::from(&*long), vec![1.0, 0.5], Text::from(&*"ab".repeat(32)));
            Ok(Whole { model_loras: vec![lora; own], notes: vec![long.as_str().into(); own], ..whole })
        };
        let loras = (0..lora::MAX_LORAS).map(|n| format!("{long}{n}:0.1:0.2:0.3#{}", "0f".repeat(32)));
        let loras = lora::parse(&loras.collect::<Vec<_>>().join(","))?;
        let prompt = Some("p".repeat(16 << 10));
        for (n, settings, own) in [
            (1, Settings::default(), 0),
            (2, Settings::default(), 100),
            (3, Settings { lora: Some(loras), steps_base: Some(1), ..Settings::default() }, 0),
            (4, Settings { prompt: prompt.clone(), negative_prompt: prompt, ..Settings::default() }, 16),
        ] {
            let whole = whole(n, settings, own)?;
            let counted = whole.size();
            let sent = Message::method_call("/", "Describe").build(&description(whole));
            let sent = sent.expect("a message").body().len();
            assert!((sent..sent + 2 * SHORT_VALUES).contains(&counted), "{n}: {counted} for {sent}");
        }
        Ok(())
    }
}
