//! File operations that stay correct through a power cut or beside a second program: synced copies, renames that
//! replace nothing, names of any bytes.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::text::turns_text;

/// The longest file name that Linux file systems take, in bytes.
pub const NAME_MAX: usize = 255;

/// Returns a path or name for messages: control characters, those that turn the text's direction, and bytes that are not
/// UTF-8 are escaped, so that it stays one line in its own order.
pub fn show(path: impl AsRef<OsStr>) -> String {
    let mut out = String::new();
    for chunk in path.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || turns_text(c) { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Makes what was renamed or created in `dir` survive a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some network and FUSE file systems cannot sync a folder.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        synced => synced,
    }
}

/// Opens a regular file for reading; a symbolic link, a device or a pipe is an error of kind `InvalidInput`.
pub fn open_regular(path: &Path) -> io::Result<(File, fs::Metadata)> {
    // O_NONBLOCK: opening a pipe without a writer must not block before fstat says what the file is.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| {
        if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { not_regular("a symbolic link") } else { e }
    })?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(not_regular(kind(&meta)));
    }
    Ok((file, meta))
}

/// Returns what a file is, in words.
pub fn kind(meta: &fs::Metadata) -> &'static str {
    let t = meta.file_type();
    match () {
        () if t.is_file() => "a regular file",
        () if t.is_dir() => "a folder",
        () if t.is_symlink() => "a symbolic link",
        () if t.is_fifo() => "a pipe",
        () if t.is_socket() => "a socket",
        () => "a device",
    }
}

fn not_regular(kind: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, not a regular file"))
}

/// Renames without replacing, also across file systems: an existing `to` is an error of kind `AlreadyExists`.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rename_within(from, to) {
        Err(e) if e.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
            copy_new(from, to)?;
            fs::remove_file(from)
        }
        renamed => renamed,
    }
}

/// Copies a regular file and syncs the copy, replacing nothing: an existing `to` is an error of kind `AlreadyExists`.
pub fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let part = to.with_file_name(format!(".animd-{}.part", uuid::Uuid::new_v4()));
    let (mut source, meta) = open_regular(from)?;
    let copied = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(meta.mode() & 0o777)
        .open(&part)
        .and_then(|mut copy| io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all()))
        .and_then(|()| rename_within(&part, to));
    if copied.is_err() {
        _ = fs::remove_file(&part);
    }
    copied
}

/// Does what [`rename_new`] does, within one file system.
fn rename_within(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS and some FUSE file systems do not support the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_by_link(from, to),
        renamed => renamed.map_err(Into::into),
    }
}

/// Renames by a second name. A crash between link and unlink leaves both names: the next attempt finds that `to` is the
/// same file.
fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::link(from, to) {
        Ok(()) => fs::remove_file(from),
        // FAT, `rclone mount` and other FUSE file systems have no hard links.
        Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::MLINK) => {
            rename_over_claim(from, to)
        }
        Err(e) => Err(e.into()),
    }
}

/// Renames over an empty file that claims the name: whoever makes a file of that name meanwhile comes too late. A crash
/// between the two leaves the empty file, which the next attempt takes for its own.
fn rename_over_claim(from: &Path, to: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).create_new(true).open(to) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_empty_file(to) => {}
        Err(e) => return Err(e),
    }
    let renamed = fs::rename(from, to);
    if renamed.is_err() && is_empty_file(to) {
        _ = fs::remove_file(to);
    }
    renamed
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)
}

/// Writes a whole file under a temporary name, syncs it and puts it in place of whatever is there.
pub fn write_atomic(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let part = dir.join(format!(".animd-{}.part", uuid::Uuid::new_v4()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        _ = fs::remove_file(&part);
    }
    written?;
    sync_dir(dir)
}

/// Opens or makes a file of the program's own for writing, readable for nobody else, and keeps its contents. A link, a
/// pipe or a device in its place is an error of kind `InvalidInput`, and nothing waits for its other end.
pub fn open_private(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let open = || {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(path)
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => Err(not_regular(kind(&meta))),
        _ => {
            let file = open()?;
            let meta = file.metadata()?;
            if meta.is_file() { Ok(file) } else { Err(not_regular(kind(&meta))) }
        }
    }
}

/// Returns how many bytes this user can still write on the disk of `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Reads a small regular file; more than `limit` bytes is an error of kind `FileTooLarge`.
pub fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_limited(open_regular(path)?.0, limit)
}

