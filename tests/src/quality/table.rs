//! The table of all rows, for people and as JSON.

use std::fmt;

use serde::Serialize;

use super::Measures;
use super::measures::EQUAL;

/// The figures of all rows.
#[derive(Serialize)]
pub struct Table {
    /// The device that approximates.
    pub device: String,
    /// The number of videos.
    pub videos: usize,
    /// How near the exact videos are to the true motion, in dB.
    pub truth: Vec<f64>,
    /// Each row's name, and the measures of its videos.
    pub rows: Vec<(String, Vec<Measures>)>,
    /// What the device does not have, or could not do.
    pub left_out: Vec<String>,
}

/// Returns the mean of some values, and the least and the largest of them.
fn spread(values: impl Iterator<Item = f64>, decimals: usize) -> String {
    let values: Vec<f64> = values.collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{mean:.decimals$} ({least:.decimals$} to {most:.decimals$})")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let truth = spread(self.truth.iter().copied(), 1);
        writeln!(f, "{} videos on {}; means, and from the least to the largest.", self.videos, self.device)?;
        writeln!(
            f,
            "The exact videos (CPU, float32) have {truth} dB against the true motion. Equal frames count {EQUAL} dB.\n"
        )?;
        writeln!(
            f,
            "| approximated | PSNR of frames, dB | SSIM | relative L2 of latents | nearer to the true motion, dB |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- |")?;
        for (name, all) in &self.rows {
            let of = |value: fn(&Measures) -> f64, decimals| spread(all.iter().map(value), decimals);
            let (psnr, ssim) = (of(|m| m.psnr, 1), of(|m| m.ssim, 4));
            let (latents, nearer) = (of(|m| m.latents, 4), of(|m| m.nearer, 2));
            writeln!(f, "| {name} | {psnr} | {ssim} | {latents} | {nearer} |")?;
        }
        self.left_out.iter().try_for_each(|what| write!(f, "\n{what}."))
    }
}
