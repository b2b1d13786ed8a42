//! The forwards of a step: one for each prompt.

use crate::Result;
use crate::backend::Backend;
use crate::model::Probe;
use crate::model::dit::{Blocks, Dit, Inputs, Prefix};
use crate::progress::Observer;

/// The branches of a job's steps, the prompt's and with guidance the negative prompt's, with what they leave to later forwards.
pub struct Branches<'a, B: Backend> {
    backend: &'a B,
    observer: &'a dyn Observer,
    /// Whether a step cache needs the residuals of computed forwards.
    keep_residuals: bool,
    /// Whether the branches of a step share their prefix.
    share_prefix: bool,
    /// The sum that the blocks added at the last computed step, for each branch.
    residuals: [Option<B::Tensor>; 2],
}

impl<'a, B: Backend> Branches<'a, B> {
    /// Returns the branches before the first step.
    pub fn new(backend: &'a B, observer: &'a dyn Observer, keep_residuals: bool, share_prefix: bool) -> Self {
        Self { backend, observer, keep_residuals, share_prefix, residuals: [None, None] }
    }

    /// Returns the velocity of each branch of a step, whose `inputs` differ in their context. `compute` says which forwards
    /// compute their blocks; the others add what the blocks added before. `begins` hears which forward comes next.
    ///
    /// # Errors
    /// Returns the errors of [`Dit::forward`] and of `begins`.
    pub fn velocities<'i>(
        &mut self,
        dit: &Dit<B>,
        inputs: impl Iterator<Item = Inputs<'i, B>>,
        compute: &[bool],
        begins: &mut dyn FnMut(usize) -> Result<()>,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<Vec<B::Tensor>> {
        let &mut Self { backend, observer, keep_residuals, share_prefix, ref mut residuals } = self;
        // A forward that computes no blocks has no use for a prefix.
        let mut prefix = match share_prefix && compute == [true, true] {
            true => Prefix::Wanted,
            false => Prefix::Own,
        };
        let mut velocities = Vec::with_capacity(compute.len());
        for (branch, ((inputs, residual), &compute)) in inputs.zip(residuals).zip(compute).enumerate() {
            // The residual that is about to be replaced is freed first.
            if compute {
                *residual = None;
            }
            let blocks = match residual {
                Some(residual) => Blocks::Reuse(residual),
                None => Blocks::Compute { keep_residual: keep_residuals },
            };
            begins(branch)?;
            let probe = probe.as_mut().map(|probe| &mut **probe as &mut dyn FnMut(&str, &B::Tensor));
            let out = dit.branch(backend, &inputs, blocks, &mut prefix, observer, probe)?;
            if out.residual.is_some() {
                *residual = out.residual;
            }
            velocities.push(out.velocity);
        }
        Ok(velocities)
    }
}

#[cfg(test)]
mod tests;
