//! Gives memory back to the system after long answers, which the allocator would keep.

use std::sync::Arc;
use std::time::Duration;

use super::gate::Gate;

/// The time from a long answer until memory is given back, so that several long answers cost one walk through the heap.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives memory back to the system after long answers, for as long as the service runs.
///
/// An answer is built from many small allocations, on the ledger's thread and on this one. The GNU allocator returns
/// only the memory at the end of a heap by itself, so that one small allocation there keeps everything before it.
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
