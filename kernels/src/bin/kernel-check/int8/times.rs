//! Times of the row kernels and the products on the model's shapes.

use animd_kernels::cuda::cudarc::driver::CudaSlice;
use animd_kernels::cuda::{
    Activation, Affine, Card, Epilogue, Gate, Gemm, Int8Rows, Norms, Operands, Rows, Typed,
};
use half::bf16;

use super::super::{Result, address, median_of, normal};
use super::{BF16, F32};

/// Prints the times of the row kernels and the products on the model's shapes.
pub fn time(card: &Card) -> Result<()> {
    let (norms, gemm) = (Norms::load(card)?, Gemm::load(card)?);
    let stream = card.default_stream();
    let rows = 32_760;
    let some: Vec<u16> = normal(1 << 22, 1).iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
    let wide: Vec<u16> = some.iter().copied().cycle().take(rows * 13_824).collect();
    let x = stream.clone_htod(&wide)?;
    let f32_rows: CudaSlice<f32> =
        stream.clone_htod(&normal(1 << 22, 2).into_iter().cycle().take(rows * 5120).collect::<Vec<_>>())?;
    let y: CudaSlice<u8> = stream.alloc_zeros(rows * 13_824)?;
    let vectors = stream.clone_htod(&vec![1e-3f32; 1 << 16])?;
    let scales: CudaSlice<f32> = stream.alloc_zeros(rows)?;
    let (x, f32_rows, y) = (address(&x, &stream), address(&f32_rows, &stream), address(&y, &stream));
    let (vectors, scales) = (address(&vectors, &stream), address(&scales, &stream));
    let matrix = |address, stride| Rows { address, rows, stride };
    println!("\nint8 rows of 480P                          ms     TB/s");
    let report = |name: &str, bytes: usize, ms: f32| {
        println!("{name:36}{ms:9.3}{:9.2}", bytes as f64 / f64::from(ms) / 1e9);
    };
    let affine = Affine { factor: vectors, summand: vectors, modulated: true };
    let to = |columns| Int8Rows { rows: matrix(y, columns), scale: scales, group: 256 };
    for (name, from, bytes) in [
        ("layer norm bf16 to int8", Typed::bf16(matrix(x, 5120)), 3),
        ("layer norm f32 to int8", Typed::f32(matrix(f32_rows, 5120)), 5),
    ] {
        // SAFETY: the buffers have these sizes and outlive the waits in `median_of`; so for all below.
        let ms = median_of(&stream, (y, rows * 5120), || unsafe {
            norms.layer_norm_int8(&stream, from, &affine, 1e-6, to(5120), 5120)
        })?;
        report(name, bytes * rows * 5120, ms);
    }
    for (columns, activation) in
        [(5120, Activation::None), (13_824, Activation::None), (13_824, Activation::GeluTanh)]
    {
        // SAFETY: as above.
        let ms = median_of(&stream, (y, rows * columns), || unsafe {
            let from = Typed::bf16(matrix(x, columns));
            norms.quantize_int8(&stream, from, activation, to(columns), columns)
        })?;
        report(&format!("quantisation of {columns} columns, {activation:?}"), 3 * rows * columns, ms);
    }
    println!("\nint8 products                rows columns   inner       ms     TOPS");
    let output: CudaSlice<u16> = stream.alloc_zeros(rows * 15_360)?;
    let weights: Vec<u8> = some.iter().map(|x| *x as u8).cycle().take(15_360 * 5120).collect();
    let (a, b) = (
        stream.clone_htod(&some.iter().map(|x| *x as u8).cycle().take(rows * 13_824).collect::<Vec<_>>())?,
        stream.clone_htod(&weights)?,
    );
    let (a, b, output) = (address(&a, &stream), address(&b, &stream), address(&output, &stream));
    for (columns, inner) in [(5120, 5120), (15_360, 5120), (13_824, 5120), (5120, 13_824)] {
        let operands = Operands::Int8 {
            a: matrix(a, inner),
            a_scale: vectors,
            b: Rows { address: b, rows: columns, stride: inner },
            b_scale: vectors,
        };
        let plain = Epilogue { bias: Some(vectors), ..Epilogue::default() };
        let gelu = Epilogue { activation: Activation::GeluTanh, ..plain };
        let gated =
            Epilogue { gate: Some(Gate::Columns(vectors)), residual: Some(matrix(f32_rows, 5120)), ..plain };
        for (name, epilogue, element) in
            [("int8", &plain, BF16), ("int8, gelu", &gelu, BF16), ("int8, gate, f32 residual", &gated, F32)]
        {
            if element == F32 && columns != 5120 {
                continue;
            }
            let to = matrix(output, columns);
            let written = (output, rows * columns * element.bytes());
            // SAFETY: as above; the output has room for f32 rows of 5120.
            let ms = median_of(&stream, written, || unsafe {
                gemm.run(&stream, &operands, inner, epilogue, to, element)
            })?;
            let operations = 2.0 * rows as f64 * columns as f64 * inner as f64;
            println!("{name:25}{rows:8}{columns:8}{inner:8}{ms:9.3}{:9.0}", operations / f64::from(ms) / 1e9);
        }
    }
    Ok(())
}
