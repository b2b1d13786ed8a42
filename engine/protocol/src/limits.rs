//! The limits of an engine: what a profile asks for that the engine does not do. They are shown with a profile or plan.

use crate::messages::Kernels;
use crate::profile::{AttentionKind, Precision, Profile, key};
use crate::recipe::Component;

/// Returns a sentence, without a full stop, for each thing that a profile asks for and an engine with these kernels
/// does not do. `capability` is the card's, if it is known.
pub fn limits(profile: &Profile, kernels: &Kernels, capability: Option<(u32, u32)>) -> Vec<String> {
    if !profile.on_gpu() {
        return Vec::new();
    }
    attention(profile, kernels, capability).into_iter().collect()
}

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

fn attention(profile: &Profile, kernels: &Kernels, capability: Option<(u32, u32)>) -> Option<String> {
    if profile.attention.kind != AttentionKind::EightBit {
        return None;
    }
    let name = &profile.name;
    match capability {
        Some(capability) if kernels.has_eight_bit_attention(capability) => None,
        None if kernels.native.iter().all(|target| target.eight_bit_attention) => None,
        Some((major, minor)) => Some(format!(
            "for now attention is exact, and slower, on compute capability {major}.{minor}: attention.kind \"8bit\" has no \
             effect in the profile `{name}`"
        )),
        None => Some(format!(
            "for now attention.kind \"8bit\" of the profile `{name}` needs compute capability 9.0; other cards compute \
             attention exactly, and slower"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Target;

    fn kernels() -> Kernels {
        let target =
            |capability, eight_bit_attention| Target { capability, exact: true, eight_bit_attention };
        Kernels { native: vec![target((8, 9), false), target((9, 0), true)], ..Kernels::default() }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let of = |name: &str, capability| {
            limits(&Profile::built_in(name).expect("it comes with animd"), &kernels(), capability)
        };
        assert_eq!(of("h200", Some((9, 0))), Vec::<String>::new());
        assert_eq!(of("cpu", None), Vec::<String>::new());
        assert_eq!(
            of("rtx4090", Some((8, 9))),
            [
                "for now attention is exact, and slower, on compute capability 8.9: attention.kind \"8bit\" has no effect in \
                 the profile `rtx4090`",
            ]
        );
        assert_eq!(of("l40s", Some((8, 9))).len(), 1);
        assert_eq!(of("h200", None).len(), 1);
    }

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

    #[test]
    fn code_of_an_earlier_minor_version_counts() {
        let eight_bit = Target { capability: (8, 0), exact: false, eight_bit_attention: true };
        let kernels = Kernels { native: vec![eight_bit], ..Kernels::default() };
        assert!(kernels.has_eight_bit_attention((8, 6)) && !kernels.has_eight_bit_attention((9, 0)));
        let by_ptx = Kernels { ptx: Some((8, 0)), ..kernels };
        assert!(by_ptx.has_eight_bit_attention((12, 0)) && !by_ptx.has_eight_bit_attention((7, 5)));
    }
}
