//! Which embedded code serves which card.

/// Code for one kind of card that a program with the feature `cuda` carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Machine code of `sm_89` for Ada: RTX 4090, L40S; and PTX, which the driver compiles for what is newer.
    Sm89,
    /// Machine code of `sm_90a` for Hopper: H100, H200, GH200.
    Sm90a,
}

/// The code that serves a card of this compute capability (major, minor); `None` if no kernel here runs on it.
///
/// `sm_90a` runs on 9.0 alone: architecture-specific code is compatible with neither newer nor older cards.
pub fn target_for(compute_capability: (u32, u32)) -> Option<Target> {
    match compute_capability {
        (9, 0) => Some(Target::Sm90a),
        (8, 9) | (10.., _) => Some(Target::Sm89),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compute_capability() {
        let cards = [
            ((7, 0), None),
            ((7, 2), None),
            ((7, 5), None),
            ((8, 0), None),
            ((8, 6), None),
            ((8, 7), None),
            ((8, 8), None),
            ((8, 9), Some(Target::Sm89)),
            ((9, 0), Some(Target::Sm90a)),
            ((10, 0), Some(Target::Sm89)),
            ((10, 3), Some(Target::Sm89)),
            ((11, 0), Some(Target::Sm89)),
            ((12, 0), Some(Target::Sm89)),
            ((12, 1), Some(Target::Sm89)),
        ];
        for (capability, target) in cards {
            assert_eq!(target_for(capability), target, "{capability:?}");
        }
        for major in 0..=20 {
            for minor in 0..=9 {
                if !cards.iter().any(|(capability, _)| *capability == (major, minor)) {
                    let wanted = (major >= 10).then_some(Target::Sm89);
                    assert_eq!(target_for((major, minor)), wanted, "{major}.{minor}");
                }
            }
        }
    }
}
