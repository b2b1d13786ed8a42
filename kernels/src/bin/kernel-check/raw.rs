//! Checks and times of the way from the product of queries, keys and values to the operands of 8-bit attention: products
//! that leave sums of squares, and kernels that norm, rotate and quantise in one go.

use std::f64::consts::LOG2_E;
use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream};
use animd_kernels::cuda::{
    Attention, Attention8bitLayout, Card, Element, Epilogue, Gemm, Norms, Operands, RawHeads, RopeTables,
    Rows, Squares, Typed,
};

use super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::int8::codes;
use super::{HEAD_DIM, Result, address, median, median_of, normal};

const BF16: Element = Element::Bf16;
const F32: Element = Element::F32;
const EPS: f32 = 1e-6;
/// Keys of a tile, and the least number of keys that give the mean, as the launcher has them.
const TILE: usize = 96;
const SAMPLED: usize = 2048;

/// How far a quantised number may be from the value in units of its scale: half by rounding, and the rest by seven sums of
/// f32 and a product, of up to 127 units, and by the scale itself.
const UNITS: f64 = 0.5 + 127.0 * 16.0 / (1 << 23) as f64;
/// The relative error of a scale and of a mean: a sum of squares or of keys in f32, and what follows.
const SCALE: f64 = 1e-5;

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let (gemm, attention) = (Gemm::load(card)?, Attention::load(card)?);
    println!("\nraw heads                                                         error    worst    limit");
    if !attention.takes_raw(2) {
        println!("not on this card");
        return Ok(true);
    }
    let stream = card.default_stream();
    let mut good = true;
    for (rows, tiles, squared, inner, gap) in
        [(1, 1, 1, 16, 0), (129, 3, 2, 80, 16), (300, 2, 2, 1280, 0), (5000, 6, 4, 192, 0)]
    {
        if quick && rows * tiles * inner > 1_000_000 {
            continue;
        }
        for element in [BF16, Element::E4m3, Element::Int8] {
            good &= product(&gemm, &stream, [rows, tiles, squared, inner, gap], element)?;
        }
    }
    for (rows, heads, gap) in
        [(1, 2, 0), (95, 2, 8), (97, 10, 0), (193, 18, 24), (300, 40, 0), (6200, 2, 0), (10_000, 4, 0)]
    {
        if quick && rows * heads > 20_000 {
            continue;
        }
        let case = Case::new(&stream, rows, heads, gap)?;
        good &= case.operands(&attention, &stream)?;
        if rows <= 300 {
            good &= case.results(&attention, &stream)?;
        }
    }
    Ok(good)
}

/// Checks a product of `tiles` tiles of columns, of which `squared` have their squares summed up.
fn product(
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    [rows, tiles, squared, inner, gap]: [usize; 5],
    element: Element,
) -> Result<bool> {
    let columns = tiles * Gemm::SQUARED;
    let operand = |rows: usize, seed| match element {
        Element::Int8 => Input::new(stream, &codes(rows * inner, seed), inner, gap, element),
        _ => Input::random(stream, [rows, inner, gap], element, seed),
    };
    let (a, b) = (operand(rows, 1)?, operand(columns, 2)?);
    let bias = Input::random(stream, [1, columns, 0], F32, 3)?;
    let scales = |count, seed| normal(count, seed).into_iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>();
    let a_scale = Input::new(stream, &scales(rows, 4), rows, 0, F32)?;
    let b_scale = Input::new(stream, &scales(columns, 5), columns, 0, F32)?;
    let (a_rows, b_rows) = (a.rows(stream), b.rows(stream));
    let (a_scales, b_scales) = (a_scale.at(stream), b_scale.at(stream));
    let operands = match element {
        BF16 => Operands::Bf16 { a: a_rows, b: b_rows },
        Element::Int8 => Operands::Int8 { a: a_rows, a_scale: a_scales, b: b_rows, b_scale: b_scales },
        _ => Operands::E4m3 { a: a_rows, a_scale: a_scales, b: b_rows, b_scale: b_scales, fast: true },
    };
    let run = || -> Result<[Vec<f64>; 2]> {
        let y = Output::new(stream, [rows, columns, gap], BF16)?;
        let sums = Output::new(stream, [rows, squared, 0], F32)?;
        let squares = Some(Squares { to: sums.rows(stream).address, tiles: squared });
        let epilogue = Epilogue { bias: Some(bias.at(stream)), squares, ..Epilogue::default() };
        // SAFETY: the buffers have these sizes and live until they have been read.
        unsafe { gemm.run(stream, &operands, inner, &epilogue, y.rows(stream), BF16)? };
        Ok([y.read(stream)?, sums.read(stream)?])
    };
    let ([y, sums], [y_again, sums_again]) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let left = &a.values[r * inner..][..inner];
        for (c, out) in out.iter_mut().enumerate() {
            let right = &b.values[c * inner..][..inner];
            let x: f64 = left.iter().zip(right).map(|(a, b)| a * b).sum();
            let scale = if element == BF16 { 1.0 } else { a_scale.values[r] * b_scale.values[c] };
            *out = x * scale + bias.values[c];
        }
    });
    let wanted_sums = by_rows(rows, squared, |r, out| {
        for (tile, out) in out.iter_mut().enumerate() {
            let row = &wanted[r * columns + tile * Gemm::SQUARED..][..Gemm::SQUARED];
            *out = row.iter().map(|x| x * x).sum();
        }
    });
    // As of products elsewhere; squares have twice the error, the rest of which are sums of f32.
    let limit = if element == Element::E4m3 { 6e-3 } else { 1e-4 };
    let name = format!("{element:?} {rows}x{columns}x{inner}");
    Ok(verdict(&format!("product {name}"), &y, &y_again, &wanted, limit + BF16_ROUNDING)
        & verdict(&format!("squares {name}"), &sums, &sums_again, &wanted_sums, 2.0 * limit))
}

