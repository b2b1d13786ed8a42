//! Handles Ctrl-C, SIGTERM and SIGHUP.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use animd_engine::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A flag that is set when the user asks the program to stop.
#[derive(Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    unfinished: Arc<Mutex<Option<PathBuf>>>,
}

impl Stop {
    /// Listens for signals from now on. The first signal asks the work to stop; the second removes the unfinished file
    /// and ends the program at once.
    pub fn listen() -> Result<Self> {
        let stop = Self::default();
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|e| Error::Internal(format!("cannot listen for signals: {e}")))?;
        let heard = stop.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if heard.asked.swap(true, Ordering::SeqCst) {
                    let unfinished = heard.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(path) = &*unfinished {
                        let _ = std::fs::remove_file(path);
                    }
                    std::process::exit(130);
                }
            }
        });
        Ok(stop)
    }

    /// Names the unfinished file, which a second signal removes.
    pub fn unfinished(&self, path: &Path) {
        *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
    }

    /// Returns true after the first signal.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}
