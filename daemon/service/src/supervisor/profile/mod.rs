//! Profiles: where they come from, which one is chosen, and when the choice is made again.

pub mod choose;
pub mod monitor;

use std::sync::{Arc, Mutex, PoisonError};

use animd_common::profiles::load;
use animd_protocol::messages::Kernels;
use animd_protocol::plan::Setup;
use animd_protocol::profile::Profile;
use animd_protocol::request::Settings;
use tokio::sync::watch;

use crate::recipes::Recipes;
use crate::supervisor::gpu::Machine;

pub use choose::{AUTO, Choice, Verdict, Wish, choose};

/// One profile as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whom the profile is for.
    pub summary: String,
    /// Whether the profile would run here now.
    pub fits: bool,
    /// Whether the profile is in use.
    pub chosen: bool,
    /// Why the profile would run, or would not.
    pub why: String,
}

/// The GPU that the choice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// The product name.
    pub name: String,
    /// The UUID, `GPU-...`.
    pub uuid: String,
    /// The driver's number for the GPU.
    pub index: u32,
    /// The driver's version.
    pub driver: String,
    /// Bytes.
    pub memory_total: u64,
    /// Whether the engine works on it.
    pub used: bool,
}

/// Everything that the choice was made from.
struct State {
    profiles: Vec<Profile>,
    machine: Machine,
    kernels: Kernels,
    choice: Arc<Choice>,
}

/// The choice as it stands, for everybody who shows it; cheap to clone.
#[derive(Clone)]
pub struct Profiles {
    state: Arc<Mutex<State>>,
    recipes: Recipes,
    changed: watch::Sender<()>,
    new_start: watch::Sender<bool>,
}

impl Default for Profiles {
    /// Returns the built-in profiles, with nothing known of the machine.
    fn default() -> Self {
        let (profiles, _) = load(&[]);
        let choice = Choice {
            profile: None,
            gpu: None,
            state: Verdict::Retry,
            why: vec!["the driver has not been asked so far".into()],
            remedy: None,
        };
        let machine = Machine::NoDriver { why: "the driver has not been asked so far".into(), on_bus: 0 };
        let kernels = Kernels::default();
        let state = State { profiles, machine, kernels, choice: Arc::new(choice) };
        Self {
            state: Arc::new(Mutex::new(state)),
            recipes: Recipes::default(),
            changed: watch::Sender::new(()),
            new_start: watch::Sender::new(false),
        }
    }
}

impl Profiles {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns what is chosen now.
    pub fn choice(&self) -> Arc<Choice> {
        self.with(|state| state.choice.clone())
    }

    /// Returns what the driver said last.
    pub fn machine(&self) -> Machine {
        self.with(|state| state.machine.clone())
    }

    /// Returns what the engine was built for, as far as it has said.
    pub fn kernels(&self) -> Kernels {
        self.with(|state| state.kernels.clone())
    }

    /// Returns what is known of models.
    pub fn recipes(&self) -> &Recipes {
        &self.recipes
    }

    /// Returns a receiver that is told of every new choice.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns a receiver that turns true when only a new start of the service lets it use the driver's devices.
    pub fn new_start(&self) -> watch::Receiver<bool> {
        self.new_start.subscribe()
    }

    /// Asks for a new start.
    pub fn ask_new_start(&self) {
        self.new_start.send_replace(true);
    }

    /// Returns the chosen profile's default settings for jobs.
    pub fn settings(&self) -> Settings {
        self.choice().profile.as_ref().map(|p| p.settings.clone()).unwrap_or_default()
    }

    /// Returns how a job is run here at best: by the chosen profile, or while jobs wait for a GPU by the one that it will
    /// run, with all memory of the GPU and of the machine, of which `memory` says how much there is. `None` while no
    /// profile is known that jobs could wait for.
    pub fn at_best(&self, memory: Option<u64>) -> Option<Setup> {
        self.with(|state| {
            let card = state.choice.gpu.as_ref();
            let profile = state.choice.profile.as_ref().or_else(|| {
                let card = card?;
                let runs = |profile: &&Profile| {
                    profile.on_gpu()
                        && profile.is_for(card.capability)
                        && profile.min_memory() <= card.memory_total
                };
                state.profiles.iter().filter(runs).max_by_key(|profile| profile.min_memory())
            })?;
            let setup = Setup::from(profile);
            let limit = match (profile.on_gpu(), card) {
                (true, Some(card)) => Some(card.memory_total.saturating_sub(setup.reserve)),
                (true, None) => None,
                (false, _) => memory,
            };
            let budget = [setup.budget, limit].into_iter().flatten().min();
            Some(Setup { budget, host_memory: memory, ..setup })
        })
    }

