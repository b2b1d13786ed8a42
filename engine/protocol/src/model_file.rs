//! `model.toml`: a file that names a model and says where each of its parts lies.
//!
//! Parts of one model often lie in several folders, and one folder often holds parts of several models. A model file says
//! which belong together, which `LoRAs` are merged into them, and what no file of the model says itself:
//!
//! ```toml
//! name = "wan-480p"
//!
//! [parts]
//! dit = "/models/diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors"
//! text = "/models/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
//! clip = "/models/clip_vision/clip_vision_h.safetensors"
//! vae = "/models/vae/wan_2.1_vae.safetensors"
//!
//! [[lora]]
//! file = "/models/loras/four-steps.safetensors"
//!
//! [sampling]
//! distilled = true
//!
//! [defaults]
//! size = "480p"
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::InvalidSetting;
use crate::expert::ExpertName;
use crate::mistake::Mistake;
use crate::nearest::nearest;
use crate::ranges;
use crate::size::Size;

/// The longest model file that is read, in bytes.
const MAX_FILE: u64 = 1 << 18;
/// The longest name of a model, in characters.
pub const MAX_NAME: usize = 64;

/// A model: its name, its parts, and what is known of it besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFile {
    /// What jobs call it.
    pub name: String,
    /// What the model is, in a sentence. The metadata of its videos have it.
    pub about: Option<String>,
    /// Where its parts lie.
    pub parts: PartPaths,
    /// The `LoRAs` that are merged into it, in their order.
    pub loras: Vec<LoraEntry>,
    /// How it is sampled, where its files do not say.
    pub sampling: Sampling,
    /// The settings of its jobs, where a job says nothing.
    pub defaults: JobDefaults,
}

/// The path of each part: a file, or a folder that holds the part and may hold others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartPaths {
    /// The diffusion transformer of a model that has one; otherwise `None`.
    pub dit: Option<PathBuf>,
    /// The transformer of the noisy steps of a model that has two.
    pub high_noise: Option<PathBuf>,
    /// The transformer of the last steps of a model that has two.
    pub low_noise: Option<PathBuf>,
    /// The autoencoder.
    pub vae: PathBuf,
    /// The text encoder.
    pub text: PathBuf,
    /// The image encoder, which some models do not have.
    pub clip: Option<PathBuf>,
    /// The tokenizer; without one, the text encoder carries it or it lies beside the encoder.
    pub tokenizer: Option<PathBuf>,
}

impl PartPaths {
    /// Returns the keys of the parts that there are, with their paths.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let all = [
            ("dit", self.dit.as_deref()),
            ("high_noise", self.high_noise.as_deref()),
            ("low_noise", self.low_noise.as_deref()),
            ("vae", Some(&*self.vae)),
            ("text", Some(&*self.text)),
            ("clip", self.clip.as_deref()),
            ("tokenizer", self.tokenizer.as_deref()),
        ];
        all.into_iter().filter_map(|(key, path)| Some((key, path?)))
    }
}

/// A `LoRA` that belongs to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraEntry {
    /// Its file.
    pub file: PathBuf,
    /// How strongly it is merged; 1 is as it was trained.
    pub strength: f64,
    /// The transformer that it is for, in a model that has two; `None` is for both, or for the only one.
    pub expert: Option<ExpertName>,
}

/// How a model is sampled, where a person or a check has said so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Whether it was distilled to few steps.
    pub distilled: Option<bool>,
    /// The number of denoising steps.
    pub steps: Option<u32>,
    /// The shift of the schedule.
    pub shift: Option<f64>,
    /// The guidance scale.
    pub guidance: Option<f64>,
}

/// What a model was made for, where that is not what Wan was released with: jobs that say nothing else get it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobDefaults {
    /// The prompt of a job without one. It may be empty.
    pub prompt: Option<String>,
    /// The size of the video.
    pub size: Option<Size>,
    /// The number of frames of the video, 4n+1.
    pub frames: Option<u32>,
}

/// Returns why a word cannot be a model's name: names stand in file names, on command lines and in settings.
///
/// # Errors
/// A sentence with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let right = !name.is_empty()
        && name.chars().count() <= MAX_NAME
        && name.chars().all(plain)
        && !name.starts_with(['-', '.']);
    if right {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME).collect();
    Err(format!(
        "a model's name has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, and begins with a letter or digit; \
         `{}` does not",
        shown.escape_debug()
    ))
}

