//! The settings of a job: as JSON in its row, and its `LoRAs` in rows of their own, to be asked for by name and hash.

use animd_protocol::ErrorCode;
use animd_protocol::request::Request;
use rusqlite::{Connection, params};

use crate::error::{Error, Result};

/// Returns settings as JSON.
///
/// # Errors
/// [`Error::Refused`] with `invalid-setting` for what JSON cannot say.
pub(super) fn json(request: &Request) -> Result<String> {
    serde_json::to_string(request).map_err(|e| {
        Error::refused(ErrorCode::InvalidSetting, format!("the settings cannot be written down: {e}"))
    })
}

/// Writes a job's `LoRAs` down, in the place of those that it had.
pub(super) fn set_loras(db: &Connection, id: u64, request: &Request) -> Result<()> {
    db.prepare_cached("DELETE FROM job_lora WHERE job = ?1")?.execute(params![id as i64])?;
    let mut insert = db.prepare_cached(
        "INSERT INTO job_lora (job, n, name, strength, strength_low, sha256) VALUES (?1, ?2, ?3, ?4, ?5, unhex(?6))",
    )?;
    for (n, choice) in request.lora.iter().enumerate() {
        let (name, sha256) = (&choice.name, &choice.sha256);
        insert.execute(params![id as i64, n as i64, name, choice.strength, choice.strength_low, sha256])?;
    }
    Ok(())
}
