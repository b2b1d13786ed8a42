//! The diffusion transformer: a noisy latent, the time and the context become the velocity towards the clean latent.
//!
//! Peebles and Xie, "Scalable diffusion models with transformers" (2023); Wan team, "Wan: open and advanced large-scale
//! video generative models" (2025). What does not change over a job (the text and the picture with all that each block
//! makes of them, the rotary embedding) or over the branches of a step (the time) is computed once, by
//! [`Dit::context`], [`Dit::grid`] and [`Dit::time`].

use super::{Loader, Norm, Probe, columns, show};
use crate::backend::SequenceOps;
use crate::backend::sequence::{Activation, Attention, Epilogue, NormParams, Role};
use crate::progress::Observer;
use crate::weights::{DitConfig, WeightSource};
use crate::{Error, Result};

/// Epsilon of the norms around the image embedding, which the configuration does not give.
const IMAGE_EPS: f64 = 1e-5;
/// The longest wave of the rotary embedding and of the time's sinusoid, over 2 pi.
const THETA: f64 = 10000.0;
/// Positions that the model was made for, along each axis.
const POSITIONS: usize = 1024;

/// The network.
pub struct Dit<B: SequenceOps> {
    patch_embedding: B::Linear,
    text: [B::Linear; 2],
    image_norms: [Norm<B>; 2],
    image: [B::Linear; 2],
    time: [B::Linear; 2],
    time_projection: B::Linear,
    blocks: Vec<Block<B>>,
    head: B::Linear,
    /// Shift and scale.
    head_modulation: [B::Tensor; 2],
    config: DitConfig,
}

struct Block<B: SequenceOps> {
    /// `[6, dim]`.
    modulation: B::Tensor,
    qkv: B::Linear,
    norm_q: B::Tensor,
    norm_k: B::Tensor,
    o: B::Linear,
    norm3: Norm<B>,
    cross: CrossAttention<B>,
    ffn: [B::Linear; 2],
}

struct CrossAttention<B: SequenceOps> {
    q: B::Linear,
    norm_q: B::Tensor,
    text: KeyValue<B>,
    image: KeyValue<B>,
    o: B::Linear,
}

struct KeyValue<B: SequenceOps> {
    kv: B::Linear,
    norm_k: B::Tensor,
}

/// What all blocks of a forward share.
struct Common<'a, B: SequenceOps> {
    e0: &'a B::Tensor,
    rope: &'a B::Rope,
    heads: usize,
    /// Of the products of queries and keys.
    scale: f64,
    eps: f64,
}

/// What the blocks attend to: the text and the picture of one branch.
pub struct Context<B: SequenceOps> {
    /// Keys and values of the text and of the picture, for each block.
    blocks: Vec<[(B::Tensor, B::Tensor); 2]>,
    /// For the probe.
    text: B::Tensor,
    image: B::Tensor,
}

impl<B: SequenceOps> Context<B> {
    /// What is computed last: the values of the last block.
    pub fn last(&self) -> Option<&B::Tensor> {
        self.blocks.last().map(|[_, (_, v)]| v)
    }
}

/// A time, embedded.
pub struct Time<B: SequenceOps> {
    /// The embedding, `[dim]`, in host memory.
    pub e_host: Vec<f32>,
    /// What it modulates every block with, `[6, dim]`, in host memory.
    pub e0_host: Vec<f32>,
    /// `[1, dim]`.
    e: B::Tensor,
    /// `[6, dim]`.
    e0: B::Tensor,
}

/// The rotary embedding of one size of latent.
pub struct Grid<B: SequenceOps> {
    /// Frames, height and width of the latent.
    size: [usize; 3],
    rope: B::Rope,
}

/// Whether a forward computes its blocks.
pub enum Blocks<'a, B: SequenceOps> {
    /// It does.
    Compute {
        /// Whether the blocks' residual shall be kept, for [`Blocks::Reuse`] in later forwards.
        keep_residual: bool,
    },
    /// It adds what the blocks of an earlier forward added to the tokens.
    Reuse(&'a B::Tensor),
}

