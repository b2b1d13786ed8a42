//! What the figures of a model mean.
//!
//! The bounds are against yardsticks that need no other copy of the model, and are wide: a sound model is far within, and
//! what a person would see as noise far beyond. What lies between is doubtful, and said to be.

use serde::Serialize;

use super::agreement::Agreement;
use super::denoise::Loss;
use super::depth::Apart;
use super::findings::{Findings, Prompt, Suspect};
use super::rounding::Rounded;

/// What a figure, or all figures together, come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is as it should be.
    Sound,
    /// It may be as it should be.
    Doubtful,
    /// It is not as it should be.
    Wrong,
}

impl Verdict {
    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Doubtful => "doubtful",
            Self::Wrong => "WRONG",
        }
    }
}

/// One thing that was judged.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// What it comes to.
    pub verdict: Verdict,
    /// What was found, as a sentence.
    pub what: String,
}

/// The shares of the blind guess's loss below which a transformer denoises, and from which on it does not.
const DENOISES: f64 = 0.6;
const DOES_NOT: f64 = 0.9;
/// The PSNR from which on a VAE is sound, and below which it is not, in dB. Wan2.1's own gives photographs back with more
/// than 30; a mean grey would have 10 to 15.
const PSNR: [f64; 2] = [24.0, 18.0];
/// The least and the greatest deviation of a latent channel, and the greatest mean, of a single video. Over many videos the
/// deviation is 1 and the mean 0.
const DEVIATIONS: [f64; 2] = [0.05, 3.5];
const MEAN: f64 = 4.0;
/// A block that is left out makes the loss at least so many times as large, or it does harm: a trained block helps, or does
/// next to nothing.
const HARM: f64 = 0.97;
/// The share of the loss by which the fitting prompt must be better than its opposite, over all videos.
const PROMPT: f64 = 0.0;
/// The distance of the device from the CPU that bf16 explains, and the one from which on it is wrong; and the distances of
/// 8 bits.
const BF16: [f64; 2] = [0.03, 0.1];
const JOBS: [f64; 2] = [0.15, 0.4];

/// Judges all figures.
pub(super) fn judge(
    suspects: &[Suspect],
    rounding: &[Rounded],
    agreement: Option<&Agreement>,
    findings: &Findings,
) -> Vec<Judged> {
    let mut judged = vec![tensors(suspects), vae(findings), denoising(&findings.losses)];
    judged.extend(experts(&findings.all_losses));
    judged.extend(blocks(findings));
    judged.push(prompts(findings));
    judged.extend(agreement.map(device));
    judged.extend(outliers(rounding));
    judged
}

/// Returns what all comes to, with a sentence.
pub(super) fn sum_up(judged: &[Judged]) -> (Verdict, String) {
    let verdict = judged.iter().map(|j| j.verdict).max().unwrap_or(Verdict::Sound);
    let of = |verdict| {
        let all: Vec<&str> = judged.iter().filter(|j| j.verdict == verdict).map(|j| &*j.what).collect();
        all.join("; ")
    };
    let sentence = match verdict {
        Verdict::Sound => "this model is as it should be, as far as figures can tell".to_owned(),
        Verdict::Doubtful => format!("this model may be as it should be: {}", of(verdict)),
        Verdict::Wrong => format!("this model is not as it should be: {}", of(verdict)),
    };
    (verdict, sentence)
}

fn grade(value: f64, [sound, wrong]: [f64; 2]) -> Verdict {
    // Written so that what is no number is wrong.
    match (value <= sound, value < wrong) {
        (true, _) => Verdict::Sound,
        (false, true) => Verdict::Doubtful,
        (false, false) => Verdict::Wrong,
    }
}

fn tensors(suspects: &[Suspect]) -> Judged {
    let Some(first) = suspects.first() else {
        return Judged {
            verdict: Verdict::Sound,
            what: "every tensor is finite and of a plausible size".into(),
        };
    };
    let name = first.tensor.as_deref().unwrap_or("one of them");
    let what = first.what.clone().unwrap_or_else(|| format!("`{name}` cannot be read"));
    let what = format!("{} of its tensors are implausible, as: {what}", suspects.len());
    Judged { verdict: Verdict::Wrong, what }
}

