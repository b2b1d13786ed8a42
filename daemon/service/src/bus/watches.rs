//! The bus's methods that add, remove and list watched folders.

use std::path::Path;

use animd_common::files::show;
use animd_common::watch::Origin;

use super::Hub;
use super::answer::{Answer, Dict};
use super::error::BusError;
use super::options::{self, Options};
use crate::store::Watches;
use crate::store::watches::{self, Wish};

/// Returns the folder that a caller asks for. Nobody is asked for a password for a call that is wrong. Options: `outbox`
/// s, `stable_seconds` d, `poll_seconds` d.
pub fn checked(path: &str, options: &Options) -> Result<Wish, BusError> {
    Ok(watches::checked(Path::new(path), options::how(options)?)?)
}

/// Adds a watched folder for this user.
pub async fn add(hub: &Hub, wish: Wish, uid: u32) -> Result<(), BusError> {
    watches::add(&hub.watches, &hub.ledger, wish, uid).await?;
    Ok(())
}

/// Stops watching a folder.
pub async fn remove(hub: &Hub, path: &Path) -> Result<(), BusError> {
    Ok(watches::remove(&hub.watches, &hub.ledger, path).await?)
}

/// Returns all watched folders: `path`, `outbox`, `origin` s, `owner` u for one that came over the bus,
/// `stable_seconds` and `poll_seconds` d where it has its own, `polled_seconds` d where the kernel gives no events,
/// `trouble` s for one that is not watched.
pub fn list(watches: &Watches) -> Vec<Dict> {
    let entry = |entry: watches::Entry| {
        let watched = &entry.watched;
        let owner = match watched.origin {
            Origin::Added(uid) => Some(uid),
            Origin::Inbox | Origin::Configured => None,
        };
        let (polled, trouble) = match entry.report {
            Some(report) => (report.polled, report.trouble),
            None => (None, None),
        };
        Answer::default()
            .with("path", show(&watched.path))
            .with("outbox", show(&entry.outbox))
            .with("origin", watched.origin.name())
            .with("owner", owner)
            .with("stable_seconds", watched.stable_seconds)
            .with("poll_seconds", watched.poll_seconds)
            .with("polled_seconds", polled.map(|every| every.as_secs_f64()))
            .with("trouble", trouble)
            .dict()
    };
    watches.entries().into_iter().map(entry).collect()
}
