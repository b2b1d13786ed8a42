//! What checking a model has shown: figures that a person can send to others.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;

use super::agreement::Agreement;
use super::denoise::Loss;
use super::depth::{self, Apart};
use super::findings::{Findings, Suspect, Worth};
use super::rounding::Rounded;
use super::verdict::{self, Judged, Verdict};
use crate::verify::{Known, Part};
use crate::weights::{Component, Encoding, Model, Weights};
use animd_protocol::plan::Setup;
use animd_protocol::profile::{AttentionKind, Precisions};

/// The machine that computed.
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// `cpu` or `cuda`.
    pub backend: &'static str,
    /// The precisions of the networks.
    pub precision: Precisions,
    /// The kind of self-attention.
    pub attention: AttentionKind,
}

/// A network, without anything that says whose it is.
#[derive(Clone, Debug, Serialize)]
pub struct Network {
    /// The kind of network.
    pub component: Component,
    /// How its files name and quantise the tensors.
    pub layout: &'static str,
    /// Its sizes by name.
    pub sizes: Vec<(&'static str, usize)>,
    /// The number of values of each stored type.
    pub types: BTreeMap<String, usize>,
    /// The bytes and hashes of its files, in their order; the hashes as far as `verify` has computed them.
    pub files: Vec<(u64, Option<String>)>,
}

/// What was checked, and on what.
#[derive(Clone, Debug, Serialize)]
pub struct Ground {
    /// animd's version.
    pub version: &'static str,
    /// The device.
    pub device: Device,
    /// The networks.
    pub networks: Vec<Network>,
    /// The frames of the videos that were denoised.
    pub frames: u32,
}

impl Ground {
    pub(super) fn new(resolved: &Setup, name: &str, backend: &'static str) -> Self {
        let Setup { precision, attention, .. } = *resolved;
        let device = Device { name: name.to_owned(), backend, precision, attention };
        Self { version: env!("CARGO_PKG_VERSION"), device, networks: Vec::new(), frames: 0 }
    }
}

/// Describes the networks of a model.
pub(super) fn networks(model: &Model, known: Option<&Known>) -> Vec<Network> {
    let describe = |weights: &Weights, sizes: Vec<(&'static str, usize)>| {
        let mut types = BTreeMap::new();
        for name in weights.names() {
            let encoding = weights.encoding(name).map_or("mixed".to_owned(), |e: Encoding| e.to_string());
            let values: usize = weights.shape(name).unwrap_or_default().iter().product();
            *types.entry(encoding).or_default() += values;
        }
        let files = weights.files().into_iter().map(|file| {
            let bytes = file.metadata().map_or(0, |found| found.len());
            (bytes, known.and_then(|known| known.hash(file)).map(str::to_owned))
        });
        let (component, layout) = (weights.component(), weights.layout().name());
        Network { component, layout, sizes, types, files: files.collect() }
    };
    let mut networks = vec![describe(&model.dit.0, model.dit.1.sizes())];
    networks.extend(model.low_noise.as_ref().map(|(weights, config)| describe(weights, config.sizes())));
    networks.push(describe(&model.t5.0, model.t5.1.sizes()));
    networks.extend(model.clip.as_ref().map(|(weights, config)| describe(weights, config.sizes())));
    networks.push(describe(&model.vae.0, model.vae.1.sizes()));
    networks
}

/// All figures, and what they mean.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What it comes to.
    pub verdict: Verdict,
    /// What it comes to, in a sentence.
    pub sentence: String,
    /// What led to the verdict.
    pub judged: Vec<Judged>,
    #[serde(flatten)]
    ground: Ground,
    /// The tensors that are implausible by themselves.
    pub suspects: Vec<Suspect>,
    /// The transformers' matrices that are apart from those of the blocks around them.
    pub apart: Vec<Apart>,
    /// What the transformer's matrices lose in 8 bits.
    pub rounding: Vec<Rounded>,
    /// The device and the CPU, if the device is not the CPU.
    pub agreement: Option<Agreement>,
    /// What the whole model has computed.
    pub findings: Findings,
}

