//! `TeaCache` (Liu et al. 2024, arXiv:2411.19108): a step whose time embedding has moved little repeats the last
//! residual.
//!
//! The skipped steps follow from the time embeddings of the schedule alone. They are therefore known before the first
//! step, and are the same with the prompt and with the negative prompt.

/// The polynomials published for Wan2.1 image-to-video (`TeaCache4Wan2.1`), highest power first.
const COEFFICIENTS_480P: [f64; 5] =
    [-3.02331670e+02, 2.23948934e+02, -5.25463970e+01, 5.87348440e+00, -2.01973289e-01];
const COEFFICIENTS_480P_RET: [f64; 5] =
    [2.57151496e+05, -3.54229917e+04, 1.40286849e+03, -1.35890334e+01, 1.32517977e-01];
const COEFFICIENTS_720P: [f64; 5] = [-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683];
const COEFFICIENTS_720P_RET: [f64; 5] =
    [8.10705460e+03, 2.13393892e+03, -3.72934672e+02, 1.66203073e+01, -4.17769401e-02];

/// The number of first steps that the `ret` variant always computes.
const RET_STEPS: usize = 5;

/// Returns the polynomial that turns a change of the time embedding into an expected change of the output, highest
/// power first. With `ret` it is that of the variant that watches the modulation.
pub fn coefficients(is_480p: bool, ret: bool) -> &'static [f64; 5] {
    match (is_480p, ret) {
        (true, false) => &COEFFICIENTS_480P,
        (true, true) => &COEFFICIENTS_480P_RET,
        (false, false) => &COEFFICIENTS_720P,
        (false, true) => &COEFFICIENTS_720P_RET,
    }
}

/// Which steps are computed, and the figures behind each decision.
#[derive(Clone, Debug, PartialEq)]
pub struct TeaCachePlan {
    /// For each step, whether it is computed.
    pub compute: Vec<bool>,
    /// For each step, mean |now - before| / mean |before| of the embeddings; none for the first.
    pub rel_l1: Vec<Option<f32>>,
    /// For each step, the accumulated change that was compared with the threshold; none where a step is always
    /// computed.
    pub accumulated: Vec<Option<f64>>,
}

impl TeaCachePlan {
    /// Returns the smallest distance of a decision from the threshold.
    pub fn min_margin(&self, threshold: f64) -> f64 {
        self.accumulated.iter().flatten().map(|sum| (sum - threshold).abs()).fold(f64::INFINITY, f64::min)
    }
}

/// Decides which steps are computed. `embeddings` has one vector a step: the time embedding `e`, or with `ret` the
/// modulation `e0` that is made of it. The first and the last step, or with `ret` the first five, are always computed.
pub fn plan(embeddings: &[Vec<f32>], coefficients: &[f64], threshold: f64, ret: bool) -> TeaCachePlan {
    let steps = embeddings.len();
    let free = if ret { RET_STEPS..steps } else { 1..steps.saturating_sub(1) };
    let mut plan = TeaCachePlan { compute: Vec::new(), rel_l1: Vec::new(), accumulated: Vec::new() };
    let mut sum = 0.0;
    for (i, now) in embeddings.iter().enumerate() {
        let change = i.checked_sub(1).map(|before| relative_l1(now, &embeddings[before]));
        plan.rel_l1.push(change);
        let compute = match change {
            Some(change) if free.contains(&i) => {
                sum += coefficients.iter().fold(0.0, |y, c| y * f64::from(change) + c);
                plan.accumulated.push(Some(sum));
                // An embedding of zeros would divide by zero.
                sum >= threshold || sum.is_nan()
            }
            _ => {
                plan.accumulated.push(None);
                true
            }
        };
        if compute {
            sum = 0.0;
        }
        plan.compute.push(compute);
    }
    plan
}

