//! Verifies model files: that their content is what it was the last time, and that every tensor can be what it is said
//! to be.
//!
//! Nothing is computed with the weights, so that this needs neither a GPU nor a whole model. A value that is wrong and
//! plausible is not found here: that is what [`crate::check`] is for.

mod expected;
mod files;
mod report;
mod siblings;
mod statistics;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use animd_protocol::recipe::ExpertName;
use rayon::prelude::*;

use crate::progress::Observer;
use crate::weights::{
    self, Component, WeightSource, Weights, open_clip, open_dit, open_expert, open_t5, open_vae,
};
use crate::{Error, Result};

pub use expected::Role;
pub use files::{Change, Hashed, Known, hash_of};
pub use report::{Mistake, Part, Verification};
use siblings::Found;
pub(crate) use siblings::place;
pub use statistics::Statistics;

/// What the two transformers of Wan2.2 are called.
const TITLES: [&str; 2] = ["DiT for high noise", "DiT for low noise"];

/// Receives how much of the work is done, from 0 to 1.
pub type Told<'a> = &'a (dyn Fn(f64) + Sync);

/// Verifies the model in a folder, the model of a model file, or the network in a file. The list of hashes is read from `list` and written there;
/// without one, files are hashed and compared with nothing.
///
/// Files are hashed beside each other, and beside the look at the tensors, so that the disk reads what both need once.
/// The memory does not grow with the model: tensors are expanded a part at a time.
///
/// # Errors
/// Returns [`Error::Model`] where nothing of a model is found, [`Error::Canceled`] soon after the observer says so, and
/// errors of files. What is wrong with the model is no error: the report says it.
pub fn verify(
    path: &Path,
    dit: Option<&Path>,
    list: Option<&Path>,
    observer: &dyn Observer,
    told: Told<'_>,
) -> Result<Verification> {
    let mut parts = open_parts(path, dit)?;
    let files: BTreeSet<PathBuf> = parts.iter().flat_map(|part| part.files.iter().cloned()).collect();
    let tensors: u64 = parts.iter().filter_map(|p| p.weights.as_ref()).map(|w| w.stored_bytes() as u64).sum();
    let bytes: u64 = files.iter().filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum();
    // Reading and looking are both counted in bytes of the files.
    let (all, done) = ((bytes + tensors).max(1), AtomicU64::new(0));
    let count = |n: u64| {
        told(((done.fetch_add(n, Ordering::Relaxed) + n) as f64 / all as f64).min(1.0));
        observer.check()
    };

    let hash = || {
        let sums = files.par_iter().map(|file| Ok((file.clone(), files::sum(file, &|n| count(n as u64))?)));
        sums.collect::<Result<Vec<_>>>()
    };
    let look = || parts.iter_mut().try_for_each(|part| part.look(&count));
    let (sums, looked) = rayon::join(hash, look);
    looked?;
    let (mut reports, mut mistaken) = (Vec::new(), BTreeSet::new());
    for part in parts {
        let files = part.files.clone();
        let report = part.report();
        mistaken.extend(files.into_iter().filter(|_| !report.mistakes.is_empty()));
        reports.push(report);
    }
    let mut known = list.map(Known::read).unwrap_or_default();
    let files = sums?.iter().map(|sum| known.note(sum, !mistaken.contains(&sum.0))).collect();
    if let Some(list) = list {
        known.write(list)?;
    }
    Ok(Verification { files, parts: reports })
}

/// Looks at every tensor of a model as [`verify`] does, and hashes nothing.
///
/// # Errors
/// Returns the errors of [`verify`].
pub fn look(path: &Path, dit: Option<&Path>, observer: &dyn Observer, told: Told<'_>) -> Result<Vec<Part>> {
    let mut parts = open_parts(path, dit)?;
    let all: u64 = parts.iter().filter_map(|p| p.weights.as_ref()).map(|w| w.stored_bytes() as u64).sum();
    let done = AtomicU64::new(0);
    let count = |n: u64| {
        told(((done.fetch_add(n, Ordering::Relaxed) + n) as f64 / all.max(1) as f64).min(1.0));
        observer.check()
    };
    parts.iter_mut().try_for_each(|part| part.look(&count))?;
    Ok(parts.into_iter().map(Opened::report).collect())
}

/// A network that is being verified.
struct Opened {
    name: String,
    component: Component,
    files: Vec<PathBuf>,
    /// The tensors; none where the network cannot be opened.
    weights: Option<Weights>,
    mistakes: Vec<Mistake>,
    found: Vec<Found>,
}

/// Opens every network of a model file, or everything that is found at any other path.
fn open_parts(path: &Path, dit: Option<&Path>) -> Result<Vec<Opened>> {
    match weights::model_file(path) {
        Some(file) => named_parts(&weights::PartPlaces::of_file(&file, dit)?),
        None => found_parts(path, dit),
    }
}

/// Opens every network that a model file names.
fn named_parts(places: &weights::PartPlaces) -> Result<Vec<Opened>> {
    let mut parts = match &places.low_noise {
        None => {
            let dit = &places.dit;
            vec![Opened::new(Component::Dit.title(), Component::Dit, dit, opened(dit, Component::Dit))?]
        }
        Some(low) => {
            let experts = TITLES.iter().zip([&places.dit, low]);
            let opened = experts.map(|(title, path)| {
                let weights = open_expert(path).map(|(weights, _)| weights);
                Opened::new(title, Component::Dit, path, weights)
            });
            opened.collect::<Result<_>>()?
        }
    };
    let text = Some((Component::T5, &places.text));
    let image = places.clip.as_ref().map(|clip| (Component::Clip, clip));
    for (component, path) in text.into_iter().chain(image).chain([(Component::Vae, &places.vae)]) {
        parts.push(Opened::new(component.title(), component, path, opened(path, component))?);
    }
    Ok(parts)
}

