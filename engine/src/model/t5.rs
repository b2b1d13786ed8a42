//! The umT5 encoder: token numbers become the text embedding that the `DiT` attends to.
//!
//! Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer" (2020); umT5
//! (Chung et al., 2023) gives every layer its own relative position bias. Only the prompt's own tokens are computed:
//! with padding masked away, the other tokens would change nothing.

use super::{Checkpoint, Probe, added, show};
use crate::backend::Backend;
use crate::backend::loading::{Group, Role};
use crate::backend::sequence::{Activation, Attention, Input, KeyValue, Norm, Projection};
use crate::weights::{EMBEDDING, HostTensor, RowTable, T5Config, WeightSource};
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

const EPS: f64 = 1e-6;
/// The number of buckets of relative positions, half of them for keys after the query.
const BUCKETS: usize = 32;
/// The distance from which on all distances share the last bucket.
const MAX_DISTANCE: f32 = 128.0;

/// The encoder.
pub struct T5<B: Backend> {
    /// The embedding stays in its file, because a prompt needs only a few of its many rows.
    embedding: RowTable,
    dim: usize,
    blocks: Vec<Group<B, Block<B>>>,
    norm: Group<B, B::Tensor>,
    heads: usize,
}

struct Block<B: Backend> {
    norm1: B::Tensor,
    qkv: B::Linear,
    o: B::Linear,
    /// The table of the position bias, `[BUCKETS, heads]`.
    bias: HostTensor,
    norm2: B::Tensor,
    gate: B::Linear,
    fc1: B::Linear,
    fc2: B::Linear,
}

impl<B: Backend> T5<B> {
    /// Loads the encoder from `weights`, tensor by tensor.
    ///
    /// # Errors
    /// Returns [`Error::Model`] if the position buckets are not as many as umT5's, and the errors of `weights` and the
    /// loader.
    pub fn load(loader: &B::Loader, weights: &dyn WeightSource, config: &T5Config) -> Result<Self> {
        if config.buckets != BUCKETS {
            return Err(Error::Model(format!(
                "the text encoder has {} buckets of relative positions, umT5 has {BUCKETS}: use the released umT5 file",
                config.buckets
            )));
        }
        let root = Checkpoint::<B>::new(loader, weights, "");
        let block = |i| {
            let config = config.clone();
            root.below(&format!("blocks.{i}")).reread(move |l| Block::load(l, &config))
        };
        Ok(Self {
            embedding: weights.row_table(EMBEDDING)?,
            dim: config.dim,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: root.around(|root| root.vector("norm.weight"))?,
            heads: config.heads,
        })
    }

    /// Encodes token numbers, without padding, as `[ids, dim]`.
    ///
    /// `probe` sees `embed`, `block0`, `block1`, ... (not the last) and `out`.
    ///
    /// # Errors
    /// Returns [`Error::Model`] for a number that the embedding has no row for: the tokenizer belongs to another model.
    pub fn encode(&self, b: &B, ids: &[u32], mut probe: Probe<'_, B::Tensor>) -> Result<B::Tensor> {
        let mut x = self.embed(b, ids)?;
        show(&mut probe, || "embed".into(), &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.enter(b)?.forward(b, &x, self.heads)?;
            if i + 1 < self.blocks.len() {
                show(&mut probe, || format!("block{i}"), &x);
            }
        }
        let out = b.norm(&x, &rms(&*self.norm.enter(b)?))?;
        show(&mut probe, || "out".into(), &out);
        Ok(out)
    }

    fn embed(&self, b: &B, ids: &[u32]) -> Result<B::Tensor> {
        let rows = self.embedding.rows;
        let mut data = Vec::with_capacity(ids.len() * self.dim);
        for &id in ids {
            let row = id as usize;
            if row >= rows {
                return Err(Error::Model(format!(
                    "the tokenizer gave token {id}, but the text encoder knows {rows}: use the tokenizer of this model"
                )));
            }
            data.append(&mut self.embedding.row(row)?);
        }
        b.upload(&data, &[ids.len(), self.dim])
    }
}

impl<B: Backend> Block<B> {
    fn load(l: &Checkpoint<'_, B>, config: &T5Config) -> Result<Self> {
        let linear = |names: &[&str]| l.linear_without_bias(names, Role::Bulk);
        Ok(Self {
            norm1: l.vector("norm1.weight")?,
            qkv: linear(&["attn.q", "attn.k", "attn.v"])?,
            o: linear(&["attn.o"])?,
            bias: l.host("pos_embedding.embedding.weight", &[BUCKETS, config.heads])?,
            norm2: l.vector("norm2.weight")?,
            gate: linear(&["ffn.gate.0"])?,
            fc1: linear(&["ffn.fc1"])?,
            fc2: linear(&["ffn.fc2"])?,
        })
    }

    fn forward(&self, b: &B, x: &B::Tensor, heads: usize) -> Result<B::Tensor> {
        let [q, k, v] = b.project(Input::Normed(x, rms(&self.norm1)), &self.qkv, &Projection::PLAIN)?;
        let bias = position_bias(b, &self.bias, b.shape(x)[0])?;
        let sets = &[KeyValue { bias: Some(&bias), ..KeyValue::new(&k, &v) }];
        // umT5 does not scale the products: the weights of q include the scale.
        let h = b.attention(&Attention { q: &q, sets, heads, scale: 1.0, kind: AttentionKind::Exact })?;
        let x = b.linear(Input::Plain(&h), &self.o, &added(x))?;

        let normed = Input::Normed(&x, rms(&self.norm2));
        let h = b.gated_linear(normed, &self.gate, &self.fc1, Activation::GeluTanh)?;
        b.linear(Input::Plain(&h), &self.fc2, &added(&x))
    }
}

fn rms<T>(weight: &T) -> Norm<'_, T> {
    Norm::Rms { weight, eps: EPS }
}

/// Returns the bias of each head for every distance within `n` tokens, `[heads, 2 * n - 1]`, from `table` `[BUCKETS,
/// heads]`.
fn position_bias<B: Backend>(b: &B, table: &HostTensor, n: usize) -> Result<B::Tensor> {
    let heads = table.shape[1];
    let last = n as i64 - 1;
    let buckets: Vec<usize> = (-last..=last).map(|distance| relative_bucket(distance) as usize).collect();
    let bias: Vec<f32> = (0..heads)
        .flat_map(|head| buckets.iter().map(move |bucket| table.data[bucket * heads + head]))
        .collect();
    b.upload(&bias, &[heads, buckets.len()])
}

/// Returns the bucket of a relative position, key minus query: near ones have their own, far ones share buckets that
/// widen with the logarithm of the distance.
pub fn relative_bucket(distance: i64) -> u32 {
    const HALF: u32 = BUCKETS as u32 / 2;
    const EXACT: u32 = HALF / 2;
    let side = if distance > 0 { HALF } else { 0 };
    let distance = distance.unsigned_abs();
    let bucket = if distance < EXACT.into() {
        distance as u32
    } else {
        // The arithmetic is f32 as in the reference: at the borders between buckets, rounding decides.
        let octave = (distance as f32 / EXACT as f32).ln() / (MAX_DISTANCE / EXACT as f32).ln();
        (EXACT + (octave * (HALF - EXACT) as f32) as u32).min(HALF - 1)
    };
    side + bucket
}
