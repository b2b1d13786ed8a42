//! What a user should know of settings that a family supports: which of them change nothing, and which have effects that nobody
//! has measured.

use super::{BASE, ExpertName, Recipe};
use crate::defaults::{Defaults, NOISE_MULTIPROCESSORS};
use crate::request::{Noise, Request, Resize, Size, StepCache};

impl Recipe {
    /// Returns what a user should know of a request that [`Recipe::check`] does not refuse, one sentence each.
    ///
    /// A setting that changes nothing is told as far as it can be seen in a request, which has a value for every setting: one that
    /// has its default counts as not given.
    pub fn remarks(&self, request: &Request) -> Vec<String> {
        let idle = self.idle(request).map(|(why, names)| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let verb = if names.len() > 1 { "change" } else { "changes" };
            format!("{why}, so {} {verb} nothing", names.join(", "))
        });
        idle.chain(self.remark_on_ratios(request)).collect()
    }

    /// Returns the settings that change nothing, by the reason why they do not.
    #[expect(clippy::float_cmp, reason = "a default is recognised by being the same number")]
    fn idle(&self, request: &Request) -> impl Iterator<Item = (String, Vec<&'static str>)> {
        let experts = self.step_experts(request);
        let no_low = !experts.contains(&ExpertName::LowNoise.index());
        let no_high = experts.iter().all(|expert| *expert == ExpertName::LowNoise.index());
        let guided = experts.iter().any(|expert| self.branches(*expert, request) > 1);
        let low = [
            ("sampler_low", request.sampler_low.is_some()),
            ("shift_low", request.shift_low.is_some()),
            ("guidance_low", request.guidance_low.is_some()),
        ];
        let high = ("steps_high", request.steps_high.is_some());
        let shift =
            self.defaults.shift_of(request.sampler.is_distilled(), request.size, request.has_last_frame());
        let guidance = self.defaults.guidance_of(request.sampler.is_distilled());
        // What is said of both is that of the low-noise transformer, where nothing else is said of it.
        let both = [
            ("shift", request.shift_low.is_some() && request.shift != shift),
            ("guidance", request.guidance_low.is_some() && request.guidance != guidance),
        ];
        let base = ("guidance_base", request.guidance_base.is_some());
        let of_experts = match self.experts.len() < BASE {
            true => vec![(
                format!("{} has one transformer", self.family),
                [high].into_iter().chain(low).chain([base]).collect::<Vec<_>>(),
            )],
            false => vec![
                (
                    "the low-noise transformer computes none of the steps".to_owned(),
                    low.into_iter().filter(|_| no_low).collect(),
                ),
                (
                    "the high-noise transformer computes none of the steps".to_owned(),
                    both.into_iter().filter(|_| no_high).collect(),
                ),
                (
                    "there are no steps of `steps_base`".to_owned(),
                    [base].into_iter().filter(|_| request.steps_base() == 0).collect(),
                ),
            ],
        };
        let cache = request.step_cache == StepCache::None && request.step_cache_threshold != 0.0;
        let cpu = request.noise == Noise::Cpu && request.noise_multiprocessors != NOISE_MULTIPROCESSORS;
        let exact = matches!(request.size, Size::Exact { .. }) && request.resize != Resize::default();
        let prompt = !guided && !Defaults::is_negative_prompt(&request.negative_prompt);
        let others = [
            ("no step has a guidance other than 1", ("negative_prompt", prompt)),
            ("there is no `step_cache`", ("step_cache_threshold", cache)),
            ("the `noise` is that of a CPU's generator", ("noise_multiprocessors", cpu)),
            ("the `size` is exact", ("resize", exact)),
        ];
        let others = others.into_iter().map(|(why, setting)| (why.to_owned(), vec![setting]));
        of_experts.into_iter().chain(others).filter_map(|(why, settings)| {
            let given: Vec<&str> =
                settings.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
            (!given.is_empty()).then_some((why, given))
        })
    }

    #[expect(clippy::float_cmp, reason = "the published schedule has exactly this shift")]
    fn remark_on_ratios(&self, request: &Request) -> Option<String> {
        let ratios = self
            .step_caches
            .magcache_by_forward
            .as_ref()
            .filter(|_| request.step_cache == StepCache::Magcache)?;
        let (steps, shift) = (ratios[0].len(), *self.defaults.shift.of(request.size));
        let others: Vec<String> = [
            (request.steps as usize != steps).then(|| format!("{} steps", request.steps)),
            (request.shift != shift).then(|| format!("a shift of {}", request.shift)),
            request
                .shift_low
                .filter(|low| *low != request.shift)
                .map(|low| format!("a `shift_low` of {low}")),
            request.steps_high.map(|high| format!("a `steps_high` of {high}")),
            (request.steps_base() > 0).then(|| format!("a `steps_base` of {}", request.steps_base())),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!others.is_empty()).then(|| {
            format!(
                "the ratios by which MagCache skips forwards were measured at {steps} steps with a shift of {shift}, and not with \
                 {}: compare a video with one that was made without a step cache",
                others.join(" and ")
            )
        })
    }
}
