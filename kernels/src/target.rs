//! Which embedded kernels serve which card: [`support`] is the one table that says so. Launchers read it and refuse what it
//! does not offer; none of them falls back to another kernel on its own.

/// What the main kernels of a card are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `mma.sync` and `cp.async`: the folder `sm80`, and `sm89` for e4m3.
    MmaSync,
    /// `wgmma` and the bulk tensor copy engine: the folder `sm90`.
    Wgmma,
}

/// The kernels that a card can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Support {
    /// The kernels for matrix products in bf16, convolutions and attention. 8-bit attention computes P V in e4m3 with
    /// `Wgmma`, in int8 with `MmaSync`.
    pub family: Family,
    /// Whether there are matrix products in e4m3, and rows can be written as e4m3.
    pub e4m3: bool,
    /// Whether there are matrix products in int8.
    pub int8: bool,
    /// Whether a block can have 163 KiB of shared memory; on other cards it can have 99 KiB.
    pub large_shared: bool,
}

/// Returns which kernels serve a card of this compute capability (major, minor), or `None` if no kernel here runs on
/// it.
///
/// The folder `any` has machine code for 8.0, 8.9 and 9.0, `sm80` for 8.0, 8.6 and 8.9, `sm89` for 8.9, each with PTX that the
/// driver compiles for what is newer. Machine code runs on later minor versions of its major version, but `sm_90a` on 9.0 alone.
pub fn support((major, minor): (u32, u32)) -> Option<Support> {
    let mma_sync =
        |e4m3, large_shared| Some(Support { family: Family::MmaSync, e4m3, int8: true, large_shared });
    match (major, minor) {
        // A100.
        (8, 0) => mma_sync(false, true),
        // RTX 30 series, A40, Orin.
        (8, 6..=8) => mma_sync(false, false),
        // RTX 40 series, L40S; Blackwell, by PTX: RTX 50 series (12.0), B200 (10.0).
        (8, 9) | (10.., _) => mma_sync(true, false),
        // H100, H200, GH200.
        (9, 0) => Some(Support { family: Family::Wgmma, e4m3: true, int8: false, large_shared: true }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compute_capability() {
        for major in 0..=20 {
            for minor in 0..=9 {
                let support = support((major, minor));
                let known = matches!((major, minor), (8, 0 | 6..=9) | (9, 0) | (10.., _));
                assert_eq!(support.is_some(), known, "{major}.{minor}");
                let Some(support) = support else { continue };
                let hopper = (major, minor) == (9, 0);
                assert_eq!(support.family == Family::Wgmma, hopper, "{major}.{minor}");
                assert_eq!(support.int8, !hopper, "{major}.{minor}");
                assert_eq!(support.e4m3, (major, minor) >= (8, 9), "{major}.{minor}");
                assert_eq!(support.large_shared, hopper || (major, minor) == (8, 0), "{major}.{minor}");
            }
        }
    }
}
