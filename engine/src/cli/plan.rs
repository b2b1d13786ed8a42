//! `animd-engine plan`.

use std::path::PathBuf;

use animd_engine::synth::{self, Family};
use animd_engine::weights::Model;
use animd_engine::{Error, Result};
use animd_options::SettingsOptions;
use animd_protocol::missing;
use animd_protocol::plan::cards::{self, Card};
use animd_protocol::plan::{Plan, Prediction, Setup, gib, refusal};
use animd_protocol::profile::{BUILT_IN, Profile};
use animd_protocol::request::{Settings, Size};

use super::{print, print_json};

/// Say what a video will cost in operations, memory and time, without making it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine plan --gpu rtx4090 --size 720p --sampler distill  what is where on a card, and how long each stage takes
  animd-engine plan --gpu rtx3060 --host-memory 32GB             beside a machine's memory, too
  animd-engine plan --gpu rtx4090 --family wan22 --host-memory 48GB  Wan2.2's two transformers, where one has room
  animd-engine plan --profile ./mine.toml --vram 24GiB           whether a profile fits into so much
  animd-engine plan --model ~/models/Wan2.1-I2V-14B-480P --json
Exit status: 1 if it does not fit. The error says what is missing and what fits.")]
pub struct PlanArgs {
    #[command(flatten)]
    settings: SettingsOptions,
    /// The model's folder, for its sizes [default: the sizes of the released 14B model]
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The family whose released 14B model is meant
    #[arg(long, value_name = "NAME", value_enum, default_value = "wan21", conflicts_with = "model")]
    family: Family,
    /// A card, which need not be there, by its name: `rtx4090`, `a100`, `rtx6000ada` [default: the profile's, without --vram]
    #[arg(long, value_name = "NAME", value_parser = card)]
    gpu: Option<Card>,
    /// A profile of animd's own, or a file [default: the one for the card, else h200]
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
    /// Memory of the GPU that is free (with the profile `cpu`: of the machine), as `24GiB` or `80GB` [default: all of the
    /// card's]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    vram: Option<u64>,
    /// Memory of the machine in which weights may wait for the GPU, as `32GB` [default: as much as they take]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    host_memory: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let profile = self.profile()?;
        // A profile of animd's own has the name of a card, with which it is planned if nothing else is given.
        let own = || self.vram.is_none().then(|| cards::named(&profile.name)).flatten();
        let gpu = self.gpu.clone().or_else(own);
        let capability = gpu.as_ref().map(|card| card.capability);
        if let Some([why, remedy]) = capability.and_then(|capability| missing(&profile, capability)) {
            return Err(Error::Setting(format!("{why}: {remedy}")));
        }
        let recipe = match &self.model {
            Some(folder) => Model::open(folder, None)?.recipe(),
            None => synth::Size::Full.recipe_of(self.family),
        };
        let settings = Settings::from(self.settings).or(profile.settings.clone());
        let whole = settings.resolve_for(&recipe.defaults, || 0)?;
        recipe.check(&whole)?;
        let remarks = recipe.remarks(&whole);
        let (parts, request) = (whole.parts().len(), whole.largest_part());
        // The picture has the shape of the area.
        let size = match request.size {
            Size::P480 => [832, 480],
            Size::P720 => [1280, 720],
            Size::Exact { width, height } => [width as usize, height as usize],
        };
        let wanted = Setup::from(&profile);
        let free = self.vram.or(gpu.as_ref().map(|card| card.memory));
        let budget = [wanted.budget, free.map(|free| free.saturating_sub(wanted.reserve))];
        let budget = budget.into_iter().flatten().min();
        let setup = Setup { budget, host_memory: self.host_memory, ..wanted };
        let plan = Plan::new(&recipe, &request, size, &setup);
        let refused = refusal(&recipe, &request, size, &setup);
        let card = gpu.as_ref().filter(|_| refused.is_none());
        let prediction = card.and_then(|card| Prediction::new(&recipe, &plan, &setup, card));
        let fits = budget.or(self.host_memory).map(|_| refused.is_none());
        if self.json {
            print_json(&serde_json::json!({
                "profile": profile.name, "gpu": gpu.as_ref().map(|card| &card.name), "request": whole, "parts": parts,
                "plan": plan, "needed": plan.memory.total() + setup.reserve, "fits": fits, "refused": refused,
                "prediction": prediction, "remarks": remarks,
            }))?;
        } else {
            print(&format!("profile {}\n{plan}", profile.name))?;
            if parts > 1 {
                print(&format!("\nthis is one of {parts} parts, which take {parts} times its seconds"))?;
            }
            if let Some(prediction) = &prediction {
                print(&format!("\n{prediction}"))?;
            }
            for remark in &remarks {
                print(&format!("note: {remark}"))?;
            }
            if let Some((free, true)) = free.zip(fits) {
                let (reserve, free) = (gib(setup.reserve), gib(free));
                print(&format!("fits into {free}, of which {reserve} are left alone"))?;
            }
        }
        refused.map_or(Ok(()), |refused| Err(Error::Memory(refused.to_string())))
    }

    /// Returns the profile that was asked for, or the one that the card would get.
    fn profile(&self) -> Result<Profile> {
        match (&self.profile, &self.gpu) {
            (Some(name), _) => profile(name),
            (None, None) => profile("h200"),
            (None, Some(card)) => profile_for(card, self.vram.unwrap_or(card.memory)),
        }
    }
}

/// Returns the most demanding profile of animd's own that a card with so many bytes free gets; the least demanding one if
/// they are too few for any.
///
/// # Errors
/// [`Error::Device`] if no profile is for such cards.
pub fn profile_for(card: &Card, free: u64) -> Result<Profile> {
    let all = BUILT_IN.iter().filter_map(|(name, _)| Profile::built_in(name));
    let meant: Vec<Profile> =
        all.filter(|profile| profile.on_gpu() && profile.is_for(card.capability)).collect();
    let fitting = meant.iter().find(|profile| profile.min_memory() <= free);
    let none = || Error::Device(format!("no profile is for the card `{}`", card.name));
    fitting.or(meant.last()).cloned().ok_or_else(none)
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

/// Returns a card by its name.
pub fn card(name: &str) -> std::result::Result<Card, String> {
    cards::named(name)
        .ok_or_else(|| format!("no such card is known; known are {}", cards::names().join(", ")))
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
