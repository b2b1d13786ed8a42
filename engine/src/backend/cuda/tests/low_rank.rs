//! Products of low rank that the device adds to weights, against the sums that the host makes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::linear::{Form, Linear};
use super::super::low_rank::Products;
use super::{Cuda, Options, noise, open};
use crate::backend::loading::{LinearWeights, Loader as _, Role};
use crate::backend::{Backend, Keeping, TensorOps};
use crate::goldens::folder;
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::progress::Quiet;
use crate::weights::{
    self, DType, DitConfig, HostTensor, Lora, LowRank, Matrix, Merged, WeightSource, made_up_lora,
};
use animd_protocol::profile::{AttentionKind, Place, Precision, Sensitive};

/// Ranks: one, one that fills no vector of the kernels, one that does.
const RANKS: [usize; 3] = [1, 5, 16];

fn product([rows, cols]: [usize; 2], rank: usize, seed: u64) -> LowRank {
    let tensor = |shape: [usize; 2], seed| HostTensor {
        shape: shape.to_vec(),
        data: noise(shape[0] * shape[1], seed),
    };
    LowRank { up: tensor([rows, rank], seed), down: tensor([rank, cols], seed + 1) }
}

fn stored([rows, cols]: [usize; 2], dtype: DType, seed: u64) -> Matrix<'static> {
    let values = noise(rows * cols, seed);
    let bytes: Vec<u8> = match dtype {
        DType::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Matrix::plain(rows, cols, dtype, bytes)
}

