//! Where the kernel does not see every change: file systems whose files are changed by other machines or programs.

use std::io;
use std::path::Path;

/// File systems by the number that statfs gives, where changes made elsewhere cause no events here.
const UNSEEN: [(u32, &str); 14] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x00c3_6400, "Ceph"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x0bd0_0bd0, "Lustre"),
    (0x786f_4256, "a VirtualBox shared folder"),
    (0xbacb_acbc, "a VMware shared folder"),
];

/// Returns the name of a folder's file system if it does not report all changes.
pub fn unseen(dir: &Path) -> io::Result<Option<&'static str>> {
    let magic = rustix::fs::statfs(dir)?.f_type as u32;
    Ok(UNSEEN.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name))
}

/// File systems that give a file another inode number when they please.
const RENUMBERING: [u32; 3] = [0x4d44, 0x2011_bab0, 0x6573_5546];

/// Returns whether a file's inode number may change while it lies there (FAT, exFAT, FUSE).
pub fn renumbers(path: &Path) -> io::Result<bool> {
    Ok(RENUMBERING.contains(&(rustix::fs::statfs(path)?.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_report_changes() -> io::Result<()> {
        assert_eq!(unseen(Path::new("/proc"))?, None);
        assert!(unseen(Path::new("/nowhere")).is_err());
        Ok(())
    }
}
