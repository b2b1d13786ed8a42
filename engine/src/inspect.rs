//! Describes a model folder: which model it holds, how large, in which layout and types, and what is wrong with it.
//!
//! Unlike opening a model, inspecting one continues after the first problem, and any part can be missing.

use std::fmt;
use std::path::{Path, PathBuf};

use animd_protocol::model_file::ModelFile;
use animd_protocol::recipe::{Component, Part, Recipe, Sizes};
use serde::Serialize;

use crate::weights::{self, Summary};

/// The description of a model folder.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The folder's path.
    pub folder: PathBuf,
    /// The model's name, in words.
    pub model: String,
    /// Whether the model can make videos as it is.
    pub usable: bool,
    /// The model's networks.
    pub parts: Vec<Summary>,
    /// The tokenizer's file, if it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What is wrong with the folder as a whole.
    pub problems: Vec<String>,
    /// The number of parameters of all components that can be read.
    pub parameters: u64,
    /// The bytes of these components' tensors.
    pub bytes: u64,
}

/// Describes a model folder, the model of a model file, or a folder or file that holds only a DiT. Reads headers only.
pub fn inspect(path: &Path) -> Inspection {
    let mut problems = Vec::new();
    let named = match weights::model_file(path).map(|file| ModelFile::read(&file)).transpose() {
        Ok(named) => named,
        // Nothing is known of the parts, and the file itself is none.
        Err(mistakes) => return Inspection::of_nothing(path, mistakes),
    };
    let experts: Vec<Summary> = match weights::transformers(path) {
        Ok(found) => {
            found.iter().filter_map(|(expert, dit)| Some(Summary::of_expert(dit, (*expert)?))).collect()
        }
        Err(e) => {
            problems.push(e.to_string());
            Vec::new()
        }
    };
    let place = |component| match (&named, component) {
        (None, _) => Some(path),
        (Some(named), Component::Dit) => named.parts.dit.as_deref(),
        (Some(named), Component::T5) => Some(&*named.parts.text),
        (Some(named), Component::Clip) => named.parts.clip.as_deref(),
        (Some(named), Component::Vae) => Some(&*named.parts.vae),
    };
    let is_pair = !experts.is_empty();
    let is_expert = || place(Component::Dit).is_some_and(weights::is_lone_expert);
    let recipe = if is_pair || is_expert() { Recipe::wan22_i2v_a14b() } else { Recipe::wan21_i2v_14b() };
    let summary = |component| Some(Summary::of(place(component)?, component));
    let transformers = if is_pair { experts } else { summary(Component::Dit).into_iter().collect() };
    let others = recipe.networks().map(|part| part.component()).filter(|part| *part != Component::Dit);
    let parts: Vec<Summary> = transformers.into_iter().chain(others.filter_map(summary)).collect();
    let recipe = match size(&parts, Component::Dit, "image_positions") {
        Some(_) => recipe.between_two_pictures(),
        None => recipe,
    };
    // Whether the parts fit together is for whoever opens them to say.
    if (named.is_some() || (is_pair && parts.iter().all(|part| part.usable)))
        && let Err(e) = weights::Model::open(path, None)
    {
        problems.push(e.to_string());
    }
    if !path.exists() {
        problems.push(format!("`{}` does not exist", path.display()));
    }
    let encoder =
        parts.iter().find(|part| part.component == Component::T5).and_then(|part| part.files.first());
    let own = named.as_ref().and_then(|named| named.parts.tokenizer.clone());
    let beside = named.as_ref().map_or(path, |named| named.parts.text.parent().unwrap_or(path));
    let tokenizer = own.or_else(|| weights::tokenizer(beside, encoder.map(PathBuf::as_path)));
    if tokenizer.is_none() {
        problems.push(
            "`google/umt5-xxl/tokenizer.json` is missing, and the text encoder carries no tokenizer"
                .to_owned(),
        );
    }
    let text = ("text_dim", Component::T5, "text");
    let images = recipe.conditioning.image_encoder.iter().map(|_| ("image_dim", Component::Clip, "images"));
    for (ours, component, theirs) in std::iter::once(text).chain(images) {
        if let (Some(want), Some(have)) = (size(&parts, Component::Dit, ours), size(&parts, component, "dim"))
            && want != have
        {
            let title = component.title();
            problems.push(format!("the DiT takes {theirs} of width {want}, and the {title} gives {have}"));
        }
    }
    Inspection {
        folder: path.to_owned(),
        model: model(&recipe, &parts),
        usable: problems.is_empty() && parts.iter().all(|p| p.usable),
        tokenizer,
        problems,
        parameters: parts.iter().map(|p| p.parameters).sum(),
        bytes: parts.iter().map(|p| p.bytes).sum(),
        parts,
    }
}

