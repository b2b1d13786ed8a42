//! Commands to the supervisor, which alone touches the engine and the running job.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};
use crate::store::ledger::Renewal;

/// A command, with the place for its answer.
pub enum Command {
    /// Cancels a job. The answer comes at once. A running job ends later, as done if its video is finished first.
    Cancel {
        /// The job.
        id: u64,
        /// Who cancels it, as a sentence for the ledger.
        text: String,
        /// Whether there was something to cancel.
        reply: oneshot::Sender<Result<bool>>,
    },
    /// Lets the running job begin again with other settings.
    Renew {
        /// The job.
        id: u64,
        /// The settings.
        renewal: Arc<Renewal>,
        /// The answer: whether the job still runs.
        reply: oneshot::Sender<bool>,
    },
    /// Ends an idle engine, which gives all its memory back; it comes again with the next job.
    Unload {
        /// The answer: nothing, or why the engine stays.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Ends the engine before the machine sleeps. Its job waits again, and no job is started.
    Sleep {
        /// Answered when the engine has ended.
        reply: oneshot::Sender<()>,
    },
    /// Continues after the machine has woken up.
    Wake,
}

/// Sends commands to the supervisor; cheap to clone.
#[derive(Clone)]
pub struct Commands {
    sender: mpsc::Sender<Command>,
}

impl Commands {
    /// Returns both ends of a channel for commands.
    pub fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self { sender }, receiver)
    }

    /// Ends a job; false if it has ended already.
    ///
    /// # Errors
    /// [`Error::STOPPING`], or what the ledger says.
    pub async fn cancel(&self, id: u64, text: String) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Cancel { id, text, reply }, answer).await?
    }

    /// Lets a running job begin again with other settings; false if it runs no longer, or is being cancelled.
    ///
    /// # Errors
    /// [`Error::STOPPING`].
    pub async fn renew(&self, id: u64, renewal: Arc<Renewal>) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Renew { id, renewal, reply }, answer).await
    }

    /// Ends the engine; the next job starts it again.
    ///
    /// # Errors
    /// [`Error::Refused`] with `busy` while it works, while jobs wait, or while somebody holds it warm;
    /// [`Error::STOPPING`].
    pub async fn unload(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Unload { reply }, answer).await?
    }

    /// Ends the engine before the machine sleeps, and gives its job back.
    ///
    /// # Errors
    /// [`Error::STOPPING`].
    pub async fn sleep(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Sleep { reply }, answer).await
    }

    /// Goes on after [`Self::sleep`].
    ///
    /// # Errors
    /// [`Error::STOPPING`].
    pub async fn wake(&self) -> Result<()> {
        self.sender.send(Command::Wake).await.map_err(|_| Error::STOPPING)
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T> {
        self.sender.send(command).await.map_err(|_| Error::STOPPING)?;
        answer.await.map_err(|_| Error::STOPPING)
    }
}
