//! The `ffmpeg` process: its command line, its lifetime, and the meaning of its last messages.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};

use super::{VideoOptions, mp4};
use crate::{Error, Result};

/// The program, which is found along `PATH`.
pub const PROGRAM: &str = "ffmpeg";

/// x264's preset, which trades time for size. A pan over a photograph with a little noise, 832x480, 81 frames, crf 18, took,
/// in seconds of one core, kB, PSNR in dB and SSIM: veryfast 0.40, 611, 45.1, 0.9842; faster 0.71, 722, 45.7, 0.9859; fast
/// 0.98, 810, 46.0, 0.9868; medium 1.14, 787, 46.1, 0.9864. On 16 cores that are given the frames within 0.56 s the file
/// ends 0.05, 0.10, 0.16 and 0.17 s after the last one; of a video of noise, 14 MB, 0.12, 0.27, 0.91 and 1.1 s after it.
const PRESET: &str = "faster";

/// The most seconds between key frames. They make the video seekable and cost 25 % more bytes; x264 alone would use one
/// key frame for the whole video.
const KEY_FRAME_SECONDS: u32 = 2;

/// The size of the pipe to the encoder, in bytes; the kernel's default holds a twentieth of a frame.
const PIPE_BYTES: usize = 1 << 20;

/// The number of bytes of the encoder's last messages that are read.
const STDERR_BYTES: i64 = 4096;

/// Returns the command that reads frames from its standard input and writes to `output`, an empty regular file.
pub fn command(program: &OsStr, options: &VideoOptions, output: File, metadata: File) -> Command {
    let VideoOptions { width, height, fps, quality, .. } = options;
    // Both files are given by number: every user of the machine could read a path on the command line.
    let mut command = Command::new(program);
    command
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-nostats", "-y"])
        // Without this option ffmpeg 5 reports success for a video that it could not write to the disk.
        .arg("-xerror")
        .args(["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", &format!("{width}x{height}")])
        .args(["-framerate", &fps.to_string(), "-i", "pipe:0"])
        .args(["-f", "ffmetadata", "-i", &inherited(&metadata)])
        .args(["-map", "0:v:0", "-map_metadata", "1"])
        // The conversion to bt709 and the tags that say so are separate options; players believe the tags.
        .args([
            "-vf",
            "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int,\
             format=yuv420p",
        ])
        .args(["-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"])
        .args(["-c:v", "libx264", "-preset", PRESET, "-crf", &quality.to_string()])
        .args(["-g", &(KEY_FRAME_SECONDS * fps).to_string()])
        .args(["-movflags", "+faststart", "-f", "mp4", &inherited(&output)])
        .env("AV_LOG_FORCE_NOCOLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    inherit(&mut command, vec![output, metadata]);
    command
}

/// Returns how ffmpeg names a file that it inherits.
pub fn inherited(file: &File) -> String {
    format!("file:/proc/self/fd/{}", file.as_raw_fd())
}

/// Gives these files to the process of a command, and ends it with the thread that starts it.
pub fn inherit(command: &mut Command, files: Vec<File>) {
    command
        // With this variable ffmpeg would write a report, prompts included, into the working folder.
        .env_remove("FFREPORT")
        // Ctrl-C in a terminal must not reach the encoder: animd ends it in good order.
        .process_group(0);
    let parent = getpid();
    let prepare = move || {
        for file in &files {
            fcntl_setfd(file, FdFlags::empty())?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent can die before the child asks for the signal.
        if getppid() == Some(parent) { Ok(()) } else { Err(ErrorKind::Other.into()) }
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(prepare) };
}

/// Checks that `ffmpeg` is installed and knows libx264.
pub fn check(program: &OsStr) -> Result<()> {
    let output = Command::new(program)
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-h", "encoder=libx264"])
        .env_remove("FFREPORT")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| not_started(program, &e))?;
    if output.stdout.starts_with(b"Encoder libx264") {
        return Ok(());
    }
    Err(Error::Output(without_x264(program)))
}

/// A running encoder.
pub struct Encoder {
    child: Child,
    stdin: ChildStdin,
    stderr: File,
    program: String,
}

impl Encoder {
    /// Starts the encoder; the calling thread must outlive it. The returned descriptor refers to the process and can
    /// end it.
    pub fn start(mut command: Command) -> Result<(Self, OwnedFd)> {
        let program = command.get_program().to_owned();
        let failed = |e| not_started(&program, &e);
        // A file, unlike a pipe, needs no reader that empties it.
        let stderr =
            File::from(memfd_create("animd-ffmpeg", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?);
        command.stderr(stderr.try_clone().map_err(failed)?);
        let mut child = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        match (pidfd_open(pid, PidfdFlags::empty()), child.stdin.take()) {
            (Ok(process), Some(stdin)) => {
                // A larger pipe only makes it faster.
                let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_BYTES);
                Ok((Self { child, stdin, stderr, program: program.display().to_string() }, process))
            }
            (process, _) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(process.err().map_or_else(|| ErrorKind::BrokenPipe.into(), Into::into)))
            }
        }
    }

    /// Sends all `frames` to the encoder, waits for its end, and checks what it wrote to `file`, which is `part`.
    pub fn feed(mut self, frames: Receiver<Vec<u8>>, file: &File, part: &Path) -> Result<()> {
        let mut written = Ok(());
        for frame in &frames {
            written = self.stdin.write_all(&frame);
            if written.is_err() {
                break;
            }
        }
        // A sender that still sends must learn that nobody receives.
        drop(frames);
        drop(self.stdin);
        let status = self
            .child
            .wait()
            .map_err(|e| Error::Output(format!("cannot wait for `{}`: {e}", self.program)))?;
        match written {
            Ok(()) => check_result(&self.program, status, file, self.stderr, part),
            Err(_) => Err(Error::Output(last_words(&self.program, status, &tail(&mut self.stderr), part))),
        }
    }
}

