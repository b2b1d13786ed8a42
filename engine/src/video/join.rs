//! Joins the finished parts of a film as they are: nothing is encoded again.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::{ffmpeg, metadata};
use crate::progress::Observer;
use crate::{Error, Result};

/// How often a join that runs asks whether it should stop.
const PAUSE: Duration = Duration::from_millis(20);

/// Joins videos of one size, frame rate and encoder to `part`, complete and synced, with `comment` as its metadata. An
/// existing file is replaced, and an error leaves none. Returns the file's bytes.
///
/// # Errors
/// `Output` if `ffmpeg` fails, `Canceled`, and `File` if the disk fails.
pub fn join_parts(videos: &[PathBuf], part: &Path, comment: &str, observer: &dyn Observer) -> Result<u64> {
    match std::fs::remove_file(part) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::file("replace", part)(e)),
        _ => {}
    }
    let output = File::options().read(true).write(true).create_new(true).open(part);
    let output = output.map_err(Error::file("create", part))?;
    write(videos, &output, part, comment, observer).inspect_err(|_| {
        // Only the first error is reported.
        let _ = std::fs::remove_file(part);
    })
}

fn write(
    videos: &[PathBuf],
    output: &File,
    part: &Path,
    comment: &str,
    observer: &dyn Observer,
) -> Result<u64> {
    let copy = |file: &File| file.try_clone().map_err(Error::file("open", part));
    let inputs = videos.iter().map(|path| File::open(path).map_err(Error::file("open", path)));
    let inputs = inputs.collect::<Result<Vec<File>>>()?;
    // All files are given by number: every user of the machine could read a path on the command line.
    let entries: Vec<String> =
        inputs.iter().map(|input| format!("file '{}'\n", ffmpeg::inherited(input))).collect();
    let list = in_memory("animd-parts", &entries.concat())?;
    let tags = metadata::file(comment)?;
    let (stderr, target) = (in_memory("animd-join", "")?, copy(output)?);
    let mut command = Command::new(ffmpeg::PROGRAM);
    command
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-nostats", "-y", "-xerror"])
        .args(["-f", "concat", "-safe", "0", "-i", &ffmpeg::inherited(&list)])
        .args(["-f", "ffmetadata", "-i", &ffmpeg::inherited(&tags)])
        .args(["-map", "0:v:0", "-map_metadata", "1", "-c", "copy"])
        .args(["-movflags", "+faststart", "-f", "mp4", &ffmpeg::inherited(&target)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(copy(&stderr)?);
    let mut files = inputs;
    files.extend([list, tags, target]);
    ffmpeg::inherit(&mut command, files);
    let child = command.spawn().map_err(|e| ffmpeg::not_started(OsStr::new(ffmpeg::PROGRAM), &e))?;
    // The list and the inputs are open in the child.
    drop(command);
    let status = wait(child, observer)?;
    ffmpeg::check_result(ffmpeg::PROGRAM, status, output, stderr, part)?;
    output.sync_all().map_err(Error::file("sync", part))?;
    Ok(output.metadata().map_err(Error::file("read", part))?.len())
}

/// Waits for the end of a process, which is killed if the work should stop.
fn wait(mut child: Child, observer: &dyn Observer) -> Result<ExitStatus> {
    let failed = |e| Error::Output(format!("cannot wait for `{}`: {e}", ffmpeg::PROGRAM));
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if let Err(stop) = observer.check() {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            let _ = child.wait();
            return Err(stop);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Returns a file in memory with a text.
fn in_memory(name: &str, text: &str) -> Result<File> {
    let make = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    make().map_err(|e| Error::Output(format!("cannot keep a list of parts in memory: {e}")))
}
