//! `animctl folder`

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use animd_common::config::Config;
use animd_common::files::show;
use animd_common::places::{self, Place, Role};
use animd_protocol::sources::quoted;
use serde_json::{Value, json};
use zbus::Variant;

use super::dropin::{Plan, apply, needs_root, real, service_user};
use super::exit::{Exit, Failure, Result};
use super::settings::finite;
use super::term::{width, wrap};
use super::{On, config, json_of, path, print};
use crate::doctor::sandbox::Sandbox;
use crate::doctor::{READ, SEARCH, WRITE, refusal_from};

/// Manage the folders that are watched for pictures.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl folder add /srv/pictures\n\nTo see jobs as they run, use `animctl watch`."
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Add(Add),
    List(List),
    Remove(Remove),
}

/// Watch one more folder.
///
/// Its subfolders are watched too. It stays watched after a restart.
///
/// The installed service runs in a sandbox, which hides home folders and only lets it write to /var/lib/animd. For any other folder
/// this writes two files: one that opens the sandbox for this folder
/// (/etc/systemd/system/animd.service.d/animctl-folder-NAME.conf), and one for the configuration
/// (/etc/animd/conf.d/animctl-folder-NAME.toml). The service restarts when no job runs. For folders of your own, use
/// animd-watch, which needs none of this.
#[derive(clap::Args)]
#[command(
    after_help = "Example: sudo animctl folder add /srv/pictures --outbox /srv/videos\n\nJSON: path, inside (where the service sees \
it), next"
)]
struct Add {
    /// The folder
    #[arg(value_parser = path())]
    dir: PathBuf,
    /// Where its videos go [default: the configured outbox]
    #[arg(long, value_name = "DIR", value_parser = path())]
    outbox: Option<PathBuf>,
    /// Seconds that a picture must stay unchanged before it is taken
    #[arg(long, value_name = "SECONDS", value_parser = finite)]
    stable: Option<f64>,
    /// Scan it this often, for file systems that do not report changes
    #[arg(long, value_name = "SECONDS", value_parser = finite)]
    poll: Option<f64>,
}

/// List the watched folders.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl folder list\n\nAsks polkit (configure) where you are not root.\n\nJSON: an array of objects with path, \
outbox, origin (inbox, configuration, bus), and where it applies owner, stable_seconds, poll_seconds, polled_seconds, trouble (why \
it is not watched)"
)]
struct List {}

/// Stop watching a folder.
///
/// Jobs of its pictures stay in the queue.
#[derive(clap::Args)]
#[command(after_help = "Example: sudo animctl folder remove /srv/pictures\n\nJSON: path, next")]
struct Remove {
    /// The folder
    #[arg(value_parser = path())]
    dir: PathBuf,
}

pub async fn run(args: &Args, on: On) -> Result {
    match &args.verb {
        Verb::Add(args) => add(args, on).await,
        Verb::List(List {}) => list(on).await,
        Verb::Remove(Remove { dir }) => remove(dir, on).await,
    }
}

async fn add(args: &Add, on: On) -> Result {
    let dir = real(&args.dir)?;
    let outbox = args.outbox.as_deref().map(real).transpose()?;
    let plan = Plan::folder(&dir, outbox.as_deref(), args.stable, args.poll);
    let (inside, next) = if on.user || !plan.needs_unit() {
        let ctl = on.connect().await?;
        let text = |path: &Path| path.to_str().unwrap_or_default().to_owned();
        let outbox = outbox.as_deref().map(text);
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        if let Some(outbox) = &outbox {
            options.insert("outbox", outbox.as_str().into());
        }
        for (key, seconds) in [("stable_seconds", args.stable), ("poll_seconds", args.poll)] {
            if let Some(seconds) = seconds {
                options.insert(key, seconds.into());
            }
        }
        ctl.manager.add_watch(&text(&dir), options).await?;
        (dir.clone(), "pictures in it are taken from now on")
    } else {
        needs_root(&format!("animctl folder add {}", quoted(&show(&dir))))?;
        rights(&dir)?;
        if let Some(outbox) = &outbox {
            rights(outbox)?;
        }
        let (config, sandbox) = (config::load(None, false)?.config, Sandbox::read(Path::new("/")));
        if let Some(why) = overlap(&config, &sandbox, &plan.inside, &dir, outbox.as_deref()) {
            return Err(Failure::new(why));
        }
        let root = Path::new("/");
        let next = plan.or_undo(root, || plan.write(root).and_then(|()| apply()))?;
        (plan.inside.clone(), next)
    };
    match on.json {
        true => print(json!({"path": show(&dir), "inside": show(&inside), "next": next})),
        false => print(format!("`{}` is watched; {next}", show(&dir))),
    }
    Ok(Exit::Done)
}

