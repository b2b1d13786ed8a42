//! Writes frames as an H.264 file: [`VideoWriter`] feeds the `ffmpeg` program, [`place`] renames the finished file.
//!
//! `ffmpeg` with libx264 is a dependency of the package: no encoder in Rust comes near x264's quality, and a crash in a
//! separate program does not end the job.

mod ffmpeg;
mod join;
mod metadata;
mod mp4;
mod place;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::process::{Signal, pidfd_send_signal};

use crate::{Error, Result};

use metadata::Awaited;

pub use join::join_parts;
pub use place::{part_path, place};

/// The bytes of frames that can wait for the encoder; at least [`MIN_WAITING`] frames always can.
const WAITING_BYTES: usize = 64 << 20;
const MIN_WAITING: usize = 4;

/// The properties of a video file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoOptions {
    /// The width in pixels, even.
    pub width: u32,
    /// The height in pixels, even.
    pub height: u32,
    /// The exact frames per second.
    pub fps: u32,
    /// x264's constant rate factor, 0 to 51. Browsers and hardware decoders do not play the profile that 0 selects.
    pub quality: u32,
    /// How the video was made, as JSON: the file's `comment`. It must not contain zero bytes or end with a backslash;
    /// JSON does neither. Without it, [`VideoWriter::describe`] gives it before the first frame.
    pub metadata: Option<String>,
}

impl VideoOptions {
    fn check(&self) -> Result<()> {
        let Self { width, height, fps, quality, .. } = *self;
        if width == 0 || height == 0 || !width.is_multiple_of(2) || !height.is_multiple_of(2) {
            return Err(Error::Internal(format!("a video cannot be {width}x{height}: both must be even")));
        }
        if fps == 0 || quality > 51 {
            return Err(Error::Internal(format!(
                "a video cannot have {fps} frames a second and quality {quality}"
            )));
        }
        Ok(())
    }

    /// Returns the bytes of one frame.
    fn frame_bytes(&self) -> usize {
        3 * self.width as usize * self.height as usize
    }
}

/// Checks that this machine can encode videos, before hours are spent on one.
///
/// # Errors
/// `Output` if `ffmpeg` is missing or lacks libx264.
pub fn check_encoder() -> Result<()> {
    ffmpeg::check(OsStr::new(ffmpeg::PROGRAM))
}

/// Writes one video: H.264 in MP4, yuv420p with bt709 colours in limited range, constant frame rate, index in front.
///
/// A process of its own encodes the frames, and a thread of its own feeds it, while the caller makes the next frames. A
/// writer that is dropped before [`VideoWriter::finish`] leaves nothing behind.
pub struct VideoWriter {
    path: PathBuf,
    file: File,
    frame_bytes: usize,
    frames: u64,
    /// A descriptor of the encoder's process, which ends it if need be.
    process: OwnedFd,
    /// Where the metadata goes; `None` once the encoder has it.
    metadata: Option<Awaited>,
    /// The feeding thread; `None` once the encoder has all frames or has failed.
    feed: Option<Feed>,
    finished: bool,
}

/// The thread that feeds the encoder, and the channel to it.
struct Feed {
    frames: SyncSender<Vec<u8>>,
    thread: JoinHandle<Result<()>>,
}

impl VideoWriter {
    /// Starts the encoder. The file `part` is replaced if it exists.
    ///
    /// # Errors
    /// `File` if `part` cannot be created, `Output` if the encoder cannot be started.
    pub fn create(part: &Path, options: &VideoOptions) -> Result<Self> {
        Self::with_program(OsStr::new(ffmpeg::PROGRAM), part, options)
    }

