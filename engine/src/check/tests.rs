//! Whole checks, of models that do not denoise.

use std::path::{Path, PathBuf};

use super::*;
use crate::Error;
use crate::backend::cpu::Cpu;
use crate::progress::Quiet;

/// The frames of the videos: two latent frames.
const FRAMES: u32 = 5;

fn run(model: &Path, observer: &dyn Observer) -> Result<Report> {
    let options = Options { model, dit: None, hashes: None, device: "the CPU".into(), frames: Some(FRAMES) };
    check(&Cpu::new(), &Setup::CPU, &options, observer, &|_, _| ())
}

fn official() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official")
}

#[test]
fn made_up_weights_do_not_denoise() {
    let report = run(&official(), &Quiet).expect("it runs");
    assert_eq!(report.verdict, Verdict::Wrong);
    assert!(report.sentence.contains("these weights do not denoise: they are made up, misread"), "{report}");
    assert!(report.sentence.contains("the VAE does not give a photograph back"), "{report}");
    assert!(report.suspects.is_empty(), "each tensor is plausible by itself: {report}");
    assert_eq!(report.rounding.len(), 36, "twelve large matrices in each of three blocks");
    assert_eq!((report.findings.losses.len(), report.findings.worth.len()), (3, 3));
    // The report can be sent to others: it has no path.
    let text = serde_json::to_string(&report).expect("figures");
    assert!(!text.contains('/') && !text.contains("tiny-a") && !text.contains("camera"), "{text}");
}

/// The only trained transformer that there is here: none of its layers is apart, and each would be if it were doubled or halved.
#[test]
fn a_doubled_layer_of_a_trained_model_is_apart() {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/small-model/files");
    let looked = verify::look(&small, None, &Quiet, &|_| ()).expect("it can be read");
    let sizes =
        &looked.iter().find(|part| part.component == weights::Component::Dit).expect("there is one").rms;
    assert_eq!(depth::apart(sizes), []);
    let of_blocks = (0..sizes.len()).filter(|i| sizes[*i].0.starts_with("blocks."));
    assert!(of_blocks.clone().count() >= 48, "twelve matrices in each of four blocks");
    for i in of_blocks {
        for factor in [2.0, 0.5] {
            let mut changed = sizes.clone();
            changed[i].1 *= factor;
            let found = depth::apart(&changed);
            let [one] = &found[..] else { panic!("{} times {factor}: {found:?}", sizes[i].0) };
            assert_eq!(one.tensor, sizes[i].0);
            assert!((0.75..1.34).contains(&(one.factor / factor)), "{one:?}");
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_gpu_has_memory_for_the_comparison_and_computes_what_the_cpu_does() {
    use crate::backend::cuda::{Cuda, Options as CudaOptions};
    use animd_protocol::profile::Profile;
    let profile = Profile::built_in("h200").expect("it comes with animd");
    let b = Cuda::open(0, &CudaOptions { poison: true, ..CudaOptions::of(&profile) }, 0, 0).expect("a GPU");
    let files = weights::Model::open(&official(), None).expect("a model");
    let setup = Setup::from(&profile);
    let mut pipeline = Pipeline::open(b.clone(), &setup, &official(), None, None).expect("a model");
    let settings = Settings { frames: Some(FRAMES), guidance: Some(1.0), ..Settings::default() };
    let request = settings.resolve(|| 0).expect("valid settings");
    let job = Job::new(clip::photograph().expect("it is bundled"), request).expect("it fits");
    let agreement = compared(&b, &mut pipeline, &job, &files, &Quiet).expect("there is memory");
    let agreement = agreement.expect("a GPU is compared with the CPU");
    assert_eq!(agreement.branches.len(), 9, "three branches of three blocks");
    assert!(agreement.branches.iter().all(|branch| branch.bf16 > 0.0), "bf16 rounds: {agreement:?}");
    assert_eq!(verdict::device(&agreement).verdict, Verdict::Sound, "{agreement:?}");
}

#[test]
fn a_check_can_be_stopped() {
    struct Stopped;
    impl Observer for Stopped {
        fn progress(&self, _: &Progress) {}
        fn canceled(&self) -> bool {
            true
        }
    }
    assert!(matches!(run(&official(), &Stopped), Err(Error::Canceled)));
}
