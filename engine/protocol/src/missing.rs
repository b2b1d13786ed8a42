//! What a profile asks for and a card cannot compute.

use crate::profile::{Precision, Profile, key};
use crate::recipe::Component;

/// Returns why a card of this compute capability cannot run a profile at all, and what to write instead; `None` if there
/// are kernels for everything.
pub fn missing(profile: &Profile, capability: (u32, u32)) -> Option<[String; 2]> {
    // Cards before Ada have no products in e4m3.
    if !profile.on_gpu() || capability >= (8, 9) {
        return None;
    }
    let network =
        [Component::Dit, Component::T5].into_iter().find(|c| profile.precision.of(*c) == Precision::Fp8)?;
    let (name, network, (major, minor)) = (&profile.name, key(network), capability);
    Some([
        format!(
            "precision.{network} `fp8` of the profile `{name}` needs compute capability 8.9, and it has {major}.{minor}"
        ),
        format!(
            "write `{network} = \"int8\"`, which is as small and runs on it, or set profile.name to `auto`"
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_needs_ada() {
        let mut profile = Profile::built_in("rtx3090").expect("it comes with animd");
        assert_eq!(missing(&profile, (8, 6)), None);
        profile.precision.text = Precision::Fp8;
        let [why, remedy] = missing(&profile, (8, 6)).expect("it has no e4m3");
        assert!(why.contains("precision.text `fp8`") && why.ends_with("and it has 8.6"), "{why}");
        assert!(remedy.contains("text = \"int8\""), "{remedy}");
        assert_eq!(missing(&profile, (8, 9)), None);
        assert_eq!(missing(&Profile::built_in("cpu").expect("it comes with animd"), (7, 5)), None);
    }
}
