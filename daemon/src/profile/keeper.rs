//! Keeps the choice fresh for the supervisor: looks when something may have changed, and meters jobs.
//!
//! A choice that is as it should be is not looked at again while the engine lives, so that an idle service does not
//! wake the card. Any other is: before a job, and now and then, at growing intervals.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use animd_protocol::messages::Kernels;
use animd_protocol::profile::Profile;
use animd_protocol::progress::Stage;
use animd_protocol::recipe::Recipe;
use tokio::time::Instant;

use super::{Choice, FOLDERS, Verdict, Wish, is_file, load, read};
use crate::config;
use crate::delivery::Desk;
use crate::gpu::Machine;
use crate::gpu::meter::{Ending, Meter};
use crate::gpu::nvml::Driver;
use crate::ledger::{Ended, Placed};
use crate::{Error, Result};

/// The first pause before a choice that is not as it should be is looked at again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A job that starts so soon after a look needs no other.
const FRESH: Duration = Duration::from_secs(3);
/// The file in the state folder that tells the engine its profile.
const FILE: &str = "profile.toml";

/// The supervisor's hand in profiles and costs.
pub struct Keeper {
    desk: Arc<Desk>,
    driver: Driver,
    /// What the engine was built for; `None` until one has said so.
    kernels: Option<Kernels>,
    /// The model that the engine has opened last.
    recipe: Option<Arc<Recipe>>,
    /// `[profile]` of the configuration at the last look.
    asked: Option<config::Profile>,
    /// What the engine that runs was started with.
    started: Option<Start>,
    looked: Option<Instant>,
    pause: Duration,
    /// Whether the driver was there when it was first asked.
    there_at_first: Option<bool>,
    /// The job and the attempt that run, with their meter.
    meter: Option<(u64, u32, Meter)>,
    /// Those that ran last.
    ended: Option<(u64, u32, Ending)>,
    stage: Option<Stage>,
}

/// How the engine shall be started.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// What of the configuration it is started with.
    engine: String,
    /// The profile.
    profile: Profile,
    /// The profile's file.
    pub file: PathBuf,
    /// What `CUDA_VISIBLE_DEVICES` shall be: the GPU's UUID, or empty for none.
    pub visible: String,
}

impl Keeper {
    /// For one service.
    pub fn new(desk: Arc<Desk>) -> Self {
        Self {
            desk,
            driver: Driver::default(),
            kernels: None,
            recipe: None,
            asked: None,
            started: None,
            looked: None,
            pause: FIRST_PAUSE,
            there_at_first: None,
            meter: None,
            ended: None,
            stage: None,
        }
    }

    /// Asks the driver and chooses. `engine` is the engine's process, whose memory counts as free.
    pub async fn look(&mut self, engine: Option<u32>) -> Arc<Choice> {
        let wish = self.reload();
        let machine = self.driver.look(engine).await;
        let before = self.desk.profiles.choice();
        let kernels = self.kernels.clone().unwrap_or_default();
        let choice = self.desk.profiles.decide(machine, kernels, self.recipe.clone(), &wish);
        self.looked = Some(Instant::now());
        self.there_at_first.get_or_insert(!matches!(self.desk.profiles.machine(), Machine::NoDriver { .. }));
        self.pause = match *choice == *before {
            true => (self.pause * 2).min(LONGEST_PAUSE),
            false => FIRST_PAUSE,
        };
        if *choice != *before {
            let profile = choice.profile.as_ref().map_or("none", |p| &p.name);
            tracing::info!("the profile is {profile} ({}): {}", choice.state.name(), choice.text());
        }
        choice
    }

