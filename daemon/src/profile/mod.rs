//! Profiles: where they come from, which is chosen, and when the choice is looked at again.

pub mod choose;
pub mod keeper;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use animd_protocol::limits;
use animd_protocol::messages::Kernels;
use animd_protocol::profile::{BUILT_IN, Mistake, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::Settings;
use tokio::sync::watch;

pub use choose::{AUTO, Choice, Verdict, Wish, choose};

use crate::Error;
use crate::config::Loaded;
use crate::files::show;
use crate::gpu::Machine;
use crate::keys;
use crate::text;

/// Where profiles lie; those of a later folder replace those of an earlier one, and both replace the built-in ones.
pub const FOLDERS: [&str; 2] = ["/usr/share/animd/profiles", "/etc/animd/profiles"];

/// Reads one profile's file.
///
/// # Errors
/// A sentence with the file, the line and the nearest right key.
pub fn read(path: &Path) -> Result<Profile, String> {
    let bytes = fs::read(path).map_err(|e| format!("cannot read the profile `{}`: {e}", show(path)))?;
    let text = text::decode(bytes).map_err(|e| e.of(&show(path)))?;
    let mut profile = Profile::read(&text).map_err(|mistake| explain(path, &text, &mistake))?;
    for (key, value) in [("name", &profile.name), ("summary", &profile.summary)] {
        text::without_zero(value).map_err(|e| format!("{}: `{key}`: {e}", show(path)))?;
    }
    profile.settings = text::settings(profile.settings).map_err(|e| format!("{}: {e}", show(path)))?;
    Ok(profile)
}

fn explain(path: &Path, text: &str, mistake: &Mistake) -> String {
    let place = mistake.line(text).map_or_else(|| show(path), |line| format!("{}:{line}", show(path)));
    format!("{place}: {}", keys::with_hint(&mistake.message))
}

/// All profiles, those of later folders first, and what is wrong with the files that could not be read.
pub fn load(folders: &[PathBuf]) -> (Vec<Profile>, Vec<String>) {
    let (mut profiles, mut mistakes, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for folder in folders.iter().rev() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
        files.sort();
        for path in files {
            match read(&path) {
                Ok(profile) if names.insert(profile.name.clone()) => profiles.push(profile),
                Ok(_) => {}
                Err(mistake) => mistakes.push(mistake),
            }
        }
    }
    for (name, text) in BUILT_IN {
        // They are read in a test.
        if !names.contains(name)
            && let Ok(profile) = Profile::read(text)
        {
            profiles.push(profile);
        }
    }
    (profiles, mistakes)
}

/// Whether `profile.name` is a file's.
fn is_file(name: &str) -> bool {
    name.contains('/') || Path::new(name).extension().is_some_and(|e| e == "toml")
}

/// Checks that the configured profile exists, which the service finds out when it chooses one. Returns a sentence for each
/// thing that the profile asks for and the engine does not do, for now.
///
/// # Errors
/// [`Error::Config`] with the value's place, and the nearest right name or what is wrong with its file.
pub fn check(loaded: &Loaded) -> Result<Vec<String>, Error> {
    let name = &loaded.config.profile.name;
    let found = if is_file(name) {
        read(name.as_ref()).map(Some)
    } else {
        let (profiles, _) = load(&FOLDERS.map(PathBuf::from));
        match profiles.iter().find(|p| p.name == *name) {
            None if name != AUTO => Err(unknown(name, &profiles)),
            profile => Ok(profile.cloned()),
        }
    };
    match found {
        // What the engine was built for is not known here; it says so itself when it runs.
        Ok(profile) => Ok(profile.map_or_else(Vec::new, |p| limits(&p, &Kernels::default(), None))),
        Err(mistake) => Err(Error::Config(loaded.origins.say("profile.name", &mistake))),
    }
}

/// A sentence about a name that no profile has.
fn unknown(name: &str, profiles: &[Profile]) -> String {
    format!("there is no profile `{name}`{}", keys::hint(name, profiles.iter().map(|p| p.name.as_str())))
}

/// One profile as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// For whom it is.
    pub summary: String,
    /// Whether it would run here now.
    pub fits: bool,
    /// Whether it is the one in use.
    pub chosen: bool,
    /// Why it would, or would not.
    pub why: String,
}

/// The GPU that the choice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// As its maker calls it.
    pub name: String,
    /// `GPU-...`
    pub uuid: String,
    /// The driver's number of it.
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
    recipe: Option<Arc<Recipe>>,
    choice: Arc<Choice>,
}

/// The choice as it stands, for everybody who shows it; cheap to clone.
#[derive(Clone)]
pub struct Profiles {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    new_start: watch::Sender<bool>,
}

impl Default for Profiles {
    /// The built-in profiles, and nothing known of the machine.
    fn default() -> Self {
        let (profiles, _) = load(&[]);
        let choice = Choice {
            profile: None,
            gpu: None,
            state: Verdict::Retry,
            why: vec!["the driver has not been asked yet".into()],
            remedy: None,
        };
        let machine = Machine::NoDriver { why: "the driver has not been asked yet".into(), on_bus: 0 };
        let kernels = Kernels::default();
        let state = State { profiles, machine, kernels, recipe: None, choice: Arc::new(choice) };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(()),
            new_start: watch::Sender::new(false),
        }
    }
}

