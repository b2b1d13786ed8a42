//! `animctl`, the client of animd's bus interface: one file a verb.

mod cancel;
mod list;
mod show;
mod status;
mod submit;

use std::process::ExitCode;

use animd::bus::NAME;
use animd::client::ManagerProxy;
use clap::{Parser, Subcommand};
use zbus::{Connection, fdo};

/// The job failed, or the service refused.
const FAILED: u8 = 1;
/// The service cannot be reached.
const UNREACHABLE: u8 = 3;
/// The job was cancelled.
const CANCELED: u8 = 4;

/// Sends pictures to animd and shows what becomes of them.
///
/// Without --user or --system it asks the animd of this session, if one runs there, and else the system's.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: animctl submit photo.jpg -p 'The waves roll in' --wait\n\nExit codes: 0 done, 1 failed or refused, 2 \
wrong usage, 3 no animd to be reached, 4 cancelled"
)]
struct Args {
    /// Print JSON: one object, or for `list` an array
    #[arg(long, global = true)]
    json: bool,
    /// Ask the animd on the session bus
    #[arg(long, global = true, conflicts_with = "system")]
    user: bool,
    /// Ask the animd on the system bus
    #[arg(long, global = true)]
    system: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a video of a picture
    Submit(Box<submit::Args>),
    /// Show what animd is doing
    Status(status::Args),
    /// List jobs, the newest first
    List(list::Args),
    /// Show everything about a job
    Show(show::Args),
    /// Cancel a job
    Cancel(cancel::Args),
}

/// What went wrong, and the exit code that says so.
struct Failure {
    code: u8,
    text: String,
}

type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }
}

impl From<zbus::Error> for Failure {
    fn from(e: zbus::Error) -> Self {
        match e {
            zbus::Error::MethodError(name, text, _) => {
                let gone =
                    ["ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Spawn.ServiceNotFound"];
                if gone.iter().any(|g| name.as_str() == format!("org.freedesktop.DBus.Error.{g}")) {
                    return Self {
                        code: UNREACHABLE,
                        text: "animd does not run: `systemctl start animd`, or `animd --user`".into(),
                    };
                }
                Self::new(text.unwrap_or_else(|| name.to_string()))
            }
            zbus::Error::FDO(e) => (*e).into(),
            zbus::Error::InputOutput(e) => Self { code: UNREACHABLE, text: format!("the message bus: {e}") },
            e => Self::new(e.to_string()),
        }
    }
}

impl From<fdo::Error> for Failure {
    fn from(e: fdo::Error) -> Self {
        match e {
            fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) | fdo::Error::NoReply(_) => Self {
                code: UNREACHABLE,
                text: "animd does not run: `systemctl start animd`, or `animd --user`".into(),
            },
            fdo::Error::ZBus(e) => e.into(),
            e => Self::new(e.to_string()),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("animctl: {e}");
            return FAILED.into();
        }
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code.into(),
        Err(Failure { code, text }) => {
            eprintln!("animctl: {text}");
            code.into()
        }
    }
}

async fn run(args: Args) -> Result<u8> {
    let connection = connect(args.user, args.system).await?;
    let manager = ManagerProxy::new(&connection).await?;
    match args.verb {
        Verb::Submit(verb) => submit::run(*verb, &connection, &manager, args.json).await,
        Verb::Status(verb) => status::run(&verb, &manager, args.json).await,
        Verb::List(verb) => list::run(&verb, &manager, args.json).await,
        Verb::Show(verb) => show::run(&verb, &connection, &manager, args.json).await,
        Verb::Cancel(verb) => cancel::run(&verb, &connection, &manager, args.json).await,
    }
}

async fn connect(user: bool, system: bool) -> Result<Connection> {
    let unreachable = |what: &str| {
        let what = what.to_owned();
        move |e: zbus::Error| Failure {
            code: UNREACHABLE,
            text: format!("the {what} bus cannot be reached: {e}"),
        }
    };
    if user {
        return Connection::session().await.map_err(unreachable("session"));
    }
    if !system
        && std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        && let Ok(session) = Connection::session().await
    {
        let bus = fdo::DBusProxy::new(&session).await?;
        let name = zbus::names::BusName::try_from(NAME).map_err(|e| Failure::new(e.to_string()))?;
        if bus.name_has_owner(name).await? {
            return Ok(session);
        }
    }
    Connection::system().await.map_err(unreachable("system"))
}

/// A value of the bus as JSON.
fn json_of(dict: &std::collections::HashMap<String, zbus::OwnedVariant>) -> serde_json::Value {
    let map: std::collections::BTreeMap<&String, serde_json::Value> =
        dict.iter().filter_map(|(key, value)| Some((key, animd::bus::json(value)?))).collect();
    serde_json::to_value(map).unwrap_or_default()
}

/// Prints a line of data; a reader that has gone away is no error.
fn print(line: impl std::fmt::Display) {
    use std::io::Write as _;
    _ = writeln!(std::io::stdout(), "{line}");
}
