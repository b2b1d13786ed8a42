//! The command line of `animd`.

use std::path::PathBuf;

use animd_common::config::{Given, Sources};
use animd_common::files::show;
use animd_common::home;
use clap::{CommandFactory, Parser};

use crate::error::Error;

/// A wrong configuration: starting again does not help. `EX_CONFIG` of sysexits.
pub const EXIT_CONFIG: u8 = 78;
/// Something appeared that only a new start may use: the driver's devices. `EX_TEMPFAIL` of sysexits.
pub const EXIT_NEW_START: u8 = 75;

/// The ledger is damaged, and a person has to decide. `EX_IOERR` of sysexits.
pub const EXIT_DAMAGED: u8 = 74;

/// All exit codes, and what they say.
pub const EXITS: [(u8, &str); 6] = [
    (0, "animd was stopped"),
    (1, "animd failed"),
    (2, "wrong usage"),
    (EXIT_DAMAGED, "the ledger is damaged; see --restore-ledger"),
    (EXIT_NEW_START, "animd must be started again"),
    (EXIT_CONFIG, "the configuration is wrong"),
];

/// Returns the command line, for manual pages.
pub fn command() -> clap::Command {
    Args::command()
}

/// Makes videos from pictures that are dropped into a folder or sent over D-Bus.
///
/// The configuration comes from the configuration file, then the files of `conf.d` beside it, then environment variables
/// `ANIMD_SECTION_KEY`, then these options; a later one overrides an earlier one. SIGHUP makes animd read them again.
#[derive(Parser)]
#[command(
    name = "animd",
    version,
    after_help = "Example: animd --user --model ~/models/Wan2.1-I2V-14B-480P\n\nExit codes: 0 stopped, 1 \
failed, 2 wrong usage, 74 damaged ledger, 75 animd must be started again, 78 wrong configuration"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch that a person types")]
pub struct Args {
    /// The configuration file [default: /etc/animd/animd.toml; with --user ~/.config/animd/animd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on the session bus, with folders below ~/Videos/animd, instead of on the system bus
    #[arg(long)]
    user: bool,
    /// The model's folder
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The DiT's weights, if they are not in the model's folder
    #[arg(long, value_name = "PATH")]
    dit: Option<PathBuf>,
    /// The engine's program
    #[arg(long, value_name = "FILE")]
    engine: Option<PathBuf>,
    /// The folder for pictures
    #[arg(long, value_name = "DIR")]
    inbox: Option<PathBuf>,
    /// The folder for videos
    #[arg(long, value_name = "DIR")]
    outbox: Option<PathBuf>,
    /// The folder for the ledger and for queued pictures
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Read the configuration, print it with everything filled in, and exit
    #[arg(long)]
    pub check: bool,
    /// With --check: show where each value comes from
    #[arg(long, requires = "check")]
    pub origins: bool,
    /// Set a damaged ledger aside, go on with its copy, and end; the service must not run
    #[arg(long, conflicts_with = "check")]
    pub restore_ledger: bool,
}

impl Args {
    /// Returns where the configuration is to be looked for.
    ///
    /// # Errors
    /// [`Error::Config`] for a path that is not UTF-8.
    pub fn sources(&self) -> Result<Sources, Error> {
        let mut options = Vec::new();
        for (option, section, key, path) in [
            ("--model", "model", "path", &self.model),
            ("--dit", "model", "dit", &self.dit),
            ("--engine", "engine", "program", &self.engine),
            ("--inbox", "folders", "inbox", &self.inbox),
            ("--outbox", "folders", "outbox", &self.outbox),
            ("--state", "folders", "state", &self.state),
        ] {
            let Some(path) = path else { continue };
            let full = std::path::absolute(home::typed(path.clone())).map_err(Error::file("find", path))?;
            let text = full.into_os_string().into_string().map_err(|path| {
                Error::config(format!("option {option}: `{}` is not valid UTF-8", show(path)))
            })?;
            options.push(Given { option, section, key, value: text.into() });
        }
        let vars = std::env::vars_os().collect();
        Ok(Sources { file: self.config.clone().map(home::typed), user: self.user, options, vars })
    }
}
