//! Whether the program that encodes videos is there and works, as the engine will find it.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use animd_common::files::Identity;
use rustix::fs::{Access, access};

/// The program, which is found along `PATH`.
const PROGRAM: &str = "ffmpeg";
/// The remedy when it does not work.
const REMEDY: &str = "install ffmpeg with x264 (`apt install ffmpeg`)";
/// How long the program may take to describe itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks the encoder whether it works, and remembers the answer of a program that has not changed. Cheap to clone.
#[derive(Clone, Default)]
pub struct Encoder {
    good: Arc<Mutex<Option<(PathBuf, Identity)>>>,
}

impl Encoder {
    /// Returns why no video can be encoded, as a sentence. Blocks.
    pub fn trouble(&self) -> Option<String> {
        let Some(found) = find() else {
            return Some(format!("there is no program `{PROGRAM}` on the service's PATH; {REMEDY}"));
        };
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.as_ref() == Some(&found) {
            return None;
        }
        match knows_x264(&found.0) {
            Ok(true) => {
                *good = Some(found);
                None
            }
            Ok(false) => Some(format!("the program `{PROGRAM}` cannot encode H.264; {REMEDY}")),
            Err(why) => Some(format!("the program `{PROGRAM}` cannot be run: {why}; {REMEDY}")),
        }
    }
}

fn find() -> Option<(PathBuf, Identity)> {
    let path = env::var_os("PATH")?;
    let runs = |file: &PathBuf| access(file, Access::EXEC_OK).is_ok() && file.is_file();
    let program = env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(runs)?;
    let identity = Identity::of(&program.metadata().ok()?);
    Some((program, identity))
}

fn knows_x264(program: &PathBuf) -> Result<bool, String> {
    let mut child = Command::new(program)
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-h", "encoder=libx264"])
        .env_remove("FFREPORT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    let start = Instant::now();
    // What it says about one encoder fits into the pipe.
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if start.elapsed() > PATIENCE {
            _ = child.kill();
            _ = child.wait();
            return Err(format!("it has said nothing for {} seconds", PATIENCE.as_secs()));
        }
        sleep(Duration::from_millis(5));
    }
    let said = child.wait_with_output().map_err(|e| e.to_string())?;
    Ok(said.stdout.starts_with(b"Encoder libx264"))
}
