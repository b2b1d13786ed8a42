//! Attention: few keys and many, in 16 bits and in 8, with everything that may come before and after.

use super::linear::weight;
use super::norms::rope;
use super::{ATTENTION, Both, Check, FP8, IN_BF16, IN_FP8, IN_INT8, INT8, Options, Pair};
use crate::Result;
use crate::backend::SequenceOps;
use crate::backend::loading::Role;
use crate::backend::sequence::{Attention, Input, KeyValue, Projection, SelfAttention};
use crate::weights::DType;
use animd_protocol::profile::{AttentionKind, Precision};

/// The tolerance of 8 bits. In a mean over many keys values of equal size cancel, but their roundings do not: 0.05 on
/// white noise.
const EIGHT_BIT: f64 = 0.06;

pub(super) fn check(check: &Check) -> Result<()> {
    let cuda = check.open(&Options { long_context: 100, ..Options::default() })?;
    let both = Both::new(check, &cuda, IN_BF16);
    let case = |rows, sets, width| Case { rows, sets, heads: 2, width, kind: AttentionKind::Exact };
    let one = |keys| Set { keys, bias: false, copies: 1 };
    let (biased, prompt) =
        (|keys| Set { bias: true, ..one(keys) }, |keys| Set { copies: 512 - keys, ..one(keys) });
    for (keys, width) in [(1, 128), (77, 128), (130, 128), (9, 16), (77, 80), (70, 384)] {
        for sets in [
            vec![one(keys)],
            vec![biased(keys)],
            vec![one(5), one(keys)],
            vec![one(keys), one(5)],
            vec![one(5), biased(keys)],
            vec![prompt(keys), one(5)],
            vec![one(5), prompt(keys)],
        ] {
            attention(&both, "attention, bf16", &case(67, sets, width), ATTENTION)?;
        }
    }
    attention(&both, "attention, bf16", &Case { heads: 1, ..case(1, vec![biased(1)], 8) }, ATTENTION)?;
    // These are more sets than a kernel takes, short and long ones.
    for keys in [&[40, 33, 7][..], &[130, 140], &[20, 130, 9, 8]] {
        let sets = keys.iter().map(|keys| one(*keys)).collect();
        attention(&both, "attention, bf16", &case(72, sets, 128), ATTENTION)?;
    }
    with_projections(&both)?;
    to_itself(check)?;

    let in_8_bits = |rows, sets| Case { kind: AttentionKind::EightBit, ..case(rows, sets, 128) };
    for (rows, sets) in [(72, vec![one(130)]), (3, vec![one(100)]), (100, vec![one(200), one(40)])] {
        attention(&both, "attention, 8 bits", &in_8_bits(rows, sets), EIGHT_BIT)?;
    }
    // There are too few keys to count as self-attention.
    attention(&both, "attention, bf16", &in_8_bits(3, vec![one(99)]), ATTENTION)
}

#[derive(Clone, Copy)]
struct Set {
    keys: usize,
    bias: bool,
    /// How many times the last key counts.
    copies: usize,
}

struct Case {
    rows: usize,
    sets: Vec<Set>,
    heads: usize,
    width: usize,
    kind: AttentionKind,
}

fn attention(both: &Both<'_>, operation: &'static str, case: &Case, tolerance: f64) -> Result<()> {
    let &Case { rows, ref sets, heads, width, kind } = case;
    let features = heads * width;
    let q = both.noise(&[rows, features], 1)?;
    let made = sets.iter().zip(2..).map(|(set, seed)| {
        let of_keys = |seed| both.noise(&[set.keys, features], seed);
        let bias = set.bias.then(|| both.noise(&[heads, rows + set.keys - 1], 30 + seed)).transpose()?;
        Ok((of_keys(seed)?, of_keys(10 + seed)?, bias, set.copies))
    });
    let made = made.collect::<Result<Vec<_>>>()?;
    let y = attend(both, &q, &made, heads, kind)?;
    let sets = sets.iter().map(|s| {
        format!("{}{}, the last {} times", s.keys, if s.bias { " with a bias" } else { "" }, s.copies)
    });
    let sets = sets.collect::<Vec<_>>().join(" and ");
    both.compare(operation, format!("{rows} rows, keys {sets}, {heads} heads of {width}"), &y, tolerance)
}