/// Raw queries, keys and values side by side in one matrix, and what becomes of them in f64.
struct Case {
    rows: usize,
    heads: usize,
    gap: usize,
    raw: Input,
    weights: [Input; 2],
    tables: [Input; 2],
    /// The sums of squares of each 256 columns of q and k, as a product leaves them.
    squares: Input,
    /// Queries and keys, normed and with their rotary embedding, `[rows, heads * 128]`.
    normed: [Vec<f64>; 2],
}

impl Case {
    fn new(stream: &Arc<CudaStream>, rows: usize, heads: usize, gap: usize) -> Result<Self> {
        let width = heads * HEAD_DIM;
        let mut raw = normal(rows * 3 * width, 10);
        let common = normal(width, 11);
        for row in raw.chunks_exact_mut(3 * width) {
            for (i, x) in row[width..2 * width].iter_mut().enumerate() {
                // Keys as models have them: some channels are greater, and all keys have something in common.
                *x = *x * if i % 32 == 5 { 5.0 } else { 1.0 } + 2.0 * common[i];
            }
        }
        let raw = Input::new(stream, &raw, 3 * width, gap, BF16)?;
        let weight = |seed| {
            let weight: Vec<f32> = normal(width, seed).into_iter().map(|x| 1.0 + 0.3 * x).collect();
            Input::new(stream, &weight, width, 0, F32)
        };
        let weights = [weight(12)?, weight(13)?];
        let angles = normal(rows * 64, 14);
        let table = |f: fn(f32) -> f32| {
            Input::new(stream, &angles.iter().map(|a| f(3.0 * a)).collect::<Vec<_>>(), 64, 0, F32)
        };
        let tables = [table(f32::cos)?, table(f32::sin)?];
        let parts = 2 * width / Gemm::SQUARED;
        let sums = by_rows(rows, parts, |r, out| {
            for (i, out) in out.iter_mut().enumerate() {
                let some = &raw.values[r * 3 * width + i * Gemm::SQUARED..][..Gemm::SQUARED];
                *out = some.iter().map(|x| x * x).sum();
            }
        });
        let sums: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
        let squares = Input::new(stream, &sums, parts, 0, F32)?;
        let normed = [0, 1].map(|part| {
            by_rows(rows, width, |r, out| {
                let x = &raw.values[r * 3 * width + part * width..][..width];
                let mean: f64 = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let y: Vec<f64> = (0..width)
                    .map(|i| x[i] * weights[part].values[i] / (mean + f64::from(EPS)).sqrt())
                    .collect();
                for i in (0..width).step_by(2) {
                    let at = r * 64 + i % HEAD_DIM / 2;
                    let (cosine, sine) = (tables[0].values[at], tables[1].values[at]);
                    out[i] = y[i] * cosine - y[i + 1] * sine;
                    out[i + 1] = y[i] * sine + y[i + 1] * cosine;
                }
            })
        });
        Ok(Self { rows, heads, gap, raw, weights, tables, squares, normed })
    }

