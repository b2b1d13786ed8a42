//! The settings of a job: as JSON in its row, and its `LoRAs` in rows of their own, to be asked for by name and hash.

use animd_common::text::Text;
use animd_protocol::ErrorCode;
use animd_protocol::lora::{LoraChoice, ModelLora};
use animd_protocol::request::Request;
use rusqlite::{Connection, params};

use super::text::text;
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
        "INSERT INTO job_lora (job, n, name, strength, strength_low, strength_base, sha256)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, unhex(?7))",
    )?;
    for (n, choice) in request.lora.iter().enumerate() {
        let LoraChoice { name, strength, strength_low, strength_base, sha256 } = choice;
        insert.execute(params![id as i64, n as i64, name, strength, strength_low, strength_base, sha256])?;
    }
    Ok(())
}

/// Writes down the `LoRAs` that the model of a job has in its own file.
pub(super) fn set_model_loras(db: &Connection, id: u64, loras: &[ModelLora]) -> Result<()> {
    db.prepare_cached("DELETE FROM job_lora WHERE job = ?1 AND of_model = 1")?.execute(params![id as i64])?;
    let mut insert = db.prepare_cached(
        "INSERT INTO job_lora (job, of_model, n, name, strength, strength_low, sha256)
         VALUES (?1, 1, ?2, ?3, ?4, ?5, unhex(?6))",
    )?;
    for (n, ModelLora { name, strength, strength_low, sha256 }) in loras.iter().enumerate() {
        insert.execute(params![id as i64, n as i64, name, strength, strength_low, sha256])?;
    }
    Ok(())
}

/// A `LoRA` as it is told of: its name, one strength or one for each of two transformers, and its file's hash in hexadecimal.
pub type ToldLora = (Text, Vec<f64>, Text);

impl super::Store {
    /// Returns the `LoRAs` that the model of a job has in its own file, in the order in which they were added.
    pub fn model_loras(&self, id: u64) -> Result<Vec<ToldLora>> {
        let mut find = self.db.prepare_cached(
            "SELECT name, strength, strength_low, lower(hex(sha256)) FROM job_lora WHERE job = ?1 AND of_model = 1 ORDER BY n",
        )?;
        let rows = find.query_map([id as i64], |row| {
            let (strength, low): (f64, Option<f64>) = (row.get(1)?, row.get(2)?);
            let strengths = std::iter::once(strength).chain(low).collect();
            Ok((text(row, 0)?, strengths, text(row, 3)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use animd_protocol::lora;
    use animd_protocol::request::Settings;

    use super::super::{Added, NewJob, Store};
    use super::*;

    type Row = (i64, String, f64, Option<f64>, Option<Vec<u8>>);

    fn rows(store: &Store, id: u64) -> Result<Vec<Row>> {
        let mut find = store.db.prepare(
            "SELECT n, name, strength, strength_low, sha256 FROM job_lora WHERE job = ?1 ORDER BY n",
        )?;
        let rows = find.query_map([id as i64], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    #[test]
    fn loras_have_rows_of_their_own() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let mut store = Store::open(&dir.path().join("ledger.db"))?;
        let request = |text: &str| -> Result<Request> {
            Ok(Settings { lora: Some(lora::parse(text)?), ..Settings::default() }.resolve(|| 7)?)
        };
        let first = request("detail:0.5, pair:1:-0.25")?;
        let new = NewJob::made_up([1; 32], first);
        let Added::New(id) = store.add(&new, || true)? else { panic!("it is new") };
        let unknown = [(0, "detail".into(), 0.5, None, None), (1, "pair".into(), 1.0, Some(-0.25), None)];
        assert_eq!(rows(&store, id)?, unknown);

        let hash = "0f".repeat(32);
        let pinned = request(&format!("detail:0.5#{hash}"))?;
        store.pin_loras(id, &pinned)?;
        assert_eq!(rows(&store, id)?, [(0, "detail".into(), 0.5, None, Some(vec![15; 32]))]);
        assert_eq!(store.job(id)?.and_then(|job| job.request).as_ref(), Some(&pinned));
        // Those of the model come beside them, and go when the job begins anew.
        let own = |name: &str, strength, strength_low| {
            let (name, sha256) = (name.to_owned(), "ab".repeat(32));
            ModelLora { name, strength, strength_low, sha256 }
        };
        set_model_loras(&store.db, id, &[own("four steps", 0.8, None), own("pair", 1.0, Some(0.5))])?;
        let told: Vec<ToldLora> = vec![
            ("four steps".into(), vec![0.8], "ab".repeat(32).as_str().into()),
            ("pair".into(), vec![1.0, 0.5], "ab".repeat(32).as_str().into()),
        ];
        assert_eq!(store.model_loras(id)?, told);
        set_model_loras(&store.db, id, &[own("four steps", 0.8, None)])?;
        assert_eq!(store.model_loras(id)?, told[..1]);
        assert_eq!(rows(&store, id)?.len(), 2, "one of the job and one of the model");
        store.pin_loras(id, &pinned)?;
        assert!(store.model_loras(id)?.is_empty());
        store.db.execute("DELETE FROM job", [])?;
        assert!(rows(&store, id)?.is_empty(), "they go with their job");
        Ok(())
    }
}
