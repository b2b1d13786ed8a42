//! The ledger: one SQLite file that is the queue and the log.
//!
//! One thread owns the connection and runs one command at a time, so that there is one writer and no lock to wait for.
//! Every change of a job's state is committed here, with `synchronous=FULL`, before anyone is told of it.

mod costs;
pub mod damage;
mod family;
mod job;
mod keep;
mod quota;
mod renew;
mod schema;
mod settings;
mod shares;
mod stats;
mod store;
mod text;
mod timeline;
mod verbs;
mod watches;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::sync::oneshot;

pub use costs::{Costs, Energy, EnergyMethod, GpuSample, Known, Placed, Spent};
pub use job::{Added, Ended, Job, NewJob, Outcome, Quota, Refusal, Source, State, Succeeded};
pub use keep::Kind;
pub use renew::Renewal;
pub use settings::ToldLora;
pub use shares::{Limits, lora_bytes};
pub use stats::{By, Sum};
pub use store::{Filter, PART_PREFIX, PART_SUFFIX, Store};
pub use timeline::{Event, Sample, StageCost, StepCost, Timeline};
pub use verbs::PAUSED;
pub use watches::AddedWatch;

use crate::error::{Error, Result};
use crate::store::spool::Spool;

type Command = Box<dyn FnOnce(&mut Store) + Send>;

/// A handle to the ledger's thread, which ends when the last handle is dropped.
#[derive(Clone)]
pub struct Ledger {
    commands: mpsc::Sender<Command>,
    coming: Arc<Mutex<Vec<Coming>>>,
}

/// A job that waits to be written down, and who waits for its number.
type Coming = (NewJob, oneshot::Sender<Result<(Added, Option<Job>)>>);

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
        Ok(Self { commands, coming: Arc::default() })
    }

    /// Adds a job if the spool has its picture, and returns the row of a new one. The jobs that come while others are
    /// written are added together: one sync of the disk serves all of them.
    ///
    /// # Errors
    /// The errors of [`Store::add`].
    pub async fn add(&self, job: NewJob, spool: &Spool) -> Result<(Added, Option<Job>)> {
        let (reply, answer) = oneshot::channel();
        let first = {
            let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
            coming.push((job, reply));
            coming.len() == 1
        };
        if first {
            let (coming, spool) = (self.coming.clone(), spool.clone());
            self.tell(move |store| {
                let coming = std::mem::take(&mut *coming.lock().unwrap_or_else(PoisonError::into_inner));
                add_together(store, coming, &spool);
            });
        }
        answer.await.map_err(|_| Error::STOPPING)?
    }

    /// Runs `work` on the ledger's thread and waits for its answer.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.send(work)?.await.map_err(|_| Error::STOPPING)?
    }

    /// Runs `work` on the ledger's thread and waits for its answer, on a thread that may block.
    pub fn call_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // Recovery runs inside a runtime, before anything else, and oneshot's blocking_recv refuses to work there.
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands
            .send(Box::new(move |store| _ = reply.send(work(store))))
            .map_err(|_| Error::STOPPING)?;
        answer.recv().map_err(|_| Error::STOPPING)?
    }

    /// Runs `work` on the ledger's thread, without waiting for it.
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
            .map_err(|_| Error::STOPPING)?;
        Ok(answer)
    }
}

/// Adds jobs in one transaction, or, if that fails, each in its own, so that each gets its own answer.
fn add_together(store: &mut Store, coming: Vec<Coming>, spool: &Spool) {
    let (jobs, replies): (Vec<_>, Vec<_>) = coming.into_iter().unzip();
    let together = store.add_all(&jobs, |job| job.has_picture(spool));
    for (at, (job, reply)) in jobs.iter().zip(replies).enumerate() {
        let added = match &together {
            Ok(added) => Ok(added[at]),
            Err(_) => store.add(job, || job.has_picture(spool)),
        };
        let whole = added.and_then(|added| match added {
            Added::New(id) => Ok((added, store.job(id)?)),
            added => Ok((added, None)),
        });
        // A receiver that is gone does not undo the work.
        _ = reply.send(whole);
    }
}

#[cfg(test)]
mod tests {
    use animd_protocol::request::Settings;
    use futures_util::future::join_all;

    use super::*;

    /// Returns a job over the bus, of a picture that the spool has.
    fn job(spool: &Spool, key: &str, picture: [u8; 32]) -> Result<NewJob> {
        std::fs::write(spool.path(&picture), "a picture").map_err(Error::file("write", "a picture"))?;
        let new = NewJob::made_up(picture, Settings::default().resolve(|| 7)?);
        Ok(NewJob { idempotency_key: Some(key.into()), ..new })
    }

    #[tokio::test]
    async fn what_comes_together_is_written_together_and_answered_one_by_one() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let ledger = Ledger::open(&dir.path().join("ledger.db"))?;
        let spool = Spool::open(dir.path().join("spool"))?;
        let mut jobs =
            vec![job(&spool, "a", [1; 32])?, job(&spool, "b", [2; 32])?, job(&spool, "a", [3; 32])?];
        jobs.push(job(&spool, "gone", [4; 32])?);
        std::fs::remove_file(spool.path(&[4; 32])).map_err(Error::file("remove", "a picture"))?;

        // The ledger is held up until all jobs have come.
        let (go, wait) = mpsc::channel::<()>();
        ledger.tell(move |_| _ = wait.recv());
        let adding = join_all(jobs.into_iter().map(|job| ledger.add(job, &spool)));
        let (added, _) = tokio::join!(adding, async move { go.send(()) });
        let added = added.into_iter().collect::<Result<Vec<_>>>()?;
        let [
            (Added::New(a), Some(whole)),
            (Added::New(b), Some(_)),
            (Added::Known(known), None),
            (Added::Unspooled, None),
        ] = &added[..]
        else {
            panic!("{added:?}");
        };
        assert!(a != b && known == a && whole.id == *a && whole.state == State::Queued, "{added:?}");
        Ok(())
    }

    #[tokio::test]
    async fn one_that_cannot_be_written_spoils_no_other() -> Result<()> {
        let dir = tempfile::tempdir().map_err(Error::file("make", "a folder"))?;
        let ledger = Ledger::open(&dir.path().join("ledger.db"))?;
        let spool = Spool::open(dir.path().join("spool"))?;
        ledger.tell(|store| store.set_limits(Limits { total: 2, ..Limits::default() }));
        let jobs = (1..=3).map(|n| job(&spool, &n.to_string(), [n; 32])).collect::<Result<Vec<_>>>()?;
        let (go, wait) = mpsc::channel::<()>();
        ledger.tell(move |_| _ = wait.recv());
        let adding = join_all(jobs.into_iter().map(|job| ledger.add(job, &spool)));
        let (added, _) = tokio::join!(adding, async move { go.send(()) });
        let [Ok((Added::New(1), _)), Ok((Added::New(2), _)), Err(full)] = &added[..] else {
            panic!("{added:?}");
        };
        assert!(full.to_string().contains("queue.total"), "{full}");
        let queued = ledger.call(|store| store.queue()).await?;
        assert_eq!(queued, [1, 2]);
        Ok(())
    }
}
