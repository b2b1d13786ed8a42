//! Stored numbers expanded on the device, against the CPU's expansion: they must agree to the bit.

use super::super::staging::Staging;
use super::{Cuda, Options, open};
use crate::weights::{DType, Encoding, Granularity, Matrix, PACKINGS};

/// Returns random bytes.
fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..count).map(next).collect()
}

/// Returns a matrix of random bytes, among which are subnormal numbers, infinities and NaN, with random scales.
fn random([rows, cols]: [usize; 2], encoding: Encoding, seed: u64) -> Matrix<'static> {
    let scales = super::noise(encoding.scales(rows, cols), seed + 1);
    let all = bytes(encoding.row_bytes(cols).expect("whole bytes") * rows, seed);
    let matrix = Matrix { rows, cols, encoding, bytes: all.into(), scales };
    assert!(matrix.is_consistent());
    matrix
}

/// Compares the values of a matrix on the device with the CPU's, bit by bit; any NaN is as good as another.
fn check(cuda: &Cuda, matrix: &Matrix<'_>) {
    let staging = Staging::default();
    let what = format!("{}x{} {:?}", matrix.rows, matrix.cols, matrix.encoding);
    let expanded =
        cuda.gpu.expanded(&staging, matrix).unwrap().unwrap_or_else(|| panic!("no kernel: {what}"));
    assert_eq!(expanded.shape, [matrix.rows, matrix.cols]);
    let mut given = vec![0f32; matrix.rows * matrix.cols];
    cuda.gpu.receive(&expanded, &mut given).unwrap();
    let wanted = matrix.to_f32();
    assert_eq!(given.len(), wanted.len());
    for (i, (given, wanted)) in given.iter().zip(&wanted).enumerate() {
        let same = given.to_bits() == wanted.to_bits() || given.is_nan() && wanted.is_nan();
        assert!(same, "{what}: value {i} is {given}, not {wanted}");
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn blocks_have_the_values_of_the_cpu() {
    let cuda = open(&Options::default());
    for (seed, packing) in (1..).zip(PACKINGS) {
        for (rows, blocks) in [(1, 1), (3, 2), (7, 5)] {
            check(&cuda, &random([rows, blocks * packing.values], Encoding::Packed(packing), seed));
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn numbers_have_the_values_of_the_cpu() {
    let cuda = open(&Options::default());
    let types = [DType::F16, DType::F8E4m3, DType::F8E5m2, DType::F4E2m1, DType::I8];
    let block = |rows, cols| Granularity::Block { rows, cols };
    for (seed, dtype) in (1..).zip(types) {
        // Every value of the type is among these.
        check(&cuda, &Matrix::plain(16, 8192 / dtype.bits(), dtype, bytes(16 * 1024, seed)));
        for [rows, cols] in [[1, 2], [7, 34], [130, 66], [5, 512]] {
            check(&cuda, &random([rows, cols], Encoding::Plain(dtype), seed));
            let by = [
                Granularity::Tensor,
                Granularity::Row,
                block(1, 16),
                block(1, 32),
                block(128, 128),
                block(2, 3),
            ];
            for by in by {
                check(&cuda, &random([rows, cols], Encoding::Scaled { dtype, by }, seed + 10));
            }
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn rotated_numbers_have_the_values_of_the_cpu() {
    let cuda = open(&Options::default());
    for (group, cols) in [(4, 8), (4, 520), (16, 48), (64, 320), (256, 256), (256, 13_824)] {
        for by in [Granularity::Tensor, Granularity::Row] {
            check(&cuda, &random([3, cols], Encoding::Rotated { dtype: DType::I8, by, group }, 5));
        }
    }
}

/// The kernels have no form for what no weight is stored in, and the CPU expands it.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn other_numbers_are_left_to_the_cpu() {
    let cuda = open(&Options::default());
    let group = 4;
    for matrix in [
        random([2, 8], Encoding::Plain(DType::F64), 1),
        random([2, 12], Encoding::Rotated { dtype: DType::I8, by: Granularity::Row, group }, 1),
    ] {
        assert!(cuda.gpu.expanded(&Staging::default(), &matrix).unwrap().is_none());
    }
}
