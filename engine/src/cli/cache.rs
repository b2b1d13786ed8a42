//! `animd-engine cache`, and the options that say where prepared copies lie.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use animd_engine::weights::{Cache, CachedCopy, CopyState};
use animd_engine::{Error, Result};
use serde_json::json;

use super::{print, print_json};

const GIB: f64 = (1u64 << 30) as f64;

/// Where prepared copies lie, and how much room they may take.
#[derive(clap::Args)]
pub struct CacheArgs {
    /// The folder of prepared copies [default: `prepared` in `$CACHE_DIRECTORY`, else in `$XDG_CACHE_HOME/animd`, else in
    /// ~/.cache/animd]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// GiB that all copies may take together; beyond it, those that were not used for the longest time are dropped. 0 is
    /// without limit
    #[arg(long, value_name = "GIB", env = "ANIMD_MODEL_CACHE_GIB", default_value_t = Cache::DEFAULT_GIB)]
    cache_gib: u64,
}

impl CacheArgs {
    /// Returns the cache; `None` if nothing says where it is.
    pub fn cache(&self) -> Option<Cache> {
        let folder = self.cache.clone().or_else(Cache::default_folder)?;
        Some(Cache::new(folder, self.cache_gib))
    }

    /// Returns the cache.
    ///
    /// # Errors
    /// [`Error::Setting`] if nothing says where it is.
    pub fn required(&self) -> Result<Cache> {
        self.cache().ok_or_else(|| {
            Error::Setting(
                "HOME is not set, so there is no place for prepared copies; give --cache DIR".into(),
            )
        })
    }
}

/// Show the prepared copies of transformers, and drop them.
///
/// `animd-engine prepare` makes them. A copy that an engine uses now is never dropped, and dropping one loses nothing but the
/// time to prepare it again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  animd-engine cache
  animd-engine cache --limit 40             drop those that were not used for the longest time, down to 40 GiB
  animd-engine cache --clear                drop all
  animd-engine cache --clear NAME --json    drop one")]
pub struct CacheCommand {
    #[command(flatten)]
    place: CacheArgs,
    /// Keep at most so many GiB now; 0 keeps all
    #[arg(long, value_name = "GIB", conflicts_with = "clear")]
    limit: Option<u64>,
    /// Drop the copy of this name, or all
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    clear: Option<String>,
    /// Print JSON: folder, limit (bytes; absent without one), bytes (of all copies), copies and dropped (arrays: name, of,
    /// precision, bytes, `last_used`, `in_use`, state)
    #[arg(long)]
    json: bool,
}

impl CacheCommand {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let cache = self.place.required()?;
        let cache = match self.limit {
            Some(gib) => Cache::new(cache.folder().to_owned(), gib),
            None => cache,
        };
        let (dropped, kept) = match (&self.clear, self.limit) {
            (Some(name), _) => cache.clear(Some(&**name).filter(|name| !name.is_empty()))?,
            (None, Some(_)) => (cache.keep_limit()?, Vec::new()),
            (None, None) => Default::default(),
        };
        let copies = cache.list()?;
        let bytes: u64 = copies.iter().map(|copy| copy.bytes).sum();
        if self.json {
            let mut object =
                json!({"folder": cache.folder(), "bytes": bytes, "copies": copies, "dropped": dropped});
            if let Some(limit) = cache.limit() {
                object["limit"] = limit.into();
            }
            return print_json(&object);
        }
        for copy in &dropped {
            print(&format!("dropped {}, {:.1} GiB", copy.name, copy.bytes as f64 / GIB))?;
        }
        for copy in &kept {
            print(&format!("kept {}: an engine uses it", copy.name))?;
        }
        let limit =
            cache.limit().map_or("without limit".into(), |limit| format!("of {:.0} GiB", limit as f64 / GIB));
        print(&format!("{}: {:.1} GiB {limit}", cache.folder().display(), bytes as f64 / GIB))?;
        copies.iter().try_for_each(|copy| print(&line(copy)))
    }
}

/// Returns what there is to say about a copy.
fn line(copy: &CachedCopy) -> String {
    let used = match copy.in_use {
        true => "in use now".to_owned(),
        false => format!("last used {}", ago(copy.last_used)),
    };
    let state = match copy.state {
        CopyState::Current => "",
        CopyState::Changed => "; its files have changed since, so it is not used",
        CopyState::Gone => "; its files are not seen from here",
    };
    format!("  {}: {:.1} GiB of {}, {used}{state}", copy.name, copy.bytes as f64 / GIB, copy.of.display())
}

/// Returns how long ago a time was, in seconds since 1970.
fn ago(seconds: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_secs(seconds);
    let minutes = SystemTime::now().duration_since(then).unwrap_or_default().as_secs() / 60;
    match minutes {
        0..2 => "just now".to_owned(),
        2..120 => format!("{minutes} minutes ago"),
        120..2880 => format!("{} hours ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}
