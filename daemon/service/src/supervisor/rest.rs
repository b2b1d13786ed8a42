//! The queue's rest while no video could be saved: found before hours are computed, told, and tried again.
//!
//! What stands in the way is the machine's trouble and not a job's: the jobs wait as they are. An outbox that takes
//! nothing holds up the jobs whose videos go there, and no others.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use animd_common::config::Config;
use animd_common::files::{free_space, rename_new, show};
use animd_common::tasks::blocking;
use animd_common::watch::root::Dir;
use tokio::time::Instant;

use super::Supervisor;
use super::encoder::Encoder;
use super::model::Model;
use crate::delivery::Delivery;
use crate::error::Result;
use crate::store::ledger::Job;

/// The first pause before a closed outbox is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before a closed outbox is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The outboxes that jobs wait for.
pub struct Rest {
    /// Outboxes that no video could be put into, with the reasons as sentences.
    closed: BTreeMap<PathBuf, String>,
    /// When the closed ones are tried again.
    again: Instant,
    /// How often they were tried in vain, one time after the other.
    tries: u32,
    /// The configuration that they were tried with: another one may have mended the trouble.
    config: Arc<Config>,
}

impl Rest {
    /// Returns the state in which every outbox is tried.
    pub fn new(config: Arc<Config>) -> Self {
        Self { closed: BTreeMap::new(), again: Instant::now(), tries: 0, config }
    }

    /// Lets closed outboxes be tried again, when it is time.
    fn begin(&mut self, config: Arc<Config>) {
        let is_new = !Arc::ptr_eq(&self.config, &config);
        if self.closed.is_empty() || (Instant::now() < self.again && !is_new) {
            return;
        }
        self.config = config;
        self.closed.clear();
    }

    /// Notes that an outbox takes nothing.
    pub fn close(&mut self, outbox: PathBuf, why: String) {
        if self.closed.is_empty() {
            let pause = FIRST_PAUSE * 2u32.saturating_pow(self.tries.min(16));
            self.again = Instant::now() + pause.min(LONGEST_PAUSE);
            self.tries += 1;
            if self.tries == 1 {
                tracing::error!("jobs wait, because {why}");
            }
        }
        self.closed.insert(outbox, why);
    }

    /// Notes that a job has found its outbox open.
    fn opened(&mut self) {
        if self.closed.is_empty() && self.tries > 0 {
            self.tries = 0;
            tracing::info!("videos can be saved again: the queue goes on");
        }
    }

    /// Returns when the closed outboxes are tried again, if there are any.
    pub fn ends(&self) -> Option<Instant> {
        (!self.closed.is_empty()).then_some(self.again)
    }

    /// Returns why jobs wait, if any do.
    pub fn sentence(&self) -> Option<&str> {
        self.closed.values().next().map(String::as_str)
    }
}

impl Supervisor {
    /// Returns the next job whose outbox is not known to be closed, and whose model is not known to be unusable.
    pub(super) async fn next_job(&self) -> Result<Option<Job>> {
        let named = self.configured_model_rests();
        let closed: Vec<PathBuf> = self.rest.closed.keys().cloned().collect();
        let default = self.tools.config.get().folders.outbox.clone();
        let open = move |outbox: Option<&Path>| !closed.iter().any(|c| c == outbox.unwrap_or(&default));
        self.tools.ledger.call(move |db| db.next(named, open)).await
    }

    /// Takes the next job whose video could be saved: it is running from here on.
    pub(super) async fn claim(&mut self) -> Result<Option<Job>> {
        self.rest.begin(self.tools.config.get());
        loop {
            let Some(job) = self.next_job().await? else { return Ok(None) };
            let id = job.id;
            match self.prepare_model(&job).await? {
                Model::Loaded => {}
                Model::Loading => return Ok(None),
                Model::Unusable => continue,
            }
            let outbox = self.tools.delivery.outbox(&job);
            let (delivery, encoder) = (self.tools.delivery.clone(), self.encoder.clone());
            let tried = blocking(move || Ok::<_, crate::error::Error>(obstacle(&delivery, &encoder, &job)));
            match self.patiently(tried).await? {
                Some(why) => self.rest.close(outbox, why),
                None => {
                    self.rest.opened();
                    let job = self.tools.ledger.call(move |db| db.claim(id)).await?;
                    if job.is_some() {
                        return Ok(job);
                    }
                }
            }
        }
    }
}

/// Returns why the video of a job that waits could not be saved, as a sentence. If it could, makes its unfinished file.
/// Blocks.
fn obstacle(delivery: &Delivery, encoder: &Encoder, job: &Job) -> Option<String> {
    let outbox = delivery.outbox(job);
    let next = Job { attempt: job.attempt + 1, ..job.clone() };
    let (what, part) = (name(delivery, &outbox), delivery.part(&next));
    let dir = match delivery.make_outbox(&outbox).and_then(|dir| make_part(&dir, &part).map(|()| dir)) {
        Ok(dir) => dir,
        Err(e) => {
            tracing::debug!("the outbox `{}` takes no file: {e}", show(&outbox));
            let is_public = outbox == delivery.config.get().folders.outbox;
            // Only an error of the system's own names nothing.
            let why = match e.raw_os_error() {
                None if !is_public => "its path leads to a folder that may not be used".into(),
                _ => e.to_string(),
            };
            return Some(format!("{what} takes no file: {why}; make it a folder that animd may write to"));
        }
    };
    let found = too_full(delivery, &dir, &what).or_else(|| encoder.trouble());
    if found.is_some() {
        _ = fs::remove_file(dir.at(&part));
    }
    found
}

/// Returns the outbox for everybody's eyes: the folders of users are private.
fn name(delivery: &Delivery, outbox: &Path) -> String {
    if outbox == delivery.config.get().folders.outbox {
        format!("the outbox `{}`", show(outbox))
    } else if outbox == delivery.results.dir() {
        "the service's own folder for videos (folders.state)".into()
    } else {
        "the outbox of a watched folder".into()
    }
}

/// Makes the unfinished file under another name and gives it its own, as a finished video will get its own.
fn make_part(dir: &Dir, part: &Path) -> io::Result<()> {
    let mut name = part.file_name().unwrap_or_default().to_owned();
    name.push(".try.part");
    let (part, tried) = (dir.at(part), dir.at(Path::new(&name)));
    for old in [&part, &tried] {
        match fs::remove_file(old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&tried)?;
    rename_new(&tried, &part).inspect_err(|_| {
        _ = fs::remove_file(&tried);
    })
}

fn too_full(delivery: &Delivery, dir: &Dir, what: &str) -> Option<String> {
    let free_mib = delivery.config.get().queue.free_mib;
    match free_space(&dir.path()).map(|free| free >> 20) {
        Ok(free) if free >= free_mib => None,
        Ok(free) => Some(format!(
            "the disk of {what} has {free} MiB left, and queue.free_mib asks for {free_mib}; make room"
        )),
        Err(e) => Some(format!("{what} cannot be asked for its free space: {e}")),
    }
}
