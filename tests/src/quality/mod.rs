//! What each approximation costs in pictures: the same videos, from the same noise, exactly and approximately.
//!
//! The exact videos are those of the CPU in float32. A video that is approximated is compared with the exact one, and both with
//! the true motion, which is rendered from the photograph: an approximation may change a video without making it worse.

mod cases;
mod measures;
mod rows;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use animd_engine::backend::Backend;
use animd_engine::backend::cpu::Cpu;
use animd_engine::pipeline::{Frames, Job, Pipeline};
use animd_engine::progress::Quiet;
use animd_protocol::plan::Setup;
use anyhow::{Context, Result};

pub use cases::{Case, Cases};
pub use measures::Measures;
pub use rows::{Row, cpu_rows, gpu_rows};
pub use table::Table;

/// How many exact videos are made at a time: one alone does not keep many cores busy.
const AT_A_TIME: usize = 4;

/// What is compared: cases, and the model that makes their videos.
pub struct Comparison<'a> {
    cases: &'a Cases,
    model: &'a Path,
    /// The exact videos, in the cases' order.
    exact: Vec<Frames>,
}

impl<'a> Comparison<'a> {
    /// Makes the exact videos.
    ///
    /// # Errors
    /// Returns why a video could not be made.
    pub fn new(cases: &'a Cases, model: &'a Path) -> Result<Self> {
        let made: Mutex<Vec<Option<Frames>>> = Mutex::new(vec![None; cases.all.len()]);
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut pipeline = Pipeline::open(Cpu::new(), &Setup::CPU, model, None, None)?;
            while let Some((at, case)) = take(&next, &cases.all) {
                eprintln!("exact: {} of {}", at + 1, cases.all.len());
                let frames = pipeline.frames(&cases.job(case, model)?, None, &Quiet)?;
                made.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = Some(frames);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_A_TIME.min(cases.all.len())).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let exact: Option<Vec<_>> = made.into_iter().collect();
        Ok(Self { cases, model, exact: exact.context("an exact video is missing")? })
    }

    /// Returns how near the exact videos are to the true motion, in dB, in the cases' order.
    ///
    /// # Errors
    /// Returns why a true video cannot be read.
    pub fn truth(&self) -> Result<Vec<f64>> {
        let each = self.cases.all.iter().zip(&self.exact);
        each.map(|(case, exact)| Ok(case.truth()?.psnr(&exact.rgb))).collect()
    }

    /// Makes every video as `row` says, and compares each with the exact one and with the true motion.
    ///
    /// # Errors
    /// Returns why a video could not be made, as when the device does not have a precision.
    pub fn row<B: Backend>(&self, row: &Row, backend: B) -> Result<Vec<Measures>> {
        let mut pipeline = Pipeline::open(backend, &row.setup, self.model, None, None)?;
        let jobs: Vec<Job> =
            self.cases.all.iter().map(|case| self.cases.job(case, self.model)).collect::<Result<_>>()?;
        thread::scope(|scope| {
            let mut compared = Vec::with_capacity(jobs.len());
            for (job, (case, exact)) in jobs.iter().zip(self.cases.all.iter().zip(&self.exact)) {
                let frames = pipeline.frames(job, row.tile, &Quiet)?;
                let size = [self.cases.width, self.cases.height];
                compared.push(scope.spawn(move || {
                    let truth = case.truth()?;
                    Ok(Measures::new(exact, &frames, size, truth.psnr(&frames.rgb) - truth.psnr(&exact.rgb)))
                }));
            }
            let join = |one: thread::ScopedJoinHandle<'_, Result<Measures>>| {
                one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            compared.into_iter().map(join).collect()
        })
    }
}

/// Takes the next thing that nobody has taken.
fn take<'a, T>(next: &AtomicUsize, all: &'a [T]) -> Option<(usize, &'a T)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, all.get(at)?))
}

/// Returns the folder of the small model in this repository.
pub fn small_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/small-model/files")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use animd_engine::image::Picture;

    use super::*;

    /// Writes a folder with one case, whose true video is grey.
    fn folder() -> tempfile::TempDir {
        let (folder, size) = (tempfile::tempdir().expect("a folder"), 64 * 48);
        let rgb = (0..3 * size).map(|at| (at * 7 % 251) as u8).collect();
        Picture { width: 64, height: 48, rgb }.write_png(&folder.path().join("0.png")).expect("written");
        fs::write(folder.path().join("0.rgb"), vec![128; 3 * 5 * size]).expect("written");
        fs::write(folder.path().join("0.mask"), vec![1; 5 * size]).expect("written");
        let text = r#"{"width": 64, "height": 48, "frames": 5, "cases": [
            {"kind": "snow", "prompt": "snow falls", "seed": 1, "picture": "0.png", "truth": "0.rgb", "shown": "0.mask"}]}"#;
        fs::write(folder.path().join("cases.json"), text).expect("written");
        folder
    }

    #[test]
    fn a_video_is_equal_to_itself_and_far_from_one_of_another_seed() {
        let (folder, model) = (folder(), small_model());
        let mut other = Cases::read(folder.path(), 9).expect("cases");
        let cases = Cases::read(folder.path(), 9).expect("cases");
        let exact = Comparison::new(&cases, &model).expect("a video");
        let whole = Row { name: "the same", setup: Setup::CPU, tile: None };
        let same = exact.row(&whole, Cpu::new()).expect("compared");
        assert_eq!(same, [Measures { psnr: measures::EQUAL, ssim: same[0].ssim, latents: 0.0, nearer: 0.0 }]);
        assert!((same[0].ssim - 1.0).abs() < 1e-9);
        let (rows, left_out) = cpu_rows();
        let tiled = exact.row(&rows[0], Cpu::new()).expect("compared");
        // A tile has the same sums in another order: less than a step of 8 bits almost everywhere, 48 dB if it were everywhere.
        assert!(tiled[0].psnr > 48.0, "{tiled:?}");
        other.all[0].seed = 2;
        let far = Comparison { cases: &other, ..exact }.row(&whole, Cpu::new()).expect("compared");
        assert!(far[0].psnr < 40.0 && far[0].latents > 0.1 && far[0].nearer.abs() > 0.0, "{far:?}");
        let rows = vec![("VAE in tiles".to_owned(), tiled)];
        let table = Table { device: "the CPU".into(), videos: 1, truth: vec![20.0], rows, left_out };
        let printed = table.to_string();
        assert!(
            printed.contains("| VAE in tiles |") && printed.contains("TeaCache and MagCache are left out"),
            "{printed}"
        );
    }
}
