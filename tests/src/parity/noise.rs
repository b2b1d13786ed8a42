//! Random numbers.

use animd_engine::noise;
use anyhow::{Context as _, Result};

use super::{ABSOLUTE, Goldens};

/// Checks `randn.*`: `randn.SEED.SHAPE`, `.rand64` (64 uniforms), `.second16` (16 normals after 16 others).
pub fn check(goldens: &mut Goldens) -> Result<()> {
    for name in goldens.names("randn.") {
        let (seed, what) =
            name["randn.".len()..].split_once('.').context("`randn.SEED.WHAT` was expected")?;
        let mut generator = noise::cpu(seed.parse().with_context(|| format!("`{name}` has no seed"))?);
        let n = goldens.get(&name)?.data.len();
        let drawn = match what {
            "rand64" => generator.rand(n),
            "second16" => {
                generator.randn(n);
                generator.randn(n)
            }
            _ => generator.randn(n),
        };
        goldens.absolute(&name, &drawn, ABSOLUTE)?;
    }
    Ok(())
}