fn attend(
    both: &Both<'_>,
    q: &Pair,
    sets: &[(Pair, Pair, Option<Pair>, usize)],
    heads: usize,
    kind: AttentionKind,
) -> Result<Pair> {
    let scale = (q.cpu.dims()[1] as f64 / heads as f64).powf(-0.5);
    let on_cpu: Vec<_> = sets
        .iter()
        .map(|&(ref k, ref v, ref bias, copies)| KeyValue {
            k: &k.cpu,
            v: &v.cpu,
            bias: bias.as_ref().map(|b| &b.cpu),
            copies,
        })
        .collect();
    let on_cuda: Vec<_> = sets
        .iter()
        .map(|&(ref k, ref v, ref bias, copies)| KeyValue {
            k: &k.cuda,
            v: &v.cuda,
            bias: bias.as_ref().map(|b| &b.cuda),
            copies,
        })
        .collect();
    Ok(Pair {
        cpu: both.cpu.attention(&Attention { q: &q.cpu, sets: &on_cpu, heads, scale, kind })?,
        cuda: both.cuda.attention(&Attention { q: &q.cuda, sets: &on_cuda, heads, scale, kind })?,
    })
}

/// Checks 8-bit attention of a layer to itself, in one step where the GPU can and in two.
fn to_itself(check: &Check) -> Result<()> {
    for (keeping, raw_heads) in [(IN_BF16, false), (IN_BF16, true), (IN_FP8, true), (IN_INT8, true)] {
        let cuda = check.open(&Options { long_context: 100, raw_heads, ..Options::default() })?;
        if keeping == IN_FP8 && !cuda.has_fp8() {
            continue;
        }
        let both = Both::new(check, &cuda, keeping);
        let (rows, heads, features) = (130, 2, 256);
        // Layers in int8 rotate 256 columns together.
        let (w, x) = (both.noise(&[features], 2)?, both.noise(&[rows, 256], 6)?);
        let (on_cpu, on_cuda) = rope(&both, rows, 64)?;
        let layer = both.load(vec![(weight(3 * features, 256, DType::F32, 1), None)], Role::Bulk)?;
        let (scale, kind, eps) = (128f64.powf(-0.5), AttentionKind::EightBit, 1e-6);
        let projection = Projection { norms: [Some(&w.cpu), Some(&w.cpu), None], eps, rope: Some(&on_cpu) };
        let cpu = SelfAttention { layer: &layer.cpu, projection, heads, scale, kind };
        let projection =
            Projection { norms: [Some(&w.cuda), Some(&w.cuda), None], eps, rope: Some(&on_cuda) };
        let on_cuda = SelfAttention { layer: &layer.cuda, projection, heads, scale, kind };
        let y = Pair {
            cpu: both.cpu.self_attention(Input::Plain(&x.cpu), &cpu)?,
            cuda: both.cuda.self_attention(Input::Plain(&x.cuda), &on_cuda)?,
        };
        let way = if raw_heads { "raw heads" } else { "normed heads" };
        // The layer's own error is that of its values, and moves scores of about 1 by as much again.
        let of_layer = match keeping.weights {
            Precision::Fp8 => FP8,
            Precision::Int8 => INT8,
            _ => 0.0,
        };
        let tolerance = EIGHT_BIT.hypot(1.5 * of_layer);
        both.compare(
            "attention, 8 bits",
            format!("self-attention, {way}, {:?}", keeping.weights),
            &y,
            tolerance,
        )?;
    }
    Ok(())
}

/// Checks attention as in the `DiT`: queries, keys and values of one product, with their norms.
fn with_projections(both: &Both<'_>) -> Result<()> {
    let (rows, heads, features) = (72, 2, 256);
    let w = both.noise(&[features], 2)?;
    let (on_cpu, on_cuda) = rope(both, rows, 64)?;
    let layer = both.load(vec![(weight(3 * features, 64, DType::F32, 1), None)], Role::Bulk)?;
    let x = both.noise(&[rows, 64], 6)?;
    let cpu = Projection { norms: [Some(&w.cpu), Some(&w.cpu), None], eps: 1e-6, rope: Some(&on_cpu) };
    let cuda = Projection { norms: [Some(&w.cuda), Some(&w.cuda), None], eps: 1e-6, rope: Some(&on_cuda) };
    let [q, k, v] = both.cpu.project(Input::Plain(&x.cpu), &layer.cpu, &cpu)?;
    let [q_, k_, v_] = both.cuda.project(Input::Plain(&x.cuda), &layer.cuda, &cuda)?;
    let pair = |cpu, cuda| Pair { cpu, cuda };
    let sets = [(pair(k, k_), pair(v, v_), None, 1)];
    let y = attend(both, &pair(q, q_), &sets, heads, AttentionKind::Exact)?;
    both.compare("attention, bf16", "self-attention with its projections", &y, 2.0 * ATTENTION)
}
