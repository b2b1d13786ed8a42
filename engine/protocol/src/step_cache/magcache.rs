//! `MagCache` (Ma et al. 2025, arXiv:2506.09045): a step is skipped while the published ratios of successive residuals'
//! magnitudes, multiplied up since the last computed step, stay near 1.

/// The ratios published for Wan2.1 image-to-video at 480P with 40 steps (`MagCache4Wan2.1`, with the prompt).
const RATIOS_480P: [f64; 40] = [
    1.0, 0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857, 0.99065,
    0.98845, 0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571, 0.98543, 0.98157,
    0.98411, 0.97952, 0.98149, 0.9774, 0.97825, 0.97355, 0.97085, 0.97056, 0.96588, 0.96113, 0.9567, 0.94961,
    0.93973, 0.93217, 0.91878, 0.90955, 0.92617,
];
/// The ratios published for 720P.
const RATIOS_720P: [f64; 40] = [
    1.0, 0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102, 0.99215,
    0.99515, 0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599, 0.98845, 0.98848,
    0.98862, 0.98718, 0.98497, 0.98264, 0.98389, 0.97938, 0.97535, 0.97498, 0.973, 0.96827, 0.96261, 0.95335,
    0.94649, 0.93397, 0.91636, 0.89088, 0.8679,
];

/// The share of steps at the start that are always computed.
pub const RETENTION: f64 = 0.2;

/// The ratio of each of 40 steps' residual to that of the previous step. The ratios with the negative prompt differ by
/// 1e-4, so one list serves both.
pub fn ratios(is_480p: bool) -> &'static [f64; 40] {
    if is_480p { &RATIOS_480P } else { &RATIOS_720P }
}

/// Returns how many steps in a row may be skipped, from the recommended pairs: 2 up to a threshold of 0.06, 4 up to
/// 0.12, else 6.
pub fn max_skips(threshold: f64) -> usize {
    match threshold {
        t if t <= 0.06 => 2,
        t if t <= 0.12 => 4,
        _ => 6,
    }
}

/// Decides which of `steps` steps are computed: all in the first `retention` of them (at least one), then each whose
/// accumulated error reaches `threshold` or that would be skipped after `max_skips` others.
/// Where the number of steps differs from that of `ratios`, each step takes the ratio at its place in the schedule.
pub fn plan(steps: usize, ratios: &[f64], threshold: f64, max_skips: usize, retention: f64) -> Vec<bool> {
    // The first step has no residual to repeat.
    let retained = ((steps as f64 * retention) as usize).max(1);
    let (mut ratio, mut error, mut skipped) = (1.0, 0.0, 0);
    let mut decide = |i: usize| {
        if i < retained {
            return true;
        }
        ratio *= ratios[nearest(i, steps, ratios.len())];
        error += f64::abs(1.0 - ratio);
        skipped += 1;
        let compute = !(error < threshold && skipped <= max_skips);
        if compute {
            (ratio, error, skipped) = (1.0, 0.0, 0);
        }
        compute
    };
    (0..steps).map(&mut decide).collect()
}

/// Returns the index among `published` ratios for step `i` of `steps`: the nearest one, where both ends match.
fn nearest(i: usize, steps: usize, published: usize) -> usize {
    if steps < 2 {
        return published - 1;
    }
    (i as f64 * ((published - 1) as f64 / (steps - 1) as f64)).round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn computed(is_480p: bool, threshold: f64, max_skips: usize) -> Vec<usize> {
        let plan = plan(40, ratios(is_480p), threshold, max_skips, RETENTION);
        plan.iter().enumerate().filter_map(|(i, &compute)| compute.then_some(i)).collect()
    }

    #[test]
    fn computed_steps_at_480p() {
        assert_eq!(computed(true, 0.12, 4), [0, 1, 2, 3, 4, 5, 6, 7, 12, 17, 21, 25, 28, 31, 34, 36, 38]);
        assert_eq!(computed(true, 0.24, 6), [0, 1, 2, 3, 4, 5, 6, 7, 14, 20, 25, 30, 34, 37, 39]);
        assert_eq!(computed(true, 0.06, 2).len(), 23);
        assert_eq!(computed(true, 0.12, 2).len(), 19);
    }

    #[test]
    fn computed_steps_at_720p() {
        for (threshold, max_skips, count) in [(0.06, 2, 22), (0.12, 2, 20), (0.12, 4, 17), (0.24, 6, 14)] {
            assert_eq!(computed(false, threshold, max_skips).len(), count, "{threshold}, {max_skips}");
        }
        assert_eq!(computed(false, 0.24, 6), [0, 1, 2, 3, 4, 5, 6, 7, 14, 21, 27, 32, 35, 38]);
    }

    #[test]
    fn recommended_pairs() {
        assert_eq!([0.0, 0.06, 0.12, 0.24].map(max_skips), [2, 2, 4, 6]);
    }

    #[test]
    fn other_numbers_of_steps() {
        for steps in [1, 2, 3, 4, 5, 20, 39, 41, 50, 1000] {
            let plan = plan(steps, ratios(true), f64::INFINITY, usize::MAX, RETENTION);
            assert_eq!(plan.len(), steps);
            let retained = (steps / 5).max(1);
            assert!(plan.iter().enumerate().all(|(i, &compute)| compute == (i < retained)), "{steps}");
        }
        assert!(plan(20, ratios(true), 0.0, 4, RETENTION).iter().all(|&compute| compute));
    }

    #[test]
    fn ratios_are_stretched_to_the_schedule() {
        assert_eq!((0..5).map(|i| nearest(i, 5, 40)).collect::<Vec<_>>(), [0, 10, 20, 29, 39]);
        assert_eq!((0..3).map(|i| nearest(i, 3, 3)).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(nearest(0, 1, 40), 39);
    }
}
