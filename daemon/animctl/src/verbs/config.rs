//! `animctl config`

use std::path::PathBuf;

use animd_common::config::{Loaded, Sources};
use animd_common::files::show;
use animd_common::profiles;
use serde_json::json;

use super::exit::{Exit, Failure, Result};
use super::{On, path, print, print_data, started};

/// Check or show the configuration.
///
/// This is the installed service's. With --user, or if an animd runs in your session, it is your own.
#[derive(clap::Args)]
#[command(after_help = "Example: animctl config check && animctl reload")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Check(Check),
    Show(Show),
}

/// Check the configuration for mistakes.
///
/// It is read as animd reads it. All mistakes are shown, each with its file and line and what would do.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl config check\n\nJSON: ok, files (that were read), and error if there are mistakes (a line for each)"
)]
struct Check {
    /// Read this file and the files of conf.d beside it instead of the usual one
    #[arg(value_parser = path())]
    file: Option<PathBuf>,
}

/// Print the configuration with everything filled in.
#[derive(clap::Args)]
#[command(after_help = "Example: animctl config show --origins\n\nJSON: an object of sections")]
struct Show {
    /// Read this file and the files of conf.d beside it instead of the usual one
    #[arg(value_parser = path())]
    file: Option<PathBuf>,
    /// Show where each value comes from
    #[arg(long)]
    origins: bool,
}

pub fn run(args: &Args, on: On) -> Result {
    match &args.verb {
        Verb::Check(Check { file }) => match (check(file.as_ref(), on.user), on.json) {
            (Ok(loaded), true) => {
                print(json!({"ok": true, "files": files(&loaded)}));
                Ok(Exit::Done)
            }
            (Ok(loaded), false) => {
                let files = files(&loaded);
                print(match files.is_empty() {
                    true => "there is no configuration file; the defaults are in force".to_owned(),
                    false => format!("{}: no mistakes found", files.join(", ")),
                });
                Ok(Exit::Done)
            }
            (Err(e), true) => {
                print(json!({"ok": false, "files": [], "error": e.to_string()}));
                Ok(Exit::Failed)
            }
            (Err(e), false) => Err(e.into()),
        },
        Verb::Show(Show { file, origins }) => {
            let loaded = load(file.as_ref(), on.user)?;
            if on.json {
                print(serde_json::to_value(&loaded.config).map_err(|e| Failure::new(e.to_string()))?);
            } else {
                print_data(loaded.print(*origins).trim_end());
            }
            Ok(Exit::Done)
        }
    }
}

/// Returns the configuration as the service reads it, without the command line that the service was started with.
pub fn load(file: Option<&PathBuf>, user: bool) -> animd_common::Result<Loaded> {
    let vars = std::env::vars_os().collect();
    Sources { file: file.cloned(), user, options: Vec::new(), vars }.load()
}

/// Returns the configuration of the running service; without one, that of one that would be started.
pub async fn of_service(on: On) -> animd_common::Result<Loaded> {
    match started::sources(on).await {
        Some(sources) => sources.load(),
        None => load(None, on.user),
    }
}

/// Returns the configuration if there are no mistakes in it and the profile that it names exists.
fn check(file: Option<&PathBuf>, user: bool) -> animd_common::Result<Loaded> {
    let loaded = load(file, user)?;
    profiles::check(&loaded)?;
    Ok(loaded)
}

fn files(loaded: &Loaded) -> Vec<String> {
    loaded.files.iter().map(show).collect()
}
