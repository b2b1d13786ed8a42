//! The configuration in force, and the default settings of jobs.

use std::sync::{Arc, PoisonError, RwLock};

use animd_common::config::Config;
use animd_protocol::InvalidSetting;
use animd_protocol::request::{Request, Settings};

use crate::recipes::Recipes;

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
    recipes: Recipes,
}

impl Defaults {
    /// The defaults of the configuration, until a profile is chosen, and what is known of models.
    pub fn new(config: CurrentConfig, recipes: Recipes) -> Self {
        Self { config, profile: Arc::default(), recipes }
    }

    /// Returns the defaults as they are now.
    pub fn get(&self) -> Settings {
        let profile = self.profile.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.config.get().defaults.clone().or(profile)
    }

    /// Returns a job's settings, with those of its model and then the defaults where the job has none.
    pub fn complete(&self, settings: Settings) -> Settings {
        self.config.get().with_models(settings).or(self.get())
    }

    /// Returns the request of a job with these settings, which [`Self::complete`] has completed: what none of them says is the
    /// default of the model's family, and stays open while that is not known.
    ///
    /// # Errors
    /// Those of [`Settings::resolve_for`].
    pub fn resolve(
        &self,
        settings: Settings,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<Request, InvalidSetting> {
        match self.recipes.of(settings.model.as_deref()) {
            Some(recipe) => settings.resolve_for(&recipe.defaults, draw_seed),
            None => settings.resolve_open(draw_seed),
        }
    }

    /// Sets the settings of the profile in use.
    pub fn set_profile(&self, settings: Settings) {
        *self.profile.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}
