//! 8-bit attention by `mma.sync`: its operands to the bit, and its result against the attention over these operands with the
//! kernel's roundings.

use animd_kernels::cuda::cudarc::driver::CudaSlice;
use animd_kernels::cuda::{Attention, Attention8bitLayout, Card, Rows};
use half::bf16;

use super::super::bench::{BF16_ROUNDING, by_rows};
use super::super::{Case, HEAD_DIM, Kernel, Kind, Result, address, compare};
use super::{ROUNDING, round};

/// Tiles after which 8-bit attention takes what is left of the bias of its parts out of the output.
const FLUSH: usize = 16;
/// Keys of a tile.
const TILE: usize = 128;

/// The downloaded operands that the preparing kernels have written, and their places.
struct Prepared {
    bytes: Vec<u8>,
    layout: Attention8bitLayout,
}

impl Prepared {
    fn floats(&self, at: usize, count: usize) -> Vec<f32> {
        self.bytes[at..][..4 * count]
            .chunks_exact(4)
            .map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]]))
            .collect()
    }
    fn codes(&self, at: usize, count: usize) -> Vec<i8> {
        self.bytes[at..][..count].iter().map(|x| i8::from_ne_bytes([*x])).collect()
    }
}

pub fn all(attention: &Attention, card: &Card, quick: bool) -> Result<bool> {
    println!("\nint8 attention      rows   keys heads kind      operands    same bits    error    limit");
    let mut good = true;
    for (rows, keys, heads, gap) in [
        (1, 1, 1, 0),
        (1, 1000, 2, 0),
        (127, 127, 1, 0),
        (128, 128, 2, 0),
        (129, 129, 3, 8),
        (130, 257, 2, 0),
        (64, 640, 2, 128),
        (3, 130, 40, 0),
        (300, 1000, 3, 24),
        (200, 5000, 2, 0),
        (64, 32_760, 1, 0),
    ] {
        if quick && rows * keys * heads > 300_000 {
            continue;
        }
        for kind in [Kind::Noise, Kind::Outliers, Kind::Flat] {
            good &= one_attention(attention, card, [rows, keys, heads, gap], kind)?;
        }
    }
    Ok(good)
}

/// Checks the operands to the bit, and the result against the attention over these operands with P rounded as in the
/// kernel.
fn one_attention(
    attention: &Attention,
    card: &Card,
    [rows, keys, heads, gap]: [usize; 4],
    kind: Kind,
) -> Result<bool> {
    let case = Case::new(rows, keys, heads, gap, kind, (rows * 37 + keys * 5 + heads) as u64);
    let given = case.run(card, attention, Kernel::EightBit { int8: true })?;
    let stream = card.default_stream();
    let inputs = [stream.clone_htod(&case.q)?, stream.clone_htod(&case.k)?, stream.clone_htod(&case.v)?];
    let of = |x: &CudaSlice<u16>, rows| Rows { address: address(x, &stream), rows, stride: case.stride };
    let [q, k, v] = [of(&inputs[0], rows), of(&inputs[1], keys), of(&inputs[2], keys)];
    let layout = Attention8bitLayout::new(rows, keys, heads);
    let memory = stream.clone_htod(&vec![0xffu8; layout.bytes()])?;
    // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
    unsafe { attention.quantize_8bit(&stream, q, k, v, &layout.at(address(&memory, &stream))?)? };
    let prepared = Prepared { bytes: stream.clone_dtoh(&memory)?, layout };

    let operands = compare_operands(&case, &prepared);
    let wanted = simulate(&case, &prepared);
    let equal =
        given.iter().zip(&wanted).filter(|(g, w)| **g == bf16::from_f32(**w as f32).to_bits()).count();
    let share = equal as f64 / given.len() as f64;
    let (error, _) = compare(&given, &wanted);
    // Sums in f32 are off by some 1e-6, and of numbers that far from the middle of two of bf16, 2^-8 apart, one in thousands
    // is rounded otherwise. So is one P in ten thousand, by 1/255, since a GPU's exponential is 2 units off. An output is
    // the sum of as many terms as there are keys and as large as their root, so that such a P carries it over the middle
    // of two numbers of bf16 with a probability of about 1 / sqrt(keys): a ten-thousandth of sqrt(keys) of all outputs, and
    // ten times that where few keys have most of the weight.
    let otherwise = 0.01 + 1e-3 * (keys as f64).sqrt();
    let right = operands.is_none() && share >= 1.0 - otherwise && error <= BF16_ROUNDING;
    println!(
        "{:15}{rows:9}{keys:7}{heads:6} {:9} {:10}{share:12.5} {error:8.1e} {BF16_ROUNDING:8.1e}{}",
        "",
        format!("{kind:?}"),
        operands.unwrap_or("equal"),
        if right { "" } else { "  WRONG" }
    );
    Ok(right)
}

