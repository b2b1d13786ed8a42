//! Writes small tar archives, in the format ustar of POSIX.1-1988.

use std::io::{self, Write};

/// The size of a header, and what every file is padded to, in bytes.
const BLOCK: usize = 512;

/// Writes files with these names and contents, readable for their owner alone. `seconds` is their time since the epoch.
///
/// # Errors
/// Returns what the writer says, and an error for a name of more than 100 bytes.
pub fn write(to: &mut impl Write, files: &[(String, Vec<u8>)], seconds: u64) -> io::Result<()> {
    for (name, bytes) in files {
        to.write_all(&header(name, bytes.len(), seconds)?)?;
        to.write_all(bytes)?;
        to.write_all(&vec![0; bytes.len().next_multiple_of(BLOCK) - bytes.len()])?;
    }
    // Two empty blocks end an archive.
    to.write_all(&[0; 2 * BLOCK])
}

fn header(name: &str, size: usize, seconds: u64) -> io::Result<[u8; BLOCK]> {
    if name.len() > 100 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long for an archive"));
    }
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{seconds:011o}"));
    // The checksum counts its own field as spaces.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_that_tar_reads() -> io::Result<()> {
        let mut archive = Vec::new();
        let files = [("a/one.txt".to_owned(), b"hello".to_vec()), ("two".to_owned(), vec![7; 512])];
        write(&mut archive, &files, 0o17)?;
        assert_eq!(archive.len(), 512 * (2 + 2 + 2));
        assert!(archive.starts_with(b"a/one.txt\0") && &archive[512..517] == b"hello");
        assert_eq!(&archive[124..136], b"00000000005\0");
        assert_eq!((&archive[257..265], &archive[136..147]), (&b"ustar\x0000"[..], &b"00000000017"[..]));
        let unsigned: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = archive[148..156].iter().map(|byte| u32::from(*byte)).sum();
        let told = u32::from_str_radix(std::str::from_utf8(&archive[148..154]).expect("octal"), 8);
        assert_eq!(told, Ok(unsigned - own + 8 * 32));
        assert!(write(&mut Vec::new(), &[("x".repeat(101), Vec::new())], 0).is_err());
        Ok(())
    }
}