/// Returns why a folder cannot be watched beside what is configured. All folders are compared by their paths outside
/// the sandbox, because inside they may not exist yet. `inside` is where the service will see the folder; what the
/// configuration says of that path is going to be replaced.
fn overlap(
    config: &Config,
    sandbox: &Sandbox,
    inside: &Path,
    dir: &Path,
    outbox: Option<&Path>,
) -> Option<String> {
    let watched = config.watch.iter().filter(|watch| watch.path != inside).flat_map(|watch| {
        let outbox = watch.outbox.as_ref().map(|path| Place::new("watch.outbox", path, Role::Outbox));
        [Place::new("watch.path", &watch.path, Role::Inbox)].into_iter().chain(outbox)
    });
    let inbox = Place::new("folders.inbox", &config.folders.inbox, Role::Inbox);
    let mut known: Vec<Place> = [inbox].into_iter().chain(config.own_places()).chain(watched).collect();
    for place in &mut known {
        place.path = sandbox.outside(&place.path).0;
    }
    let outbox = outbox.map(|path| Place::new("--outbox", path, Role::Outbox));
    let new: Vec<Place> = [Place::new("the folder", dir, Role::Inbox)].into_iter().chain(outbox).collect();
    places::overlap(&known, &new).map(|overlap| overlap.sentence)
}

/// Checks that the service's user may move pictures and write files in a folder.
fn rights(dir: &Path) -> Result<()> {
    match service_user().and_then(|user| refusal_from(dir, dir, &user, READ | WRITE | SEARCH)) {
        None => Ok(()),
        Some(why) => {
            Err(Failure::new(format!("{why}; allow it: `setfacl -m u:animd:rwx {}`", quoted(&show(dir)))))
        }
    }
}

async fn remove(dir: &Path, on: On) -> Result {
    // The folder may no longer exist.
    let dir = real(dir).or_else(|_| std::path::absolute(dir).map_err(Failure::file("find", dir)))?;
    let plan = Plan::folder(&dir, None, None, None);
    let written = !on.user && plan.files.iter().any(|(path, _)| Path::new("/").join(path).exists());
    let next = if written {
        needs_root(&format!("animctl folder remove {}", quoted(&show(&dir))))?;
        let root = Path::new("/");
        plan.or_undo(root, || plan.remove(root).and_then(|_| apply()))?
    } else {
        let ctl = on.connect().await?;
        ctl.manager.remove_watch(dir.to_str().unwrap_or_default()).await?;
        "its jobs stay in the queue"
    };
    match on.json {
        true => print(json!({"path": show(&dir), "next": next})),
        false => print(format!("`{}` is no longer watched; {next}", show(&dir))),
    }
    Ok(Exit::Done)
}

async fn list(on: On) -> Result {
    let folders: Vec<Value> = on.connect().await?.manager.watches().await?.iter().map(json_of).collect();
    if on.json {
        print(Value::Array(folders));
        return Ok(Exit::Done);
    }
    let text = |folder: &Value, key: &str| folder[key].as_str().unwrap_or_default().to_owned();
    for folder in &folders {
        let state = match folder["polled_seconds"].as_f64() {
            Some(seconds) => format!("watched, by a scan every {seconds} s"),
            None => "watched".to_owned(),
        };
        let state = folder["trouble"].as_str().map_or(state, |trouble| format!("not watched: {trouble}"));
        let from = match text(folder, "origin").as_str() {
            "inbox" => "the inbox".to_owned(),
            "bus" => "added by `animctl folder add`".to_owned(),
            origin => format!("from the {origin}"),
        };
        // Paths are not cut, so that they can be copied.
        print(text(folder, "path"));
        let outbox = format!("videos go to {}", text(folder, "outbox"));
        for line in [outbox, format!("{from}; {state}")].iter().flat_map(|text| wrap(text, width() - 4)) {
            print(format!("    {line}"));
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_compared_where_they_are_outside_of_the_sandbox() {
        let etc = tempfile::tempdir().expect("a folder");
        let ann = Plan::folder(Path::new("/home/ann/in"), Some(Path::new("/home/ann/out")), None, None);
        ann.write(etc.path()).expect("written");
        let sandbox = Sandbox::read(etc.path());
        let mut config = Config::default();
        let outbox = Some("/var/lib/animd/folders/home-ann-out".into());
        config.watch =
            vec![animd_common::config::Watch { path: ann.inside.clone(), outbox, ..Default::default() }];
        let said = |dir: &str, outbox: Option<&str>| {
            let plan = Plan::folder(Path::new(dir), None, None, None);
            overlap(&config, &sandbox, &plan.inside, Path::new(dir), outbox.map(Path::new))
        };
        for (dir, outbox, with) in [
            ("/home/ann/in/sub", None, "lies in the watched folder `/home/ann/in` (watch.path)"),
            ("/home/ann", None, "`/home/ann/in` (watch.path) lies in the watched folder `/home/ann`"),
            ("/home/ann/out", None, "where videos appear, by `/home/ann/out` (watch.outbox)"),
            ("/home/bob", Some("/home/bob/videos"), "`/home/bob/videos` (--outbox) lies in"),
            ("/home/bob", Some("/var/lib/animd/state/x"), "(folders.state) overlap"),
            ("/var/lib/animd", None, "(folders.inbox) lies in the watched folder"),
        ] {
            let said = said(dir, outbox);
            assert!(said.as_ref().is_some_and(|said| said.contains(with)), "{dir}: {said:?}");
        }
        assert_eq!(said("/home/bob", Some("/home/ann/out")), None);
        assert_eq!(said("/home/ann/in", Some("/home/ann/else")), None, "it is written anew");
    }
}
