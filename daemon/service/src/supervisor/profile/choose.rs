//! Chooses the profile and the GPU, and says why: a function of what the driver says, what the engine was built for,
//! and what the configuration asks for. It has no side effects, so that the tests' table of cases covers it.

use std::cmp::Reverse;
use std::fmt::Write;

use animd_protocol::messages::Kernels;
use animd_protocol::missing;
use animd_protocol::profile::Profile;

use crate::supervisor::gpu::{Card, Machine, gib};

pub use animd_common::profiles::AUTO;

/// `[profile]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `auto`, or the name of a profile.
    pub profile: String,
    /// `auto`, a UUID, or a number.
    pub gpu: String,
    /// Whether jobs wait while nothing can be chosen, so that the reasons say it.
    pub jobs_wait: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self { profile: AUTO.into(), gpu: AUTO.into(), jobs_wait: true }
    }
}

/// The verdict on a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The choice is the one that was asked for.
    Ready,
    /// There is a GPU, but the model cannot run on it as things are.
    CannotServe,
    /// There is no GPU, or no driver to ask for one.
    NoGpu,
    /// There may be a better choice a little later.
    Retry,
}

impl Verdict {
    /// `ready`, `cannot-serve`, `no-gpu` or `retry`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::CannotServe => "cannot-serve",
            Self::NoGpu => "no-gpu",
            Self::Retry => "retry",
        }
    }
}

/// The result of the choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The profile that the engine runs the model with; without one, jobs wait.
    pub profile: Option<Profile>,
    /// The GPU that the choice is about: the one to use, or the best that cannot be used.
    pub gpu: Option<Card>,
    /// The verdict.
    pub state: Verdict,
    /// The reasons, one sentence each, without full stops.
    pub why: Vec<String>,
    /// What would improve the choice, if anything.
    pub remedy: Option<String>,
}

impl Choice {
    /// Returns the GPU for the engine to work on.
    pub fn used_gpu(&self) -> Option<&Card> {
        self.gpu.as_ref().filter(|_| self.profile.as_ref().is_some_and(Profile::on_gpu))
    }

    /// Returns the whole choice in one line.
    pub fn text(&self) -> String {
        let mut text = self.why.join("; ");
        if let Some(remedy) = &self.remedy {
            _ = write!(text, ": {remedy}");
        }
        text
    }
}

/// Returns the choice. `profiles` are tried in the order of what they ask for; of equals the first is taken.
pub fn choose(machine: &Machine, kernels: &Kernels, wish: &Wish, profiles: &[Profile]) -> Choice {
    let case = Case { kernels, wish, profiles };
    let wished = match profiles.iter().find(|p| p.name == wish.profile) {
        None if wish.profile != AUTO => {
            let known = profiles.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            return Choice {
                profile: None,
                gpu: None,
                state: Verdict::CannotServe,
                why: vec![animd_common::profiles::unknown(&wish.profile, profiles)],
                remedy: Some(format!("set profile.name to `{AUTO}` or one of {known}")),
            };
        }
        wished => wished,
    };
    if let Some(profile) = wished.filter(|p| !p.on_gpu()) {
        let why = format!("profile.name asks for `{}`, which needs no GPU", profile.name);
        return Choice {
            profile: Some(profile.clone()),
            gpu: None,
            state: Verdict::Ready,
            why: vec![why],
            remedy: None,
        };
    }
    match machine {
        Machine::Driver { version, cards } => case.of_cards(version, cards, wished),
        Machine::NoDriver { why, on_bus: 0 } => {
            let remedy = "with an NVIDIA GPU in the machine, install NVIDIA's driver";
            case.without(Verdict::NoGpu, vec![why.clone(), "no NVIDIA GPU is on the PCI bus".into()], remedy)
        }
        Machine::NoDriver { why, .. } => {
            let remedy =
                "install NVIDIA's driver, or load it (`sudo modprobe nvidia`); animd looks again by itself";
            case.without(Verdict::NoGpu, vec![why.clone(), "an NVIDIA GPU is on the PCI bus".into()], remedy)
        }
        Machine::Refused { why } => {
            let remedy = "start animd again, so that systemd lets it use the devices that are there now; without systemd, let \
                          its user read and write /dev/nvidia*";
            case.without(Verdict::Retry, vec![why.clone()], remedy)
        }
        Machine::Failed { why } => {
            let remedy = "animd asks again by itself; `nvidia-smi` shows whether the driver works, and a restart of the machine \
                          ends an upgrade of the driver";
            case.without(Verdict::Retry, vec![why.clone()], remedy)
        }
    }
}

