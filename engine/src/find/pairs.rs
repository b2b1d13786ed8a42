//! Which transformers make a model: one of Wan2.1, or two of Wan2.2 that belong together.

use animd_protocol::findings::PartKind;
use animd_protocol::recipe::ExpertName;

use super::candidates::Candidate;
use crate::weights;

/// The transformers of one model.
#[derive(Clone, Copy, Debug)]
pub(super) enum Transformers<'a> {
    /// Wan2.1's.
    One(&'a Candidate),
    /// Wan2.2's, with `None` for one that was not found.
    Two { high: Option<&'a Candidate>, low: Option<&'a Candidate> },
}

impl<'a> Transformers<'a> {
    /// Returns the transformers that there are, with their keys in a model file.
    pub fn named(self) -> impl Iterator<Item = (&'static str, &'a Candidate)> {
        let all = match self {
            Self::One(dit) => [Some(("dit", dit)), None],
            Self::Two { high, low } => [high.map(|high| (HIGH, high)), low.map(|low| (LOW, low))],
        };
        all.into_iter().flatten()
    }

    /// Returns the one that decides about the other parts.
    pub fn first(self) -> Option<&'a Candidate> {
        self.named().next().map(|(_, candidate)| candidate)
    }
}

pub(super) const HIGH: &str = ExpertName::HighNoise.name();
pub(super) const LOW: &str = ExpertName::LowNoise.name();

/// Puts transformers together. Those that were named for a part (`Candidate::key`) come alone, in their models only. The
/// second value has the transformers of which nothing says which of the two they are.
pub(super) fn transformers(candidates: &[Candidate]) -> (Vec<Transformers<'_>>, Vec<&Candidate>) {
    let of_kind = |kind| candidates.iter().filter(move |candidate| candidate.part.kind == kind);
    let named = |key, kind| of_kind(kind).find(|candidate| candidate.key == Some(key));
    if let Some(dit) = named("dit", PartKind::Dit) {
        return (vec![Transformers::One(dit)], Vec::new());
    }
    let (high, low) = (named(HIGH, PartKind::Expert), named(LOW, PartKind::Expert));
    if let (Some(_), Some(_)) = (high, low) {
        return (vec![Transformers::Two { high, low }], Vec::new());
    }
    let experts: Vec<&Candidate> = of_kind(PartKind::Expert).collect();
    let said = |expert| {
        let of_it = |candidate: &&&Candidate| candidate.part.noise == Some(expert);
        experts.iter().filter(of_it).copied().collect::<Vec<_>>()
    };
    let (mut highs, mut lows) = (said(ExpertName::HighNoise), said(ExpertName::LowNoise));
    let mut unclear: Vec<&Candidate> =
        experts.iter().filter(|one| one.part.noise.is_none()).copied().collect();
    // Where one is named, what says nothing can be the other one.
    if let Some(high) = high {
        (highs, lows) = (vec![high], if lows.is_empty() { unclear.clone() } else { lows });
        lows.retain(|low| !std::ptr::eq(*low, high));
        unclear.clear();
    }
    if let Some(low) = low {
        (lows, highs) = (vec![low], if highs.is_empty() { unclear.clone() } else { highs });
        highs.retain(|high| !std::ptr::eq(*high, low));
        unclear.clear();
    }
    let mut models: Vec<Transformers<'_>> = match (high, low) {
        (None, None) => of_kind(PartKind::Dit).map(Transformers::One).collect(),
        _ => Vec::new(),
    };
    models.extend(pairs(highs, lows).into_iter().map(|(high, low)| Transformers::Two { high, low }));
    (models, unclear)
}

type Pair<'a> = (Option<&'a Candidate>, Option<&'a Candidate>);

/// Returns pairs of transformers of the same sizes: first those whose names follow one pattern, then those of one format, then
/// what is left if that is clear. The last pairs lack one.
fn pairs<'a>(mut highs: Vec<&'a Candidate>, mut lows: Vec<&'a Candidate>) -> Vec<Pair<'a>> {
    let rules: [fn(&Candidate, &Candidate) -> bool; 3] = [
        |high, low| weights::pattern(&high.part.path) == weights::pattern(&low.part.path),
        |high, low| (&high.part.layout, &high.part.precision) == (&low.part.layout, &low.part.precision),
        |_, _| true,
    ];
    let mut pairs = Vec::new();
    for rule in rules {
        let fits = |high: &Candidate, low: &Candidate| high.sizes() == low.sizes() && rule(high, low);
        // A pair is clear if each of the two has no other partner.
        while let Some((h, l)) = highs.iter().enumerate().find_map(|(h, high)| {
            let partners: Vec<usize> = (0..lows.len()).filter(|l| fits(high, lows[*l])).collect();
            let [l] = partners[..] else { return None };
            let is_only = highs.iter().filter(|other| fits(other, lows[l])).count() == 1;
            is_only.then_some((h, l))
        }) {
            pairs.push((Some(highs.remove(h)), Some(lows.remove(l))));
        }
    }
    pairs.extend(highs.into_iter().map(|high| (Some(high), None)));
    pairs.extend(lows.into_iter().map(|low| (None, Some(low))));
    pairs
}
