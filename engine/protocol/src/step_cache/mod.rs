//! The steps that a step cache saves.

pub mod magcache;
pub mod teacache;

use crate::recipe::Recipe;
use crate::request::{Request, StepCache};

/// Which forwards run the model's blocks, decided before the first step. A skipped forward adds the residual of the last
/// computed one with the same prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// For each step whether its forwards are computed: the one with the prompt and, under guidance, the one with the negative
    /// prompt.
    pub compute: Vec<Vec<bool>>,
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
        let (steps, experts) = (request.total_steps() as usize, recipe.step_experts(request));
        let both = |steps: Vec<bool>| [steps.clone(), steps];
        let all = || both(vec![true; steps]);
        let decided = match request.step_cache {
            StepCache::None => all(),
            StepCache::Teacache | StepCache::TeacacheRet => {
                let ret = request.step_cache == StepCache::TeacacheRet;
                let table = if ret { &tables.teacache_ret } else { &tables.teacache };
                match table {
                    Some(table) => {
                        both(teacache::plan(&embeddings(ret)?, table.of(size), threshold, ret).compute)
                    }
                    None => all(),
                }
            }
            StepCache::Magcache => {
                let skips = magcache::max_skips(threshold);
                match (&tables.magcache_by_forward, &tables.magcache) {
                    (Some(ratios), _) => {
                        magcache::plan_by_forward(
                            steps,
                            recipe.steps_before_low(request),
                            ratios.each_ref().map(Vec::as_slice),
                            threshold,
                            skips,
                            magcache::retention_by_forward(threshold),
                        )
                        .compute
                    }
                    (None, Some(table)) => {
                        both(magcache::plan(steps, table.of(size), threshold, skips, magcache::RETENTION))
                    }
                    (None, None) => all(),
                }
            }
        };
        let mut seen = [None; 2];
        let compute = experts.iter().enumerate().map(|(step, &expert)| {
            let branches = decided.iter().zip(&mut seen).take(recipe.branches(expert, request));
            // A forward cannot repeat what another expert's blocks added, nor what was never computed.
            branches.map(|(decided, seen)| seen.replace(expert) != Some(expert) || decided[step]).collect()
        });
        Ok(Self { compute: compute.collect() })
    }

    /// Returns a plan without a step cache.
    pub fn whole(recipe: &Recipe, request: &Request) -> Self {
        let experts = recipe.step_experts(request);
        Self { compute: experts.iter().map(|&expert| vec![true; recipe.branches(expert, request)]).collect() }
    }

    /// Returns the numbers of computed and of skipped forwards.
    pub fn forwards(&self) -> (u32, u32) {
        let count =
            |wanted| self.compute.iter().flatten().filter(|&&compute| compute == wanted).count() as u32;
        (count(true), count(false))
    }

    /// Returns whether any forward is skipped.
    pub fn skips(&self) -> bool {
        self.forwards().1 > 0
    }

    /// Returns for each step whether any of its forwards is computed.
    pub fn computed_steps(&self) -> Vec<bool> {
        self.compute.iter().map(|step| step.contains(&true)).collect()
    }

    /// Returns the number of forwards that each expert computes, where `experts` has each step's expert.
    pub fn forwards_of(&self, experts: &[usize]) -> Vec<u32> {
        let mut forwards = vec![0; experts.iter().max().map_or(0, |last| last + 1)];
        for (expert, step) in experts.iter().zip(&self.compute) {
            forwards[*expert] += step.iter().filter(|&&compute| compute).count() as u32;
        }
        forwards
    }
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
        assert_eq!(StepPlan::new(&recipe, &request, none)?.forwards(), (80, 0));

        let cached =
            Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() }.resolve(|| 1)?;
        assert_eq!(StepPlan::new(&recipe, &cached, none)?.forwards(), (34, 46));
        let alone = Request { guidance: 1.0, ..cached };
        assert_eq!(StepPlan::new(&recipe, &alone, none)?.forwards(), (17, 23));

        let cached =
            Settings { step_cache: Some(StepCache::TeacacheRet), ..Settings::default() }.resolve(|| 1)?;
        let plan = StepPlan::new(&recipe, &cached, |ret| {
            assert!(ret);
            Ok(vec![vec![1.0]; 40])
        })?;
        // The embeddings do not move: only the polynomial's constant accumulates, 0.1325 a step.
        assert_eq!(plan.computed_steps()[..9], [true, true, true, true, true, false, true, false, true]);
        Ok(())
    }
}
