//! The log: structured entries when systemd's journal listens, plain lines on standard error otherwise.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::keys::{nearest, one_line};
use crate::{Error, Result};

/// Every entry that speaks of a job has this `MESSAGE_ID` and a field `JOB`.
const JOB_MESSAGE_ID: &str = "7d2f0d3f2c114c3b9f0b8f3d5a4c9e21";

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The filter, to be replaced while the service runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Parses a level or a filter of tracing-subscriber.
///
/// # Errors
/// [`Error::Config`] names it.
pub fn filter(level: &str) -> Result<EnvFilter> {
    // A bare word that is no level would be the name of a part of the program, and silence all the others.
    let wrong = level.split(',').map(str::trim).find(|part| {
        !part.contains(['=', '[', ':']) && part.parse::<tracing_subscriber::filter::LevelFilter>().is_err()
    });
    if let Some(wrong) = wrong {
        let hint = match nearest(wrong, LEVELS) {
            Some(level) => format!("did you mean `{level}`?"),
            None => format!("known are {}", LEVELS.join(", ")),
        };
        return Err(Error::Config(format!("log.level `{}` is no level; {hint}", one_line(wrong, 100))));
    }
    EnvFilter::try_new(level).map_err(|e| {
        let (level, e) = (one_line(level, 100), one_line(&e.to_string(), 200));
        Error::Config(format!("log.level `{level}`: {e}; known are error, warn, info, debug and trace"))
    })
}

/// Starts logging at `level`, which may be a filter of tracing-subscriber.
pub fn start(level: &str) -> Result<()> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if journal_listens() {
        registry.with(Journal).try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_target(false)
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .try_init()
    };
    started.map_err(|e| Error::Config(format!("logging is started already: {e}")))?;
    _ = LEVEL.set(handle);
    Ok(())
}

/// Another level from here on, if logging was started.
///
/// # Errors
/// As [`filter`].
pub fn set_level(level: &str) -> Result<()> {
    let filter = filter(level)?;
    match LEVEL.get() {
        Some(handle) => {
            handle.reload(filter).map_err(|e| Error::Config(format!("the log's level stays: {e}")))
        }
        None => Ok(()),
    }
}

/// Returns whether standard error goes to the journal: systemd names its device and inode.
fn journal_listens() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

struct Journal;

#[derive(Default)]
struct Fields {
    message: String,
    job: Option<String>,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "job" {
            self.job = Some(value.to_string());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            _ = write!(self.message, "{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let mut entry = vec![format!("MESSAGE={}", fields.message), format!("PRIORITY={priority}")];
        if let Some(job) = fields.job {
            entry.push(format!("JOB={job}"));
            entry.push(format!("MESSAGE_ID={JOB_MESSAGE_ID}"));
        }
        let entry: Vec<&str> = entry.iter().map(String::as_str).collect();
        _ = systemd::journal::send(&entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_no_silence() {
        for level in ["info", "animd=debug", "warn,zbus=error", "off"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        let error = filter("inof").expect_err("no level").to_string();
        assert_eq!(error, "log.level `inof` is no level; did you mean `info`?");
        let error = filter("loud").expect_err("no level").to_string();
        assert_eq!(error, "log.level `loud` is no level; known are error, warn, info, debug, trace, off");
    }
}