impl<B: SequenceOps> Clone for Blocks<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: SequenceOps> Copy for Blocks<'_, B> {}

/// What a forward gives.
pub struct Velocity<B: SequenceOps> {
    /// `[out_dim, frames, height, width]`.
    pub velocity: B::Tensor,
    /// The tokens after all blocks minus those before, if it was to be kept.
    pub residual: Option<B::Tensor>,
}

impl<B: SequenceOps> Dit<B> {
    /// Takes the network to the backend, tensor by tensor.
    pub fn load(backend: &B, weights: &dyn WeightSource, config: &DitConfig) -> Result<Self> {
        let root = Loader::new(backend, weights, "");
        let full = |name| root.linear(&[name], Role::Sensitive);
        let modulation = root.host("head.modulation", &[2, config.dim])?.data;
        let half = |i: usize| backend.upload(&modulation[i * config.dim..][..config.dim], &[1, config.dim]);
        Ok(Self {
            patch_embedding: full("patch_embedding")?,
            text: [full("text_embedding.0")?, full("text_embedding.2")?],
            image_norms: [root.norm("img_emb.proj.0", IMAGE_EPS)?, root.norm("img_emb.proj.4", IMAGE_EPS)?],
            image: [full("img_emb.proj.1")?, full("img_emb.proj.3")?],
            time: [full("time_embedding.0")?, full("time_embedding.2")?],
            time_projection: full("time_projection.1")?,
            blocks: (0..config.num_layers)
                .map(|i| Block::load(&root.below(&format!("blocks.{i}")), config))
                .collect::<Result<_>>()?,
            head: full("head.head")?,
            head_modulation: [half(0)?, half(1)?],
            config: config.clone(),
        })
    }

    /// Embeds a prompt `[n, text_dim]` (without padding) and a picture `[257, image_dim]`.
    pub fn context(&self, b: &B, text: &B::Tensor, image: &B::Tensor) -> Result<Context<B>> {
        // The model was trained on 512 rows, zeros after the prompt's, and attends to them like to any other.
        let DitConfig { text_len, text_dim, .. } = self.config;
        let missing = text_len.checked_sub(b.shape(text)[0]).ok_or_else(|| {
            Error::Internal(format!(
                "a prompt of {} tokens for a model that reads {text_len}",
                b.shape(text)[0]
            ))
        })?;
        let text = match missing {
            0 => text.clone(),
            _ => b.concat(&[text, &b.upload(&vec![0.0; missing * text_dim], &[missing, text_dim])?], 0)?,
        };
        let [up, down] = &self.text;
        let text =
            b.linear(&text, up, &Epilogue { activation: Activation::GeluTanh, ..Epilogue::default() })?;
        let text = b.linear(&text, down, &Epilogue::default())?;

        let [up, down] = &self.image;
        let image = self.image_norms[0].apply(b, image)?;
        let image =
            b.linear(&image, up, &Epilogue { activation: Activation::GeluErf, ..Epilogue::default() })?;
        let image = b.linear(&image, down, &Epilogue::default())?;
        let image = self.image_norms[1].apply(b, &image)?;

        let eps = self.config.eps;
        let blocks = self.blocks.iter().map(|block| {
            Ok([block.cross.text.apply(b, &text, eps)?, block.cross.image.apply(b, &image, eps)?])
        });
        Ok(Context { blocks: blocks.collect::<Result<_>>()?, text, image })
    }

    /// Embeds a time from 0 (clean) to 1000 (noise); fractions are welcome.
    pub fn time(&self, b: &B, t: f64) -> Result<Time<B>> {
        let DitConfig { dim, freq_dim, .. } = self.config;
        let sinusoid = b.upload(&sinusoid(t, freq_dim), &[1, freq_dim])?;
        let [up, down] = &self.time;
        let h = b.linear(&sinusoid, up, &Epilogue { activation: Activation::Silu, ..Epilogue::default() })?;
        let e = b.linear(&h, down, &Epilogue::default())?;
        let e_host = b.download(&e)?;
        // One row, and in host memory anyway for the step caches: no need of an operation for it.
        let silu: Vec<f32> = e_host.iter().map(|e| e / (1.0 + (-e).exp())).collect();
        let e0 = b.linear(&b.upload(&silu, &[1, dim])?, &self.time_projection, &Epilogue::default())?;
        let e0_host = b.download(&e0)?;
        let e0 = b.upload(&e0_host, &[6, dim])?;
        Ok(Time { e_host, e0_host, e, e0 })
    }

