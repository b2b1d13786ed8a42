//! Makes models of transformers and the other parts that fit them.

use std::cmp::Reverse;
use std::path::Path;

use animd_protocol::findings::{Chosen, FoundModel, FoundPart, Missing, PartKind};
use animd_protocol::recipe::{ExpertName, Recipe};

use super::candidates::Candidate;
use super::missing;
use super::names;
use super::pairs::{HIGH, LOW, Transformers};
use crate::weights;

/// More bits than this add nothing to a text encoder, which was released in 16 bits.
const TEXT_BITS: u64 = 16;

/// Returns the model that transformers make with what fits them of the other candidates. `folder` is where files that are
/// missing could be fetched to.
pub(super) fn model(transformers: Transformers<'_>, all: &[Candidate], folder: &Path) -> Option<FoundModel> {
    let first = transformers.first()?;
    let is_pair = matches!(transformers, Transformers::Two { .. });
    let recipe = match transformers {
        Transformers::Two { .. } => Recipe::wan22_i2v_a14b(),
        Transformers::One(dit) if dit.size("image_positions") > 0 => {
            Recipe::wan21_i2v_14b().between_two_pictures()
        }
        Transformers::One(_) => Recipe::wan21_i2v_14b(),
    };
    let mut parts: Vec<Chosen> = transformers.named().map(|(key, one)| transformer(key, one)).collect();
    let mut missing: Vec<Missing> = Vec::new();
    let mut lacks = |key: &'static str, sentence: String| {
        missing.push(Missing {
            key: key.to_owned(),
            sentence,
            source: missing::source(key, first, is_pair, folder),
        });
    };
    if is_pair {
        for (key, noise) in [(HIGH, "high"), (LOW, "low")] {
            if !parts.iter().any(|part| part.key == key) {
                lacks(
                    key,
                    format!(
                        "the {noise}-noise transformer is missing, which belongs to `{}`",
                        first.part.path.display()
                    ),
                );
            }
        }
    }
    let vae = choose("vae", PartKind::Vae, first, all, |vae| {
        let (takes, gives) = (first.size("out_dim"), vae.size("z_dim"));
        (takes == gives).then_some(()).ok_or_else(|| {
            format!("`{}` has {gives} channels, and the transformer takes {takes}", vae.part.path.display())
        })
    });
    let width = |what: &'static str, takes: usize| {
        move |encoder: &Candidate| {
            let gives = encoder.size("dim");
            (takes == gives).then_some(()).ok_or_else(|| {
                let path = encoder.part.path.display();
                format!("`{path}` gives {what} of width {gives}, and the transformer takes {takes}")
            })
        }
    };
    let text = choose("text", PartKind::Text, first, all, width("text", first.size("text_dim")));
    let clip = recipe
        .conditioning
        .image_encoder
        .is_some()
        .then(|| choose("clip", PartKind::Clip, first, all, width("images", first.size("image_dim"))));
    let encoder = text.as_ref().ok().and_then(|text| all.iter().find(|one| one.part == text.part));
    let tokenizer = encoder.map(|encoder| tokenizer(encoder, all));
    for (key, chosen) in
        [Some(("vae", vae)), Some(("text", text)), clip.map(|clip| ("clip", clip))].into_iter().flatten()
    {
        match chosen {
            Ok(chosen) => parts.push(chosen),
            Err(sentence) => lacks(key, sentence),
        }
    }
    match tokenizer {
        // The encoder carries it, or there is none, and which tokenizer fits is asked when there is one.
        Some(Ok(None)) | None => {}
        Some(Ok(Some(tokenizer))) => parts.push(tokenizer),
        Some(Err(sentence)) => lacks("tokenizer", sentence),
    }
    let paths = transformers.named().map(|(_, one)| &*one.part.path);
    let called_distilled = transformers.named().any(|(_, one)| weights::path_says_distilled(&one.part.path));
    Some(FoundModel { name: names::of_model(paths), family: recipe.family, parts, missing, called_distilled })
}

fn transformer(key: &str, one: &Candidate) -> Chosen {
    let noise = match key {
        HIGH => Some(ExpertName::HighNoise),
        LOW => Some(ExpertName::LowNoise),
        _ => None,
    };
    let part = FoundPart { noise, ..one.part.clone() };
    Chosen { key: key.to_owned(), part, others: Vec::new(), because: None }
}