    /// Reads the folders and the configuration's wish.
    fn reload(&mut self) -> Wish {
        let asked = self.desk.config().profile.clone();
        let mut wish = Wish { profile: asked.name.clone(), gpu: asked.gpu.clone() };
        let (mut profiles, mut mistakes) = load(&FOLDERS.map(PathBuf::from));
        if is_file(&wish.profile) {
            match read(wish.profile.as_ref()) {
                Ok(profile) => {
                    profiles.retain(|p| p.name != profile.name);
                    wish.profile.clone_from(&profile.name);
                    profiles.insert(0, profile);
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        for mistake in mistakes {
            tracing::error!("{mistake}");
        }
        self.desk.profiles.set_profiles(profiles);
        self.asked = Some(asked);
        wish
    }

    /// When the choice has to be looked at again though nothing happens.
    pub fn due(&self) -> Option<Instant> {
        let looked = self.looked?;
        (self.desk.profiles.choice().state != Verdict::Ready).then(|| looked + self.pause)
    }

    /// Whether it is time to look: at first, when the configuration says something else, and when the pause is over.
    pub fn is_due(&self) -> bool {
        let asked = self.asked.as_ref() == Some(&self.desk.config().profile);
        !asked || self.due().is_some_and(|due| Instant::now() >= due)
    }

    /// Whether a job is reason enough to look: not if all is well, or if it was done just now.
    pub fn is_stale(&self) -> bool {
        self.desk.profiles.choice().state != Verdict::Ready && !self.is_fresh()
    }

    /// Whether the driver was asked just now.
    pub fn is_fresh(&self) -> bool {
        self.looked.is_some_and(|at| at.elapsed() < FRESH)
    }

    /// The driver's devices appeared after the service began, when its sandbox no longer lets new ones in: only a new
    /// start helps. Not told again by the next service, which finds the driver there at first.
    pub fn needs_new_start(&self) -> bool {
        self.there_at_first == Some(false) && matches!(self.desk.profiles.machine(), Machine::Refused { .. })
    }

    /// How to start the engine by the choice; `None` while there is none.
    ///
    /// # Errors
    /// [`Error::File`] if the profile cannot be written down for it.
    pub fn start(&mut self) -> Result<Option<Start>> {
        self.started = self.wanted();
        if let Some(start) = &self.started {
            let text = toml::to_string(&start.profile).map_err(|e| {
                Error::Config(format!("the profile `{}` cannot be written down: {e}", start.profile.name))
            })?;
            fs::write(&start.file, text).map_err(Error::file("write", &start.file))?;
        }
        Ok(self.started.clone())
    }

    fn wanted(&self) -> Option<Start> {
        let choice = self.desk.profiles.choice();
        let config = self.desk.config();
        let file = config.folders.state.join(FILE);
        let engine = format!("{:?}", config.engine_identity());
        if self.kernels.is_none() {
            // The first one is there to say what it was built for, and touches no GPU.
            return Some(Start { engine, profile: Profile::built_in("cpu")?, file, visible: String::new() });
        }
        Some(Start {
            engine,
            profile: choice.profile.clone()?,
            file,
            visible: choice.used_gpu().map(|card| card.uuid.clone()).unwrap_or_default(),
        })
    }

    /// Whether the engine that was started last would be started otherwise now.
    pub fn outdated(&self) -> bool {
        self.started != self.wanted()
    }

    /// What the engine was built for and which model it has, as it says itself; another choice may come of it.
    pub async fn hello(&mut self, kernels: &Kernels, recipe: Option<Arc<Recipe>>, engine: Option<u32>) {
        if self.kernels.as_ref() != Some(kernels) || self.recipe != recipe {
            self.kernels = Some(kernels.clone());
            self.recipe = recipe;
            self.look(engine).await;
        }
    }

    /// Writes down on what a job runs, and begins to meter it.
    pub async fn job_starts(&mut self, id: u64, attempt: u32) {
        let choice = self.desk.profiles.choice();
        let card = choice.used_gpu();
        let placed = Placed {
            profile: choice.profile.as_ref().map(|p| p.name.as_str().into()),
            gpu_uuid: card.map(|c| c.uuid.as_str().into()),
            gpu_name: card.map(|c| c.name.as_str().into()),
            driver: card.and_then(|_| self.desk.profiles.machine().driver().map(Into::into)),
        };
        if let Err(e) = self.desk.ledger.call(move |db| db.placed(id, &placed)).await {
            tracing::warn!(job = id, "the profile of job {id} is not written down: {e}");
        }
        self.stage = None;
        self.meter = card
            .and_then(|card| Meter::start(&self.driver, &card.uuid, &self.desk.ledger, id, attempt))
            .map(|meter| (id, attempt, meter));
    }

    /// Where the engine is with its job.
    pub fn stage(&mut self, stage: Stage) {
        if self.stage.replace(stage) != Some(stage)
            && let Some((_, _, meter)) = &self.meter
        {
            meter.stage(stage);
        }
    }

    /// Ends the metering of the attempt that runs.
    pub fn attempt_ends(&mut self) {
        self.ended = self.meter.take().map(|(id, attempt, meter)| (id, attempt, meter.end()));
    }

    /// Writes down what a job that ends so has cost.
    pub async fn job_ends(&mut self, id: u64, ended: &Ended) {
        let Some((job, attempt, spent)) = self.ended.take() else { return };
        let Some(spent) = spent.sum().await.filter(|_| job == id) else { return };
        let stages = match ended {
            Ended::Done(done) => done.report.seconds.iter().map(|(name, _)| name.clone()).collect(),
            _ => Vec::new(),
        };
        let written = self.desk.ledger.call(move |db| db.spent(id, attempt, &spent, &stages)).await;
        if let Err(e) = written {
            tracing::warn!(job = id, "the energy of job {id} is lost: {e}");
        }
    }
}