fn vae(findings: &Findings) -> Judged {
    let latents = &findings.latents;
    let psnr = latents.psnr;
    let mut verdict = grade(-psnr, PSNR.map(|bound| -bound));
    let mut what = match verdict {
        Verdict::Sound => format!("the VAE gives a photograph back, at {psnr:.1} dB"),
        _ => format!("the VAE does not give a photograph back, at {psnr:.1} dB: it is damaged or misread"),
    };
    let [least, most] = DEVIATIONS;
    let strange =
        |(mean, deviation): (&f64, &f64)| !(mean.abs() <= MEAN && (least..=most).contains(deviation));
    let count = latents.means.iter().zip(&latents.deviations).filter(|pair| strange(*pair)).count();
    if count > 0 && verdict == Verdict::Sound {
        verdict = Verdict::Doubtful;
        what = format!(
            "{count} of the VAE's channels are not scaled as Wan2.1's: it may be the VAE of another model"
        );
    }
    Judged { verdict, what }
}

fn denoising(losses: &[Loss]) -> Judged {
    let worst = losses.iter().max_by(|a, b| a.share().total_cmp(&b.share()));
    let Some(worst) = worst else {
        return Judged { verdict: Verdict::Wrong, what: "nothing was denoised".into() };
    };
    let (share, level) = (worst.share(), worst.level);
    let verdict = grade(share, [DENOISES, DOES_NOT]);
    let percent = 100.0 * share;
    let what = match verdict {
        Verdict::Sound => format!(
            "the transformer denoises a video that it does not know: it errs at most {percent:.0} % of what a blind guess does"
        ),
        Verdict::Doubtful => format!(
            "the transformer denoises, but badly: at noise {level} it errs {percent:.0} % of what a blind guess does; a part \
             of it may be damaged or belong to another model"
        ),
        Verdict::Wrong if losses.iter().all(|loss| loss.share() >= DOES_NOT) => {
            "these weights do not denoise: they are made up, misread, or of parts that do not belong together"
                .into()
        }
        Verdict::Wrong => format!(
            "these weights do not denoise at noise {level}: they are damaged, misread, or of parts that do not belong together"
        ),
    };
    Judged { verdict, what }
}

/// Judges whether each of two transformers is the better one where it computes.
fn experts(losses: &[Loss]) -> Option<Judged> {
    let at = |expert: usize, level: f64| {
        losses.iter().find(|l| l.expert == expert && l.level.total_cmp(&level).is_eq())
    };
    let levels = || losses.iter().map(|loss| loss.level);
    let (least, most) = (levels().reduce(f64::min)?, levels().reduce(f64::max)?);
    let noisy = at(0, most)?.predicted / at(1, most)?.predicted;
    let clear = at(1, least)?.predicted / at(0, least)?.predicted;
    if noisy > 1.0 && clear > 1.0 {
        let what = "each of the two transformers is better where the other one computes: they are in each other's place";
        return Some(Judged { verdict: Verdict::Wrong, what: what.into() });
    }
    Some(Judged { verdict: Verdict::Sound, what: "the two transformers are each in their place".into() })
}

fn blocks(findings: &Findings) -> Option<Judged> {
    let all = &findings.worth;
    if all.is_empty() {
        return None;
    }
    let harmful: Vec<String> = all
        .iter()
        .filter(|worth| worth.without.is_nan() || worth.without < HARM * worth.with)
        .map(|worth| {
            format!("block {} ({:.4} with it, {:.4} without)", worth.block, worth.with, worth.without)
        })
        .collect();
    Some(match harmful.is_empty() {
        true => {
            Judged { verdict: Verdict::Sound, what: format!("none of its {} blocks does harm", all.len()) }
        }
        false => Judged {
            verdict: Verdict::Doubtful,
            what: format!(
                "without some blocks it denoises better, so that they may be damaged: {}",
                harmful.join(", ")
            ),
        },
    })
}

