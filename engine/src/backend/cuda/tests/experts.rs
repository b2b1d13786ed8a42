//! Two transformers that take turns: the video is the same wherever their weights are, and only what must is copied.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::residency::{Layout, Traffic};
use super::{Cuda, Options};
use crate::image::Picture;
use crate::pipeline::{Job, Pipeline};
use crate::progress::{Observer, Progress, Quiet};
use crate::synth::{Family, Size, cut};
use crate::weights::made_up_lora;
use animd_protocol::messages::{Pictures, Report};
use animd_protocol::plan::Setup;
use animd_protocol::profile::{Place, Profile};
use animd_protocol::recipe::{ExpertName, Recipe};
use animd_protocol::request::{self, Request, Settings};

/// The blocks of each transformer: more than stay and there are slots, and an odd number.
const BLOCKS: usize = 5;
/// What is around them moves, too.
const GROUPS: usize = BLOCKS + 1;

fn recipe() -> Recipe {
    let mut recipe = Size::Tiny.recipe_of(Family::Wan22);
    cut(&mut recipe, BLOCKS);
    recipe
}

fn picture() -> Picture {
    Picture { width: 64, height: 48, rgb: (0..64 * 48 * 3).map(|i| (i % 251) as u8).collect() }
}

/// Returns a job of two steps with two forwards each, of which the second transformer computes `low`.
fn job(low: u32) -> Job {
    let settings = Settings {
        prompt: Some("a boat".into()),
        size: Some(request::Size::Exact { width: 64, height: 48 }),
        frames: Some(5),
        steps: Some(2),
        steps_high: Some(2 - low),
        ..Settings::default()
    };
    let request = settings.resolve_for(&recipe().defaults, || 1).expect("valid settings");
    Job::new(&picture(), request).expect("a job")
}

/// A model on the emulated GPU.
struct Scene {
    b: Cuda,
    pipeline: Pipeline<Cuda>,
}

impl Scene {
    /// Opens a model whose transformers have a layout, or stay on the GPU.
    fn new(layout: Option<Layout>) -> Self {
        let b = Cuda::open(0, &Options::default(), 0, 0).expect("there is a GPU or the emulator");
        let mut setup = Setup::from(&Profile::built_in("h200").expect("a profile"));
        if let Some(layout) = layout {
            setup.residency.dit = Place::Host;
            b.networks.insist(layout);
        }
        let pipeline = Pipeline::made_up(b.clone(), &setup, recipe(), 1).expect("a model");
        Self { b, pipeline }
    }

