//! The steps that a step cache saves.

pub mod magcache;
pub mod teacache;

use crate::recipe::Recipe;
use crate::request::{Request, StepCache};
use crate::schedule::SamplerConfig;

/// Which steps run the model, decided before the first one. A skipped step adds the residual of the last computed step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// For each step, whether its forwards are computed.
    pub compute: Vec<bool>,
}

impl StepPlan {
    /// Returns the plan of a request's step cache. `embeddings` is called for `TeaCache` only: for each step's timestep
    /// it gives the time embedding `e`, or for `true` the modulation `e0`. Without figures for the family every step is
    /// computed: [`Recipe::check`] refuses such a request.
    ///
    /// # Errors
    /// Returns what `embeddings` fails with.
    pub fn new<E>(
        recipe: &Recipe,
        request: &Request,
        embeddings: impl FnOnce(bool) -> Result<Vec<Vec<f32>>, E>,
    ) -> Result<Self, E> {
        let (tables, size, threshold) = (&recipe.step_caches, request.size, request.step_cache_threshold);
        let steps = request.steps as usize;
        let all = || vec![true; steps];
        let compute = match request.step_cache {
            StepCache::None => all(),
            StepCache::Teacache | StepCache::TeacacheRet => {
                let ret = request.step_cache == StepCache::TeacacheRet;
                let table = if ret { &tables.teacache_ret } else { &tables.teacache };
                match table {
                    Some(table) => teacache::plan(&embeddings(ret)?, table.of(size), threshold, ret).compute,
                    None => all(),
                }
            }
            StepCache::Magcache => match &tables.magcache {
                Some(table) => magcache::plan(
                    steps,
                    table.of(size),
                    threshold,
                    magcache::max_skips(threshold),
                    magcache::RETENTION,
                ),
                None => all(),
            },
        };
        let mut plan = Self { compute };
        plan.compute_where_experts_change(&experts(recipe, request));
        Ok(plan)
    }

    /// A step cannot repeat what another expert's blocks added.
    fn compute_where_experts_change(&mut self, experts: &[usize]) {
        for (compute, pair) in self.compute.iter_mut().skip(1).zip(experts.windows(2)) {
            *compute |= pair[0] != pair[1];
        }
    }

    /// Returns the numbers of computed and of skipped forwards, with two forwards a step under guidance.
    pub fn forwards(&self, guidance: bool) -> (u32, u32) {
        let each = if guidance { 2 } else { 1 };
        let computed = self.compute.iter().filter(|&&compute| compute).count() as u32;
        (each * computed, each * (self.compute.len() as u32 - computed))
    }

    /// Returns the number of forwards that each expert computes, where `experts` has each step's expert.
    pub fn forwards_of(&self, experts: &[usize], guidance: bool) -> Vec<u32> {
        let each = if guidance { 2 } else { 1 };
        let mut forwards = vec![0; experts.iter().max().map_or(0, |last| last + 1)];
        for (expert, _) in experts.iter().zip(&self.compute).filter(|(_, compute)| **compute) {
            forwards[*expert] += each;
        }
        forwards
    }
}

/// Returns, for each step of a request, the index of the expert that computes it.
pub fn experts(recipe: &Recipe, request: &Request) -> Vec<usize> {
    // A resolved request has a schedule.
    let timesteps = SamplerConfig::new(request).map(|sampler| sampler.timesteps()).unwrap_or_default();
    timesteps.into_iter().map(|timestep| recipe.expert_at(timestep)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InvalidSetting;
    use crate::request::Settings;

    #[test]
    fn a_request_picks_its_plan() -> Result<(), InvalidSetting> {
        let recipe = Recipe::wan21_i2v_14b();
        let request = Settings::default().resolve(|| 1)?;
        let none = |_| Err(InvalidSetting("not asked for".into()));
        assert_eq!(StepPlan::new(&recipe, &request, none)?.forwards(true), (80, 0));

        let cached =
            Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() }.resolve(|| 1)?;
        assert_eq!(StepPlan::new(&recipe, &cached, none)?.forwards(true), (34, 46));
        assert_eq!(StepPlan::new(&recipe, &cached, none)?.forwards(false), (17, 23));

        let cached =
            Settings { step_cache: Some(StepCache::TeacacheRet), ..Settings::default() }.resolve(|| 1)?;
        let plan = StepPlan::new(&recipe, &cached, |ret| {
            assert!(ret);
            Ok(vec![vec![1.0]; 40])
        })?;
        // The embeddings do not move: only the polynomial's constant accumulates, 0.1325 a step.
        assert_eq!(plan.compute[..9], [true, true, true, true, true, false, true, false, true]);
        Ok(())
    }
}
