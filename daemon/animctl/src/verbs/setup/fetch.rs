//! Which files are missing for a model, and the commands that fetch them. Nothing is fetched here.

use std::path::Path;

use animd_common::files::{free_space, show};
use animd_protocol::findings::{Findings, FoundModel, FoundPart, PartKind, in_units};
use animd_protocol::sources::{self, Family, Kind, ModelPart, Source};
use serde_json::{Value, json};

use super::step::Step;

const NAME: &str = "fetch";

/// The parts that are missing for one model.
pub struct Missing {
    pub family: Family,
    pub kind: Kind,
    parts: Vec<(ModelPart, &'static Source)>,
}

/// Returns the family that a found model belongs to.
pub fn family_of(model: &FoundModel) -> Family {
    let is_720p = |path: &Path| path.to_string_lossy().to_lowercase().contains("720p");
    match (model.part("high_noise"), model.part("dit")) {
        (Some(_), _) => Family::Wan22I2vA14b,
        (None, Some(dit)) if is_720p(&dit.part.path) => Family::Wan21I2v720p,
        _ => Family::Wan21I2v480p,
    }
}

impl Missing {
    /// Returns what is missing: for the unfinished model that lacks least, unless files of a kind are asked for; else for a
    /// model of the family, beside the parts that are there already.
    pub fn new(
        findings: &Findings,
        family: Option<Family>,
        asked: Option<Kind>,
        suits: impl Fn(Family) -> Kind,
    ) -> Self {
        let fits = |model: &&FoundModel| family.is_none_or(|family| family_of(model) == family);
        let unfinished = findings.models.iter().filter(|model| !model.is_whole()).filter(fits);
        let nearest = unfinished.min_by_key(|model| model.missing.len()).filter(|_| asked.is_none());
        let family = family.or(nearest.map(family_of)).unwrap_or(Family::Wan21I2v480p);
        let kind = asked.unwrap_or_else(|| suits(family));
        let parts = match nearest {
            Some(model) => {
                let lacks = |part: &&ModelPart| model.missing.iter().any(|missing| missing.key == part.key());
                let parts = family.parts().iter().filter(lacks);
                parts.filter_map(|part| Some((*part, sources::source(family, *part)?))).collect()
            }
            None => {
                let has = |part: ModelPart| findings.parts.iter().any(|found| is_there(found, family, part));
                sources::set(family, kind).into_iter().filter(|(part, _)| !has(*part)).collect()
            }
        };
        Self { family, kind, parts }
    }

    /// Returns the bytes of all parts whose size is known.
    fn bytes(&self) -> u64 {
        self.parts.iter().filter_map(|(_, source)| source.bytes).sum()
    }

