//! Rows: rotated and quantised, as they are, after a norm or after an activation.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaStream;
use animd_kernels::cuda::{Activation, Affine, Element, Int8Rows, Norms, rotation_group};

use super::super::Result;
use super::super::bench::{Input, Output, by_rows, verdict};
use super::super::gemm::activate;
use super::super::normal;
use super::super::norms::limit;
use super::{F32, INT8, round};

/// Rotates a row as `rows.cuh` does, with the same roundings and without normalising it.
fn rotate(x: &mut [f32], group: usize) {
    let mut step = 1;
    while step < group {
        for base in (0..x.len()).filter(|i| i / step % 4 == 0) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|digit| x[base + digit * step]);
            let (outer, inner) = (a + d, b + c);
            for (digit, y) in
                [(a - d) + inner, (b - c) + outer, (c - b) + outer, (d - a) + inner].into_iter().enumerate()
            {
                x[base + digit * step] = y;
            }
        }
        step *= 4;
    }
}

/// Returns whether [`rotate`] is the Kronecker power of h4 that files of rotated weights use: h4 is -1 where row and
/// column add up to 3.
pub fn rotation_is_that_of_files() -> bool {
    [4, 16, 64, 256].into_iter().all(|group| {
        (0..group).all(|column| {
            let mut x = vec![0.0; group];
            x[column] = 1.0;
            rotate(&mut x, group);
            let negative = |row: usize, digit: usize| {
                1 << (2 * digit) < group && (row >> (2 * digit) & 3) + (column >> (2 * digit) & 3) == 3
            };
            x.iter().enumerate().all(|(row, x)| {
                let signs = (0..4).filter(|digit| negative(row, *digit)).count();
                *x == if signs % 2 == 1 { -1.0 } else { 1.0 }
            })
        })
    })
}

/// Returns the bytes and the scale of a row, as `rows.cuh` computes them.
fn quantized(x: &[f32], group: usize) -> (Vec<i8>, f32) {
    let mut x = x.to_vec();
    rotate(&mut x, group);
    let top = x.iter().fold(1e-10f32, |top, x| top.max(x.abs()));
    let bytes = x.iter().map(|x| round(*x, 127.0 / top)).collect();
    (bytes, top / 127.0 * (1.0 / (group as f32).sqrt()))
}

/// Returns noise in which some columns are much greater than the others, a row of zeros, and one of tiny numbers.
fn rows_of(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut values = normal(rows * columns, seed);
    for (i, x) in values.iter_mut().enumerate() {
        let (row, column) = (i / columns, i % columns);
        *x *= if column % 61 == 7 { 20.0 } else { 1.0 };
        *x *= if row == 2 { 1e-13 } else { 1.0 };
        if row == 1 {
            *x = 0.0;
        }
    }
    values
}

pub fn quantize(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
    group: usize,
) -> Result<bool> {
    let x = Input::new(stream, &rows_of(rows, columns, 100), columns, gap, from)?;
    let run = || -> Result<(Vec<f64>, Vec<f32>)> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { norms.quantize_int8(stream, x.typed(stream), Activation::None, y, columns)? };
        Ok((to.read(stream)?, to.scales(stream)?))
    };
    let ((given, scales), (again, _)) = (run()?, run()?);
    let wanted: Vec<(Vec<i8>, f32)> = x
        .values
        .chunks_exact(columns)
        .map(|row| quantized(&row.iter().map(|x| *x as f32).collect::<Vec<_>>(), group))
        .collect();
    let same_scales =
        scales.iter().zip(&wanted).all(|(given, (_, wanted))| given.to_bits() == wanted.to_bits());
    let values: Vec<f64> = wanted
        .iter()
        .flat_map(|(bytes, scale)| bytes.iter().map(|x| f64::from(*x) * f64::from(*scale)))
        .collect();
    let name = format!("quantisation {rows}x{columns} {from:?}, rotated by {group}");
    if !same_scales {
        println!("{name}: other scales  WRONG");
    }
    Ok(verdict(&name, &given, &again, &values, 0.0) && same_scales)
}

/// Checks the quantisation of activated rows.
pub fn activated(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
    activation: Activation,
) -> Result<bool> {
    let values: Vec<f32> = normal(rows * columns, 104).iter().map(|x| 2.0 * x).collect();
    let x = Input::new(stream, &values, columns, gap, from)?;
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: the buffers have these sizes and live until the output has been read.
        unsafe { norms.quantize_int8(stream, x.typed(stream), activation, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        rotated(x.iter().map(|x| activate(*x, activation)), group, out);
    });
    let name = format!("quantisation {rows}x{columns} {from:?}, {activation:?}, rotated by {group}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}

pub fn rms_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
) -> Result<bool> {
    let x = Input::random(stream, [rows, columns, gap], from, 105)?;
    let weight = Input::random(stream, [1, columns, 0], F32, 106)?;
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: as above.
        unsafe { norms.rms_norm_int8(stream, x.typed(stream), weight.at(stream), 1e-6, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        let mean = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
        rotated(x.iter().zip(&weight.values).map(|(x, w)| x / (mean + 1e-6).sqrt() * w), group, out);
    });
    let name = format!("RMS norm {rows}x{columns} {from:?} to int8, rotated by {group}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}

/// Sets `out` to a row, rotated by `group` and normalised.
fn rotated(row: impl Iterator<Item = f64>, group: usize, out: &mut [f64]) {
    let mut row: Vec<f32> = row.map(|x| x as f32).collect();
    rotate(&mut row, group);
    let norm = 1.0 / (group as f64).sqrt();
    out.iter_mut().zip(&row).for_each(|(out, x)| *out = f64::from(*x) * norm);
}

pub fn layer_norm(
    norms: &Norms,
    stream: &Arc<CudaStream>,
    [rows, columns, gap]: [usize; 3],
    from: Element,
) -> Result<bool> {
    let values: Vec<f32> = normal(rows * columns, 101).iter().map(|x| 3.0 + x).collect();
    let x = Input::new(stream, &values, columns, gap, from)?;
    let factor = Input::random(stream, [1, columns, 0], F32, 102)?;
    let summand = Input::random(stream, [1, columns, 0], F32, 103)?;
    let modulated = rows % 2 == 1;
    let affine = Affine { factor: factor.at(stream), summand: summand.at(stream), modulated };
    let group = rotation_group(columns);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], INT8)?;
        let y = to.typed(stream);
        let y = Int8Rows { rows: y.rows, scale: y.scale, group };
        // SAFETY: as above.
        unsafe { norms.layer_norm_int8(stream, x.typed(stream), &affine, 1e-6, y, columns)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);
    let one = if modulated { 1.0 } else { 0.0 };
    let wanted = by_rows(rows, columns, |r, out| {
        let x = &x.values[r * columns..][..columns];
        let mean = x.iter().sum::<f64>() / columns as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let row = (0..columns)
            .map(|c| (x[c] - mean) / (variance + 1e-6).sqrt() * (one + factor.values[c]) + summand.values[c]);
        rotated(row, group, out);
    });
    let name =
        format!("layer norm {rows}x{columns} {from:?} to int8, rotated by {group}, modulated: {modulated}");
    Ok(verdict(&name, &given, &again, &wanted, limit(INT8)))
}
