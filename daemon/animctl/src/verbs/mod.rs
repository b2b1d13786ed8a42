//! `animctl`, the client of animd's bus interface: one file a verb.

mod batch;
mod bundle;
mod cancel;
mod config;
mod demo;
mod doctor;
mod drain;
mod dropin;
mod engine;
mod exit;
mod export;
mod facts;
mod fetch;
mod folder;
mod follow;
mod forget;
mod history;
mod inline;
mod jobs;
mod list;
mod logs;
mod meter;
mod model;
mod pause;
mod plan;
mod priority;
mod profile;
mod queue;
mod reload;
mod report;
mod retry;
mod settings;
mod setup;
mod show;
mod started;
mod stats;
mod status;
mod submit;
mod table;
mod term;
mod unload;
mod warm;
mod watch;
mod who;

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use animd_client::{JobProxy, ManagerProxy};
use animd_common::bus::NAME;
use animd_common::text::harmless;
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::Value;
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo};

use exit::{Failure, Result};

pub use exit::Exit;

/// Sends pictures to animd and shows what becomes of them.
///
/// Without --user or --system it uses the animd of your session if one runs there, and otherwise the machine's.
///
/// `watch` shows jobs as they run; `folder` manages the folders that animd watches for pictures.
#[derive(Parser)]
#[command(
    name = "animctl",
    version,
    after_help = format!("Example: animctl submit photo.jpg -p 'The waves roll in' --wait\n\n{}", exit::table())
)]
pub struct Args {
    /// Print JSON: one object, or an array of them; each verb's --help names the keys
    #[arg(long, global = true, display_order = 900)]
    json: bool,
    /// Use your own animd, on the session bus
    #[arg(long, global = true, conflicts_with = "system", display_order = 901)]
    user: bool,
    /// Use the machine's animd, on the system bus
    #[arg(long, global = true, display_order = 902)]
    system: bool,
    #[command(subcommand)]
    verb: Verb,
}

// The help of each verb is the comment above its `Args`: the first paragraph is for the list of verbs, the rest for the
// verb's own --help.
#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Submit(Box<submit::Args>),
    Demo(demo::Args),
    Status(status::Args),
    List(list::Args),
    Show(show::Args),
    Watch(watch::Args),
    Fetch(fetch::Args),
    Cancel(cancel::Args),
    Retry(Box<retry::Args>),
    Priority(priority::Args),
    Forget(forget::Args),
    Plan(Box<plan::Args>),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Warm(warm::Args),
    Unload(unload::Args),
    Drain(drain::Args),
    History(history::Args),
    Stats(stats::Args),
    Report(report::Args),
    Export(export::Args),
    Logs(logs::Args),
    #[command(visible_alias = "profiles")]
    Profile(profile::Args),
    Model(model::Args),
    Folder(folder::Args),
    Config(config::Args),
    Reload(reload::Args),
    Doctor(doctor::Args),
    Bench(engine::Bench),
    Selftest(engine::Selftest),
}

/// Returns the command line, for manual pages and completions.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs `animctl` as a program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("animctl: {e}");
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(run(args)) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, text }) => {
            eprintln!("animctl: {}", harmless(&text));
            exit.into()
        }
    }
}

async fn run(args: Args) -> Result {
    let on = On { user: args.user, system: args.system, json: args.json }.decide().await;
    match args.verb {
        // These verbs need no service, or find out whether there is one.
        Verb::Config(verb) => config::run(&verb, on),
        Verb::Logs(verb) => logs::run(&verb, on),
        Verb::Bench(verb) => engine::bench(&verb, on),
        Verb::Selftest(verb) => engine::selftest(&verb, on),
        Verb::Setup(verb) => setup::run(&verb, on).await,
        Verb::Doctor(verb) => doctor::run(&verb, on).await,
        Verb::Model(verb) => model::run(&verb, on).await,
        Verb::Folder(verb) => folder::run(&verb, on).await,
        Verb::Submit(verb) => submit::run(*verb, &on.connect().await?).await,
        Verb::Demo(verb) => demo::run(&verb, &on.connect().await?).await,
        Verb::Status(verb) => status::run(&verb, &on.connect().await?).await,
        Verb::List(verb) => list::run(&verb, &on.connect().await?).await,
        Verb::Show(verb) => show::run(&verb, &on.connect().await?).await,
        Verb::Watch(verb) => watch::run(&verb, &on.connect().await?).await,
        Verb::Fetch(verb) => fetch::run(&verb, &on.connect().await?).await,
        Verb::Cancel(verb) => cancel::run(&verb, &on.connect().await?).await,
        Verb::Retry(verb) => retry::run(*verb, &on.connect().await?).await,
        Verb::Priority(verb) => priority::run(&verb, &on.connect().await?).await,
        Verb::Forget(verb) => forget::run(&verb, &on.connect().await?).await,
        Verb::Plan(verb) => plan::run(*verb, &on.connect().await?).await,
        Verb::Pause(verb) => pause::pause(&verb, &on.connect().await?).await,
        Verb::Resume(verb) => pause::resume(&verb, &on.connect().await?).await,
        Verb::Warm(verb) => warm::run(&verb, &on.connect().await?).await,
        Verb::Unload(verb) => unload::run(&verb, &on.connect().await?).await,
        Verb::Drain(verb) => drain::run(&verb, &on.connect().await?).await,
        Verb::History(verb) => history::run(&verb, &on.connect().await?).await,
        Verb::Stats(verb) => stats::run(&verb, &on.connect().await?).await,
        Verb::Report(verb) => report::run(&verb, &on.connect().await?).await,
        Verb::Export(verb) => export::run(&verb, &on.connect().await?).await,
        Verb::Profile(verb) => profile::run(&verb, &on.connect().await?).await,
        Verb::Reload(verb) => reload::run(&verb, &on.connect().await?).await,
    }
}