/// Checks what a process that has ended with `status` wrote to `file`, which is `part`.
pub fn check_result(
    program: &str,
    status: ExitStatus,
    file: &File,
    mut stderr: File,
    part: &Path,
) -> Result<()> {
    if status.success() && mp4::is_whole(file).map_err(Error::file("read", part))? {
        return Ok(());
    }
    Err(Error::Output(last_words(program, status, &tail(&mut stderr), part)))
}

/// Returns the end of the encoder's messages.
fn tail(stderr: &mut File) -> String {
    let mut bytes = Vec::new();
    // Without its last messages, the encoder's exit status still says something.
    let _ = stderr
        .seek(SeekFrom::End(-STDERR_BYTES))
        .or_else(|_| stderr.rewind().map(|()| 0))
        .and_then(|_| stderr.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the error sentence for an encoder that failed.
fn last_words(program: &str, status: ExitStatus, stderr: &str, part: &Path) -> String {
    let part = part.display();
    if stderr.contains("Unknown encoder 'libx264'") {
        return without_x264(OsStr::new(program));
    }
    if stderr.contains("No space left on device") {
        return format!("there is no space left on the disk for `{part}`; free some and try again");
    }
    let end = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(0)) => "left no whole video".to_owned(),
        (None, code) => format!("failed with exit status {}", code.unwrap_or_default()),
    };
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = lines[lines.len().saturating_sub(3)..].join("; ");
    let said = if said.is_empty() { "it said nothing".to_owned() } else { format!("it said: {said}") };
    format!("`{program}` {end} while it wrote `{part}`; {said}")
}

/// Returns the error sentence for a program that cannot be started.
pub fn not_started(program: &OsStr, e: &std::io::Error) -> Error {
    let program = program.display();
    Error::Output(match e.kind() {
        ErrorKind::NotFound => {
            format!(
                "the program `{program}` is needed to encode videos and is not installed; install the package `ffmpeg`"
            )
        }
        _ => format!("cannot start `{program}`, which encodes videos: {e}"),
    })
}

fn without_x264(program: &OsStr) -> String {
    let program = program.display();
    format!(
        "`{program}` has no encoder `libx264`; install a build that has it, such as Debian's package `ffmpeg`"
    )
}
