//! Another try at a job that has ended.

use std::future::ready;

use animd_common::files::show;
use animd_protocol::lora::LoraChoice;
use animd_protocol::recipe::Defaults;
use animd_protocol::request::{Request, Sampler, Settings, StepCache};
use animd_protocol::{ErrorCode, InvalidSetting};

use super::{Origin, Queue, Submission, draw_seed};
use crate::error::{Error, Result};
use crate::store::ledger::Added;

/// What another try at a job changes.
#[derive(Clone, Debug, Default)]
pub struct Retry {
    /// Settings in place of the job's own.
    pub settings: Settings,
    /// Whether a seed is drawn where `settings` has none. Otherwise the same video is made again.
    pub new_seed: bool,
}

impl Queue {
    /// Queues an ended job's picture once more, with its settings but for what `retry` changes, and returns the new
    /// job's number. The new job has the same owner, name, priority and place for its video.
    ///
    /// # Errors
    /// [`Error::Refused`] with `not-found`; `not-ready` for an open job, or one without settings or picture;
    /// `invalid-setting`; `memory`; `queue-full`.
    pub async fn retry(&self, id: u64, retry: Retry) -> Result<u64> {
        let job = self.ended(id, "retried").await?;
        let gone = |what: &str| {
            let name = show(&job.name);
            Error::refused(
                ErrorCode::NotReady,
                format!("{what}; submit `{name}` again in place of retrying job {id}"),
            )
        };
        let request = job
            .request
            .as_ref()
            .ok_or_else(|| gone("the settings of this job cannot be read, or never could"))?;
        let with_models = |settings| self.config.get().with_models(settings);
        let resolve = |settings| self.defaults.resolve(settings, draw_seed);
        let request = overridden(request, retry, with_models, resolve)?;
        self.admit(&request)?;
        let spooled = job
            .image_sha256
            .and_then(|sha256| self.spool.hold(sha256))
            .ok_or_else(|| gone("the service's copy of the picture is gone (retention.pictures_days)"))?;
        let last = match request.last.is_empty() {
            true => None,
            false => Some(job.last_sha256.and_then(|sha256| self.spool.hold(sha256)).ok_or_else(|| {
                gone("the service's copy of the last picture is gone (retention.pictures_days)")
            })?),
        };
        let submission = Submission {
            owner: job.owner,
            name: job.name.clone(),
            origin: Origin::Retry(id),
            priority: job.priority,
            outbox: job.outbox.clone(),
            source: None,
            work: Ok((spooled, request)),
            last,
        };
        match self.submit(submission, |_| ready(Ok(()))).await? {
            Added::New(new) => Ok(new),
            Added::Full => Err(Error::refused(
                ErrorCode::QueueFull,
                format!(
                    "user {} has {} open jobs, which is the limit (queue.per_user); wait for one, or cancel one",
                    job.owner,
                    self.config.get().queue.per_user
                ),
            )),
            Added::Over(quota) => Err(Error::refused(ErrorCode::QueueFull, self.over(quota, job.owner))),
            Added::Known(_) | Added::Unspooled => Err(gone("the service's copy of the picture is gone")),
        }
    }
}

