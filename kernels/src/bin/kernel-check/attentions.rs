//! Checks and times of attention to few keys, and of attention of any width.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaStream;
use animd_kernels::cuda::{
    AnyAttention, AnyAttentionArguments, Batches, Card, CrossAttention, Element, KeyValue, Rows,
};

use super::bench::{Input, Output, by_rows, verdict};
use super::{Result, address, median_of, normal};

const BF16: Element = Element::Bf16;
/// The relative L2 error allowed: P and the output are each rounded once, by 1.7e-3 in the root mean square, and the
/// result of the first of two sets once more.
const LIMIT: f64 = 2.0 / 512.0;

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let (cross, any) = (CrossAttention::load(card)?, AnyAttention::load(card)?);
    let stream = card.default_stream();
    let mut good = true;
    println!("\nother attentions                                                  error    worst    limit");
    // Rows, keys of each set (0: no set), how many times the last key of each counts, heads, gap. The last case has more
    // blocks of rows than the GPU runs blocks.
    for (rows, keys, copies, heads, gap) in [
        (1, [1, 0], [1, 1], 1, 0),
        (128, [128, 0], [1, 1], 1, 0),
        (129, [512, 0], [1, 1], 2, 8),
        (200, [257, 0], [1, 1], 3, 0),
        (64, [512, 257], [1, 1], 2, 0),
        (300, [16, 17], [1, 1], 2, 24),
        (1000, [145, 400], [1, 1], 3, 0),
        (70, [1, 0], [512, 1], 1, 0),
        (131, [16, 257], [497, 1], 2, 8),
        (96, [96, 97], [417, 2], 2, 0),
        (140, [65, 128], [448, 3], 1, 0),
        (77, [128, 257], [385, 1], 2, 0),
        (65, [129, 0], [384, 1], 1, 0),
        (5000, [512, 257], [1, 1], 5, 0),
        (5000, [78, 257], [435, 1], 5, 0),
    ] {
        if quick && rows * heads * keys.iter().sum::<usize>() > 2_000_000 {
            continue;
        }
        for with_residual in [false, true] {
            let width = heads * 128;
            let q = Input::random(&stream, [rows, width, gap], BF16, 80)?;
            let residual = Input::random(&stream, [rows, width, gap], BF16, 81)?;
            let sets = keys
                .iter()
                .filter(|keys| **keys > 0)
                .map(|&keys| {
                    let k = Input::random(&stream, [keys, width, gap], BF16, 82 + keys as u64)?;
                    Ok((k, Input::random(&stream, [keys, width, gap], BF16, 83 + keys as u64)?))
                })
                .collect::<Result<Vec<_>>>()?;
            let on_gpu: Vec<KeyValue> = sets
                .iter()
                .zip(copies)
                .map(|((k, v), copies)| KeyValue { k: k.rows(&stream), v: v.rows(&stream), copies })
                .collect();
            let more = with_residual.then(|| residual.rows(&stream));
            let run = || -> Result<Vec<f64>> {
                let to = Output::new(&stream, [rows, width, gap], BF16)?;
                // SAFETY: the buffers have these sizes and live until the output has been read.
                unsafe { cross.run(&stream, q.rows(&stream), &on_gpu, more, to.rows(&stream), heads)? };
                to.read(&stream)
            };
            let (given, again) = (run()?, run()?);
            let mut wanted = if with_residual { residual.values.clone() } else { vec![0.0; rows * width] };
            for ((k, v), copies) in sets.iter().zip(copies) {
                let (k, v) =
                    (last_repeated(&k.values, width, copies), last_repeated(&v.values, width, copies));
                add(&mut wanted, &q.values, &k, &v, [rows, heads, 128], 1.0 / 128f64.sqrt(), None);
            }
            let name = format!(
                "cross {rows} rows, {keys:?} keys, the last {copies:?}, {heads} heads, residual: {with_residual}"
            );
            good &= verdict(&name, &given, &again, &wanted, 2.0 * LIMIT);
        }
    }
    // rows, keys, heads, width, bias, how many times the last key counts
    for (rows, keys, heads, width, biased, copies) in [
        (1, 1, 1, 8, false, 1),
        (63, 65, 2, 64, true, 1),
        (512, 512, 3, 64, true, 1),
        (257, 257, 2, 80, false, 1),
        (100, 33, 2, 128, true, 1),
        (390, 390, 1, 384, false, 1),
        (40, 9, 2, 32, false, 504),
        (70, 64, 1, 128, false, 449),
    ] {
        good &= one(&any, &stream, [rows, keys, heads, width], biased, copies)?;
    }
    Ok(good)
}

