//! Keeps the choice of the profile up to date for the supervisor: asks the driver when something may have changed.
//!
//! A choice with the verdict `ready` is not made again while the engine lives, so that an idle service does not wake
//! the card. Any other choice is made again before a job, and at growing intervals.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_common::config;
use animd_common::profiles::{FOLDERS, is_file, load, read};
use animd_protocol::messages::Kernels;
use animd_protocol::profile::Profile;
use tokio::time::Instant;

use super::{Choice, Profiles, Verdict, Wish};
use crate::config::{CurrentConfig, Defaults};
use crate::error::{Error, Result};
use crate::supervisor::gpu::Machine;
use crate::supervisor::gpu::nvml::Driver;

/// The first pause before a choice that is not as it should be is looked at again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A job that starts this soon after a look needs no other look.
const FRESH: Duration = Duration::from_secs(3);
/// The file in the state folder that tells the engine its profile.
const FILE: &str = "profile.toml";

/// Watches over the choice of the profile.
pub struct ProfileMonitor {
    config: CurrentConfig,
    defaults: Defaults,
    profiles: Profiles,
    driver: Driver,
    /// What the engine was built for; `None` until an engine has said so.
    kernels: Option<Kernels>,
    /// `[profile]` of the configuration at the last look.
    asked: Option<config::Profile>,
    /// What the running engine was started with.
    started: Option<Start>,
    looked: Option<Instant>,
    pause: Duration,
    /// Whether the driver was there when it was first asked.
    there_at_first: Option<bool>,
}

/// What an engine is started with.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The part of the configuration that the engine is started with.
    engine: String,
    /// The profile.
    profile: Profile,
    /// The profile's file.
    pub file: PathBuf,
    /// The value of `CUDA_VISIBLE_DEVICES`: the GPU's UUID, or empty for none.
    pub visible: String,
}

impl ProfileMonitor {
    /// Returns a monitor that chooses by what `driver` says.
    pub fn new(config: CurrentConfig, defaults: Defaults, profiles: Profiles, driver: Driver) -> Self {
        Self {
            config,
            defaults,
            profiles,
            driver,
            kernels: None,
            asked: None,
            started: None,
            looked: None,
            pause: FIRST_PAUSE,
            there_at_first: None,
        }
    }

    /// Returns where the driver is asked.
    pub fn driver(&self) -> Driver {
        self.driver.clone()
    }

    /// Asks the driver and chooses. `engine` is the engine's process, whose memory counts as free.
    pub async fn look(&mut self, engine: Option<u32>) -> Arc<Choice> {
        let wish = self.reload();
        let machine = self.driver.look(engine).await;
        let before = self.profiles.choice();
        let kernels = self.kernels.clone().unwrap_or_default();
        let choice = self.profiles.decide(machine, kernels, &wish);
        self.defaults.set_profile(self.profiles.settings());
        self.looked = Some(Instant::now());
        self.there_at_first.get_or_insert(!matches!(self.profiles.machine(), Machine::NoDriver { .. }));
        self.pause = match *choice == *before {
            true => (self.pause * 2).min(LONGEST_PAUSE),
            false => FIRST_PAUSE,
        };
        if *choice != *before {
            let profile = choice.profile.as_ref().map_or("none", |p| &p.name);
            tracing::info!("the profile is {profile} ({}): {}", choice.state.name(), choice.text());
        }
        choice
    }

    /// Reads the folders of profiles, and returns the configuration's wish.
    fn reload(&mut self) -> Wish {
        let asked = self.config.get().profile.clone();
        let mut wish = Wish { profile: asked.name.clone(), gpu: asked.gpu.clone(), ..Wish::default() };
        let (mut profiles, mut mistakes) = load(&FOLDERS.map(PathBuf::from));
        if is_file(&wish.profile) {
            match read(wish.profile.as_ref()) {
                Ok(profile) => {
                    profiles.retain(|p| p.name != profile.name);
                    wish.profile.clone_from(&profile.name);
                    profiles.insert(0, profile);
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        for mistake in mistakes {
            tracing::error!("{mistake}");
        }
        self.profiles.set_profiles(profiles);
        self.asked = Some(asked);
        wish
    }

    /// Returns when the choice has to be made again without any event.
    pub fn due(&self) -> Option<Instant> {
        let looked = self.looked?;
        (self.profiles.choice().state != Verdict::Ready).then(|| looked + self.pause)
    }

    /// Returns whether it is time to look: at first, when the configuration has changed, and when the pause is over.
    pub fn is_due(&self) -> bool {
        let asked = self.asked.as_ref() == Some(&self.config.get().profile);
        !asked || self.due().is_some_and(|due| Instant::now() >= due)
    }

    /// Returns whether a new job is a reason to look: not if the choice is `ready`, or the last look was just now.
    pub fn is_stale(&self) -> bool {
        self.profiles.choice().state != Verdict::Ready && !self.is_fresh()
    }

    /// Returns whether the driver was asked just now.
    pub fn is_fresh(&self) -> bool {
        self.looked.is_some_and(|at| at.elapsed() < FRESH)
    }

    /// Returns whether only a new start of the service helps: the driver's devices appeared after the service was
    /// started, and its sandbox lets no new devices in. The next service finds the driver there at first, and so does
    /// not ask again.
    pub fn needs_new_start(&self) -> bool {
        self.there_at_first == Some(false) && matches!(self.profiles.machine(), Machine::Refused { .. })
    }

    /// Returns how to start the engine by the choice; `None` while there is no choice.
    ///
    /// # Errors
    /// [`Error::File`] if the profile's file for the engine cannot be written.
    pub fn start(&mut self) -> Result<Option<Start>> {
        self.started = self.wanted();
        if let Some(start) = &self.started {
            let text = toml::to_string(&start.profile).map_err(|e| {
                Error::config(format!("the profile `{}` cannot be written down: {e}", start.profile.name))
            })?;
            fs::write(&start.file, text).map_err(Error::file("write", &start.file))?;
        }
        Ok(self.started.clone())
    }

    fn wanted(&self) -> Option<Start> {
        let choice = self.profiles.choice();
        let config = self.config.get();
        let file = config.folders.state.join(FILE);
        let engine = format!("{:?}", config.engine_identity());
        if self.kernels.is_none() {
            // The first engine only reports what it was built for, and touches no GPU.
            return Some(Start { engine, profile: Profile::built_in("cpu")?, file, visible: String::new() });
        }
        Some(Start {
            engine,
            profile: choice.profile.clone()?,
            file,
            visible: choice.used_gpu().map(|card| card.uuid.clone()).unwrap_or_default(),
        })
    }

    /// Returns whether an engine would now be started differently from the one that was started last.
    pub fn outdated(&self) -> bool {
        self.started != self.wanted()
    }

    /// Returns whether no job should start before the engine has none: the choice may be another one by now.
    pub fn needs_rest(&self) -> bool {
        self.outdated() || self.is_due() || self.is_stale()
    }

    /// Takes what the engine reports of its build, and chooses again if that may change the choice.
    pub async fn hello(&mut self, kernels: &Kernels, engine: Option<u32>) {
        if self.kernels.as_ref() != Some(kernels) {
            self.kernels = Some(kernels.clone());
            self.look(engine).await;
        }
    }
}