/// Returns a request with some settings changed. A setting that depends on a changed one and is not given is resolved
/// anew.
fn overridden(
    request: &Request,
    retry: Retry,
    with_models: impl Fn(Settings) -> Settings,
    resolve: impl FnOnce(Settings) -> Result<Request, InvalidSetting>,
) -> Result<Request> {
    let unreadable =
        |e| Error::refused(ErrorCode::InvalidSetting, format!("its settings cannot be read: {e}"));
    let mut old: Settings = match &request.open {
        // Nothing was filled in that would count as wanted.
        Some(given) => Settings::clone(given),
        None => serde_json::to_value(request).and_then(serde_json::from_value).map_err(unreadable)?,
    };
    let Retry { settings: mut new, new_seed } = retry;
    // Another model may need another sampler, and another size and length of the video; what should happen stays. Another LoRA
    // may need another sampler, too.
    let sampling = |lora: &Option<Vec<LoraChoice>>| {
        let settings = Settings { model: old.model.clone(), lora: lora.clone(), ..Settings::default() };
        let Settings { sampler, steps, shift, guidance, .. } = with_models(settings);
        (sampler, steps, shift, guidance)
    };
    let other_sampling = new.lora.is_some() && sampling(&new.lora) != sampling(&Some(request.lora.clone()));
    let without_loras = new.lora.as_ref().is_some_and(Vec::is_empty);
    let anew = other_sampling || (new.model.is_some() && new.model != request.model);
    if anew || without_loras {
        // They lead over to steps with LoRAs, of which there may be none now.
        old.steps_base = None;
    }
    if new.steps_base.or(old.steps_base).unwrap_or_default() == 0 {
        // What is only for base steps goes with them: whoever retries the job has not asked for it.
        old.guidance_base = None;
        old.lora.iter_mut().flatten().for_each(|choice| choice.strength_base = None);
    }
    if anew {
        (old.sampler, old.steps, old.shift, old.guidance) = (None, None, None, None);
        (old.sampler_low, old.steps_high, old.shift_low) = (None, None, None);
        (old.guidance_low, old.guidance_base) = (None, None);
        (old.step_cache, old.step_cache_threshold) = (None, None);
        new.prompt = new.prompt.or_else(|| old.prompt.take());
        // What to avoid is another list in each family, unless somebody wrote one.
        old.negative_prompt = old.negative_prompt.filter(|prompt| !Defaults::is_negative_prompt(prompt));
        new = with_models(new);
    }
    let low = request.sampler_low.unwrap_or(request.sampler);
    let other = new.sampler.is_some_and(|sampler| sampler != request.sampler);
    let other_low = new.sampler_low.is_some_and(|sampler| sampler != low);
    if other {
        (old.shift, old.guidance) = (None, None);
    }
    if other || other_low {
        // Samplers differ in how many steps they take, and so does what is said of some of the steps.
        (old.steps, old.steps_high, old.shift_low, old.guidance_low) = (None, None, None, None);
        let samplers = [new.sampler.or(old.sampler), new.sampler_low.or(old.sampler_low)];
        if samplers.into_iter().flatten().any(Sampler::is_distilled) {
            (old.step_cache, old.step_cache_threshold) = (None, None);
        }
    }
    if new.size.is_some_and(|size| size.is_480p() != request.size.is_480p()) {
        old.shift = None;
    }
    if new.step_cache.is_some_and(|cache| cache != request.step_cache)
        || request.step_cache == StepCache::None
    {
        old.step_cache_threshold = None;
    }
    if new.looped == Some(true) && !request.looped {
        (old.last, old.shift) = (None, None);
    }
    if new_seed {
        old.seed = None;
    }
    Ok(resolve(with_models(new.or(old)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overridden(request: &Request, retry: Retry, family: &Defaults) -> Result<Request> {
        super::overridden(
            request,
            retry,
            |settings| settings,
            |settings| settings.resolve_for(family, draw_seed),
        )
    }

    #[test]
    fn another_try_is_the_same_but_for_what_is_asked() -> Result<()> {
        let family = Defaults::wan21_i2v();
        let overridden = |request: &Request, retry| overridden(request, retry, &family);
        let with = |settings: Settings| Retry { settings, new_seed: false };
        let first = Settings { prompt: Some("a".into()), seed: Some(7), ..Settings::default() };
        let first = first.resolve(|| 0)?;
        assert_eq!(overridden(&first, Retry::default())?, first);
        let other = overridden(&first, with(Settings { prompt: Some("b".into()), ..Settings::default() }))?;
        assert_eq!((other.prompt.as_str(), other.seed), ("b", 7));
        let distilled = Settings { sampler: Some(Sampler::Distill), ..Settings::default() };
        let other = overridden(&first, with(distilled))?;
        assert_eq!((other.steps, other.guidance, other.shift), (4, 1.0, 5.0));
        let cached = Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() };
        assert_eq!(overridden(&first, with(cached))?.step_cache_threshold, 0.12);
        let large = Settings { size: Some(animd_protocol::request::Size::P720), ..Settings::default() };
        assert_eq!(overridden(&first, with(large))?.shift, 5.0);
        // LoRAs stay with their hashes, and others bring their sampler.
        let named = |text: &str| -> Result<Settings> {
            Ok(Settings { lora: Some(animd_protocol::lora::parse(text)?), ..Settings::default() })
        };
        let pinned = format!("detail:0.5#{}", "0f".repeat(32));
        let adapted = named(&pinned)?.or(Settings { seed: Some(7), ..Settings::default() }).resolve(|| 0)?;
        assert_eq!(overridden(&adapted, Retry::default())?, adapted);
        let distils = |settings: Settings| match &settings.lora {
            Some(wanted) if wanted.iter().any(|choice| choice.name == "fast") => {
                settings.or(Settings { sampler: Some(Sampler::Distill), ..Settings::default() })
            }
            _ => settings,
        };
        let resolve = |settings: Settings| settings.resolve_for(&family, draw_seed);
        let other = super::overridden(&adapted, with(named("fast")?), distils, resolve)?;
        assert_eq!((other.lora.len(), other.sampler, other.steps), (1, Sampler::Distill, 4));
        let other = super::overridden(&adapted, with(named("style")?), distils, resolve)?;
        assert_eq!((&*other.lora[0].name, other.sampler, other.steps), ("style", Sampler::Unipc, 40));
        let base = Settings { steps_base: Some(2), ..Settings::default() };
        let phases = named("fast")?.or(base).resolve(|| 0)?;
        assert_eq!(overridden(&phases, Retry::default())?, phases);
        let none = Settings { lora: Some(Vec::new()), ..Settings::default() };
        assert_eq!(overridden(&phases, with(none))?.steps_base, None);
        let drawn = overridden(&first, Retry { new_seed: true, ..Retry::default() })?;
        assert!(drawn.seed != 7);
        assert!(overridden(&first, with(Settings { steps: Some(0), ..Settings::default() })).is_err());
        Ok(())
    }
    #[test]
    fn what_is_only_for_base_steps_goes_with_them() -> Result<()> {
        let family = Defaults::wan22_i2v();
        let with = |settings: Settings| Retry { settings, new_seed: false };
        let settings = Settings {
            lora: Some(animd_protocol::lora::parse("pair:0.5:1:1, low:0:1")?),
            sampler: Some(Sampler::Distill),
            steps_base: Some(2),
            guidance_base: Some(3.0),
            ..Settings::default()
        };
        let phases = settings.resolve_for(&family, || 7)?;
        let of = |request: &Request| {
            let loras = request.lora.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            (loras, request.steps_base(), request.guidance_base)
        };
        let with_base = "pair:0.5:1:1, low:0:1".to_owned();
        let other_model = Settings { model: Some("other".into()), ..Settings::default() };
        let no_base = Settings { steps_base: Some(0), ..Settings::default() };
        for settings in [other_model.clone(), no_base] {
            let again = overridden(&phases, with(settings), &family)?;
            assert_eq!(of(&again), ("pair:1:1, low:0:1".into(), 0, None));
        }
        // Who asks for such steps keeps the strengths; another model has its own guidance.
        let again =
            overridden(&phases, with(Settings { steps_base: Some(1), ..other_model.clone() }), &family)?;
        assert_eq!(of(&again), (with_base.clone(), 1, None));
        let again =
            overridden(&phases, with(Settings { steps_base: Some(1), ..Settings::default() }), &family)?;
        assert_eq!(of(&again), (with_base, 1, Some(3.0)));
        // What a retry itself asks for is not taken away.
        let own = Settings { lora: Some(animd_protocol::lora::parse("x:1:1:1")?), ..other_model };
        let error = overridden(&phases, with(own), &family).expect_err("no such steps").to_string();
        assert!(error.contains("set `steps_base`, or write `x:HIGH:LOW`"), "{error}");
        Ok(())
    }

    #[test]
    fn settings_of_the_low_noise_steps_go_with_the_samplers_they_are_for() -> Result<()> {
        let family = Defaults::wan22_i2v();
        let with = |settings: Settings| Retry { settings, new_seed: false };
        let settings = Settings {
            steps_high: Some(15),
            shift_low: Some(3.0),
            guidance_low: Some(2.5),
            step_cache: Some(StepCache::Magcache),
            ..Settings::default()
        };
        let released = settings.resolve_for(&family, || 7)?;
        let of = |r: &Request| (r.steps, r.steps_high, r.sampler_low, r.shift_low, r.guidance_low);
        let low = Settings { sampler_low: Some(Sampler::Distill), ..Settings::default() };
        let mixed = overridden(&released, with(low.clone()), &family)?;
        assert_eq!(of(&mixed), (8, None, Some(Sampler::Distill), None, None));
        assert_eq!(mixed.step_cache, StepCache::None);
        let same = Settings { sampler_low: Some(Sampler::Unipc), ..Settings::default() };
        let same = overridden(&released, with(same), &family)?;
        assert_eq!(of(&same), (40, Some(15), Some(Sampler::Unipc), Some(3.0), Some(2.5)));
        let both = Settings { sampler: Some(Sampler::Distill), ..Settings::default() };
        assert_eq!(of(&overridden(&released, with(both), &family)?), (4, None, None, None, None));
        // A model of one transformer has no such steps, and its sampler takes its own number.
        let other_model = Settings { model: Some("other".into()), ..Settings::default() };
        let again = overridden(&mixed, with(other_model), &Defaults::wan21_i2v())?;
        assert_eq!(of(&again), (40, None, None, None, None));
        assert_eq!(again.negative_prompt, Defaults::wan21_i2v().negative_prompt);
        Ok(())
    }
}
