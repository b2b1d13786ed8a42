//! `animctl setup`

mod act;
mod fetch;
mod machine;
mod places;
mod step;

use std::io::{BufRead, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use animd_common::files::show;
use animd_common::users;
use animd_protocol::findings::{Findings, FoundLora, FoundModel, in_units};
use animd_protocol::sources::{Family, Kind};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;

use super::config::load;
use super::exit::{Exit, Failure, Result};
use super::model::search::Search;
use super::{On, path, print};
use act::Scene;
use fetch::Missing;
use machine::Machine;
use step::{Run, State, Step};

/// Set animd up, from the card to the first video.
///
/// It says what this machine's card can run, looks for model files where programs keep them, and says what to fetch, with
/// sizes, licences and commands: it downloads nothing itself. Then it adds the model, verifies its files, prepares a copy in 8 bits
/// where that pays, and makes a first video. Each step finds out whether its result is there, so setup can be run again at any
/// time and goes on where it was. Before it runs a command it asks; away from a terminal it only says what is to do, unless --yes
/// is given.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  sudo animctl setup\n  animctl --user setup --picture photo.jpg --yes\n  animctl setup /mnt/models --files \
gguf-q4 --json\n\nExit code 1: something is left to do.\n\nJSON: ok (nothing is left), steps: an array of objects with name, state (done, todo, skipped, \
failed), message, commands (an array), and more by step: machine profile, service (its state), gpu, seconds; files models, places; fetch family, \
kind, bytes, folder, free, parts"
)]
pub struct Args {
    /// More files and folders to look for models in
    #[arg(value_name = "PATH", value_parser = path())]
    places: Vec<PathBuf>,
    /// Which model [default: the one that is there, else wan2.1-i2v-480p]
    #[arg(long, value_name = "MODEL", value_parser = family())]
    family: Option<Family>,
    /// Which files to fetch [default: ComfyUI's in fp8; on slow cards the ones distilled to 4 steps]
    #[arg(long, value_name = "KIND", value_parser = kind())]
    files: Option<Kind>,
    /// Where fetched files go [default: the model's name in ~/models]
    #[arg(long, value_name = "DIR", value_parser = path())]
    folder: Option<PathBuf>,
    /// The picture of the first video [default: the small model's own]
    #[arg(long, value_name = "FILE", value_parser = path())]
    picture: Option<PathBuf>,
    /// Leave these steps out
    #[arg(long, value_name = "STEP,...", value_delimiter = ',', value_parser = ["verify", "prepare", "video"])]
    skip: Vec<String>,
    /// Run the commands without asking
    #[arg(short, long)]
    yes: bool,
}

fn family() -> impl TypedValueParser<Value = Family> {
    let named = |name: String| Family::ALL.into_iter().find(|family| family.name() == name);
    PossibleValuesParser::new(Family::ALL.map(Family::name))
        .try_map(move |name| named(name).ok_or("no such model"))
}

fn kind() -> impl TypedValueParser<Value = Kind> {
    let named = |name: String| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    PossibleValuesParser::new(Kind::ALL.map(Kind::name))
        .try_map(move |name| named(name).ok_or("no such files"))
}

pub async fn run(args: &Args, on: On) -> Result {
    let loaded = load(None, on.user)?;
    let machine = Machine::ask(on).await;
    let configured = act::configured(&loaded, on);
    let homes = homes();
    let usual = places::usual(&|name| std::env::var_os(name), &homes);
    let looked: Vec<PathBuf> = args.places.iter().cloned().chain(usual).collect();
    let places: Vec<PathBuf> = configured.iter().chain(&looked).cloned().collect();
    let findings = match places.is_empty() {
        true => Findings::default(),
        false => {
            Search { paths: places.clone(), ..Search::default() }.run(&loaded.config.engine_program(), &[])?
        }
    };
    let fits = |model: &FoundModel| args.family.is_none_or(|family| fetch::family_of(model) == family);
    let model = act::choose(&findings, &configured, fits);
    let family = args.family.or(model.map(fetch::family_of)).unwrap_or(Family::Wan21I2v480p);

    let mut told = Told { on, steps: Vec::new() };
    told.tell(machine.step(family, on));
    told.tell(files(&findings, model, &looked));
    told.tell(match model {
        Some(model) => fetch::nothing(model),
        None => {
            let missing = Missing::new(&findings, args.family, args.files, |family| machine.kind(family));
            let home = homes.first().map_or(Path::new("/var/lib/animd"), |home| home);
            let folder = home.join("models").join(missing.family.title());
            missing.step(args.folder.as_deref().unwrap_or(&folder))
        }
    });
    let skipped = |name: &str| args.skip.iter().any(|skip| skip == name);
    for name in ["add", "verify", "prepare", "video"].into_iter().filter(|name| !skipped(name)) {
        let found = Found { model, loras: &findings.loras, searched: &places };
        let step = perform(look(name, args, found, on).await?, args.yes, on)?;
        // What was done is looked at again, and said as the next time will.
        let again = if step.state == State::Done { look(name, args, found, on).await? } else { step.clone() };
        told.tell(if again.is_settled() { again } else { step });
    }
    Ok(told.end())
}

