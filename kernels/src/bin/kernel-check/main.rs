//! Checks every kernel against a reference in f64 on this machine's GPU, then times them.
//!
//! `kernel-check [--checks-only] [--times-only] [--quick] [--only GROUP] [--capability X.Y]`; ends with 1 if a check fails, or
//! if a kernel that is timed gives other bits another time.
//! Groups are `attention`, `products`, `rows`, `convolutions`, `other-attentions`, `int8`, `raw-heads`; `--quick` leaves out the largest
//! cases, which take minutes where the GPU is the emulator. `--capability` runs the kernels of another compute capability, as
//! far as this GPU can: the driver compiles the PTX of an older one. Inputs are fresh random numbers of a
//! fixed seed; outputs and workspaces are poisoned with NaN before each run, and a row behind each output must stay
//! poisoned. Times are medians by events, warm, on random data.

mod attentions;
mod bench;
mod conv;
mod gemm;
mod int8;
mod norms;
mod raw;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use animd_kernels::cuda::cudarc::driver::result::{memcpy_dtoh_sync, memset_d8_async};
use animd_kernels::cuda::cudarc::driver::sys::CUevent_flags;
use animd_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr};
use animd_kernels::cuda::{self, Attention, Attention8bitLayout, Card, Rows, open};
use half::bf16;

const HEAD_DIM: usize = 128;

/// How often a kernel of full size is run to see that it gives the same bits.
const REPEATS: usize = 10;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

type Check = fn(&Card, bool) -> Result<bool>;
type Time = fn(&Card) -> Result<()>;