impl ModelFile {
    /// Reads a model file. Paths that are relative begin at its folder; `~` is nobody's home in it.
    ///
    /// # Errors
    /// One sentence with the path, and with the line and the sentence of every mistake.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = text_of(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, base).map_err(|mistakes| said(path, "is no model file", &text, &mistakes))
    }

    /// Reads the text of a model file that lies in the folder `base`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Vec<Mistake>> {
        let document = DeTable::parse(text).map_err(|e| vec![Mistake::from(e)])?;
        let mut reader = Reader { base, mistakes: Vec::new() };
        let model = reader.model(document.get_ref());
        if reader.mistakes.is_empty() { Ok(model) } else { Err(reader.mistakes) }
    }

    /// Returns the text of the file.
    pub fn to_toml(&self) -> String {
        let quoted = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned()).to_string();
        let mut text = format!("name = {}\n", toml::Value::from(self.name.clone()));
        if let Some(about) = &self.about {
            _ = writeln!(text, "about = {}", toml::Value::from(about.clone()));
        }
        text.push_str("\n[parts]\n");
        for (key, path) in self.parts.named() {
            _ = writeln!(text, "{key} = {}", quoted(path));
        }
        for lora in &self.loras {
            _ = write!(text, "\n[[lora]]\nfile = {}\nstrength = {:?}\n", quoted(&lora.file), lora.strength);
            if let Some(expert) = lora.expert {
                _ = writeln!(text, "expert = \"{}\"", expert.name());
            }
        }
        let Sampling { distilled, steps, shift, guidance } = self.sampling;
        let entries = [
            distilled.map(|distilled| format!("distilled = {distilled}")),
            steps.map(|steps| format!("steps = {steps}")),
            shift.map(|shift| format!("shift = {shift:?}")),
            guidance.map(|guidance| format!("guidance = {guidance:?}")),
        ];
        let JobDefaults { prompt, size, frames } = &self.defaults;
        let defaults = [
            prompt.as_ref().map(|prompt| format!("prompt = {}", toml::Value::from(prompt.clone()))),
            size.map(|size| format!("size = \"{size}\"")),
            frames.map(|frames| format!("frames = {frames}")),
        ];
        for (section, entries) in [("sampling", &entries[..]), ("defaults", &defaults[..])] {
            let entries: Vec<&str> = entries.iter().flatten().map(String::as_str).collect();
            if !entries.is_empty() {
                _ = write!(text, "\n[{section}]\n{}\n", entries.join("\n"));
            }
        }
        text
    }
}

/// Reads a file that says how something is sampled: it has the section `[sampling]` of a model file, and nothing else.
///
/// # Errors
/// The errors of [`ModelFile::read`].
pub fn sampling_of(path: &Path) -> Result<Sampling, String> {
    let text = text_of(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
    let read = DeTable::parse(&text).map_err(|e| vec![Mistake::from(e)]).and_then(|document| {
        let mut reader = Reader { base: Path::new(""), mistakes: Vec::new() };
        reader.only(document.get_ref(), "", &["sampling"]);
        let sampling = reader.sampling_section(document.get_ref());
        if reader.mistakes.is_empty() { Ok(sampling) } else { Err(reader.mistakes) }
    });
    read.map_err(|mistakes| said(path, "does not say how a LoRA is sampled", &text, &mistakes))
}

/// Returns what is wrong with a file, each mistake with its line.
fn said(path: &Path, what: &str, text: &str, mistakes: &[Mistake]) -> String {
    let each = mistakes.iter().map(|mistake| match mistake.line(text) {
        Some(line) => format!("line {line}: {}", mistake.message),
        None => mistake.message.clone(),
    });
    format!("`{}` {what}: {}", path.display(), each.collect::<Vec<_>>().join("; "))
}

/// Returns the text of a file that is a regular one and not too long.
fn text_of(path: &Path) -> io::Result<String> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return refuse("it is not a file".into());
    }
    if about.len() > MAX_FILE {
        return refuse(format!("it has {} bytes, and a model file has at most {MAX_FILE}", about.len()));
    }
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a document and collects what is wrong with it.
struct Reader<'a> {
    base: &'a Path,
    mistakes: Vec<Mistake>,
}

type Table<'a> = DeTable<'a>;

