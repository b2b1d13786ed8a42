//! The umT5 encoder: token numbers become the text embedding that the `DiT` attends to.
//!
//! Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer" (2020); umT5
//! (Chung et al., 2023) gives every layer its own relative position bias. Only the prompt's own tokens are computed:
//! with padding masked away the others would change nothing.

use super::{Loader, Probe, columns, show};
use crate::backend::SequenceOps;
use crate::backend::sequence::{Activation, Attention, Epilogue, Role};
use crate::weights::{HostTensor, Matrix, T5Config, WeightSource};
use crate::{Error, Result};

const EPS: f64 = 1e-6;
/// Buckets of relative positions, half of them for keys after the query.
const BUCKETS: usize = 32;
/// Distances from here on share the last bucket.
const MAX_DISTANCE: f32 = 128.0;

/// The encoder.
pub struct T5<B: SequenceOps> {
    /// Stays in host memory in the type of the file: of its many rows a prompt needs a few.
    embedding: Matrix<'static>,
    blocks: Vec<Block<B>>,
    norm: B::Tensor,
    heads: usize,
}

struct Block<B: SequenceOps> {
    norm1: B::Tensor,
    qkv: B::Linear,
    o: B::Linear,
    /// `[BUCKETS, heads]`.
    bias: HostTensor,
    norm2: B::Tensor,
    gate: B::Linear,
    fc1: B::Linear,
    fc2: B::Linear,
}

impl<B: SequenceOps> T5<B> {
    /// Takes the encoder to the backend, tensor by tensor.
    ///
    /// # Errors
    /// [`Error::Model`] for a number of position buckets other than umT5's, and what `weights` and the backend report.
    pub fn load(backend: &B, weights: &dyn WeightSource, config: &T5Config) -> Result<Self> {
        if config.buckets != BUCKETS {
            return Err(Error::Model(format!(
                "the text encoder has {} buckets of relative positions, umT5 has {BUCKETS}: use the released umT5 file",
                config.buckets
            )));
        }
        let root = Loader::new(backend, weights, "");
        let block = |i| {
            let l = root.below(&format!("blocks.{i}"));
            let linear = |names: &[&str]| l.linear_without_bias(names, Role::Bulk);
            Ok(Block {
                norm1: l.vector("norm1.weight")?,
                qkv: linear(&["attn.q", "attn.k", "attn.v"])?,
                o: linear(&["attn.o"])?,
                bias: l.host("pos_embedding.embedding.weight", &[BUCKETS, config.heads])?,
                norm2: l.vector("norm2.weight")?,
                gate: linear(&["ffn.gate.0"])?,
                fc1: linear(&["ffn.fc1"])?,
                fc2: linear(&["ffn.fc2"])?,
            })
        };
        Ok(Self {
            embedding: weights.matrix("token_embedding.weight")?.into_owned(),
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: root.vector("norm.weight")?,
            heads: config.heads,
        })
    }

    /// Token numbers, without padding, to `[ids, dim]`.
    ///
    /// `probe` sees `embed`, `block0`, `block1`, ... (not the last) and `out`.
    ///
    /// # Errors
    /// [`Error::Model`] for a number that the embedding has no row for: the tokenizer belongs to another model.
    pub fn encode(&self, b: &B, ids: &[u32], mut probe: Probe<'_, B::Tensor>) -> Result<B::Tensor> {
        let mut x = self.embed(b, ids)?;
        show(&mut probe, || "embed".into(), &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(b, &x, self.heads)?;
            if i + 1 < self.blocks.len() {
                show(&mut probe, || format!("block{i}"), &x);
            }
        }
        let out = b.rms_norm(&x, &self.norm, EPS, None)?;
        show(&mut probe, || "out".into(), &out);
        Ok(out)
    }

    fn embed(&self, b: &B, ids: &[u32]) -> Result<B::Tensor> {
        let Matrix { rows, cols, dtype, ref bytes, .. } = self.embedding;
        let mut data = Vec::with_capacity(ids.len() * cols);
        for &id in ids {
            let row = (id as usize) * cols * dtype.size();
            let bytes = bytes.get(row..row + cols * dtype.size()).ok_or_else(|| {
                Error::Model(format!(
                    "the tokenizer gave token {id}, but the text encoder knows {rows}: use the tokenizer of this model"
                ))
            })?;
            data.append(&mut Matrix { rows: 1, cols, dtype, bytes: bytes.into(), scale: None }.to_f32());
        }
        b.upload(&data, &[ids.len(), cols])
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(&self, b: &B, x: &B::Tensor, heads: usize) -> Result<B::Tensor> {
        let h = b.rms_norm(x, &self.norm1, EPS, None)?;
        let [q, k, v] = columns(b, &b.linear(&h, &self.qkv, &Epilogue::default())?)?;
        let bias = position_bias(b, &self.bias, b.shape(x)[0])?;
        // umT5 does not scale the products: the weights of q have it in them.
        let h = b.attention(&Attention {
            q: &q,
            k: &k,
            v: &v,
            heads,
            scale: 1.0,
            bias: Some(&bias),
            residual: None,
        })?;
        let x = b.linear(&h, &self.o, &Epilogue { residual: Some(x), ..Epilogue::default() })?;

        let h = b.rms_norm(&x, &self.norm2, EPS, None)?;
        let up = b.linear(&h, &self.fc1, &Epilogue::default())?;
        let gated = Epilogue { activation: Activation::GeluTanh, gate: Some(&up), residual: None };
        let h = b.linear(&h, &self.gate, &gated)?;
        b.linear(&h, &self.fc2, &Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}

/// The bias of each head for every distance within `n` tokens, `[heads, 2 * n - 1]`, from `table` `[BUCKETS, heads]`.
fn position_bias<B: SequenceOps>(b: &B, table: &HostTensor, n: usize) -> Result<B::Tensor> {
    let heads = table.shape[1];
    let last = n as i64 - 1;
    let buckets: Vec<usize> = (-last..=last).map(|distance| relative_bucket(distance) as usize).collect();
    let bias: Vec<f32> = (0..heads)
        .flat_map(|head| buckets.iter().map(move |bucket| table.data[bucket * heads + head]))
        .collect();
    b.upload(&bias, &[heads, buckets.len()])
}

/// The bucket of a relative position, key minus query: near ones have their own, far ones share buckets that widen
/// with the logarithm of the distance.
pub fn relative_bucket(distance: i64) -> u32 {
    const HALF: u32 = BUCKETS as u32 / 2;
    const EXACT: u32 = HALF / 2;
    let side = if distance > 0 { HALF } else { 0 };
    let distance = distance.unsigned_abs();
    let bucket = if distance < EXACT.into() {
        distance as u32
    } else {
        // In f32, as the reference has it: at the borders between buckets the rounding decides.
        let octave = (distance as f32 / EXACT as f32).ln() / (MAX_DISTANCE / EXACT as f32).ln();
        (EXACT + (octave * (HALF - EXACT) as f32) as u32).min(HALF - 1)
    };
    side + bucket
}
