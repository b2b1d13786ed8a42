//! The heap after long answers: the allocator would keep what they took.

use std::sync::Arc;
use std::time::Duration;

use super::gate::Gate;

/// From a long answer to the moment when memory is given back, so that a row of them costs one walk through the heap.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives memory back to the system after long answers, for as long as the service runs.
///
/// An answer is put together of many small pieces, on the ledger's thread and on this one. The GNU allocator returns
/// what lies at the end of a heap only, and any small piece that lives on behind the others keeps all of them.
pub async fn give_back(gate: Arc<Gate>) {
    loop {
        gate.heavy_answered().await;
        tokio::time::sleep(PAUSE).await;
        trim();
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it takes a number and may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
