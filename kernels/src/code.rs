//! Which machine code and PTX each folder of kernels is compiled to. `build.rs` reads this table, and so does `target.rs`,
//! so that what is said of a build is what it holds.

/// A folder of kernels under `cuda/`.
pub struct Folder {
    /// The folder's name.
    pub name: &'static str,
    /// The compute capabilities (major, minor) that there is machine code for. It also runs on later minor versions of the
    /// same major version, unless `only` is set.
    pub native: &'static [(u32, u32)],
    /// Whether the code uses instructions of one architecture alone (`sm_90a`), which are compatible with no other card.
    pub only: bool,
    /// The compute capability of the PTX, which the driver compiles for that card and for every newer one.
    pub ptx: Option<(u32, u32)>,
}

/// All folders. `any` has what all cards run, `sm80` what needs `mma.sync` and `cp.async`, `sm89` what needs e4m3 beside
/// them, and `sm90` what needs `wgmma`.
///
/// Compute capability 12.0 (RTX 50 series) has machine code of its own although its instructions are those of 8.9, because
/// the driver would otherwise compile all kernels when animd first starts.
pub const FOLDERS: [Folder; 4] = [
    Folder { name: "any", native: &[(8, 0), (8, 9), (9, 0), (12, 0)], only: false, ptx: Some((8, 9)) },
    Folder { name: "sm80", native: &[(8, 0), (8, 6), (8, 9), (12, 0)], only: false, ptx: Some((8, 6)) },
    Folder { name: "sm89", native: &[(8, 9), (12, 0)], only: false, ptx: Some((8, 9)) },
    Folder { name: "sm90", native: &[(9, 0)], only: true, ptx: None },
];