/// Returns the sums in f32 and, for each, the magnitudes of the products' terms added up.
fn sums(matrix: &Matrix<'_>, products: &[LowRank]) -> (Vec<f32>, Vec<f64>) {
    let mut values = matrix.to_f32();
    let mut terms = vec![0.0; values.len()];
    for product in products {
        product.add_to(&mut values, 0);
        for (i, term) in terms.iter_mut().enumerate() {
            let (row, col, rank) = (i / matrix.cols, i % matrix.cols, product.rank());
            let magnitude =
                |r: usize| (product.up.data[row * rank + r] * product.down.data[r * matrix.cols + col]).abs();
            *term += (0..rank).map(|r| f64::from(magnitude(r))).sum::<f64>();
        }
    }
    (values, terms)
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn products_are_added_as_on_the_host() {
    let cuda = open(&Options::default());
    let gpu = &cuda.gpu;
    for ([rows, cols], dtype) in [([24, 256], DType::F32), ([7, 40], DType::Bf16), ([33, 144], DType::F32)] {
        let matrix = stored([rows, cols], dtype, 1);
        let products: Vec<_> =
            RANKS.iter().zip(2..).map(|(rank, seed)| product([rows, cols], *rank, 10 * seed)).collect();
        let (wanted, terms) = sums(&matrix, &products);
        for count in 0..=products.len() {
            let (wanted, terms) = match count == products.len() {
                true => (wanted.clone(), terms.clone()),
                false => sums(&matrix, &products[..count]),
            };
            let on_device = Products::new(gpu, &products[..count], cols).unwrap();
            // Rows from the middle are those of the whole.
            for first in [0, 3] {
                let part = matrix.part(first, rows - first).to_f32();
                let part = gpu.upload(&gpu.work, &part, &[rows - first, cols]).unwrap();
                let sum = cuda.download(&on_device.added(gpu, part, first).unwrap()).unwrap();
                for (i, sum) in sum.iter().enumerate() {
                    let i = first * cols + i;
                    // Both factors are sums of two bf16 numbers, with 16 bits, and the product of the low halves is left
                    // out: 3 * 2^-16 of each term. Every sum is rounded to 24 bits.
                    let allowed = 3.0 * terms[i] / 65536.0 + f64::from(wanted[i].abs()) * 4.0 / 16_777_216.0;
                    let error = (f64::from(*sum) - f64::from(wanted[i])).abs();
                    assert!(error <= allowed, "{rows}x{cols}, value {i}: {error:e}, {allowed:e} allowed");
                }
            }
        }
    }
}

fn values(cuda: &Cuda, layer: &Linear) -> [Vec<u8>; 2] {
    let bytes = layer.weight.elements() * layer.weight.element.bytes();
    let scales = layer.scale.as_ref().map(|scale| (scale, 4 * layer.outputs));
    let read = |(tensor, bytes): (&super::super::Tensor, usize)| -> Vec<u8> {
        let mut words = vec![0f32; bytes / 4];
        cuda.gpu.receive(tensor, &mut words).unwrap();
        bytemuck::cast_slice(&words).to_vec()
    };
    [read((&layer.weight, bytes)), scales.map(read).unwrap_or_default()]
}

/// Returns how many codes of 8 bits differ of two weights; none may differ by more than one.
fn differing(form: Form, a: &[u8], b: &[u8]) -> usize {
    let codes = |bytes: &[u8]| -> Vec<i32> {
        match form {
            Form::Int8 => bytes.iter().map(|b| i32::from(b.cast_signed())).collect(),
            // A sign and a magnitude: numbers of one sign are ordered as their codes.
            _ => bytes
                .iter()
                .map(|b| if b & 0x80 == 0 { i32::from(*b) } else { -i32::from(b & 0x7f) })
                .collect(),
        }
    };
    let pairs: Vec<(i32, i32)> = codes(a).into_iter().zip(codes(b)).collect();
    assert!(
        pairs.iter().all(|(a, b)| (a - b).abs() <= 1),
        "{form:?}: a value is off by more than a rounding"
    );
    pairs.iter().filter(|(a, b)| a != b).count()
}

/// A weight with products is rounded once, after they are added; it lies where the layer's weight lay before.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_layer_is_replaced_where_it_is() {
    let cuda = open(&Options::default());
    let (cols, rows) = (256, [24, 8]);
    for (weights, form) in
        [(Precision::Bf16, Form::Bf16), (Precision::Fp8, Form::Fp8), (Precision::Int8, Form::Int8)]
    {
        let keeping = Keeping { weights, sensitive: Sensitive::Same, ..Keeping::F32 };
        let loader = cuda.loader(keeping);
        let matrices = [stored([rows[0], cols], DType::Bf16, 1), stored([rows[1], cols], DType::F32, 2)];
        let products = [
            vec![product([rows[0], cols], 5, 3)],
            vec![product([rows[1], cols], 16, 5), product([rows[1], cols], 1, 7)],
        ];
        let bias = |seed| Some(HostTensor { shape: vec![0], data: noise(rows[seed], seed as u64) });
        let layers = |biased: bool| -> Vec<_> {
            matrices
                .iter()
                .cloned()
                .zip([0, 1])
                .map(|(m, i)| {
                    (
                        m,
                        if biased {
                            bias(i)
                        } else {
                            Some(HostTensor { shape: vec![rows[i]], data: vec![0.0; rows[i]] })
                        },
                    )
                })
                .collect()
        };
        let plain = LinearWeights::new(layers(false)).unwrap();
        let changed = LinearWeights::new(layers(true)).unwrap().plus(products.to_vec()).unwrap();
        let mut layer = loader.linear(&plain, Role::Bulk).unwrap();
        let (before, address) = (values(&cuda, &layer), layer.weight.address);
        loader.replace(&mut layer, &changed, Role::Bulk).unwrap();
        assert_eq!((layer.form, layer.weight.address), (form, address));
        let fresh = loader.linear(&changed, Role::Bulk).unwrap();
        assert!(values(&cuda, &layer) == values(&cuda, &fresh), "{form:?}: replaced, and loaded so");
        let bias = |layer: &Linear| cuda.download(layer.bias.as_ref().expect("there is a bias")).unwrap();
        assert!(bias(&layer) == bias(&fresh) && bias(&fresh).iter().any(|b| *b != 0.0));

        // The host's sums, rounded in the same way.
        let merged = matrices.iter().zip(&products).map(|(matrix, products)| {
            let bytes: Vec<u8> = sums(matrix, products).0.iter().flat_map(|v| v.to_le_bytes()).collect();
            (Matrix::plain(matrix.rows, cols, DType::F32, bytes), None)
        });
        let merged = loader.linear(&LinearWeights::new(merged.collect()).unwrap(), Role::Bulk).unwrap();
        let [codes, host] = [&fresh, &merged].map(|layer| values(&cuda, layer)[0].clone());
        assert!(codes != before[0], "{form:?}: the products change nothing");
        if form == Form::Bf16 {
            let terms =
                matrices.iter().zip(&products).flat_map(|(matrix, products)| sums(matrix, products).1);
            let wide = |bytes: &[u8]| -> Vec<f64> {
                let words = bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]));
                words.map(f64::from).collect()
            };
            for ((a, b), terms) in wide(&codes).into_iter().zip(wide(&host)).zip(terms) {
                // Sums that differ by 3 * 2^-16 of their terms, each rounded to 8 bits: by half of 2^-7.
                assert!((a - b).abs() <= 3.0 * terms / 65536.0 + a.abs().max(b.abs()) / 128.0, "{a} and {b}");
            }
        } else {
            // That difference is a hundredth of a step of 8 bits or less, and crosses a boundary about as often.
            let (all, differ) = (fresh.weight.elements(), differing(form, &codes, &host));
            assert!(differ * 50 <= all, "{form:?}: {differ} of {all} values are rounded otherwise");
        }

        loader.replace(&mut layer, &plain, Role::Bulk).unwrap();
        assert!(values(&cuda, &layer) == before, "{form:?}: nothing is left of the products");
    }
}