    /// Returns the step that a person does, with the files going to `folder`.
    pub fn step(&self, folder: &Path) -> Step {
        let bytes = self.bytes();
        let free = folder.ancestors().find_map(|folder| free_space(folder).ok());
        let mut lines = vec![format!(
            "{} is missing, {}; these commands fetch it to `{}`",
            self.family.title(),
            in_units(bytes),
            show(folder)
        )];
        for (part, source) in &self.parts {
            let size = source.bytes.map(|bytes| format!(", {}", in_units(bytes))).unwrap_or_default();
            lines.push(format!(
                "{}: {}, {}{size}; licence: {}",
                part.title(),
                source.kind.title(),
                source.repository,
                source.licence_title()
            ));
        }
        if let Some(free) = free.filter(|free| *free < bytes) {
            let smaller = match self.kind {
                Kind::GgufQ4 => String::new(),
                _ => format!("; --files {} takes the least", Kind::GgufQ4.name()),
            };
            lines.push(format!(
                "the disk has only {} free; --folder DIR chooses another place{smaller}",
                in_units(free)
            ));
        }
        lines.push(
            "`hf` comes with `pip install huggingface_hub`; `animctl setup` goes on when the files are there"
                .into(),
        );
        let commands = sources::commands(self.parts.iter().map(|(_, source)| *source), folder);
        let parts: Vec<Value> = self
            .parts
            .iter()
            .map(|(part, source)| json!({"part": part.key(), "source": source, "command": source.command(folder)}))
            .collect();
        let step = Step::todo(NAME, lines.join("\n"), commands);
        let step =
            step.with("family", self.family.name()).with("kind", self.kind.name()).with("bytes", bytes);
        let step = step.with("folder", show(folder)).with("parts", parts);
        free.map_or(step.clone(), |free| step.with("free", free))
    }
}

/// Returns the step of somebody who has a whole model.
pub fn nothing(model: &FoundModel) -> Step {
    Step::done(NAME, format!("nothing is missing: `{}` is whole", model.name))
}

/// Returns whether a part that was found may be this part of a released model. Which parts fit together, the search for
/// whole models says; here it matters that a small test model stands for none.
fn is_there(found: &FoundPart, family: Family, part: ModelPart) -> bool {
    let kind = match part {
        ModelPart::Text => PartKind::Text,
        ModelPart::Clip => PartKind::Clip,
        ModelPart::Vae => PartKind::Vae,
        ModelPart::Tokenizer => return found.kind == PartKind::Tokenizer,
        // A transformer that is there makes a model, whole or not.
        ModelPart::Dit | ModelPart::HighNoise | ModelPart::LowNoise => return false,
    };
    let smallest = sources::sources(family, part).filter_map(|source| source.bytes).min();
    found.kind == kind && smallest.is_some_and(|smallest| found.bytes >= smallest / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use animd_protocol::findings::Chosen;
    use std::path::PathBuf;

    fn part(kind: PartKind, path: &str, bytes: u64) -> FoundPart {
        FoundPart {
            path: PathBuf::from(path),
            kind,
            files: vec![PathBuf::from(path)],
            layout: "official".into(),
            precision: "BF16".into(),
            bytes,
            noise: None,
        }
    }

    fn names(missing: &Missing) -> Vec<&'static str> {
        missing.parts.iter().map(|(part, _)| part.key()).collect()
    }

    #[test]
    fn a_whole_set_is_named_where_nothing_is_there() {
        let missing = Missing::new(&Findings::default(), None, None, |_| Kind::Distilled);
        assert_eq!(
            (missing.family, names(&missing)),
            (Family::Wan21I2v480p, vec!["dit", "text", "clip", "vae"])
        );
        let folder = tempfile::tempdir().expect("a folder");
        let step = missing.step(&folder.path().join("not there/models"));
        assert_eq!(step.commands.len(), 2, "{:?}", step.commands);
        assert!(step.commands[0].starts_with("hf download lightx2v/Wan2.1-Distill-Models "));
        assert!(step.commands[1].contains("umt5_xxl_fp8_e4m3fn_scaled"), "{}", step.commands[1]);
        assert!(
            step.message.contains("24.7 GB") && step.message.contains("licence: not named"),
            "{}",
            step.message
        );
        assert_eq!(step.facts["bytes"], 24_654_000_000u64);
        assert_eq!(step.facts["parts"][0]["source"]["repository"], "lightx2v/Wan2.1-Distill-Models");
        let both =
            Missing::new(&Findings::default(), Some(Family::Wan22I2vA14b), Some(Kind::Official), |_| {
                Kind::Comfy
            });
        assert_eq!(names(&both), ["high_noise", "low_noise", "text", "vae", "tokenizer"]);
    }

    #[test]
    fn parts_that_are_there_are_not_fetched_again() {
        let large = part(PartKind::Vae, "/m/vae.safetensors", 254_000_000);
        let findings = Findings {
            parts: vec![large.clone(), part(PartKind::Clip, "/m/tiny.safetensors", 4_000_000)],
            ..Findings::default()
        };
        let missing = Missing::new(&findings, None, None, |_| Kind::Comfy);
        assert_eq!(names(&missing), ["dit", "text", "clip"], "a small CLIP is of another model");
        // A model that lacks one part is finished before another one is begun.
        let dit = part(PartKind::Dit, "/m/wan2.1_i2v_720p_14B_fp16.safetensors", 32_800_000_000);
        let lacks = |key: &str| animd_protocol::findings::Missing {
            key: key.into(),
            sentence: "no VAE was found".into(),
            source: None,
        };
        let chosen = Chosen { key: "dit".into(), part: dit, others: Vec::new(), because: None };
        let model = FoundModel {
            name: "wan".into(),
            family: "Wan2.1 image-to-video".into(),
            parts: vec![chosen],
            missing: vec![lacks("vae"), lacks("tokenizer")],
            called_distilled: false,
        };
        let findings = Findings { models: vec![model], parts: vec![large], ..Findings::default() };
        let missing = Missing::new(&findings, None, None, |_| Kind::Distilled);
        assert_eq!((missing.family, names(&missing)), (Family::Wan21I2v720p, vec!["vae", "tokenizer"]));
        let other = Missing::new(&findings, Some(Family::Wan22I2vA14b), None, |_| Kind::Comfy);
        assert_eq!(names(&other), ["high_noise", "low_noise", "text"]);
    }
}
