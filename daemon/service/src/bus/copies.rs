//! How many pictures are copied at once, so that a slow disk or a flood of calls holds up its own user and nobody else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::BusError;

/// Calls that bring a picture and are not answered yet, of everybody. Each holds a descriptor.
const MOST_CALLS: usize = 512;
/// Copies under way for one user; further calls wait for these.
const PER_USER: usize = 8;
/// Copies under way for everybody; each is a thread.
const MOST_COPIES: usize = 64;
/// How long a call waits for its turn, and then for its copy. A local disk needs a second for the largest picture.
const PATIENCE: Duration = Duration::from_secs(60);

/// Admits calls and copies.
pub struct Copies {
    calls: Arc<AtomicUsize>,
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// One admitted call; its place is free again when this is dropped.
pub struct Call(Arc<AtomicUsize>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Copies {
    fn default() -> Self {
        Self { calls: Arc::default(), all: Arc::new(Semaphore::new(MOST_COPIES)), users: Mutex::default() }
    }
}

impl Copies {
    /// Admits a call that brings a picture. Never waits.
    ///
    /// # Errors
    /// [`BusError::Busy`] when too many are under way.
    pub fn admit(&self) -> Result<Call, BusError> {
        let call = Call(self.calls.clone());
        if self.calls.fetch_add(1, Ordering::Relaxed) >= MOST_CALLS {
            return Err(BusError::Busy(format!(
                "{MOST_CALLS} pictures are being taken at this moment; send the next when one has been answered"
            )));
        }
        Ok(call)
    }

    /// Runs blocking `work` on a thread when it is this user's turn.
    ///
    /// # Errors
    /// [`BusError::Busy`] when the turn does not come, [`BusError::InvalidImage`] when the work does not end.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BusError> {
        let user = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|_, user| Arc::strong_count(user) > 1);
            users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(PER_USER))).clone()
        };
        let turn =
            async { Some((user.acquire_owned().await.ok()?, self.all.clone().acquire_owned().await.ok()?)) };
        let Ok(Some(turn)) = timeout(PATIENCE, turn).await else {
            return Err(BusError::Busy(format!(
                "{PER_USER} pictures of yours have been read for {} seconds without an end; is their disk slow, or gone?",
                PATIENCE.as_secs()
            )));
        };
        // The permits go with the work: a thread that hangs in a read cannot be ended, only counted.
        let copying = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        match timeout(PATIENCE, copying).await {
            Ok(done) => done.map_err(|_| BusError::stopping()),
            Err(_) => Err(BusError::InvalidImage(format!(
                "the picture could not be read within {} seconds; copy it to a local disk first",
                PATIENCE.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_users_hung_copies_hold_nobody_else_up() -> Result<(), BusError> {
        let copies = Arc::new(Copies::default());
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let mut hung = Vec::new();
        for _ in 0..2 * PER_USER {
            let (copies, held) = (copies.clone(), held.clone());
            hung.push(tokio::spawn(async move {
                copies.run(1, move || _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv()).await
            }));
        }
        tokio::task::yield_now().await;
        assert_eq!(copies.run(2, || 7).await?, 7);
        drop(let_go);
        for one in hung {
            one.await.map_err(|_| BusError::stopping())??;
        }
        Ok(())
    }

    #[test]
    fn a_flood_is_told_to_come_back() -> Result<(), BusError> {
        let copies = Copies::default();
        let calls = (0..MOST_CALLS).map(|_| copies.admit()).collect::<Result<Vec<_>, _>>()?;
        assert!(matches!(copies.admit(), Err(BusError::Busy(_))));
        drop(calls);
        copies.admit().map(|_| ())
    }
}
