//! Which model the engine has: the configured one, or the one that the next job asks for. An engine has one model for as
//! long as it lives, so another model takes another engine: the memory of the first is then free to the last byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use animd_common::config::Config;
use animd_protocol::ErrorCode;
use tokio::time::Instant;

use super::Supervisor;
use crate::error::Error;
use crate::store::ledger::{Ended, Job, State};

type Result<T, E = Error> = std::result::Result<T, E>;

/// The model that the engine has, or is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Its name; `None` for the configured one.
    name: Option<String>,
    /// When its file was written: another content is another model.
    written: Option<SystemTime>,
    /// The waiting job that asked for it.
    job: Option<u64>,
}

/// Whether the engine can take a job at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// The engine has the job's model.
    Loaded,
    /// An engine with the job's model will be started.
    Loading,
    /// There is no such model any more, and the job has failed.
    Unusable,
}

/// Why the configured model cannot be used, as far as it was tried. Its jobs wait, and those of other models go on: no other
/// model takes its place.
#[derive(Clone, Debug)]
pub(super) struct Unusable {
    /// What the engine said.
    why: String,
    /// The configuration with which it was tried: another one may have mended it.
    config: Arc<Config>,
    /// When it is tried again.
    again: Instant,
}

impl Chosen {
    /// Returns the model's name; `None` for the configured one.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the model that a waiting job asks for, or without one the model that most jobs will ask for, with its path; `None`
    /// is the configured model.
    fn of(job: Option<&Job>, config: &Config) -> (Self, Result<Option<PathBuf>, String>) {
        let name = match job {
            Some(job) => job.request.as_ref().and_then(|request| request.model.clone()),
            None => config.defaults.model.clone(),
        };
        let path = config.model_path(name.as_deref());
        let file = path.as_ref().ok().and_then(Option::as_deref).filter(|path| path.is_file());
        let written = file.and_then(|file| file.metadata().ok()?.modified().ok());
        (Self { job: job.filter(|_| name.is_some()).map(|job| job.id), name, written }, path)
    }
}

impl Supervisor {
    /// Notes that the engine cannot use the configured model, whose jobs wait.
    pub(super) fn configured_model_is_unusable(&mut self, why: String) {
        let config = self.tools.config.get();
        self.unusable = Some(Unusable { why, config, again: Instant::now() });
        self.trouble = None;
    }

    /// Puts off the next try of a configured model that cannot be used. Returns false if the engine that has ended had another
    /// model, or if nothing is wrong with the configured one.
    pub(super) fn configured_model_rests_until(&mut self, again: Instant) -> bool {
        match &mut self.unusable {
            Some(unusable) if self.model.name.is_none() => {
                unusable.again = again;
                true
            }
            _ => false,
        }
    }

    /// Returns when the configured model is tried again, if it could not be used.
    pub(super) fn configured_model_is_due(&self) -> Option<Instant> {
        let now = self.tools.config.get();
        self.unusable.as_ref().filter(|found| Arc::ptr_eq(&found.config, &now)).map(|found| found.again)
    }

    /// Returns whether no job of the configured model can run now.
    pub(super) fn configured_model_rests(&self) -> bool {
        self.tools.config.get().model.path.is_none()
            || self.configured_model_is_due().is_some_and(|again| Instant::now() < again)
    }

    /// Returns why jobs of the configured model wait, and what to do, if they do.
    pub(super) fn configured_model_trouble(&self) -> Option<String> {
        let config = self.tools.config.get();
        let why = match (&config.model.path, &config.defaults.model) {
            (None, None) => "no model is configured: `animctl model add PATH` finds one's files and sets it",
            _ => &self.unusable.as_ref().filter(|found| Arc::ptr_eq(&found.config, &config))?.why,
        };
        Some(match config.models.demonstrates() {
            true => format!("{why}; meanwhile `animctl demo` shows what animd does, with a small model"),
            false => why.to_owned(),
        })
    }

    /// Returns the model to start an engine with: that of the next job, or the configured one. `None` if there is neither.
    pub(super) async fn choose_model(&mut self) -> Result<Option<PathBuf>> {
        loop {
            let next = if self.has_work().await? { self.next_job().await? } else { None };
            let (chosen, path) = Chosen::of(next.as_ref(), &self.tools.config.get());
            self.model = chosen;
            match path {
                Ok(path) => return Ok(path),
                Err(why) => {
                    if !self.refuse_model(&why).await? {
                        self.configured_model_is_unusable(why);
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Sees to it that the engine has a waiting job's model: ends an engine that has another one.
    pub(super) async fn prepare_model(&mut self, job: &Job) -> Result<Model> {
        let (wanted, path) = Chosen::of(Some(job), &self.tools.config.get());
        if let Err(why) = path {
            let before = std::mem::replace(&mut self.model, wanted);
            let refused = self.refuse_model(&why).await;
            self.model = before;
            return refused.map(|_| Model::Unusable);
        }
        if (&wanted.name, wanted.written) == (&self.model.name, self.model.written) {
            return Ok(Model::Loaded);
        }
        if self.engine.is_working() {
            // The engine is replaced when the file of its last job is finished.
            return Ok(Model::Loading);
        }
        if wanted.name == self.model.name {
            // Its file was written anew.
            self.tools.profiles.recipes().forget(wanted.name.as_deref());
        }
        self.replace_engine("the next job is for another model").await;
        Ok(Model::Loading)
    }

    /// Fails the waiting job whose model cannot be used, so that the jobs behind it go on. Returns false if no job asked for
    /// the model: then the configured one cannot be used.
    pub(super) async fn refuse_model(&mut self, why: &str) -> Result<bool> {
        let Some(id) = self.model.job.take() else { return Ok(false) };
        let name = self.model.name.take().unwrap_or_default();
        let text = format!("its model `{name}` cannot be used: {why}");
        let (delivery, ended) = (self.tools.delivery.clone(), Ended::Failed { code: ErrorCode::Model, text });
        self.patiently(async move { delivery.end(id, State::Queued, ended).await }).await?;
        Ok(true)
    }
}
