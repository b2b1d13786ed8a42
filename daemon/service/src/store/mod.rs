//! What is kept on disk: the ledger, the spooled pictures, the pictures of videos, the videos that callers fetch, and
//! which folders are watched.

pub mod ledger;
pub mod parts;
pub mod pictures;
pub mod results;
pub mod spool;
pub mod watches;

use std::fs::File;
use std::io;
use std::path::Path;

use animd_common::files::open_regular;
use animd_common::tasks::{blocking, stopped};
use animd_common::watch::root::Dir;

use tokio::sync::watch;

use crate::error::Result;

pub use ledger::Ledger;
pub use parts::PartFolders;
pub use pictures::{Picture, PictureFiles};
pub use results::Results;
pub use spool::{Spool, Spooled};
pub use watches::Watches;

/// Opens a finished video for reading. Its folder may have another use by now. Blocks.
pub fn open_video(results: &Results, watches: &Watches, path: &Path) -> io::Result<File> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let dir = match dir == results.dir() {
        true => Dir::own(dir)?,
        false => Dir::open(&watches.left(dir), Path::new(""))?,
    };
    Ok(open_regular(&dir.at(path))?.0)
}

/// Removes a spooled picture if no open or newly ended job needs it. Blocks.
pub fn release_picture(ledger: &Ledger, spool: &Spool, sha256: [u8; 32]) -> Result<()> {
    let needed = |since_us| ledger.call_blocking(move |db| db.needs_image(&sha256, since_us));
    if spool.release(sha256, needed)? {
        ledger.call_blocking(move |db| db.picture_gone(&sha256))?;
    }
    Ok(())
}

/// Releases the pictures that nobody holds any more and no job needs: their submissions were refused, came to nothing, or
/// took so long that their callers were told to go. Ends with the service.
pub async fn release_unheld(ledger: Ledger, spool: Spool, mut stop: watch::Receiver<bool>) {
    let mut unheld = spool.unheld();
    loop {
        let sha256 = tokio::select! {
            Some(sha256) = unheld.recv() => sha256,
            () = stopped(&mut stop) => return,
        };
        let (ledger, spool) = (ledger.clone(), spool.clone());
        if let Err(e) = blocking(move || release_picture(&ledger, &spool, sha256)).await {
            tracing::warn!("a picture stays in the spool until the next clean-up: {e}");
        }
    }
}

/// Removes the spooled pictures of a job that no open or newly ended job needs: its first and its last one. Blocks.
pub fn release_pictures(ledger: &Ledger, spool: &Spool, job: &ledger::Job) -> Result<()> {
    for sha256 in [job.image_sha256, job.last_sha256].into_iter().flatten() {
        release_picture(ledger, spool, sha256)?;
    }
    Ok(())
}

/// Removes every spooled picture that no job needs any more, and what an interrupted run left. Blocks.
pub fn sweep_spool(ledger: &Ledger, spool: &Spool) -> Result<()> {
    let mut left = Vec::new();
    for sha256 in spool.sweep()? {
        release_picture(ledger, spool, sha256)?;
        if let Ok(meta) = std::fs::symlink_metadata(spool.path(&sha256)) {
            left.push((sha256, meta.len()));
        }
    }
    ledger.call_blocking(move |db| db.pictures_are(&left))
}
