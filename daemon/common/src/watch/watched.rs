//! A folder that somebody wants watched, and why it may not be beside others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::show;

/// Who wants a folder watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is the inbox.
    Inbox,
    /// `[[watch]]` in the configuration.
    Configured,
    /// This user, over the bus.
    Added(u32),
}

impl Origin {
    /// `inbox`, `configuration` or `bus`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Configured => "configuration",
            Self::Added(_) => "bus",
        }
    }
}

/// A watched folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// The folder.
    pub path: PathBuf,
    /// Where its videos go; `None` is `folders.outbox`.
    pub outbox: Option<PathBuf>,
    /// Seconds that a picture must lie unchanged; `None` is `inbox.stable_seconds`.
    pub stable_seconds: Option<f64>,
    /// Look into it this often, in seconds, and use no events.
    pub poll_seconds: Option<f64>,
    /// Who wants it.
    pub origin: Origin,
}

/// Why a folder cannot be watched beside others. `outbox` is for those that name none; `state` is for nobody's pictures.
pub fn overlap(
    others: &[Arc<Watched>],
    new: &Watched,
    outbox: &Path,
    state: Option<&Path>,
) -> Option<String> {
    let path = real(&new.path);
    let shown = show(&new.path);
    let videos = real(new.outbox.as_deref().unwrap_or(outbox));
    if videos.starts_with(&path) {
        return Some(format!(
            "its videos would go to `{}`, which lies in the watched folder `{shown}` itself, where they would be taken for \
             pictures; choose another outbox",
            show(&videos)
        ));
    }
    if let Some(state) = state
        && (path.starts_with(real(state)) || real(state).starts_with(&path))
    {
        let state = show(state);
        return Some(format!(
            "`{shown}` and the service's own folder `{state}` overlap; choose another folder"
        ));
    }
    for old in others {
        let (other, name) = (real(&old.path), show(&old.path));
        if path == other {
            return Some(format!("`{shown}` is watched already"));
        }
        if path.starts_with(&other) {
            return Some(format!(
                "`{shown}` lies in the watched folder `{name}`, whose subfolders are watched with it"
            ));
        }
        if other.starts_with(&path) {
            return Some(format!(
                "the watched folder `{name}` lies in `{shown}`; stop watching it first, or choose another folder"
            ));
        }
        if real(old.outbox.as_deref().unwrap_or(outbox)).starts_with(&path) {
            return Some(format!(
                "the videos of `{name}` go to a folder in `{shown}`, where they would be taken for pictures"
            ));
        }
        if videos.starts_with(&other) {
            return Some(format!(
                "its videos would go to `{}`, which lies in the watched folder `{name}`, where they would be taken for \
                 pictures; choose another outbox",
                show(&videos)
            ));
        }
    }
    None
}

/// A path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}