impl Inspection {
    /// Returns the description of a model of which nothing is known but what is wrong.
    fn of_nothing(path: &Path, problem: String) -> Self {
        Self {
            folder: path.to_owned(),
            model: "no model that can be read".to_owned(),
            usable: false,
            parts: Vec::new(),
            tokenizer: None,
            problems: vec![problem],
            parameters: 0,
            bytes: 0,
        }
    }
}

fn size(parts: &[Summary], component: Component, name: &str) -> Option<usize> {
    let part = parts.iter().find(|p| p.component == component)?;
    part.sizes.iter().find(|(n, v)| *n == name && *v != 0).map(|(_, v)| *v)
}

fn model(released: &Recipe, parts: &[Summary]) -> String {
    let family = &released.family;
    let dit = |name| size(parts, Component::Dit, name).unwrap_or(0);
    let is_released = |part: Part<'_>| match part.sizes {
        Sizes::Dit(c) => (c.dim, c.num_layers) == (dit("dim"), dit("num_layers")),
        Sizes::T5(_) | Sizes::Clip(_) | Sizes::Vae(_) => false,
    };
    match (dit("dim"), dit("num_layers")) {
        (0, _) => format!("no {family} model"),
        _ if released.networks().any(is_released) => format!("{family}, 14B"),
        (dim, layers) => format!("{family}, {layers} blocks of width {dim}"),
    }
}

