//! Each operation against the reference, what is refused, and what is not computed before it is read.

use super::super::conformance::{self, Group};
use super::super::tensor::Value;
use super::{Cuda, Options, noise, open};
use crate::backend::sequence::{Attention, Epilogue, NormParams, Role};
use crate::backend::{Backend, SequenceOps, TensorOps};
use crate::profile::{self, Weights};
use crate::progress::Quiet;
use crate::weights::{DType, Matrix};

/// What `selftest` runs; every case is printed, and has to pass.
fn passes(group: Group) {
    if open(&Options::BF16).is_none() {
        return;
    }
    let findings = conformance::run(0, &[group], &Quiet).expect("it runs");
    for f in &findings {
        println!("{:30} {:60} {:.1e} {:.1e} of {:.0e}", f.operation, f.case, f.error, f.most, f.tolerance);
    }
    let failed: Vec<_> = findings.iter().filter(|f| !f.passed).collect();
    assert!(failed.is_empty() && findings.len() > 20, "{failed:#?}");
}

#[test]
fn what_moves_values_is_exact() {
    passes(Group::Moves);
}

#[test]
fn linear_layers() {
    passes(Group::Linear);
}

#[test]
fn norms() {
    passes(Group::Norms);
}

#[test]
fn attention() {
    passes(Group::Attention);
}

#[test]
fn volumes() {
    passes(Group::Volumes);
}

fn tensor(b: &Cuda, shape: &[usize], seed: u64) -> <Cuda as TensorOps>::Tensor {
    b.upload(&noise(shape.iter().product(), seed), shape).expect("there is room")
}

/// A layer without a bias, of f32 weights.
fn layer(b: &Cuda, outputs: usize, inputs: usize) -> <Cuda as SequenceOps>::Linear {
    let bytes: Vec<u8> = noise(outputs * inputs, 5).iter().flat_map(|v| v.to_le_bytes()).collect();
    let weight = Matrix { rows: outputs, cols: inputs, dtype: DType::F32, bytes: bytes.into(), scale: None };
    b.load_linear(&[(weight, None)], Role::Bulk).expect("there is room")
}

fn heads<'a>(
    [q, k, v]: [&'a <Cuda as TensorOps>::Tensor; 3],
    residual: Option<&'a <Cuda as TensorOps>::Tensor>,
) -> Attention<'a, <Cuda as TensorOps>::Tensor> {
    Attention { q, k, v, heads: 2, scale: 128f64.powf(-0.5), bias: None, residual }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let Some(b) = open(&Options::BF16) else { return };
    let x = tensor(&b, &[2, 3], 1);
    assert!(b.slice(&x, 1, 2, 2).is_err() && b.slice(&x, 2, 0, 1).is_err());
    assert!(b.concat(&[&x, &tensor(&b, &[2, 4], 1)], 0).is_err());
    assert!(b.concat(&[], 0).is_err() && b.upload(&[1.0], &[2]).is_err());
    let (two, three) = (tensor(&b, &[2], 1), tensor(&b, &[3], 1));
    assert!(
        b.linear_combination(&[]).is_err() && b.linear_combination(&[(1.0, &two), (1.0, &three)]).is_err()
    );
    assert!(b.patchify(&tensor(&b, &[1, 1, 3, 2], 1)).is_err());
    assert!(b.linear(&tensor(&b, &[3, 48], 1), &layer(&b, 24, 40), &Epilogue::default()).is_err());
    let x = tensor(&b, &[3, 16], 1);
    let (cos, sin) = (vec![1.0; 8], vec![0.0; 8]);
    let rope = b.load_rope(&cos, &sin, 2).expect("a table");
    assert!(b.rms_norm(&x, &x, 1e-6, None).is_err());
    assert!(b.rms_norm(&x, &tensor(&b, &[16], 1), 1e-6, Some(&rope)).is_err());
    assert!(b.load_rope(&cos, &sin[1..], 2).is_err());
}

#[test]
fn norms_come_in_the_form_that_the_reader_wants() {
    for weights in [Weights::Bf16, Weights::Fp8] {
        let precision = profile::Precision { dit: weights, ..Options::BF16.precision };
        let Some(b) = open(&Options { precision, ..Options::BF16 }) else { return };
        let (x, a) = (tensor(&b, &[72, 256], 1), tensor(&b, &[256], 2));
        let affine = b.layer_norm(&x, &NormParams::Affine { weight: &a, bias: &a }, 1e-6);
        let layer = layer(&b, 24, 256);
        for norm in [affine, b.rms_norm(&x, &a, 1e-6, None)] {
            let norm = norm.expect("a norm");
            let Value::Deferred(deferred) = &norm.0 else { panic!("it was computed at once") };
            assert_eq!(deferred.forms(), (false, false, false));
            b.linear(&norm, &layer, &Epilogue::default()).expect("a product");
            assert_eq!(deferred.forms(), (weights == Weights::Bf16, false, weights == Weights::Fp8));
        }
    }
}

/// As the `DiT` has it: text, then picture, from normed queries.
#[test]
fn attentions_become_one_kernel() {
    let Some(b) = open(&Options { long_context: 100, ..Options::BF16 }) else { return };
    let q = b.rms_norm(&tensor(&b, &[72, 256], 1), &tensor(&b, &[256], 2), 1e-6, None).expect("a norm");
    let context = |keys, seed| [tensor(&b, &[keys, 256], seed), tensor(&b, &[keys, 256], 10 * seed)];
    let [k, v] = context(40, 3);
    let text = b.attention(&heads([&q, &k, &v], None)).expect("an attention");
    let [k, v] = context(33, 4);
    b.attention(&heads([&q, &k, &v], Some(&text))).expect("both");
    let Value::Deferred(deferred) = &text.0 else { panic!("it was computed at once") };
    assert_eq!(deferred.forms(), (false, false, false), "the first attention was computed on its own");
}

/// As the `DiT` has it: both norms in one launch, over what they come from if nobody else has that.
#[test]
fn self_attention_needs_no_memory_for_its_norms() {
    let Some(b) = open(&Options { long_context: 100, ..Options::BF16 }) else { return };
    let (rows, features) = (72, 256);
    let (w, layer) = (tensor(&b, &[features], 2), layer(&b, 3 * features, 64));
    let y = {
        let qkv = b.linear(&tensor(&b, &[rows, 64], 6), &layer, &Epilogue::default()).expect("a product");
        let part = |i| b.slice(&qkv, 1, i * features, features).expect("a part");
        let normed = |i| b.rms_norm(&part(i), &w, 1e-6, None).expect("a norm");
        b.attention(&heads([&normed(0), &normed(1), &part(2)], None)).expect("an attention")
    };
    let before = b.usage()[1].used;
    b.peak_memory();
    b.download(&y).expect("it can be read");
    assert!(b.usage()[1].peak < before + 2 * (2 * rows * features), "the norms were written elsewhere");
    // What it read was as large as three of it.
    assert_eq!(before - b.usage()[1].used, 2 * rows * 2 * features);
}
