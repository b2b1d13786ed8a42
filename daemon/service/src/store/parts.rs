//! The finished parts of videos that are made in several: `STATE/parts/UUID/`, for as long as their job is open.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use animd_common::files::{free_space, show};
use animd_protocol::request::{Request, Size};

use crate::error::{Error, Result};
use crate::store::ledger::Job;

/// The folder in the state folder.
const PARTS: &str = "parts";

/// The bytes that are set aside for a pixel of a part's encoded video at the best quality: more than half of raw 4:2:0.
const VIDEO_BYTES_PER_PIXEL: u64 = 2;
/// The steps of quality (x264's CRF) that halve a video, by x264's own rule.
const HALVING: u32 = 6;
/// The bytes that a pixel of the last frame takes: PNG makes it larger by less than the kilobyte beside it.
const FRAME_BYTES_PER_PIXEL: u64 = 3;
/// What the records beside a part take.
const RECORDS: u64 = 64 << 10;

/// The folders of finished parts; cheap to clone.
#[derive(Clone)]
pub struct PartFolders {
    dir: PathBuf,
}

impl PartFolders {
    /// Returns the folders of the service that has this state folder.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join(PARTS) }
    }

    /// Returns the folder of a job's finished parts.
    pub fn path(&self, job: &Job) -> PathBuf {
        self.dir.join(&*job.uuid)
    }

    /// Makes the folder of a job that is made in several parts, and returns it; `None` for any other job.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn prepare(&self, job: &Job, request: &Request) -> Result<Option<PathBuf>> {
        if request.parts().len() == 1 {
            return Ok(None);
        }
        let path = self.path(job);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(Error::file("create", &path))?;
        Ok(Some(path))
    }

    /// Removes what a job has left, which is needed no more.
    pub fn remove(&self, job: &Job) {
        remove(&self.path(job));
    }

    /// Removes the folders of jobs that are not `open`, by their UUIDs. No job may run meanwhile.
    pub fn sweep(&self, open: &[Job]) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if !open.iter().any(|job| OsStr::new(&*job.uuid) == entry.file_name()) {
                remove(&entry.path());
            }
        }
    }

    /// Refuses a video whose parts would leave less than `reserve` bytes of the disk free.
    ///
    /// # Errors
    /// A sentence with the arithmetic.
    pub fn check_room(&self, request: &Request, reserve: u64) -> std::result::Result<(), String> {
        let needed = bytes(request);
        if needed == 0 {
            return Ok(());
        }
        // The folder is made with the first job that needs one.
        let Some(free) = self.dir.ancestors().find_map(|dir| free_space(dir).ok()) else { return Ok(()) };
        if needed.saturating_add(reserve) <= free {
            return Ok(());
        }
        let parts = request.parts();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(format!(
            "{} s are made in {} parts, which take up to {} MiB in `{}` until they are joined; it has {} MiB left, of which {} \
             are kept free (queue.free_mib): make room, or choose fewer `seconds`",
            request.seconds,
            parts.len(),
            mib(needed),
            show(&self.dir),
            mib(free),
            mib(reserve)
        ))
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("finished parts of a video stay in the state folder: {e}");
            tracing::debug!("cannot remove `{}`", show(path));
        }
        _ => {}
    }
}

/// Returns the bytes that are set aside for the finished parts of a video; 0 for a video of one part.
pub fn bytes(request: &Request) -> u64 {
    let parts = request.parts();
    if parts.len() == 1 {
        return 0;
    }
    let pixels = match request.size {
        Size::Exact { width, height } => u64::from(width) * u64::from(height),
        area => u64::from(area.area()),
    };
    let frames: u64 = parts.iter().map(|part| u64::from(part.frames)).sum();
    // Two last frames are there while a part is being finished. The joined video lies in the outbox.
    let video = (VIDEO_BYTES_PER_PIXEL * pixels * frames) >> (request.quality / HALVING);
    video + 2 * FRAME_BYTES_PER_PIXEL * pixels + RECORDS * parts.len() as u64
}

#[cfg(test)]
mod tests {
    use animd_protocol::request::Settings;

    use super::*;

    fn request(seconds: f64, quality: u32) -> Request {
        let settings = Settings { seconds: Some(seconds), quality: Some(quality), ..Settings::default() };
        settings.resolve(|| 7).expect("valid settings")
    }

    #[test]
    fn room_is_set_aside_for_several_parts_and_by_quality() {
        assert_eq!((bytes(&request(0.0, 18)), bytes(&request(5.0, 18))), (0, 0));
        let mib = |seconds, quality| bytes(&request(seconds, quality)) >> 20;
        // Two parts of 81 frames of about 400,000 pixels, a quarter of a byte each.
        assert_eq!((mib(10.0, 18), mib(10.0, 1)), (17, 125));
        assert!(mib(60.0, 18) > 5 * mib(10.0, 18));
    }

    #[test]
    fn a_folder_goes_with_its_job_and_what_no_job_owns_is_swept() -> Result<()> {
        let state = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let folders = PartFolders::new(state.path());
        let stray = state.path().join(PARTS).join("stray");
        fs::create_dir_all(&stray).map_err(Error::file("create", &stray))?;
        folders.sweep(&[]);
        assert!(!stray.exists());
        let said = folders.check_room(&request(60.0, 18), u64::MAX >> 1).expect_err("no disk has so much");
        assert!(said.starts_with("60 s are made in 12 parts, which take up to "), "{said}");
        assert_eq!(folders.check_room(&request(5.0, 18), u64::MAX >> 1), Ok(()));
        Ok(())
    }
}
