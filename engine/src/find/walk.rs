//! Walks through folders and gathers what may be a part of a model. Nothing is read here but names and indices.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use animd_protocol::findings::PassedOver;

use super::{comfy, hub};
use crate::weights;

/// How deep folders are searched below one that is named.
const MAX_DEPTH: usize = 16;
/// The most folders, names and candidates. A disk of models has far fewer; a disk of anything has more.
const MAX_FOLDERS: usize = 20_000;
const MAX_NAMES: usize = 500_000;
const MAX_UNITS: usize = 5_000;
/// How long the search may take before it ends with what it has.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Files that may be a part of a model together.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// What stands for them: a file, the index of several, or their folder.
    pub path: PathBuf,
    /// The files.
    pub files: Vec<PathBuf>,
    /// The key of the part that they are to be, if they were named for it.
    pub key: Option<&'static str>,
}

/// What a walk has gathered.
#[derive(Debug)]
pub(super) struct Walk {
    /// What may be a network or a `LoRA`.
    pub units: Vec<Unit>,
    /// What may be a tokenizer, by its name.
    pub tokenizers: Vec<Unit>,
    pub passed_over: Vec<PassedOver>,
    pub notes: Vec<String>,
    /// The folders and files that were seen, by device and inode: links lead to them again.
    seen: BTreeSet<(u64, u64)>,
    folders: usize,
    names: usize,
    end: Instant,
    /// Whether the search ended early.
    stopped: bool,
}

impl Walk {
    /// Returns a walk that ends when the patience is over.
    pub fn new() -> Self {
        Self {
            units: Vec::new(),
            tokenizers: Vec::new(),
            passed_over: Vec::new(),
            notes: Vec::new(),
            seen: BTreeSet::new(),
            folders: 0,
            names: 0,
            end: Instant::now() + PATIENCE,
            stopped: false,
        }
    }