impl Profiles {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is chosen now.
    pub fn choice(&self) -> Arc<Choice> {
        self.with(|state| state.choice.clone())
    }

    /// What the driver said last.
    pub fn machine(&self) -> Machine {
        self.with(|state| state.machine.clone())
    }

    /// What the engine was built for, as far as it has said.
    pub fn kernels(&self) -> Kernels {
        self.with(|state| state.kernels.clone())
    }

    /// Told of every new choice.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Turns true when only a new start of the service lets it use the driver's devices.
    pub fn new_start(&self) -> watch::Receiver<bool> {
        self.new_start.subscribe()
    }

    /// Asks for a new start.
    pub fn ask_new_start(&self) {
        self.new_start.send_replace(true);
    }

    /// The settings that the chosen profile has for jobs that say nothing else.
    pub fn settings(&self) -> Settings {
        self.choice().profile.as_ref().map(|p| p.settings.clone()).unwrap_or_default()
    }

    /// The GPU that the choice is about, if there is one.
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

    /// Every profile, and whether it would run here.
    pub fn list(&self) -> Vec<Listed> {
        self.with(|state| {
            let chosen = state.choice.profile.as_ref().map(|p| p.name.clone());
            state
                .profiles
                .iter()
                .map(|profile| {
                    let wish = Wish { profile: profile.name.clone(), ..Wish::default() };
                    let this = chosen.as_ref() == Some(&profile.name);
                    // Of the one in use the reasons that counted: its own engine holds the memory now.
                    let mut choice = match this {
                        true => (*state.choice).clone(),
                        false => {
                            let recipe = state.recipe.as_deref();
                            choose(&state.machine, &state.kernels, recipe, &wish, &state.profiles)
                        }
                    };
                    if chosen.is_some() && !this {
                        choice.why.retain(|why| why != choose::WAITING);
                    }
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

    /// Other profiles from here on.
    pub fn set_profiles(&self, profiles: Vec<Profile>) {
        self.with(|state| state.profiles = profiles);
    }

    /// Chooses anew and tells everybody, if it comes out otherwise.
    pub fn decide(
        &self,
        machine: Machine,
        kernels: Kernels,
        recipe: Option<Arc<Recipe>>,
        wish: &Wish,
    ) -> Arc<Choice> {
        let (choice, changed) = self.with(|state| {
            let choice = Arc::new(choose(&machine, &kernels, recipe.as_deref(), wish, &state.profiles));
            let changed = *state.choice != *choice;
            state.machine = machine;
            state.kernels = kernels;
            state.recipe = recipe;
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

    #[test]
    fn later_folders_replace_by_name_and_mistakes_are_told() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (usr, etc) = (dir.path().join("usr"), dir.path().join("etc"));
        let cpu = BUILT_IN[5].1;
        let with = |summary: &str| cpu.replace("no GPU: everything", summary);
        for (folder, name, text) in [
            (&usr, "cpu.toml", with("packaged")),
            (&usr, "h200.toml", BUILT_IN[0].1.to_owned()),
            (&etc, "cpu.toml", with("local")),
            (&etc, "mine.toml", cpu.replace("\"cpu\"\n\n# For", "\"mine\"\n\n# For")),
            (&etc, "wrong.toml", BUILT_IN[0].1.replace("sensitive =", "sensitiv =")),
            (&etc, "notes.txt", "nothing".into()),
        ] {
            fs::create_dir_all(folder)?;
            fs::write(folder.join(name), text)?;
        }
        let (profiles, mistakes) = load(&[usr, etc.clone(), dir.path().join("nowhere")]);
        let names: Vec<&str> = profiles.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["cpu", "mine", "h200", "h100", "l40s", "rtx4090", "rtx4060ti"]);
        assert!(profiles[0].summary.starts_with("local"), "{}", profiles[0].summary);
        let [mistake] = &mistakes[..] else { panic!("{mistakes:?}") };
        assert!(mistake.starts_with(&format!("{}:", show(etc.join("wrong.toml")))), "{mistake}");
        assert!(mistake.ends_with("unknown key `sensitiv`; did you mean `sensitive`?"), "{mistake}");
        Ok(())
    }

    #[test]
    fn the_list_says_of_each_whether_it_fits() {
        let profiles = Profiles::default();
        let mut told = profiles.changes();
        let machine = Machine::NoDriver { why: "there is no driver".into(), on_bus: 0 };
        let choice = profiles.decide(machine.clone(), Kernels::default(), None, &Wish::default());
        assert_eq!(choice.profile.as_ref().map(|p| p.name.as_str()), Some("cpu"));
        assert!(told.has_changed().is_ok_and(|changed| changed));
        told.mark_unchanged();
        profiles.decide(machine, Kernels::default(), None, &Wish::default());
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
