//! Watched folders, as the bus adds, removes and lists them.

use std::collections::HashMap;
use std::path::Path;

use animd_common::files::show;
use animd_common::watch::Origin;
use zbus::{OwnedVariant, Variant};

use super::Hub;
use super::error::BusError;
use super::options::{self, Options};
use crate::store::Watches;
use crate::store::watches;

/// Watches one more folder, for this user. Options: `outbox` s, `stable_seconds` d, `poll_seconds` d.
pub async fn add(hub: &Hub, path: &str, options: &Options, uid: u32) -> Result<(), BusError> {
    let how = options::how(options)?;
    watches::add(&hub.watches, &hub.ledger, Path::new(path), how, uid).await?;
    Ok(())
}

/// Watches a folder no more.
pub async fn remove(hub: &Hub, path: &str) -> Result<(), BusError> {
    Ok(watches::remove(&hub.watches, &hub.ledger, Path::new(path)).await?)
}

/// All watched folders: `path`, `outbox`, `origin` s, `owner` u for one that came over the bus, `stable_seconds` and
/// `poll_seconds` d where it has its own, `polled_seconds` d where the kernel gives no events, `trouble` s for one that
/// is not watched.
pub fn list(watches: &Watches) -> Vec<HashMap<String, OwnedVariant>> {
    watches
        .entries()
        .into_iter()
        .map(|entry| {
            let mut dict = HashMap::new();
            let mut put = |key: &str, value: Option<Variant<'_>>| {
                if let Some(Ok(value)) = value.map(Variant::try_into_owned) {
                    dict.insert(key.to_owned(), value);
                }
            };
            let watched = &entry.watched;
            put("path", Some(show(&watched.path).into()));
            put("outbox", Some(show(&entry.outbox).into()));
            put("origin", Some(watched.origin.name().into()));
            if let Origin::Added(uid) = watched.origin {
                put("owner", Some(uid.into()));
            }
            put("stable_seconds", watched.stable_seconds.map(Into::into));
            put("poll_seconds", watched.poll_seconds.map(Into::into));
            if let Some(report) = entry.report {
                put("polled_seconds", report.polled.map(|every| every.as_secs_f64().into()));
                put("trouble", report.trouble.map(Into::into));
            }
            dict
        })
        .collect()
}