    /// Prepares for latents of so many frames, rows and columns.
    pub fn grid(&self, b: &B, frames: usize, height: usize, width: usize) -> Result<Grid<B>> {
        let tokens = [frames, height / 2, width / 2];
        if !height.is_multiple_of(2)
            || !width.is_multiple_of(2)
            || tokens.iter().any(|n| !(1..=POSITIONS).contains(n))
        {
            return Err(Error::Setting(format!(
                "a latent of {frames} frames of {height}x{width}: sides must be even, up to {}, and frames up to \
                 {POSITIONS}: choose another size or length",
                2 * POSITIONS
            )));
        }
        let (cos, sin) = rope(tokens, self.config.dim / self.config.num_heads);
        Ok(Grid { size: [frames, height, width], rope: b.load_rope(&cos, &sin, tokens.iter().product())? })
    }

    /// The velocity at the noisy latent `x` `[16, frames, height, width]`, beside which the model sees the mask and the
    /// picture's latent `y` `[20, frames, height, width]`.
    ///
    /// `probe` sees `patch_tokens`, `e`, `e0`, `context_text`, `context_img`, for each block `blockN.self_attn`,
    /// `blockN.cross_attn`, `blockN.ffn` (before gate and residual) and `blockN.out`, then `head` and `out`. It makes
    /// the forward slower.
    ///
    /// # Errors
    /// [`Error::Canceled`] within one block of the observer's wish, and what the backend reports.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own, prepared at its own time")]
    pub fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        y: &B::Tensor,
        time: &Time<B>,
        context: &Context<B>,
        grid: &Grid<B>,
        blocks: Blocks<'_, B>,
        observer: &dyn Observer,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<Velocity<B>> {
        let x = b.patchify(&b.concat(&[x, y], 0)?)?;
        let before = b.linear(&x, &self.patch_embedding, &Epilogue::default())?;
        show(&mut probe, || "patch_tokens".into(), &before);
        show(&mut probe, || "e".into(), &time.e);
        show(&mut probe, || "e0".into(), &time.e0);
        show(&mut probe, || "context_text".into(), &context.text);
        show(&mut probe, || "context_img".into(), &context.image);

        let DitConfig { dim, num_heads: heads, eps, .. } = self.config;
        let scale = (dim as f64 / heads as f64).powf(-0.5);
        let all = Common { e0: &time.e0, rope: &grid.rope, heads, scale, eps };
        let mut residual = None;
        let after = match blocks {
            Blocks::Reuse(residual) => {
                observer.check()?;
                b.throttle()?;
                // Goes with this block.
                let before = before;
                b.linear_combination(&[(1.0, &before), (1.0, residual)])?
            }
            Blocks::Compute { keep_residual } => {
                let mut tokens = before.clone();
                // Lets go of the tokens before the blocks where nobody will ask for them.
                let before = keep_residual.then_some(before);
                for (i, (block, context)) in self.blocks.iter().zip(&context.blocks).enumerate() {
                    observer.check()?;
                    b.throttle()?;
                    let mut of_block = probe.as_mut().map(|probe| {
                        move |name: &str, tensor: &B::Tensor| probe(&format!("block{i}.{name}"), tensor)
                    });
                    let mut probe: Probe<'_, _> =
                        of_block.as_mut().map(|p| p as &mut dyn FnMut(&str, &B::Tensor));
                    tokens = block.forward(b, tokens, context, &all, &mut probe)?;
                    show(&mut probe, || "out".into(), &tokens);
                }
                residual = before
                    .map(|before| b.linear_combination(&[(1.0, &tokens), (-1.0, &before)]))
                    .transpose()?;
                tokens
            }
        };

        let [shift, scale] = &self.head_modulation;
        let shift = b.linear_combination(&[(1.0, shift), (1.0, &time.e)])?;
        let scale = b.linear_combination(&[(1.0, scale), (1.0, &time.e)])?;
        let h = b.layer_norm(&after, &NormParams::Modulated { shift: &shift, scale: &scale }, eps)?;
        let h = b.linear(&h, &self.head, &Epilogue::default())?;
        show(&mut probe, || "head".into(), &h);
        let velocity = b.unpatchify(&h, grid.size)?;
        show(&mut probe, || "out".into(), &velocity);
        Ok(Velocity { velocity, residual })
    }
}

