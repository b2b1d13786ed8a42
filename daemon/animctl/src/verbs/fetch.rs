//! `animctl fetch ID FILE`

use std::fs::{self, File};
use std::os::fd::OwnedFd as StdOwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use animd_common::files::show;
use rustix::fs::{Access, access};
use serde_json::json;
use zbus::OwnedFd;

use super::exit::{Exit, Failure, Result};
use super::{Ctl, job_number, path};

/// Copy a job's video, or a picture of it, to a file.
///
/// Only the job's owner and root can do this.
#[derive(clap::Args)]
#[command(after_help = "Example: animctl fetch 7 cup.mp4\n\nJSON: id, file, bytes")]
pub struct Args {
    /// The job's number
    #[arg(value_parser = job_number)]
    id: u64,
    /// The new file, which must not exist
    #[arg(value_parser = path())]
    file: PathBuf,
    /// Copy one frame of the finished video, a small JPEG
    #[arg(long)]
    thumbnail: bool,
    /// Copy the preview of a running job, a small JPEG
    #[arg(long, conflicts_with = "thumbnail")]
    preview: bool,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    check(&args.file)?;
    let job = ctl.job(args.id).await?;
    let from = match (args.thumbnail, args.preview) {
        (true, _) => job.open_thumbnail().await?,
        (_, true) => job.open_preview().await?,
        _ => job.open_result().await?,
    };
    let bytes = save(from, &args.file)?;
    let file = show(&args.file);
    ctl.tell(&json!({"id": args.id, "file": file, "bytes": bytes}), &file);
    Ok(Exit::Done)
}

/// Returns an error if the file exists, or if its folder takes no files.
pub fn check(file: &Path) -> Result<()> {
    if fs::symlink_metadata(file).is_ok() {
        return Err(Failure::new(format!("`{}` exists already; choose another name", show(file))));
    }
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        let dir = show(dir);
        return Err(Failure::new(format!(
            "there is no folder `{dir}`; make it (`mkdir -p '{dir}'`), or choose another"
        )));
    }
    let write = Access::WRITE_OK | Access::EXEC_OK;
    access(dir, write).map_err(|e| Failure::file("write into", dir)(e.into()))
}

/// Copies what the service opened into a new file, and returns the size in bytes.
pub fn save(from: OwnedFd, file: &Path) -> Result<u64> {
    let mut from = File::from(StdOwnedFd::from(from));
    let failed = |e| Failure::file("write", file)(e);
    let mut copy =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(file).map_err(failed)?;
    let copied = std::io::copy(&mut from, &mut copy).and_then(|bytes| copy.sync_all().map(|()| bytes));
    if copied.is_err() {
        _ = fs::remove_file(file);
    }
    copied.map_err(failed)
}
