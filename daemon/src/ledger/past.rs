//! What ended jobs tell about new ones.

use animd_engine::request::Request;
use rusqlite::params;

use super::store::Store;
use crate::Result;

/// How many jobs are looked back at.
const LOOK_BACK: u32 = 2000;

impl Store {
    /// The median wall seconds of the newest done jobs that asked for the same work: size, frames, steps, sampler, step
    /// cache, and whether guidance doubles it. `None` if there is none.
    pub fn seconds_like(&self, request: &Request) -> Result<Option<f64>> {
        let json = serde_json::to_value(request).unwrap_or_default();
        let mut find = self.db.prepare_cached(
            "SELECT (finished_us - started_us) / 1e6 FROM (SELECT * FROM job ORDER BY id DESC LIMIT ?1)
             WHERE state = 'done' AND frames = ?2 AND steps = ?3 AND settings_json ->> 'size' = ?4
               AND settings_json ->> 'sampler' = ?5 AND settings_json ->> 'step_cache' = ?6
               AND (settings_json ->> 'guidance' = 1) = ?7
             LIMIT 21",
        )?;
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let mut seconds: Vec<f64> = find
            .query_map(
                params![
                    LOOK_BACK,
                    request.frames,
                    request.steps,
                    text("size"),
                    text("sampler"),
                    text("step_cache"),
                    request.guidance == 1.0
                ],
                |row| row.get(0),
            )?
            .collect::<Result<_, _>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds.get(seconds.len() / 2).copied())
    }
}