impl<B: SequenceOps> Block<B> {
    fn load(l: &Loader<'_, B>, config: &DitConfig) -> Result<Self> {
        let linear = |names: &[&str]| l.linear(names, Role::Bulk);
        Ok(Self {
            modulation: l.backend.load(l.host("modulation", &[6, config.dim])?)?,
            qkv: linear(&["self_attn.q", "self_attn.k", "self_attn.v"])?,
            norm_q: l.vector("self_attn.norm_q.weight")?,
            norm_k: l.vector("self_attn.norm_k.weight")?,
            o: linear(&["self_attn.o"])?,
            norm3: l.norm("norm3", config.eps)?,
            cross: CrossAttention {
                q: linear(&["cross_attn.q"])?,
                norm_q: l.vector("cross_attn.norm_q.weight")?,
                text: KeyValue {
                    kv: linear(&["cross_attn.k", "cross_attn.v"])?,
                    norm_k: l.vector("cross_attn.norm_k.weight")?,
                },
                image: KeyValue {
                    kv: linear(&["cross_attn.k_img", "cross_attn.v_img"])?,
                    norm_k: l.vector("cross_attn.norm_k_img.weight")?,
                },
                o: linear(&["cross_attn.o"])?,
            },
            ffn: [linear(&["ffn.0"])?, linear(&["ffn.2"])?],
        })
    }

    fn forward(
        &self,
        b: &B,
        mut x: B::Tensor,
        context: &[(B::Tensor, B::Tensor); 2],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let modulation = b.linear_combination(&[(1.0, &self.modulation), (1.0, all.e0)])?;
        let row = |i| b.slice(&modulation, 0, i, 1);
        // Each part on its own lets go of its intermediates and its input before the next one starts.
        x = self.self_attention(b, &x, &[row(0)?, row(1)?, row(2)?], all, probe)?;
        x = self.cross_attention(b, &x, context, all, probe)?;
        self.feed_forward(b, &x, &[row(3)?, row(4)?, row(5)?], all, probe)
    }

    fn self_attention(
        &self,
        b: &B,
        x: &B::Tensor,
        [shift, scale, gate]: &[B::Tensor; 3],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let &Common { heads, scale: product_scale, eps, rope, .. } = all;
        // Queries, keys and values are let go of before the last layer makes new tokens.
        let h = {
            let h = b.layer_norm(x, &NormParams::Modulated { shift, scale }, eps)?;
            let [q, k, v] = columns(b, &b.linear(&h, &self.qkv, &Epilogue::default())?)?;
            let q = b.rms_norm(&q, &self.norm_q, eps, Some(rope))?;
            let k = b.rms_norm(&k, &self.norm_k, eps, Some(rope))?;
            b.attention(&Attention {
                q: &q,
                k: &k,
                v: &v,
                heads,
                scale: product_scale,
                bias: None,
                residual: None,
            })?
        };
        show_branch(b, &h, &self.o, probe, "self_attn")?;
        b.linear(&h, &self.o, &Epilogue { gate: Some(gate), residual: Some(x), ..Epilogue::default() })
    }

