//! A profile says how one class of machines runs the model: in which precision, with which weights in which memory, and
//! with which default settings. It is a TOML file; `configs/` has the ones that come with animd, with each key
//! explained.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::mistake::Mistake;
use crate::recipe::Component;
use crate::request::Settings;

pub use crate::capability::Capability;

/// The profiles that come with animd, as name and text; the most demanding comes first.
pub const BUILT_IN: [(&str, &str); 11] = [
    ("h200", include_str!("../../../configs/h200.toml")),
    ("rtxpro6000", include_str!("../../../configs/rtxpro6000.toml")),
    ("a100", include_str!("../../../configs/a100.toml")),
    ("l40s", include_str!("../../../configs/l40s.toml")),
    ("rtx5090", include_str!("../../../configs/rtx5090.toml")),
    ("h100", include_str!("../../../configs/h100.toml")),
    ("rtx4090", include_str!("../../../configs/rtx4090.toml")),
    ("rtx3090", include_str!("../../../configs/rtx3090.toml")),
    ("rtx4060ti", include_str!("../../../configs/rtx4060ti.toml")),
    ("rtx3060", include_str!("../../../configs/rtx3060.toml")),
    ("cpu", include_str!("../../../configs/cpu.toml")),
];

/// How one class of machines runs the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The profile's name, of letters, digits, `-` and `_`; `profile.name` in the configuration refers to it.
    pub name: String,
    /// One line that says which machines the profile is for.
    pub summary: String,
    /// `[device]`
    pub device: Device,
    /// `[precision]`
    pub precision: Precisions,
    /// `[attention]`
    pub attention: Attention,
    /// `[residency]`
    pub residency: Residency,
    /// `[memory]`
    #[serde(default)]
    pub memory: Memory,
    /// `[settings]`: the values that a job gets where neither the job nor the user's configuration sets them.
    #[serde(default)]
    pub settings: Settings,
}

/// The device that a profile is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// The device that computes.
    pub backend: Backend,
    /// The GPU memory in GiB that must be free; 0 for the CPU.
    #[serde(default)]
    pub min_memory_gib: f64,
    /// The compute capabilities of the GPUs that the profile is chosen for; all of them if there is none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
}

/// The device that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// An NVIDIA GPU.
    Cuda,
    /// The processor, in float32.
    Cpu,
}

impl Backend {
    /// Returns `cuda` or `cpu`, the name that the engine uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        }
    }
}

/// The precision of each kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precisions {
    /// The large matrices of the DiT's blocks.
    pub dit: Precision,
    /// The DiT's norms, modulation, embeddings and residual stream.
    pub sensitive: Sensitive,
    /// umT5.
    pub text: Precision,
    /// CLIP.
    pub clip: Precision,
    /// The VAE.
    pub vae: Precision,
}

impl Precisions {
    /// Returns a precision that is the same for all networks.
    pub const fn all(precision: Precision, sensitive: Sensitive) -> Self {
        let [dit, text, clip, vae] = [precision; 4];
        Self { dit, sensitive, text, clip, vae }
    }

    /// Returns the precision of the networks of one kind.
    pub fn of(&self, component: Component) -> Precision {
        match component {
            Component::Dit => self.dit,
            Component::T5 => self.text,
            Component::Clip => self.clip,
            Component::Vae => self.vae,
        }
    }
}

/// The type in which a network's weights are stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 16 bits (bf16), as the model is published.
    Bf16,
    /// 8 bits (e4m3), with a scale for each row.
    Fp8,
    /// 8 bits (whole numbers), both sides rotated in blocks of 256 columns, with a scale for each row.
    Int8,
    /// 32 bits.
    Fp32,
}

/// The type of the small parts that are most sensitive to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// 32 bits.
    Fp32,
    /// The type of the activations around them.
    Same,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// The kind of the DiT's self-attention.
    pub kind: AttentionKind,
}

/// A kind of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttentionKind {
    /// In the precision of the inputs.
    #[serde(rename = "exact")]
    Exact,
    /// With products in 8 bits.
    #[serde(rename = "8bit")]
    EightBit,
}

/// Where the weights of each kind of network are kept between their uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residency {
    /// The DiT.
    pub dit: Place,
    /// umT5.
    pub text: Place,
    /// CLIP.
    pub clip: Place,
    /// The VAE.
    pub vae: Place,
}