/// Returns a count with its thousands separated: `16 394 878 784`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Returns a number of bytes in a suitable unit: `46.0 GB`.
fn in_units(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.folder.display(), self.model)?;
        if !self.parts.is_empty() {
            writeln!(f, "{} parameters, {}", grouped(self.parameters), in_units(self.bytes))?;
        }
        for part in &self.parts {
            let state = if part.usable { "ok" } else { "not usable" };
            writeln!(f, "\n{}: {state}", part.title())?;
            if let Some(layout) = part.layout {
                let (tensors, parameters) = (part.tensors, grouped(part.parameters));
                let (layout, bytes) = (layout.title(), in_units(part.bytes));
                writeln!(f, "  {layout} layout, {tensors} tensors, {parameters} parameters, {bytes}")?;
                let types: Vec<_> =
                    part.dtypes.iter().map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
                writeln!(f, "  types: {}", types.join(", "))?;
                let sizes: Vec<_> = part.sizes.iter().map(|(name, n)| format!("{name} {n}")).collect();
                writeln!(f, "  sizes: {}", sizes.join(", "))?;
            }
            match &part.files[..] {
                [] => {}
                [one] => writeln!(f, "  file: {}", one.display())?,
                [first, ..] => writeln!(f, "  files: {} and {} more", first.display(), part.files.len() - 1)?,
            }
            for problem in &part.problems {
                writeln!(f, "  {problem}")?;
            }
        }
        match &self.tokenizer {
            Some(path) => writeln!(f, "\ntokenizer: ok\n  file: {}", path.display())?,
            None if self.parts.is_empty() => {}
            None => writeln!(f, "\ntokenizer: missing")?,
        }
        for problem in &self.problems {
            writeln!(f, "\n{problem}")?;
        }
        let verdict = if self.usable { "ready" } else { "not usable as it is" };
        write!(f, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::synth::{Family, Size, synth_model};
    use crate::weights::{DType, Layout};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a").join(name)
    }

    fn get(inspection: &Inspection, component: Component) -> &Summary {
        inspection.parts.iter().find(|p| p.component == component).unwrap()
    }

    #[test]
    fn a_whole_model_is_ready() {
        let inspection = inspect(&fixture("official"));
        assert!(inspection.usable, "{inspection}");
        assert_eq!(inspection.model, "Wan2.1 image-to-video, 3 blocks of width 256");
        let dit = get(&inspection, Component::Dit);
        assert_eq!((dit.layout.map(Layout::name), dit.tensors), (Some("official"), 119));
        assert_eq!(dit.dtypes.values().sum::<u64>(), dit.parameters);
        assert_eq!(dit.dtypes.keys().map(String::as_str).collect::<Vec<_>>(), ["BF16", "F32"]);
        let text = inspection.to_string();
        assert!(text.ends_with("ready") && text.contains("num_layers 3"), "{text}");
        let json = serde_json::to_value(&inspection).unwrap();
        assert_eq!((&json["usable"], &json["parts"][0]["component"]), (&true.into(), &"dit".into()));
    }

    #[test]
    fn a_folder_with_a_dit_alone_is_described() {
        for (folder, layout) in [("lightx2v_fp8", "lightx2v-fp8"), ("comfy_fp8", "comfy-fp8")] {
            let inspection = inspect(&fixture(folder));
            let dit = get(&inspection, Component::Dit);
            assert!(dit.usable && !inspection.usable);
            assert_eq!((dit.layout.map(Layout::name), dit.tensors), (Some(layout), 119));
            assert!(dit.dtypes.contains_key("F8_E4M3"));
            assert!(get(&inspection, Component::Vae).problems[0].contains("Wan2.1_VAE.pth"));
            assert!(inspection.to_string().ends_with("not usable as it is"));
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"]
        {
            let bytes = fs::read(fixture("official").join(name)).unwrap();
            let part = if name.starts_with("models") { &bytes[..] } else { &bytes[..bytes.len() / 2] };
            fs::write(dir.path().join(name), part).unwrap();
        }
        let inspection = inspect(dir.path());
        assert!(get(&inspection, Component::T5).usable);
        assert!(get(&inspection, Component::Dit).problems[0].contains("only partly there"));
        assert!(get(&inspection, Component::Vae).problems[0].contains("cut short"));
        assert!(get(&inspection, Component::Clip).problems[0].contains("is missing"));
        assert!(inspection.problems[0].contains("tokenizer.json"));
        assert!(inspect(&dir.path().join("gone")).problems[0].contains("does not exist"));
    }

    #[test]
    fn a_model_file_with_a_mistake_is_told_for_its_mistake_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wan.toml");
        let text = "name = \"wan\"\n[parts]\ndit = \"d\"\ntext = \"t\"\nclip = \"c\"\nvae = \"v\"\n[sampling]\nfoo = 2\n";
        fs::write(&file, text).unwrap();
        let inspection = inspect(&file);
        assert!(!inspection.usable && inspection.parts.is_empty(), "{inspection}");
        let [problem] = &inspection.problems[..] else { panic!("{inspection}") };
        assert!(problem.contains("`foo`") && problem.contains("line 8"), "{problem}");
        assert!(!inspection.to_string().contains("tokenizer"), "{inspection}");
    }

    #[test]
    fn a_model_is_called_by_its_own_family() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Size::Tiny.recipe_of(Family::Flf2v);
        synth_model(dir.path(), recipe, DType::Bf16, None, 1, &mut |_, _| Ok(())).unwrap();
        let inspection = inspect(dir.path());
        assert!(inspection.usable, "{inspection}");
        assert_eq!(inspection.model, "Wan2.1 first-and-last-frame, 3 blocks of width 256");
    }

    #[test]
    fn a_pair_without_one_of_the_two_lacks_that_one_alone() {
        for (gone, title, words) in
            [("low_noise_model", "DiT, low", "low-noise"), ("high_noise_model", "DiT, high", "high-noise")]
        {
            let dir = pair(false);
            fs::remove_dir_all(dir.path().join(gone)).unwrap();
            let inspection = inspect(dir.path());
            let broken: Vec<_> = inspection.parts.iter().filter(|part| !part.usable).collect();
            let [one] = &broken[..] else { panic!("{inspection}") };
            let said = format!(
                "the {words} transformer of Wan2.2 is missing: `{}` does not exist; copy it there",
                dir.path().join(gone).display()
            );
            assert_eq!((one.title(), &one.problems), (title, &vec![said.clone()]));
            assert!(inspection.problems.is_empty(), "{inspection}");
            let opened = weights::Model::open(dir.path(), None).err().map(|e| e.to_string());
            assert_eq!(opened, Some(said));
            let folder = weights::open_dit(dir.path()).err().map(|e| e.to_string()).unwrap();
            assert!(folder.contains(gone) && folder.contains("the other one is missing"), "{folder}");
        }
        // Of a transformer alone that nothing names, it is said what it is, and nothing of an encoder that it does not take.
        let dir = pair(false);
        let file = "diffusion_pytorch_model.safetensors";
        fs::rename(dir.path().join("high_noise_model").join(file), dir.path().join(file)).unwrap();
        for folder in ["high_noise_model", "low_noise_model"] {
            fs::remove_dir_all(dir.path().join(folder)).unwrap();
        }
        let inspection = inspect(dir.path());
        assert!(get(&inspection, Component::Dit).problems[0].contains("needs the other one"), "{inspection}");
        assert!(inspection.parts.iter().all(|part| part.component != Component::Clip), "{inspection}");
        let opened = weights::Model::open(dir.path(), None).err().map(|e| e.to_string()).unwrap();
        assert!(opened.contains("needs the other one") && !opened.contains("CLIP"), "{opened}");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([12, 1500, 45_915_000_000].map(in_units), ["12 B", "1.5 kB", "45.9 GB"]);
    }

    /// Makes a folder with both experts of Wan2.2, one of which has lost a tensor if `broken` says so.
    fn pair(broken: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (folder, lost) in
            [("high_noise_model", ""), ("low_noise_model", if broken { "head.head.bias" } else { "" })]
        {
            let folder = dir.path().join(folder);
            fs::create_dir(&folder).unwrap();
            let file = folder.join("diffusion_pytorch_model.safetensors");
            weights::tests::expert(&file, |tensors| tensors.retain(|(name, ..)| name != lost));
        }
        for name in ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"] {
            let to = dir.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(fixture("official").join(name), to).unwrap();
        }
        dir
    }

    #[test]
    fn both_experts_of_a_pair_are_described() {
        let dir = pair(false);
        let inspection = inspect(dir.path());
        assert!(inspection.usable, "{inspection}");
        let titles: Vec<_> = inspection.parts.iter().map(Summary::title).collect();
        assert_eq!(titles, ["DiT, high", "DiT, low", "umT5 encoder", "VAE"]);
        assert_eq!(inspection.model, "Wan2.2 image-to-video, 3 blocks of width 256");
        assert!(inspection.parts[0].files[0].starts_with(dir.path().join("high_noise_model")));
        let json = serde_json::to_value(&inspection).unwrap();
        assert_eq!(
            (&json["parts"][1]["expert"], &json["parts"][2]["expert"]),
            (&"low_noise".into(), &().into())
        );

        let dir = pair(true);
        let inspection = inspect(dir.path());
        assert!(!inspection.usable && inspection.parts[0].usable && !inspection.parts[1].usable);
        assert!(inspection.parts[1].problems[0].contains("head.head.bias"), "{inspection}");
        assert!(inspection.to_string().contains("\nDiT, low: not usable\n"), "{inspection}");
    }

    #[test]
    fn two_pairs_in_one_folder_are_a_problem_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x_high.gguf", "x_low.gguf", "y_high.gguf", "y_low.gguf"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let inspection = inspect(dir.path());
        assert!(!inspection.usable && inspection.problems[0].contains("several pairs"), "{inspection}");
    }
}
