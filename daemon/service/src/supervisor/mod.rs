//! The loop that starts the engine, gives it jobs, watches its times and replaces it, and feeds systemd's watchdog.

mod attempt;
pub mod commands;
mod demand;
mod encoder;
pub mod engine;
pub mod gpu;
mod late;
mod meter;
mod model;
pub mod profile;
mod rest;
mod show;
mod start;
mod state;
#[cfg(test)]
mod tests;
mod unsettled;

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use animd_common::notify::notify;
use animd_common::tasks::stopped;
use animd_protocol::messages::FromEngine;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::config::CurrentConfig;
use crate::delivery::Delivery;
use crate::events::Events;
use crate::holds::{Holds, What};
use crate::loras::Loras;
use crate::store::ledger::Ledger;
use crate::store::{PictureFiles, Spool};
use commands::Command;
use encoder::Encoder;
use engine::{Launch, Program};
use late::Held;
use meter::JobMeter;
use model::{Chosen, Unusable};
use profile::monitor::ProfileMonitor;
use rest::Rest;
use state::{Absence, EngineState, Loss, Trouble};
use unsettled::{Kept, LEDGER_PAUSE};

/// How long the supervisor waits when nothing is due.
const FAR: Duration = Duration::from_secs(3600);

/// The parts of the service that the supervisor uses.
#[derive(Clone)]
pub struct Tools {
    /// The supervisor's time limits, and what the engine is started with.
    pub config: CurrentConfig,
    /// The queue.
    pub ledger: Ledger,
    /// The pictures of the queue's jobs.
    pub spool: Spool,
    /// Where the engine puts the pictures of a video.
    pub pictures: PictureFiles,
    /// Where changes are announced.
    pub events: Events,
    /// Who wants the model warm or the queue paused.
    pub holds: Holds,
    /// How jobs end.
    pub delivery: Delivery,
    /// The files of jobs' `LoRAs`.
    pub loras: Loras,
    /// The choice of a profile, for everybody who shows it.
    pub profiles: profile::Profiles,
}

/// The supervisor's state.
pub struct Supervisor {
    tools: Tools,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<bool>,
    launch: Box<dyn Launch>,
    engine: EngineState,
    /// The model that the engine has, or is to have.
    model: Chosen,
    /// Why the configured model cannot be used, if that was tried in vain.
    unusable: Option<Unusable>,
    /// What an engine with a job has said of its model's files, before it exits.
    torn: Option<String>,
    /// The reason why no job can run, if there is one.
    trouble: Option<Trouble>,
    /// How often the engine has ended since a job last ended properly.
    failures: u32,
    /// No engine is started before this.
    next_start: Instant,
    /// Whether an absent engine should be started at `next_start`.
    wanted: bool,
    /// The queue is not looked at before this.
    next_claim: Instant,
    /// The outboxes that jobs wait for.
    rest: Rest,
    encoder: Encoder,
    /// What was refused of jobs that have stopped; it is offered again before anything is started.
    unsettled: Vec<Kept>,
    /// What was refused is not offered before this.
    next_settle: Instant,
    /// What the ledger, or the folder of the service's state, said when it last refused something.
    refused: Option<String>,
    /// Jobs that the engine has done with, and for which newer words may come.
    held: Vec<Held>,
    watchdog: Option<(Duration, Instant)>,
    monitor: ProfileMonitor,
    meter: JobMeter,
}

enum Event {
    Stop,
    Command(Command),
    Message(io::Result<Option<FromEngine>>),
    Look,
    /// A hold came or went.
    Held,
    /// A time limit has passed, and no message waits.
    Due,
}

impl Supervisor {
    /// Returns a supervisor that runs jobs until `stop` turns true. `watchdog` is how often systemd expects a sign of
    /// life.
    pub fn new(
        tools: Tools,
        monitor: ProfileMonitor,
        commands: mpsc::Receiver<Command>,
        stop: watch::Receiver<bool>,
        watchdog: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        // Whoever paused the queue before the restart may want the GPU.
        let absence = if tools.holds.paused().is_some() { Absence::Unloaded } else { Absence::Due };
        Self {
            rest: Rest::new(tools.config.get()),
            encoder: Encoder::default(),
            meter: JobMeter::new(monitor.driver(), tools.profiles.clone(), tools.ledger.clone()),
            monitor,
            tools,
            commands,
            stop,
            launch: Box::new(Program),
            engine: EngineState::Absent(absence),
            model: Chosen::default(),
            unusable: None,
            torn: None,
            trouble: None,
            failures: 0,
            next_start: now,
            wanted: false,
            next_claim: now,
            unsettled: Vec::new(),
            next_settle: now,
            refused: None,
            held: Vec::new(),
            watchdog: watchdog.map(|period| (period, now)),
        }
    }

