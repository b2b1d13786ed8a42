//! Helpers that run blocking work, and that wait for the end of the program.

use tokio::sync::watch;

use crate::Error;

/// Runs blocking work off the runtime's thread.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Waits until the program should stop, or whoever would say so is gone.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}
