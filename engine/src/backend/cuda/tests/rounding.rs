//! Weights in int8 as files hold them, against those that the GPU rounds when it loads.

use super::{Cuda, Options, noise, open};
use crate::backend::loading::{LinearWeights, Loader as _, Role};
use crate::backend::{Backend, Keeping};
use crate::weights::{DType, Encoding, Granularity, Matrix, rounding};
use animd_protocol::profile::Precision;

const IN_INT8: Keeping = Keeping { weights: Precision::Int8, ..Keeping::F32 };

/// Returns the bytes on the card, values and scales, of a layer of these matrices.
fn loaded(cuda: &Cuda, matrices: Vec<Matrix<'_>>) -> [Vec<u8>; 2] {
    let layers = matrices.into_iter().map(|matrix| (matrix, None)).collect();
    let weights = LinearWeights::new(layers).unwrap();
    let layer = cuda.loader(IN_INT8).linear(&weights, Role::Bulk).unwrap();
    let scale = layer.scale.as_ref().expect("a layer in int8 has scales");
    [(&layer.weight, layer.outputs * layer.inputs), (scale, 4 * layer.outputs)].map(|(tensor, bytes)| {
        let mut words = vec![0f32; bytes / 4];
        cuda.gpu.receive(tensor, &mut words).unwrap();
        bytemuck::cast_slice(&words).to_vec()
    })
}

/// Returns rows of noise, in f32 or 16 bits, in which one column is much larger than the others, and one row is zero.
fn plain(rows: usize, cols: usize, dtype: DType, seed: u64) -> Matrix<'static> {
    let mut values = noise(rows * cols, seed);
    values.iter_mut().skip(5).step_by(cols).for_each(|value| *value *= 30.0);
    values[2 * cols..3 * cols].fill(0.0);
    let bytes: Vec<u8> = match dtype {
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => unreachable!("no noise is {}", dtype.name()),
    };
    Matrix::plain(rows, cols, dtype, bytes)
}

/// Returns a matrix rounded on the CPU, as a prepared copy holds it.
fn rounded(matrix: &Matrix<'_>) -> Matrix<'static> {
    let mut values = matrix.to_f32();
    let scales = values.chunks_mut(matrix.cols).map(rounding::to_int8).collect();
    let bytes: Vec<u8> = values.iter().map(|value| (*value as i8).cast_unsigned()).collect();
    let encoding = Encoding::Rotated { dtype: DType::I8, by: Granularity::Row, group: 256 };
    Matrix { encoding, bytes: bytes.into(), scales, ..*matrix }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn rows_rounded_on_the_cpu_are_the_gpus_to_the_bit() {
    let cuda = open(&Options::default());
    for (dtype, cols) in [(DType::F32, 256), (DType::Bf16, 768), (DType::F16, 512), (DType::Bf16, 13_824)] {
        let parts = [plain(24, cols, dtype, 1), plain(16, cols, dtype, 2)];
        let files: Vec<_> = parts.iter().map(rounded).collect();
        let codes: Vec<u8> = files.iter().flat_map(|file| file.bytes.iter().copied()).collect();
        let scales: Vec<u8> =
            files.iter().flat_map(|file| file.scales.iter().flat_map(|scale| scale.to_le_bytes())).collect();
        let [on_gpu, from_files] = [parts.to_vec(), files].map(|matrices| loaded(&cuda, matrices));
        assert!(on_gpu == [codes, scales], "{dtype:?}, {cols} columns: rounded on the GPU");
        assert!(from_files == on_gpu, "{dtype:?}, {cols} columns: taken from a file");
    }
}

/// Numbers that the kernels would not rotate in the same way are expanded, and rounded as any others.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn rows_in_another_basis_are_rounded_anew() {
    let cuda = open(&Options::default());
    let file = rounded(&plain(24, 512, DType::F32, 3));
    let scaled = Encoding::Scaled { dtype: DType::I8, by: Granularity::Row };
    let narrow = Encoding::Rotated { dtype: DType::I8, by: Granularity::Row, group: 64 };
    for encoding in [scaled, narrow] {
        let other = Matrix { encoding, ..file.clone() };
        let bytes: Vec<u8> = other.to_f32().iter().flat_map(|value| value.to_le_bytes()).collect();
        let expanded = Matrix::plain(24, 512, DType::F32, bytes);
        let [given, wanted] = [other, expanded].map(|matrix| loaded(&cuda, vec![matrix]));
        assert!(given == wanted && given[0] != file.bytes[..], "{encoding:?}");
    }
}
