//! The files of jobs' `LoRAs`: found by their names in the folders that are allowed, and known by their content.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use animd_common::files::{self, Identity, hex, show};
use animd_common::loras;
use animd_common::tasks::blocking;
use animd_protocol::ErrorCode;
use animd_protocol::lora::LoraChoice;
use animd_protocol::lora_files;
use animd_protocol::request::Request;

use crate::config::CurrentConfig;
use crate::error::{Error, Result};

/// Finds `LoRAs`; cheap to clone.
#[derive(Clone)]
pub struct Loras {
    config: CurrentConfig,
    /// The hashes of files that were read before, with the state that each file was in.
    hashes: Arc<Mutex<HashMap<PathBuf, (State, String)>>>,
}

/// What tells whether a file was written or replaced: a program can set back the time of the last write, but not that of the
/// last change.
type State = (Identity, i64, u64);

impl Loras {
    /// Returns the `LoRAs` of a service with this configuration.
    pub fn new(config: CurrentConfig) -> Self {
        Self { config, hashes: Arc::default() }
    }

    /// Returns the files of a request's `LoRAs`, in their order.
    ///
    /// # Errors
    /// [`Error::Refused`] with `invalid-setting` and the nearest name, and for a file beside one that cannot be read.
    pub fn find(&self, request: &Request) -> Result<Vec<PathBuf>> {
        if request.lora.is_empty() {
            return Ok(Vec::new());
        }
        let places = self.config.get().lora_places(request.model.as_deref());
        let refused =
            |why: String| Error::refused(ErrorCode::InvalidSetting, format!("`lora`: {}", show(why)));
        let find = |choice: &LoraChoice| {
            let file = lora_files::find(&places, &choice.name).map_err(refused)?;
            loras::sampling(&file).map_err(refused)?;
            Ok(file)
        };
        request.lora.iter().map(find).collect()
    }

    /// Returns the request with the hash of each file, and the files. Files that were not read before are read.
    ///
    /// # Errors
    /// The errors of [`Self::find`]; [`Error::Refused`] with `file` for one that cannot be read or is another one than the request
    /// asks for.
    pub async fn pin(&self, request: Request) -> Result<(Request, Vec<PathBuf>)> {
        if request.lora.is_empty() {
            return Ok((request, Vec::new()));
        }
        let own = self.clone();
        blocking(move || own.pin_now(request)).await
    }

    fn pin_now(&self, mut request: Request) -> Result<(Request, Vec<PathBuf>)> {
        let files = self.find(&request)?;
        for (choice, file) in request.lora.iter_mut().zip(&files) {
            let refused =
                |why: String| Error::refused(ErrorCode::File, format!("the LoRA `{}` {why}", choice.name));
            let hash = self.hash(file).map_err(|e| refused(format!("cannot be read: {e}")))?;
            if let Some(wanted) = choice.sha256.as_ref().filter(|wanted| **wanted != hash) {
                return Err(refused(format!(
                    "has changed: its SHA-256 was {wanted} and is {hash}; put the file back, or submit the picture again"
                )));
            }
            choice.sha256 = Some(hash);
        }
        Ok((request, files))
    }

    /// Returns the SHA-256 of a file in hexadecimal.
    fn hash(&self, path: &Path) -> std::io::Result<String> {
        let state = |meta: &fs::Metadata| (Identity::of(meta), files::changed_us(meta), meta.len());
        let (file, meta) = files::open_regular(path)?;
        let before = state(&meta);
        let known = || self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, hash)) = known().get(path).filter(|(known, _)| *known == before) {
            return Ok(hash.clone());
        }
        let hash = hex(&files::hash(&file, |_| Ok(()))?);
        // A file that is being written has another hash in a moment.
        if state(&File::metadata(&file)?) == before {
            known().insert(path.to_owned(), (before, hash.clone()));
        }
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    use animd_common::config::Config;
    use animd_protocol::lora;
    use animd_protocol::request::Settings;

    use super::*;

    fn request(text: &str) -> Result<Request> {
        Ok(Settings { lora: Some(lora::parse(text)?), ..Settings::default() }.resolve(|| 1)?)
    }

    fn told<T>(result: Result<T>) -> String {
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_file_is_known_by_its_content() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let folder = dir.path().canonicalize().map_err(Error::file("find", dir.path()))?;
        let (file, beside) = (folder.join("detail.safetensors"), folder.join("detail.toml"));
        let write = |path: &Path, text: &str| fs::write(path, text).map_err(Error::file("write", path));
        write(&file, "abc")?;
        let mut config = Config::default();
        config.lora.folders = Some(vec![folder]);
        let loras = Loras::new(CurrentConfig::new(config));

        let (pinned, files) = loras.pin(request("detail:0.5")?).await?;
        assert_eq!(files, std::slice::from_ref(&file));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(pinned.lora[0].to_string(), format!("detail:0.5#{abc}"));
        assert_eq!(loras.pin(pinned.clone()).await?.0, pinned);

        // As long, and with the time of before.
        let time =
            fs::metadata(&file).and_then(|meta| meta.modified()).map_err(Error::file("read", &file))?;
        write(&file, "abd")?;
        let open = File::options().write(true).open(&file).map_err(Error::file("open", &file))?;
        open.set_modified(time).map_err(Error::file("write", &file))?;
        let changed = told(loras.pin(pinned).await);
        assert!(changed.contains("`detail` has changed") && changed.contains(abc), "{changed}");
        assert_ne!(loras.pin(request("detail")?).await?.0.lora[0].sha256.as_deref(), Some(abc));

        assert!(told(loras.find(&request("detial")?)).contains("did you mean `detail`?"));
        write(&beside, "[sampling]\nsteps = \"four\"\n")?;
        assert!(told(loras.find(&request("detail")?)).contains("`steps` must be a number"));
        Ok(())
    }
}