/// Judges the matrices that are apart from their neighbours; `None` if there are none.
pub(super) fn depth(apart: &[Apart]) -> Option<Judged> {
    let first = apart.first()?;
    let Apart { tensor, factor, usual } = first;
    let more = match apart.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more like that"),
    };
    let what = format!(
        "`{tensor}` is {factor:.2} times as large as the blocks around it lead to expect, which are off by at most {usual:.2} themselves{more}: \
         unless training has made it so, it was scaled by mistake"
    );
    Some(Judged { verdict: Verdict::Doubtful, what })
}

fn prompts(findings: &Findings) -> Judged {
    let prompts = &findings.prompts;
    let sum = |of: fn(&Prompt) -> f64| prompts.iter().map(of).sum::<f64>();
    let gain = (sum(|p| p.wrong) - sum(|p| p.right)) / sum(|p| p.right);
    let better = prompts.iter().filter(|p| p.right < p.wrong).count();
    let of = prompts.len();
    if gain > PROMPT && better * 2 >= of {
        let what = format!("the prompt that fits is better than its opposite in {better} of {of} videos");
        return Judged { verdict: Verdict::Sound, what };
    }
    let what = format!(
        "the prompt that fits is better than its opposite in only {better} of {of} videos: the text encoder or the tokenizer \
         may be damaged or of another model"
    );
    Judged { verdict: Verdict::Doubtful, what }
}

/// Judges how far a device is from the CPU.
pub(super) fn device(agreement: &Agreement) -> Judged {
    let worst =
        |of: fn(&super::agreement::Branch) -> f64| agreement.branches.iter().map(of).fold(0.0, f64::max);
    let (bf16, jobs) = (worst(|b| b.bf16), worst(|b| b.jobs));
    let networks = grade(bf16.max(agreement.encoded).max(agreement.decoded), BF16);
    let precision = grade(jobs, JOBS);
    let verdict = networks.max(precision);
    let what = match (networks, precision) {
        (Verdict::Sound, Verdict::Sound) => "the device computes what the CPU does".to_owned(),
        (Verdict::Sound, _) => {
            format!("in the precision of jobs, blocks are {jobs:.2} off: this model may not do in 8 bits")
        }
        _ => format!(
            "the device does not compute what the CPU does: blocks are {bf16:.3} off, latents {:.3}, frames {:.3}; run \
             `animd-engine selftest`",
            agreement.encoded, agreement.decoded
        ),
    };
    Judged { verdict, what }
}

