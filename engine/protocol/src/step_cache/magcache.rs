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

/// The ratios published for Wan2.2 image-to-video with 40 steps at a shift of 5 (`MagCache4Wan2.2`): with the prompt, and with
/// the negative prompt. They dip where the experts change.
pub const WAN22_RATIOS: [[f64; 40]; 2] = [
    [
        1.0, 0.99191, 0.99356, 0.99326, 0.99251, 0.99393, 0.9943, 0.99276, 0.99389, 0.99274, 0.99316,
        0.99379, 0.99268, 0.99222, 0.99175, 0.91076, 0.98931, 0.99087, 0.98852, 0.98895, 0.98806, 0.9871,
        0.98613, 0.98434, 0.983, 0.98185, 0.98131, 0.9783, 0.97619, 0.97264, 0.97088, 0.96568, 0.96045,
        0.95322, 0.94579, 0.93297, 0.91699, 0.89174, 0.8541, 0.79823,
    ],
    [
        1.0, 0.99144, 0.99337, 0.99285, 0.99264, 0.99366, 0.9943, 0.99288, 0.99393, 0.99289, 0.9931, 0.99377,
        0.99271, 0.99227, 0.9916, 0.91046, 0.98933, 0.99088, 0.98855, 0.98896, 0.98808, 0.98711, 0.98618,
        0.98435, 0.98307, 0.98187, 0.98131, 0.97835, 0.9762, 0.9727, 0.97098, 0.9658, 0.96055, 0.95335,
        0.94594, 0.93311, 0.9172, 0.89202, 0.85446, 0.79902,
    ],
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

/// Returns the share of the low-noise expert's forwards that [`plan_by_forward`] always computes, from the recommended
/// triples: a tenth up to a threshold of 0.06, else a fifth.
pub fn retention_by_forward(threshold: f64) -> f64 {
    if threshold <= 0.06 { 0.1 } else { RETENTION }
}

/// Decides which forwards are computed where two experts take turns: of each step the one with the prompt and the one with the
/// negative prompt. All those of the `high` first steps are, and the first `retention` of the others; then the rule of [`plan`]
/// applies to each branch on its own.
pub fn plan_by_forward(
    steps: usize,
    high: usize,
    ratios: [&[f64]; 2],
    threshold: f64,
    max_skips: usize,
    retention: f64,
) -> ForwardPlan {
    let first = (2.0 * high as f64 + (2 * steps - 2 * high) as f64 * retention) as usize;
    let mut plan = ForwardPlan { first, compute: Default::default(), errors: Default::default() };
    for (branch, ratios) in ratios.into_iter().enumerate() {
        let mut rule = Rule { threshold, max_skips, ..Rule::default() };
        for i in 0..steps {
            let decided =
                (2 * i + branch >= first).then(|| rule.decide(ratios[nearest(i, steps, ratios.len())]));
            plan.compute[branch].push(decided.is_none_or(|(compute, _)| compute));
            plan.errors[branch].push(decided.map(|(_, error)| error));
        }
    }
    plan
}

/// Which forwards are computed, and the figures behind each decision.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardPlan {
    /// The first forward that may be skipped, counted over both branches.
    pub first: usize,
    /// For each branch and step, whether the forward is computed.
    pub compute: [Vec<bool>; 2],
    /// For each branch and step, the error that was compared with the threshold; none where a forward is always computed.
    pub errors: [Vec<Option<f64>>; 2],
}

/// What has accumulated since the last computed forward.
struct Rule {
    threshold: f64,
    max_skips: usize,
    ratio: f64,
    error: f64,
    skipped: usize,
}

impl Default for Rule {
    fn default() -> Self {
        Self { threshold: 0.0, max_skips: 0, ratio: 1.0, error: 0.0, skipped: 0 }
    }
}

impl Rule {
    /// Returns whether the next forward is computed, whose residual has this ratio to the one before, and the error that
    /// decided.
    fn decide(&mut self, ratio: f64) -> (bool, f64) {
        self.ratio *= ratio;
        self.error += f64::abs(1.0 - self.ratio);
        self.skipped += 1;
        let error = self.error;
        let compute = !(error < self.threshold && self.skipped <= self.max_skips);
        if compute {
            (self.ratio, self.error, self.skipped) = (1.0, 0.0, 0);
        }
        (compute, error)
    }
}

/// Decides which of `steps` steps are computed: all in the first `retention` of them (at least one), then each whose
/// accumulated error reaches `threshold` or that would be skipped after `max_skips` others.
/// Where the number of steps differs from that of `ratios`, each step takes the ratio at its place in the schedule.
pub fn plan(steps: usize, ratios: &[f64], threshold: f64, max_skips: usize, retention: f64) -> Vec<bool> {
    // The first step has no residual to repeat.
    let retained = ((steps as f64 * retention) as usize).max(1);
    let mut rule = Rule { threshold, max_skips, ..Rule::default() };
    (0..steps).map(|i| i < retained || rule.decide(ratios[nearest(i, steps, ratios.len())]).0).collect()
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