/// Computes the Hadamard transform of `attention_rows.cuh`, in the same order.
fn transform(x: &mut [f32]) {
    for bit in [0, 1, 2, 5, 6, 3, 4] {
        let step = 1 << bit;
        for i in (0..HEAD_DIM).filter(|i| i & step == 0) {
            (x[i], x[i + step]) = (x[i] + x[i + step], x[i] - x[i + step]);
        }
    }
}

/// Returns the name of the first operand that differs from its definition.
fn compare_operands(case: &Case, prepared: &Prepared) -> Option<&'static str> {
    let (places, width) = (prepared.layout.places(), case.heads * HEAD_DIM);
    let tiles = case.keys.div_ceil(TILE);
    let (mean_k, mean_v) =
        (prepared.floats(places.key_mean, width), prepared.floats(places.value_mean, width));
    let scale_v = prepared.floats(places.value_scale, width);
    let (query, scale_q) = (
        prepared.codes(places.query, case.rows * width),
        prepared.floats(places.query_scale, case.heads * case.rows),
    );
    let (key, scale_k) = (
        prepared.codes(places.key, tiles * TILE * width),
        prepared.floats(places.key_scale, case.heads * tiles),
    );
    let value = prepared.codes(places.value, tiles * TILE * width);
    let wide = |x: &[u16], row: usize, column: usize| bf16::from_bits(x[row * case.stride + column]).to_f32();

    // The kernel sums up means in another order.
    for column in 0..width {
        let mean =
            |x: &[u16]| (0..case.keys).map(|r| f64::from(wide(x, r, column))).sum::<f64>() / case.keys as f64;
        if (mean(&case.k) - f64::from(mean_k[column])).abs() > 1e-5 {
            return Some("key mean");
        }
        if (mean(&case.v) - f64::from(mean_v[column])).abs() > 1e-5 {
            return Some("value mean");
        }
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for r in 0..case.keys {
            least = least.min(wide(&case.v, r, column));
            most = most.max(wide(&case.v, r, column));
        }
        let scale = (most - mean_v[column]).max(mean_v[column] - least).max(1e-20) / 127.0;
        if scale.to_bits() != scale_v[column].to_bits() {
            return Some("value scale");
        }
    }
    let rounded = |x: f32, factor: f32| (x * factor).round_ties_even() as i8;
    let greatest = |x: &[f32]| x.iter().fold(1e-20f32, |top, x| top.max(x.abs()));
    let logit = std::f32::consts::LOG2_E * 0.088_388_35_f32 / 128.0;
    for head in 0..case.heads {
        let columns = head * HEAD_DIM..(head + 1) * HEAD_DIM;
        for row in 0..case.rows {
            let mut x: Vec<f32> = columns.clone().map(|c| wide(&case.q, row, c)).collect();
            transform(&mut x);
            let top = greatest(&x);
            if scale_q[head * case.rows + row].to_bits() != (top * (logit / 127.0)).to_bits() {
                return Some("query scale");
            }
            if !x
                .iter()
                .zip(&query[row * width..][columns.clone()])
                .all(|(x, q)| rounded(*x, 127.0 / top) == *q)
            {
                return Some("query");
            }
        }
        for tile in 0..tiles {
            let keys = tile * TILE..case.keys.min((tile + 1) * TILE);
            let rows: Vec<Vec<f32>> = keys
                .clone()
                .map(|row| {
                    let mut x: Vec<f32> =
                        columns.clone().map(|c| wide(&case.k, row, c) - mean_k[c]).collect();
                    transform(&mut x);
                    x
                })
                .collect();
            let top = rows.iter().fold(0.0f32, |top, x| top.max(greatest(x)));
            if scale_k[head * tiles + tile].to_bits() != (top / 127.0).to_bits() {
                return Some("key scale");
            }
            let image = &key[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
            for (row, given) in image.chunks_exact(HEAD_DIM).enumerate() {
                let wanted = |channel: usize| rows.get(row).map_or(0, |x| rounded(x[channel], 127.0 / top));
                if !given.iter().enumerate().all(|(channel, given)| wanted(channel) == *given) {
                    return Some("key");
                }
            }
            let image = &value[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
            for (channel, places) in image.chunks_exact(TILE).enumerate() {
                let column = head * HEAD_DIM + channel;
                for (place, given) in places.iter().enumerate() {
                    let row = tile * TILE + key_at(place);
                    let wanted = if row < case.keys {
                        round(wide(&case.v, row, column) - mean_v[column], sign(tile) / scale_v[column])
                    } else {
                        0
                    };
                    if *given != wanted {
                        return Some("value");
                    }
                }
            }
        }
    }
    None
}

/// Returns the sign of a tile of V's image, and of its weight in the output.
fn sign(tile: usize) -> f32 {
    if tile.is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// Returns the key at a place of V's image: within 16, place 4c + 2b + a holds key 8b + 2c + a.
fn key_at(place: usize) -> usize {
    let (a, b, c) = (place % 2, place / 2 % 2, place / 4 % 4);
    place / 16 * 16 + 8 * b + 2 * c + a
}

/// Returns a * b + c, rounded towards minus infinity.
fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    let exact = f64::from(a).mul_add(f64::from(b), f64::from(c));
    let near = exact as f32;
    if f64::from(near) > exact { near.next_down() } else { near }
}

/// Returns the attention over the operands that were prepared, with P in whole numbers below 255 at the greatest of 128
/// keys, with the kernel's roundings.
fn simulate(case: &Case, prepared: &Prepared) -> Vec<f64> {
    let (places, width) = (prepared.layout.places(), case.heads * HEAD_DIM);
    let tiles = case.keys.div_ceil(TILE);
    let query = prepared.codes(places.query, case.rows * width);
    let key = prepared.codes(places.key, tiles * TILE * width);
    let value = prepared.codes(places.value, tiles * TILE * width);
    let scale_q = prepared.floats(places.query_scale, case.heads * case.rows);
    let scale_k = prepared.floats(places.key_scale, case.heads * tiles);
    let (mean_v, scale_v) =
        (prepared.floats(places.value_mean, width), prepared.floats(places.value_scale, width));
    by_rows(case.rows, width, |row, out| {
        for head in 0..case.heads {
            let q = &query[row * width + head * HEAD_DIM..][..HEAD_DIM];
            // The greatest exponent so far and, relative to it, the sums of P, of P V with the bias of the parts, and how often
            // that bias is in them.
            let (mut maximum, mut whole, mut surplus) = (f32::NEG_INFINITY, 0.0f32, 0.0f32);
            let mut o = [0.0f32; HEAD_DIM];
            for tile in 0..tiles {
                let scale = (scale_q[head * case.rows + row] * scale_k[head * tiles + tile]).max(1e-30);
                let count = TILE.min(case.keys - tile * TILE);
                let scores: Vec<i32> = (0..count)
                    .map(|j| {
                        let k = &key[((head * tiles + tile) * TILE + j) * HEAD_DIM..][..HEAD_DIM];
                        q.iter().zip(k).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
                    })
                    .collect();
                let top = scores.iter().copied().max().unwrap_or(0);
                let shift = fma_down(-(top as f32 + ROUNDING), scale, 7.994_353_4);
                let p: Vec<i32> = scores
                    .iter()
                    .map(|s| (*s as f32 + ROUNDING).mul_add(scale, shift))
                    .map(|x| f64::from(x).exp2().round_ties_even() as i32)
                    .collect();
                let image = &value[(head * tiles + tile) * TILE * HEAD_DIM..][..TILE * HEAD_DIM];
                let sums: Vec<i32> = image
                    .chunks_exact(TILE)
                    .map(|places| {
                        let keys = places.iter().enumerate().map(|(place, v)| (key_at(place), i32::from(*v)));
                        keys.filter(|(key, _)| *key < count).map(|(key, v)| p[key] * v).sum()
                    })
                    .collect();
                // From here on the sums are those of the kernel, in f32 and in its order.
                let exponent = top as f32 * scale;
                let next = maximum.max(exponent);
                let rescale = (maximum - next).exp2();
                maximum = next;
                let weight = (exponent - maximum).exp2();
                whole = (p.iter().sum::<i32>() as f32).mul_add(weight, whole * rescale);
                surplus = surplus * rescale + sign(tile) * weight;
                for (o, sum) in o.iter_mut().zip(&sums) {
                    *o = (*sum as f32 + ROUNDING).mul_add(sign(tile) * weight, *o * rescale);
                }
                if tile % FLUSH == FLUSH - 1 || tile == tiles - 1 {
                    for o in &mut o {
                        *o = surplus.mul_add(-ROUNDING, *o);
                    }
                    surplus = 0.0;
                }
            }
            for (channel, o) in o.iter().enumerate() {
                let column = head * HEAD_DIM + channel;
                out[column] = f64::from(o / whole) * f64::from(scale_v[column]) + f64::from(mean_v[column]);
            }
        }
    })
}
