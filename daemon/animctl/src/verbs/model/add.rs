//! `animctl model add PATH...`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use animd_common::config::{Config, Sources};
use animd_common::files::{show, write_atomic};
use animd_protocol::findings::{Findings, FoundModel};
use animd_protocol::model_file::{ModelFile, PartPaths, Sampling, check_name};
use animd_protocol::sources::quoted;
use serde_json::{Value, json};

use super::super::dropin::{Plan, needs_root, reread, restart, service_user};
use super::super::exit::{Exit, Failure, Result};
use super::super::{On, config, print};
use super::ask::{Person, nothing_whole};
use super::loras::Loras;
use super::place::{self, Shown};
use super::search::{self, Search};
use super::{switch, trial};
use crate::doctor::outside::Outside;
use crate::doctor::sandbox::Sandbox;
use crate::doctor::{READ, refusal_from};

#[allow(clippy::doc_markdown, reason = "the words are the help of the command")]
/// Find a model's files, name the model, and let the service use it.
///
/// A PATH is a model's folder as it was downloaded, ComfyUI's folder, a Hugging Face cache or a repository in it, or a single file;
/// several at once if the parts lie apart. What a file is follows from what is in it. The files stay where they are. What is
/// missing is said, with the command that fetches it.
///
/// For the installed service this writes a file that names the parts (/etc/animd/models/NAME.toml), one that lets its sandbox see
/// exactly these files (/etc/systemd/system/animd.service.d/animctl-model-NAME.conf), and one that makes the model the configured
/// one (/etc/animd/conf.d/animctl-model.toml). Then the engine opens the model once in the service's sandbox; if it cannot,
/// nothing is changed. The service restarts when no job runs. With --user only your own configuration is written.
///
/// LoRAs that go with the model, or with one that was added before, are added too: a folder called `loras` as a whole, other files
/// one by one. Jobs then choose them by their files' names, with --lora. A PATH may be nothing but LoRAs.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sudo animctl model add ~/models/Wan2.1-I2V-14B-480P\n  sudo animctl model add ~/ComfyUI --name wan --dit \
~/ComfyUI/models/unet/wan2.1-i2v-14b-480p-Q8_0.gguf\n  animctl model add --dry-run ~/.cache/huggingface/hub\n  sudo animctl model add ~/Downloads/detail.safetensors\n\nJSON: models (an \
array: name, file, parts (by key: path, inside), distilled), loras (an array: name, path, models, partner, called_distilled), next, \
notes (an array); with --dry-run models, loras, parts, unclear, passed_over and notes, as `animd-engine find --json` prints them"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch that a person types")]
pub struct Add {
    #[command(flatten)]
    search: Search,
    /// Call the model this [default: after its transformer]
    #[arg(long, value_name = "NAME", conflicts_with = "all", value_parser = name)]
    name: Option<String>,
    /// Whether it was distilled to few steps, which no file says; jobs then get the few steps
    #[arg(long, value_name = "yes|no", value_parser = ["yes", "no"])]
    distilled: Option<String>,
    /// Add every model that is found, the first one for use
    #[arg(long)]
    all: bool,
    /// Leave the configured model as it is; jobs choose this one by `--model NAME`
    #[arg(long)]
    no_use: bool,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// Leave LoRAs that are found where they are, and add models only
    #[arg(long)]
    no_loras: bool,
    /// Replace a model of the same name
    #[arg(long)]
    replace: bool,
    /// Only say what is there, what fits together, and what is missing
    #[arg(long)]
    dry_run: bool,
}

fn name(text: &str) -> std::result::Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// A model that is to be added.
struct Addition {
    found: FoundModel,
    file: ModelFile,
    /// Where the model file is written.
    place: PathBuf,
    shown: Shown,
}

/// A model that the service knows before anything is added.
struct Known {
    name: String,
    path: PathBuf,
    /// The model as it lies on this machine.
    outside: Outside,
}

impl Known {
    /// Returns the models that have names, and the configured one. One that cannot be read is for `doctor` to tell.
    fn all(config: &Config, on: On) -> Vec<Self> {
        let sandbox = Sandbox::of(on.user);
        let paths: BTreeSet<PathBuf> =
            config.models.list().into_values().chain(config.model.path.clone()).collect();
        let known = paths.into_iter().filter_map(|path| {
            let outside = Outside::of(&path, &sandbox).ok()?;
            let named =
                if outside.path().is_dir() { outside.path().file_name() } else { outside.path().file_stem() };
            let name = named?.to_string_lossy().into_owned();
            Some(Self { name, path, outside })
        });
        known.collect()
    }
}