/// Which animd to ask.
#[derive(Clone, Copy)]
struct On {
    /// Ask the session's animd, because that was requested or one runs there; else ask the system's.
    user: bool,
    /// The system's animd was requested.
    system: bool,
    json: bool,
}

/// A connection to an animd.
struct Ctl {
    connection: Connection,
    manager: ManagerProxy<'static>,
    json: bool,
}

impl On {
    /// Decides which animd to ask where neither --user nor --system is given: the session's if one runs there. This is
    /// decided once, so that no verb reads from one animd and changes the other.
    async fn decide(self) -> Self {
        let user = self.user || (!self.system && session_has_animd().await);
        Self { user, ..self }
    }

    async fn connect(self) -> Result<Ctl> {
        let connection = self.bus().await?;
        // No property is cached: a restart of the service would leave the cache stale.
        let manager =
            ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
        Ok(Ctl { connection, manager, json: self.json })
    }

    async fn bus(self) -> Result<Connection> {
        if self.user {
            let unreachable =
                |e: zbus::Error| Failure::unreachable(format!("the session bus cannot be reached: {e}"));
            return Connection::session().await.map_err(unreachable);
        }
        Connection::system().await.map_err(|e| {
            Failure::unreachable(match self.system {
                true => format!("the system bus cannot be reached: {e}"),
                false => format!(
                    "no animd runs on the session bus, and the system bus cannot be reached ({e}); start your own with \
                     `animd --user`, or the machine's with `systemctl start animd`"
                ),
            })
        })
    }
}

/// Returns whether an animd runs on the session bus, if there is one.
async fn session_has_animd() -> bool {
    let asked = async {
        let session = Connection::session().await?;
        let bus = fdo::DBusProxy::new(&session).await?;
        zbus::Result::Ok(bus.list_names().await?.iter().any(|name| name.as_str() == NAME))
    };
    std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some() && asked.await.unwrap_or(false)
}

impl Ctl {
    /// Returns a proxy of a job's object, which the service is asked to make.
    async fn job(&self, id: u64) -> Result<JobProxy<'static>> {
        let path = self.manager.get_job(id).await?;
        let job = JobProxy::builder(&self.connection).path(path);
        Ok(job.cache_properties(CacheProperties::No).build().await?)
    }

    /// Prints what a verb did: the object with --json, else the sentence.
    fn tell(&self, object: &Value, sentence: &str) {
        if self.json { print(object) } else { print(sentence) }
    }
}

/// Returns the parser of a path on the command line, where `~` works also if the shell has not expanded it.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(animd_common::home::typed)
}

/// Parses the number of a job on the command line.
fn job_number(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| "a job has a whole number; `animctl list` shows the jobs".into())
}

/// Parses a whole number on the command line.
fn whole<T: FromStr>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|_| format!("must be a whole number, 0 or more, not {text}"))
}

/// Parses a number of things on the command line of which there should be some.
fn count<T: FromStr + Default + PartialEq>(text: &str) -> std::result::Result<T, String> {
    let number = text.parse().ok().filter(|number| *number != T::default());
    number.ok_or_else(|| format!("must be a whole number, 1 or more, not {text}"))
}

/// Returns a dictionary of the bus as JSON.
fn json_of(dict: &animd_client::Dict) -> Value {
    dict.iter().filter_map(|(key, value)| Some((key.clone(), animd_common::bus::json(value)?))).collect()
}

/// Returns the texts of a list; none of a value that is no list.
fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Tells a person something beside the data.
fn tell(line: &str) {
    eprintln!("{}", harmless(line));
}

/// Prints a line for people, or JSON, which means the same after it has been made harmless. A reader that has gone away is
/// not an error; if the line cannot be written for another reason, the program ends.
fn print(line: impl std::fmt::Display) {
    write_line(&harmless(&line.to_string()));
}

/// Prints a line of CSV or TOML. A file or a pipe gets it as it is, because an escape would be another text there; a terminal
/// gets it as [`print`] prints it. It fails as [`print`] does.
fn print_data(line: impl std::fmt::Display) {
    write_line(&data(&line.to_string(), io::stdout().is_terminal()));
}

/// Returns a line that programs read as a terminal gets it, or as a file or a pipe does.
fn data(line: &str, terminal: bool) -> Cow<'_, str> {
    if terminal { harmless(line) } else { line.into() }
}

fn write_line(line: &str) {
    if let Err(e) = writeln!(io::stdout(), "{line}")
        && e.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("animctl: cannot write to standard output: {e}");
        std::process::exit(Exit::Failed.code().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_gets_data_with_escapes() {
        let path = "/out/\u{202e}gnp.mp4";
        assert_eq!(data(path, false), path);
        assert_eq!(data(path, true), "/out/\\u202egnp.mp4");
    }
}
