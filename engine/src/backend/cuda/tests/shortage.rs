//! Whole jobs whose memory does not suffice, although their plan says so.

use std::path::Path;
use std::sync::Mutex;

use super::super::tensor::Tensor;
use super::{Cuda, Options};
use crate::backend::{Backend, TensorOps};
use crate::image::Picture;
use crate::pipeline::{Job, Pipeline};
use crate::progress::{Observer, Progress, Stage};
use crate::synth;
use animd_protocol::messages::{Pictures, Report};
use animd_protocol::plan::Setup;
use animd_protocol::profile::{Place, Profile};
use animd_protocol::request::{Settings, Size};

fn job() -> Job {
    let picture = Picture { width: 64, height: 48, rgb: (0..64 * 48 * 3).map(|i| (i % 251) as u8).collect() };
    let settings = Settings {
        prompt: Some("a boat".into()),
        size: Some(Size::Exact { width: 64, height: 48 }),
        frames: Some(5),
        steps: Some(2),
        guidance: Some(1.0),
        ..Settings::default()
    };
    Job::new(&picture, settings.resolve(|| 1).expect("valid settings")).expect("a job")
}

/// Makes the video of [`job`] with the DiT at this place.
fn run(b: &Cuda, dit: Place, out: &Path, observer: &dyn Observer) -> Report {
    let mut setup = Setup::from(&Profile::built_in("h200").expect("a profile"));
    setup.residency.dit = dit;
    let mut pipeline = Pipeline::made_up(b.clone(), &setup, synth::Size::Tiny, 1).expect("a model");
    pipeline.run(&job(), out, &Pictures::default(), observer).expect("a video")
}

/// Takes all that is left for work when a stage begins, and lets it go when the job begins again.
struct Robber<'a> {
    b: &'a Cuda,
    at: Stage,
    loot: Mutex<Vec<Tensor>>,
    begun: Mutex<u32>,
}

impl<'a> Robber<'a> {
    fn new(b: &'a Cuda, at: Stage) -> Self {
        Self { b, at, loot: Mutex::default(), begun: Mutex::default() }
    }
}

impl Observer for Robber<'_> {
    fn progress(&self, progress: &Progress) {
        let supply = &self.b.gpu.supply;
        let (mut loot, mut begun) = (self.loot.lock().expect("alone"), self.begun.lock().expect("alone"));
        if progress.stage == Stage::Load && progress.fraction == 0.0 {
            loot.clear();
        }
        if progress.stage == self.at && *begun == 0 {
            *begun += 1;
            supply.set_limit(Some(supply.taken()));
            for n in [1 << 22, 1 << 18, 1 << 14, 1 << 10, 1 << 6] {
                loot.extend(std::iter::from_fn(|| self.b.upload(&vec![0.0; n], &[n]).ok()));
            }
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_job_without_room_begins_again_or_ends_elsewhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = || Cuda::open(0, &Options::default(), 0, 0).expect("there is a GPU or the emulator");
    let path = |name: &str| dir.path().join(name);
    let b = open();
    let report = run(&b, Place::Device, &path("right.mp4"), &crate::progress::Quiet);
    assert!(report.notes.is_empty() && b.notes().is_empty(), "{:?}", report.notes);

    // The DiT finds no room, and nothing can be lent: everything begins again.
    let b = open();
    let report = run(&b, Place::Device, &path("again.mp4"), &Robber::new(&b, Stage::Denoise));
    assert!(report.notes.iter().any(|note| note.contains("begins again")), "{:?}", report.notes);
    let right = std::fs::read(path("right.mp4")).expect("a video");
    assert!(std::fs::read(path("again.mp4")).expect("a video") == right, "it is the same video");

    // The decoder finds no room: the latents are kept, and the processor decodes them.
    let b = open();
    let report = run(&b, Place::Host, &path("decoded.mp4"), &Robber::new(&b, Stage::VaeDecode));
    assert!(report.notes.iter().any(|note| note.contains("the processor did it")), "{:?}", report.notes);
    assert!(!report.notes.iter().any(|note| note.contains("begins again")), "{:?}", report.notes);
    assert_eq!(report.frames, 5);
}
