//! The ways to run the `DiT` that profiles ship, on a made-up model whose attention is as sharp as a trained one's: the
//! tests bound their errors, and show that wrong attention would be noticed.

use super::goldens::{CROSS_ATTENTION, OPERANDS, TO_BF16, TO_E4M3};
use super::{Cuda, Options, distance, noise, open};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Keeping};
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::progress::Quiet;
use crate::synth::{Family, Size, Source};
use crate::weights::{Component, DType, HostTensor, Matrix, WeightSource};
use animd_protocol::profile::{AttentionKind, Precision};
use animd_protocol::recipe::Recipe;

/// The frames, height and width of the latent: 528 tokens.
const LATENT: [usize; 3] = [4, 22, 24];
/// A number of keys that is larger than the text's, and smaller than the number of tokens.
const LONG_CONTEXT: usize = 520;

fn source() -> Source {
    source_of(&Size::Tiny.recipe())
}

fn source_of(recipe: &Recipe) -> Source {
    let dit = recipe.networks().find(|part| part.component() == Component::Dit).unwrap();
    Source::new(&dit, DType::Bf16, 1)
}

/// Returns the same model with queries of zeros, so that self-attention is the mean over all tokens.
struct Indifferent(Source);

impl WeightSource for Indifferent {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let mut tensor = self.0.tensor(name)?;
        if name.ends_with("self_attn.norm_q.weight") {
            tensor.data.fill(0.0);
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        self.0.matrix(name)
    }
}

/// Returns the velocity at inputs of noise.
fn velocity<B: Backend>(
    b: &B,
    keeping: Keeping,
    weights: &dyn WeightSource,
    attention: AttentionKind,
) -> Vec<f32> {
    velocity_of(&Size::Tiny.recipe(), b, keeping, weights, attention)
}

/// Returns the velocity at inputs of noise, of a made-up model of this kind.
fn velocity_of<B: Backend>(
    recipe: &Recipe,
    b: &B,
    keeping: Keeping,
    weights: &dyn WeightSource,
    attention: AttentionKind,
) -> Vec<f32> {
    let config = recipe.experts[0].network.config.clone();
    let dit = Dit::load(&b.loader(keeping), weights, &config).unwrap();
    let [t, h, w] = LATENT;
    let upload = |shape: &[usize], seed| b.upload(&noise(shape.iter().product(), seed), shape).unwrap();
    let (x, y) = (&upload(&[16, t, h, w], 1), &upload(&[20, t, h, w], 2));
    let (text, image) =
        (upload(&[60, config.text_dim], 3), upload(&[recipe.image_tokens(), config.image_dim.unwrap()], 4));
    let context = &dit.context(b, &text, Some(&image)).unwrap();
    let (time, grid) = (&dit.time(b, 500.0).unwrap(), &dit.grid(b, t, h, w).unwrap());
    let inputs = Inputs { x, y, time, context, grid, attention };
    let blocks = Blocks::Compute { keep_residual: false };
    b.download(&dit.forward(b, &inputs, blocks, &Quiet, None).unwrap().velocity).unwrap()
}

/// The factor by which a relative error of queries and keys grows in attention's result: the root mean square, over the
/// tiny model's two heads, of their scores' deviations, 1.3 and 4.5.
const SHARPNESS: f64 = 3.3;

/// Returns the error that the velocity may have from roundings to bf16 and, of a product's operands, to e4m3.
///
/// A branch has [`CROSS_ATTENTION`] roundings, [`OPERANDS`] of them of operands. Those of queries and keys also move
/// the scores: the norm, a weight, the result and its norm of each, and two operands of each. How the branches' errors
/// come into the stream, which grows by less than e, is explained at [`super::goldens::branch`].
fn products(operands: f64) -> f64 {
    let squares = |roundings: u32, of_operands: u32| {
        f64::from(roundings) * TO_BF16.powi(2) + f64::from(of_operands) * operands.powi(2)
    };
    let branch = squares(CROSS_ATTENTION, OPERANDS) + SHARPNESS.powi(2) * squares(8, 4);
    ((std::f64::consts::E - 1.0) * branch).sqrt()
}

