//! The samplers of step-distilled models, as `LightX2V` runs them: a few steps, without guidance or history.

use crate::Result;
use crate::backend::TensorOps;

/// Returns the sample at noise level `next`, from that at `sigma`, along the model's velocity: the clean sample that
/// the velocity points to, plus `next` times the velocity. With `next` 0 it is the clean sample.
pub fn euler<B: TensorOps>(
    b: &B,
    sigma: f32,
    next: f32,
    velocity: &B::Tensor,
    sample: &B::Tensor,
) -> Result<B::Tensor> {
    // The sum has two terms of the same tensor, so that it rounds as the reference does.
    let terms = [(1.0, sample), (-sigma, velocity), (next, velocity)];
    b.linear_combination(if next == 0.0 { &terms[..2] } else { &terms })
}

/// Returns the sample at noise level `next`, from that at `sigma`: the clean sample that the velocity points to, mixed
/// with `noise`.
pub fn renoise<B: TensorOps>(
    b: &B,
    sigma: f32,
    next: f32,
    velocity: &B::Tensor,
    sample: &B::Tensor,
    noise: &B::Tensor,
) -> Result<B::Tensor> {
    let clean = euler(b, sigma, 0.0, velocity, sample)?;
    b.linear_combination(&[((1.0 - f64::from(next)) as f32, &clean), (next, noise)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::testing::Host;

    #[test]
    fn new_noise_replaces_the_old() -> Result<()> {
        let [sample, velocity, noise] = [8.0, 4.0, 2.0].map(|value| Host.upload(&[value], &[1]));
        let next = renoise(&Host, 0.5, 0.25, &velocity?, &sample?, &noise?)?;
        // The clean sample is 8 - 0.5 * 4.
        assert_eq!(Host.download(&next)?, [0.75 * 6.0 + 0.25 * 2.0]);
        Ok(())
    }
}