/// Checks one shape with two batches, with a residual if there is no bias.
fn one(
    any: &AnyAttention,
    stream: &Arc<CudaStream>,
    [rows, keys, heads, width]: [usize; 4],
    biased: bool,
    copies: usize,
) -> Result<bool> {
    let all = heads * width;
    let q = Input::random(stream, [2 * rows, all, 0], BF16, 90)?;
    let k = Input::random(stream, [2 * keys, all, 8], BF16, 91)?;
    let v = Input::random(stream, [2 * keys, all, 0], BF16, 92)?;
    let residual = Input::random(stream, [2 * rows, all, 0], BF16, 93)?;
    let bias = Input::random(stream, [heads, rows + keys - 1, 0], Element::F32, 94)?;
    let scale = 1.0 / (width as f32).sqrt();
    let half = |x: Rows| Batches { rows: Rows { rows: x.rows / 2, ..x }, step: x.rows / 2 * x.stride };
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [2 * rows, all, 0], BF16)?;
        let arguments = AnyAttentionArguments {
            q: half(q.rows(stream)),
            k: half(k.rows(stream)),
            v: half(v.rows(stream)),
            bias: biased.then(|| bias.at(stream)),
            residual: (!biased).then(|| half(residual.rows(stream))),
            output: half(to.rows(stream)),
            heads,
            width,
            batches: 2,
            scale,
            copies,
        };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { any.run(stream, &arguments)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let mut wanted = if biased { vec![0.0; 2 * rows * all] } else { residual.values.clone() };
    for batch in 0..2 {
        let part = |x: &[f64], rows: usize| x[batch * rows * all..][..rows * all].to_vec();
        let to = &mut wanted[batch * rows * all..][..rows * all];
        let repeated = |x: &Input| last_repeated(&part(&x.values, keys), all, copies);
        let (q, k, v) = (part(&q.values, rows), repeated(&k), repeated(&v));
        add(to, &q, &k, &v, [rows, heads, width], f64::from(scale), biased.then_some(&bias.values[..]));
    }
    let name =
        format!("any {rows} rows, {keys} keys, the last {copies}, {heads} heads of {width}, bias: {biased}");
    Ok(verdict(&name, &given, &again, &wanted, LIMIT))
}

/// Returns rows of `width` with the last one as often as it counts.
fn last_repeated(rows: &[f64], width: usize, copies: usize) -> Vec<f64> {
    let last = &rows[rows.len() - width..];
    [rows, &last.repeat(copies - 1)].concat()
}

/// Adds attention in f64.
fn add(
    to: &mut [f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    [rows, heads, width]: [usize; 3],
    scale: f64,
    bias: Option<&[f64]>,
) {
    let all = heads * width;
    let keys = k.len() / all;
    let result = by_rows(rows, all, |r, out| {
        for h in 0..heads {
            let query = &q[r * all + h * width..][..width];
            let mut p: Vec<f64> = (0..keys)
                .map(|j| {
                    let key = &k[j * all + h * width..][..width];
                    let bias = bias.map_or(0.0, |b| b[h * (rows + keys - 1) + j + rows - 1 - r]);
                    query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() * scale + bias
                })
                .collect();
            let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for p in &mut p {
                *p = (*p - top).exp();
            }
            let sum: f64 = p.iter().sum();
            for (j, p) in p.iter().enumerate() {
                let value = &v[j * all + h * width..][..width];
                out[h * width..][..width].iter_mut().zip(value).for_each(|(o, v)| *o += p / sum * v);
            }
        }
    });
    to.iter_mut().zip(result).for_each(|(to, x)| *to += x);
}

/// Prints milliseconds and TFLOP/s on the models' shapes.
pub fn time(card: &Card) -> Result<()> {
    let (cross, any) = (CrossAttention::load(card)?, AnyAttention::load(card)?);
    let stream = card.default_stream();
    let rows = 32_760;
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    let bits: Vec<u16> = some.iter().copied().cycle().take(rows * 5120).collect();
    let (input, output) = (stream.clone_htod(&bits)?, stream.alloc_zeros::<u16>(rows * 5120)?);
    let (input, output) = (address(&input, &stream), address(&output, &stream));
    println!("\nother attentions                         ms  TFLOP/s");
    let report =
        |name: &str, flop: f64, ms: f32| println!("{name:32}{ms:9.3}{:9.0}", flop / f64::from(ms) / 1e9);
    let (q, to) = (Rows::dense(input, rows, 5120), Rows::dense(output, rows, 5120));
    let set = |keys| KeyValue::new(Rows::dense(input, keys, 5120), Rows::dense(input, keys, 5120));
    let prompt = |keys| KeyValue { copies: 512 - keys, ..set(keys) };
    for (name, sets) in [
        ("cross, 512 keys", &[set(512)][..]),
        ("cross, 257 keys", &[set(257)]),
        ("cross, both", &[set(512), set(257)]),
        ("cross, a prompt of 60", &[prompt(61)]),
        ("cross, of 77", &[prompt(78)]),
        ("cross, of 60, and 257 keys", &[prompt(61), set(257)]),
        ("cross, of 77, and 257 keys", &[prompt(78), set(257)]),
        ("cross, of 200, and 257 keys", &[prompt(201), set(257)]),
    ] {
        // SAFETY: the buffers have these sizes and outlive the waits in `median`.
        let ms = median_of(&stream, (to.address, rows * 5120 * 2), || unsafe {
            cross.run(&stream, q, sets, None, to, 40)
        })?;
        let keys: usize = sets.iter().map(|s| s.k.rows).sum();
        report(name, 4.0 * (rows * keys * 5120) as f64, ms);
    }
    for (name, rows, heads, width, batches) in
        [("umT5", 512, 64, 64, 1), ("CLIP", 257, 16, 80, 1), ("VAE, 4 frames of 60x104", 6240, 1, 384, 4)]
    {
        let all = 3 * heads * width;
        let part = |i: usize| {
            let address = input + (2 * i * heads * width) as u64;
            Batches { rows: Rows { address, rows, stride: all }, step: rows * all }
        };
        let output = Batches { rows: Rows::dense(output, rows, heads * width), step: rows * heads * width };
        let arguments = AnyAttentionArguments {
            q: part(0),
            k: part(1),
            v: part(2),
            bias: None,
            residual: None,
            output,
            heads,
            width,
            batches,
            scale: 0.1,
            copies: 1,
        };
        let written = (output.rows.address, 2 * batches * rows * heads * width);
        // SAFETY: as above.
        let ms = median_of(&stream, written, || unsafe { any.run(&stream, &arguments) })?;
        report(name, 4.0 * (batches * rows * rows * heads * width) as f64, ms);
    }
    Ok(())
}