    /// Returns the GPU that the choice is about, if there is one.
    pub fn gpu(&self) -> Option<GpuFacts> {
        self.with(|state| {
            let card = state.choice.gpu.as_ref()?;
            Some(GpuFacts {
                name: card.name.clone(),
                uuid: card.uuid.clone(),
                index: card.index,
                driver: state.machine.driver().unwrap_or_default().to_owned(),
                memory_total: card.memory_total,
                used: state.choice.used_gpu().is_some(),
            })
        })
    }

    /// Returns every profile, and whether it would run here.
    pub fn list(&self) -> Vec<Listed> {
        self.with(|state| {
            let chosen = state.choice.profile.as_ref().map(|p| p.name.clone());
            state
                .profiles
                .iter()
                .map(|profile| {
                    let this = chosen.as_ref() == Some(&profile.name);
                    let jobs_wait = chosen.is_none();
                    let wish = Wish { profile: profile.name.clone(), jobs_wait, ..Wish::default() };
                    // The profile in use keeps the reasons for which it was chosen: by now its own engine holds the
                    // memory.
                    let choice = match this {
                        true => (*state.choice).clone(),
                        false => choose(&state.machine, &state.kernels, &wish, &state.profiles),
                    };
                    Listed {
                        name: profile.name.clone(),
                        summary: profile.summary.clone(),
                        fits: choice.profile.is_some(),
                        chosen: this,
                        why: choice.text(),
                    }
                })
                .collect()
        })
    }

    /// Replaces the profiles.
    pub fn set_profiles(&self, profiles: Vec<Profile>) {
        self.with(|state| state.profiles = profiles);
    }

    /// Chooses again, and tells everybody if the choice has changed.
    pub fn decide(&self, machine: Machine, kernels: Kernels, wish: &Wish) -> Arc<Choice> {
        let (choice, changed) = self.with(|state| {
            let choice = Arc::new(choose(&machine, &kernels, wish, &state.profiles));
            let changed = *state.choice != *choice;
            state.machine = machine;
            state.kernels = kernels;
            state.choice = choice.clone();
            (choice, changed)
        });
        if changed {
            self.changed.send_replace(());
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::gpu::Card;
    use animd_protocol::profile::Precision;

    #[test]
    fn jobs_are_run_with_all_memory_at_best() {
        const GIB: u64 = 1 << 30;
        let profiles = Profiles::default();
        assert_eq!(profiles.at_best(Some(64 * GIB)), None, "nothing is known of the machine");
        let card = Card {
            index: 0,
            uuid: "GPU-1".into(),
            name: "NVIDIA GeForce RTX 4090".into(),
            bus_id: String::new(),
            capability: (8, 9),
            memory_total: 24 * GIB,
            memory_free: 23 * GIB,
            mig: false,
            processes: Vec::new(),
            power_limit_mw: None,
        };
        let kernels = Kernels { ptx: Some((8, 9)), ..Kernels::default() };
        // Whether another program holds the card for now makes no difference.
        for (free, profile) in [(23, Some("rtx4090")), (3, None)] {
            let card = Card { memory_free: free * GIB, ..card.clone() };
            let machine = Machine::Driver { version: "580.1".into(), cards: vec![card] };
            let choice = profiles.decide(machine, kernels.clone(), &Wish::default());
            assert_eq!(choice.profile.as_ref().map(|p| p.name.as_str()), profile);
            let setup = profiles.at_best(Some(64 * GIB)).expect("a profile is known");
            assert_eq!(setup.budget, Some(24 * GIB - (768 << 20)));
            assert_eq!(setup.host_memory, Some(64 * GIB));
            assert_eq!(setup.precision.dit, Precision::Int8);
        }
        let machine = Machine::NoDriver { why: "there is no driver".into(), on_bus: 0 };
        profiles.decide(machine, Kernels::default(), &Wish::default());
        assert_eq!(profiles.at_best(Some(64 * GIB)).and_then(|setup| setup.budget), Some(64 * GIB));
    }

    #[test]
    fn the_list_says_of_each_whether_it_fits() {
        let profiles = Profiles::default();
        let mut told = profiles.changes();
        let machine = Machine::NoDriver { why: "there is no driver".into(), on_bus: 0 };
        let choice = profiles.decide(machine.clone(), Kernels::default(), &Wish::default());
        assert_eq!(choice.profile.as_ref().map(|p| p.name.as_str()), Some("cpu"));
        assert!(told.has_changed().is_ok_and(|changed| changed));
        told.mark_unchanged();
        profiles.decide(machine, Kernels::default(), &Wish::default());
        assert!(told.has_changed().is_ok_and(|changed| !changed), "the same choice is no news");
        for listed in profiles.list() {
            assert_eq!(
                (listed.fits, listed.chosen),
                (listed.name == "cpu", listed.name == "cpu"),
                "{listed:?}"
            );
            assert!(!listed.why.is_empty());
        }
        assert_eq!(profiles.gpu(), None);
    }
}