    /// Makes the video of a job, and returns its bytes, the report, and how often groups came to the GPU.
    fn run(&mut self, job: &Job) -> (Vec<u8>, Report, Traffic) {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("out.mp4");
        let before = self.b.networks.traffic(ExpertName::HighNoise.network());
        let report =
            self.pipeline.run(job, &out, &Pictures::default(), &Quiet).expect("there is room for a video");
        let after = self.b.networks.traffic(ExpertName::HighNoise.network());
        assert!(report.notes.is_empty(), "{:?}", report.notes);
        let traffic = Traffic { brought: after.brought - before.brought, late: after.late - before.late };
        (read(&out), report, traffic)
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the video can be read")
}

/// Returns a layout of transformers that take turns.
fn layout(resident: usize, own: usize, slots: usize) -> Layout {
    Layout { resident, slots, turns: Some(own) }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn two_transformers_give_the_same_video_wherever_they_are() {
    let job = job(1);
    let (video, ..) = Scene::new(None).run(&job);
    let mut more = u64::MAX;
    for (what, resident, own, slots) in [
        ("both stay", BLOCKS, BLOCKS, 0),
        ("one and a part of the other stay", BLOCKS, 1, 0),
        ("one stays", BLOCKS, 0, 0),
        ("blocks pass through", 0, 0, 2),
    ] {
        let mut scene = Scene::new(Some(layout(resident, own, slots)));
        let (first, report, _) = scene.run(&job);
        assert!(first == video, "{what}");
        assert!(report.peak_gpu_bytes < more, "{what}: it takes less memory than with more there");
        more = report.peak_gpu_bytes;
        // The first job has brought back what the next one begins with.
        let (again, _, traffic) = scene.run(&job);
        assert!(again == video, "{what}");
        if resident == BLOCKS {
            // Each has its turn once, and nothing of it had to be asked for when it was needed.
            let shared = if own == 0 { GROUPS } else { BLOCKS - own };
            assert_eq!(traffic, Traffic { brought: 2 * shared, late: 0 }, "{what}");
        } else {
            // Two contexts and two forwards each pass over all blocks; only the first blocks can be there from before.
            assert!(traffic.brought >= 2 * (4 * BLOCKS - slots) && traffic.late <= 2, "{what}: {traffic:?}");
        }
    }
}

/// Counts the blocks of the first transformer before which some of the second one's have come.
struct Watch {
    b: Cuda,
    blocks: AtomicUsize,
    /// The count when the first transformer's turn was over.
    in_time: AtomicUsize,
}

impl Observer for Watch {
    fn progress(&self, progress: &Progress) {
        if progress.step == 1 {
            let _ = self.in_time.compare_exchange(
                0,
                self.blocks.load(Ordering::Relaxed),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    fn canceled(&self) -> bool {
        if self.b.networks.there(ExpertName::LowNoise.network()) > 0 {
            self.blocks.fetch_add(1, Ordering::Relaxed);
        }
        false
    }
}

/// The blocks of the second transformer that stay come while the first one's last forward leaves their place, and not only when
/// the blocks that pass through are over.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn blocks_that_pass_through_keep_no_others_from_coming() {
    let (job, resident) = (job(1), 2);
    let mut scene = Scene::new(Some(layout(resident, 0, 2)));
    scene.run(&job);
    assert_eq!(scene.b.networks.there(ExpertName::LowNoise.network()), 0);
    let watch = Watch { b: scene.b.clone(), blocks: AtomicUsize::new(0), in_time: AtomicUsize::new(0) };
    let dir = tempfile::tempdir().expect("a folder");
    scene.pipeline.run(&job, &dir.path().join("out.mp4"), &Pictures::default(), &watch).expect("a video");
    let before = watch.in_time.into_inner();
    assert!(before >= BLOCKS - 2, "only before {before} of {BLOCKS} blocks");
    assert_eq!(scene.run(&job).0, Scene::new(None).run(&job).0);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn jobs_that_end_before_the_second_turn_leave_a_sound_model() {
    let (both, first_only) = (job(1), job(0));
    let mut right = Scene::new(None);
    let wanted = [&both, &first_only].map(|job| right.run(job).0);
    drop(right);
    let mut scene = Scene::new(Some(layout(BLOCKS, 0, 0)));
    for job in [0, 1, 0] {
        assert!(scene.run([&both, &first_only][job]).0 == wanted[job]);
    }
    // A job of the first transformer alone moves nothing once its weights are there.
    scene.run(&first_only);
    assert_eq!(scene.run(&first_only).2, Traffic::default());
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_third_transformer_comes_and_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let lora = made_up_lora::write(folder.path(), "x.safetensors", &[("blocks.0.ffn.0", [512, 256])], &[], 1);
    let with = |steps_base: Option<u32>| {
        let Job { request, .. } = job(1);
        let lora = animd_protocol::lora::parse("x:1:1").expect("a LoRA");
        let guidance_base = steps_base.map(|_| 1.0);
        let request = Request { lora, steps_base, guidance: 1.0, guidance_base, ..request };
        Job::new(&picture(), request).expect("a job")
    };
    let jobs = [with(None), with(Some(1))];
    let run = |layout, order: &[usize]| -> Vec<Vec<u8>> {
        let mut scene = Scene::new(layout);
        scene.pipeline.adapt(&jobs[0].request.lora, std::slice::from_ref(&lora)).expect("it is one");
        order.iter().map(|job| scene.run(&jobs[*job]).0).collect()
    };
    let all = run(None, &[1, 0, 1]);
    assert!(all[0] == all[2] && all[0] != all[1], "on the GPU");
    for (what, resident, own, slots) in
        [("one and a part of the others stay", BLOCKS, 1, 0), ("blocks pass through", 0, 0, 2)]
    {
        // It comes to two that have worked already, works once more where it is, and goes.
        let videos = run(Some(layout(resident, own, slots)), &[0, 1, 1, 0]);
        let same: Vec<bool> = videos.iter().zip([1, 0, 0, 1]).map(|(video, i)| *video == all[i]).collect();
        assert_eq!(same, [true; 4], "{what}");
    }
}
