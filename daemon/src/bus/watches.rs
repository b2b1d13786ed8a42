//! Watched folders, as the bus adds, removes and lists them.

use std::collections::HashMap;
use std::path::PathBuf;

use zbus::OwnedVariant;

use super::Hub;
use super::error::BusError;
use super::options::Options;
use crate::delivery::Desk;

impl Hub {
    /// Every watched folder.
    pub(super) async fn watched(&self) -> Result<Vec<PathBuf>, BusError> {
        Ok(vec![self.desk.config().folders.inbox.clone()])
    }
}

/// Watches one more folder.
pub async fn add(_: &Desk, _: String, _: &Options, _: u32) -> Result<(), BusError> {
    Err(BusError::Internal("not yet".into()))
}

/// Watches a folder no more.
pub async fn remove(_: &Desk, _: String) -> Result<(), BusError> {
    Err(BusError::Internal("not yet".into()))
}

/// All watched folders.
pub async fn list(_: &Desk) -> Result<Vec<HashMap<String, OwnedVariant>>, BusError> {
    Ok(Vec::new())
}
