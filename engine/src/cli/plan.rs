//! `animd-engine plan`.

use std::path::PathBuf;

use animd_engine::weights::Model;
use animd_engine::{Error, Result};
use animd_options::SettingsOptions;
use animd_protocol::limits;
use animd_protocol::plan::{Plan, Setup, gib};
use animd_protocol::profile::{BUILT_IN, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Settings, Size};

use super::backend::kernels;
use super::{print, print_json};

/// Say what a video will cost in operations and memory, without making it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine plan --size 720p --profile h200                   the 14B model on a large card
  animd-engine plan --profile ./mine.toml --vram 24GiB           whether a profile fits a card
  animd-engine plan --model ~/models/Wan2.1-I2V-14B-480P --json
Exit status: 1 if it does not fit.")]
pub struct PlanArgs {
    #[command(flatten)]
    settings: SettingsOptions,
    /// The model's folder, for its sizes [default: the sizes of the released 14B model]
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A profile of animd's own, or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "h200")]
    profile: String,
    /// Memory of the GPU (with the profile `cpu`: of the machine), as `24GiB` or `80GB`: does it fit?
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    vram: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let profile = profile(&self.profile)?;
        let recipe = match &self.model {
            Some(folder) => Model::open(folder, None)?.recipe(),
            None => Recipe::wan21_i2v_14b(),
        };
        let request = Settings::from(self.settings).or(profile.settings.clone()).resolve(|| 0)?;
        // The picture has the shape of the area.
        let size = match request.size {
            Size::P480 => [832, 480],
            Size::P720 => [1280, 720],
            Size::Exact { width, height } => [width as usize, height as usize],
        };
        let setup = Setup::of(&profile, &kernels());
        let notes = limits(&profile, &kernels(), None);
        let plan = Plan::new(&recipe, &request, size, &setup);
        let needed = plan.memory.peak().0 + setup.reserve;
        let fits = self.vram.map(|vram| needed <= vram);
        if self.json {
            print_json(&serde_json::json!({
                "profile": profile.name, "request": request, "plan": plan, "peak": needed, "fits": fits,
                "notes": notes,
            }))?;
        } else {
            print(&format!("{plan}"))?;
            for note in notes {
                print(&note)?;
            }
            if let Some((vram, true)) = self.vram.zip(fits) {
                print(&format!("fits into {}", gib(vram)))?;
            }
        }
        match self.vram.filter(|_| fits == Some(false)) {
            Some(vram) => Err(Error::Memory(format!(
                "{} are needed ({} of them kept free by the profile `{}`), and there are {}: use a smaller size or fewer \
                 frames, `--tiling tiled`, or a profile that keeps less on the device",
                gib(needed),
                gib(setup.reserve),
                profile.name,
                gib(vram)
            ))),
            None => Ok(()),
        }
    }
}

/// Returns a built-in profile by its name, or the profile in a file.
fn profile(name: &str) -> Result<Profile> {
    if let Some(profile) = Profile::built_in(name) {
        return Ok(profile);
    }
    let text = std::fs::read_to_string(name).map_err(|e| {
        let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        Error::Setting(format!(
            "`{name}` is no profile of animd's ({}), and as a file it cannot be read: {e}",
            known.join(", ")
        ))
    })?;
    Profile::read(&text).map_err(|e| {
        let line = e.line(&text).map_or_else(String::new, |line| format!(", line {line}"));
        Error::Setting(format!("`{name}`{line}: {e}"))
    })
}

/// Reads `24GiB`, `80GB`, `512MiB`, or a plain number of bytes.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let factor: u64 = match &*unit {
        "" | "b" => 1,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(format!("`{unit}` is no unit; write it as `24GiB` or `80GB`")),
    };
    let number: f64 = digits.parse().map_err(|_| "write it as `24GiB` or `80GB`".to_owned())?;
    if !(0.0..1e9).contains(&number) && factor != 1 {
        return Err("that is more memory than there is".into());
    }
    Ok((number * factor as f64) as u64)
}