/// Opens the network of a kind at a path.
fn opened(path: &Path, component: Component) -> Result<Weights> {
    match component {
        Component::Dit => open_dit(path).map(|(weights, _)| weights),
        Component::T5 => open_t5(path).map(|(weights, _)| weights),
        Component::Clip => open_clip(path).map(|(weights, _)| weights),
        Component::Vae => open_vae(path).map(|(weights, _)| weights),
    }
}

/// Opens everything that is found at a path. Where that is more than one network, it is a model, and what the model lacks is
/// a mistake; a single network may lie anywhere.
fn found_parts(path: &Path, dit: Option<&Path>) -> Result<Vec<Opened>> {
    let at = dit.unwrap_or(path);
    let mut parts = Vec::new();
    let mut missing: Vec<(Component, Error)> = Vec::new();
    let mut takes_pictures_by_clip = false;
    for (expert, place) in weights::transformers(at)? {
        if let Some(expert) = expert {
            let weights = open_expert(&place).map(|(weights, _)| weights);
            parts.push(Opened::new(title(expert), Component::Dit, &place, weights)?);
            continue;
        }
        match opened(&place, Component::Dit) {
            Ok(weights) => {
                takes_pictures_by_clip = true;
                parts.push(Opened::new(Component::Dit.title(), Component::Dit, &place, Ok(weights))?);
            }
            Err(why) if weights::is_lone_expert(&place) => {
                let weights = open_expert(&place).map(|(weights, _)| weights);
                parts.push(Opened::new(Component::Dit.title(), Component::Dit, &place, weights)?);
                missing.push((Component::Dit, why));
            }
            Err(why) if weights::is_there(&place, Component::Dit) => {
                parts.push(Opened::new(Component::Dit.title(), Component::Dit, &place, Err(why))?);
            }
            Err(why) => missing.push((Component::Dit, why)),
        }
    }
    for component in [Component::T5, Component::Clip, Component::Vae] {
        match opened(path, component) {
            Err(why) if !weights::is_there(path, component) => {
                if component != Component::Clip || takes_pictures_by_clip {
                    missing.push((component, why));
                }
            }
            opened => parts.push(Opened::new(component.title(), component, path, opened)?),
        }
    }
    let Some(first) = parts.first() else {
        return Err(missing.into_iter().next().map_or_else(
            || Error::Model(format!("`{}` holds no network that animd knows", path.display())),
            |(_, why)| why,
        ));
    };
    if path.is_dir() && (dit.is_some() || parts.iter().any(|part| part.component != first.component)) {
        parts.extend(missing.into_iter().map(|(component, why)| Opened::missing(component, &why)));
    }
    Ok(parts)
}

/// Returns what one of the two transformers of Wan2.2 is called.
fn title(expert: ExpertName) -> &'static str {
    TITLES[expert.index()]
}

impl Opened {
    fn new(name: &str, component: Component, path: &Path, opened: Result<Weights>) -> Result<Self> {
        let (weights, files, mistakes) = match opened {
            Ok(weights) => (Some(weights), Vec::new(), Vec::new()),
            // The files are as many as are there: what cannot be opened can still be hashed.
            Err(Error::Model(what)) => (None, weights::files(path, component), vec![Mistake::of_part(what)]),
            Err(e) => return Err(e),
        };
        let opened =
            weights.as_ref().map(|weights| weights.files().into_iter().map(Path::to_owned).collect());
        let files = opened.unwrap_or(files);
        Ok(Self { name: name.to_owned(), component, files, weights, mistakes, found: Vec::new() })
    }

    /// Returns a network that is not there, for this reason.
    fn missing(component: Component, why: &Error) -> Self {
        Self {
            name: component.title().to_owned(),
            component,
            files: Vec::new(),
            weights: None,
            mistakes: vec![Mistake::of_part(why.to_string())],
            found: Vec::new(),
        }
    }

    /// Looks at every tensor.
    fn look(&mut self, count: &(dyn Fn(u64) -> Result<()> + Sync)) -> Result<()> {
        let Some(weights) = &self.weights else { return Ok(()) };
        let (stored, parameters) = (weights.stored_bytes() as f64, weights.parameters().max(1) as f64);
        for name in weights.names() {
            let shape = weights.shape(name).unwrap_or_default();
            let values: usize = shape.iter().product();
            let mut done = |values: usize| count((values as f64 * stored / parameters) as u64);
            let matrix = match shape {
                // A scalar is no tensor of any network, and has no rows.
                [] => continue,
                _ => weights.matrix(name),
            };
            let matrix = match matrix {
                Ok(matrix) => matrix,
                Err(Error::Model(what)) => {
                    self.mistakes.push(Mistake::of_tensor(name, &what));
                    done(values)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let statistics = Statistics::of(&matrix, &mut done)?;
            let role = Role::of(self.component, name, shape);
            match role.mistake(self.component, shape, &statistics) {
                Some(what) => self.mistakes.push(Mistake::of_tensor(name, &what)),
                None => self.found.push(Found { name: name.to_owned(), role, statistics }),
            }
        }
        self.mistakes.extend(siblings::mistakes(&self.found));
        Ok(())
    }

    fn report(self) -> Part {
        let tensors = self.weights.as_ref().map_or(0, |weights| weights.names().count());
        let layout = self.weights.as_ref().map(Weights::layout);
        let matrices = self.found.into_iter().filter(|found| found.role == Role::Matrix);
        let rms = matrices.map(|found| (found.name, found.statistics.rms())).collect();
        Part { name: self.name, component: self.component, layout, tensors, mistakes: self.mistakes, rms }
    }
}

#[cfg(test)]
mod tests;
