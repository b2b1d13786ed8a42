//! The identity of a file, by which a copy made of it knows whether the file is still the same.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The bytes that are read from a file's beginning, where formats have their headers.
const HEAD: u64 = 1 << 20;
/// The number of samples after that, evenly spread up to the file's end, and their size in bytes.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4 << 10;

/// The hash of no bytes at all, which [`fnv1a`] begins with.
pub(crate) const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// What tells whether a file was written or replaced, as far as nobody hides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// The file's size.
    pub bytes: u64,
    /// The time of the last change of the content, in nanoseconds since 1970.
    modified_ns: i64,
    inode: u64,
}

impl Stamp {
    /// Returns the stamp of a file by what the file system says of it.
    pub fn of(found: &Metadata) -> Self {
        let modified_ns = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
        Self { bytes: found.len(), modified_ns, inode: found.ino() }
    }
}

/// What tells a file from another one: a file that was replaced, or written to, has another identity, also where size and
/// time were kept.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    name: String,
    #[serde(flatten)]
    stamp: Stamp,
    /// A hash of the header and of samples of the content, in hexadecimal.
    content: String,
}

impl Identity {
    /// Returns the hash of the content, in hexadecimal.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Returns the identity of a file; at most 1.3 MB of it are read.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read.
    pub fn of(path: &Path) -> Result<Self> {
        let read = || Error::file("read", path);
        let file = File::open(path).map_err(read())?;
        let meta = file.metadata().map_err(read())?;
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            stamp: Stamp::of(&meta),
            content: content(&file, &meta).map_err(read())?,
        })
    }
}

/// Returns the hash of a file's header and samples.
fn content(file: &File, meta: &Metadata) -> io::Result<String> {
    let len = meta.len();
    let mut buffer = vec![0; HEAD.min(len) as usize];
    file.read_exact_at(&mut buffer, 0)?;
    let mut hash = fnv1a(FNV_BASIS, &buffer);
    let rest = len.saturating_sub(HEAD);
    let last = rest.saturating_sub(SAMPLE);
    for sample in 0..SAMPLES {
        let at = HEAD + (u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1)) as u64;
        buffer.resize(SAMPLE.min(len.saturating_sub(at)) as usize, 0);
        file.read_exact_at(&mut buffer, at.min(len))?;
        hash = fnv1a(hash, &buffer);
    }
    Ok(format!("{hash:016x}"))
}

/// Continues a hash (FNV-1a with 64 bits), which is against accidents and not against anybody.
pub(crate) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn every_change_makes_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // Shorter than a header, one longer, and with samples that overlap and that do not.
        for len in [0, 10, HEAD, HEAD + 1, HEAD + SAMPLE, HEAD + 3 * SAMPLES * SAMPLE] {
            std::fs::write(&path, vec![1; len as usize]).unwrap();
            let before = Identity::of(&path).unwrap();
            assert_eq!(Identity::of(&path).unwrap(), before);
            let time: SystemTime = path.metadata().unwrap().modified().unwrap();
            for at in [0, HEAD / 2, HEAD, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[2], at).unwrap();
                file.set_modified(time).unwrap();
                assert_ne!(Identity::of(&path).unwrap(), before, "{len} bytes, another at {at}");
                file.write_all_at(&[1], at).unwrap();
                file.set_modified(time).unwrap();
                assert_eq!(Identity::of(&path).unwrap(), before);
            }
            // Another file in the same place, with the same content and time.
            let other = dir.path().join("b");
            std::fs::write(&other, vec![1; len as usize]).unwrap();
            File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
            std::fs::rename(&other, &path).unwrap();
            assert_ne!(Identity::of(&path).unwrap(), before);
        }
    }
}
