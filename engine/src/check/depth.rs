//! Matrices that are apart from the same ones of the blocks around them.
//!
//! In a trained transformer the size of a layer changes little from one block to the next: in the small model no layer is further than
//! 19 % from the line through its neighbours, and each is found if it is doubled or halved. One that is twice as large as they lead to expect may have been scaled once too often,
//! and still denoises. It is no proof, because training may do that too.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::verify::place;

/// The blocks before and behind one that tell how large it should be.
const AROUND: usize = 5;
/// The fewest blocks, with the one itself, that a line is drawn through.
const BLOCKS: usize = 4;
/// A matrix is apart if it is so many times as large as the line says, or as small.
const FACTOR: f64 = 1.6;
/// And if that is so many times as far as the furthest of the other blocks is off.
const SPREAD: f64 = 3.0;

/// A matrix that is much larger or smaller than the blocks around it lead to expect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Apart {
    /// The matrix, by its official name.
    pub tensor: String,
    /// How many times as large it is as the line through the same matrices around it says.
    pub factor: f64,
    /// By which factor these are off their line at most.
    pub usual: f64,
}

/// Returns the matrices of a transformer that are apart, given the root of the mean square of each.
pub fn apart(rms: &[(String, f64)]) -> Vec<Apart> {
    let mut places: BTreeMap<String, BTreeMap<usize, (&str, f64)>> = BTreeMap::new();
    for (name, rms) in rms {
        let block = name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if let Some(block) = block.filter(|_| *rms > 0.0) {
            places.entry(place(name)).or_default().insert(block, (name, rms.ln()));
        }
    }
    let mut apart = Vec::new();
    for blocks in places.values() {
        let mut found: Vec<(usize, Apart)> = Vec::new();
        for (block, (tensor, size)) in blocks {
            let around = blocks.range(block.saturating_sub(AROUND)..=block + AROUND);
            let others: Vec<[f64; 2]> = around
                .filter(|(other, _)| *other != block)
                .map(|(other, (_, size))| [*other as f64, *size])
                .collect();
            if others.len() + 1 < BLOCKS {
                continue;
            }
            let line = Line::through(&others);
            let off = size - line.at(*block as f64);
            let usual = others.iter().map(|[block, size]| (size - line.at(*block)).abs()).fold(0.0, f64::max);
            if off.abs() > FACTOR.ln().max(SPREAD * usual) {
                found.push((
                    *block,
                    Apart { tensor: (*tensor).to_owned(), factor: off.exp(), usual: usual.exp() },
                ));
            }
        }
        // One that is apart may bend the lines of those around it, which then seem to be. Its own line is straighter than theirs.
        let is_bent = |(block, one): &&(usize, Apart)| {
            found.iter().any(|(other, apart)| {
                other != block && other.abs_diff(*block) <= AROUND && apart.usual < one.usual
            })
        };
        apart.extend(found.iter().filter(|one| !is_bent(one)).map(|(_, one)| one.clone()));
    }
    apart
}

/// A line through most of some points (Theil, 1950; Sen, 1968): a few that lie elsewhere do not move it.
struct Line {
    slope: f64,
    start: f64,
}

impl Line {
    fn through(points: &[[f64; 2]]) -> Self {
        let pairs = points.iter().enumerate().flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)));
        let slope = middle(pairs.map(|([x, y], [u, v])| (v - y) / (u - x)).collect());
        Self { slope, start: middle(points.iter().map(|[x, y]| y - slope * x).collect()) }
    }

    fn at(&self, x: f64) -> f64 {
        self.start + self.slope * x
    }
}

/// Returns the middle one of some values, or the mean of the two in the middle.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the sizes of a layer that grows by a tenth from block to block, up to so many per cent off either way.
    fn layer(name: &str, blocks: usize, off: f64) -> Vec<(String, f64)> {
        let size = |block: usize| {
            let off = off / 100.0 * [1.0, -0.7, 0.3, -1.0, 0.8][block % 5];
            0.02 * 1.1f64.powi(block as i32) * (1.0 + off)
        };
        (0..blocks).map(|block| (format!("blocks.{block}.{name}.weight"), size(block))).collect()
    }

    #[test]
    fn a_layer_of_twice_the_size_is_apart_wherever_it_is() {
        for (blocks, off) in [(4, 0.0), (5, 3.0), (30, 5.0), (40, 3.0)] {
            assert_eq!(apart(&layer("ffn.0", blocks, off)), [], "{blocks} blocks, {off} % off");
            for block in [0, 1, blocks / 2, blocks - 1] {
                for factor in [2.0, 0.5] {
                    let mut all = [layer("ffn.0", blocks, off), layer("ffn.2", blocks, off)].concat();
                    all[block].1 *= factor;
                    let found = apart(&all);
                    let [one] = &found[..] else {
                        panic!("block {block} of {blocks}, {off} % off: {found:?}")
                    };
                    assert_eq!(one.tensor, format!("blocks.{block}.ffn.0.weight"));
                    // The line errs by twice what its points are off at most, at the ends.
                    assert!((one.factor / factor - 1.0).abs() < 0.01 + 2.5 * off / 100.0, "{one:?}");
                }
            }
        }
    }

    #[test]
    fn layers_that_differ_anyway_are_not_apart() {
        // Where neighbours differ by a quarter, a factor of two says nothing.
        let mut all = layer("ffn.0", 20, 25.0);
        all[7].1 *= 1.8;
        assert_eq!(apart(&all), []);
        let few = layer("ffn.0", 3, 0.0);
        assert_eq!(
            apart(&[(few[0].0.clone(), 1.0), few[1].clone(), few[2].clone()]),
            [],
            "three make no line"
        );
        assert_eq!(apart(&[("head.head.weight".into(), 1.0), ("blocks.x.ffn.0.weight".into(), 1.0)]), []);
    }
}