/// Chooses one of the parts of a kind that fit a transformer: the one that was named, or else the nearest, of those the most
/// precise, of those the smallest.
///
/// The error says what is missing, and why what there is does not do.
fn choose(
    key: &'static str,
    kind: PartKind,
    transformer: &Candidate,
    all: &[Candidate],
    fits: impl Fn(&Candidate) -> Result<(), String>,
) -> Result<Chosen, String> {
    let of_kind: Vec<&Candidate> = all.iter().filter(|one| one.part.kind == kind).collect();
    let named: Vec<&Candidate> = of_kind.iter().filter(|one| one.key == Some(key)).copied().collect();
    let offered = if named.is_empty() { &of_kind } else { &named };
    let (mut fitting, mut refusals) = (Vec::new(), Vec::new());
    for one in offered {
        match fits(one) {
            Ok(()) => fitting.push(*one),
            Err(why) => refusals.push(why),
        }
    }
    let bits = |one: &Candidate| if kind == PartKind::Text { one.bits().min(TEXT_BITS) } else { one.bits() };
    let near = |one: &Candidate| nearness(&one.part.path, &transformer.part.path);
    // A tokenizer's two files say the same, and `tokenizer.json` needs no rebuilding.
    let rebuilt = |one: &Candidate| kind == PartKind::Tokenizer && !one.part.path.ends_with("tokenizer.json");
    fitting.sort_by_key(|one| {
        let path = one.part.path.clone();
        (Reverse(near(one)), Reverse(bits(one)), rebuilt(one), one.part.bytes, path)
    });
    let [best, others @ ..] = &fitting[..] else {
        let title = kind.title();
        return Err(match refusals.len() {
            0 => format!("no {title} was found"),
            _ => format!("no {title} that fits was found: {}", refusals.join("; ")),
        });
    };
    let others = if kind == PartKind::Tokenizer { &[] } else { others };
    let because = others.first().map(|other| match () {
        () if near(best) > near(other) => "it lies nearest to the transformer",
        () if bits(best) > bits(other) => "it is the most precise one",
        () if best.part.bytes < other.part.bytes => "it is the smallest of equally precise ones",
        () => "it is the first of equal ones by its name",
    });
    Ok(Chosen {
        key: key.to_owned(),
        part: best.part.clone(),
        others: others.iter().map(|other| other.part.clone()).collect(),
        because: because.map(str::to_owned),
    })
}

/// Returns the tokenizer of a text encoder: `None` if the encoder carries it.
fn tokenizer(encoder: &Candidate, all: &[Candidate]) -> Result<Option<Chosen>, String> {
    let named = all.iter().find(|one| one.key == Some("tokenizer") && (is_own(one) || one.carries_tokenizer));
    if encoder.carries_tokenizer && named.is_none() {
        return Ok(None);
    }
    let rows = encoder.size("rows");
    // Each token has a row, and few rows are without a token: other models' vocabularies are far smaller.
    let fits = |one: &Candidate| {
        let tokens = one.size("tokens");
        (tokens <= rows && 2 * tokens > rows).then_some(()).ok_or_else(|| {
            let path = one.part.path.display();
            format!("`{path}` has {tokens} tokens, and the text encoder has {rows}")
        })
    };
    let named_encoder = named.filter(|one| !is_own(one));
    let own = match named_encoder {
        Some(_) => Err(String::new()),
        None => choose("tokenizer", PartKind::Tokenizer, encoder, all, fits),
    };
    // Another text encoder's file may carry the same tokenizer.
    let carried = || {
        let carries = |one: &&Candidate| one.carries_tokenizer && one.size("rows") == rows;
        let one = named_encoder.or_else(|| all.iter().find(carries))?;
        let part = FoundPart { kind: PartKind::Tokenizer, ..one.part.clone() };
        let because = Some("this text encoder carries it".to_owned());
        Some(Chosen { key: "tokenizer".to_owned(), part, others: Vec::new(), because })
    };
    own.or_else(|why| carried().ok_or(why)).map(Some)
}

/// Returns whether a candidate is a tokenizer's own file.
fn is_own(one: &Candidate) -> bool {
    one.part.kind == PartKind::Tokenizer
}

/// Returns how many folders two paths have in common.
fn nearness(one: &Path, other: &Path) -> usize {
    one.components().zip(other.components()).take_while(|(a, b)| a == b).count()
}
