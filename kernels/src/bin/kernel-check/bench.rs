//! Inputs and outputs on the GPU with their values in f64 beside them, and the comparison of both.

use std::sync::{Arc, LazyLock};
use std::thread;

use animd_kernels::cuda::cudarc::driver::sys::CUdeviceptr;
use animd_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream};
use animd_kernels::cuda::{Element, Rows, Typed};
use half::bf16;

use super::{Result, address, normal};

/// The relative L2 error that rounding to bf16 can cause: 2^-8 at most for one number, 1.7e-3 over many, and somewhat
/// more over a few.
pub const BF16_ROUNDING: f64 = 2.5e-3;

/// A matrix on the GPU with NaN between its rows and after the last one, and its values after rounding.
pub struct Input {
    pub values: Vec<f64>,
    memory: CudaSlice<u8>,
    rows: usize,
    stride: usize,
    element: Element,
}

impl Input {
    pub fn new(
        stream: &Arc<CudaStream>,
        values: &[f32],
        columns: usize,
        gap: usize,
        element: Element,
    ) -> Result<Self> {
        let rows = values.len() / columns;
        let (stride, size) = (columns + gap, element.bytes());
        let mut bytes = vec![0xff; rows * stride * size];
        for (row, values) in bytes.chunks_exact_mut(stride * size).zip(values.chunks_exact(columns)) {
            for (to, value) in row.chunks_exact_mut(size).zip(values) {
                match element {
                    Element::Bf16 => to.copy_from_slice(&bf16::from_f32(*value).to_bits().to_ne_bytes()),
                    Element::F32 => to.copy_from_slice(&value.to_ne_bytes()),
                    Element::E4m3 => to[0] = encode(f64::from(*value)),
                    Element::Int8 => to[0] = (*value as i8).to_ne_bytes()[0],
                }
            }
        }
        let values = decode(&bytes, columns, stride, element);
        Ok(Self { values, memory: stream.clone_htod(&bytes)?, rows, stride, element })
    }

    /// Returns a matrix of normal random numbers.
    pub fn random(
        stream: &Arc<CudaStream>,
        [rows, columns, gap]: [usize; 3],
        element: Element,
        seed: u64,
    ) -> Result<Self> {
        Self::new(stream, &normal(rows * columns, seed), columns, gap, element)
    }

    pub fn at(&self, stream: &CudaStream) -> CUdeviceptr {
        address(&self.memory, stream)
    }

    pub fn rows(&self, stream: &CudaStream) -> Rows {
        Rows { address: self.at(stream), rows: self.rows, stride: self.stride }
    }

    pub fn typed(&self, stream: &CudaStream) -> Typed {
        Typed { rows: self.rows(stream), element: self.element, scale: 0 }
    }

    /// Returns the values on the GPU now, after a kernel that works in place.
    pub fn download(&self, stream: &Arc<CudaStream>, columns: usize) -> Result<Vec<f64>> {
        Ok(decode(&stream.clone_dtoh(&self.memory)?, columns, self.stride, self.element))
    }
}

/// A matrix on the GPU to be written, poisoned with NaN, and a poisoned row behind it.
pub struct Output {
    memory: CudaSlice<u8>,
    /// The scales of the rows of an 8-bit matrix.
    scale: CudaSlice<f32>,
    rows: usize,
    columns: usize,
    stride: usize,
    element: Element,
}

impl Output {
    pub fn new(stream: &Arc<CudaStream>, [rows, columns, gap]: [usize; 3], element: Element) -> Result<Self> {
        let stride = columns + gap;
        let memory = stream.clone_htod(&vec![0xffu8; (rows + 1) * stride * element.bytes()])?;
        let scale = stream.clone_htod(&vec![f32::NAN; rows + 1])?;
        Ok(Self { memory, scale, rows, columns, stride, element })
    }

    pub fn rows(&self, stream: &CudaStream) -> Rows {
        Rows { address: address(&self.memory, stream), rows: self.rows, stride: self.stride }
    }

    pub fn typed(&self, stream: &CudaStream) -> Typed {
        let scale = if self.element.bytes() == 1 { address(&self.scale, stream) } else { 0 };
        Typed { rows: self.rows(stream), element: self.element, scale }
    }

