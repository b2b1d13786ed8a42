//! Compares each operation with the reference, and tests what is refused and what takes no memory.

use super::super::conformance::{self, Group};
use super::{Cuda, Options, noise, open};
use crate::backend::cuda::Linear;
use crate::backend::cuda::raw_heads::RawHeads;
use crate::backend::loading::{LinearWeights, Role};
use crate::backend::sequence::{
    Activation, Affine, Attention, Epilogue, Input, KeyValue, Norm, Projection, SelfAttention,
};
use crate::backend::{Backend, Keeping, Loader, SequenceOps, TensorOps};
use crate::progress::Quiet;
use crate::weights::{DType, Matrix};
use animd_protocol::profile::{AttentionKind, Precision};

/// Runs the cases of `selftest`; every case is printed, and must pass.
fn passes(group: Group) {
    passes_on(None, group);
}

/// Runs the cases by the kernels of this compute capability.
fn passes_on(capability: Option<(u32, u32)>, group: Group) {
    let findings = conformance::run(0, capability, &[group], &Quiet).expect("it runs");
    for f in &findings {
        println!("{:30} {:60} {:.1e} {:.1e} of {:.0e}", f.operation, f.case, f.error, f.most, f.tolerance);
    }
    let failed: Vec<_> = findings.iter().filter(|f| !f.passed).collect();
    assert!(failed.is_empty() && findings.len() > 20, "{failed:#?}");
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn what_moves_values_is_exact() {
    passes(Group::Moves);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn linear_layers() {
    passes(Group::Linear);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn norms() {
    passes(Group::Norms);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn attention() {
    passes(Group::Attention);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn volumes() {
    passes(Group::Volumes);
}

/// Cards without e4m3 have all operations but layers in `fp8`.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn cards_without_e4m3() {
    for group in [Group::Linear, Group::Norms, Group::Attention] {
        passes_on(Some((8, 6)), group);
    }
    let b = open(&Options { capability: Some((8, 6)), ..Options::default() });
    let weight = Matrix::plain(8, 16, DType::F32, vec![0; 4 * 8 * 16]);
    let weights = LinearWeights::new(vec![(weight, None)]).expect("a weight");
    let refusal = b.loader(IN_FP8).linear(&weights, Role::Bulk).err().expect("a refusal").to_string();
    assert!(refusal.contains("8.6") && refusal.contains("`int8`"), "{refusal}");
    // Sensitive layers are not in the network's precision.
    assert!(b.loader(IN_FP8).linear(&weights, Role::Sensitive).is_ok());
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn the_kernels_of_another_card() {
    passes_on(Some((8, 9)), Group::Attention);
    let open = |capability| {
        let options = Options { capability: Some(capability), ..Options::default() };
        Cuda::open(0, &options, 0, 1 << 20).err().map(|e| e.to_string())
    };
    assert_eq!(open((8, 0)), None);
    assert!(open((12, 0)).is_some_and(|e| e.contains("cannot run the kernels of 12.0")));
    assert!(open((7, 5)).is_some_and(|e| e.contains("7.5")));
}

fn tensor(b: &Cuda, shape: &[usize], seed: u64) -> <Cuda as TensorOps>::Tensor {
    b.upload(&noise(shape.iter().product(), seed), shape).expect("there is room")
}

/// Returns a layer without a bias, of f32 weights.
fn layer(b: &Cuda, keeping: Keeping, outputs: usize, inputs: usize) -> Linear {
    let bytes: Vec<u8> = noise(outputs * inputs, 5).iter().flat_map(|v| v.to_le_bytes()).collect();
    let weight = Matrix::plain(outputs, inputs, DType::F32, bytes);
    let weights = LinearWeights::new(vec![(weight, None)]).expect("a weight");
    b.loader(keeping).linear(&weights, Role::Bulk).expect("there is room")
}

const IN_BF16: Keeping = Keeping { weights: Precision::Bf16, ..Keeping::F32 };
const IN_FP8: Keeping = Keeping { weights: Precision::Fp8, ..Keeping::F32 };
const IN_INT8: Keeping = Keeping { weights: Precision::Int8, ..Keeping::F32 };

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn what_does_not_go_together_is_refused() {
    let b = open(&Options::default());
    let x = tensor(&b, &[2, 3], 1);
    assert!(b.slice(&x, 1, 2, 2).is_err() && b.slice(&x, 2, 0, 1).is_err());
    assert!(b.concat(&[&x, &tensor(&b, &[2, 4], 1)], 0).is_err());
    assert!(b.concat(&[], 0).is_err() && b.upload(&[1.0], &[2]).is_err());
    let (two, three) = (tensor(&b, &[2], 1), tensor(&b, &[3], 1));
    assert!(b.linear_combination(&[]).is_err());
    assert!(b.linear_combination(&[(1.0, &two), (1.0, &three)]).is_err());
    assert!(b.patchify(&tensor(&b, &[1, 1, 3, 2], 1)).is_err());
    let layer = |outputs, inputs| layer(&b, IN_BF16, outputs, inputs);
    let x = tensor(&b, &[3, 48], 1);
    assert!(b.linear(Input::Plain(&x), &layer(24, 40), &Epilogue::default()).is_err());
    let x = tensor(&b, &[3, 16], 1);
    let (cos, sin) = (vec![1.0; 8], vec![0.0; 8]);
    let rope = b.load_rope(&cos, &sin, 2).expect("a table");
    assert!(b.norm(&x, &Norm::Rms { weight: &x, eps: 1e-6 }).is_err());
    let weight = tensor(&b, &[16], 1);
    let projection = Projection { norms: [Some(&weight)], eps: 1e-6, rope: Some(&rope) };
    assert!(b.project(Input::Plain(&x), &layer(16, 16), &projection).is_err());
    assert!(b.load_rope(&cos, &sin[1..], 2).is_err());
    let longer = tensor(&b, &[4, 16], 1);
    let sets = &[KeyValue::new(&x, &longer)];
    let kind = AttentionKind::Exact;
    assert!(b.attention(&Attention { q: &x, sets, heads: 2, scale: 1.0, kind }).is_err());
}

/// Returns the most work memory in bytes that an operation takes beside its inputs and its result.
fn most<T>(b: &Cuda, operation: impl FnOnce() -> crate::Result<T>) -> (usize, T) {
    let before = b.usage()[1].used;
    b.peak_memory();
    let result = operation().expect("it runs");
    (b.usage()[1].peak - before, result)
}

/// The granularity of memory; a poisoned piece has as much again behind it.
const PIECE: usize = 256;

fn taken(bytes: usize) -> usize {
    bytes.next_multiple_of(PIECE) + PIECE
}

/// A norm that a product reads exists only in the form that the product reads.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn norms_come_in_the_form_that_the_reader_wants() {
    let b = open(&Options::default());
    let (rows, features, outputs) = (72, 256, 24);
    let (x, a) = (tensor(&b, &[rows, features], 1), tensor(&b, &[features], 2));
    let (result, eight_bit) = (taken(2 * rows * outputs), taken(rows * features + 4 * rows));
    for (keeping, form) in [(IN_BF16, taken(2 * rows * features)), (IN_FP8, eight_bit), (IN_INT8, eight_bit)]
    {
        let layer = layer(&b, keeping, outputs, features);
        let learned = Affine::Learned { weight: &a, bias: &a };
        for norm in [Norm::Layer { affine: learned, eps: 1e-6 }, Norm::Rms { weight: &a, eps: 1e-6 }] {
            let read = || b.linear(Input::Normed(&x, norm), &layer, &Epilogue::default());
            let (most, _) = most(&b, read);
            assert_eq!(most, form + result, "{:?}", keeping.weights);
        }
    }
}

/// Between layers in int8, the wide rows exist as int8 and a band of them as bf16.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_feed_forward_takes_a_byte_for_each_wide_element() {
    let b = open(&Options::default());
    let (rows, features, wide) = (2500, 256, 1024);
    let (up, down) = (layer(&b, IN_INT8, wide, features), layer(&b, IN_INT8, features, wide));
    let x = tensor(&b, &[rows, features], 1);
    let run = || b.feed_forward(Input::Plain(&x), [&up, &down], Activation::GeluTanh, &Epilogue::default());
    let (most, _) = most(&b, run);
    let inner = taken(rows * wide + 4 * rows);
    let band = taken(2 * 2048 * wide);
    let input = taken((rows * features).next_multiple_of(256) + 4 * rows);
    assert_eq!(most, inner + band + input);
}

/// This is attention as in the `DiT`: text and picture in one kernel, which needs no memory but the result's.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn attentions_become_one_kernel() {
    let b = open(&Options { long_context: 100, ..Options::default() });
    let (rows, features) = (72, 256);
    let layer = layer(&b, IN_BF16, features, 64);
    let project = |rows, seed| {
        let x = tensor(&b, &[rows, 64], seed);
        b.linear(Input::Plain(&x), &layer, &Epilogue::default()).expect("a product")
    };
    let (q, text, picture) = (project(rows, 1), project(40, 2), project(33, 3));
    let sets = &[KeyValue::new(&text, &text), KeyValue::new(&picture, &picture)];
    let (scale, kind) = (128f64.powf(-0.5), AttentionKind::Exact);
    let (most, _) = most(&b, || b.attention(&Attention { q: &q, sets, heads: 2, scale, kind }));
    assert_eq!(most, taken(2 * rows * features));
}

/// Queries and keys go straight from their product to 8 bits where the kernels can do so, and nowhere else.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn raw_heads_are_those_that_the_kernels_take() {
    let b = open(&Options { long_context: 100, raw_heads: true, ..Options::default() });
    let (rows, features) = (130, 256);
    let (w, layer) = (tensor(&b, &[features], 2), layer(&b, IN_BF16, 3 * features, 64));
    let tables = vec![0.5; rows * 64];
    let rope = b.load_rope(&tables, &tables, rows).expect("tables");
    let raw = |b: &Cuda, rows: usize, heads: usize, kind, norm_k| {
        let projection = Projection { norms: [Some(&w), norm_k, None], eps: 1e-6, rope: Some(&rope) };
        let (scale, layer) = (128f64.powf(-0.5), &layer);
        let x = tensor(b, &[rows, 64], 6);
        let attention = SelfAttention { layer, projection, heads, scale, kind };
        RawHeads::of(&b.gpu, &Input::Plain(&x), &attention).is_some()
    };
    let eight = AttentionKind::EightBit;
    let hopper = b.gpu.attention.takes_raw(2);
    assert_eq!(raw(&b, rows, 2, eight, Some(&w)), hopper);
    assert!(!raw(&b, rows, 2, AttentionKind::Exact, Some(&w)));
    assert!(!raw(&b, rows, 2, eight, None));
    assert!(!raw(&b, rows, 1, eight, Some(&w)));
    assert!(!raw(&b, rows - 1, 2, eight, Some(&w)));
    let usual = open(&Options { long_context: 100, raw_heads: false, ..Options::default() });
    assert!(!raw(&usual, rows, 2, eight, Some(&w)));
}

/// These are the norms of the `DiT`: queries and keys are normed in place of what the product made.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn projections_need_no_memory_for_their_norms() {
    let b = open(&Options::default());
    let (rows, features) = (72, 256);
    let (w, layer) = (tensor(&b, &[features], 2), layer(&b, IN_BF16, 3 * features, 64));
    let x = tensor(&b, &[rows, 64], 6);
    let projection = Projection { norms: [Some(&w), Some(&w), None], eps: 1e-6, rope: None };
    let (most, parts) = most(&b, || b.project(Input::Plain(&x), &layer, &projection));
    let product = taken(2 * rows * 3 * features);
    // The input in bf16 is freed when the product is done.
    assert_eq!(most, taken(2 * rows * 64) + product);
    let before = b.usage()[1].used;
    drop(parts);
    assert_eq!(before - b.usage()[1].used, product);
}