/// Returns mean |a - b| / mean |b|, with each mean rounded to f32.
fn relative_l1(a: &[f32], b: &[f32]) -> f32 {
    let mean = |sum: f64| (sum / b.len() as f64) as f32;
    let change: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum();
    let size: f64 = b.iter().map(|b| f64::from(b.abs())).sum();
    mean(change) / mean(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decisions of the reference implementation.
    fn golden() -> serde_json::Value {
        let text = include_str!("../../../../tests/fixtures/tiny-a/golden.json");
        serde_json::from_str(text).expect("the fixture is JSON")
    }

    /// Returns embeddings of one element whose changes are `rel_l1`.
    fn embeddings(rel_l1: &[Option<f64>]) -> Vec<Vec<f32>> {
        let mut value = 1.0;
        rel_l1
            .iter()
            .map(|change| {
                value *= 1.0 + change.unwrap_or(0.0);
                vec![value as f32]
            })
            .collect()
    }

    #[test]
    fn decisions_equal_the_goldens() {
        let golden = golden();
        let cases = golden["teacache"].as_object().expect("an object");
        assert_eq!(cases.len(), 8);
        for (name, case) in cases {
            let changes: Vec<Option<f64>> = case["rel_l1_cond"]
                .as_array()
                .expect("a list")
                .iter()
                .map(serde_json::Value::as_f64)
                .collect();
            let threshold = case["threshold"].as_f64().expect("a number");
            let ret = case["use_ret_steps"].as_bool().expect("a truth value");
            let coefficients = coefficients(name.starts_with("480p"), ret);
            let published: Vec<Option<f64>> = case["coefficients"]
                .as_array()
                .expect("a list")
                .iter()
                .map(serde_json::Value::as_f64)
                .collect();
            assert_eq!(coefficients.map(Some).to_vec(), published, "{name}");

            let plan = plan(&embeddings(&changes), coefficients, threshold, ret);
            let bits: String = plan.compute.iter().map(|&compute| if compute { '1' } else { '0' }).collect();
            assert_eq!(bits, case["computed_cond"], "{name}");
            assert_eq!(bits, case["computed_uncond"], "{name}");
            assert_eq!(2 * bits.matches('1').count() as u64, case["forwards_computed"], "{name}");
            let sums = case["accumulated_cond_before_reset"].as_array().expect("a list");
            for (i, (got, want)) in plan.accumulated.iter().zip(sums).enumerate() {
                match (got, want.as_f64()) {
                    // The embeddings were rounded to f32, which moves a change by 1e-7; the polynomials are not steeper
                    // than 50, and a dozen steps gather.
                    (Some(got), Some(want)) => {
                        assert!((got - want).abs() < 1e-4, "{name}, step {i}: {got}, {want}");
                    }
                    (got, want) => assert_eq!(*got, want, "{name}, step {i}"),
                }
            }
            let margin = case["min_margin_to_threshold"].as_f64().expect("a number");
            assert!((plan.min_margin(threshold) - margin).abs() < 1e-4, "{name}");
        }
    }

    #[test]
    fn changes_are_relative_to_the_step_before() {
        let plan = plan(&[vec![1.0, -3.0], vec![2.0, -4.0], vec![2.0, -1.0]], &[0.0; 5], 1.0, false);
        assert_eq!(plan.rel_l1, [None, Some(0.5), Some(0.5)]);
    }

    #[test]
    fn what_is_no_number_is_computed() {
        let plan = plan(&vec![vec![0.0]; 4], coefficients(true, false), 0.2, false);
        assert_eq!(plan.compute, [true; 4]);
    }

    #[test]
    fn short_schedules_are_computed() {
        for steps in 0..=2 {
            assert_eq!(
                plan(&vec![vec![1.0]; steps], coefficients(true, false), 9.0, false).compute,
                vec![true; steps]
            );
        }
        assert_eq!(plan(&vec![vec![1.0]; 5], coefficients(true, true), 9.0, true).compute, [true; 5]);
        assert_eq!(
            plan(&vec![vec![1.0]; 3], coefficients(true, false), 9.0, false).compute,
            [true, false, true]
        );
    }
}
