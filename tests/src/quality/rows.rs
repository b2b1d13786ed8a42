//! What is approximated, one thing at a time and as profiles do it.

use animd_protocol::plan::{SMALLEST_TILE, Setup};
use animd_protocol::profile::{
    AttentionKind, Backend, Place, Precision, Precisions, Profile, Residency, Sensitive,
};

/// The side of the VAE's tiles in latent pixels: a frame of the small model has several of them.
const TILE: usize = 2 * SMALLEST_TILE;
/// Why no row has a step cache.
const NO_STEP_CACHE: &str = "TeaCache and MagCache are left out: their constants are those of the 14B model and are not \
calibrated for the small one, which takes four steps, of which a step cache can save none";

/// What int8 leaves in 16 bits, because it rotates 256 columns at a time.
const NARROW: &str = "umT5 in int8 is left out: its layers of 64 and 128 columns stay in bf16, as does the last layer of the DiT's \
feed-forward networks with its 640 columns in the rows with int8";

/// A way to compute videos.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is called in the table.
    pub name: &'static str,
    /// How the model runs.
    pub setup: Setup,
    /// The side of the VAE's tiles in latent pixels; `None` for whole frames.
    pub tile: Option<usize>,
}

/// The rows of a device, and what is left out there, as sentences.
type Rows = (Vec<Row>, Vec<String>);

/// Returns the rows of the CPU.
pub fn cpu_rows() -> Rows {
    let tiled = Row { name: "VAE in tiles", setup: Setup::CPU, tile: Some(TILE) };
    let left_out = [
        "the CPU computes in float32 alone: bf16, fp8, int8 and 8-bit attention are left out",
        NO_STEP_CACHE,
    ];
    (vec![tiled], left_out.map(str::to_owned).into())
}

/// Returns the rows of a GPU, which may compute in fp8.
pub fn gpu_rows(has_fp8: bool) -> Rows {
    let nearest = Setup {
        backend: Backend::Cuda,
        precision: Precisions::all(Precision::Fp32, Sensitive::Fp32),
        attention: AttentionKind::Exact,
        residency: Residency::all(Place::Device),
        ..Setup::CPU
    };
    let with = |name, change: &dyn Fn(&mut Setup)| {
        let mut setup = nearest;
        change(&mut setup);
        Row { name, setup, tile: None }
    };
    let mut rows = vec![
        with("float32, attention in bf16", &|_| {}),
        with("all networks in bf16", &|setup| {
            setup.precision = Precisions::all(Precision::Bf16, Sensitive::Fp32);
        }),
        with("DiT in bf16", &|setup| setup.precision.dit = Precision::Bf16),
        with("DiT in fp8", &|setup| setup.precision.dit = Precision::Fp8),
        with("DiT in int8", &|setup| setup.precision.dit = Precision::Int8),
        with("DiT in bf16, attention in 8 bits", &|setup| {
            setup.precision.dit = Precision::Bf16;
            setup.attention = AttentionKind::EightBit;
        }),
        with("umT5 in bf16", &|setup| setup.precision.text = Precision::Bf16),
        with("umT5 in fp8", &|setup| setup.precision.text = Precision::Fp8),
        with("VAE in bf16", &|setup| setup.precision.vae = Precision::Bf16),
        Row { tile: Some(TILE), ..with("VAE in tiles", &|_| {}) },
    ];
    // The profiles of all large cards have the same precisions.
    let profile = Profile::built_in("h200").map(|profile| Setup::from(&profile));
    rows.extend(profile.map(|Setup { precision, attention, .. }| {
        with("as profile `h200`", &|setup| (setup.precision, setup.attention) = (precision, attention))
    }));
    let mut left_out = vec![NO_STEP_CACHE.to_owned(), NARROW.to_owned()];
    if !has_fp8 {
        let fp8 = |row: &Row| [row.setup.precision.dit, row.setup.precision.text].contains(&Precision::Fp8);
        rows.retain(|row| !fp8(row));
        left_out.push("this GPU has no fp8, so its rows are left out".to_owned());
    }
    (rows, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_approximates_something_else() {
        let (rows, _) = gpu_rows(true);
        for (n, row) in rows.iter().enumerate() {
            let alike = |other: &&Row| other.setup == row.setup && other.tile == row.tile;
            assert_eq!(rows[n..].iter().filter(alike).count(), 1, "{}", row.name);
        }
        let (without, said) = gpu_rows(false);
        assert_eq!((rows.len() - without.len(), said.len()), (2, 3), "fp8 of the DiT and of umT5");
    }
}
