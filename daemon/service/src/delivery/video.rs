//! Checks the video that the engine has written, and gives it its name or another place.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use animd_common::files::{self, output_name, rename_new, show};
use animd_common::watch::away;
use animd_common::watch::root::Dir;
use animd_protocol::ErrorCode;
use animd_protocol::messages::Report;

use super::{Delivery, LOOK};
use crate::error::{Error, Result};
use crate::store::ledger::{Ended, Job, Succeeded};

impl Delivery {
    /// As [`Self::examine`]; blocks.
    pub(super) fn examine_blocking(&self, job: &Job, report: Report) -> Result<Ended> {
        let part = self.part(job);
        let outbox = self.outbox(job);
        let outbox = self.outbox_dir(&outbox).map_err(Error::file("find", outbox))?;
        Ok(self.examine_in(&outbox, &part, job, report))
    }

    fn examine_in(&self, outbox: &Dir, part: &Path, job: &Job, report: Report) -> Ended {
        let failed = |text: String| Ended::Failed { code: ErrorCode::Output, text };
        let opened = outbox.id().and_then(|id| Ok((id, files::open_regular(&outbox.at(part))?)));
        let (folder, (mut file, meta)) = match opened {
            Ok(open) => open,
            Err(e) => return failed(format!("the engine's file `{}` cannot be read: {e}", show(part))),
        };
        if meta.len() == 0 {
            return failed(format!("the engine left `{}` empty; {LOOK}", show(part)));
        }
        if meta.len() != report.bytes {
            return failed(format!(
                "the engine wrote {} bytes, and `{}` has {}; is another program at work in the outbox? {LOOK}",
                report.bytes,
                show(part),
                meta.len()
            ));
        }
        let hashed = files::hash(&mut file, |_| Ok(())).and_then(|sha| {
            file.set_permissions(fs::Permissions::from_mode(0o640))?;
            file.sync_all()?;
            Ok(sha)
        });
        let sha256 = match hashed {
            Ok(sha) => sha,
            Err(e) => return failed(format!("the engine's file `{}` cannot be read: {e}", show(part))),
        };
        let seed = job.request.as_ref().map_or(report.seed, |r| r.seed);
        let free = free_output(&outbox.path(), &job.name, seed);
        let output = self.outbox(job).join(free.file_name().unwrap_or_default());
        Ended::Done(Box::new(Succeeded { report, output, folder, bytes: meta.len(), sha256 }))
    }

    /// Copies a finished video that its outbox refuses to where videos for callers lie. False if that fails, too.
    pub(super) fn save_video(&self, job: &Job, refused: &Error) -> Result<bool> {
        let (id, dir) = (job.id, self.results.dir());
        let output = dir.join(format!("{}.mp4", job.uuid));
        let copy = |outbox: Dir| files::copy_new(&outbox.at(&self.part(job)), &output);
        let made = fs::create_dir_all(dir).and_then(|()| self.outbox_dir(&self.outbox(job)));
        let copied = match made.and_then(copy) {
            // The file is a complete copy of this job's video: a crash came between the copy and the ledger.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            copied => copied,
        };
        if let Err(e) = copied.and_then(|()| files::sync_dir(dir)) {
            tracing::error!(job = id, "cannot keep the video of job {id} anywhere else: {e}");
            return Ok(false);
        }
        tracing::error!(
            job = id,
            "the outbox takes no video ({refused}): that of job {id} is kept by the service for retention.results_days; \
             `animctl fetch {id} FILE` copies it"
        );
        self.ledger.call_blocking(move |db| db.set_output(id, &output))?;
        self.remove_part(job);
        Ok(true)
    }

    /// Renames the unfinished file to the video's name. False if there is neither.
    pub(super) fn put_video(&self, job: &Job) -> Result<bool> {
        let Some(mut output) = job.output.clone() else { return Ok(false) };
        let (from, dir) = (self.outbox(job), output.parent().unwrap_or(Path::new("/")).to_owned());
        let to = self.outbox_dir(&dir).map_err(Error::file("find", &dir))?;
        let from = if from == dir { Ok(to.clone()) } else { self.outbox_dir(&from) };
        let part = from.map(|from| (from.at(&self.part(job)), from));
        loop {
            let renamed = match &part {
                Ok((part, _)) => rename_new(part, &to.at(&output)),
                // The video was copied elsewhere, because this folder takes none.
                Err(_) => Err(io::ErrorKind::NotFound.into()),
            };
            match renamed {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Linked, but not yet unlinked, where the file system cannot rename without replacing.
                    let ino = |path: &Path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()));
                    if let Ok((part, _)) = &part
                        && let (Ok(a), Ok(b)) = (ino(part), ino(&to.at(&output)))
                        && a == b
                    {
                        fs::remove_file(part).map_err(Error::file("remove", self.part(job)))?;
                        break;
                    }
                    let seed = job.request.as_ref().map_or(0, |r| r.seed);
                    let free = free_output(&to.path(), &job.name, seed);
                    output = dir.join(free.file_name().unwrap_or_default());
                    let (id, path) = (job.id, output.clone());
                    tracing::info!(job = id, "the name of job {id}'s video is taken, so it gets a number");
                    self.ledger.call_blocking(move |db| db.set_output(id, &path))?;
                }
                // The video was renamed before, unless the file there is somebody else's.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return holds(&to.at(&output), job.output_sha256).map_err(Error::file("read", &output));
                }
                Err(e) => return Err(Error::file("create", &output)(e)),
            }
        }
        away::warn_unsynced(&dir, files::sync_dir(&to.path()));
        Ok(true)
    }
}

/// Returns whether `path` is a regular file with these contents.
fn holds(path: &Path, sha256: Option<[u8; 32]>) -> io::Result<bool> {
    match files::open_regular(path) {
        Ok((mut file, _)) => Ok(Some(files::hash(&mut file, |_| Ok(()))?) == sha256),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `STEM-SEED.mp4`, with a number if that exists.
fn free_output(dir: &Path, name: &OsStr, seed: u64) -> PathBuf {
    (1..u32::MAX)
        .map(|n| dir.join(output_name(name, seed, n)))
        .find(|path| fs::symlink_metadata(path).is_err())
        .unwrap_or_else(|| dir.join("video.mp4"))
}