impl Report {
    pub(super) fn new(
        ground: Ground,
        looked: Vec<Part>,
        rounding: Vec<Rounded>,
        agreement: Option<Agreement>,
        findings: Findings,
    ) -> Self {
        let transformers = looked.iter().filter(|part| part.component == Component::Dit);
        let apart: Vec<Apart> = transformers.flat_map(|part| depth::apart(&part.rms)).collect();
        let suspects: Vec<Suspect> = looked
            .into_iter()
            .flat_map(|part| {
                let component = part.component;
                part.mistakes.into_iter().map(move |mistake| Suspect {
                    component,
                    // Sentences about files name them, and a path names its owner.
                    what: Some(mistake.what).filter(|what| !what.contains('/')),
                    tensor: mistake.tensor,
                })
            })
            .collect();
        let mut judged = verdict::judge(&suspects, &rounding, agreement.as_ref(), &findings);
        judged.extend(verdict::depth(&apart));
        let (verdict, sentence) = verdict::sum_up(&judged);
        Self { verdict, sentence, judged, ground, suspects, apart, rounding, agreement, findings }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Findings { latents, losses, worth, prompts, .. } = &self.findings;
        writeln!(f, "{}, {} frames of 320x192", self.ground.device.name, self.ground.frames)?;
        writeln!(f, "\nVAE: {:.1} dB after encoding and decoding a photograph that moves", latents.psnr)?;
        writeln!(f, "\ndenoising        loss     blind guess   no guess")?;
        for Loss { level, predicted, blind, nothing, .. } in losses {
            writeln!(f, "  noise {level:.1}    {predicted:>8.4}    {blind:>8.4}     {nothing:>8.4}")?;
        }
        let least = worth.iter().min_by(|a, b| (a.without / a.with).total_cmp(&(b.without / b.with)));
        if let Some(Worth { block, with, without, .. }) = least {
            writeln!(f, "  the block that helps least, {block}: {with:.4} with it, {without:.4} without")?;
        }
        if !prompts.is_empty() {
            let (right, all) = (prompts.iter().filter(|p| p.right < p.wrong).count(), prompts.len());
            writeln!(f, "  the prompt that fits is better than its opposite in {right} of {all} videos")?;
        }
        if let Some(agreement) = &self.agreement {
            let worst = |of: fn(&super::agreement::Branch) -> f64| {
                agreement.branches.iter().map(of).fold(0.0, f64::max)
            };
            let (bf16, jobs) = (worst(|b| b.bf16), worst(|b| b.jobs));
            writeln!(f, "\ndevice and CPU: blocks {bf16:.1e} apart in bf16, {jobs:.1e} as jobs run")?;
            writeln!(f, "  VAE: latents {:.1e} apart, frames {:.1e}", agreement.encoded, agreement.decoded)?;
        }
        if !self.rounding.is_empty() {
            let middle = |mut values: Vec<f64>| {
                values.sort_by(f64::total_cmp);
                values.get(values.len() / 2).copied()
            };
            let mut text = String::new();
            if let Some(int8) = middle(self.rounding.iter().filter_map(|r| r.int8).collect()) {
                // Writing to a string cannot fail.
                let _ = write!(text, "{:.2} % in int8, ", 100.0 * int8);
            }
            let fp8 = middle(self.rounding.iter().map(|r| r.fp8).collect()).unwrap_or_default();
            writeln!(f, "\nweights in 8 bits lose {text}{:.2} % in fp8", 100.0 * fp8)?;
            for outlier in self.rounding.iter().filter(|r| r.outlier).take(8) {
                writeln!(f, "  `{}` loses more: {:.2} % in fp8", outlier.tensor, 100.0 * outlier.fp8)?;
            }
        }
        writeln!(f)?;
        for judged in &self.judged {
            writeln!(f, "{}: {}", judged.verdict.word(), judged.what)?;
        }
        write!(f, "\n{}", self.sentence)
    }
}