/// What the search has found that the steps work with.
#[derive(Clone, Copy)]
struct Found<'a> {
    model: Option<&'a FoundModel>,
    loras: &'a [FoundLora],
    searched: &'a [PathBuf],
}

/// Returns a step as it is now: each one before it may have changed the configuration and the service's state.
async fn look(name: &str, args: &Args, found: Found<'_>, on: On) -> Result<Step> {
    let (loaded, machine) = (load(None, on.user)?, Machine::ask(on).await);
    let picture = args.picture.as_deref();
    let Found { model, loras, searched } = found;
    let scene = Scene { on, loaded: &loaded, machine: &machine, model, loras, searched, picture };
    Ok(match name {
        "add" => act::add(&scene),
        "verify" => act::verify(&scene),
        "prepare" => act::prepare(&scene),
        _ => act::video(&scene).await,
    })
}

/// The steps that were told so far.
struct Told {
    on: On,
    steps: Vec<Step>,
}

impl Told {
    fn tell(&mut self, step: Step) {
        if !self.on.json {
            step.show();
        }
        self.steps.push(step);
    }

    fn end(self) -> Exit {
        let ok = self.steps.iter().all(Step::is_settled);
        if self.on.json {
            print(json!({"ok": ok, "steps": self.steps}));
        }
        if ok { Exit::Done } else { Exit::Failed }
    }
}

/// Says what was found, and where.
fn files(findings: &Findings, model: Option<&FoundModel>, places: &[PathBuf]) -> Step {
    const NAME: &str = "files";
    let searched = match places {
        [] => "no usual place for models is there".to_owned(),
        _ => format!("looked in {}", places.iter().map(show).collect::<Vec<_>>().join(", ")),
    };
    let mut lines: Vec<String> = Vec::new();
    for found in &findings.models {
        let what = if found.is_whole() { "whole" } else { "not whole" };
        lines.push(format!("`{}`: {}, {what}", found.name, found.family));
        for chosen in &found.parts {
            lines.push(format!(
                "  {}: `{}`, {}",
                chosen.key,
                show(&chosen.part.path),
                in_units(chosen.part.bytes)
            ));
        }
        lines.extend(found.missing.iter().map(|missing| format!("  {}: {}", missing.key, missing.sentence)));
    }
    if findings.models.is_empty() {
        lines.push("no model was found".to_owned());
        let parts =
            findings.parts.iter().map(|part| format!("  {}: `{}`", part.kind.title(), show(&part.path)));
        lines.extend(parts);
    }
    let useful = findings.loras.iter().filter(|lora| !lora.models.is_empty());
    lines.extend(useful.map(|lora| format!("LoRA {}: for {}", lora.name, lora.models.join(", "))));
    // What to fetch is a step of its own.
    lines.extend(findings.notes.iter().filter(|note| !note.contains("hf download")).cloned());
    lines.push(searched);
    let message = lines.join("\n");
    let step = match model {
        Some(_) => Step::done(NAME, message),
        None => Step::todo(NAME, message, Vec::new()),
    };
    let places: Vec<String> = places.iter().map(show).collect();
    step.with("models", serde_json::to_value(&findings.models).unwrap_or_default()).with("places", places)
}

/// Runs a step's commands after asking, and returns the step as it is then.
fn perform(step: Step, yes: bool, on: On) -> Result<Step> {
    if step.state != State::Todo || step.runs.is_empty() || !(yes || agreed(&step, on)?) {
        return Ok(step);
    }
    for run in &step.runs {
        if let Err(why) = do_run(run, on) {
            return Ok(step.failed(why.text));
        }
    }
    Ok(Step { state: State::Done, commands: Vec::new(), ..step })
}

/// Asks a person at a terminal.
fn agreed(step: &Step, on: On) -> Result<bool> {
    if on.json || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Ok(false);
    }
    let failed = |e: std::io::Error| Failure::new(format!("cannot ask: {e}"));
    let commands = step.commands.join("\n  ");
    print(format!("{}: {}\n  {commands}", step.name, step.message));
    eprint!("Run it now? [Y/n] ");
    std::io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    // The end of input is no consent.
    Ok(!answer.is_empty() && matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

/// Runs a verb of this program.
fn do_run(run: &Run, on: On) -> Result<()> {
    let program =
        std::env::current_exe().map_err(|e| Failure::new(format!("cannot find animctl itself: {e}")))?;
    let mut command = Command::new(program);
    command.arg(if on.user { "--user" } else { "--system" }).args(&run.args);
    // With --json, standard output is one object.
    if on.json {
        command.stdout(Stdio::null());
    }
    let status = command.status().map_err(|e| Failure::new(format!("cannot run animctl: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("`{}` failed: {status}", run.line()))),
    }
}

/// Returns the homes of the people whose models may be meant: this user's, and with sudo the caller's first.
fn homes() -> Vec<PathBuf> {
    let own = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let root = rustix::process::geteuid().is_root();
    let caller = std::env::var("SUDO_UID").ok().filter(|_| root).and_then(|uid| uid.parse().ok());
    let mut homes: Vec<PathBuf> = caller.and_then(users::home).into_iter().chain(own).collect();
    homes.dedup();
    homes
}
