//! Notices numbers that are none: a network whose weights are damaged computes NaN, infinities, or one value everywhere.
//!
//! The values are copied to the host while later operations run, and are looked at when they have arrived, so that the
//! device never waits for the check.

use rayon::prelude::*;

use animd_protocol::recipe::Component;

use crate::backend::{Backend, Fetched};
use crate::{Error, Result};

/// The values that one thread looks at.
const CHUNK: usize = 1 << 16;

/// Outputs of networks that are on their way to the host.
#[derive(Default)]
pub struct Outputs {
    arriving: Vec<(Component, Option<u32>, Fetched)>,
}

impl Outputs {
    /// Begins to copy what a network has computed, in which step if it is the DiT.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn watch<B: Backend>(
        &mut self,
        backend: &B,
        network: Component,
        step: Option<u32>,
        output: &B::Tensor,
    ) -> Result<()> {
        self.arriving.push((network, step, backend.fetch(output)?));
        Ok(())
    }

    /// Looks at all outputs that are on their way, the earliest first. Call it when later work is under way: by then they
    /// have arrived.
    ///
    /// # Errors
    /// Returns [`Error::Model`] with the network whose output is not finite or has only one value, or the backend's errors.
    pub fn check(&mut self) -> Result<()> {
        for (network, step, values) in self.arriving.drain(..) {
            let values = values()?;
            let Some(what) = fault(&values) else { continue };
            let step = step.map(|step| format!(" in step {step}")).unwrap_or_default();
            return Err(Error::Model(sentence(network, &step, what)));
        }
        Ok(())
    }
}

/// Checks the values of decoded frames, which may be of one colour.
///
/// # Errors
/// Returns [`Error::Model`] if one is not finite.
pub fn check_frames(values: &[f32]) -> Result<()> {
    if is_finite(values) { Ok(()) } else { Err(Error::Model(sentence(Component::Vae, "", NOT_FINITE))) }
}

const NOT_FINITE: &str = "values that are not numbers (NaN or infinity)";

/// Returns what is wrong with the output of a network.
fn fault(values: &[f32]) -> Option<&'static str> {
    if !is_finite(values) {
        return Some(NOT_FINITE);
    }
    // No network of the model has the same value everywhere, unless its weights are zeros.
    let [first, rest @ ..] = values else { return None };
    let same = !rest.is_empty() && rest.par_chunks(CHUNK).all(|part| part.iter().all(|value| value == first));
    same.then_some("the same value everywhere")
}

fn is_finite(values: &[f32]) -> bool {
    // A sum is not finite if one of its terms is not; unlike a comparison it needs no branch. It is of zeros, so that large
    // numbers do not overflow.
    values.par_chunks(CHUNK).all(|part| part.iter().map(|value| value * 0.0).sum::<f32>() == 0.0)
}

fn sentence(network: Component, step: &str, what: &str) -> String {
    format!(
        "the {0} computed {what}{step}: its weights are probably damaged; compare the checksums of the model's files with the \
         published ones, or download the {0} again",
        network.title()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::TensorOps as _;
    use crate::backend::cpu::Cpu;

    #[test]
    fn one_bad_number_among_many_is_found() -> Result<()> {
        let backend = Cpu::new();
        let good: Vec<f32> = (0..3 * CHUNK + 7).map(|n| (n as f32).sin() * 1e30).collect();
        let check = |values: &[f32]| {
            let mut outputs = Outputs::default();
            outputs.watch(&backend, Component::Dit, Some(3), &backend.upload(values, &[values.len()])?)?;
            outputs.check()
        };
        check(&good)?;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, CHUNK, good.len() - 1] {
                let mut values = good.clone();
                values[at] = bad;
                let error = check(&values).expect_err("not finite").to_string();
                assert!(error.starts_with("the DiT computed values that are"), "{error}");
                assert!(error.contains("in step 3: "), "{error}");
                assert!(check_frames(&values).is_err());
            }
        }
        let error = check(&[0.0; 100]).expect_err("zeros").to_string();
        assert!(error.contains("the same value everywhere"), "{error}");
        assert!(check(&[f32::MAX, 1.0]).is_ok() && check(&[0.0, 1e-38]).is_ok() && check(&[1.0]).is_ok());
        check_frames(&[0.5; 12])
    }

    #[test]
    fn the_first_network_that_fails_is_named() -> Result<()> {
        let backend = Cpu::new();
        let (good, bad) = (backend.upload(&[1.0, 2.0], &[2])?, backend.upload(&[f32::NAN, 2.0], &[2])?);
        let mut outputs = Outputs::default();
        outputs.watch(&backend, Component::T5, None, &good)?;
        outputs.watch(&backend, Component::Clip, None, &bad)?;
        outputs.watch(&backend, Component::Dit, Some(1), &bad)?;
        assert!(outputs.check().is_err_and(|e| e.to_string().starts_with("the CLIP vision tower")));
        Ok(())
    }
}
