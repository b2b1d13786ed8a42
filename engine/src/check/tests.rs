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
    check(Cpu::new(), &Setup::CPU, &options, observer, &|_, _| ())
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
