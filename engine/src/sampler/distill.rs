//! The samplers of step-distilled models, as `LightX2V` runs them: a few steps, no guidance, no memory.

use crate::Result;
use crate::backend::TensorOps;

/// From noise level `sigma` to `next` along the model's velocity: the clean sample that it points to, and as much of the
/// velocity again as the next level wants. With `next` 0 the clean sample.
pub fn euler<B: TensorOps>(
    b: &B,
    sigma: f32,
    next: f32,
    velocity: &B::Tensor,
    sample: &B::Tensor,
) -> Result<B::Tensor> {
    // Two terms of the same tensor, so that rounding is the reference's.
    let terms = [(1.0, sample), (-sigma, velocity), (next, velocity)];
    b.linear_combination(if next == 0.0 { &terms[..2] } else { &terms })
}

/// From noise level `sigma` to `next` with new noise: the clean sample that the velocity points to, mixed with `noise`.
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