    /// Returns the values that were written, multiplied by their scales if they have 8 bits.
    pub fn read(&self, stream: &Arc<CudaStream>) -> Result<Vec<f64>> {
        let bytes = stream.clone_dtoh(&self.memory)?;
        let size = self.element.bytes();
        let (all, guard) = bytes.split_at(self.rows * self.stride * size);
        let between = all.chunks_exact(self.stride * size).flat_map(|row| &row[self.columns * size..]);
        if between.chain(guard).any(|byte| *byte != 0xff) {
            return Err("a kernel wrote outside its output".into());
        }
        let mut values = decode(all, self.columns, self.stride, self.element);
        if self.element.bytes() == 1 {
            let scales = self.scales(stream)?;
            for (row, scale) in values.chunks_exact_mut(self.columns).zip(&scales) {
                for x in row {
                    *x *= f64::from(*scale);
                }
            }
        }
        Ok(values)
    }

    /// Returns the scales that were written.
    pub fn scales(&self, stream: &Arc<CudaStream>) -> Result<Vec<f32>> {
        let mut scales = stream.clone_dtoh(&self.scale)?;
        if scales.pop().is_none_or(|guard| !guard.is_nan()) {
            return Err("a kernel wrote a scale too many".into());
        }
        Ok(scales)
    }
}

fn decode(bytes: &[u8], columns: usize, stride: usize, element: Element) -> Vec<f64> {
    let size = element.bytes();
    let one = |x: &[u8]| match element {
        Element::Bf16 => bf16::from_bits(u16::from_ne_bytes([x[0], x[1]])).to_f64(),
        Element::F32 => f64::from(f32::from_ne_bytes([x[0], x[1], x[2], x[3]])),
        Element::E4m3 => decode_e4m3(x[0]),
        Element::Int8 => f64::from(i8::from_ne_bytes([x[0]])),
    };
    let rows = bytes.chunks_exact(stride * size);
    rows.flat_map(|row| row[..columns * size].chunks_exact(size).map(one)).collect()
}

fn decode_e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => fraction / 512.0,
        _ => (8.0 + fraction) * f64::from(exponent - 10).exp2(),
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// Returns the nearest e4m3 code; inputs need no rule for ties.
fn encode(x: f64) -> u8 {
    static MAGNITUDES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..127).map(decode_e4m3).collect());
    let above = MAGNITUDES.partition_point(|m| *m < x.abs()).clamp(1, 126);
    let nearer_below = x.abs() - MAGNITUDES[above - 1] < MAGNITUDES[above] - x.abs();
    let code = (above - usize::from(nearer_below)) as u8;
    if x < 0.0 { code | 128 } else { code }
}

/// Computes the rows of a result in parallel, each by `f(row, out)`.
pub fn by_rows(rows: usize, columns: usize, f: impl Fn(usize, &mut [f64]) + Sync) -> Vec<f64> {
    let mut out = vec![0.0; rows * columns];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let block = rows.div_ceil(threads);
    thread::scope(|scope| {
        for (i, chunk) in out.chunks_mut(block * columns).enumerate() {
            let f = &f;
            scope.spawn(move || {
                for (r, out) in chunk.chunks_exact_mut(columns).enumerate() {
                    f(i * block + r, out);
                }
            });
        }
    });
    out
}

/// Prints the relative L2 error of `given` and the error of its worst element over the root mean square, and returns
/// whether they are within `limit` and 64 times `limit`.
pub fn verdict(name: &str, given: &[f64], again: &[f64], wanted: &[f64], limit: f64) -> bool {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let whole = squares(&mut wanted.iter().copied()).max(f64::MIN_POSITIVE);
    let differences = || given.iter().zip(wanted).map(|(g, w)| g - w);
    let error = (squares(&mut differences()) / whole).sqrt();
    let worst = differences().fold(0.0, |m: f64, d| if d.is_nan() { d } else { m.max(d.abs()) })
        / (whole / wanted.len() as f64).sqrt();
    // The negation also catches NaN.
    let right = error <= limit && worst <= 64.0 * limit && given.len() == wanted.len();
    let same = given.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits());
    let mark = match (right, same) {
        (false, _) => "  WRONG",
        (true, false) => "  NOT REPEATABLE",
        (true, true) => "",
    };
    println!("{name:60} {error:8.1e} {worst:8.1e} {limit:8.1e}{mark}");
    right && same
}
