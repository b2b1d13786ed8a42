//! Which steps a step cache saves.

pub mod magcache;
pub mod teacache;

use crate::request::{Request, StepCache};

/// Which steps run the model, known before the first one. A step that does not adds the residual of the last one that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// For each step, whether its forwards are computed.
    pub compute: Vec<bool>,
}

impl StepPlan {
    /// The plan of a request's step cache. `embeddings` is asked by `TeaCache` only: for each step's timestep, the time
    /// embedding `e`, or for `true` the modulation `e0`.
    ///
    /// # Errors
    /// What `embeddings` fails with.
    pub fn new<E>(
        request: &Request,
        embeddings: impl FnOnce(bool) -> Result<Vec<Vec<f32>>, E>,
    ) -> Result<Self, E> {
        let is_480p = request.size.is_480p();
        let threshold = request.step_cache_threshold;
        let teacache = |ret, embeddings: Vec<Vec<f32>>| {
            teacache::plan(&embeddings, teacache::coefficients(is_480p, ret), threshold, ret).compute
        };
        let compute = match request.step_cache {
            StepCache::None => vec![true; request.steps as usize],
            StepCache::Teacache => teacache(false, embeddings(false)?),
            StepCache::TeacacheRet => teacache(true, embeddings(true)?),
            StepCache::Magcache => magcache::plan(
                request.steps as usize,
                magcache::ratios(is_480p),
                threshold,
                magcache::max_skips(threshold),
                magcache::RETENTION,
            ),
        };
        Ok(Self { compute })
    }

    /// Forwards that are computed and forwards that are skipped, with two forwards a step under guidance.
    pub fn forwards(&self, guidance: bool) -> (u32, u32) {
        let each = if guidance { 2 } else { 1 };
        let computed = self.compute.iter().filter(|&&compute| compute).count() as u32;
        (each * computed, each * (self.compute.len() as u32 - computed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InvalidSetting;
    use crate::request::Settings;

    #[test]
    fn a_request_picks_its_plan() -> Result<(), InvalidSetting> {
        let request = Settings::default().resolve(|| 1)?;
        let none = |_| Err(InvalidSetting("not asked for".into()));
        assert_eq!(StepPlan::new(&request, none)?.forwards(true), (80, 0));

        let cached =
            Settings { step_cache: Some(StepCache::Magcache), ..Settings::default() }.resolve(|| 1)?;
        assert_eq!(StepPlan::new(&cached, none)?.forwards(true), (34, 46));
        assert_eq!(StepPlan::new(&cached, none)?.forwards(false), (17, 23));

        let cached =
            Settings { step_cache: Some(StepCache::TeacacheRet), ..Settings::default() }.resolve(|| 1)?;
        let plan = StepPlan::new(&cached, |ret| {
            assert!(ret);
            Ok(vec![vec![1.0]; 40])
        })?;
        // Embeddings that do not move: only the polynomial's constant gathers, 0.1325 a step.
        assert_eq!(plan.compute[..9], [true, true, true, true, true, false, true, false, true]);
        Ok(())
    }
}