/// Reads the rest of an open file; more than `limit` bytes is an error of kind `FileTooLarge`.
pub fn read_limited(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Returns the SHA-256 of everything read from `from`, and passes each piece to `each`.
pub fn hash(mut from: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(n) => {
                hash.update(&buffer[..n]);
                each(&buffer[..n])?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Returns `stem` + `-n` (for `n` of 2 or more) + `tail`, with the stem cut so that the name fits.
pub fn numbered(stem: &OsStr, n: u32, tail: &str) -> OsString {
    let tail = if n < 2 { tail.to_owned() } else { format!("-{n}{tail}") };
    let mut name = stem.as_bytes().to_vec();
    let mut keep = name.len().min(NAME_MAX.saturating_sub(tail.len()));
    // Do not cut through a character.
    while keep > 0 && keep < name.len() && name[keep] & 0xc0 == 0x80 {
        keep -= 1;
    }
    name.truncate(keep);
    name.extend_from_slice(tail.as_bytes());
    OsString::from_vec(name)
}

/// Returns a name split before its last dot: (`photo`, `.png`). Without a dot, or with a first one only, the tail is
/// empty.
pub fn split_name(name: &OsStr) -> (&OsStr, &OsStr) {
    let bytes = name.as_bytes();
    match bytes.iter().rposition(|&b| b == b'.') {
        Some(at) if at > 0 => (OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at..])),
        _ => (name, OsStr::new("")),
    }
}

/// The identity of one state of a file: it changes when the file is replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device's number.
    pub dev: i64,
    /// The inode's number.
    pub ino: i64,
    /// When the contents last changed, in nanoseconds since the epoch.
    pub mtime_ns: i64,
}

impl Identity {
    /// Returns the identity of a file from its metadata.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            dev: meta.dev() as i64,
            ino: meta.ino() as i64,
            mtime_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        }
    }
}

/// Returns when a file was last changed, moved or written, in microseconds since the epoch.
pub fn changed_us(meta: &fs::Metadata) -> i64 {
    meta.ctime().saturating_mul(1_000_000).saturating_add(meta.ctime_nsec() / 1000)
}

/// Returns a path from the bytes that the ledger keeps.
pub fn path_from(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Returns a name for the video of a picture: `STEM-SEED.mp4`, or `STEM-SEED-N.mp4` for `n` of 2 or more.
pub fn output_name(picture: &OsStr, seed: u64, n: u32) -> OsString {
    // The seed is part of the tail, so that it stays when the stem is cut; a number goes before `.mp4`.
    let tail = if n < 2 { format!("-{seed}.mp4") } else { format!("-{seed}-{n}.mp4") };
    numbered(split_name(picture).0, 1, &tail)
}

/// Returns bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_in_its_own_order() {
        assert_eq!(show("a\u{202e}gnp.exe"), "a\\u{202e}gnp.exe");
        assert_eq!(show("שלום \u{200f}é\n"), "שלום \u{200f}é\\n");
    }

    #[test]
    fn names_are_shown_on_one_line() {
        assert_eq!(show(OsStr::from_bytes(b"a\nb\xff\x1b.png")), "a\\nb\\xff\\u{1b}.png");
        assert_eq!(show("größe.png"), "größe.png");
    }

    #[test]
    fn numbers_keep_names_within_the_limit() {
        assert_eq!(numbered(OsStr::new("photo"), 1, "-7.mp4"), "photo-7.mp4");
        assert_eq!(numbered(OsStr::new("photo"), 2, ".png"), "photo-2.png");
        let long = "é".repeat(127);
        let name = numbered(OsStr::new(&long), 12, ".mp4");
        assert!(name.len() <= NAME_MAX && name.to_str().is_some_and(|n| n.ends_with("é-12.mp4")));
    }

    #[test]
    fn the_tail_is_what_follows_the_last_dot() {
        assert_eq!(split_name(OsStr::new("a.b.png")), (OsStr::new("a.b"), OsStr::new(".png")));
        assert_eq!(split_name(OsStr::new("plain")), (OsStr::new("plain"), OsStr::new("")));
        assert_eq!(split_name(OsStr::new(".hidden")), (OsStr::new(".hidden"), OsStr::new("")));
    }

    #[test]
    fn a_rename_replaces_nothing() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a")?;
        fs::write(&b, "b")?;
        assert_eq!(rename_new(&a, &b).map_err(|e| e.kind()), Err(io::ErrorKind::AlreadyExists));
        assert_eq!(fs::read(&b)?, b"b");
        Ok(())
    }

    #[test]
    fn a_name_is_claimed_where_a_file_system_has_no_links() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&a, "a")?;
        fs::write(&b, "b")?;
        assert_eq!(rename_over_claim(&a, &b).map_err(|e| e.kind()), Err(io::ErrorKind::AlreadyExists));
        assert_eq!((fs::read(&a)?, fs::read(&b)?), (b"a".to_vec(), b"b".to_vec()));
        // What an attempt left that was cut short after the claim.
        fs::write(&c, "")?;
        rename_over_claim(&a, &c)?;
        assert_eq!(fs::read(&c)?, b"a");
        // A claim whose rename fails does not stay.
        assert!(rename_over_claim(&a, &dir.path().join("d")).is_err());
        assert!(!a.exists() && !dir.path().join("d").exists());
        Ok(())
    }

    #[test]
    fn links_and_pipes_are_no_regular_files() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link)?;
        assert!(open_regular(&link).is_err_and(|e| e.to_string().contains("symbolic link")));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
        assert!(open_regular(&pipe).is_err_and(|e| e.to_string().contains("a pipe")));
        Ok(())
    }
}
