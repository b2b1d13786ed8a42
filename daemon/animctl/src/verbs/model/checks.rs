//! `animctl model verify` and `check`: the engine's checks of a model, which is the configured one if none is named.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use animd_protocol::model_file::check_name;

use super::super::exit::{Failure, Result};
use super::super::{On, config, engine};
use crate::doctor::outside::Outside;
use crate::doctor::sandbox::Sandbox;

/// Check the model's files, tensor by tensor.
///
/// It runs `animd-engine verify` as yourself: each file's SHA-256 is compared with the last time's, and each tensor must be
/// finite and of a plausible size. This finds scales that are missing or applied twice, parts that were not copied, and bytes
/// in another order.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model verify\n\n`animctl model verify -- --help` shows all options.\n\nJSON: files (an \
 array: path, bytes, sha256, change, seen), parts (an array: name, tensors, mistakes)"
)]
pub struct Verify {
    /// The model's name, folder or file, and options of the engine's `verify` [default: the configured model]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
    options: Vec<OsString>,
}

/// Check the model by what it computes on this machine.
///
/// It runs `animd-engine check` as yourself: does the model denoise a video that it has never seen, does each block help, does
/// the prompt, does the VAE give back what it gets, does the GPU compute what the CPU does, and what do 8 bits cost each layer?
/// It takes minutes. Keep the service from using the GPU meanwhile: `animctl unload`, then `animctl drain -- animctl model
/// check`.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model check --report check.json\n\n`animctl model check -- --help` shows all options. The \
 report has no pictures, prompts, names of users or paths.\n\nJSON: verdict (sound, doubtful, wrong), sentence, judged, \
 version, device, networks, frames, suspects, rounding, agreement, findings"
)]
pub struct Check {
    /// The model's name, folder or file, and options of the engine's `check` [default: the configured model]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
    options: Vec<OsString>,
}

pub fn verify(args: &Verify, on: On) -> Result {
    with_model("verify", &args.options, on, with_dit)
}

pub fn check(args: &Check, on: On) -> Result {
    with_model("check", &args.options, on, with_dit)
}

/// Returns the words for a model and its transformer, if that lies elsewhere.
fn with_dit(model: &Path, dit: Option<PathBuf>) -> Vec<OsString> {
    let dit = dit.into_iter().flat_map(|dit| [OsString::from("--dit"), dit.into()]);
    std::iter::once(model.into()).chain(dit).collect()
}

/// Runs the engine on the model that its options name, or else on the configured one, which `words` gives to the engine.
pub fn with_model(
    verb: &str,
    options: &[OsString],
    on: On,
    words: impl FnOnce(&Path, Option<PathBuf>) -> Vec<OsString>,
) -> Result {
    let mut options: Vec<OsString> = options.iter().filter(|option| *option != "--").cloned().collect();
    // The model comes first; `--help` needs none.
    let is_named = options.first().is_some_and(|first| {
        !first.as_encoded_bytes().starts_with(b"-") || first == "--help" || first == "-h"
    });
    if is_named {
        if let Some(model) = options.first_mut().filter(|model| is_name(model)) {
            let models = config::load(None, on.user)?.config.models;
            *model = models.find(&model.to_string_lossy()).map_err(Failure::new)?.into();
        }
        return engine::run(verb, &options, on);
    }
    let model = config::load(None, on.user)?.config.model;
    let Some(path) = model.path else {
        return Err(Failure::new("no model is configured; name one, or add one: `animctl model add PATH`"));
    };
    let sandbox = Sandbox::of(on.user);
    let outside = Outside::of(&path, &sandbox).map_err(Failure::new)?;
    let dit = model.dit.map(|dit| sandbox.outside(&dit).0);
    let options: Vec<OsString> = words(outside.path(), dit).into_iter().chain(options).collect();
    // The engine reads files that end with this process if the service sees the model at another place.
    if outside.is_made() { engine::call(verb, &options, on) } else { engine::run(verb, &options, on) }
}

/// Returns whether a word is the name of a model: it could be one, and nothing is called so here.
fn is_name(word: &OsStr) -> bool {
    word.to_str().is_some_and(|word| check_name(word).is_ok()) && !Path::new(word).exists()
}
