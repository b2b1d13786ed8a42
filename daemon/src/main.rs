//! `animd`, the service.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use animd::config::{Given, Sources};
use animd::{Error, log, service};
use clap::Parser;

/// A wrong configuration: starting again does not help. `EX_CONFIG` of sysexits.
const EXIT_CONFIG: u8 = 78;
/// Something appeared that only a new start may use: the driver's devices. `EX_TEMPFAIL` of sysexits.
const EXIT_NEW_START: u8 = 75;

/// Turns pictures dropped into a folder, or sent over D-Bus, into videos.
///
/// Settings come from the configuration file, then from the files of `conf.d` beside it, then from variables
/// `ANIMD_SECTION_KEY`, then from these options. SIGHUP reads them again.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: animd --user --model ~/models/Wan2.1-I2V-14B-480P\n\nExit codes: 0 stopped, 1 \
failed, 2 wrong usage, 75 to be started again, 78 wrong configuration"
)]
struct Args {
    /// The configuration file [default: /etc/animd/animd.toml; with --user ~/.config/animd/animd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on the session bus, with folders below ~/Videos/animd, instead of on the system bus
    #[arg(long)]
    user: bool,
    /// The model's folder
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The DiT's weights, where they are not the model folder's own
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
    /// The folder for the ledger
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Read the configuration, print it with everything filled in, and end
    #[arg(long)]
    check: bool,
    /// With --check: say behind each value where it comes from
    #[arg(long, requires = "check")]
    origins: bool,
}

impl Args {
    fn sources(&self) -> Result<Sources, Error> {
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
            let full = std::path::absolute(path).map_err(Error::file("find", path))?;
            let text = full.into_os_string().into_string().map_err(|path| {
                Error::Config(format!("option {option}: `{}` is not valid UTF-8", animd::files::show(path)))
            })?;
            options.push(Given { option, section, key, value: text.into() });
        }
        let vars = std::env::vars_os().collect();
        Ok(Sources { file: self.config.clone(), user: self.user, options, vars })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("animd: {e}");
            match e {
                Error::Config(_) => ExitCode::from(EXIT_CONFIG),
                Error::NewStart(_) => ExitCode::from(EXIT_NEW_START),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn start(args: &Args) -> Result<(), Error> {
    let sources = args.sources()?;
    let loaded = sources.load()?;
    if args.check {
        print!("{}", loaded.print(args.origins));
        return Ok(());
    }
    log::start(&loaded.config.log.level)?;
    // One thread: the engine's life hangs on the thread that started it, and there is little to do but wait.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::file("start", "the runtime"))?;
    let result = runtime.block_on(service::run(loaded.config, sources));
    // A copy from a slow disk must not hold the stop up; it is not in the ledger yet.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
