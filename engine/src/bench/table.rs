//! Prints the figures as a table.

use std::fmt;

use animd_protocol::request::Tiling;

use super::{Compared, Comparison, Outcome};

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let Self { version, device, model, width, height, frames, tokens, runs, tiling, .. } = self;
        let tiled = if *tiling == Tiling::Tiled { ", the VAE in tiles" } else { "" };
        writeln!(
            f,
            "animd {version} on {device}, model {model}: {width}x{height}, {frames} frames, {tokens} tokens{tiled}"
        )?;
        writeln!(f, "seconds, warm medians of {runs}\n")?;
        writeln!(
            f,
            "{:19}{:>8}{:>8}{:>8}{:>9}{:>9}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}",
            "",
            "load",
            "text",
            "image",
            "context",
            "encode",
            "forward",
            "computed",
            "skipped",
            "decode",
            "+ file",
            "job",
            "peak GiB"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:19}{:>8.1}{:>8.3}{:>8.3}{:>9.3}{:>9.3}{:>10.3}{:>9}{:>9}{:>9.3}{:>9.3}{:>9.2}{:>10.2}",
                row.row.name(),
                row.load,
                row.text.median,
                row.image.median,
                row.context.median,
                row.vae_encode.median,
                row.forward.median,
                row.computed,
                row.skipped,
                row.vae_decode.median,
                row.vae_decode_and_write.median,
                row.job,
                gib(row.peak_bytes)
            )?;
        }
        let whole = self.rows.iter().filter_map(|row| Some((row, row.job_measured?)));
        for (i, (row, seconds)) in whole.enumerate() {
            let before = if i == 0 { "\nreal jobs, from the request to the file:\n" } else { "" };
            write!(f, "{before}{:19}{seconds:>8.2} s", row.row.name())?;
            if let Some(seconds) = row.exchange_measured {
                write!(f, ", {seconds:.3} s of them because the transformers take turns")?;
            }
            match row.peak_bytes_measured {
                None | Some(0) => writeln!(f)?,
                Some(peak) => {
                    writeln!(f, ", at most {:.2} of {:.2} GiB planned", gib(peak), gib(row.planned_bytes))?;
                }
            }
        }
        for comparison in &self.comparisons {
            comparison.table(f, self.pretended.as_deref())?;
        }
        let last = self.notes.len();
        for (i, note) in self.notes.iter().enumerate() {
            let before = if i == 0 { "\n" } else { "" };
            write!(f, "{before}{note}{}", if i + 1 < last { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl Comparison {
    /// Writes a line for each stage.
    fn table(&self, f: &mut fmt::Formatter<'_>, pretended: Option<&str>) -> fmt::Result {
        let there = pretended.map_or(String::new(), |name| format!("   predicted for {name}"));
        writeln!(f, "\n{:16}   measured   predicted{there}", self.row.name())?;
        let cell = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.3}"));
        for Compared { what, measured, predicted, pretended: there } in &self.stages {
            write!(f, "  {what:14} {measured:>10.3} {:>11}", cell(*predicted))?;
            match pretended {
                Some(_) => writeln!(f, "   {:>13}", cell(*there))?,
                None => writeln!(f)?,
            }
        }
        match self.streamed_per_forward {
            0 => Ok(()),
            bytes => writeln!(
                f,
                "  {:.2} GiB of weights are copied to the GPU in each forward",
                bytes as f64 / f64::from(1 << 30)
            ),
        }
    }
}
