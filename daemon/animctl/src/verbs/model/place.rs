//! Where the service sees the files of a model, and the files of systemd's and animd's that let it see them.

use std::fs;
use std::path::{Path, PathBuf};

use animd_common::files::show;
use animd_protocol::findings::FoundPart;
use animd_protocol::model_file::ModelFile;

use super::super::dropin::{self, Plan, config, drop_in, name, source, unit, writable};
use super::super::exit::{Failure, Result};
use crate::doctor::sandbox::{HOME, escape, is_plain};

/// Paths with the paths that stand for them.
type Pairs = Vec<(PathBuf, PathBuf)>;

/// The folder below which the service sees model files from elsewhere.
const MODELS: &str = "/var/lib/animd/models";
/// animd's folder of models that have names, below the root.
const NAMED: &str = "etc/animd/models";
/// The file by which older versions let the service see the only model.
const OLD_DROP_IN: &str = "model";

/// Files and folders that the service is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Where a file or folder really lies, and where the service sees it. No folder is in another one.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

impl Shown {
    /// Returns where the service sees a part, which is shown from now on.
    ///
    /// A folder that holds all its files is shown as it is. Of a folder of links, and of a file, each file that is read is shown
    /// where its name is expected, and nothing around it.
    pub fn add(&mut self, part: &FoundPart) -> Result<PathBuf> {
        let path = &part.path;
        for file in part.files.iter().chain([path]) {
            writable(file)?;
        }
        let real = |path: &Path| fs::canonicalize(path).map_err(Failure::file("find", path));
        let files =
            part.files.iter().map(|file| Ok((file.as_path(), real(file)?))).collect::<Result<Vec<_>>>()?;
        for (_, source) in &files {
            writable(source)?;
        }
        let whole = |folder: &Path| files.iter().all(|(_, source)| source.starts_with(folder));
        if path.starts_with(HOME) && whole(Path::new(HOME)) {
            return Ok(path.clone());
        }
        let real_path = real(path)?;
        if let Some((folder, target)) =
            self.binds.iter().find(|(folder, _)| real_path.starts_with(folder) && whole(folder))
        {
            return Ok(below(target, &real_path, folder));
        }
        if path.is_dir() && whole(&real_path) {
            let target = Path::new(MODELS).join(name(&real_path));
            self.show(real_path, target.clone());
            return Ok(target);
        }
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("/")) };
        let target = Path::new(MODELS).join(name(path));
        let has_index = files
            .iter()
            .any(|(file, _)| file.extension().is_some_and(|end| end == "json") && files.len() > 2);
        for (file, source) in &files {
            if has_index && file.file_name().is_some_and(|name| !is_plain(name.as_ref())) {
                return Err(Failure::new(format!(
                    "`{}` is one of several files that an index names, and has characters in its name that systemd cannot \
                     show the service; rename it, or copy the files that the links lead to into a folder",
                    show(file)
                )));
            }
            self.show(source.clone(), plain(&below(&target, file, folder)));
        }
        Ok(plain(&below(&target, path, folder)))
    }

    fn show(&mut self, source: PathBuf, target: PathBuf) {
        if !self.binds.iter().any(|(_, known)| *known == target) {
            self.binds.push((source, target));
        }
    }

    /// Returns the pairs of paths by which the service's unit names what it shows, and the links that these need.
    pub fn written(&self) -> (Pairs, Pairs) {
        let mut links = Vec::new();
        let pair = |(path, target): &(PathBuf, PathBuf)| (source(path, &mut links), target.clone());
        (self.binds.iter().map(pair).collect(), links)
    }
}

/// Returns a path with plain characters in its last name; its other names are plain.
fn plain(path: &Path) -> PathBuf {
    let Some(name) = path.file_name().filter(|name| !is_plain(name.as_ref())) else { return path.to_owned() };
    let as_plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    path.with_file_name(name.to_string_lossy().chars().map(as_plain).collect::<String>())
}

/// Returns the path below `target` that a path has below `folder`.
fn below(target: &Path, path: &Path, folder: &Path) -> PathBuf {
    match path.strip_prefix(folder) {
        Ok(rest) if !rest.as_os_str().is_empty() => target.join(rest),
        _ => target.to_owned(),
    }
}

/// Returns the path below the root of the file of a model of this name.
pub fn model_file(name: &str) -> PathBuf {
    Path::new(NAMED).join(format!("{name}.toml"))
}

/// Returns the id of the drop-in that shows the service the files of a model.
fn id(name: &str) -> String {
    format!("model-{name}")
}

/// Returns the files that give the installed service a model.
pub fn plan(model: &ModelFile, shown: &Shown) -> Plan {
    let path = model_file(&model.name);
    let mut plan = Plan { inside: Path::new("/").join(&path), ..Plan::default() };
    plan.files.push((path, model.to_toml()));
    show_in(&mut plan, &id(&model.name), shown);
    plan
}

/// Adds to a plan the drop-in of this id that shows the service some files, or that there is none if it needs none.
pub fn show_in(plan: &mut Plan, id: &str, shown: &Shown) {
    let (pairs, links) = shown.written();
    let bind = |(source, target): &(PathBuf, PathBuf)| {
        format!("BindReadOnlyPaths=-{}:{}", escape(source), escape(target))
    };
    let lines: Vec<String> = pairs.iter().map(bind).collect();
    plan.links.extend(links);
    let drop_in = drop_in(id);
    if lines.is_empty() {
        plan.gone.push(drop_in);
    } else {
        plan.files.push((drop_in, unit(&lines)));
    }
}

/// Adds to a plan what makes its model the configured one of the installed service.
pub fn choose(plan: &mut Plan) {
    plan.files.push((config("model"), chosen(&plan.inside)));
    plan.gone.push(drop_in(OLD_DROP_IN));
}

