//! Compares each tensor with those at its place in the other blocks.

use std::collections::BTreeMap;

use super::expected::Role;
use super::report::Mistake;
use super::statistics::Statistics;

/// A tensor that is plausible for itself.
pub struct Found {
    pub name: String,
    pub role: Role,
    pub statistics: Statistics,
}

/// How far, as a factor, a matrix may be from the middle one of its place. Trained blocks differ by up to ten; a scale
/// that one layer has lost makes a hundred or more.
const FACTOR: f64 = 32.0;
/// The fewest blocks that have a middle one.
const BLOCKS: usize = 3;

/// Returns the tensors that are unlike those of other blocks, and those that are copies.
pub fn mistakes(found: &[Found]) -> Vec<Mistake> {
    let matrices = || found.iter().filter(|tensor| tensor.role == Role::Matrix);
    let mut places: BTreeMap<String, Vec<&Found>> = BTreeMap::new();
    for tensor in matrices() {
        places.entry(place(&tensor.name)).or_default().push(tensor);
    }
    let mut mistakes = Vec::new();
    for tensors in places.values().filter(|tensors| tensors.len() >= BLOCKS) {
        let mut sizes: Vec<f64> = tensors.iter().map(|tensor| tensor.statistics.rms()).collect();
        sizes.sort_by(f64::total_cmp);
        let middle = sizes[sizes.len() / 2];
        for tensor in tensors {
            let rms = tensor.statistics.rms();
            if rms > FACTOR * middle || rms * FACTOR < middle {
                let how =
                    if rms > middle { "without its scale" } else { "with a scale that was applied twice" };
                let what = format!(
                    "is unlike the same layer of the other blocks, as {how}: its rms is {rms:.3e}, and the middle one's \
                     {middle:.3e}"
                );
                mistakes.push(Mistake::of_tensor(&tensor.name, &what));
            }
        }
    }
    // Two layers that sum up to the last bit alike are the same layer.
    let mut seen: BTreeMap<[u64; 3], &str> = BTreeMap::new();
    for Found { name, statistics: s, .. } in matrices() {
        let sums = [s.squares.to_bits(), s.magnitudes.to_bits(), s.largest.to_bits()];
        match seen.get(&sums) {
            Some(first) => {
                mistakes.push(Mistake::of_tensor(
                    name,
                    &format!("has the values of `{first}`: one of them was copied"),
                ));
            }
            None => drop(seen.insert(sums, name)),
        }
    }
    mistakes
}

/// Returns a name without its numbers of blocks: what all blocks have alike.
pub(crate) fn place(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let numbered = |i: usize| {
        i > 0
            && ["blocks", "transformer"].contains(&parts[i - 1])
            && parts[i].bytes().all(|b| b.is_ascii_digit())
    };
    let parts: Vec<&str> = (0..parts.len()).map(|i| if numbered(i) { "N" } else { parts[i] }).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, rms: f64) -> Found {
        let statistics = Statistics::of_values(&[rms as f32]);
        Found { name: name.into(), role: Role::Matrix, statistics }
    }

    #[test]
    fn places_are_names_without_the_block() {
        assert_eq!(place("blocks.12.ffn.0.weight"), "blocks.N.ffn.0.weight");
        assert_eq!(place("visual.transformer.3.mlp.2.weight"), "visual.transformer.N.mlp.2.weight");
        assert_eq!(
            place("encoder.downsamples.0.residual.2.weight"),
            "encoder.downsamples.0.residual.2.weight"
        );
    }

    #[test]
    fn a_layer_far_from_the_others_is_named() {
        let sizes = [0.02, 0.05, 0.011, 0.9, 0.03];
        let all: Vec<Found> =
            sizes.iter().enumerate().map(|(i, s)| found(&format!("blocks.{i}.ffn.0.weight"), *s)).collect();
        assert!(mistakes(&all).is_empty(), "0.9 is 30 times the middle one");
        let mut all = all;
        all[3] = found("blocks.3.ffn.0.weight", 1.0);
        all[1] = found("blocks.1.ffn.0.weight", 0.0005);
        let said: Vec<String> = mistakes(&all).iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("`blocks.1.") && said[0].contains("applied twice"), "{said:?}");
        assert!(said[1].contains("`blocks.3.") && said[1].contains("without its scale"), "{said:?}");
    }

    #[test]
    fn copies_are_named() {
        let all = [found("a.weight", 0.5), found("b.weight", 0.5), found("c.weight", 0.51)];
        let said = mistakes(&all);
        assert_eq!(said.len(), 1);
        assert!(said[0].to_string().contains("`b.weight` has the values of `a.weight`"), "{}", said[0]);
    }
}
