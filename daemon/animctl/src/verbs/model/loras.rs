//! `LoRAs` that are added: which of those that were found, and where the service sees them.
//!
//! A folder called `loras` is added as a whole, so that what is put into it later can be used too; any other file is added by itself.
//! Each has a file of animd's configuration, and a drop-in of the unit if the sandbox hides it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use animd_common::files::{show, write_atomic};
use animd_protocol::findings::{Findings, FoundLora, FoundPart, PartKind};
use animd_protocol::lora_files;
use animd_protocol::recipe::ExpertName;
use animd_protocol::sources::quoted;
use serde_json::{Value, json};

use super::super::dropin::{self, Plan};
use super::super::exit::{Failure, Result};
use super::place::{self, Shown};

/// The name of the folders that programs keep `LoRAs` in.
const FOLDER: &str = "loras";
/// The beginning of the ids of files that animctl writes for `LoRAs`.
pub(super) const ID: &str = "lora";
/// The most `LoRAs` that are told one by one.
const TOLD: usize = 24;

/// What is added: `LoRAs`, and the folders and files that they are in.
#[derive(Debug, Default)]
pub struct Loras {
    /// Each with the name that jobs choose it by.
    named: Vec<FoundLora>,
    pub places: Vec<Place>,
    /// What there is to say about some that jobs cannot choose.
    pub notes: Vec<String>,
}

/// A folder called `loras`, or a single file.
#[derive(Debug)]
pub struct Place {
    /// Where it lies.
    path: PathBuf,
    /// Where the service sees it.
    inside: PathBuf,
    /// What the service is shown for it.
    pub shown: Shown,
}

impl Loras {
    /// Returns those that were found and go with one of these models, where `searched` was searched. The service of a `user` sees
    /// every place as it is.
    pub fn choose(
        findings: &Findings,
        models: &BTreeSet<String>,
        searched: &[PathBuf],
        user: bool,
    ) -> Result<Self> {
        let searched: Vec<PathBuf> =
            searched.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect();
        let mut all = Self::default();
        for found in &findings.loras {
            let mut lora = found.clone();
            lora.models.retain(|model| models.contains(model));
            if !lora.models.is_empty() {
                all.named.push(lora);
            }
        }
        let mut places: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for lora in &all.named {
            places.entry(place_of(&lora.path, &searched)).or_default().push(lora.path.clone());
        }
        for (path, files) in places {
            all.places.push(Place::new(path, files, user)?);
        }
        all.name();
        Ok(all)
    }

    /// Gives each the name that the service knows it by, and leaves out those that share a name.
    fn name(&mut self) {
        let mut called = BTreeMap::new();
        for lora in &mut self.named {
            let inside = self.places.iter().find(|place| place.path == lora.path).map(|place| &place.inside);
            if let Some(name) = inside.and_then(|inside| lora_files::name_of(inside)) {
                called.insert(std::mem::replace(&mut lora.name, name.to_owned()), name.to_owned());
            }
        }
        for partner in self.named.iter_mut().filter_map(|lora| lora.partner.as_mut()) {
            if let Some(name) = called.get(partner) {
                name.clone_into(partner);
            }
        }
        let mut by_name: BTreeMap<&str, Vec<&FoundLora>> = BTreeMap::new();
        for lora in &self.named {
            by_name.entry(&lora.name).or_default().push(lora);
        }
        let mut shared: BTreeSet<String> = BTreeSet::new();
        for (name, loras) in by_name.iter().filter(|(_, loras)| loras.len() > 1) {
            let paths = loras.iter().map(|lora| format!("`{}`", show(&lora.path))).collect::<Vec<_>>();
            self.notes.push(format!(
                "{} LoRAs are called `{name}`: {}; rename all but one, because a job names one by its file's name",
                paths.len(),
                paths.join(", ")
            ));
            shared.insert((*name).to_owned());
        }
        self.named.retain(|lora| !shared.contains(&lora.name));
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns for each the names of the models that it goes with.
    pub fn models(&self) -> impl Iterator<Item = &[String]> {
        self.named.iter().map(|lora| &*lora.models)
    }

    /// Returns the words by which the engine opens them with a model, as its jobs will; none if none goes with it.
    pub fn arguments(&self, model: &str) -> Vec<String> {
        let of_it = self.named.iter().filter(|lora| lora.models.iter().any(|one| one == model));
        let names: Vec<String> = of_it.map(|lora| format!("--lora={}", lora.name)).collect();
        if names.is_empty() {
            return names;
        }
        let places = self.places.iter().map(|place| format!("--lora-folder={}", place.inside.display()));
        names.into_iter().chain(places).collect()
    }

    /// Adds to a plan the files that give them to the installed service.
    pub fn plan(&self, plan: &mut Plan) {
        for Place { path, inside, shown } in &self.places {
            let id = id(path);
            plan.files.push((dropin::config(&id), text(inside)));
            place::show_in(plan, &id, shown);
        }
    }

    /// Writes the files that give them to the user's own service into its folder of configuration files.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if !self.is_empty() {
            fs::create_dir_all(folder).map_err(Failure::file("make", folder))?;
        }
        for Place { path, inside, .. } in &self.places {
            let file = dropin::config(&id(path));
            let file = folder.join(file.file_name().unwrap_or_default());
            write_atomic(&file, text(inside).as_bytes(), 0o644).map_err(Failure::file("write", &file))?;
        }
        Ok(())
    }

    /// Returns lines that say what jobs can name now, and of pairs that they are one.
    pub fn words(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for lora in self
            .named
            .iter()
            .filter(|lora| lora.noise != Some(ExpertName::LowNoise) || lora.partner.is_none())
        {
            let models = lora.models.join(", ");
            let name = quoted(&lora.name);
            let mut line = match (&lora.partner, lora.noise) {
                (Some(low), _) => format!(
                    "    --lora {name} --lora {}  a pair for both transformers of {models}",
                    quoted(low)
                ),
                (None, Some(noise)) => format!(
                    "    --lora {name}  for {models}; of two transformers for the {} one",
                    noise.words()
                ),
                (None, None) => format!("    --lora {name}  for {models}"),
            };
            if lora.called_distilled {
                line += "; by its name it distils them to few steps, which need `--sampler distill`";
            }
            lines.push(line);
        }
        let more = lines.len().saturating_sub(TOLD);
        lines.truncate(TOLD);
        if more > 0 {
            lines.push(format!("    and {more} more, which `animctl model list` has"));
        }
        if !lines.is_empty() {
            lines.insert(0, "LoRAs that jobs can name:".to_owned());
        }
        lines
    }

    /// Returns them for programs.
    pub fn json(&self) -> Vec<Value> {
        let one = |lora: &FoundLora| {
            json!({
                "name": lora.name,
                "path": show(&lora.path),
                "models": lora.models,
                "partner": lora.partner,
                "called_distilled": lora.called_distilled,
            })
        };
        self.named.iter().map(one).collect()
    }
}