pub async fn run(args: &Add, on: On) -> Result {
    let config = config::load(None, on.user)?.config;
    let program = config.engine_program();
    let person = if on.json { Person::nobody() } else { Person::at_terminal() };
    let known = Known::all(&config, on);
    let outside: Vec<&Path> = known.iter().map(|known| known.outside.path()).collect();
    let mut findings = args.search.run(&program, &outside)?;
    if args.dry_run {
        return dry_run(&findings, on);
    }
    if !on.user {
        needs_root(&command())?;
    }
    if let [one, two] = &findings.unclear[..]
        && findings.models.is_empty()
        && let Some(first) = person.noisy([one, two])?
    {
        let (high, low) = if first { (one, two) } else { (two, one) };
        let search =
            Search { high_noise: Some(high.clone()), low_noise: Some(low.clone()), ..args.search.clone() };
        findings = search.run(&program, &outside)?;
    }
    let whole: Vec<FoundModel> = findings.models.iter().filter(|model| model.is_whole()).cloned().collect();
    let only_loras = findings.models.is_empty() && findings.unclear.is_empty() && !args.no_loras;
    let models = match whole.len() {
        0 if only_loras && findings.loras.iter().any(|lora| !lora.models.is_empty()) => Vec::new(),
        0 => return Err(nothing_whole(&findings)),
        1 => whole,
        _ if args.all => whole,
        _ => person.which(whole)?,
    };
    let mut notes = remarks(&findings);
    let loras = match args.no_loras {
        true => Loras::default(),
        false => {
            let names = models.iter().map(|model| &model.name).chain(known.iter().map(|known| &known.name));
            Loras::choose(&findings, &names.cloned().collect(), &args.search.paths, on.user)?
        }
    };
    notes.extend(loras.notes.iter().cloned());
    let mut additions = Vec::new();
    for found in models {
        additions.push(addition(args, found, &person, &mut notes)?);
    }
    let mut added = Added { additions, loras, known };
    let next = if on.user {
        for_user(args, &mut added, on).await?
    } else {
        for_system(args, &mut added, &program, &mut notes).await?
    };
    tell(&added, next, &notes, on);
    Ok(Exit::Done)
}

/// What is added, and what the service knew before.
struct Added {
    additions: Vec<Addition>,
    loras: Loras,
    known: Vec<Known>,
}

impl Added {
    /// Returns the known models that are opened with the `LoRAs` which go with none of the new ones: one for each of these.
    fn others(&self) -> Vec<&Known> {
        let mut tried: BTreeSet<&str> = self.additions.iter().map(|addition| &*addition.found.name).collect();
        let mut others = Vec::new();
        for models in self.loras.models() {
            if models.iter().any(|model| tried.contains(&**model)) {
                continue;
            }
            if let Some(known) = self.known.iter().find(|known| models.contains(&known.name)) {
                tried.insert(&known.name);
                others.push(known);
            }
        }
        others
    }

    /// Returns what the service is shown for each model and each place of `LoRAs`.
    fn shown(&self) -> impl Iterator<Item = &Shown> {
        let of_models = self.additions.iter().map(|addition| &addition.shown);
        of_models.chain(self.loras.places.iter().map(|place| &place.shown))
    }
}