/// The inputs that are the same for every card.
struct Case<'a> {
    kernels: &'a Kernels,
    wish: &'a Wish,
    profiles: &'a [Profile],
}

/// How the profiles fit one card.
enum Fit<'a> {
    /// The card runs this profile, with machine code (`native`) or else by PTX.
    Yes { profile: &'a Profile, native: bool },
    /// The card would run a profile if other programs freed memory on it.
    Busy { why: String, remedy: String },
    /// The card runs no profile.
    No { why: String, remedy: String },
}

impl<'a> Case<'a> {
    fn of_cards(&self, driver: &str, cards: &[Card], wished: Option<&'a Profile>) -> Choice {
        if cards.is_empty() {
            let why = format!("the driver {driver} is there and knows no GPU");
            return self.without(
                Verdict::NoGpu,
                vec![why],
                "look whether the card sits and has power (`lspci`)",
            );
        }
        let asked: Vec<&Card> = cards.iter().filter(|card| is_asked(card, &self.wish.gpu)).collect();
        if asked.is_empty() {
            let known =
                cards.iter().map(|c| format!("{} {}", c.index, c.uuid)).collect::<Vec<_>>().join(", ");
            return Choice {
                profile: None,
                gpu: None,
                state: Verdict::CannotServe,
                why: vec![format!("there is no GPU `{}`, which profile.gpu asks for", self.wish.gpu)],
                remedy: Some(format!("set profile.gpu to `{AUTO}` or one of {known}")),
            };
        }
        let mut fits: Vec<(&Card, Fit<'_>)> =
            asked.into_iter().map(|card| (card, self.fit(card, driver, wished))).collect();
        // The best card comes first. Of the cards that run nothing, a busy one comes first, then the largest.
        fits.sort_by_key(|(card, fit)| {
            let (class, memory, native) = match fit {
                Fit::Yes { profile, native } => (2, profile.min_memory(), *native),
                Fit::Busy { .. } => (1, 0, false),
                Fit::No { .. } => (0, 0, false),
            };
            Reverse((class, memory, native, card.capability, card.memory_free, Reverse(card.index)))
        });
        match &fits[0] {
            (card, Fit::Yes { profile, native }) => {
                let mut why = vec![self.why(card, profile, *native)];
                if wished.is_some() {
                    why[0] = format!("profile.name asks for `{}`; {}", profile.name, why[0]);
                }
                why.extend(self.smaller(card, profile, wished.is_some()));
                why.extend(fits[1..].iter().map(|other| compared((card, profile, *native), other)));
                Choice {
                    profile: Some((*profile).clone()),
                    gpu: Some((*card).clone()),
                    state: Verdict::Ready,
                    why,
                    remedy: None,
                }
            }
            (card, Fit::Busy { remedy, .. }) => {
                let card = (*card).clone();
                Choice { gpu: Some(card), ..self.without(Verdict::Retry, reasons(&fits), remedy) }
            }
            (card, Fit::No { remedy, .. }) => {
                let card = (*card).clone();
                Choice { gpu: Some(card), ..self.without(Verdict::CannotServe, reasons(&fits), remedy) }
            }
        }
    }

    /// Returns how the profiles fit one card by itself.
    fn fit(&self, card: &Card, driver: &str, wished: Option<&'a Profile>) -> Fit<'a> {
        let title = card.title();
        let native = match self.code(card.capability) {
            Ok(native) => native,
            Err((why, remedy)) => return Fit::No { why: format!("{title}: {why}"), remedy },
        };
        if let Some(least) = self.kernels.driver
            && driver
                .split('.')
                .next()
                .and_then(|major| major.parse().ok())
                .is_none_or(|major: u32| major < least)
        {
            let why =
                format!("{title}: the driver {driver} is older than {least}, which the engine's code needs");
            return Fit::No { why, remedy: format!("install NVIDIA's driver {least} or newer") };
        }
        if card.mig {
            let why = format!("{title}: it is divided (MIG is on), and animd works on whole cards");
            let remedy = format!("`sudo nvidia-smi -i {} -mig 0` makes it whole", card.index);
            return Fit::No { why, remedy };
        }
        if let Some([why, remedy]) = wished.and_then(|profile| missing(profile, card.capability)) {
            return Fit::No { why: format!("{title}: {why}"), remedy };
        }
        let candidates: Vec<&Profile> = match wished {
            Some(profile) => vec![profile],
            None => self.profiles.iter().filter(|p| is_meant(p, card)).collect(),
        };
        let mut best: Option<&Profile> = None;
        for profile in candidates.iter().copied().filter(|p| p.min_memory() <= card.memory_free) {
            if best.is_none_or(|best| best.min_memory() < profile.min_memory()) {
                best = Some(profile);
            }
        }
        if let Some(profile) = best {
            return Fit::Yes { profile, native };
        }
        let Some(least) = candidates.iter().min_by_key(|p| p.min_memory()) else {
            let (major, minor) = card.capability;
            let why = format!("{title}: no profile is for compute capability {major}.{minor}");
            return Fit::No { why, remedy: "put the profiles that come with animd back".into() };
        };
        let needs = format!("`{}` needs {}", least.name, gib(least.min_memory()));
        if least.min_memory() <= card.memory_total {
            let why = format!(
                "{title}: {} of {} are free, and {needs}; {}",
                gib(card.memory_free),
                gib(card.memory_total),
                users(card)
            );
            let remedy =
                "end what holds the GPU's memory, or let another GPU be used; animd looks again by itself";
            return Fit::Busy { why, remedy: remedy.into() };
        }
        let why = format!("{title}: it has {} of memory, and {needs}", gib(card.memory_total));
        Fit::No { why, remedy: "use a card with more memory".into() }
    }

    /// Returns a sentence if other programs on the card are the reason why no larger profile was taken.
    fn smaller(&self, card: &Card, taken: &Profile, wished: bool) -> Option<String> {
        let larger = self
            .profiles
            .iter()
            .filter(|p| {
                is_meant(p, card)
                    && p.min_memory() > taken.min_memory()
                    && p.min_memory() <= card.memory_total
            })
            .max_by_key(|p| p.min_memory())?;
        let needs = gib(larger.min_memory());
        (!wished).then(|| format!("`{}` would need {needs} free; {}", larger.name, users(card)))
    }

    /// Returns whether the engine has machine code (true) or PTX (false) for a compute capability; otherwise why not,
    /// and what to do.
    fn code(&self, (major, minor): (u32, u32)) -> Result<bool, (String, String)> {
        let capability = (major, minor);
        let Kernels { native, ptx, .. } = self.kernels;
        if native.iter().any(|target| target.runs_on(capability)) {
            return Ok(true);
        }
        if ptx.is_some_and(|from| from <= capability) {
            return Ok(false);
        }
        let known = native.iter().map(|t| t.capability).chain(*ptx).min();
        let Some((least_major, least_minor)) = known else {
            return Err((
                "this build of the engine has no code for GPUs".into(),
                "install a build of animd with GPU code, once there is one".into(),
            ));
        };
        if capability < (least_major, least_minor) {
            let why = format!(
                "the engine's code needs compute capability {least_major}.{least_minor}, and it has {major}.{minor}"
            );
            return Err((
                why,
                format!("use a card with compute capability {least_major}.{least_minor} or newer"),
            ));
        }
        let list = native.iter().map(|t| format!("{}.{}", t.capability.0, t.capability.1));
        let why = format!(
            "the engine has code for compute capability {}, and it has {major}.{minor}",
            list.collect::<Vec<_>>().join(", ")
        );
        Err((why, "install a newer animd".into()))
    }

    /// Returns why this profile was chosen for this card, as a sentence.
    fn why(&self, card: &Card, profile: &Profile, native: bool) -> String {
        let (major, minor) = card.capability;
        let code = match (native, self.kernels.ptx) {
            (false, Some(ptx)) => format!(
                "the driver compiles the engine's code for it (compute capability {major}.{minor}) from PTX {}.{}",
                ptx.0, ptx.1
            ),
            _ => format!("the engine has machine code for it (compute capability {major}.{minor})"),
        };
        format!(
            "{}: {} of {} are free, `{}` needs {}; {code}",
            card.title(),
            gib(card.memory_free),
            gib(card.memory_total),
            profile.name,
            gib(profile.min_memory())
        )
    }

    /// Returns the choice where no GPU can be used: the CPU's profile, if nobody asked for more and waiting changes
    /// nothing.
    fn without(&self, state: Verdict, mut why: Vec<String>, remedy: &str) -> Choice {
        let cannot = self.kernels.native.is_empty() && self.kernels.ptx.is_none();
        let asked = self.wish.profile != AUTO || self.wish.gpu != AUTO;
        let cpu = self.profiles.iter().find(|p| !p.on_gpu());
        let profile = cpu.filter(|_| !asked && (cannot || state != Verdict::Retry)).cloned();
        if cannot && state != Verdict::CannotServe {
            why.push("this build of the engine has no code for GPUs anyway".into());
        }
        match &profile {
            Some(cpu) => why.push(format!("so the profile is `{}`", cpu.name)),
            None if self.wish.jobs_wait => why.push("jobs wait until then".into()),
            None => {}
        }
        Choice { profile, gpu: None, state, why, remedy: Some(remedy.into()) }
    }
}

/// Returns whether `auto` may choose a profile for a card.
fn is_meant(profile: &Profile, card: &Card) -> bool {
    profile.on_gpu() && profile.is_for(card.capability) && missing(profile, card.capability).is_none()
}

/// Returns whether `wish` means this card.
fn is_asked(card: &Card, wish: &str) -> bool {
    wish == AUTO || wish == card.uuid || wish.parse() == Ok(card.index)
}

fn reasons(fits: &[(&Card, Fit<'_>)]) -> Vec<String> {
    let mut why = Vec::new();
    for (_, fit) in fits {
        if let Fit::Busy { why: reason, .. } | Fit::No { why: reason, .. } = fit {
            why.push(reason.clone());
        }
    }
    why
}

/// Returns who holds a card's memory, as a sentence.
fn users(card: &Card) -> String {
    let mut processes = card.processes.clone();
    processes.sort_by_key(|p| Reverse(p.bytes));
    let told: Vec<String> = processes
        .iter()
        .take(3)
        .map(|process| {
            let name = process.name.as_ref().map_or("process".into(), |name| format!("`{name}`, process"));
            let bytes = process.bytes.map_or("some memory".into(), gib);
            format!("{name} {}, holds {bytes}", process.pid)
        })
        .collect();
    if told.is_empty() {
        let held = gib(card.memory_total.saturating_sub(card.memory_free));
        return format!("{held} are held by programs that the driver does not name");
    }
    told.join("; ")
}

/// Returns why another card was not taken, as a sentence.
fn compared(taken: (&Card, &Profile, bool), (card, fit): &(&Card, Fit<'_>)) -> String {
    let (best, best_profile, best_native) = taken;
    match fit {
        Fit::Busy { why, .. } | Fit::No { why, .. } => why.clone(),
        Fit::Yes { profile, native } => {
            let reason = if profile.name != best_profile.name {
                format!("it would take `{}`", profile.name)
            } else if *native != best_native {
                "its code would have to be compiled from PTX".into()
            } else if card.capability != best.capability {
                let (major, minor) = card.capability;
                format!("its compute capability is {major}.{minor}")
            } else if card.memory_free != best.memory_free {
                format!("it has less memory free ({})", gib(card.memory_free))
            } else {
                "it is no better, and has the later place".into()
            };
            format!("{}: not taken, {reason}", card.title())
        }
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