    fn part(&self, stream: &CudaStream, part: usize) -> Rows {
        let all = self.raw.rows(stream);
        Rows { address: all.address + (2 * part * self.heads * HEAD_DIM) as u64, ..all }
    }

    fn heads(&self, stream: &CudaStream) -> RawHeads {
        let [q, k, v] = [0, 1, 2].map(|part| self.part(stream, part));
        RawHeads {
            q,
            k,
            v,
            squares: self.squares.at(stream),
            weights: [self.weights[0].at(stream), self.weights[1].at(stream)],
            eps: EPS,
            rope: RopeTables {
                cosines: self.tables[0].at(stream),
                sines: self.tables[1].at(stream),
                pairs: 64,
            },
        }
    }

    /// Checks the prepared operands, each number and each scale.
    fn operands(&self, attention: &Attention, stream: &Arc<CudaStream>) -> Result<bool> {
        let &Self { rows, heads, .. } = self;
        let width = heads * HEAD_DIM;
        let layout = Attention8bitLayout::new(rows, rows, heads);
        let places = layout.places();
        let prepare = |raw: bool| -> Result<Vec<u8>> {
            let memory = stream.clone_htod(&vec![0xffu8; layout.bytes()])?;
            let workspace = layout.at(address(&memory, stream))?;
            let all = self.heads(stream);
            // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
            unsafe {
                match raw {
                    true => attention.quantize_8bit_raw(stream, &all, &workspace)?,
                    false => attention.quantize_8bit(stream, all.q, all.k, all.v, &workspace)?,
                }
            }
            Ok(stream.clone_dtoh(&memory)?)
        };
        let (given, again, plain) = (prepare(true)?, prepare(true)?, prepare(false)?);
        let f32s = |from: usize, count: usize| -> Vec<f64> {
            let words = given[from..][..4 * count].chunks_exact(4);
            words.map(|w| f64::from(f32::from_ne_bytes([w[0], w[1], w[2], w[3]]))).collect()
        };
        let int8 = |from: usize| -> Vec<f64> {
            given[from..][..rows * width].iter().map(|x| f64::from(x.cast_signed())).collect()
        };

        // The mean is of every so many keys, so many that there are enough of them.
        let every = if rows < SAMPLED { 1 } else { (rows / SAMPLED - 1) | 1 };
        let some: Vec<usize> = (0..rows).step_by(every).collect();
        let mean = by_rows(1, width, |_, out| {
            for (i, out) in out.iter_mut().enumerate() {
                *out = some.iter().map(|r| self.normed[1][r * width + i]).sum::<f64>() / some.len() as f64;
            }
        });
        let given_mean = f32s(places.key_mean, width);
        let name = |what: &str| format!("{what} of {rows} rows, {heads} heads");
        let mut good = verdict(&name("mean of keys"), &given_mean, &given_mean, &mean, SCALE);

        // A tile of keys, and a row of queries, has a scale for each head.
        for part in [0, 1] {
            if part == 1 && rows == 1 {
                // A single key is its own mean: what is left of it is rounding, which has no value to compare with.
                let none = f32s(places.key_scale, heads).iter().all(|scale| (0.0..SCALE).contains(scale));
                println!("{:60}{}", name("no keys"), if none { "" } else { "  WRONG" });
                good &= none;
                continue;
            }
            let (what, place, scale_place, tile) = [
                ("queries", places.query, places.query_scale, 1),
                ("keys", places.key, places.key_scale, TILE),
            ][part];
            let rotated = by_rows(rows, width, |r, out| {
                for (i, out) in out.iter_mut().enumerate() {
                    // The mean that the kernel took is known, so that its own error does not count here.
                    *out = self.normed[part][r * width + i] - if part == 1 { given_mean[i] } else { 0.0 };
                }
                out.chunks_exact_mut(HEAD_DIM).for_each(hadamard);
            });
            let tiles = rows.div_ceil(tile);
            let unit = if part == 0 { LOG2_E / (HEAD_DIM as f64).sqrt() / HEAD_DIM as f64 } else { 1.0 };
            let scales = f32s(scale_place, heads * tiles);
            let tops = by_rows(heads, tiles, |h, out| {
                for (t, out) in out.iter_mut().enumerate() {
                    let rows = t * tile..rows.min((t + 1) * tile);
                    let row = |r: usize| rotated[r * width + h * HEAD_DIM..][..HEAD_DIM].iter();
                    *out = rows.flat_map(row).fold(0.0, |top: f64, x| top.max(x.abs())) / 127.0 * unit;
                }
            });
            good &= verdict(&name(&format!("scales of {what}")), &scales, &scales, &tops, SCALE);
            let numbers = int8(place);
            let worst = numbers.iter().zip(&rotated).enumerate().fold(0.0, |worst: f64, (i, (n, x))| {
                let (row, head) = (i / width, i % width / HEAD_DIM);
                worst.max((n - x / scales[head * tiles + row / tile] * unit).abs())
            });
            let right = worst <= UNITS;
            println!("{:60} {worst:8.4} of {UNITS:8.4}{}", name(what), if right { "" } else { "  WRONG" });
            good &= right;
        }

        // Values have no norm: all that belongs to them is as without the norms of the others.
        let values = [
            (places.value, rows.next_multiple_of(TILE) * width),
            (places.value_mean, 4 * width),
            (places.value_scale, 4 * width),
        ];
        let same = values.iter().all(|&(from, bytes)| given[from..][..bytes] == plain[from..][..bytes]);
        let repeated = given == again;
        if !same || !repeated {
            println!("{}  values: {same}, repeatable: {repeated}  WRONG", name("all"));
        }
        Ok(good && same && repeated)
    }

