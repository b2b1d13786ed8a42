//! What a model's file says of its jobs, for jobs that leave it open.

use crate::model_file::{ModelFile, Sampling};
use crate::request::{DISTILL_TIMESTEPS, Sampler, Settings};

/// Returns a job's settings, with those of its model's file where the job has none: they outrank the service's defaults and
/// the profile's.
#[must_use]
pub fn with_model(settings: Settings, model: &ModelFile) -> Settings {
    let defaults = Settings {
        prompt: model.defaults.prompt.clone(),
        size: model.defaults.size,
        frames: model.defaults.frames,
        ..Settings::default()
    };
    with_sampling(settings, &model.sampling).or(defaults)
}

/// Returns a job's settings, with what the file of its model or of a `LoRA` remembers of sampling where the job says nothing,
/// because a distilled model gives noise with another model's sampler. A job that chooses its own sampler also gets that
/// sampler's steps, shift and guidance.
#[must_use]
pub fn with_sampling(settings: Settings, sampling: &Sampling) -> Settings {
    if settings.sampler.is_some() {
        return settings;
    }
    let distilled = sampling.distilled == Some(true);
    settings.or(Settings {
        sampler: sampling.distilled.map(|yes| if yes { Sampler::Distill } else { Sampler::Unipc }),
        steps: sampling.steps.or(distilled.then_some(DISTILL_TIMESTEPS.len() as u32)),
        shift: sampling.shift.or(distilled.then_some(5.0)),
        guidance: sampling.guidance.or(distilled.then_some(1.0)),
        ..Settings::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_file::JobDefaults;
    use crate::request::Size;

    #[test]
    fn what_is_remembered_of_a_model_fills_in_what_a_job_leaves_open() {
        let distilled = Sampling { distilled: Some(true), ..Sampling::default() };
        let filled = with_sampling(Settings::default(), &distilled);
        assert_eq!(
            (filled.sampler, filled.steps, filled.guidance),
            (Some(Sampler::Distill), Some(4), Some(1.0))
        );
        let own = Settings { sampler: Some(Sampler::Unipc), ..Settings::default() };
        assert_eq!(with_sampling(own.clone(), &distilled), own);
        let shifted = Sampling { shift: Some(8.0), ..Sampling::default() };
        let filled = with_sampling(Settings { steps: Some(9), ..Settings::default() }, &shifted);
        assert_eq!((filled.sampler, filled.steps, filled.shift), (None, Some(9), Some(8.0)));
        assert_eq!(with_sampling(Settings::default(), &Sampling::default()), Settings::default());
    }

    #[test]
    fn a_models_size_and_frames_are_for_jobs_that_name_none_whatever_their_sampler() {
        let small = Size::Exact { width: 320, height: 192 };
        let defaults = JobDefaults { prompt: Some(String::new()), size: Some(small), frames: Some(81) };
        let model = ModelFile { defaults, ..ModelFile::default() };
        let own = Settings {
            sampler: Some(Sampler::Unipc),
            frames: Some(9),
            prompt: Some("rain".into()),
            ..Settings::default()
        };
        let filled = with_model(own, &model);
        assert_eq!((filled.size, filled.frames), (Some(small), Some(9)));
        assert_eq!(filled.prompt.as_deref(), Some("rain"));
        assert_eq!(with_model(Settings::default(), &model).prompt.as_deref(), Some(""));
    }
}
