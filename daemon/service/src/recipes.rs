//! What is known of models: the recipe of each one that an engine has opened.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use animd_protocol::recipe::Recipe;

/// The recipes of models by their names, of which `None` is the configured one; cheap to clone. A name that gets another model
/// has the recipe of the one before until an engine has opened the new one.
#[derive(Clone, Default)]
pub struct Recipes(Arc<RwLock<HashMap<Option<String>, Arc<Recipe>>>>);

impl Recipes {
    /// Returns the recipe of a model, if an engine has opened it.
    pub fn of(&self, model: Option<&str>) -> Option<Arc<Recipe>> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&model.map(str::to_owned)).cloned()
    }

    /// Takes note of the model that an engine has opened.
    pub fn learn(&self, model: Option<String>, recipe: Arc<Recipe>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(model, recipe);
    }

    /// Forgets a model, whose name another one has now.
    pub fn forget(&self, model: Option<&str>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&model.map(str::to_owned));
    }
}