    fn cross_attention(
        &self,
        b: &B,
        x: &B::Tensor,
        [text, image]: &[(B::Tensor, B::Tensor); 2],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let &Common { heads, scale, eps, .. } = all;
        let CrossAttention { q, norm_q, o, .. } = &self.cross;
        let h = {
            let h = self.norm3.apply(b, x)?;
            let q = b.rms_norm(&b.linear(&h, q, &Epilogue::default())?, norm_q, eps, None)?;
            let attend = |(k, v): &(B::Tensor, B::Tensor), residual: Option<&B::Tensor>| {
                b.attention(&Attention { q: &q, k, v, heads, scale, bias: None, residual })
            };
            attend(image, Some(&attend(text, None)?))?
        };
        show_branch(b, &h, o, probe, "cross_attn")?;
        b.linear(&h, o, &Epilogue { residual: Some(x), ..Epilogue::default() })
    }

    fn feed_forward(
        &self,
        b: &B,
        x: &B::Tensor,
        [shift, scale, gate]: &[B::Tensor; 3],
        all: &Common<'_, B>,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let [up, down] = &self.ffn;
        let h = b.layer_norm(x, &NormParams::Modulated { shift, scale }, all.eps)?;
        let h = b.linear(&h, up, &Epilogue { activation: Activation::GeluTanh, ..Epilogue::default() })?;
        show_branch(b, &h, down, probe, "ffn")?;
        b.linear(&h, down, &Epilogue { gate: Some(gate), residual: Some(x), ..Epilogue::default() })
    }
}

impl<B: SequenceOps> KeyValue<B> {
    fn apply(&self, b: &B, x: &B::Tensor, eps: f64) -> Result<(B::Tensor, B::Tensor)> {
        let [k, v] = columns(b, &b.linear(x, &self.kv, &Epilogue::default())?)?;
        Ok((b.rms_norm(&k, &self.norm_k, eps, None)?, v))
    }
}

/// Shows a branch's last layer before its gate and residual, which the forward itself never has apart.
fn show_branch<B: SequenceOps>(
    b: &B,
    x: &B::Tensor,
    layer: &B::Linear,
    probe: &mut Probe<'_, B::Tensor>,
    name: &str,
) -> Result<()> {
    if probe.is_some() {
        show(probe, || name.to_owned(), &b.linear(x, layer, &Epilogue::default())?);
    }
    Ok(())
}

/// The sinusoid of a time, `[width]`: cosines, then sines, of waves from 1 to [`THETA`]. In f64, because `t` goes up to 1000.
pub fn sinusoid(t: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angles = || (0..half).map(|i| t * THETA.powf(-(i as f64) / half as f64));
    angles().map(f64::cos).chain(angles().map(f64::sin)).map(|v| v as f32).collect()
}

/// How the pairs of a head are split between frames, rows and columns: a third each, rounded down, for rows and columns,
/// and the rest for frames.
pub fn rope_pairs(head_dim: usize) -> [usize; 3] {
    let third = head_dim / 6;
    [head_dim / 2 - 2 * third, third, third]
}

/// Cosines and sines of the rotary embedding (Su et al., "`RoFormer`", 2021) over frames, rows and columns of tokens, each
/// `[tokens, head_dim / 2]`, with [`rope_pairs`] for each axis.
pub fn rope(tokens: [usize; 3], head_dim: usize) -> (Vec<f64>, Vec<f64>) {
    let pairs = rope_pairs(head_dim);
    // For each axis and position, the angles of its pairs.
    let tables: [Vec<Vec<f64>>; 3] = std::array::from_fn(|axis| {
        let angle = |position, pair| position as f64 / THETA.powf(pair as f64 / pairs[axis] as f64);
        (0..tokens[axis])
            .map(|position| (0..pairs[axis]).map(|pair| angle(position, pair)).collect())
            .collect()
    });
    let mut angles = Vec::<f64>::with_capacity(tokens.iter().product::<usize>() * head_dim / 2);
    for frame in &tables[0] {
        for row in &tables[1] {
            for column in &tables[2] {
                angles.extend(frame.iter().chain(row).chain(column));
            }
        }
    }
    (angles.iter().copied().map(f64::cos).collect(), angles.iter().copied().map(f64::sin).collect())
}