impl Residency {
    /// Returns a residency that keeps all networks in one place.
    pub const fn all(place: Place) -> Self {
        let [dit, text, clip, vae] = [place; 4];
        Self { dit, text, clip, vae }
    }

    /// Returns the place of the networks of one kind.
    pub fn of(&self, component: Component) -> Place {
        match component {
            Component::Dit => self.dit,
            Component::T5 => self.text,
            Component::Clip => self.clip,
            Component::Vae => self.vae,
        }
    }
}

/// Returns the key that stands for the networks of a kind in the sections of a profile.
pub fn key(component: Component) -> &'static str {
    match component {
        Component::Dit => "dit",
        Component::T5 => "text",
        Component::Clip => "clip",
        Component::Vae => "vae",
    }
}

/// A place where weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The GPU's memory.
    Device,
    /// The machine's memory; the weights are copied to the GPU for each use.
    Host,
    /// The model's files; the weights are read for each use.
    Disk,
}

/// The memory that the engine leaves alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// The MiB of GPU memory that the engine does not use.
    pub reserve_mib: u64,
    /// The MiB of GPU memory that the engine may use at the most, whatever is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_mib: Option<u64>,
}

impl Profile {
    /// Reads a profile and checks every value of it.
    ///
    /// # Errors
    /// Returns the first [`Mistake`], with its place in the text.
    pub fn read(text: &str) -> Result<Self, Mistake> {
        let profile: Self = toml::from_str(text)?;
        match profile.check() {
            Ok(()) => Ok(profile),
            Err((path, message)) => Err(Mistake { message, span: span(text, path) }),
        }
    }

    /// Returns the built-in profile of this name.
    pub fn built_in(name: &str) -> Option<Self> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Self::read(text).ok()
    }

    /// Returns whether the profile runs on a GPU.
    pub fn on_gpu(&self) -> bool {
        self.device.backend == Backend::Cuda
    }

    /// Returns whether the profile is meant for cards of this compute capability.
    pub fn is_for(&self, capability: (u32, u32)) -> bool {
        let wanted = &self.device.capabilities;
        wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(capability))
    }

    /// Returns the bytes of GPU memory that must be free.
    pub fn min_memory(&self) -> u64 {
        (self.device.min_memory_gib * (1u64 << 30) as f64) as u64
    }

    /// Returns the section and key of the first value that is out of range or conflicts with another one, and a
    /// sentence.
    fn check(&self) -> Result<(), (&'static [&'static str], String)> {
        let Self { name, summary, device, precision, attention, residency, memory, settings } = self;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(word) || name == "auto" {
            let text = format!("name `{name}` is not 1 to 64 letters, digits, `-` and `_`, or is `auto`");
            return Err((&["name"], text));
        }
        if summary.trim().is_empty() || summary.contains('\n') {
            return Err((&["summary"], "summary is not one line that says whom the profile is for".into()));
        }
        if !(0.0..=4096.0).contains(&device.min_memory_gib) {
            let text = format!("device.min_memory_gib {} is not from 0 to 4096", device.min_memory_gib);
            return Err((&["device", "min_memory_gib"], text));
        }
        if memory.reserve_mib > 1 << 20 {
            let text = format!("memory.reserve_mib {} is not from 0 to {}", memory.reserve_mib, 1 << 20);
            return Err((&["memory", "reserve_mib"], text));
        }
        if memory.budget_mib.is_some_and(|mib| !(1..=1 << 20).contains(&mib)) {
            let mib = memory.budget_mib.unwrap_or_default();
            let text = format!("memory.budget_mib {mib} is not from 1 to {}", 1 << 20);
            return Err((&["memory", "budget_mib"], text));
        }
        match device.backend {
            Backend::Cpu => {
                let cpu = |what: &str| format!("the backend `cpu` {what}");
                if device.min_memory_gib != 0.0 {
                    let text = cpu("needs no GPU memory; leave device.min_memory_gib out");
                    return Err((&["device", "min_memory_gib"], text));
                }
                for component in Component::ALL {
                    let (network, place) = (key(component), residency.of(component));
                    if precision.of(component) != Precision::Fp32 {
                        let text = cpu(&format!("computes in float32 alone; write `{network} = \"fp32\"`"));
                        return Err((path("precision", network), text));
                    }
                    if place == Place::Device {
                        let text = cpu(&format!("has no device; write `{network} = \"host\"`"));
                        return Err((path("residency", network), text));
                    }
                }
                if attention.kind != AttentionKind::Exact {
                    let text = cpu("has exact attention alone; write `kind = \"exact\"`");
                    return Err((&["attention", "kind"], text));
                }
            }
            Backend::Cuda => {
                if device.min_memory_gib == 0.0 {
                    let text =
                        "a profile for a GPU says how much of its memory must be free: device.min_memory_gib";
                    return Err((&["device"], text.into()));
                }
                for component in [Component::Clip, Component::Vae] {
                    let precision = precision.of(component);
                    if let Precision::Fp8 | Precision::Int8 = precision {
                        let network = key(component);
                        let name = if precision == Precision::Fp8 { "fp8" } else { "int8" };
                        let text = format!(
                            "precision.{network} `{name}` is for `dit` and `text` alone, which have the large matrices; \
                             write \"bf16\" or \"fp32\""
                        );
                        return Err((path("precision", network), text));
                    }
                }
            }
        }
        let of_a_picture = [
            ("seed", settings.seed.is_some()),
            ("prompt", settings.prompt.is_some()),
            ("last", settings.last.is_some()),
        ];
        if let Some((key, _)) = of_a_picture.into_iter().find(|(_, given)| *given) {
            let text = format!("settings.{key} belongs to a picture and not to a machine; leave it out");
            return Err((path("settings", key), text));
        }
        settings.clone().resolve(|| 0).map(drop).map_err(|e| (&["settings"][..], format!("[settings]: {e}")))
    }
}