/// The groups of kernels that are checked and timed together.
const GROUPS: [(&str, Check, Time); 7] = [
    ("attention", check, time),
    ("products", gemm::check, gemm::time),
    ("rows", norms::check, norms::time),
    ("convolutions", conv::check, conv::time),
    ("other-attentions", attentions::check, attentions::time),
    ("int8", int8::check, int8::time),
    ("raw-heads", raw::check, raw::time),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let value_of = |flag: &str| arguments.iter().skip_while(|a| *a != flag).nth(1);
    let only = value_of("--only");
    let run = || -> Result<bool> {
        let capability = match value_of("--capability").map(|value| value.split_once('.')) {
            None => None,
            Some(Some((major, minor))) => Some((major.parse()?, minor.parse()?)),
            Some(None) => return Err("a compute capability is like 8.9".into()),
        };
        let card = open(0, capability)?;
        println!("{}", card.name()?);
        let groups: Vec<_> =
            GROUPS.iter().filter(|(name, ..)| only.is_none_or(|only| only == name)).collect();
        if groups.is_empty() {
            return Err("there is no such group of checks".into());
        }
        let mut good = true;
        if !has("--times-only") {
            // A failure does not keep the other groups from running.
            for (_, check, _) in &groups {
                good &= check(&card, has("--quick"))?;
            }
            println!("\n{}", if good { "all right" } else { "FAILED" });
        }
        if good && !has("--checks-only") {
            for (_, _, time) in &groups {
                time(&card)?;
            }
        }
        Ok(good && !DIFFERENT.load(Ordering::Relaxed))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("kernel-check: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What the elements of Q, K and V are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Independent normal numbers.
    Noise,
    /// K as models have it: channels 5, 37, 69 and 101 of each head five times as large, and to all keys the same vector
    /// of normal numbers times 4 added.
    Outliers,
    /// All rows of K equal, so that nothing of K is left without its mean.
    Flat,
}

#[derive(Clone, Copy)]
enum Kernel {
    Bf16,
    EightBit { int8: bool },
}

impl Kernel {
    /// Returns the greatest relative L2 error allowed.
    ///
    /// bf16: P and the output are each rounded once, by 1.7e-3 of their value in the root mean square.
    ///
    /// 8-bit, in rms: e4m3 rounds P and V by 0.026 of their value each, less where they fall below its smallest normal
    /// number; int8 moves a score of white noise by 0.011 (0.0059 of Q's rows, whose greatest of 128 is 2.6 deviations,
    /// and 0.0093 of K's tiles, 4.1 deviations). Together 0.039; 0.045 is a cosine of 0.9990.
    ///
    /// All in int8: 0.012 of P, whose units are 1/255 of the greatest of 128 keys, and 0.010 of V, whose greatest of a channel
    /// is 4.5 deviations, beside 0.011 of scores: 0.019. Scores of outliers are greater, and so is what moves them.
    fn tolerance(self, kind: Kind) -> f64 {
        match self {
            Self::Bf16 => 2.0 / 512.0,
            Self::EightBit { int8: true } if kind != Kind::Outliers => 0.023,
            Self::EightBit { .. } => 0.045,
        }
    }
}

fn check(card: &Card, quick: bool) -> Result<bool> {
    let attention = Attention::load(card)?;
    // Rows, keys, heads, elements between rows beyond the heads.
    let shapes = [
        (1, 1, 1, 0),
        (1, 1000, 2, 0),
        (127, 95, 1, 0),
        (128, 96, 2, 0),
        (129, 97, 3, 8),
        (191, 128, 2, 0),
        (193, 129, 2, 128),
        (64, 257, 2, 0),
        (100, 512, 2, 0),
        (1000, 1000, 3, 24),
        (200, 96 * 16, 2, 0),
        (200, 96 * 17 + 1, 2, 0),
        (300, 5000, 2, 0),
        (64, 32_760, 1, 0),
        (64, 75_600, 1, 0),
    ];
    let mut good = true;
    println!("\nkernel       rows   keys heads kind        error   cosine  limit");
    for kind in [Kind::Noise, Kind::Outliers, Kind::Flat] {
        for (rows, keys, heads, gap) in shapes {
            if (kind != Kind::Noise && !matches!(keys, 97 | 1000 | 32_760))
                || (quick && rows * keys * heads > 700_000)
            {
                continue;
            }
            let seed = (rows * 31 + keys * 7 + heads) as u64;
            let case = Case::new(rows, keys, heads, gap, kind, seed);
            let reference = case.reference();
            for kernel in [Kernel::Bf16, Kernel::EightBit { int8: attention.is_int8() }] {
                let name = if matches!(kernel, Kernel::Bf16) { "bf16" } else { "8-bit" };
                let first = case.run(card, &attention, kernel)?;
                let again = case.run(card, &attention, kernel)?;
                let (error, cosine) = compare(&first, &reference);
                let mut verdict = String::new();
                if error.is_nan() || error > kernel.tolerance(kind) {
                    verdict.push_str("  WRONG");
                }
                if first != again {
                    verdict.push_str("  NOT REPEATABLE");
                }
                if kind == Kind::Outliers && cosine < 0.999 {
                    verdict.push_str("  COSINE");
                }
                good &= verdict.is_empty();
                let limit = kernel.tolerance(kind);
                println!(
                    "{name:9} {rows:7}{keys:7}{heads:6} {:9} {error:8.1e} {cosine:8.6} {limit:6.4}{verdict}",
                    format!("{kind:?}")
                );
            }
        }
    }
    Ok(good)
}

/// Inputs of one run, rows `stride` elements apart.
struct Case {
    rows: usize,
    keys: usize,
    heads: usize,
    stride: usize,
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
}

impl Case {
    fn new(rows: usize, keys: usize, heads: usize, gap: usize, kind: Kind, seed: u64) -> Self {
        let stride = heads * HEAD_DIM + gap;
        let mut q = normal(rows * stride, seed);
        let mut k = normal(keys * stride, seed + 1);
        let mut v = normal(keys * stride, seed + 2);
        let common = normal(stride, seed + 3);
        match kind {
            Kind::Noise => {}
            Kind::Outliers => {
                for (i, x) in k.iter_mut().enumerate() {
                    let channel = i % stride;
                    if channel % 32 == 5 {
                        *x *= 5.0;
                    }
                    *x += 4.0 * common[channel];
                }
            }
            Kind::Flat => {
                for (i, x) in k.iter_mut().enumerate() {
                    *x = common[i % stride];
                }
            }
        }
        // What lies between rows must not be read.
        for x in [&mut q, &mut k, &mut v] {
            for row in x.chunks_exact_mut(stride) {
                row[heads * HEAD_DIM..].fill(f32::NAN);
            }
        }
        let bits = |x: Vec<f32>| x.into_iter().map(|x| bf16::from_f32(x).to_bits()).collect();
        Self { rows, keys, heads, stride, q: bits(q), k: bits(k), v: bits(v) }
    }

    fn run(&self, card: &Card, attention: &Attention, kernel: Kernel) -> Result<Vec<u16>> {
        let stream = card.default_stream();
        let inputs = [stream.clone_htod(&self.q)?, stream.clone_htod(&self.k)?, stream.clone_htod(&self.v)?];
        let output = stream.clone_htod(&vec![u16::MAX; (self.rows + 1) * self.stride])?;
        let of = |x: &CudaSlice<u16>, rows| Rows { address: address(x, &stream), rows, stride: self.stride };
        let [q, k, v] = [of(&inputs[0], self.rows), of(&inputs[1], self.keys), of(&inputs[2], self.keys)];
        let to = of(&output, self.rows);
        match kernel {
            // SAFETY: the buffers have these sizes and live until the copy below has waited for the stream.
            Kernel::Bf16 => unsafe { attention.bf16(&stream, q, k, v, to, self.heads)? },
            Kernel::EightBit { .. } => {
                let layout = Attention8bitLayout::new(self.rows, self.keys, self.heads);
                let workspace = stream.clone_htod(&vec![0xffu8; layout.bytes()])?;
                // SAFETY: as above; the workspace is dropped after the wait.
                unsafe {
                    attention.eight_bit(&stream, q, k, v, to, &layout.at(address(&workspace, &stream))?)?;
                };
                stream.synchronize()?;
            }
        }
        let mut result = stream.clone_dtoh(&output)?;
        let guard = result.split_off(self.rows * self.stride);
        let between = result
            .chunks_exact(self.stride)
            .all(|r| r[self.heads * HEAD_DIM..].iter().all(|x| *x == u16::MAX));
        if !between || guard.iter().any(|x| *x != u16::MAX) {
            return Err("a kernel wrote outside its output".into());
        }
        Ok(result.chunks_exact(self.stride).flat_map(|r| &r[..self.heads * HEAD_DIM]).copied().collect())
    }

    /// Returns the attention in f64, computed by one thread for each block of rows.
    fn reference(&self) -> Vec<f64> {
        let width = self.heads * HEAD_DIM;
        let wide = |x: &[u16]| -> Vec<f64> { x.iter().map(|x| bf16::from_bits(*x).to_f64()).collect() };
        let (q, k, v) = (wide(&self.q), wide(&self.k), wide(&self.v));
        let mut output = vec![0.0; self.rows * width];
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let block = self.rows.div_ceil(threads);
        thread::scope(|scope| {
            for (i, chunk) in output.chunks_mut(block * width).enumerate() {
                let (q, k, v) = (&q, &k, &v);
                scope.spawn(move || {
                    for (r, out) in chunk.chunks_exact_mut(width).enumerate() {
                        for h in 0..self.heads {
                            let at = |row: usize| row * self.stride + h * HEAD_DIM;
                            let query = &q[at(i * block + r)..][..HEAD_DIM];
                            let mut p: Vec<f64> = (0..self.keys)
                                .map(|j| {
                                    let key = &k[at(j)..][..HEAD_DIM];
                                    query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
                                        / (HEAD_DIM as f64).sqrt()
                                })
                                .collect();
                            let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                            for x in &mut p {
                                *x = (*x - top).exp();
                            }
                            let sum: f64 = p.iter().sum();
                            let out = &mut out[h * HEAD_DIM..][..HEAD_DIM];
                            for (j, p) in p.iter().enumerate() {
                                let value = &v[at(j)..][..HEAD_DIM];
                                out.iter_mut().zip(value).for_each(|(o, v)| *o += p / sum * v);
                            }
                        }
                    }
                });
            }
        });
        output
    }
}

/// Returns the relative L2 error and the cosine.
fn compare(given: &[u16], wanted: &[f64]) -> (f64, f64) {
    let (mut difference, mut dot, mut given2, mut wanted2) = (0.0, 0.0, 0.0, 0.0);
    for (g, w) in given.iter().zip(wanted) {
        let g = bf16::from_bits(*g).to_f64();
        difference += (g - w) * (g - w);
        dot += g * w;
        given2 += g * g;
        wanted2 += w * w;
    }
    ((difference / wanted2).sqrt(), dot / (given2 * wanted2).sqrt())
}

fn time(card: &Card) -> Result<()> {
    let attention = Attention::load(card)?;
    let stream = card.default_stream();
    let heads = 40;
    println!("\n40 heads of 128             rows   keys       ms  TFLOP/s");
    for rows in [32_760, 75_600] {
        let random = |seed| -> Result<CudaSlice<u16>> {
            let bits: Vec<u16> = normal(rows * heads * HEAD_DIM, seed)
                .into_iter()
                .map(|x| bf16::from_f32(x).to_bits())
                .collect();
            Ok(stream.clone_htod(&bits)?)
        };
        let buffers = [random(1)?, random(2)?, random(3)?, random(4)?];
        let of = |i: usize, rows| Rows::dense(address(&buffers[i], &stream), rows, heads * HEAD_DIM);
        let report = |name: &str, keys: usize, ms: f32| {
            let flop = 4.0 * rows as f64 * keys as f64 * (heads * HEAD_DIM) as f64;
            println!("{name:24}{rows:8}{keys:7}{ms:9.3}{:9.0}", flop / f64::from(ms) / 1e9);
        };
        for keys in [rows, 512, 257] {
            let (q, k, v, o) = (of(0, rows), of(1, keys), of(2, keys), of(3, rows));
            let written = (o.address, rows * heads * HEAD_DIM * 2);
            // SAFETY: the buffers have these sizes and outlive the waits in `median`.
            let ms = median_of(&stream, written, || unsafe { attention.bf16(&stream, q, k, v, o, heads) })?;
            report("bf16", keys, ms);
            if keys != rows {
                continue;
            }
            let layout = Attention8bitLayout::new(rows, keys, heads);
            let memory: CudaSlice<u8> = stream.alloc_zeros(layout.bytes())?;
            let workspace = layout.at(address(&memory, &stream))?;
            // SAFETY: as above, for the workspace, too.
            let all = median_of(&stream, written, || unsafe {
                attention.eight_bit(&stream, q, k, v, o, &workspace)
            })?;
            // SAFETY: as above, and the line before has filled the workspace.
            let product =
                median_of(&stream, written, || unsafe { attention.multiply_8bit(&stream, o, &workspace) })?;
            let prepared = (address(&memory, &stream), layout.bytes());
            // SAFETY: as above.
            let first = median_of(&stream, prepared, || unsafe {
                attention.quantize_8bit(&stream, q, k, v, &workspace)
            })?;
            report("8-bit", keys, all);
            report("  without quantisation", keys, product);
            println!("{:24}{rows:8}{keys:7}{first:9.3}", "  quantisation");
        }
    }
    Ok(())
}

/// Memory that a kernel writes: its address and bytes.
type Written = (u64, usize);

/// Whether a kernel gave other bits another time, at a size where all of the GPU is busy.
static DIFFERENT: AtomicBool = AtomicBool::new(false);

/// Returns [`median`], and says if the same inputs do not give the same bits each time. `written` must not be read by
/// the launch, and is poisoned before each of some more runs.
fn median_of(
    stream: &Arc<CudaStream>,
    written: Written,
    mut launch: impl FnMut() -> std::result::Result<(), cuda::Error>,
) -> Result<f32> {
    let ms = median(stream, &mut launch)?;
    let (address, bytes) = written;
    let (mut first, mut again) = (Vec::new(), vec![0u8; bytes]);
    for run in 0..REPEATS {
        // SAFETY: the caller vouches for the memory, and the stream has passed all that writes to it.
        unsafe { memset_d8_async(address, 0xff, bytes, stream.cu_stream())? };
        launch()?;
        stream.synchronize()?;
        // SAFETY: as above.
        unsafe { memcpy_dtoh_sync(&mut again, address)? };
        if run == 0 {
            first.clone_from(&again);
        } else if first != again {
            DIFFERENT.store(true, Ordering::Relaxed);
            let mut others = (0..bytes).filter(|&i| first[i] != again[i]);
            let (at, count) = (others.next().unwrap_or_default(), 1 + others.count());
            println!("NOT REPEATABLE: run {run} has {count} of {bytes} other bytes, the first at {at}");
        }
    }
    Ok(ms)
}

/// Returns milliseconds: the median of 15 runs. At least 5 runs and a quarter of a second come before them, so that the
/// GPU has come to the clock that its power limit allows for this kernel.
fn median(
    stream: &Arc<CudaStream>,
    mut launch: impl FnMut() -> std::result::Result<(), cuda::Error>,
) -> Result<f32> {
    let mut times = Vec::new();
    let (mut warming, mut spent) = (5, 0.0);
    while times.len() < 15 {
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        launch()?;
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        let ms = start.elapsed_ms(&end)?;
        if warming == 0 && spent >= 250.0 {
            times.push(ms);
        } else {
            warming = warming.max(1) - 1;
            spent += ms;
        }
    }
    times.sort_by(f32::total_cmp);
    Ok(times[times.len() / 2])
}

fn address<T: DeviceRepr>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// Returns normal random numbers (Box and Muller) from a counter, so that all threads and machines draw the same.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = vec![0.0f32; count];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let block = count.div_ceil(threads).next_multiple_of(2);
    thread::scope(|scope| {
        for (i, chunk) in numbers.chunks_mut(block).enumerate() {
            scope.spawn(move || {
                for (j, pair) in chunk.chunks_mut(2).enumerate() {
                    let bits = mix((seed << 40) ^ (i * block / 2 + j) as u64);
                    let unit = |bits: u64| (bits as u32 as f32 + 0.5) / 4_294_967_296.0;
                    let radius = (-2.0 * unit(bits).ln()).sqrt();
                    let (sine, cosine) = (std::f32::consts::TAU * unit(bits >> 32)).sin_cos();
                    pair[0] = radius * cosine;
                    if let Some(second) = pair.get_mut(1) {
                        *second = radius * sine;
                    }
                }
            });
        }
    });
    numbers
}

/// Maps 64 bits to 64 random-looking bits, one to one (the finaliser of `SplitMix64`).
fn mix(counter: u64) -> u64 {
    let mut x = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
