//! Limits how many pictures are copied at once, so that a slow disk or a flood of calls holds up its own user only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::BusError;

/// The most copies that run at once for one user; further calls wait.
const PER_USER: usize = 8;
/// The most copies that run at once for all users together; each takes a thread.
const MOST_COPIES: usize = 64;
/// The size in bytes from which a picture counts as large. A user's large pictures are copied one at a time, because
/// many at once would slow the disk down for everybody.
const LARGE: u64 = 32 << 20;
/// How long a call waits for its turn, and then again for its copy. A local disk copies the largest picture in a
/// second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Decides when each copy may run.
pub struct Copies {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<User>>>,
}

/// The copies of one user.
struct User {
    turns: Arc<Semaphore>,
    large: Mutex<()>,
}

/// A permit to copy, held for as long as the work lasts.
pub struct Turn {
    user: Arc<User>,
    _places: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Turn {
    /// Waits until no other large picture of this user is copied, if one of `bytes` is large. Blocks.
    pub fn alone(&self, bytes: u64) -> Option<MutexGuard<'_, ()>> {
        (bytes >= LARGE).then(|| self.user.large.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Copies {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MOST_COPIES)), users: Mutex::default() }
    }
}

impl Copies {
    /// Runs blocking `work` on a thread when it is this user's turn, unless `left` says that the caller has left
    /// before.
    ///
    /// # Errors
    /// [`BusError::Busy`] when the turn does not come, [`BusError::InvalidImage`] when the work does not end.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: u32,
        left: impl Future<Output = ()>,
        work: impl FnOnce(&Turn) -> T + Send + 'static,
    ) -> Result<T, BusError> {
        let user = {
            let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.retain(|_, user| Arc::strong_count(user) > 1);
            let new =
                || Arc::new(User { turns: Arc::new(Semaphore::new(PER_USER)), large: Mutex::default() });
            users.entry(uid).or_insert_with(new).clone()
        };
        let turn = async {
            let own = user.turns.clone().acquire_owned().await.ok()?;
            Some(Turn { _places: (own, self.all.clone().acquire_owned().await.ok()?), user })
        };
        let turn = tokio::select! {
            turn = timeout(PATIENCE, turn) => turn,
            () = left => return Err(BusError::Busy("the caller has left before its turn".into())),
        };
        let Ok(Some(turn)) = turn else {
            return Err(BusError::Busy(format!(
                "in {} seconds the picture's turn to be read has not come: {PER_USER} pictures of one user are read at a time, and \
                 {MOST_COPIES} of all; call again, and see whether the disk of earlier ones is slow, or gone",
                PATIENCE.as_secs()
            )));
        };
        // The work holds the permits: a thread that hangs in a read cannot be ended, only counted.
        let copying = tokio::task::spawn_blocking(move || {
            let done = work(&turn);
            drop(turn);
            done
        });
        match timeout(PATIENCE, copying).await {
            Ok(done) => done.map_err(|_| BusError::stopping()),
            Err(_) => Err(BusError::InvalidImage(format!(
                "the picture was not read within {} seconds, alone or with your other large ones; copy it to a local disk first",
                PATIENCE.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

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
                copies
                    .run(1, pending(), move |_| {
                        _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    })
                    .await
            }));
        }
        tokio::task::yield_now().await;
        assert_eq!(copies.run(2, pending(), |_| 7).await?, 7);
        assert!(matches!(copies.run(1, ready(()), |_| 7).await, Err(BusError::Busy(_))));
        drop(let_go);
        for one in hung {
            one.await.map_err(|_| BusError::stopping())??;
        }
        Ok(())
    }
}