/// Returns this command as it was typed, for a sentence.
fn command() -> String {
    let words = std::env::args().skip(1).map(|word| quoted(&word));
    std::iter::once("animctl".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn dry_run(findings: &Findings, on: On) -> Result {
    match on.json {
        true => print(serde_json::to_value(findings).map_err(|e| Failure::new(e.to_string()))?),
        false => print(findings),
    }
    let whole = findings.models.iter().any(FoundModel::is_whole);
    Ok(if whole { Exit::Done } else { Exit::Failed })
}

/// Returns what is worth a word besides the models that are added: files that were passed over, and places.
fn remarks(findings: &Findings) -> Vec<String> {
    let passed = findings.passed_over.iter().filter(|passed| !passed.other_model);
    passed.map(|passed| passed.why.clone()).chain(findings.notes.iter().cloned()).collect()
}

fn addition(args: &Add, found: FoundModel, person: &Person, notes: &mut Vec<String>) -> Result<Addition> {
    let name = args.name.clone().unwrap_or_else(|| found.name.clone());
    let hint = "no name of a file says that it was distilled to few steps; if it was, add it again with `--distilled yes`";
    let distilled = match (args.distilled.as_deref(), found.called_distilled) {
        (Some(answer), _) => Some(answer == "yes"),
        (None, true) => {
            notes.push(format!(
                "by its name `{name}` was distilled to few steps, and jobs get these; if it was not, add it again with `--distilled no`"
            ));
            Some(true)
        }
        (None, false) => {
            let answer = person.distilled(&found)?;
            notes.extend(answer.is_none().then(|| format!("`{name}`: {hint}")));
            answer
        }
    };
    for chosen in &found.parts {
        if let Some(because) = &chosen.because {
            let key = chosen.key.replace('_', "-");
            let others = chosen.others.iter().map(|other| format!("`{}`", show(&other.path)));
            let others = others.take(3).collect::<Vec<_>>().join(", ");
            let others = if others.is_empty() {
                String::new()
            } else {
                format!("; --{key} takes another one, such as {others}")
            };
            notes.push(format!("`{name}` has `{}` as {key}: {because}{others}", show(&chosen.part.path)));
        }
    }
    let sampling = Sampling { distilled, ..Sampling::default() };
    let file = ModelFile { name, parts: found.paths(), sampling, ..ModelFile::default() };
    Ok(Addition { found, file, place: PathBuf::new(), shown: Shown::default() })
}

/// Refuses to replace another model of the same name, unless that is wanted.
fn check_replaced(args: &Add, path: &Path, file: &ModelFile) -> Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if text != file.to_toml() && !args.replace => Err(Failure::new(format!(
            "another model is called `{0}` (`{1}`); --name gives this one another name, and --replace replaces that one",
            file.name,
            show(path)
        ))),
        _ => Ok(()),
    }
}

async fn for_system(
    args: &Add,
    added: &mut Added,
    program: &Path,
    notes: &mut Vec<String>,
) -> Result<&'static str> {
    let root = Path::new("/");
    let mut all = Plan::default();
    added.loras.plan(&mut all);
    for (n, Addition { found, file, place, shown }) in added.additions.iter_mut().enumerate() {
        file.parts = inside(found, shown)?;
        let mut plan = place::plan(file, shown);
        check_replaced(args, &plan.inside, file)?;
        place.clone_from(&plan.inside);
        if n == 0 && !args.no_use {
            place::choose(&mut plan);
            notes.extend(switch::overruled(&config::load(None, false)?));
        }
        all.files.extend(plan.files);
        all.gone.extend(plan.gone);
        all.links.extend(plan.links);
    }
    if !trial::has_systemd() {
        if let Some(why) = added.shown().find_map(unreadable) {
            return Err(Failure::new(why));
        }
        notes.push("systemd does not run here, so nothing was tried".to_owned());
        all.or_undo(root, || all.write(root))?;
        return Ok("it is used when animd is started");
    }
    let before = all.before(root)?;
    if let Err(e) = put_in_force(&all, added, program).await {
        let e = before.undo(&e);
        // The files are as they were, and systemd should know them so.
        reread()?;
        return Err(e);
    }
    restart()
}

/// Writes the files, and tries each model, and the `LoRAs` that go with it, in the sandbox that they make.
async fn put_in_force(all: &Plan, added: &Added, program: &Path) -> Result<()> {
    let root = Path::new("/");
    all.write(root)?;
    reread()?;
    for shown in added.shown() {
        trial::read_back(&shown.written().0).await?;
    }
    let refused = |e: Failure| match e
        .text
        .contains("Permission denied")
        .then(|| added.shown().find_map(unreadable))
        .flatten()
    {
        Some(why) => Failure { text: why, ..e },
        None => e,
    };
    for Addition { found, file, .. } in &added.additions {
        let model = root.join(place::model_file(&file.name));
        trial::open(program, &model, &added.loras.arguments(&found.name)).map_err(refused)?;
    }
    for Known { name, path, .. } in added.others() {
        trial::open(program, path, &added.loras.arguments(name)).map_err(refused)?;
    }
    Ok(())
}

