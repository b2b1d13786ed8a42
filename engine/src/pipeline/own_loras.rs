//! The identity of the `LoRA`s that a model's own file names: each one's name, its strengths, and the hash of its file.

use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use animd_protocol::lora::ModelLora;
use animd_protocol::lora_files;

use crate::progress::Observer;
use crate::verify::hash_of;
use crate::weights::Adapter;
use crate::{Error, Result};

/// How often a job that waits for the hashes asks whether it should stop.
const PAUSE: Duration = Duration::from_millis(20);

/// The identities, which a thread finds out from the opening of the model on. The first job needs them when it has something to
/// write.
pub(super) enum OwnLoras {
    Hashing(JoinHandle<Result<Vec<ModelLora>>>),
    /// They are known, or the sentence is that says why they cannot be.
    Known(Result<Vec<ModelLora>, String>),
}

impl OwnLoras {
    /// Begins to hash the files of these.
    pub fn of(adapters: &[Adapter]) -> Self {
        if adapters.is_empty() {
            return Self::Known(Ok(Vec::new()));
        }
        let adapters = adapters.to_vec();
        Self::Hashing(thread::spawn(move || adapters.iter().map(identity).collect()))
    }

    /// Returns the identities, in the order in which the `LoRA`s are added; waits for the hashes.
    ///
    /// # Errors
    /// [`Error::Model`] if a file cannot be read, or was written while it was; [`Error::Canceled`].
    pub fn get(&mut self, observer: &dyn Observer) -> Result<&[ModelLora]> {
        while matches!(self, Self::Hashing(thread) if !thread.is_finished()) {
            observer.check()?;
            thread::sleep(PAUSE);
        }
        self.settle();
        match self {
            Self::Known(Ok(known)) => Ok(known),
            Self::Known(Err(why)) => Err(Error::Model(why.clone())),
            Self::Hashing(_) => Err(Error::Internal("the hashes of LoRAs are still computed".into())),
        }
    }

    /// Fails if it is known by now that the identities cannot be found out; waits for nothing.
    ///
    /// # Errors
    /// [`Error::Model`], as [`Self::get`] does.
    pub fn check(&mut self) -> Result<()> {
        self.settle();
        match self {
            Self::Known(Err(why)) => Err(Error::Model(why.clone())),
            _ => Ok(()),
        }
    }

    /// Takes the result of a thread that has ended.
    fn settle(&mut self) {
        if !matches!(self, Self::Hashing(thread) if thread.is_finished()) {
            return;
        }
        if let Self::Hashing(thread) = std::mem::replace(self, Self::Known(Ok(Vec::new()))) {
            let found = thread.join().map_err(|_| "the hashes of its LoRAs could not be computed".to_owned());
            *self = Self::Known(found.and_then(|found| found.map_err(|e| e.to_string())));
        }
    }
}

fn identity(adapter: &Adapter) -> Result<ModelLora> {
    let path = adapter.lora().path();
    // The shortest number that is this one in f32: what the model file says, and not its last bits in f64.
    let strength = |transformer| adapter.strength(transformer).to_string().parse().unwrap_or_default();
    Ok(ModelLora {
        name: name(path),
        strength: strength(0),
        strength_low: (adapter.strengths().len() > 1).then(|| strength(1)),
        sha256: hash_of(path)?,
    })
}

fn name(path: &Path) -> String {
    let whole = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    lora_files::name_of(path).map_or_else(whole, str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Mutex, atomic::AtomicBool, atomic::Ordering};

    use animd_protocol::messages::{Pictures, Report};
    use animd_protocol::plan::Setup;
    use animd_protocol::request::{Sampler, Settings, Size};

    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::image::Picture;
    use crate::pipeline::{Job, Pipeline};
    use crate::progress::{Progress, Stage};
    use crate::synth;

    /// Sends a word when the transformer begins, and may stop the job when the steps are done.
    struct Seen {
        denoising: Mutex<Sender<()>>,
        stops: bool,
        denoised: AtomicBool,
        loaded: AtomicBool,
    }

    impl Observer for Seen {
        fn progress(&self, progress: &Progress) {
            if progress.stage == Stage::Load {
                self.loaded.store(true, Ordering::SeqCst);
            }
            if progress.stage == Stage::Denoise {
                // Nobody listens any more after the first word.
                _ = self.denoising.lock().unwrap().send(());
                self.denoised.store(progress.step == progress.steps, Ordering::SeqCst);
            }
        }

        fn canceled(&self) -> bool {
            self.stops && self.denoised.load(Ordering::SeqCst)
        }
    }

    fn lora() -> ModelLora {
        ModelLora { name: "four".into(), strength: 1.0, strength_low: None, sha256: "ab".repeat(32) }
    }

    /// Runs a job of a made-up model whose hashes `hashing` computes; it gets the receiver of the word that denoising begins.
    fn run(stops: bool, hashing: impl FnOnce(Receiver<()>) -> OwnLoras) -> (Result<Report>, Seen) {
        let rgb = (0..64 * 48 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let settings = Settings {
            size: Some(Size::Exact { width: 64, height: 48 }),
            frames: Some(5),
            sampler: Some(Sampler::Distill),
            ..Settings::default()
        };
        let job = Job::new(&Picture { width: 64, height: 48, rgb }, settings.resolve(|| 1).unwrap()).unwrap();
        let mut pipeline = Pipeline::made_up(Cpu::new(), &Setup::CPU, synth::Size::Tiny, 1).unwrap();
        let (say, hear) = channel();
        pipeline.sources.adapters.identity = hashing(hear);
        let (denoising, denoised, loaded) = (Mutex::new(say), AtomicBool::default(), AtomicBool::default());
        let seen = Seen { denoising, stops, denoised, loaded };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.mp4");
        let report = pipeline.run(&job, &out, &Pictures::default(), &seen);
        assert_eq!(out.exists(), report.is_ok());
        (report, seen)
    }

    #[test]
    fn a_job_loads_and_computes_while_the_hashes_are_computed() {
        let (report, _) = run(false, |denoising| {
            OwnLoras::Hashing(thread::spawn(move || {
                let begun = denoising.recv_timeout(Duration::from_secs(60));
                begun.map(|()| vec![lora()]).map_err(|_| Error::Model("the job waits".into()))
            }))
        });
        assert_eq!(report.unwrap().model_loras, [lora()]);
    }

    #[test]
    fn a_job_that_waits_for_the_hashes_can_be_canceled() {
        let (release, released) = channel::<()>();
        let (report, seen) = run(true, |_| {
            OwnLoras::Hashing(thread::spawn(move || {
                // A job that never asks whether it should stop makes its video, and the test fails.
                _ = released.recv_timeout(Duration::from_secs(60));
                Ok(vec![lora()])
            }))
        });
        assert!(matches!(report, Err(Error::Canceled)) && seen.denoised.load(Ordering::SeqCst));
        drop(release);
    }

    #[test]
    fn hashes_that_cannot_be_computed_end_a_job_before_it_loads() {
        let (report, seen) = run(false, |_| {
            let hashing = thread::spawn(|| Err(Error::Model("`four` is gone".into())));
            while !hashing.is_finished() {
                thread::sleep(PAUSE);
            }
            OwnLoras::Hashing(hashing)
        });
        assert!(report.unwrap_err().to_string().contains("`four` is gone"));
        assert!(!seen.loaded.load(Ordering::SeqCst));
    }
}
