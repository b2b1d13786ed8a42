//! A picture's newer words, or the picture itself once more, for a job that is still open.

use animd_common::files::Identity;
use animd_protocol::request::Request;
use rusqlite::named_params;

use super::job::State;
use super::settings;
use super::store::{Store, event};
use crate::error::Result;
use crate::store::{Spooled, parts};

/// What an open job is to be made of instead.
pub struct Renewal {
    /// The settings.
    pub request: Request,
    /// When the sidecars were read that say so.
    pub read_us: i64,
    /// The picture that the video ends at, if the settings name one.
    pub last: Option<Spooled>,
    /// The picture with the state of its file, if another one has taken the place of the first.
    pub picture: Option<(Spooled, Identity)>,
}

impl Store {
    /// Gives a job that is in state `from`, queued or running, other settings and perhaps another picture. A running job
    /// waits again, as if it had not been started. Returns false if it is in another state by now.
    pub fn renew(&mut self, id: u64, from: State, renewal: &Renewal) -> Result<bool> {
        let request = &renewal.request;
        let json = settings::json(request)?;
        let picture = renewal.picture.as_ref();
        let identity = picture.map(|(_, identity)| identity);
        self.change(|db| {
            let changed = db.execute(
                "UPDATE job SET state = 'queued', attempt = attempt - (state = 'running'), settings_json = :json, seed = :seed,
                   frames = :frames, steps = :steps, settings_us = :read, last_sha256 = :last, last_bytes = :last_bytes,
                   parts_bytes = :parts_bytes, image_sha256 = coalesce(:sha, image_sha256),
                   image_bytes = coalesce(:image_bytes, image_bytes), source_dev = coalesce(:dev, source_dev),
                   source_ino = coalesce(:ino, source_ino), source_mtime_ns = coalesce(:mtime, source_mtime_ns)
                 WHERE id = :id AND state = :from",
                named_params! {
                    ":id": id as i64,
                    ":from": from,
                    ":json": json,
                    ":seed": request.seed as i64,
                    ":frames": request.frames,
                    ":steps": request.total_steps(),
                    ":read": renewal.read_us,
                    ":last": renewal.last.as_ref().map(|last| last.sha256),
                    ":last_bytes": renewal.last.as_ref().map_or(0, |last| last.bytes as i64),
                    ":parts_bytes": parts::bytes(request) as i64,
                    ":sha": picture.map(|(spooled, _)| spooled.sha256),
                    ":image_bytes": picture.map(|(spooled, _)| spooled.bytes as i64),
                    ":dev": identity.map(|identity| identity.dev),
                    ":ino": identity.map(|identity| identity.ino),
                    ":mtime": identity.map(|identity| identity.mtime_ns),
                },
            )?;
            if changed == 1 {
                settings::set_loras(db, id, request)?;
                let what = match picture {
                    Some(_) => "its picture was written once more",
                    None => "its sidecar came after it was queued",
                };
                event(db, id, "settings-changed", Some(what))?;
                if from == State::Running {
                    event(db, id, "requeued", Some("it begins again with them"))?;
                }
            }
            Ok(changed == 1)
        })
    }
}
