//! Notifications to systemd: readiness, status, the watchdog.

/// Tells systemd, if it is there.
pub fn notify(state: &[(&str, &str)]) {
    if let Err(e) = systemd::daemon::notify(state.iter()) {
        tracing::debug!("systemd was not told: {e}");
    }
}