/// Returns the text of the file that makes a model the configured one.
pub fn chosen(path: &Path) -> String {
    format!("[model]\npath = {}\n", dropin::toml(path))
}

/// Returns the files that go with a model of this name, as files to remove; with the one that makes it the configured one if it
/// is that.
pub fn removal(name: &str, is_configured: bool) -> Plan {
    let mut gone = vec![model_file(name), drop_in(&id(name))];
    gone.extend(is_configured.then(|| config("model")));
    Plan { gone, ..Plan::default() }
}

/// Removes the empty places at which files were shown that are shown no longer. What is not empty stays.
pub fn tidy(root: &Path, shown: &[PathBuf]) {
    for target in shown {
        let place = root.join(target.strip_prefix("/").unwrap_or(target));
        // systemd has made an empty file or folder to show something there.
        let is_empty_file = fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        _ = if is_empty_file { fs::remove_file(&place) } else { fs::remove_dir(&place) };
        let parent = place.parent().filter(|parent| *parent != root.join(&MODELS[1..]));
        _ = parent.map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use animd_protocol::findings::PartKind;

    use super::*;
    use crate::doctor::sandbox::Sandbox;

    fn part(path: &Path, files: &[PathBuf]) -> FoundPart {
        FoundPart {
            path: path.to_owned(),
            kind: PartKind::Dit,
            files: files.to_vec(),
            layout: String::new(),
            precision: String::new(),
            bytes: 0,
            noise: None,
        }
    }

    fn write(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "x").expect("written");
        path.to_owned()
    }

    #[test]
    fn a_folder_is_shown_once_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = fs::canonicalize(dir.path()).expect("it is there");
        let wan = dir.join("my models: 100%/\"wän\"");
        let files: Vec<_> =
            ["config.json", "a.safetensors", "vae/b.pth"].map(|name| write(&wan.join(name))).into();
        let mut shown = Shown::default();
        let inside = shown.add(&part(&wan, &files[..2])).expect("it can be shown");
        let vae = shown.add(&part(&files[2], &files[2..])).expect("it can be shown");
        assert_eq!(vae, inside.join("vae/b.pth"));
        assert_eq!(shown.binds, [(wan.clone(), inside.clone())]);
        // What is written is read as it was meant.
        let model = ModelFile { name: "wän".into(), ..ModelFile::default() };
        let root = tempfile::tempdir().expect("a folder");
        plan(&model, &shown).write(root.path()).expect("written");
        assert_eq!(Sandbox::read(root.path()).outside(&vae).0, files[2]);
    }

    #[test]
    fn a_file_is_shown_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = fs::canonicalize(dir.path()).expect("it is there");
        let (dit, config) = (write(&dir.join("it's.gguf")), write(&dir.join("config.json")));
        write(&dir.join("private"));
        let mut shown = Shown::default();
        let inside = shown.add(&part(&dit, &[dit.clone(), config.clone()])).expect("it can be shown");
        // systemd cannot show a name with a quote in it.
        assert!(inside.ends_with("it-s.gguf"), "{}", inside.display());
        assert_eq!(shown.binds, [(dit, inside.clone()), (config, inside.with_file_name("config.json"))]);
        assert!(inside.starts_with(MODELS));
    }

    #[test]
    fn of_links_the_files_are_shown_that_they_lead_to() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = fs::canonicalize(dir.path()).expect("it is there");
        let (repository, snapshot) =
            (dir.join("models--Wan-AI--Wan2.1"), dir.join("models--Wan-AI--Wan2.1/snapshots/6f1b24"));
        let blobs = ["blobs/aa", "blobs/bb"].map(|name| write(&repository.join(name)));
        fs::create_dir_all(&snapshot).expect("made");
        let links = ["config.json", "model.safetensors"].map(|name| snapshot.join(name));
        for (link, blob) in links.iter().zip(&blobs) {
            symlink(Path::new("../../blobs").join(blob.file_name().expect("a name")), link).expect("linked");
        }
        let mut shown = Shown::default();
        let inside = shown.add(&part(&snapshot, &links)).expect("it can be shown");
        let expected = [
            (blobs[0].clone(), inside.join("config.json")),
            (blobs[1].clone(), inside.join("model.safetensors")),
        ];
        assert_eq!(shown.binds, expected);
    }

    #[test]
    fn what_lies_below_the_services_own_folder_needs_nothing() {
        let model = ModelFile { name: "a".into(), ..ModelFile::default() };
        let mut plan = plan(&model, &Shown::default());
        assert!(!plan.needs_unit() && plan.files.len() == 1);
        choose(&mut plan);
        assert_eq!(plan.files[1].1, "[model]\npath = \"/etc/animd/models/a.toml\"\n");
    }

    #[test]
    fn a_path_that_no_file_of_systemds_can_hold_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let broken = write(&dir.path().join("a\nb.gguf"));
        let refused = Shown::default().add(&part(&broken, std::slice::from_ref(&broken)));
        assert!(refused.is_err_and(|e| e.text.contains("line break") && e.text.contains("rename")));
    }

    #[test]
    fn empty_places_go_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let path = |name: &str| root.path().join("var/lib/animd/models").join(name);
        fs::create_dir_all(path("folder")).expect("made");
        write(&path("kept/full"));
        fs::create_dir_all(path("one")).expect("made");
        fs::write(path("one/empty"), "").expect("written");
        let targets = ["folder", "kept/full", "one/empty", "none"].map(|name| Path::new(MODELS).join(name));
        tidy(root.path(), &targets);
        assert!(!path("folder").exists() && !path("one").exists() && path("kept/full").exists());
    }
}