impl Reader<'_> {
    fn refuse(&mut self, span: Option<Range<usize>>, message: impl Into<String>) {
        self.mistakes.push(Mistake { message: message.into(), span });
    }

    /// Refuses every key that is not known.
    fn only(&mut self, table: &Table<'_>, of: &str, known: &[&'static str]) {
        for (key, _) in table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let hint = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", known.join(", ")),
            };
            let name: String = name.chars().take(MAX_NAME).collect();
            self.refuse(Some(key.span()), format!("unknown key `{}`{of}; {hint}", name.escape_debug()));
        }
    }

    fn text(&mut self, table: &Table<'_>, key: &str) -> Option<(String, Range<usize>)> {
        let value = table.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some((text.clone().into_owned(), value.span())),
            _ => {
                self.refuse(Some(value.span()), format!("`{key}` must be text in quotes"));
                None
            }
        }
    }

    fn path(&mut self, table: &Table<'_>, key: &str) -> Option<PathBuf> {
        let (text, span) = self.text(table, key)?;
        if text.is_empty() || text.contains('\0') {
            self.refuse(Some(span), format!("`{key}` must be the path of a file or folder"));
            return None;
        }
        Some(self.base.join(text))
    }

    fn number(&mut self, table: &Table<'_>, key: &str, least: f64, most: f64) -> Option<f64> {
        let value = table.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.refuse(Some(value.span()), format!("`{key}` must be a number from {least} to {most}"));
        }
        number
    }

    fn truth(&mut self, table: &Table<'_>, key: &str) -> Option<bool> {
        let value = table.get(key)?;
        if let DeValue::Boolean(truth) = value.get_ref() {
            return Some(*truth);
        }
        self.refuse(Some(value.span()), format!("`{key}` must be `true` or `false`"));
        None
    }

    fn model(&mut self, document: &Table<'_>) -> ModelFile {
        self.only(document, "", &["name", "about", "parts", "lora", "sampling", "defaults"]);
        let mut model = ModelFile::default();
        match self.text(document, "name") {
            Some((name, span)) => match check_name(&name) {
                Ok(()) => model.name = name,
                Err(why) => self.refuse(Some(span), why),
            },
            None if !document.contains_key("name") => {
                self.refuse(None, "`name` is missing: what jobs call the model");
            }
            None => {}
        }
        model.about = self.text(document, "about").map(|(about, _)| about);
        match document.get("parts").map(|parts| (parts.get_ref(), parts.span())) {
            Some((DeValue::Table(parts), span)) => model.parts = self.parts(parts, span),
            Some((_, span)) => self.refuse(Some(span), "`parts` must be a section: write `[parts]`"),
            None => self.refuse(None, "`[parts]` is missing: the paths of the model's parts"),
        }
        match document.get("lora").map(|lora| (lora.get_ref(), lora.span())) {
            Some((DeValue::Array(loras), _)) => {
                for lora in loras {
                    match lora.get_ref() {
                        DeValue::Table(table) => model.loras.extend(self.lora(table, lora.span())),
                        _ => self.refuse(Some(lora.span()), "each LoRA must be a section: write `[[lora]]`"),
                    }
                }
            }
            Some((_, span)) => self.refuse(Some(span), "`lora` must be a list of sections: write `[[lora]]`"),
            None => {}
        }
        model.sampling = self.sampling_section(document);
        match document.get("defaults").map(|defaults| (defaults.get_ref(), defaults.span())) {
            Some((DeValue::Table(table), _)) => model.defaults = self.defaults(table),
            Some((_, span)) => self.refuse(Some(span), "`defaults` must be a section: write `[defaults]`"),
            None => {}
        }
        model
    }

    fn sampling_section(&mut self, document: &Table<'_>) -> Sampling {
        match document.get("sampling").map(|sampling| (sampling.get_ref(), sampling.span())) {
            Some((DeValue::Table(table), _)) => return self.sampling(table),
            Some((_, span)) => self.refuse(Some(span), "`sampling` must be a section: write `[sampling]`"),
            None => {}
        }
        Sampling::default()
    }

    fn parts(&mut self, table: &Table<'_>, span: Range<usize>) -> PartPaths {
        const KEYS: [&str; 7] = ["dit", "high_noise", "low_noise", "vae", "text", "clip", "tokenizer"];
        self.only(table, " in [parts]", &KEYS);
        let [dit, high_noise, low_noise, vae, text, clip, tokenizer] = KEYS.map(|key| self.path(table, key));
        let has = |key: &str| table.contains_key(key);
        match [has("dit"), has("high_noise"), has("low_noise")] {
            [true, false, false] | [false, true, true] => {}
            [true, ..] => self.refuse(
                Some(span.clone()),
                "a model has either `dit` or the two experts `high_noise` and `low_noise`; leave out what it has not",
            ),
            [false, false, false] => self.refuse(
                Some(span.clone()),
                "the transformer is missing in [parts]: write `dit`, or `high_noise` and `low_noise` for a model of two",
            ),
            [false, true, false] => {
                self.refuse(Some(span.clone()), "`low_noise` is missing in [parts], beside `high_noise`");
            }
            [false, false, true] => {
                self.refuse(Some(span.clone()), "`high_noise` is missing in [parts], beside `low_noise`");
            }
        }
        for (key, what) in [("vae", "the autoencoder"), ("text", "the text encoder")] {
            if !has(key) {
                self.refuse(Some(span.clone()), format!("`{key}` is missing in [parts]: the path of {what}"));
            }
        }
        let (vae, text) = (vae.unwrap_or_default(), text.unwrap_or_default());
        PartPaths { dit, high_noise, low_noise, vae, text, clip, tokenizer }
    }

    fn lora(&mut self, table: &Table<'_>, span: Range<usize>) -> Option<LoraEntry> {
        self.only(table, " in [[lora]]", &["file", "strength", "expert"]);
        let file = self.path(table, "file");
        if !table.contains_key("file") {
            self.refuse(Some(span), "`file` is missing in [[lora]]: the path of the LoRA");
        }
        let strength = self.number(table, "strength", -16.0, 16.0).unwrap_or(1.0);
        let mut expert = None;
        if let Some((name, span)) = self.text(table, "expert") {
            expert = ExpertName::ALL.into_iter().find(|expert| expert.name() == name);
            if expert.is_none() {
                self.refuse(Some(span), "`expert` must be `high_noise` or `low_noise`");
            }
        }
        Some(LoraEntry { file: file?, strength, expert })
    }

    fn sampling(&mut self, table: &Table<'_>) -> Sampling {
        self.only(table, " in [sampling]", &["distilled", "steps", "shift", "guidance"]);
        let steps = self.number(table, "steps", 1.0, 1000.0);
        if let (Some(steps), Some(value)) = (steps.filter(|steps| steps.fract() != 0.0), table.get("steps")) {
            self.refuse(Some(value.span()), format!("`steps` must be a whole number, not {steps}"));
        }
        Sampling {
            distilled: self.truth(table, "distilled"),
            steps: steps.map(|steps| steps as u32),
            shift: self.number(table, "shift", 0.01, 100.0),
            guidance: self.number(table, "guidance", 0.0, 100.0),
        }
    }

    fn defaults(&mut self, table: &Table<'_>) -> JobDefaults {
        self.only(table, " in [defaults]", &["prompt", "size", "frames"]);
        let prompt = self.text(table, "prompt");
        let prompt = prompt
            .and_then(|(text, span)| self.checked(span, ranges::prompt("prompt", &text)).map(|()| text));
        let size = self.text(table, "size").and_then(|(text, span)| self.checked(span, text.parse()));
        let frames = table.get("frames").and_then(|value| {
            let number = match value.get_ref() {
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse::<i128>().ok(),
                _ => None,
            };
            let frames = number.ok_or_else(|| ranges::refuse_frames("this")).and_then(ranges::frames);
            self.checked(value.span(), frames)
        });
        JobDefaults { prompt, size, frames }
    }

    /// Notes why a setting cannot be used.
    fn checked<T>(&mut self, span: Range<usize>, value: Result<T, InvalidSetting>) -> Option<T> {
        value.map_err(|mistake| self.refuse(Some(span), mistake.0)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let Err(mistakes) = ModelFile::parse(text, Path::new("/m")) else { return Vec::new() };
        mistakes.iter().map(|m| format!("{}: {}", m.line(text).unwrap_or_default(), m.message)).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let path = |text: &str| Some(PathBuf::from(text));
        let model = ModelFile {
            name: "wan-480p".into(),
            about: Some("a model of \"mine\"\nfor trials".into()),
            parts: PartPaths {
                high_noise: path("/a b/\"high\".gguf"),
                low_noise: path("/a b/100 % läuft.gguf"),
                vae: "/m/vae".into(),
                text: "/m/te\\xt".into(),
                tokenizer: path("/m/spiece.model"),
                ..PartPaths::default()
            },
            loras: vec![
                LoraEntry { file: "/l/high".into(), strength: 0.75, expert: Some(ExpertName::HighNoise) },
                LoraEntry { file: "/l/both".into(), strength: -1.0, expert: None },
            ],
            sampling: Sampling { distilled: Some(true), steps: Some(4), shift: Some(5.0), guidance: None },
            defaults: JobDefaults {
                prompt: Some(String::new()),
                size: Some(Size::Exact { width: 320, height: 192 }),
                frames: Some(81),
            },
        };
        assert_eq!(ModelFile::parse(&model.to_toml(), Path::new("/elsewhere")), Ok(model.clone()));
        let keys: Vec<&str> = model.parts.named().map(|(key, _)| key).collect();
        assert_eq!(keys, ["high_noise", "low_noise", "vae", "text", "tokenizer"]);
    }

    #[test]
    fn paths_begin_at_the_files_folder() {
        let text = "name = \"a\"\n[parts]\ndit = \"dit.gguf\"\nvae = \"../vae\"\ntext = \"/t\"\n[[lora]]\nfile = \"l\"";
        let model = ModelFile::parse(text, Path::new("/m")).expect("it is right");
        assert_eq!(model.parts.dit.as_deref(), Some(Path::new("/m/dit.gguf")));
        assert_eq!((&*model.parts.vae, &*model.parts.text), (Path::new("/m/../vae"), Path::new("/t")));
        assert_eq!((&*model.loras[0].file, model.loras[0].strength), (Path::new("/m/l"), 1.0));
    }

    #[test]
    fn every_mistake_is_said_with_its_line() {
        assert_eq!(
            mistakes(
                "name = \"a b\"\nsteps = 4\n[parts]\ndi = \"x\"\nhigh_noise = 1\nvae = \"\"\n[[lora]]\nstrength = \"x\"\nexpert = \
                 \"low\"\n[sampling]\nsteps = 2.5\nshift = nan\ndistilled = 1\n"
            ),
            [
                "2: unknown key `steps`; known are name, about, parts, lora, sampling, defaults",
                "1: a model's name has 1 to 64 letters, digits, `-`, `_` and `.`, and begins with a letter or digit; `a b` \
                 does not",
                "4: unknown key `di` in [parts]; did you mean `dit`?",
                "5: `high_noise` must be text in quotes",
                "6: `vae` must be the path of a file or folder",
                "3: `low_noise` is missing in [parts], beside `high_noise`",
                "3: `text` is missing in [parts]: the path of the text encoder",
                "7: `file` is missing in [[lora]]: the path of the LoRA",
                "8: `strength` must be a number from -16 to 16",
                "9: `expert` must be `high_noise` or `low_noise`",
                "11: `steps` must be a whole number, not 2.5",
                "13: `distilled` must be `true` or `false`",
                "12: `shift` must be a number from 0.01 to 100",
            ]
        );
        assert_eq!(
            mistakes("lora = 1\nsampling = []"),
            [
                "0: `name` is missing: what jobs call the model",
                "0: `[parts]` is missing: the paths of the model's parts",
                "1: `lora` must be a list of sections: write `[[lora]]`",
                "2: `sampling` must be a section: write `[sampling]`",
            ]
        );
        assert_eq!(
            mistakes(
                "name = \"a\"\n[parts]\ndit = \"d\"\nvae = \"v\"\ntext = \"t\"\n[defaults]\nfps = 1\nprompt = 1\nsize = \
                 \"320x190\"\nframes = 80\n"
            ),
            [
                "7: unknown key `fps` in [defaults]; known are prompt, size, frames",
                "8: `prompt` must be text in quotes",
                "9: `size` 320x190: the height must be a multiple of 16, up to 16384; the nearest to 190 is 192",
                "10: `frames` must be 4n+1, up to 4093; the nearest to 80 is 81",
            ]
        );
        let both = "name = \"a\"\n[parts]\ndit = \"a\"\nlow_noise = \"b\"\nvae = \"c\"\ntext = \"d\"\n";
        assert!(mistakes(both)[0].contains("either `dit` or the two experts"));
        assert!(mistakes("name = ")[0].starts_with("1: "));
    }

    #[test]
    fn what_is_no_file_of_this_kind_is_refused_at_once() {
        assert!(ModelFile::read(Path::new("/dev/zero")).is_err_and(|e| e.contains("not a file")));
        assert!(ModelFile::read(Path::new("/nowhere/x.toml")).is_err_and(|e| e.contains("cannot read")));
    }
}
