//! The configuration in force, and the default settings of jobs.

use std::sync::{Arc, PoisonError, RwLock};

use animd_common::config::Config;
use animd_protocol::recipe::Defaults as FamilyDefaults;
use animd_protocol::request::Settings;

/// The configuration in force; cheap to clone. A reload puts another one in its place.
#[derive(Clone, Default)]
pub struct CurrentConfig {
    now: Arc<RwLock<Arc<Config>>>,
}

impl CurrentConfig {
    /// Starts with this configuration.
    pub fn new(config: Config) -> Self {
        Self { now: Arc::new(RwLock::new(Arc::new(config))) }
    }

    /// Returns the configuration as it is now; it may be another one at the next call.
    pub fn get(&self) -> Arc<Config> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another configuration in force, and returns the one before it.
    pub fn replace(&self, config: Arc<Config>) -> Arc<Config> {
        std::mem::replace(&mut *self.now.write().unwrap_or_else(PoisonError::into_inner), config)
    }
}

/// The settings of jobs that say nothing else: those of the configuration, then those of the profile in use. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct Defaults {
    config: CurrentConfig,
    profile: Arc<RwLock<Settings>>,
    /// Those of the configured model's family, once an engine has opened the model.
    family: Arc<RwLock<Option<FamilyDefaults>>>,
}

impl Defaults {
    /// The defaults of the configuration, until a profile is chosen.
    pub fn new(config: CurrentConfig) -> Self {
        Self { config, profile: Arc::default(), family: Arc::default() }
    }

    /// Returns the defaults as they are now.
    pub fn get(&self) -> Settings {
        let profile = self.profile.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.config.get().defaults.clone().or(profile)
    }

    /// Returns the defaults of the model's family, for what no setting says; those of Wan2.1 image-to-video while no engine has
    /// opened the model.
    pub fn family(&self) -> FamilyDefaults {
        let family = self.family.read().unwrap_or_else(PoisonError::into_inner).clone();
        family.unwrap_or_else(FamilyDefaults::wan21_i2v)
    }

    /// Sets the defaults of the model's family.
    pub fn set_family(&self, family: FamilyDefaults) {
        *self.family.write().unwrap_or_else(PoisonError::into_inner) = Some(family);
    }

    /// Returns a job's settings, with those of its model and then the defaults where the job has none.
    pub fn complete(&self, settings: Settings) -> Settings {
        self.config.get().with_models(settings).or(self.get())
    }

    /// Sets the settings of the profile in use.
    pub fn set_profile(&self, settings: Settings) {
        *self.profile.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}
