//! Attention: few keys and many, 16 bits and 8, with what may come before and after.

use super::linear::weight;
use super::norms::rope;
use super::{ATTENTION, Both, Check, Options, Pair};
use crate::Result;
use crate::backend::SequenceOps;
use crate::backend::sequence::{Attention, Epilogue, Role};
use crate::profile::AttentionKind;
use crate::weights::DType;

/// Values of equal size cancel in a mean over many keys, and the rounding of 8 bits does not: 0.05 on white noise.
const EIGHT_BIT: f64 = 0.06;

pub(super) fn check(check: &Check) -> Result<()> {
    let options = Options { long_context: 100, ..Options::BF16 };
    let cuda = check.open(&options)?;
    let both = Both::new(check, &cuda);
    for (keys, width) in [(1, 128), (77, 128), (130, 128), (9, 16), (77, 80), (70, 384)] {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let case = Case { rows: 67, keys, heads: 2, width, bias, residual };
            attention(&both, "attention, bf16", &case, ATTENTION)?;
        }
    }
    let case = Case { rows: 1, keys: 1, heads: 1, width: 8, bias: true, residual: false };
    attention(&both, "attention, bf16", &case, ATTENTION)?;
    text_and_picture(&both)?;
    with_norms(&both)?;

    let cuda = check.open(&Options { attention: AttentionKind::EightBit, ..options })?;
    let both = Both::new(check, &cuda);
    for (rows, keys, residual) in [(72, 130, false), (100, 200, true), (3, 100, false)] {
        let case = Case { rows, keys, heads: 2, width: 128, bias: false, residual };
        attention(&both, "attention, 8 bits", &case, EIGHT_BIT)?;
    }
    // Too few keys to be self-attention.
    let case = Case { rows: 3, keys: 99, heads: 2, width: 128, bias: false, residual: false };
    attention(&both, "attention, bf16", &case, ATTENTION)
}

struct Case {
    rows: usize,
    keys: usize,
    heads: usize,
    width: usize,
    bias: bool,
    residual: bool,
}

fn attention(both: &Both<'_>, operation: &'static str, case: &Case, tolerance: f64) -> Result<()> {
    let &Case { rows, keys, heads, width, .. } = case;
    let features = heads * width;
    let q = both.noise(&[rows, features], 1)?;
    let (k, v) = (both.noise(&[keys, features], 2)?, both.noise(&[keys, features], 3)?);
    let bias = case.bias.then(|| both.noise(&[heads, rows + keys - 1], 4)).transpose()?;
    let residual = case.residual.then(|| both.noise(&[rows, features], 5)).transpose()?;
    let y = attend(both, [&q, &k, &v], heads, bias.as_ref(), residual.as_ref())?;
    let more = [(case.bias, ", bias"), (case.residual, ", residual")];
    let more: String = more.into_iter().filter_map(|(there, name)| there.then_some(name)).collect();
    both.compare(
        operation,
        format!("{rows} rows, {keys} keys, {heads} heads of {width}{more}"),
        &y,
        tolerance,
    )
}

fn attend(
    both: &Both<'_>,
    [q, k, v]: [&Pair; 3],
    heads: usize,
    bias: Option<&Pair>,
    residual: Option<&Pair>,
) -> Result<Pair> {
    let scale = (q.cpu.dims()[1] as f64 / heads as f64).powf(-0.5);
    Ok(Pair {
        cpu: both.cpu.attention(&Attention {
            q: &q.cpu,
            k: &k.cpu,
            v: &v.cpu,
            heads,
            scale,
            bias: bias.map(|b| &b.cpu),
            residual: residual.map(|r| &r.cpu),
        })?,
        cuda: both.cuda.attention(&Attention {
            q: &q.cuda,
            k: &k.cuda,
            v: &v.cuda,
            heads,
            scale,
            bias: bias.map(|b| &b.cuda),
            residual: residual.map(|r| &r.cuda),
        })?,
    })
}

/// As the `DiT` has it: text, then picture, from normed queries, in one kernel.
fn text_and_picture(both: &Both<'_>) -> Result<()> {
    let (rows, heads, features) = (72, 2, 256);
    let (x, w) = (both.noise(&[rows, features], 1)?, both.noise(&[features], 2)?);
    let q = Pair {
        cpu: both.cpu.rms_norm(&x.cpu, &w.cpu, 1e-6, None)?,
        cuda: both.cuda.rms_norm(&x.cuda, &w.cuda, 1e-6, None)?,
    };
    let mut last: Option<Pair> = None;
    for (keys, seed) in [(40, 3), (33, 4)] {
        let (k, v) = (both.noise(&[keys, features], seed)?, both.noise(&[keys, features], 10 * seed)?);
        last = Some(attend(both, [&q, &k, &v], heads, None, last.as_ref())?);
    }
    last.map_or(Ok(()), |last| both.compare("attention, bf16", "text and picture in one", &last, ATTENTION))
}

/// As the `DiT` has it: both norms in one launch, over what they come from if nobody else has that.
fn with_norms(both: &Both<'_>) -> Result<()> {
    let (rows, heads, features) = (72, 2, 256);
    let w = both.noise(&[features], 2)?;
    let (on_cpu, on_cuda) = rope(both, rows, 64)?;
    let self_attention = |qkv: Pair| -> Result<Pair> {
        let part = |i| both.slice(&qkv, 1, i * features, features);
        let normed = |x: Pair| -> Result<Pair> {
            Ok(Pair {
                cpu: both.cpu.rms_norm(&x.cpu, &w.cpu, 1e-6, Some(&on_cpu))?,
                cuda: both.cuda.rms_norm(&x.cuda, &w.cuda, 1e-6, Some(&on_cuda))?,
            })
        };
        let (q, k, v) = (normed(part(0)?)?, normed(part(1)?)?, part(2)?);
        attend(both, [&q, &k, &v], heads, None, None)
    };
    let qkv = both.noise(&[rows, 3 * features], 5)?;
    let y = self_attention(qkv.clone())?;
    // Somebody else has `qkv`: its rows are as they were.
    both.compare("attention, bf16", "self-attention with its norms", &y, ATTENTION)?;
    both.compare("attention, bf16", "what its norms were of", &qkv, 0.0)?;

    let layers = [(weight(3 * features, 64, DType::F32, 1), None)];
    let on_cpu = both.cpu.load_linear(&layers, Role::Bulk)?;
    let on_cuda = both.cuda.load_linear(&layers, Role::Bulk)?;
    let x = both.noise(&[rows, 64], 6)?;
    let y = self_attention(Pair {
        cpu: both.cpu.linear(&x.cpu, &on_cpu, &Epilogue::default())?,
        cuda: both.cuda.linear(&x.cuda, &on_cuda, &Epilogue::default())?,
    })?;
    both.compare("attention, bf16", "self-attention in place", &y, 2.0 * ATTENTION)
}
