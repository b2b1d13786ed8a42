//! The file's tags, which `ffmpeg` gets as a file in memory or through a pipe: every user of the machine can read a command line.

use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Seek, Write, pipe};
use std::os::fd::OwnedFd;
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::fcntl_getpipe_size;

use crate::{Error, Result};

/// Returns a file in memory in ffmpeg's metadata format, with `comment` as its only tag.
pub fn file(comment: &str) -> Result<File> {
    let text = text(comment)?;
    let write = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create("animd-metadata", MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    write().map_err(|e| Error::Output(format!("cannot keep the video's metadata in memory: {e}")))
}

/// The end of a pipe at which the metadata is written, once it is known. `ffmpeg` waits for it at the other end.
pub struct Awaited(PipeWriter);

/// Returns a pipe that stands for the file of [`file`] while its comment is not known: what `ffmpeg` reads, and what the comment
/// is written to.
pub fn awaited() -> Result<(File, Awaited)> {
    let (reader, writer) = pipe().map_err(|e| not_sent(&e))?;
    Ok((File::from(OwnedFd::from(reader)), Awaited(writer)))
}

impl Awaited {
    /// Writes the file with `comment` as its only tag; waits for nothing. An `ffmpeg` that has ended is no error: it is known by
    /// its exit status.
    pub fn write(self, comment: &str) -> Result<()> {
        let Self(mut pipe) = self;
        let text = text(comment)?;
        // Linux gives a pipe 64 KiB, and 4 or 8 to a user who has many. What has no room there is written by a thread, because
        // ffmpeg may wait for the first frame before it reads this.
        if fcntl_getpipe_size(&pipe).is_ok_and(|room| room >= text.len()) {
            return match pipe.write_all(text.as_bytes()) {
                Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(not_sent(&e)),
                _ => Ok(()),
            };
        }
        // A pipe knows no other error than that it is broken.
        let write = move || _ = pipe.write_all(text.as_bytes());
        thread::Builder::new().name("video-metadata".into()).spawn(write).map_err(|e| not_sent(&e))?;
        Ok(())
    }
}

fn not_sent(e: &std::io::Error) -> Error {
    Error::Output(format!("cannot hand the video's metadata to the encoder: {e}"))
}

/// Returns the content of a metadata file.
fn text(comment: &str) -> Result<String> {
    // In some versions of ffmpeg a backslash at the end of a value joins it with the next line, even if it is escaped.
    if comment.contains('\0') || comment.ends_with('\\') {
        return Err(Error::Internal("a video's metadata has a zero byte, or a backslash at its end".into()));
    }
    Ok(format!(";FFMETADATA1\ncomment={}\n", escape(comment)))
}

/// Escapes each character that would end or split a value with a backslash.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '=' | ';' | '#' | '\\' | '\n' | '\r') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_ends_a_value_is_escaped() -> Result<()> {
        let mut text = String::new();
        file("a=b;c#d\\e\nf\r雾")?.read_to_string(&mut text).expect("a file in memory");
        assert_eq!(text, ";FFMETADATA1\ncomment=a\\=b\\;c\\#d\\\\e\\\nf\\\r雾\n");
        Ok(())
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        assert!(file("a\0b").is_err());
        assert!(file("a\\").is_err());
    }
}