/// The paths that [`Profile::check`] builds from a section and a key.
fn path(section: &str, key: &str) -> &'static [&'static str] {
    const PATHS: [&[&str]; 11] = [
        &["precision", "dit"],
        &["precision", "text"],
        &["precision", "clip"],
        &["precision", "vae"],
        &["residency", "dit"],
        &["residency", "text"],
        &["residency", "clip"],
        &["residency", "vae"],
        &["settings", "seed"],
        &["settings", "prompt"],
        &["settings", "last"],
    ];
    PATHS.into_iter().find(|path| **path == [section, key]).unwrap_or_default()
}

/// Returns the range of the value at `path` or, where the value is left out, that of its table.
fn span(text: &str, path: &[&str]) -> Option<Range<usize>> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (mut table, mut found) = (document.get_ref(), None);
    for key in path {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref().as_ref() == *key) else {
            break;
        };
        found = Some(name.span());
        let Some(inner) = value.get_ref().as_table() else { break };
        table = inner;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "mine"
summary = "a card of mine"
[device]
backend = "cuda"
min_memory_gib = 22.0
[precision]
dit = "fp8"
sensitive = "fp32"
text = "bf16"
clip = "bf16"
vae = "bf16"
[attention]
kind = "8bit"
[residency]
dit = "device"
text = "host"
clip = "host"
vae = "device"
"#;

    #[test]
    fn what_comes_with_animd_can_be_read_and_is_ordered_by_its_demands() {
        let mut before = f64::INFINITY;
        for (name, text) in BUILT_IN {
            let profile =
                Profile::read(text).unwrap_or_else(|e| panic!("{name}: {e}, line {:?}", e.line(text)));
            assert_eq!(profile.name, name);
            assert!(profile.device.min_memory_gib <= before, "{name}");
            before = profile.device.min_memory_gib;
            // Every key is listed, if only commented out: nobody would find a key that is left out.
            for key in [
                "min_memory_gib",
                "capabilities",
                "reserve_mib",
                "budget_mib",
                "sensitive",
                "tiling",
                "sampler",
                "size",
            ] {
                assert!(text.contains(key), "{name} does not mention {key}");
            }
            for line in text.lines().filter(|l| !l.is_empty()) {
                assert!(line.len() <= 120, "{name}: {line}");
            }
        }
        assert_eq!(before, 0.0, "the CPU is the last resort");
        assert!(Profile::built_in("h200").is_some_and(|p| p.on_gpu()));
        assert!(Profile::built_in("h2000").is_none());
    }

    #[test]
    fn each_profile_asks_for_as_much_memory_as_its_work_takes() {
        use crate::plan::{Plan, Setup, refusal};
        for (name, _) in BUILT_IN {
            let profile = Profile::built_in(name).expect("it comes with animd");
            if !profile.on_gpu() {
                continue;
            }
            let request = profile.settings.clone().resolve(|| 1).expect("valid settings");
            let mut setup = Setup::from(&profile);
            setup.budget = Some(profile.min_memory() - setup.reserve);
            let recipe = crate::recipe::Recipe::wan21_i2v_14b();
            // 480p, the size of a job that asks for no other, runs on every card; both ways round.
            for size in [[832, 480], [480, 832]] {
                let refused = refusal(&recipe, &request, size, &setup).map(|refusal| refusal.to_string());
                assert_eq!(refused, None, "{name}");
            }
            // 8-bit weights wait in at most 20 GB of the machine's memory.
            let memory = Plan::new(&recipe, &request, [1280, 720], &setup).memory;
            assert!(memory.host.pinned <= 20_000_000_000, "{name}: {} bytes are pinned", memory.host.pinned);
        }
    }

    #[test]
    fn a_profile_is_for_the_cards_that_it_lists() {
        let text =
            GOOD.replace("min_memory_gib = 22.0", "min_memory_gib = 22.0\ncapabilities = [\"8.9\", \"12\"]");
        let profile = Profile::read(&text).expect("a good profile");
        assert!(profile.is_for((8, 9)) && profile.is_for((12, 1)) && !profile.is_for((8, 6)));
        assert!(
            Profile::read(GOOD).is_ok_and(|profile| profile.is_for((7, 5))),
            "without any, it is for all"
        );
        // A list without a table is written and read again as it was.
        let written = toml::to_string(&profile).expect("a profile can be written");
        assert_eq!(Profile::read(&written), Ok(profile));
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        assert_eq!(Profile::read(GOOD).map(|p| p.name).as_deref(), Ok("mine"));
        for (from, to, line, expected) in [
            ("dit = \"fp8\"", "dti = \"fp8\"", 7, "unknown field `dti`"),
            ("dit = \"fp8\"", "dit = \"fp9\"", 7, "unknown variant `fp9`"),
            ("kind = \"8bit\"", "kind = \"7bit\"", 13, "unknown variant `7bit`"),
            ("22.0", "\"much\"", 5, "invalid type"),
            ("22.0", "-1.0", 5, "device.min_memory_gib -1 is not from 0 to 4096"),
            ("min_memory_gib = 22.0", "", 3, "how much of its memory must be free"),
            ("\"mine\"", "\"my card\"", 1, "name `my card`"),
            ("\"a card of mine\"", "\"\"", 2, "summary is not one line"),
            ("vae = \"bf16\"", "vae = \"fp8\"", 11, "precision.vae `fp8` is for `dit` and `text` alone"),
            ("clip = \"bf16\"", "clip = \"int8\"", 10, "precision.clip `int8` is for `dit` and `text` alone"),
            ("22.0", "22.0\ncapabilities = [\"ada\"]", 6, "`ada` is no compute capability"),
            (
                "vae = \"device\"",
                "vae = \"device\"\n[memory]\nbudget_mib = 0",
                20,
                "memory.budget_mib 0 is not from 1 to",
            ),
            ("\"cuda\"", "\"cpu\"", 5, "needs no GPU memory"),
            ("vae = \"device\"", "vae = \"device\"\n[settings]\nsteeps = 3", 20, "unknown field `steeps`"),
            (
                "vae = \"device\"",
                "vae = \"device\"\n[settings]\nframes = 80",
                20,
                "`frames` must be 4n+1, up to 4093; the nearest to 80 is 81",
            ),
            (
                "vae = \"device\"",
                "vae = \"device\"\n[settings]\nseed = 80",
                20,
                "settings.seed belongs to a picture",
            ),
            (
                "vae = \"device\"",
                "vae = \"device\"\n[memory]\nreserve_mib = 9999999",
                20,
                "memory.reserve_mib 9999999",
            ),
        ] {
            assert!(GOOD.contains(from));
            let text = GOOD.replacen(from, to, 1);
            let mistake = Profile::read(&text).expect_err(to);
            assert_eq!(mistake.line(&text), Some(line), "{to}: {mistake}");
            assert!(mistake.message.contains(expected), "{to}: {mistake}");
        }
        let cpu = BUILT_IN[BUILT_IN.len() - 1].1.replacen("dit = \"fp32\"", "dit = \"bf16\"", 1);
        assert!(Profile::read(&cpu).is_err_and(|e| e.message.contains("computes in float32 alone")));
    }
}