/// Returns the paths of a model's parts as the service sees them.
fn inside(found: &FoundModel, shown: &mut Shown) -> Result<PartPaths> {
    // A whole folder first: files in it need not be shown again.
    let mut parts: Vec<_> = found.parts.iter().collect();
    parts.sort_by_key(|chosen| !chosen.part.path.is_dir());
    let mut seen = found.clone();
    for chosen in parts {
        let path = shown.add(&chosen.part)?;
        seen.parts
            .iter_mut()
            .filter(|one| one.key == chosen.key)
            .for_each(|one| one.part.path.clone_from(&path));
    }
    Ok(seen.paths())
}

/// Returns the first file that the service's user may not read, with what would help. Lists of access rights are not looked at.
fn unreadable(shown: &Shown) -> Option<String> {
    let user = service_user()?;
    let files = |source: &PathBuf| match source.is_dir() {
        true => std::fs::read_dir(source).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
        false => vec![source.clone()],
    };
    shown.binds.iter().find_map(|(source, _)| {
        let why = std::iter::once(source.clone())
            .chain(files(source))
            .find_map(|file| refusal_from(source, &file, &user, READ))?;
        let source = quoted(&show(source));
        Some(format!("{why}; allow it: `chmod -R a+rX {source}`, or `setfacl -R -m u:animd:rX {source}`"))
    })
}

async fn for_user(args: &Add, added: &mut Added, on: On) -> Result<&'static str> {
    let loaded = config::load(None, true)?;
    let program = loaded.config.engine_program();
    for Known { name, path, .. } in added.others() {
        let unchanged = |e: Failure| Failure { text: format!("{}; nothing is changed", e.text), ..e };
        search::open(&program, path, &added.loras.arguments(name)).map_err(unchanged)?;
    }
    let folder = loaded.config.models.own().to_owned();
    std::fs::create_dir_all(&folder).map_err(Failure::file("make", &folder))?;
    for Addition { found, file, place: path, .. } in &mut added.additions {
        *path = folder.join(format!("{}.toml", file.name));
        let path = &*path;
        check_replaced(args, path, file)?;
        let before = std::fs::read(path).ok();
        write_atomic(path, file.to_toml().as_bytes(), 0o644).map_err(Failure::file("write", path))?;
        if let Err(e) = search::open(&program, path, &added.loras.arguments(&found.name)) {
            // The first error is the one to report.
            _ = match before {
                Some(bytes) => write_atomic(path, &bytes, 0o644),
                None => std::fs::remove_file(path),
            };
            return Err(Failure { text: format!("{}; nothing is changed", e.text), ..e });
        }
    }
    let sources = Sources { user: true, vars: std::env::vars_os().collect(), ..Sources::default() };
    added.loras.write(&sources.drop_ins()?)?;
    match added.additions.first().filter(|_| !args.no_use) {
        Some(first) => switch::choose_for_user(&sources, &first.place, on).await,
        None if added.loras.is_empty() => Ok("jobs choose it by its name"),
        None => Ok(match on.connect().await {
            Ok(ctl) if ctl.manager.reload().await.is_ok() => "jobs choose it by its name",
            _ => "jobs choose it by its name when animd is started",
        }),
    }
}

fn tell(Added { additions, loras, .. }: &Added, next: &str, notes: &[String], on: On) {
    if on.json {
        let models: Vec<Value> = additions.iter().map(described).collect();
        return print(json!({"models": models, "loras": loras.json(), "next": next, "notes": notes}));
    }
    for Addition { found, file, .. } in additions {
        print(format!("`{}` is added: {}", file.name, found.family));
        for chosen in &found.parts {
            print(format!("    {:<11} {}", chosen.key, show(&chosen.part.path)));
        }
    }
    loras.words().iter().for_each(print);
    for note in notes {
        print(note);
    }
    let what = if additions.is_empty() { "them with a model" } else { "it" };
    print(format!("the engine has opened {what}; {next}"));
}

fn described(Addition { found, file, place, .. }: &Addition) -> Value {
    let parts: serde_json::Map<String, Value> = found
        .parts
        .iter()
        .map(|chosen| {
            let inside = file.parts.named().find(|(key, _)| *key == chosen.key).map(|(_, path)| show(path));
            (chosen.key.clone(), json!({"path": show(&chosen.part.path), "inside": inside}))
        })
        .collect();
    json!({"name": file.name, "file": show(place), "parts": parts, "distilled": file.sampling.distilled})
}