#[test]
fn products_of_other_extents_are_refused() {
    let layer = || LinearWeights::new(vec![(stored([8, 16], DType::F32, 1), None)]).unwrap();
    assert!(layer().plus(vec![vec![product([8, 16], 2, 1)]]).is_ok());
    for products in [vec![], vec![vec![product([16, 8], 2, 1)]], vec![vec![product([8, 15], 2, 1)]]] {
        assert!(layer().plus(products).is_err());
    }
}

/// Returns what the network computes from noise.
fn velocity(cuda: &Cuda, dit: &Dit<Cuda>, config: &DitConfig) -> Vec<f32> {
    let upload = |shape: &[usize], seed| cuda.upload(&noise(shape.iter().product(), seed), shape).unwrap();
    let image = config.image_dim.map(|dim| upload(&[257, dim], 1));
    let context = &dit.context(cuda, &upload(&[5, config.text_dim], 2), image.as_ref()).unwrap();
    let (time, grid) = (&dit.time(cuda, 500.0).unwrap(), &dit.grid(cuda, 1, 4, 4).unwrap());
    let (x, y) = (&upload(&[16, 1, 4, 4], 3), &upload(&[20, 1, 4, 4], 4));
    let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
    let blocks = Blocks::Compute { keep_residual: false };
    cuda.download(&dit.forward(cuda, &inputs, blocks, &Quiet, None).unwrap().velocity).unwrap()
}

/// A network of which some weights are loaded again is the one that was loaded so, to the bit, and back.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_network_is_loaded_again_in_part() {
    let cuda = &open(&Options::default());
    let (source, config) = weights::open_dit(&folder().join("official")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let products = [
        ("blocks.0.self_attn.k", [256, 256]),
        ("blocks.2.ffn.2", [256, 512]),
        ("text_embedding.0", [256, 64]),
    ];
    let path =
        made_up_lora::write(dir.path(), "l.safetensors", &products, &[("blocks.1.diff_m", 6 * 256)], 1);
    let lora = Arc::new(Lora::open(&path, &config).unwrap());
    let stale: BTreeSet<String> = lora.names().map(str::to_owned).collect();
    let source: Arc<dyn WeightSource + Send> = Arc::new(source);
    let merged = Merged::new(source.clone(), vec![(lora, 0.5)]);
    for weights in [Precision::Bf16, Precision::Int8] {
        let keeping = Keeping { weights, ..Keeping::F32 };
        let loader = cuda.loader(keeping);
        let mut dit = Dit::<Cuda>::load(&loader, &*source, &config).unwrap();
        let plain = velocity(cuda, &dit, &config);
        assert!(dit.load_again(&loader, &merged, &stale).unwrap());
        let changed = velocity(cuda, &dit, &config);
        assert!(changed != plain, "{weights:?}: nothing has changed");
        let fresh = Dit::load(&cuda.loader(keeping), &merged, &config).unwrap();
        assert!(changed == velocity(cuda, &fresh, &config), "{weights:?}: loaded again, and loaded so");
        assert!(dit.load_again(&loader, &*source, &stale).unwrap());
        assert!(plain == velocity(cuda, &dit, &config), "{weights:?}: something is left");
    }
    // Weights that come and go wait elsewhere, where nothing is changed.
    let leaving = cuda.loader(Keeping { place: Place::Host, ..Keeping::F32 });
    let mut dit = Dit::<Cuda>::load(&leaving, &*source, &config).unwrap();
    assert!(!dit.load_again(&cuda.loader(Keeping::F32), &merged, &stale).unwrap());
}
