//! The file's tags, which `ffmpeg` gets as a file in memory: every user of the machine can read a command line.

use std::fs::File;
use std::io::{Seek, Write};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::{Error, Result};

/// Returns a file in memory in ffmpeg's metadata format, with `comment` as its only tag.
pub fn file(comment: &str) -> Result<File> {
    // In some versions of ffmpeg a backslash at the end of a value joins it with the next line, even if it is escaped.
    if comment.contains('\0') || comment.ends_with('\\') {
        return Err(Error::Internal("a video's metadata has a zero byte, or a backslash at its end".into()));
    }
    let text = format!(";FFMETADATA1\ncomment={}\n", escape(comment));
    let write = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create("animd-metadata", MemfdFlags::CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    write().map_err(|e| Error::Output(format!("cannot keep the video's metadata in memory: {e}")))
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
