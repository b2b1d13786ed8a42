//! Where the weights of all networks come from: files, with the changes of `LoRA`s, or nowhere if they are made up; and how long
//! each took to load.

use std::collections::BTreeMap;
use std::sync::Arc;

use animd_protocol::recipe::{BASE_NETWORK, Network, Recipe};
use animd_protocol::request::Request;

use super::adapters::{Adapters, Shared};
use crate::weights::{self, Adapter, Lease};
use crate::{Error, Result};

/// The source of the weights.
pub(super) struct Sources {
    /// The model, with the transformers that the current job needs.
    pub recipe: Recipe,
    /// The source of each network's weights, by the names of the recipe's networks.
    pub weights: BTreeMap<String, Shared>,
    /// The changes of the transformers, which are in `weights`, too.
    pub adapters: Adapters,
    /// The number of each network's parameters.
    pub parameters: BTreeMap<String, usize>,
    /// Keeps the prepared copies that weights come from in their cache.
    leases: Vec<Lease>,
}

impl Sources {
    /// Returns the sources of all networks, with their numbers of parameters, in the order of [`Recipe::networks`]; `own` are
    /// the changes that belong to the model.
    pub fn new(recipe: Recipe, stored: impl IntoIterator<Item = (Shared, usize)>, own: Vec<Adapter>) -> Self {
        let (mut weights, mut parameters) = (BTreeMap::new(), BTreeMap::new());
        for (part, (source, count)) in recipe.networks().zip(stored) {
            weights.insert(part.name.to_owned(), source);
            parameters.insert(part.name.to_owned(), count);
        }
        let transformers = recipe.experts.iter().filter_map(|expert| {
            let Network { name, config } = &expert.network;
            Some((name.clone(), config.clone(), weights.get(name)?.clone()))
        });
        let adapters = Adapters::new(own, transformers);
        let mut sources = Self { recipe, weights, adapters, parameters, leases: Vec::new() };
        sources.weights.extend(sources.adapters.sources());
        sources
    }

    /// Adds the transformer for steps without `LoRA`s if a job begins with such steps, and takes it away if not.
    pub fn set_job(&mut self, request: &Request) {
        let (recipe, before) = (self.recipe.of_job(request).into_owned(), self.recipe.experts.len());
        if recipe.experts.len() > before {
            self.adapters.add_base(BASE_NETWORK);
            let high = recipe.experts.first().and_then(|high| self.parameters.get(&high.network.name));
            self.parameters.insert(BASE_NETWORK.to_owned(), high.copied().unwrap_or_default());
            self.weights.extend(self.adapters.sources());
        } else if recipe.experts.len() < before {
            self.adapters.remove_base();
            self.parameters.remove(BASE_NETWORK);
            self.weights.remove(BASE_NETWORK);
        }
        self.recipe = recipe;
    }

    /// Returns the source of a network's weights.
    pub fn of<C>(&self, network: &Network<C>) -> Result<&Shared> {
        match self.weights.get(&network.name) {
            Some(weights) => Ok(weights),
            None => Err(Error::Internal(format!("nobody knows where the weights of {} are", network.name))),
        }
    }

    /// Returns the number of parameters of all networks.
    pub fn all_parameters(&self) -> usize {
        self.parameters.values().sum()
    }
}

impl From<weights::Model> for Sources {
    fn from(files: weights::Model) -> Self {
        let recipe = files.recipe();
        let dits = std::iter::once(files.dit.0).chain(files.low_noise.map(|(weights, _)| weights));
        let clip = files.clip.map(|(weights, _)| weights);
        let all = dits.chain([files.t5.0]).chain(clip).chain([files.vae.0]);
        let all = all.map(|weights| -> (Shared, usize) {
            let parameters = weights.parameters();
            (Arc::new(weights), parameters)
        });
        let mut sources = Self::new(recipe, all, files.loras);
        for (transformer, copy) in files.copies.into_iter().enumerate() {
            let Some((lease, weights)) = copy else { continue };
            sources.adapters.prepare(transformer, Arc::new(weights));
            sources.leases.push(lease);
        }
        sources.weights.extend(sources.adapters.sources());
        sources
    }
}

/// The seconds that each network took to load, in the order of loading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadSeconds(Vec<(String, f64)>);

impl LoadSeconds {
    /// Returns the networks with their seconds.
    pub fn networks(&self) -> &[(String, f64)] {
        &self.0
    }

    pub(super) fn note(&mut self, name: &str, seconds: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, noted)) => *noted = seconds,
            None => self.0.push((name.to_owned(), seconds)),
        }
    }
}
