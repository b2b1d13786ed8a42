//! Times as the ledger stores them: microseconds since the epoch.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns microseconds since the epoch.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// Returns the time `days` days ago, in microseconds since the epoch; 0 days returns a time before everything.
pub fn days_ago_us(days: u32) -> i64 {
    if days == 0 { i64::MIN } else { now_us() - i64::from(days) * 86_400_000_000 }
}
