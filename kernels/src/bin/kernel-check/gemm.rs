//! Checks and times of matrix products.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream};
use animd_kernels::cuda::{Activation, Card, Element, Epilogue, Gate, Gemm, Operands, Rows};

use super::bench::{BF16_ROUNDING, Input, Output, by_rows, verdict};
use super::{Result, address, median_of, normal};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bf16,
    E4m3,
    Fast,
}

impl Kind {
    /// Returns the relative L2 error allowed: the error of the sums plus that of rounding the output to bf16.
    ///
    /// Sums of bf16 products are in f32. The tensor cores keep 14 bits of sums of e4m3 products and cut off the rest: 4
    /// times for each 128 products, or 160 for 5,120.
    fn limit(self, output: Element) -> f64 {
        let sums = match self {
            Self::Bf16 => 1e-4,
            Self::E4m3 => 1e-3,
            Self::Fast => 6e-3,
        };
        sums + if output == Element::Bf16 { BF16_ROUNDING } else { 0.0 }
    }

    fn element(self) -> Element {
        if matches!(self, Self::Bf16) { Element::Bf16 } else { Element::E4m3 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Follows {
    Nothing,
    Bias,
    GateAndResidual,
    Residual,
    ElementGate,
    Activation(Activation),
}

/// What a product's epilogue may read.
pub struct Addends {
    /// `[columns]` f32.
    pub bias: Input,
    /// `[columns]` f32, for [`Follows::GateAndResidual`].
    pub gate: Input,
    /// `[rows, columns]` bf16, for [`Follows::ElementGate`].
    pub gates: Input,
    /// `[rows, columns]` in the type of the output.
    pub residual: Input,
}

impl Addends {
    /// Draws all of them for a product `[rows, columns]` with `gap` elements between rows, from `seed` and the three seeds
    /// after it.
    pub fn random(
        stream: &Arc<CudaStream>,
        [rows, columns, gap]: [usize; 3],
        output: Element,
        seed: u64,
    ) -> Result<Self> {
        Ok(Self {
            bias: Input::random(stream, [1, columns, 0], Element::F32, seed)?,
            gate: Input::random(stream, [1, columns, 0], Element::F32, seed + 1)?,
            gates: Input::random(stream, [rows, columns, gap], Element::Bf16, seed + 2)?,
            residual: Input::random(stream, [rows, columns, gap], output, seed + 3)?,
        })
    }
}

impl Follows {
    /// Everything that can follow.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Bias,
        Self::GateAndResidual,
        Self::Residual,
        Self::ElementGate,
        Self::Activation(Activation::Silu),
        Self::Activation(Activation::GeluTanh),
        Self::Activation(Activation::GeluErf),
    ];

    /// Returns the epilogue that this asks for.
    pub fn epilogue(self, stream: &CudaStream, addends: &Addends) -> Epilogue {
        let with_bias = Epilogue { bias: Some(addends.bias.at(stream)), ..Epilogue::default() };
        match self {
            Self::Nothing => Epilogue::default(),
            Self::Bias => with_bias,
            Self::GateAndResidual => Epilogue {
                gate: Some(Gate::Columns(addends.gate.at(stream))),
                residual: Some(addends.residual.rows(stream)),
                ..with_bias
            },
            Self::Residual => {
                Epilogue { residual: Some(addends.residual.rows(stream)), ..Epilogue::default() }
            }
            Self::ElementGate => Epilogue {
                gate: Some(Gate::Elements(addends.gates.rows(stream))),
                activation: Activation::GeluTanh,
                ..Epilogue::default()
            },
            Self::Activation(activation) => Epilogue { activation, ..with_bias },
        }
    }
}

pub fn check(card: &Card, quick: bool) -> Result<bool> {
    let gemm = Gemm::load(card)?;
    let stream = card.default_stream();
    // Rows, columns, inner, elements between rows. The third from the end takes more tiles than a GPU has blocks, and
    // some of its tiles lie outside; the second from the end has more than one band of rows; the last has the model's
    // length of sums.
    let shapes = [
        (1, 8, 16, 0),
        (1, 5120, 256, 0),
        (127, 64, 144, 16),
        (129, 264, 80, 0),
        (257, 520, 1280, 32),
        (5000, 2056, 192, 0),
        (2200, 264, 80, 0),
        (300, 512, 5120, 0),
    ];
    let mut good = true;
    println!("\nmatrix products: rows x columns x inner                          error    worst    limit");
    for kind in [Kind::Bf16, Kind::E4m3, Kind::Fast] {
        if kind.element() == Element::E4m3 && !gemm.has_e4m3() {
            continue;
        }
        for (i, shape) in shapes.into_iter().enumerate() {
            let (rows, columns, inner, _) = shape;
            if quick && rows * columns * inner > 200_000_000 {
                continue;
            }
            for (j, follows) in Follows::ALL.into_iter().enumerate() {
                // Two shapes are checked with all epilogues, the others with one or two. Blocks that compute several tiles
                // are checked with a residual, whose way from the accumulators is the longest.
                let residual = matches!(follows, Follows::GateAndResidual | Follows::Residual);
                let several = i == 5 || i == 6;
                if i == 3 || (i == 4 && !quick) || j % shapes.len() == i || (several && residual) {
                    for output in [Element::Bf16, Element::F32] {
                        good &= one(&gemm, &stream, kind, shape, follows, output)?;
                    }
                }
            }
        }
    }
    Ok(good)
}

fn one(
    gemm: &Gemm,
    stream: &Arc<CudaStream>,
    kind: Kind,
    (rows, columns, inner, gap): (usize, usize, usize, usize),
    follows: Follows,
    output: Element,
) -> Result<bool> {
    let seed = (rows * 31 + columns * 7 + inner) as u64;
    let element = kind.element();
    let a = Input::random(stream, [rows, inner, gap], element, seed)?;
    let b = Input::random(stream, [columns, inner, gap], element, seed + 1)?;
    // Sums are about 1, where activations bend.
    let scales = |count, seed| normal(count, seed).into_iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>();
    let one_of = if element == Element::E4m3 { 1.0 } else { 0.0 };
    let a_scale = Input::new(stream, &scales(rows, seed + 2), rows, 0, Element::F32)?;
    let factor = 1.0 / (inner as f32).sqrt();
    let b_scales: Vec<f32> = scales(columns, seed + 3).into_iter().map(|x| x * factor).collect();
    let b_scale = Input::new(stream, &b_scales, columns, 0, Element::F32)?;
    let addends = Addends::random(stream, [rows, columns, gap], output, seed + 4)?;
    let Addends { bias, gate, gates, residual } = &addends;

    let (a_rows, b_rows) = (a.rows(stream), b.rows(stream));
    let operands = match kind {
        Kind::Bf16 => Operands::Bf16 { a: a_rows, b: b_rows },
        Kind::E4m3 | Kind::Fast => Operands::E4m3 {
            a: a_rows,
            a_scale: a_scale.at(stream),
            b: b_rows,
            b_scale: b_scale.at(stream),
            fast: matches!(kind, Kind::Fast),
        },
    };
    let epilogue = follows.epilogue(stream, &addends);
    let run = || -> Result<Vec<f64>> {
        let to = Output::new(stream, [rows, columns, gap], output)?;
        // SAFETY: the buffers have these sizes and live until the copy has waited for the stream.
        unsafe { gemm.run(stream, &operands, inner, &epilogue, to.rows(stream), output)? };
        to.read(stream)
    };
    let (given, again) = (run()?, run()?);

    let wanted = by_rows(rows, columns, |r, out| {
        let left = &a.values[r * inner..][..inner];
        for (c, out) in out.iter_mut().enumerate() {
            let right = &b.values[c * inner..][..inner];
            let mut x: f64 = left.iter().zip(right).map(|(a, b)| a * b).sum();
            if one_of == 1.0 {
                x *= a_scale.values[r] * b_scale.values[c];
            }
            if epilogue.bias.is_some() {
                x += bias.values[c];
            }
            x = activate(x, epilogue.activation);
            *out = match follows {
                Follows::GateAndResidual => residual.values[r * columns + c] + gate.values[c] * x,
                Follows::Residual => residual.values[r * columns + c] + x,
                Follows::ElementGate => gates.values[r * columns + c] * x,
                _ => x,
            };
        }
    });
    let name = format!("{kind:?} {rows}x{columns}x{inner} to {output:?}, {follows:?}");
    Ok(verdict(&name, &given, &again, &wanted, kind.limit(output)))
}

pub fn activate(x: f64, activation: Activation) -> f64 {
    let sigmoid = |y: f64| 1.0 / (1.0 + (-y).exp());
    match activation {
        Activation::None => x,
        Activation::Silu => x * sigmoid(x),
        Activation::GeluTanh => {
            x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3)))
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// Returns the error function by its series, which loses few digits up to 4; beyond 4 it is 1 within 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// Prints milliseconds and TFLOP/s on the model's shapes.
pub fn time(card: &Card) -> Result<()> {
    let gemm = Gemm::load(card)?;
    let stream = card.default_stream();
    println!("\nmatrix products              rows columns   inner       ms  TFLOP/s");
    let (most, rows) = (13_824, 32_760);
    // Random codes below NaN, in both signs; read as bf16, the same bytes would not be normal numbers.
    let some = normal(1 << 22, 1);
    let bf16: Vec<u16> = some.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    let e4m3: Vec<u8> = bf16.iter().map(|x| ((*x >> 8) as u8 & 0x80) | ((*x as u8 & 0x1f) + 0x20)).collect();
    let filled = |count: usize| -> Result<(CudaSlice<u16>, CudaSlice<u8>)> {
        let wide: Vec<u16> = bf16.iter().copied().cycle().take(count).collect();
        let narrow: Vec<u8> = e4m3.iter().copied().cycle().take(count).collect();
        Ok((stream.clone_htod(&wide)?, stream.clone_htod(&narrow)?))
    };
    let (a16, a8) = filled(rows * most)?;
    let (b16, b8) = filled(15_360 * 5120)?;
    let scale = stream.clone_htod(&vec![1e-3f32; rows])?;
    let output: CudaSlice<u16> = stream.alloc_zeros(rows * 15_360)?;
    // Room for f32.
    let residual: CudaSlice<u16> = stream.alloc_zeros(rows * 5120 * 2)?;
    let scale = address(&scale, &stream);
    for (columns, inner) in [(5120, 5120), (15_360, 5120), (13_824, 5120), (5120, 13_824)] {
        let matrix = |address, rows, stride| Rows { address, rows, stride };
        let fp8 = |fast| Operands::E4m3 {
            a: matrix(address(&a8, &stream), rows, inner),
            a_scale: scale,
            b: matrix(address(&b8, &stream), columns, inner),
            b_scale: scale,
            fast,
        };
        let bf16 = Operands::Bf16 {
            a: matrix(address(&a16, &stream), rows, inner),
            b: matrix(address(&b16, &stream), columns, inner),
        };
        let to = matrix(address(&output, &stream), rows, columns);
        let plain = Epilogue { bias: Some(scale), ..Epilogue::default() };
        let gelu = Epilogue { activation: Activation::GeluTanh, ..plain };
        let gated = Epilogue {
            gate: Some(Gate::Columns(scale)),
            residual: (columns == 5120).then(|| matrix(address(&residual, &stream), rows, 5120)),
            ..plain
        };
        for (name, operands, epilogue, element) in [
            ("bf16", &bf16, &plain, Element::Bf16),
            ("bf16, gate, residual", &bf16, &gated, Element::Bf16),
            ("bf16, the same in f32", &bf16, &gated, Element::F32),
            ("bf16, gelu", &bf16, &gelu, Element::Bf16),
            ("e4m3 fast", &fp8(true), &plain, Element::Bf16),
            ("e4m3 fast, gate, residual", &fp8(true), &gated, Element::Bf16),
            ("e4m3 fast, the same in f32", &fp8(true), &gated, Element::F32),
            ("e4m3 fast, gelu", &fp8(true), &gelu, Element::Bf16),
            ("e4m3", &fp8(false), &plain, Element::Bf16),
        ] {
            // The model has residuals in f32 alone, and the output here has room for no others.
            if element == Element::F32 && epilogue.residual.is_none() {
                continue;
            }
            if matches!(operands, Operands::E4m3 { .. }) && !gemm.has_e4m3() {
                continue;
            }
            let written = (to.address, rows * columns * element.bytes());
            // SAFETY: the buffers have these sizes and outlive the waits in `median`.
            let ms = median_of(&stream, written, || unsafe {
                gemm.run(&stream, operands, inner, epilogue, to, element)
            })?;
            let flop = 2.0 * rows as f64 * columns as f64 * inner as f64;
            println!("{name:27}{rows:8}{columns:8}{inner:8}{ms:9.3}{:9.0}", flop / f64::from(ms) / 1e9);
        }
    }
    Ok(())
}
