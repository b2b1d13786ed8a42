//! `animctl model cache` and `prepare`: the copies of transformers in 8 bits that start faster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use animd_common::config::{Loaded, Sources};
use animd_common::files::write_atomic;

use super::super::config::load;
use super::super::dropin::needs_root;
use super::super::exit::{Failure, Result};
use super::super::{On, engine};
use super::checks::with_model;

/// Where the installed service keeps copies: systemd makes this folder for it.
const SERVICE: &str = "/var/cache/animd/prepared";
/// The file that has the limit, in the folder of the configuration's drop-ins.
const LIMIT: &str = "animctl-cache.toml";

/// Show the prepared copies of models, limit the room that they take, or drop them.
///
/// `animctl model prepare` makes them. Those that were not used for the longest time are dropped where all would take more
/// than `model.cache_gib`; one that the engine uses never is. Dropping a copy loses nothing but the time to prepare it again.
/// The installed service's copies are seen by root and the group animd.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl model cache\n\nJSON: folder, limit (bytes; absent without one), bytes (of all copies), copies and \
dropped (arrays: name, of, precision, bytes, last_used, in_use, state)"
)]
pub struct Cache {
    /// Set `model.cache_gib`, and keep to it now; 0 is without limit
    #[arg(long, value_name = "GIB", conflicts_with = "clear", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    limit: Option<u64>,
    /// Drop the copy of this name, or all
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    clear: Option<String>,
}

/// Write a copy of the model's transformers in 8 bits, so that the engine starts faster.
///
/// The engine then reads half as much at every start and rounds nothing; the videos are the same. It pays for files in 16 or 32
/// bits. A copy takes 17 GB, of Wan2.2 twice 15.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl model prepare\n\n`animctl model prepare -- --help` shows all options.\n\nJSON: an array of \
objects with folder, before and after (bytes), and expert where there are two"
)]
pub struct Prepare {
    /// The model's folder or file, and options of the engine's `prepare` [default: the configured model]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
    options: Vec<OsString>,
}

pub async fn cache(args: &Cache, on: On) -> Result {
    if (args.limit.is_some() || args.clear.is_some()) && !on.user {
        needs_root("animctl model cache ...")?;
    }
    let mut options = place(&load(None, on.user)?, on);
    match (args.limit, &args.clear) {
        (Some(gib), _) => {
            set_limit(gib, on).await?;
            options.extend(["--limit".into(), gib.to_string().into()]);
        }
        (None, Some(name)) => {
            options.push("--clear".into());
            options.extend(Some(name).filter(|name| !name.is_empty()).map(OsString::from));
        }
        (None, None) => {}
    }
    engine::run("cache", &options, on)
}

pub fn prepare(args: &Prepare, on: On) -> Result {
    if !on.user {
        needs_root("animctl model prepare")?;
    }
    let options: Vec<OsString> =
        args.options.iter().cloned().chain(place(&load(None, on.user)?, on)).collect();
    with_model("prepare", &options, on, |model, dit| vec![dit.unwrap_or_else(|| model.to_owned()).into()])
}

/// Returns the engine's options that say where copies lie and how much room they may take.
pub fn place(loaded: &Loaded, on: On) -> Vec<OsString> {
    let mut options: Vec<OsString> =
        vec!["--cache-gib".into(), loaded.config.model.cache_gib.to_string().into()];
    // A user's own service keeps them where the engine looks anyway.
    if !on.user {
        options.extend(["--cache".into(), SERVICE.into()]);
    }
    options
}

/// Writes the limit into the configuration, which the service then reads again.
async fn set_limit(gib: u64, on: On) -> Result<()> {
    let sources = Sources { user: on.user, vars: std::env::vars_os().collect(), ..Sources::default() };
    let folder: PathBuf = sources.drop_ins()?;
    std::fs::create_dir_all(&folder).map_err(Failure::file("make", &folder))?;
    write_limit(&folder, gib)?;
    // A service that does not run reads it when it starts.
    if let Ok(ctl) = on.connect().await {
        ctl.manager.reload().await?;
    }
    Ok(())
}

fn write_limit(folder: &Path, gib: u64) -> Result<()> {
    let file = folder.join(LIMIT);
    let text = format!("[model]\ncache_gib = {gib}\n");
    write_atomic(&file, text.as_bytes(), 0o644).map_err(Failure::file("write", &file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_as_it_is_written() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Failure::file("make", "a folder"))?;
        write_limit(dir.path(), 40)?;
        let file = dir.path().join(LIMIT);
        let text = std::fs::read_to_string(&file).map_err(Failure::file("read", &file))?;
        let loaded = animd_common::config::from_text(&file, &text)?;
        assert_eq!(loaded.config.model.cache_gib, 40);
        let on = |user| On { user, system: !user, json: false };
        assert_eq!(place(&loaded, on(true)), ["--cache-gib", "40"]);
        assert_eq!(place(&loaded, on(false)), ["--cache-gib", "40", "--cache", SERVICE]);
        Ok(())
    }
}