    /// Runs until it is told to stop. Then it ends the engine and puts its job back in the queue.
    pub async fn run(mut self) {
        // The first job does not wait for the encoder to describe itself.
        let encoder = self.encoder.clone();
        drop(tokio::task::spawn_blocking(move || encoder.trouble()));
        let mut holds = self.tools.holds.changes();
        loop {
            if let Err(e) = self.look().await {
                tracing::error!("cannot look for a better profile: {e}");
            }
            if let Err(e) = self.start_engine().await {
                tracing::error!("cannot read from the ledger whether jobs are queued: {e}");
                self.next_start = Instant::now() + LEDGER_PAUSE;
            }
            if let Err(e) = self.start_job().await {
                tracing::error!("the queue stops for {LEDGER_PAUSE:?}: {e}");
                self.refuses(&e);
            }
            self.show();
            let due = self.due();
            let Self { engine, stop, commands, tools, .. } = &mut self;
            let event = tokio::select! {
                biased;
                () = stopped(stop) => Event::Stop,
                Some(command) = commands.recv() => Event::Command(command),
                message = hear(engine) => Event::Message(message),
                () = tools.events.queued.notified() => Event::Look,
                Ok(()) = holds.changed() => Event::Held,
                () = sleep_until(due) => Event::Due,
            };
            match event {
                Event::Stop => return Box::pin(self.end()).await,
                Event::Command(command) => self.obey(command).await,
                Event::Message(Ok(Some(message))) => self.take(message).await,
                Event::Message(Ok(None)) => self.lost(Loss::Closed).await,
                Event::Message(Err(e)) => self.lost(Loss::Unreadable(e)).await,
                Event::Look => {}
                // When a warm hold ends the model stays for now: its idle time starts here.
                Event::Held => self.engine.touch(Instant::now()),
                Event::Due => self.check_times().await,
            }
            self.feed_watchdog();
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Cancel { id, text, reply } => _ = reply.send(self.cancel(id, text).await),
            Command::Renew { id, renewal, reply } => _ = reply.send(self.renew(id, renewal).await),
            Command::Unload { reply } => _ = reply.send(self.unload().await),
            Command::Sleep { reply } => {
                self.sleep().await;
                _ = reply.send(());
            }
            Command::Wake => self.wake(),
        }
    }

    /// Returns the next time at which the supervisor has something to do without any event.
    fn due(&self) -> Instant {
        let config = &self.tools.config.get().engine;
        let now = Instant::now();
        let is_working = self.engine.is_working();
        let times = [
            self.engine.silence_ends(config),
            (self.engine.absence().is_some() && self.wanted).then(|| self.start_due()),
            self.configured_model_is_due().filter(|due| *due > now && !is_working),
            self.idle_ends(),
            self.monitor.due().filter(|_| !is_working),
            (self.next_claim > now && !is_working).then_some(self.next_claim),
            (!self.unsettled.is_empty()).then_some(self.next_settle),
            self.rest.ends().filter(|_| !is_working),
            self.engine.stop_ends(),
            self.held_until(),
            self.watchdog.map(|(_, next)| next),
        ];
        times.into_iter().flatten().min().unwrap_or(now + FAR)
    }

    /// Returns when an idle engine has been idle long enough.
    fn idle_ends(&self) -> Option<Instant> {
        if self.tools.holds.any(What::Warm) {
            return None;
        }
        self.engine.idle_ends(&self.tools.config.get().engine)
    }

    fn feed_watchdog(&mut self) {
        let now = Instant::now();
        if let Some((period, next)) = &mut self.watchdog
            && now >= *next
        {
            *next = now + *period;
            notify(&[("WATCHDOG", "1")]);
        }
    }

    /// Waits for slow work, such as a delivery to a slow disk, and feeds the watchdog meanwhile.
    async fn patiently<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let Some((_, next)) = self.watchdog else { return work.await };
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep_until(next) => self.feed_watchdog(),
            }
        }
    }

    /// Acts on time limits that have passed. This must run only when no message of the engine waits: messages are not
    /// read while a video is delivered.
    async fn check_times(&mut self) {
        let now = Instant::now();
        let is_over = |end: Option<Instant>| end.is_some_and(|end| now >= end);
        if is_over(self.engine.silence_ends(&self.tools.config.get().engine)) {
            let silent = self.engine.engine().map_or(0, |engine| engine.heard.elapsed().as_secs());
            self.lost(Loss::Silent(silent)).await;
        }
        if is_over(self.engine.stop_ends()) {
            self.lost(Loss::IgnoresStop).await;
        }
        self.release_due().await;
        if is_over(self.idle_ends()) {
            self.rest("it was idle for engine.idle_unload_seconds").await;
        }
    }

    /// Ends the supervisor quickly, with nothing lost.
    async fn end(mut self) {
        self.tools.events.set_status(animd_common::bus::ServiceState::Stopping, "the service is stopping");
        let left = self.engine.take(Absence::Unloaded);
        self.give_back(left, "the service was stopped").await;
        self.release_all().await;
        self.next_settle = Instant::now();
        if let Err(e) = self.settle().await {
            tracing::error!("the next start repairs what could not be written to the ledger: {e}");
        }
    }
}

async fn hear(engine: &mut EngineState) -> io::Result<Option<FromEngine>> {
    match engine.engine_mut() {
        Some(engine) => engine.next().await,
        None => pending().await,
    }
}
