//! Finishes what a crash of the service or a power cut left half done, before anything else begins.

use std::ffi::OsStr;
use std::fs;

use animd_common::files::show;
use animd_protocol::ErrorCode;

use super::{Delivery, LOOK};
use crate::error::Result;
use crate::store::ledger::{Ended, PART_SUFFIX, State};
use crate::store::sweep_spool;

impl Delivery {
    /// Finishes what a crash cut short. Runs before the bus, the inbox and the engine. Blocks.
    pub fn recover(&self) -> Result<()> {
        for job in self.ledger.call_blocking(|db| db.open_jobs())? {
            let id = job.id;
            match job.state {
                State::Finishing => {
                    tracing::info!(
                        job = id,
                        "job {id} was being finished when the service stopped; finishing it now"
                    );
                    self.settle_blocking(id)?;
                }
                State::Running => {
                    self.remove_part(&job);
                    self.pictures.remove_all(&job);
                    let interruptions = job.interruptions + 1;
                    if interruptions < self.config.get().queue.interruptions {
                        tracing::warn!(job = id, "the service ended while job {id} ran; it runs again");
                        self.ledger.call_blocking(move |db| db.interrupted(id))?;
                    } else {
                        let text = format!(
                            "the service or the machine went down {interruptions} times while this was made; it is not tried again: \
                             {LOOK}, then drop the picture once more"
                        );
                        self.end_blocking(
                            id,
                            State::Running,
                            &Ended::Failed { code: ErrorCode::Crashed, text },
                        )?;
                    }
                }
                _ => {}
            }
        }
        sweep_spool(&self.ledger, &self.spool)?;
        self.remove_parts();
        self.pictures.sweep();
        self.parts.sweep(&self.ledger.call_blocking(|db| db.open_jobs())?);
        Ok(())
    }

    /// Removes unfinished files of our own jobs: no job is running or finishing now.
    fn remove_parts(&self) {
        let mut folders = self.ledger.call_blocking(|db| db.outboxes()).unwrap_or_default();
        folders.push(self.config.get().folders.outbox.clone());
        for folder in folders {
            let Ok(outbox) = self.outbox_dir(&folder) else { continue };
            let Ok(entries) = fs::read_dir(outbox.path()) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some(uuid) = part_uuid(&name) else { continue };
                if self.ledger.call_blocking(move |db| db.knows(&uuid)).unwrap_or(false) {
                    tracing::info!("an unfinished file is removed: {}", show(&name));
                    _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Returns the job's UUID in the name of an unfinished file, also where the engine put something of its own around
/// it.
fn part_uuid(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    if !name.ends_with(PART_SUFFIX) {
        return None;
    }
    let rest = name.trim_start_matches('.').strip_prefix("animd-")?;
    let uuid = rest.get(..36)?;
    uuid::Uuid::parse_str(uuid).ok().map(|_| uuid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_files_are_known_by_their_uuid() {
        let uuid = "6b2cb0a8-9c0f-4d3e-8a57-0f8c1f3d2b11";
        assert_eq!(part_uuid(OsStr::new(&format!(".animd-{uuid}-1.part"))).as_deref(), Some(uuid));
        assert_eq!(part_uuid(OsStr::new(&format!("..animd-{uuid}-1.part.x.part"))).as_deref(), Some(uuid));
        assert_eq!(part_uuid(OsStr::new(".animd-short.part")), None);
        assert_eq!(part_uuid(OsStr::new(&format!("animd-{uuid}.mp4"))), None);
    }
}
