//! Checks a finished file. The exit status of `ffmpeg` is not enough: it has reported success for a cut file.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;

/// Returns whether the file is a chain of complete boxes (ISO/IEC 14496-12) with the index (`moov`) before the data
/// (`mdat`).
pub fn is_whole(file: &File) -> Result<bool> {
    let Some(kinds) = boxes(file)? else { return Ok(false) };
    let position = |kind| kinds.iter().position(|found| found == kind);
    let order = (position(b"ftyp"), position(b"moov"), position(b"mdat"));
    Ok(matches!(order, (Some(0), Some(index), Some(data)) if index < data))
}

/// Returns the kinds of the boxes at the top level, or `None` if the last box does not end where the file does.
fn boxes(file: &File) -> Result<Option<Vec<[u8; 4]>>> {
    let end = file.metadata()?.len();
    let mut kinds = Vec::new();
    let mut at = 0;
    while at < end {
        let mut header = [0; 16];
        let read = file.read_at(&mut header, at)?;
        let [s0, s1, s2, s3, kind @ .., l0, l1, l2, l3, l4, l5, l6, l7] = header;
        let size = match u32::from_be_bytes([s0, s1, s2, s3]) {
            1 => u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            size => u64::from(size),
        };
        if read < 8 || size < 8 || size > end - at {
            return Ok(None);
        }
        kinds.push(kind);
        at += size;
    }
    Ok(Some(kinds))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn verdict(bytes: &[u8]) -> bool {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("room for a few bytes");
        is_whole(&file).expect("a readable file")
    }

    #[test]
    fn only_whole_files_with_the_index_first_pass() {
        let (ftyp, moov, mdat) =
            (b"\0\0\0\x08ftyp", b"\0\0\0\x09moov-", b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x12ab");
        let join = |parts: &[&[u8]]| parts.concat();
        assert!(verdict(&join(&[ftyp, moov, mdat])));
        assert!(!verdict(&join(&[ftyp, mdat, moov])));
        assert!(!verdict(&join(&[ftyp, moov])));
        assert!(!verdict(&join(&[ftyp, moov, &mdat[..17]])));
        assert!(!verdict(&join(&[ftyp, moov, mdat, b"\0\0\0"])));
        assert!(!verdict(&join(&[ftyp, moov, mdat, b"\0\0\0\0free"])));
        assert!(!verdict(b""));
    }
}
