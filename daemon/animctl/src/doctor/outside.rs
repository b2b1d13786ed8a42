//! A model as it lies on this machine, where the service sees its files at other places.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use animd_common::files::show;
use animd_protocol::model_file::ModelFile;
use tempfile::TempDir;

use super::sandbox::Sandbox;

/// A path that leads programs outside of the sandbox to a model.
pub struct Outside {
    /// The path by which the service knows the model.
    own: PathBuf,
    path: PathBuf,
    /// A folder with a model file for the outside, which goes with this value.
    made: Option<TempDir>,
}

impl Outside {
    /// Returns the path of the model that the service knows by `path`: a folder, or a model file whose paths are the service's.
    ///
    /// # Errors
    /// A sentence if the model file has a mistake, or if the file for the outside cannot be written.
    pub fn of(path: &Path, sandbox: &Sandbox) -> Result<Self, String> {
        let (outside, _) = sandbox.outside(path);
        let is_file = outside.extension().is_some_and(|end| end == "toml") && outside.is_file();
        if !is_file {
            return Ok(Self { own: path.to_owned(), path: outside, made: None });
        }
        let mut model = ModelFile::read(&outside)?;
        let parts = &mut model.parts;
        let places = [&mut parts.vae, &mut parts.text].into_iter().chain(
            [
                &mut parts.dit,
                &mut parts.high_noise,
                &mut parts.low_noise,
                &mut parts.clip,
                &mut parts.tokenizer,
            ]
            .into_iter()
            .flatten(),
        );
        let mut moved = Moved { sandbox, folder: None, count: 0 };
        for place in places.chain(model.loras.iter_mut().map(|lora| &mut lora.file)) {
            moved.change(place).map_err(|e| format!("cannot prepare a look at `{}`: {e}", show(path)))?;
        }
        let Some(folder) = moved.folder else {
            return Ok(Self { own: path.to_owned(), path: outside, made: None });
        };
        let file = folder.path().join(outside.file_name().unwrap_or("model.toml".as_ref()));
        let write = || fs::File::create(&file)?.write_all(model.to_toml().as_bytes());
        write().map_err(|e| format!("cannot write `{}`: {e}", show(&file)))?;
        Ok(Self { own: path.to_owned(), path: file, made: Some(folder) })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what a program says of the model, with the model's own path in place of that of a file made for the outside.
    pub fn words(&self, said: &str) -> String {
        match self.is_made() {
            true => said.replace(&*self.path.to_string_lossy(), &self.own.to_string_lossy()),
            false => said.to_owned(),
        }
    }

    /// Returns whether the path leads to a file that goes with this value.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }
}

/// Changes places of the service into places of the machine.
struct Moved<'a> {
    sandbox: &'a Sandbox,
    /// The folder for links to files that the service sees together, and that lie in several places.
    folder: Option<TempDir>,
    count: usize,
}

impl Moved<'_> {
    fn change(&mut self, place: &mut PathBuf) -> std::io::Result<()> {
        // The service sees a part's files together: in the part's folder, or in that of its file.
        let together = [Some(&**place), place.parent()].into_iter().flatten();
        let Some((dir, files)) = together
            .map(|dir| (dir.to_owned(), self.sandbox.files_in(dir)))
            .find(|(_, files)| !files.is_empty())
        else {
            let (outside, _) = self.sandbox.outside(place);
            if outside != *place {
                *place = outside;
                self.folder()?;
            }
            return Ok(());
        };
        self.count += 1;
        let links = self.folder()?.join(self.count.to_string());
        fs::create_dir(&links)?;
        for (name, source) in files {
            symlink(source, links.join(name))?;
        }
        *place = links.join(place.strip_prefix(&dir).unwrap_or(Path::new("")));
        Ok(())
    }

    fn folder(&mut self) -> std::io::Result<PathBuf> {
        let made = match self.folder.take() {
            Some(made) => made,
            None => tempfile::tempdir()?,
        };
        Ok(self.folder.insert(made).path().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_file_of_the_service_is_changed_for_the_outside() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("blobs")).expect("made");
        for name in ["blobs/one", "blobs/two", "vae.pth"] {
            fs::write(path(name), name).expect("written");
        }
        let text = "name = \"a\"\n[parts]\ndit = \"/inside/dit/a.safetensors.index.json\"\ntext = \"/inside/folder/t5.pth\"\nvae = \
                    \"/inside/vae/vae.pth\"\nclip = \"/srv/clip.pth\"\n";
        fs::write(path("a.toml"), text).expect("written");
        let bind = |source: &Path, target: &str| super::super::sandbox::Bind {
            source: source.to_owned(),
            target: target.into(),
            writable: false,
        };
        let sandbox = Sandbox {
            on: true,
            binds: vec![
                bind(&path("blobs/one"), "/inside/dit/a.safetensors.index.json"),
                bind(&path("blobs/two"), "/inside/dit/config.json"),
                bind(&path("vae.pth"), "/inside/vae/vae.pth"),
                bind(Path::new("/home/ann/wan"), "/inside/folder"),
            ],
            ..Sandbox::default()
        };
        let outside = Outside::of(&path("a.toml"), &sandbox).expect("it is right");
        let model = ModelFile::read(outside.path()).expect("it is right");
        let dit = model.parts.dit.expect("there is one");
        assert_eq!(fs::read_to_string(&dit).expect("it leads there"), "blobs/one");
        assert_eq!(fs::read_to_string(dit.with_file_name("config.json")).expect("beside it"), "blobs/two");
        assert_eq!(fs::read_to_string(&model.parts.vae).expect("it leads there"), "vae.pth");
        assert_eq!(model.parts.text, Path::new("/home/ann/wan/t5.pth"));
        assert_eq!(model.parts.clip.as_deref(), Some(Path::new("/srv/clip.pth")));
        let said = format!("`{}` holds no complete model", outside.path().display());
        assert_eq!(outside.words(&said), format!("`{}` holds no complete model", path("a.toml").display()));
        let own = Outside::of(&path("a.toml"), &Sandbox::default()).expect("it is right");
        assert_eq!((own.path(), own.is_made()), (&*path("a.toml"), false));
    }
}