impl Place {
    fn new(path: PathBuf, mut files: Vec<PathBuf>, user: bool) -> Result<Self> {
        let mut shown = Shown::default();
        if user {
            return Ok(Self { inside: path.clone(), path, shown });
        }
        // A file beside it may say how a model with it is sampled.
        let beside: Vec<PathBuf> =
            files.iter().map(|file| file.with_extension("toml")).filter(|file| file.is_file()).collect();
        files.extend(beside);
        let (layout, precision) = (String::new(), String::new());
        let part = FoundPart {
            path: path.clone(),
            kind: PartKind::Lora,
            files,
            layout,
            precision,
            bytes: 0,
            noise: None,
        };
        let inside = shown.add(&part)?;
        Ok(Self { path, inside, shown })
    }
}

/// Returns what is added for a file: the folder called `loras` that it was found in, or the file itself if it was named, or if it is
/// a link that leads out of that folder.
pub(super) fn place_of(file: &Path, searched: &[PathBuf]) -> PathBuf {
    let is_loras = |folder: &&Path| {
        folder.file_name().is_some_and(|name| name.eq_ignore_ascii_case(FOLDER))
            && !searched.iter().any(|path| path != folder && path.starts_with(folder))
    };
    let folder = file.ancestors().skip(1).filter(is_loras).last();
    let holds = |folder: &&Path| {
        let real = |path: &Path| fs::canonicalize(path).ok();
        real(file).zip(real(folder)).is_some_and(|(file, folder)| file.starts_with(folder))
    };
    folder.filter(holds).unwrap_or(file).to_owned()
}

fn id(path: &Path) -> String {
    format!("{ID}-{}", dropin::name(path))
}

