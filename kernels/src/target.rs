//! Which embedded kernels serve which card: [`support`] is the one table that says so. Launchers read it and refuse what it
//! does not offer; none of them falls back to another kernel on its own.

use crate::code::FOLDERS;

/// What the main kernels of a card are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `mma.sync` and `cp.async`: the folder `sm80`, and `sm89` for e4m3.
    MmaSync,
    /// `wgmma` and the bulk tensor copy engine: the folder `sm90`.
    Wgmma,
}

/// The kernels that a card can run. All cards have matrix products in bf16 and in int8, convolutions, and attention in bf16
/// and in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Support {
    /// The kernels for matrix products in bf16 and int8, convolutions and attention. 8-bit attention computes P V in e4m3
    /// with `Wgmma`, in int8 with `MmaSync`.
    pub family: Family,
    /// Whether there are matrix products in e4m3, and rows can be written as e4m3.
    pub e4m3: bool,
    /// Whether a block can have 163 KiB of shared memory; on other cards it can have 99 KiB.
    pub large_shared: bool,
}

impl Support {
    /// Returns the folders whose kernels a card of this support runs by default.
    fn folders(self) -> &'static [&'static str] {
        match (self.family, self.e4m3) {
            (Family::Wgmma, _) => &["any", "sm90"],
            (Family::MmaSync, true) => &["any", "sm80", "sm89"],
            (Family::MmaSync, false) => &["any", "sm80"],
        }
    }
}

/// Returns which kernels serve a card of this compute capability (major, minor), or `None` if no kernel here runs on
/// it.
pub fn support((major, minor): (u32, u32)) -> Option<Support> {
    let mma_sync = |e4m3, large_shared| Some(Support { family: Family::MmaSync, e4m3, large_shared });
    match (major, minor) {
        // A100.
        (8, 0) => mma_sync(false, true),
        // RTX 30 series, A40, Orin.
        (8, 6..=8) => mma_sync(false, false),
        // RTX 40 series, L40S; Blackwell: RTX 50 series (12.0) and, by PTX, B200 (10.0).
        (8, 9) | (10.., _) => mma_sync(true, false),
        // H100, H200, GH200.
        (9, 0) => Some(Support { family: Family::Wgmma, e4m3: true, large_shared: true }),
        _ => None,
    }
}

/// A compute capability that there is machine code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Native {
    /// Major and minor.
    pub capability: (u32, u32),
    /// Whether the code runs on this compute capability alone, and not on later minor ones of the same major one.
    pub only: bool,
}

/// Returns the compute capabilities on which every kernel that a card runs by default is machine code, in ascending order.
pub fn native() -> Vec<Native> {
    let mut all: Vec<(u32, u32)> = FOLDERS.iter().flat_map(|folder| folder.native).copied().collect();
    all.sort_unstable();
    all.dedup();
    let folders = |capability| support(capability).map(Support::folders).unwrap_or_default();
    let code = |name: &str, (major, minor): (u32, u32)| {
        FOLDERS.iter().filter(|folder| folder.name == name).any(|folder| {
            folder
                .native
                .iter()
                .any(|&(of, from)| of == major && (from == minor || from < minor && !folder.only))
        })
    };
    all.retain(|&capability| folders(capability).iter().all(|name| code(name, capability)));
    let only = |capability: (u32, u32)| {
        folders(capability).iter().any(|name| FOLDERS.iter().any(|f| f.name == *name && f.only))
    };
    all.into_iter().map(|capability| Native { capability, only: only(capability) }).collect()
}

/// Returns the compute capability from which on the driver can compile every kernel of a card from PTX.
pub fn ptx() -> Option<(u32, u32)> {
    FOLDERS.iter().filter_map(|folder| folder.ptx).max()
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
                assert_eq!(support.e4m3, (major, minor) >= (8, 9), "{major}.{minor}");
                assert_eq!(support.large_shared, hopper || (major, minor) == (8, 0), "{major}.{minor}");
            }
        }
    }

    #[test]
    fn what_is_native() {
        let native: Vec<_> = native().into_iter().map(|n| (n.capability, n.only)).collect();
        assert_eq!(
            native,
            [((8, 0), false), ((8, 6), false), ((8, 9), false), ((9, 0), true), ((12, 0), false)]
        );
        assert_eq!(ptx(), Some((8, 9)));
    }

    /// A supported card has machine code or PTX of each of its folders.
    #[test]
    fn every_supported_card_has_code() {
        for capability in (8..=12).flat_map(|major| (0..=9).map(move |minor| (major, minor))) {
            let Some(support) = support(capability) else { continue };
            for folder in FOLDERS.iter().filter(|folder| support.folders().contains(&folder.name)) {
                let native = folder.native.iter().any(|&(major, minor)| {
                    major == capability.0 && (minor == capability.1 || minor < capability.1 && !folder.only)
                });
                assert!(native || folder.ptx.is_some_and(|ptx| ptx <= capability), "{capability:?}");
            }
        }
    }
}