    /// Checks the attention itself; the tolerance is that of 8-bit attention of such keys.
    fn results(&self, attention: &Attention, stream: &Arc<CudaStream>) -> Result<bool> {
        let &Self { rows, heads, gap, .. } = self;
        let width = heads * HEAD_DIM;
        let layout = Attention8bitLayout::new(rows, rows, heads);
        let run = || -> Result<Vec<f64>> {
            let memory = stream.clone_htod(&vec![0xffu8; layout.bytes()])?;
            let workspace = layout.at(address(&memory, stream))?;
            let to = Output::new(stream, [rows, width, gap], BF16)?;
            // SAFETY: the buffers have these sizes and live until the output has been read.
            unsafe {
                attention.quantize_8bit_raw(stream, &self.heads(stream), &workspace)?;
                attention.multiply_8bit(stream, to.rows(stream), &workspace)?;
            }
            to.read(stream)
        };
        let (given, again) = (run()?, run()?);
        let [q, k] = &self.normed;
        let wanted = by_rows(rows, width, |r, out| {
            for (h, out) in out.chunks_exact_mut(HEAD_DIM).enumerate() {
                let at = |row: usize| row * width + h * HEAD_DIM;
                let score = |key: usize| -> f64 {
                    q[at(r)..][..HEAD_DIM].iter().zip(&k[at(key)..]).map(|(a, b)| a * b).sum()
                };
                let scores: Vec<f64> = (0..rows).map(|key| score(key) / (HEAD_DIM as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let p: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = p.iter().sum();
                for (key, p) in p.iter().enumerate() {
                    let value = &self.raw.values[key * 3 * width + 2 * width + h * HEAD_DIM..];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += p / sum * v);
                }
            }
        });
        let name = format!("attention to raw heads, {rows} rows, {heads} heads");
        Ok(verdict(&name, &given, &again, &wanted, 0.045))
    }
}

/// Applies the Hadamard transform, without a norm.
fn hadamard(x: &mut [f64]) {
    let mut step = 1;
    while step < x.len() {
        for i in (0..x.len()).filter(|i| i & step == 0) {
            (x[i], x[i + step]) = (x[i] + x[i + step], x[i] - x[i + step]);
        }
        step *= 2;
    }
}

/// Prints milliseconds of what lies between the product of queries, keys and values and the attention, the way with normed
/// rows in memory and the raw way in turns, and of both products.
pub fn time(card: &Card) -> Result<()> {
    let (gemm, norms, attention) = (Gemm::load(card)?, Norms::load(card)?, Attention::load(card)?);
    let heads = 40;
    if !attention.takes_raw(heads) {
        return Ok(());
    }
    let (stream, width) = (card.default_stream(), heads * HEAD_DIM);
    println!("\nraw heads                      rows       ms");
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    // Random codes of e4m3 below NaN, in both signs.
    let codes: Vec<u8> = some.iter().map(|x| ((*x >> 8) as u8 & 0x80) | ((*x as u8 & 0x1f) + 0x20)).collect();
    for rows in [32_760, 75_600] {
        let report = |name: &str, ms: f32| println!("{name:26}{rows:9}{ms:9.3}");
        let bits: Vec<u16> = some.iter().copied().cycle().take(rows * 3 * width).collect();
        let qkv = stream.clone_htod(&bits)?;
        let bytes: Vec<u8> = codes.iter().copied().cycle().take((rows + 3 * width) * width).collect();
        let operands = stream.clone_htod(&bytes)?;
        let ones = stream.clone_htod(&vec![1.0f32; rows.max(3 * width)])?;
        let tables = stream.clone_htod(&vec![0.7f32; rows * 64])?;
        let squares = stream.clone_htod(&vec![256.0f32; rows * 2 * width / Gemm::SQUARED])?;
        let layout = Attention8bitLayout::new(rows, rows, heads);
        let memory: CudaSlice<u8> = stream.alloc_zeros(layout.bytes())?;
        let workspace = layout.at(address(&memory, &stream))?;
        let prepared = (address(&memory, &stream), layout.bytes());
        let (qkv, operands) = (address(&qkv, &stream), address(&operands, &stream));
        let (ones, tables) = (address(&ones, &stream), address(&tables, &stream));
        let part = |i: u64| Rows { address: qkv + 2 * i * width as u64, rows, stride: 3 * width };
        let rope = RopeTables { cosines: tables, sines: tables, pairs: 64 };
        let raw = RawHeads {
            q: part(0),
            k: part(1),
            v: part(2),
            squares: address(&squares, &stream),
            weights: [ones; 2],
            eps: EPS,
            rope,
        };
        let both = [0, 1].map(|i| (Typed::bf16(part(i)), ones, Typed::bf16(part(i))));
        let matrix = |address, rows| Rows { address, rows, stride: width };
        let factors = Operands::E4m3 {
            a: matrix(operands, rows),
            a_scale: ones,
            b: matrix(operands + (rows * width) as u64, 3 * width),
            b_scale: ones,
            fast: true,
        };
        let whole = Operands::Int8 {
            a: matrix(operands, rows),
            a_scale: ones,
            b: matrix(operands + (rows * width) as u64, 3 * width),
            b_scale: ones,
        };
        let plain = Epilogue { bias: Some(ones), ..Epilogue::default() };
        let tiles = 2 * width / Gemm::SQUARED;
        let squared = Epilogue { squares: Some(Squares { to: raw.squares, tiles }), ..plain };
        for _ in 0..2 {
            // SAFETY: the buffers have these sizes and outlive the waits in `median`; so for all below.
            let ms = median(&stream, || unsafe {
                norms.rms_norm(&stream, &both, EPS, Some(rope), width)?;
                attention.quantize_8bit(&stream, part(0), part(1), part(2), &workspace)
            })?;
            report("norms, then quantisation", ms);
            // SAFETY: as above.
            let ms = median_of(&stream, prepared, || unsafe {
                attention.quantize_8bit_raw(&stream, &raw, &workspace)
            })?;
            report("quantisation of raw heads", ms);
        }
        for _ in 0..2 {
            for (name, operands, epilogue) in [
                ("e4m3 fast, bias", &factors, &plain),
                ("e4m3 fast, bias, squares", &factors, &squared),
                ("int8, bias", &whole, &plain),
                ("int8, bias, squares", &whole, &squared),
            ] {
                let written = (qkv, rows * 3 * width * 2);
                // SAFETY: as above; the product overwrites what the others read.
                let ms = median_of(&stream, written, || unsafe {
                    gemm.run(&stream, operands, width, epilogue, Rows { rows, ..part(0) }, BF16)
                })?;
                report(name, ms);
            }
        }
    }
    Ok(())
}