/// Returns the text of the file of animd's configuration that adds a place.
fn text(inside: &Path) -> String {
    format!("[lora]\nadded = [{}]\n", dropin::toml(inside))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use animd_common::config::Config;

    use super::super::known_loras::{added, list};
    use super::*;
    use crate::doctor::sandbox::Sandbox;

    fn found(path: &Path, noise: Option<ExpertName>, partner: Option<&str>) -> FoundLora {
        FoundLora {
            name: lora_files::name_of(path).expect("a LoRA's ending").to_owned(),
            path: path.to_owned(),
            bytes: 1,
            models: vec!["wan".into()],
            noise,
            partner: partner.map(str::to_owned),
            called_distilled: false,
            why: None,
        }
    }

    fn findings(loras: Vec<FoundLora>) -> Findings {
        Findings { loras, ..Findings::default() }
    }

    fn write(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "x").expect("written");
        path.to_owned()
    }

    fn models() -> BTreeSet<String> {
        BTreeSet::from(["wan".to_owned()])
    }

    #[test]
    fn a_folder_of_loras_is_added_whole_and_other_files_by_themselves() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = fs::canonicalize(dir.path()).expect("it is there");
        let comfy = root.join("ComfyUI/models");
        let inside = write(&comfy.join("loras/wan/detail.safetensors"));
        let alone = write(&root.join("Downloads/oil paint.safetensors"));
        write(&root.join("Downloads/oil paint.toml"));
        let blob = write(&root.join("blobs/0123"));
        let link = comfy.join("loras/hub.safetensors");
        symlink(&blob, &link).expect("linked");
        let other = FoundLora { models: vec!["elsewhere".into()], ..found(&alone, None, None) };
        let all = findings([&inside, &alone, &link].map(|path| found(path, None, None)).into());
        let searched = [root.join("ComfyUI"), alone.clone()];
        let loras = Loras::choose(&all, &models(), &searched, false).expect("they can be shown");
        let places: Vec<&Path> = loras.places.iter().map(|place| &*place.path).collect();
        assert_eq!(places, [&*comfy.join("loras"), &link, &alone]);
        // The service sees a folder, what a link leads to under the link's name, and a file with the one beside it.
        let binds: Vec<_> = loras.places.iter().map(|place| place.shown.binds.clone()).collect();
        assert_eq!(binds[0][0].0, comfy.join("loras"));
        assert_eq!((&binds[1][0].0, &*binds[1][0].1), (&blob, &*loras.places[1].inside));
        assert_eq!(binds[2].len(), 2);
        let names: Vec<&str> = loras.named.iter().map(|lora| &*lora.name).collect();
        assert_eq!(names, ["detail", "oil-paint", "hub"], "systemd shows plain names");
        assert_eq!(loras.arguments("wan")[..3], ["--lora=detail", "--lora=oil-paint", "--lora=hub"]);
        assert_eq!(loras.arguments("wan").len(), 6);
        assert!(loras.arguments("other").is_empty());
        // Somebody who names one file of such a folder shows that file.
        let one =
            Loras::choose(&all, &models(), std::slice::from_ref(&inside), true).expect("they can be shown");
        assert!(one.places.iter().any(|place| place.path == inside && place.inside == inside));
        assert!(Loras::choose(&findings(vec![other]), &models(), &[], true).expect("none").is_empty());

        // What is written is read: by the service's configuration, by the sandbox, and by who removes it again.
        let target = tempfile::tempdir().expect("a folder");
        let mut plan = Plan::default();
        loras.plan(&mut plan);
        plan.write(target.path()).expect("written");
        let sandbox = Sandbox::read(target.path());
        let conf = target.path().join("etc/animd/conf.d");
        let mut config = Config::default();
        for place in &loras.places {
            config.lora.added.push(place.inside.clone());
            assert_eq!(sandbox.outside(&place.inside).0, fs::canonicalize(&place.path).expect("it is there"));
        }
        config.lora.folders = Some(Vec::new());
        assert_eq!(list(&config, &sandbox).into_keys().collect::<Vec<_>>(), ["detail", "hub", "oil-paint"]);
        let meant = |word: &str| {
            added(word, &conf, &sandbox).map(|found| found.map(|added| added.path)).map_err(|e| e.text)
        };
        assert_eq!(meant("oil-paint"), Ok(Some(alone)));
        assert_eq!(meant(&comfy.join("loras").to_string_lossy()), Ok(Some(comfy.join("loras"))));
        assert!(meant("detail").is_err_and(|e| e.contains("added as a whole")));
        assert_eq!(meant("nothing"), Ok(None));
    }

    #[test]
    fn pairs_are_told_as_one_and_shared_names_are_left_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| write(&dir.path().join(name));
        let (high, low) = (path("x_high.safetensors"), path("x_low.safetensors"));
        let twice = [path("a/same.safetensors"), path("b/same.pt")];
        let all = findings(vec![
            found(&high, Some(ExpertName::HighNoise), Some("x_low")),
            found(&low, Some(ExpertName::LowNoise), Some("x_high")),
            found(&twice[0], None, None),
            found(&twice[1], None, None),
        ]);
        let loras = Loras::choose(&all, &models(), &[dir.path().to_owned()], true).expect("they can be used");
        assert_eq!(
            loras.words(),
            [
                "LoRAs that jobs can name:",
                "    --lora x_high --lora x_low  a pair for both transformers of wan"
            ]
        );
        assert!(loras.notes[0].contains("2 LoRAs are called `same`"), "{:?}", loras.notes);
        assert_eq!(loras.json().len(), 2);
    }
}