/// The error that 8-bit self-attention adds: steps of int8 as long as the largest of 128 bell-shaped numbers, 2.7
/// deviations, over 127 for queries, and of the largest of 96 rows, 4 deviations, for keys, each rounded by the root of
/// a twelfth; e4m3 for the softmax and the values. One branch of three has it, with a third of the stream's growth.
fn eight_bits() -> f64 {
    let scores = (2.7f64.powi(2) + 4f64.powi(2)) / (127f64.powi(2) * 12.0);
    let branch = SHARPNESS.powi(2) * scores + 2.0 * TO_E4M3.powi(2);
    (((1.0f64 / 3.0).exp() - 1.0) * branch).sqrt()
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn sharp_attention_in_the_shipped_modes() {
    let cpu = Cpu::new();
    let right = velocity(&cpu, Keeping::F32, &source(), AttentionKind::Exact);
    let indifferent = velocity(&cpu, Keeping::F32, &Indifferent(source()), AttentionKind::Exact);
    let broken = distance(&indifferent, &right);
    println!("without preferences {broken:.1e}");

    let cuda: Cuda = open(&Options { long_context: LONG_CONTEXT, ..Options::default() });
    for (name, weights, limit) in
        [("bf16", Precision::Bf16, products(0.0)), ("fp8", Precision::Fp8, products(TO_E4M3))]
    {
        let keeping = Keeping { weights, ..Keeping::F32 };
        let run = |attention| velocity(&cuda, keeping, &source(), attention);
        let (exact, eight) = (run(AttentionKind::Exact), run(AttentionKind::EightBit));
        for (kind, got, limit) in [("exact", &exact, limit), ("8bit", &eight, limit.hypot(eight_bits()))] {
            let off = distance(got, &right);
            println!("{name}-{kind:6} {off:.1e} of {limit:.1e}");
            assert!(off <= limit, "{name}-{kind} is {off:.1e} away, {limit:.1e} allowed");
            assert!(limit < broken, "{name}-{kind}: attention without preferences would pass");
        }
        // On weights that average attention away, the two kinds give the same digits.
        let apart = distance(&eight, &exact);
        assert!(apart > TO_BF16, "{name}: exact and 8-bit attention are only {apart:.1e} apart");
    }
}

/// The same model without the positions of its two pictures.
struct Unplaced(Source);

impl WeightSource for Unplaced {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let mut tensor = self.0.tensor(name)?;
        if name == "img_emb.emb_pos" {
            tensor.data.fill(0.0);
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        self.0.matrix(name)
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn two_pictures_have_their_positions() {
    let (cpu, flf2v) = (Cpu::new(), &Size::Tiny.recipe_of(Family::Flf2v));
    let exact = AttentionKind::Exact;
    let right = velocity_of(flf2v, &cpu, Keeping::F32, &source_of(flf2v), exact);
    let unplaced = velocity_of(flf2v, &cpu, Keeping::F32, &Unplaced(source_of(flf2v)), exact);
    let cuda: Cuda = open(&Options { long_context: LONG_CONTEXT, ..Options::default() });
    let keeping = Keeping { weights: Precision::Bf16, ..Keeping::F32 };
    let got = velocity_of(flf2v, &cuda, keeping, &source_of(flf2v), exact);
    let (off, limit) = (distance(&got, &right), products(0.0));
    println!("two pictures {off:.1e} of {limit:.1e}; without positions {:.1e}", distance(&unplaced, &right));
    assert!(off <= limit, "{off:.1e} away, {limit:.1e} allowed");
    assert!(distance(&got, &unplaced) > distance(&unplaced, &right) / 2.0, "positions change nothing");
}