    /// Searches a path that was named: a file is taken whatever it is called. `key` says which part it was named for.
    pub fn root(&mut self, path: &Path, key: Option<&'static str>) {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (from, tokenizers_from) = (self.units.len(), self.tokenizers.len());
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => self.enter(&path, 0),
            Ok(meta) if meta.is_file() => {
                if self.seen.insert(id(&meta)) {
                    self.file(&path, true);
                }
            }
            Ok(_) => self.pass(&path, "is neither a file nor a folder"),
            Err(e) => self.pass(&path, &format!("cannot be found: {e}")),
        }
        self.notes.extend(hub::unfinished_around(&path));
        for unit in self.units[from..].iter_mut().chain(&mut self.tokenizers[tokenizers_from..]) {
            unit.key = key;
        }
    }

    /// Searches a folder and what is below it, once.
    fn enter(&mut self, folder: &Path, depth: usize) {
        let Ok(meta) = fs::metadata(folder) else { return };
        if !self.seen.insert(id(&meta)) || !self.may_go_on(folder, depth) {
            return;
        }
        match hub::repository(folder) {
            None => {}
            Some(Ok(snapshot)) => {
                self.notes.extend(hub::unfinished(folder));
                return self.enter(&snapshot, depth);
            }
            Some(Err(why)) => {
                self.notes.extend(hub::unfinished(folder));
                return self.passed_over.push(PassedOver {
                    path: folder.to_owned(),
                    why,
                    other_model: false,
                });
            }
        }
        self.notes.extend(hub::unfinished(folder));
        for elsewhere in self.extra_folders(folder) {
            self.enter(&elsewhere, depth + 1);
        }
        if let Some(models) = comfy::models(folder) {
            return self.enter(&models, depth + 1);
        }
        let Some((files, folders)) = self.read(folder) else { return };
        self.files(folder, &files);
        for name in folders.iter().filter(|name| !is_prepared(name)) {
            self.enter(&folder.join(name), depth + 1);
        }
    }

    /// Returns whether the walk is within its bounds, and notes it once if not.
    fn may_go_on(&mut self, folder: &Path, depth: usize) -> bool {
        self.folders += 1;
        let within = self.folders <= MAX_FOLDERS
            && self.names <= MAX_NAMES
            && self.units.len() <= MAX_UNITS
            && Instant::now() < self.end;
        if !within && !self.stopped {
            self.stopped = true;
            self.notes.push(format!(
                "the search ended at `{}`, after {} folders and {} files that may be models; name a smaller folder for the rest",
                folder.display(),
                self.folders - 1,
                self.units.len()
            ));
        }
        if within && depth > MAX_DEPTH {
            self.notes.push(format!(
                "`{}` is {depth} folders deep and was not searched; name it itself",
                folder.display()
            ));
        }
        within && depth <= MAX_DEPTH
    }

    /// Returns the other folders that ComfyUI's configuration in a folder names.
    fn extra_folders(&mut self, folder: &Path) -> Vec<PathBuf> {
        let Some((file, folders)) = comfy::extra_folders(folder) else { return Vec::new() };
        let list: Vec<String> = folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
        self.notes.push(match list.is_empty() {
            true => format!("`{}` names no folder that is there", file.display()),
            false => format!(
                "`{}` names more folders, which were searched too: {}",
                file.display(),
                list.join(", ")
            ),
        });
        folders
    }

    /// Returns the names of the files and of the folders in a folder, sorted.
    fn read(&mut self, folder: &Path) -> Option<(Vec<String>, Vec<String>)> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) => {
                self.pass(folder, &format!("cannot be read: {e}"));
                return None;
            }
        };
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in entries.flatten().take(MAX_NAMES) {
            self.names += 1;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                let shown = path.to_string_lossy();
                if weights::is_model(&shown) {
                    self.pass(&path, "has a name that is not valid UTF-8; rename it");
                }
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => folders.push(name),
                Ok(meta) if meta.is_file() => files.push(name),
                _ if !weights::is_model(&name) => {}
                Ok(_) => self.pass(&path, "is neither a file nor a folder"),
                Err(_) => self.pass(&path, "is a link that leads nowhere"),
            }
        }
        files.sort();
        folders.sort();
        Some((files, folders))
    }

    /// Takes the files of a folder: those that belong together, and the others one by one.
    fn files(&mut self, folder: &Path, names: &[String]) {
        let (groups, broken) = weights::groups(folder, names);
        for (path, why) in broken {
            self.passed_over.push(PassedOver { path, why, other_model: false });
        }
        let alone = groups.len() == 1;
        let mut grouped = BTreeSet::new();
        for weights::Group { path, files } in groups {
            grouped.extend(files.iter().cloned());
            // The folder stands for its only group, so that what is kept beside the files is found there.
            let path = if alone { folder.to_owned() } else { path };
            self.units.push(Unit { path, files, key: None });
        }
        for name in names {
            let path = folder.join(name);
            if grouped.contains(&path) || weights::is_numbered(name) {
                continue;
            }
            let Ok(meta) = fs::metadata(&path) else { continue };
            if (weights::is_model(name) || is_tokenizer(name) || is_unfinished(name))
                && self.seen.insert(id(&meta))
            {
                self.file(&path, false);
            }
        }
    }

    /// Takes one file.
    fn file(&mut self, path: &Path, named: bool) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unit = Unit { path: path.to_owned(), files: vec![path.to_owned()], key: None };
        match () {
            () if is_unfinished(&name) => {
                self.pass(
                    path,
                    "is not fetched to its end; let the program that fetches it finish, or fetch it again",
                );
            }
            () if name.ends_with(".toml") => self.pass(
                path,
                "is a model file already; in the folder `models` beside animd's configuration, `animctl model use` chooses it",
            ),
            () if is_tokenizer(&name) => self.tokenizers.push(unit),
            () if named => match weights::shards_of(path) {
                Ok(files) => self.units.push(Unit { files, ..unit }),
                Err(e) => self.pass_sentence(path, e.to_string()),
            },
            () => self.units.push(unit),
        }
    }

    fn pass(&mut self, path: &Path, why: &str) {
        self.pass_sentence(path, format!("`{}` {why}", path.display()));
    }

    fn pass_sentence(&mut self, path: &Path, why: String) {
        self.passed_over.push(PassedOver { path: path.to_owned(), why, other_model: false });
    }

    /// Returns when the search should end.
    pub fn end(&self) -> Instant {
        self.end
    }
}

fn id(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Returns whether a folder is a copy of a transformer that animd has made.
fn is_prepared(name: &str) -> bool {
    ["animd-fp8", "animd-int8"].iter().any(|copy| name == *copy || name.ends_with(&format!(".{copy}")))
}

/// Returns whether a file may be a tokenizer. What it is follows from what is in it.
fn is_tokenizer(name: &str) -> bool {
    name == "tokenizer.json" || Path::new(name).extension().is_some_and(|end| end == "model")
}

/// Returns whether a file's name says that a program is still fetching a model file.
fn is_unfinished(name: &str) -> bool {
    let ends = [".part", ".incomplete", ".crdownload", ".download"];
    ends.iter().any(|end| name.strip_suffix(end).is_some_and(weights::is_model))
}
