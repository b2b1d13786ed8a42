//! The ledger: one SQLite file that is the queue and the log.
//!
//! One thread owns the connection and runs one command at a time, so that there is one writer and no lock to wait for.
//! Every change of a job's state is committed here, with `synchronous=FULL`, before anyone is told of it.

mod costs;
mod job;
mod keep;
mod schema;
mod stats;
mod store;
mod timeline;
mod verbs;
mod watches;

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

pub use costs::{Costs, Energy, Known, Placed};
pub use job::{Added, Ended, Job, NewJob, Outcome, Refusal, Source, State, Succeeded};
pub use keep::Kind;
pub use stats::{By, Sum};
pub use store::{Filter, PART_PREFIX, PART_SUFFIX, Store, days_ago_us, now_us};
pub use timeline::{Event, Sample, StageCost, StepCost, Timeline};
pub use verbs::PAUSED;
pub use watches::AddedWatch;

use crate::{Error, Result};

type Command = Box<dyn FnOnce(&mut Store) + Send>;

/// A handle to the ledger's thread, which ends when the last handle is dropped.
#[derive(Clone)]
pub struct Ledger {
    commands: mpsc::Sender<Command>,
}

impl Ledger {
    /// Opens or makes the file, migrates it, and starts the thread.
    ///
    /// # Errors
    /// [`Error::Schema`] for a file that a newer animd wrote; [`Error::Ledger`] when SQLite refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let mut store = Store::open(path)?;
        let (commands, inbox) = mpsc::channel::<Command>();
        thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                for command in inbox {
                    command(&mut store);
                }
            })
            .map_err(Error::file("start a thread for", path))?;
        Ok(Self { commands })
    }

    /// Runs `work` on the ledger's thread and waits for its answer.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.send(work)?.await.map_err(|_| Error::Stopping)?
    }

    /// The same for a thread that may block.
    pub fn call_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // Not oneshot's blocking_recv, which refuses to run inside a runtime: recovery does, before anything else runs.
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands
            .send(Box::new(move |store| _ = reply.send(work(store))))
            .map_err(|_| Error::Stopping)?;
        answer.recv().map_err(|_| Error::Stopping)?
    }

    /// Runs `work` on the ledger's thread when it comes to it.
    pub fn tell(&self, work: impl FnOnce(&mut Store) + Send + 'static) {
        _ = self.commands.send(Box::new(work));
    }

    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
        // A receiver that is gone does not undo the work: what was committed stays.
        self.commands
            .send(Box::new(move |store| _ = reply.send(work(store))))
            .map_err(|_| Error::Stopping)?;
        Ok(answer)
    }
}