    fn with_program(program: &OsStr, part: &Path, options: &VideoOptions) -> Result<Self> {
        options.check()?;
        let (metadata, awaited) = match &options.metadata {
            Some(known) => (metadata::file(known)?, None),
            None => metadata::awaited().map(|(read, write)| (read, Some(write)))?,
        };
        // The file is never written through an existing file or link: other users may be able to write to the folder.
        match std::fs::remove_file(part) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("replace", part)(e));
            }
            _ => {}
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(part)
            .map_err(Error::file("create", part))?;
        match Self::start(program, part, options, &file, metadata) {
            Ok((process, feed)) => Ok(Self {
                path: part.to_owned(),
                file,
                frame_bytes: options.frame_bytes(),
                frames: 0,
                process,
                metadata: awaited,
                feed: Some(feed),
                finished: false,
            }),
            Err(e) => {
                // Only the first error is reported.
                let _ = std::fs::remove_file(part);
                Err(e)
            }
        }
    }

    fn start(
        program: &OsStr,
        part: &Path,
        options: &VideoOptions,
        file: &File,
        metadata: File,
    ) -> Result<(OwnedFd, Feed)> {
        let [output, written] = [file.try_clone(), file.try_clone()];
        let (output, written) =
            (output.map_err(Error::file("open", part))?, written.map_err(Error::file("open", part))?);
        let command = ffmpeg::command(program, options, output, metadata);
        let (frames, waiting) = sync_channel((WAITING_BYTES / options.frame_bytes()).max(MIN_WAITING));
        let (started, start) = sync_channel(1);
        let part = part.to_owned();
        let thread = std::thread::Builder::new()
            .name("video-writer".into())
            .spawn(move || {
                // The encoder is started here because it is killed when the thread that started it ends.
                let (encoder, process) = ffmpeg::Encoder::start(command)?;
                // Sending fails only if the caller is gone, and then the frames end, too.
                let _ = started.send(process);
                encoder.feed(waiting, &written, &part)
            })
            .map_err(|e| Error::Output(format!("cannot start a thread for the video encoder: {e}")))?;
        match start.recv() {
            Ok(process) => Ok((process, Feed { frames, thread })),
            Err(_) => Err(join(thread).err().unwrap_or_else(no_reason)),
        }
    }

    /// Gives the encoder the metadata that its options did not have, as [`VideoOptions::metadata`] would. The encoder is started
    /// without it, so that it is ready when the first frame is.
    ///
    /// # Errors
    /// `Output` if the pipe to the encoder fails; `Internal` for what cannot be metadata, or if the encoder has some.
    pub fn describe(&mut self, metadata: &str) -> Result<()> {
        match self.metadata.take() {
            Some(awaited) => awaited.write(metadata),
            None => Err(Error::Internal("a video has its metadata already".into())),
        }
    }

    /// Queues frames, `[n, height, width, 3]` in RGB, 8 bits each. Waits only if the encoder is far behind.
    ///
    /// # Errors
    /// `Output` if the encoder has failed; no more frames can be written then. `Internal` if the encoder waits for its metadata.
    pub fn write(&mut self, frames: &[u8]) -> Result<()> {
        if !frames.len().is_multiple_of(self.frame_bytes) {
            return Err(Error::Internal(format!("{} bytes are no whole frames", frames.len())));
        }
        if self.metadata.is_some() {
            return Err(Error::Internal("a video's frames come before its metadata".into()));
        }
        for frame in frames.chunks_exact(self.frame_bytes) {
            let feed = self.feed.as_ref().ok_or_else(no_reason)?;
            if feed.frames.send(frame.to_vec()).is_err() {
                return Err(self.end_feed().err().unwrap_or_else(no_reason));
            }
            self.frames += 1;
        }
        Ok(())
    }

    /// Waits for the encoder, checks the file and syncs it. Returns the file's bytes. After an error the file is
    /// removed.
    ///
    /// # Errors
    /// `Output` if the encoder failed; `Internal` if there were no frames; `File` if the disk failed.
    pub fn finish(mut self) -> Result<u64> {
        if self.frames == 0 {
            return Err(Error::Internal("a video without frames".into()));
        }
        self.end_feed()?;
        self.file.sync_all().map_err(Error::file("sync", &self.path))?;
        let bytes = self.file.metadata().map_err(Error::file("read", &self.path))?.len();
        self.finished = true;
        Ok(bytes)
    }

    /// Tells the encoder that there are no more frames, and waits for its end.
    fn end_feed(&mut self) -> Result<()> {
        let feed = self.feed.take().ok_or_else(no_reason)?;
        drop(feed.frames);
        join(feed.thread)
    }
}

impl Drop for VideoWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if self.feed.is_some() {
            // The encoder is killed first, or else it would finish the file. If it has just ended by itself, the kill
            // fails harmlessly.
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
            let _ = self.end_feed();
        }
        if let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove `{}`: {e}", self.path.display());
        }
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::Internal("the video encoder's thread panicked".into())))
}

fn no_reason() -> Error {
    Error::Output("the video encoder has ended before the video did".into())
}

#[cfg(test)]
mod tests;
