//! What the bus asks of the supervisor, which alone touches the engine and the running job.

use tokio::sync::{mpsc, oneshot};

use crate::{Error, Result};

/// A wish, with the place for its answer.
pub enum Wish {
    /// Ends a job. It is answered at once: a running job ends later, and as done if it is done first.
    Cancel {
        /// The job.
        id: u64,
        /// Who cancels it, as a sentence for the ledger.
        text: String,
        /// Whether there was something to cancel.
        reply: oneshot::Sender<Result<bool>>,
    },
    /// Ends an idle engine, which gives all its memory back; it comes again with the next job.
    Unload {
        /// Whether it was idle.
        reply: oneshot::Sender<bool>,
    },
}

/// Where wishes are made; cheap to clone.
#[derive(Clone)]
pub struct Wishes {
    sender: mpsc::Sender<Wish>,
}

impl Wishes {
    /// The two ends.
    pub fn channel() -> (Self, mpsc::Receiver<Wish>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self { sender }, receiver)
    }

    /// Ends a job; false if it has ended already.
    ///
    /// # Errors
    /// [`Error::Stopping`], or what the ledger says.
    pub async fn cancel(&self, id: u64, text: String) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.ask(Wish::Cancel { id, text, reply }, answer).await?
    }

    /// Ends the engine if it is idle; false if it works.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn unload(&self) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.ask(Wish::Unload { reply }, answer).await
    }

    async fn ask<T>(&self, wish: Wish, answer: oneshot::Receiver<T>) -> Result<T> {
        self.sender.send(wish).await.map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)
    }
}
