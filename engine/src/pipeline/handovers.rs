//! When one transformer hands over to the next.

use animd_protocol::step_cache::StepPlan;

/// The forwards that are the last ones of an expert's turn, with the expert whose turn follows: that of the next steps or, after
/// the last step, that of the next job's first ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Handovers(Vec<Handover>);

#[derive(Debug, PartialEq, Eq)]
struct Handover {
    step: usize,
    branch: usize,
    next: usize,
}

impl Handovers {
    /// Returns the handovers of a job whose steps are computed by these `experts`. A forward that a step cache saves does not
    /// count, because it enters no block.
    pub fn new(experts: &[usize], plan: &StepPlan) -> Self {
        let (mut handovers, mut last) = (Vec::new(), None);
        for (step, (expert, branches)) in experts.iter().zip(&plan.compute).enumerate() {
            if let Some(branch) = branches.iter().rposition(|&computed| computed) {
                last = Some((step, branch));
            }
            let next = *experts.get(step + 1).unwrap_or(&experts[0]);
            if let Some((step, branch)) = last.take_if(|_| next != *expert) {
                handovers.push(Handover { step, branch, next });
            }
        }
        Self(handovers)
    }

    /// Returns the expert whose turn follows this forward, if the forward is the last one of its expert's turn.
    pub fn after(&self, step: usize, branch: usize) -> Option<usize> {
        let handover = self.0.iter().find(|handover| (handover.step, handover.branch) == (step, branch));
        handover.map(|handover| handover.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handovers(experts: &[usize], compute: &[&[bool]]) -> Vec<(usize, usize, usize)> {
        let plan = StepPlan { compute: compute.iter().map(|step| step.to_vec()).collect() };
        let Handovers(all) = Handovers::new(experts, &plan);
        all.into_iter().map(|Handover { step, branch, next }| (step, branch, next)).collect()
    }

    #[test]
    fn the_last_computed_forward_of_a_turn_hands_over() {
        let both: &[bool] = &[true, true];
        assert_eq!(handovers(&[0, 0, 1, 1], &[both; 4]), [(1, 1, 1), (3, 1, 0)]);
        // The second expert has no guidance, and a step cache saves its last step.
        assert_eq!(handovers(&[0, 1, 1], &[both, &[true], &[false]]), [(0, 1, 1), (1, 0, 0)]);
        // Three experts have one step each.
        let alone: &[bool] = &[true];
        assert_eq!(handovers(&[0, 1, 2], &[alone; 3]), [(0, 0, 1), (1, 0, 2), (2, 0, 0)]);
        // One expert alone has nobody to hand over to.
        assert_eq!(handovers(&[0, 0], &[both; 2]), []);
        assert_eq!(handovers(&[], &[]), []);
        let plan = StepPlan { compute: vec![vec![true]; 2] };
        let two = Handovers::new(&[0, 1], &plan);
        assert_eq!([two.after(0, 0), two.after(0, 1), two.after(1, 0)], [Some(1), None, Some(0)]);
    }
}
