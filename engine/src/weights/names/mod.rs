//! What a file's tensors are called: each program has its own names for the parts of a network.
//!
//! Each way of naming is a value in a file of its own. It is recognised by names that only it has, and tells for each
//! name which tensor of the model that is.

mod clip;
mod dit;
mod t5;
mod vae;

pub(super) use dit::in_diffusers as dit_in_diffusers;
pub use t5::EMBEDDING;
pub(super) use t5::biases as t5_biases;

use super::Component;
use super::stored::Tensors;

/// All ways of naming. Of two that recognise a file, the first is right.
static NAMINGS: [&Naming; 9] = [
    &dit::OFFICIAL,
    &dit::DIFFUSERS,
    &t5::OFFICIAL,
    &t5::TRANSFORMERS,
    &t5::GGML,
    &clip::OFFICIAL,
    &clip::TRANSFORMERS,
    &vae::OFFICIAL,
    &vae::DIFFUSERS,
];

/// Prefixes that programs put before all names of a network.
const PREFIXES: [&str; 4] = ["model.diffusion_model.", "diffusion_model.", "model.", "net."];

/// A way of naming the tensors of one component.
pub(super) struct Naming {
    /// The component that is named.
    pub component: Component,
    /// The name of the layout of files that are named in this way and are not quantised.
    pub layout: (&'static str, &'static str),
    /// Returns whether tensors have names that only this way of naming gives.
    recognises: fn(&Tensors) -> bool,
    /// Returns which tensor of the model has a name.
    place: fn(&str) -> Place,
}

/// The layout of files with the names of the released model.
const OFFICIAL: (&str, &str) = ("official", "official");
/// The layout of files as the libraries diffusers and transformers name them.
const DIFFUSERS: (&str, &str) = ("diffusers", "diffusers");

/// Which tensor of the model a tensor of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The tensor of this official name, with as many extents of 1 before its own.
    Whole { name: String, ones: usize },
    /// One of several equal parts of the tensor of this official name, one after the other along the first axis.
    Part { name: String, index: usize, of: usize },
    /// Nothing that the engine needs.
    Unused,
}

impl Place {
    fn whole(name: impl Into<String>) -> Self {
        Self::Whole { name: name.into(), ones: 0 }
    }
}

impl Naming {
    /// Returns which tensor of the model has a name.
    pub fn place(&self, name: &str) -> Place {
        (self.place)(name)
    }
}

/// Returns how the tensors of a file are named, if they are a component's.
pub(super) fn find(tensors: &Tensors) -> Option<&'static Naming> {
    NAMINGS.into_iter().find(|naming| (naming.recognises)(tensors))
}

/// Returns a name without the prefix that it may have.
pub(super) fn without_prefix(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Removes the prefixes of all names.
///
/// # Errors
/// The error is a name that is there both with a prefix and without it.
pub(super) fn without_prefixes(tensors: Tensors) -> Result<Tensors, String> {
    let mut all = Tensors::new();
    for (name, stored) in tensors {
        let short = without_prefix(&name).to_owned();
        if all.contains_key(&short) {
            return Err(short);
        }
        all.insert(short, stored);
    }
    Ok(all)
}

/// Splits `N.rest` behind a prefix into the number and the rest.
fn numbered<'a>(name: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

fn any(tensors: &Tensors, of_it: impl Fn(&str) -> bool) -> bool {
    tensors.keys().any(|name| of_it(name))
}
