//! A copy that is being written, in a folder that nobody else can write to until the copy is finished.
//!
//! Root writes copies into a cache that belongs to the service. Everything goes through the open folder, so that whoever may
//! rename folders in the cache cannot lead root elsewhere.

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::room::remove;
use crate::{Error, Result};

/// A folder that is being filled.
pub(super) struct Draft {
    path: PathBuf,
    folder: File,
}

impl Draft {
    /// Makes the folder, in place of what an interrupted process has left there.
    pub fn begin(path: PathBuf) -> Result<Self> {
        remove(&path)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(Error::file("create", &path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(CWD, &path, flags, Mode::empty());
        let folder = File::from(opened.map_err(|e| Error::file("open", &path)(e.into()))?);
        let owner = folder.metadata().map_err(Error::file("read", &path))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(Error::Model(format!("somebody has replaced `{}`; try again", path.display())));
        }
        Ok(Self { path, folder })
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file in the folder.
    pub fn create(&self, name: &str) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR);
        Ok(File::from(file.map_err(|e| Error::file("create", &self.path.join(name))(e.into()))?))
    }

    /// Gives the folder and its files the owner of the cache, if root has made them, and the rights of the files that the
    /// copy was made of: everyone who can read those can read the copy.
    pub fn finish(&self, files: &[File], cache: &Path, of: &Path) -> Result<()> {
        let owner = fs::metadata(cache).map_err(Error::file("read", cache))?;
        let rights = fs::metadata(of).map_err(Error::file("read", of))?.mode() & 0o444;
        // Whoever may read a file may enter its folder.
        let enter = (rights & 0o444) >> 2;
        let all = files.iter().map(|file| (file, rights | 0o600));
        for (file, mode) in all.chain([(&self.folder, rights | enter | 0o700)]) {
            let failed = || Error::file("set the rights of", &self.path);
            file.set_permissions(Permissions::from_mode(mode)).map_err(failed())?;
            if rustix::process::geteuid().is_root() {
                fchown(file, Some(owner.uid()), Some(owner.gid())).map_err(failed())?;
            }
        }
        Ok(())
    }
}