fn outliers(rounding: &[Rounded]) -> Option<Judged> {
    let outliers = rounding.iter().filter(|rounded| rounded.outlier).count();
    (!rounding.is_empty()).then(|| Judged {
        verdict: Verdict::Sound,
        what: match outliers {
            0 => "all its large matrices do alike in 8 bits".to_owned(),
            n => format!("{n} of its {} large matrices lose more than the others in 8 bits", rounding.len()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::findings::{Latents, Worth};
    use super::*;

    fn loss(expert: usize, level: f64, loss: f64) -> Loss {
        Loss { level, expert, predicted: loss, given: loss, nothing: 2.0, blind: 1.0 }
    }

    /// Returns the figures of a sound model.
    fn findings() -> Findings {
        let losses = vec![loss(0, 0.3, 0.3), loss(0, 0.9, 0.2)];
        Findings {
            latents: Latents {
                psnr: 31.0,
                psnr_first: 33.0,
                means: vec![0.1; 16],
                deviations: vec![0.8; 16],
            },
            all_losses: losses.clone(),
            losses,
            worth: vec![Worth { expert: 0, block: 0, with: 0.3, without: 0.5 }],
            prompts: vec![Prompt { right: 0.2, wrong: 0.21 }; 4],
        }
    }

    #[track_caller]
    fn comes_to(findings: &Findings, verdict: Verdict, words: &str) {
        let (found, sentence) = sum_up(&judge(&[], &[], None, findings));
        assert_eq!(found, verdict, "{sentence}");
        assert!(sentence.contains(words), "{sentence}");
    }

    #[test]
    fn each_figure_has_its_verdict() {
        comes_to(&findings(), Verdict::Sound, "as it should be");
        let with = |losses: Vec<Loss>| Findings { all_losses: losses.clone(), losses, ..findings() };
        comes_to(
            &with(vec![loss(0, 0.3, 1.2), loss(0, 0.9, 0.95)]),
            Verdict::Wrong,
            "do not denoise: they are made up",
        );
        comes_to(
            &with(vec![loss(0, 0.3, 0.2), loss(0, 0.9, 0.95)]),
            Verdict::Wrong,
            "do not denoise at noise 0.9",
        );
        comes_to(&with(vec![loss(0, 0.3, f64::NAN)]), Verdict::Wrong, "do not denoise");
        comes_to(&with(vec![loss(0, 0.3, 0.7)]), Verdict::Doubtful, "but badly");
        comes_to(&with(Vec::new()), Verdict::Wrong, "nothing was denoised");
        let latents = |psnr| Latents { psnr, ..findings().latents };
        comes_to(
            &Findings { latents: latents(12.0), ..findings() },
            Verdict::Wrong,
            "at 12.0 dB: it is damaged",
        );
        comes_to(&Findings { latents: latents(f64::NAN), ..findings() }, Verdict::Wrong, "does not give");
        let latents = Latents { deviations: vec![9.0; 16], ..findings().latents };
        comes_to(&Findings { latents, ..findings() }, Verdict::Doubtful, "VAE of another model");
        let worth = vec![Worth { expert: 0, block: 7, with: 0.3, without: 0.2 }];
        comes_to(&Findings { worth, ..findings() }, Verdict::Doubtful, "block 7 (0.3000 with it");
        let prompts = vec![Prompt { right: 0.21, wrong: 0.2 }; 4];
        comes_to(&Findings { prompts, ..findings() }, Verdict::Doubtful, "only 0 of 4");
    }

    #[test]
    fn a_layer_apart_from_its_neighbours_is_doubtful() {
        assert!(depth(&[]).is_none());
        let one = Apart { tensor: "blocks.1.ffn.0.weight".into(), factor: 2.031, usual: 1.02 };
        let judged = depth(&[one.clone(), one]).expect("there are two");
        assert_eq!(judged.verdict, Verdict::Doubtful);
        assert!(judged.what.contains("`blocks.1.ffn.0.weight` is 2.03 times as large"), "{}", judged.what);
        assert!(judged.what.contains("and 1 more"), "{}", judged.what);
    }

    #[test]
    fn two_transformers_are_told_apart() {
        let all = |high: [f64; 2], low: [f64; 2]| {
            let losses = [(0, 0.3, high[0]), (0, 0.9, high[1]), (1, 0.3, low[0]), (1, 0.9, low[1])];
            let losses: Vec<Loss> = losses.into_iter().map(|(e, l, v)| loss(e, l, v)).collect();
            experts(&losses).map(|judged| judged.verdict)
        };
        assert_eq!(all([0.5, 0.2], [0.3, 0.4]), Some(Verdict::Sound));
        assert_eq!(all([0.3, 0.4], [0.5, 0.2]), Some(Verdict::Wrong));
        assert_eq!(experts(&[loss(0, 0.3, 0.1), loss(0, 0.9, 0.1)]).map(|j| j.verdict), None);
    }

    #[test]
    fn a_device_that_is_off_is_not_blamed_on_the_model() {
        let branch =
            |bf16, jobs| super::super::agreement::Branch { block: 0, name: "ffn".into(), bf16, jobs };
        let of = |bf16, jobs| {
            device(&Agreement { branches: vec![branch(bf16, jobs)], encoded: 0.01, decoded: 0.01 })
        };
        assert_eq!(of(0.01, 0.1).verdict, Verdict::Sound);
        let judged = of(0.01, 0.5);
        assert!(judged.verdict == Verdict::Wrong && judged.what.contains("in 8 bits"), "{}", judged.what);
        let judged = of(0.5, 0.5);
        assert!(judged.verdict == Verdict::Wrong && judged.what.contains("selftest"), "{}", judged.what);
        assert_eq!(of(f64::INFINITY, 0.0).verdict, Verdict::Wrong);
    }
}
