//! The diffusion transformer: it turns a noisy latent, the time and the context into the velocity towards the clean
//! latent.
//!
//! Peebles and Xie, "Scalable diffusion models with transformers" (2023); Wan team, "Wan: open and advanced large-scale
//! video generative models" (2025). Some things do not change over a job: the context that each block makes of the text
//! and the picture, and the rotary embedding. The time does not change over the branches of a step. Each is computed
//! once, by [`Dit::context`], [`Dit::grid`] and [`Dit::time`]. What the branches of a step compute alike is their [`Prefix`].

#![expect(clippy::needless_pass_by_value, reason = "tokens that a part takes end with it")]

mod again;
mod block;
mod prefix;

use std::iter;

use super::{Checkpoint, LayerNorm, Probe, activated, show};
use crate::backend::loading::{Group, Role};
use crate::backend::sequence::{Activation, Epilogue, Input};
use crate::backend::{Backend, Loader};
use crate::progress::Observer;
use crate::weights::{DitConfig, WeightSource};
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

use block::{Block, Common, Keys, Start, modulated};
pub use prefix::Prefix;

/// The epsilon of the norms around the image embedding, which the configuration does not give.
const IMAGE_EPS: f64 = 1e-5;
/// The longest wave of the rotary embedding and of the time's sinusoid, over 2 pi.
const THETA: f64 = 10000.0;
/// The number of positions that the model was made for, along each axis.
const POSITIONS: usize = 1024;

/// The network.
pub struct Dit<B: Backend> {
    around: Group<B, Around<B>>,
    blocks: Vec<Group<B, Block<B>>>,
    config: DitConfig,
}

/// The layers that belong to no block.
struct Around<B: Backend> {
    patch_embedding: B::Linear,
    text: [B::Linear; 2],
    /// What embeds the picture, in models that attend to one.
    image: Option<ImageEmbedding<B>>,
    time: [B::Linear; 2],
    time_projection: B::Linear,
    head: B::Linear,
    /// The shift and scale, `[1, dim]` each.
    head_modulation: [B::Tensor; 2],
}

/// The layers that embed the picture's tokens.
struct ImageEmbedding<B: Backend> {
    norms: [LayerNorm<B>; 2],
    layers: [B::Linear; 2],
    /// The positions of the image tokens, `[514, image_dim]`, in models that see two pictures.
    positions: Option<B::Tensor>,
}

/// The context that the blocks attend to: the text and the picture of one branch.
pub struct Context<B: Backend> {
    /// The keys and values of the text and, if the model attends to it, of the picture, for each block.
    blocks: Vec<Vec<[B::Tensor; 2]>>,
    /// How many times the last row of the text counts.
    copies: usize,
    /// The embedded text and picture, for the probe.
    text: B::Tensor,
    image: Option<B::Tensor>,
}

impl<B: Backend> Context<B> {
    /// Returns the values of the last block, the part that is computed last.
    pub fn last(&self) -> Option<&B::Tensor> {
        self.blocks.last()?.last().map(|[_, v]| v)
    }

    /// Returns the embedded text with all of its equal rows, `[text_len, dim]`.
    fn whole_text(&self, b: &B) -> Result<B::Tensor> {
        let last = b.slice(&self.text, 0, b.shape(&self.text)[0] - 1, 1)?;
        let rows: Vec<_> = iter::once(&self.text).chain(iter::repeat_n(&last, self.copies - 1)).collect();
        b.concat(&rows, 0)
    }
}

/// An embedded time.
pub struct Time<B: Backend> {
    /// The embedding, `[dim]`, in host memory.
    pub e_host: Vec<f32>,
    /// The modulation of every block, `[6, dim]`, in host memory.
    pub e0_host: Vec<f32>,
    /// `[1, dim]`.
    e: B::Tensor,
    /// `[6, dim]`.
    e0: B::Tensor,
}

/// The rotary embedding for one size of latent.
pub struct Grid<B: Backend> {
    /// The frames, height and width of the latent.
    size: [usize; 3],
    rope: B::Rope,
}

/// The inputs of a forward.
pub struct Inputs<'a, B: Backend> {
    /// The noisy latent, `[16, frames, height, width]`.
    pub x: &'a B::Tensor,
    /// The mask and the picture's latent, `[20, frames, height, width]`.
    pub y: &'a B::Tensor,
    /// The time.
    pub time: &'a Time<B>,
    /// The context that the blocks attend to.
    pub context: &'a Context<B>,
    /// The positions of the tokens.
    pub grid: &'a Grid<B>,
    /// The kind of self-attention among the tokens.
    pub attention: AttentionKind,
}

/// How a forward gets the result of its blocks.
pub enum Blocks<'a, B: Backend> {
    /// It computes the blocks.
    Compute {
        /// Whether to keep the blocks' residual, for [`Blocks::Reuse`] in later forwards.
        keep_residual: bool,
    },
    /// It adds the residual of an earlier forward's blocks to the tokens.
    Reuse(&'a B::Tensor),
    /// It computes all blocks but one, to see what that one is worth.
    Without(usize),
}

#[expect(
    clippy::expl_impl_clone_on_copy,
    reason = "a derived one would ask for a backend that can be copied"
)]
impl<B: Backend> Clone for Blocks<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Blocks<'_, B> {}

/// The results of a forward.
pub struct Velocity<B: Backend> {
    /// The velocity, `[out_dim, frames, height, width]`.
    pub velocity: B::Tensor,
    /// The tokens after all blocks minus those before, if it was to be kept.
    pub residual: Option<B::Tensor>,
}

impl<B: Backend> Dit<B> {
    /// Loads the network from `weights`, tensor by tensor.
    ///
    /// # Errors
    /// Returns the errors of `weights` and the loader.
    pub fn load(loader: &B::Loader, weights: &dyn WeightSource, config: &DitConfig) -> Result<Self> {
        let root = Checkpoint::<B>::new(loader, weights, "");
        let block = |i| root.below(&format!("blocks.{i}")).group(|l| Block::load(l, config));
        Ok(Self {
            around: root.around(|root| Around::load(root, config))?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Embeds a prompt `[n, text_dim]` (without padding) and, for a model that attends to it, a picture `[257, image_dim]`; or two
    /// pictures, the first and the last one, `[514, image_dim]`, in a model that has positions for them.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] for a prompt that is too long, for a picture that is missing or that the model does not
    /// attend to, and the backend's errors.
    pub fn context(&self, b: &B, text: &B::Tensor, image: Option<&B::Tensor>) -> Result<Context<B>> {
        let around = self.around.enter(b)?;
        let (text, copies) = around.embed_text(b, text, &self.config)?;
        let image = match (&around.image, image) {
            (Some(embedding), Some(image)) => Some(embedding.embed(b, image)?),
            (None, None) => None,
            (Some(_), None) => {
                return Err(Error::Internal("the model attends to a picture, and got none".into()));
            }
            (None, Some(_)) => return Err(Error::Internal("the model does not attend to a picture".into())),
        };
        let eps = self.config.eps;
        let blocks = self.blocks.iter().map(|block| {
            let cross = &block.enter(b)?.cross;
            let mut sets = vec![cross.text.keys_and_values(b, &text, eps)?];
            if let (Some(layer), Some(image)) = (&cross.image, &image) {
                sets.push(layer.keys_and_values(b, image, eps)?);
            }
            Ok(sets)
        });
        Ok(Context { blocks: blocks.collect::<Result<_>>()?, copies, text, image })
    }

    /// Says that this transformer computes as soon as the next forward, of another one, is over.
    pub fn comes_next(&self, b: &B) {
        self.around.comes_next(b);
    }

    /// Embeds a time from 0 (clean) to 1000 (noise); it may have a fraction.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn time(&self, b: &B, t: f64) -> Result<Time<B>> {
        let around = self.around.enter(b)?;
        let DitConfig { dim, freq_dim, .. } = self.config;
        let sinusoid = b.upload(&sinusoid(t, freq_dim), &[1, freq_dim])?;
        let [up, down] = &around.time;
        let h = b.linear(Input::Plain(&sinusoid), up, &activated(Activation::Silu))?;
        let e = b.linear(Input::Plain(&h), down, &Epilogue::default())?;
        let e_host = b.download(&e)?;
        // There is one row, which the step caches need in host memory anyway: it takes no operation of its own.
        let silu: Vec<f32> = e_host.iter().map(|e| e / (1.0 + (-e).exp())).collect();
        let silu = b.upload(&silu, &[1, dim])?;
        let e0 = b.linear(Input::Plain(&silu), &around.time_projection, &Epilogue::default())?;
        let e0_host = b.download(&e0)?;
        let e0 = b.upload(&e0_host, &[6, dim])?;
        Ok(Time { e_host, e0_host, e, e0 })
    }

    /// Prepares for latents with this number of frames, rows and columns.
    ///
    /// # Errors
    /// Returns [`Error::Setting`] for odd sides, and for more positions than the model was made for.
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

    /// Returns the velocity at the noisy latent.
    ///
    /// `probe` sees `e`, `e0`, `context_text`, `context_img`, `patch_tokens`, for each block `blockN.self_attn`,
    /// `blockN.cross_attn`, `blockN.ffn` (before gate and residual) and `blockN.out`, then `head` and `out`. It makes
    /// the forward slower.
    ///
    /// # Errors
    /// Returns [`Error::Canceled`] within one block of the observer's request, and the backend's errors.
    pub fn forward(
        &self,
        b: &B,
        inputs: &Inputs<'_, B>,
        blocks: Blocks<'_, B>,
        observer: &dyn Observer,
        probe: Probe<'_, B::Tensor>,
    ) -> Result<Velocity<B>> {
        self.branch(b, inputs, blocks, &mut Prefix::Own, observer, probe)
    }

    /// Returns the velocity of one branch of a step: what [`Dit::forward`] returns, to the bit. What the branches have in common
    /// is computed by the first one that finds the `prefix` wanted, and the next one begins with it. A forward that computes no
    /// blocks, or not all of them, leaves the prefix as it is.
    ///
    /// A forward that begins with a kept prefix does not show the probe what came before: `patch_tokens` and
    /// `block0.self_attn`.
    ///
    /// # Errors
    /// Returns the errors of [`Dit::forward`].
    pub fn branch(
        &self,
        b: &B,
        inputs: &Inputs<'_, B>,
        blocks: Blocks<'_, B>,
        prefix: &mut Prefix<B>,
        observer: &dyn Observer,
        mut probe: Probe<'_, B::Tensor>,
    ) -> Result<Velocity<B>> {
        let &Inputs { x, y, time, context, grid, .. } = inputs;
        let around = self.around.enter(b)?;
        let patches = |probe: &mut Probe<'_, B::Tensor>| {
            let tokens = around.embed_patches(b, x, y)?;
            show(probe, || "patch_tokens".into(), &tokens);
            Ok::<_, Error>(tokens)
        };
        show(&mut probe, || "e".into(), &time.e);
        show(&mut probe, || "e0".into(), &time.e0);
        if probe.is_some() {
            show(&mut probe, || "context_text".into(), &context.whole_text(b)?);
        }
        if let Some(image) = &context.image {
            show(&mut probe, || "context_img".into(), image);
        }

        let after = match blocks {
            Blocks::Compute { .. } => {
                let start = match prefix.take() {
                    Some(tokens) => Start::Attended(tokens),
                    None => Start::Tokens(patches(&mut probe)?),
                };
                self.run_blocks(b, start, inputs, None, prefix, observer, &mut probe)?
            }
            Blocks::Without(block) => {
                let start = Start::Tokens(patches(&mut probe)?);
                self.run_blocks(b, start, inputs, Some(block), &mut Prefix::Own, observer, &mut probe)?
            }
            Blocks::Reuse(residual) => {
                observer.check()?;
                b.throttle()?;
                sum(b, patches(&mut probe)?, residual)?
            }
        };

        let h = around.head(b, &after, &time.e, self.config.eps)?;
        show(&mut probe, || "head".into(), &h);
        let velocity = b.unpatchify(&h, grid.size)?;
        show(&mut probe, || "out".into(), &velocity);
        let residual = match blocks {
            // To embed the patches again is next to no work, and to keep them would take memory while the blocks need the most.
            Blocks::Compute { keep_residual: true } => {
                Some(difference(b, &after, around.embed_patches(b, x, y)?)?)
            }
            Blocks::Compute { keep_residual: false } | Blocks::Reuse(_) | Blocks::Without(_) => None,
        };
        Ok(Velocity { velocity, residual })
    }

    /// Returns the tokens after all blocks but one, or after all. The first block offers its tokens to `prefix`.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    fn run_blocks(
        &self,
        b: &B,
        mut start: Start<B>,
        inputs: &Inputs<'_, B>,
        without: Option<usize>,
        prefix: &mut Prefix<B>,
        observer: &dyn Observer,
        probe: &mut Probe<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let DitConfig { dim, num_heads: heads, eps, .. } = self.config;
        let scale = (dim as f64 / heads as f64).powf(-0.5);
        let &Inputs { time, context, grid, attention: kind, .. } = inputs;
        let all = Common { e0: &time.e0, rope: &grid.rope, heads, scale, eps, kind };
        for (i, (block, sets)) in self.blocks.iter().zip(&context.blocks).enumerate() {
            if without == Some(i) {
                continue;
            }
            observer.check()?;
            b.throttle()?;
            let mut of_block = probe.as_mut().map(|probe| {
                move |name: &str, tensor: &B::Tensor| probe(&format!("block{i}.{name}"), tensor)
            });
            let mut probe: Probe<'_, _> = of_block.as_mut().map(|p| p as &mut dyn FnMut(&str, &B::Tensor));
            let prefix = if i == 0 { &mut *prefix } else { &mut Prefix::Own };
            let keys = Keys { sets, copies: context.copies };
            let tokens = block.enter(b)?.forward(b, start, prefix, &keys, &all, &mut probe)?;
            show(&mut probe, || "out".into(), &tokens);
            start = Start::Tokens(tokens);
        }
        match start {
            Start::Tokens(tokens) | Start::Attended(tokens) => Ok(tokens),
        }
    }
}

/// Loads the positions of two pictures' tokens, `[image_positions, image_dim]`, if the model has them.
fn image_positions<B: Backend>(root: &Checkpoint<'_, B>, config: &DitConfig) -> Result<Option<B::Tensor>> {
    let Some((rows, width)) = config.image_positions.zip(config.image_dim) else { return Ok(None) };
    let mut positions = root.host("img_emb.emb_pos", &[1, rows, width])?;
    positions.shape.remove(0);
    root.loader.tensor(positions).map(Some)
}

/// Returns the tokens plus the residual of an earlier forward's blocks.
fn sum<B: Backend>(b: &B, tokens: B::Tensor, residual: &B::Tensor) -> Result<B::Tensor> {
    b.linear_combination(&[(1.0, &tokens), (1.0, residual)])
}

/// Returns the residual: what the blocks have added to the tokens.
fn difference<B: Backend>(b: &B, after: &B::Tensor, before: B::Tensor) -> Result<B::Tensor> {
    b.linear_combination(&[(1.0, after), (-1.0, &before)])
}

impl<B: Backend> Around<B> {
    fn load(root: &Checkpoint<'_, B>, config: &DitConfig) -> Result<Self> {
        let linear = |name| root.linear(&[name], Role::Sensitive);
        Ok(Self {
            patch_embedding: linear("patch_embedding")?,
            text: [linear("text_embedding.0")?, linear("text_embedding.2")?],
            image: config.image_dim.map(|_| ImageEmbedding::load(root, config)).transpose()?,
            time: [linear("time_embedding.0")?, linear("time_embedding.2")?],
            time_projection: linear("time_projection.1")?,
            head: linear("head.head")?,
            head_modulation: Self::head_modulation(root, config)?,
        })
    }

    fn embed_patches(&self, b: &B, x: &B::Tensor, y: &B::Tensor) -> Result<B::Tensor> {
        let patches = b.patchify(&b.concat(&[x, y], 0)?)?;
        b.linear(Input::Plain(&patches), &self.patch_embedding, &Epilogue::default())
    }

    /// Returns the embedded rows of the prompt and one for what follows it, and how many times the last row counts.
    fn embed_text(&self, b: &B, text: &B::Tensor, config: &DitConfig) -> Result<(B::Tensor, usize)> {
        // The model was trained on 512 rows, with zeros after the prompt's, and attends to the zeros like to any other
        // row. What becomes of one zero row becomes of all of them, so one is there and counts as often.
        let &DitConfig { text_len, text_dim, .. } = config;
        let missing = text_len.checked_sub(b.shape(text)[0]).ok_or_else(|| {
            Error::Internal(format!(
                "a prompt of {} tokens for a model that reads {text_len}",
                b.shape(text)[0]
            ))
        })?;
        let text = match missing {
            0 => text.clone(),
            _ => b.concat(&[text, &b.upload(&vec![0.0; text_dim], &[1, text_dim])?], 0)?,
        };
        let [up, down] = &self.text;
        let h = b.linear(Input::Plain(&text), up, &activated(Activation::GeluTanh))?;
        Ok((b.linear(Input::Plain(&h), down, &Epilogue::default())?, missing.max(1)))
    }

    /// Returns the patches of the velocity from tokens.
    fn head(&self, b: &B, tokens: &B::Tensor, e: &B::Tensor, eps: f64) -> Result<B::Tensor> {
        let [shift, scale] = &self.head_modulation;
        let shift = &b.linear_combination(&[(1.0, shift), (1.0, e)])?;
        let scale = &b.linear_combination(&[(1.0, scale), (1.0, e)])?;
        b.linear(modulated(tokens, shift, scale, eps), &self.head, &Epilogue::default())
    }
}

impl<B: Backend> ImageEmbedding<B> {
    fn load(root: &Checkpoint<'_, B>, config: &DitConfig) -> Result<Self> {
        let linear = |name| root.linear(&[name], Role::Sensitive);
        Ok(Self {
            norms: [root.norm("img_emb.proj.0", IMAGE_EPS)?, root.norm("img_emb.proj.4", IMAGE_EPS)?],
            layers: [linear("img_emb.proj.1")?, linear("img_emb.proj.3")?],
            positions: image_positions(root, config)?,
        })
    }

    fn embed(&self, b: &B, image: &B::Tensor) -> Result<B::Tensor> {
        let ([up, down], [first, last]) = (&self.layers, &self.norms);
        let positioned = match &self.positions {
            Some(positions) if b.shape(positions) == b.shape(image) => {
                Some(b.linear_combination(&[(1.0, image), (1.0, positions)])?)
            }
            Some(positions) => {
                return Err(Error::Internal(format!(
                    "image tokens {:?} for a model with positions {:?}: it needs two pictures",
                    b.shape(image),
                    b.shape(positions)
                )));
            }
            None => None,
        };
        let image = positioned.as_ref().unwrap_or(image);
        let h = b.linear(first.of(image), up, &activated(Activation::GeluErf))?;
        let h = b.linear(Input::Plain(&h), down, &Epilogue::default())?;
        b.norm(&h, &last.norm())
    }
}

/// Returns the sinusoid of a time, `[width]`: cosines, then sines, of waves from 1 to [`THETA`]. It is computed in f64,
/// because `t` goes up to 1000.
pub fn sinusoid(t: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angles = || (0..half).map(|i| t * THETA.powf(-(i as f64) / half as f64));
    angles().map(f64::cos).chain(angles().map(f64::sin)).map(|v| v as f32).collect()
}

/// Returns how the pairs of a head are split between frames, rows and columns: a third each, rounded down, for rows and
/// columns, and the rest for frames.
pub fn rope_pairs(head_dim: usize) -> [usize; 3] {
    let third = head_dim / 6;
    [head_dim / 2 - 2 * third, third, third]
}

/// Returns cosines and sines of the rotary embedding (Su et al., "`RoFormer`", 2021) over frames, rows and columns of
/// tokens, each
/// `[tokens, head_dim / 2]`, with [`rope_pairs`] for each axis.
pub fn rope(tokens: [usize; 3], head_dim: usize) -> (Vec<f64>, Vec<f64>) {
    let pairs = rope_pairs(head_dim);
    // These are the angles of the pairs, for each axis and position.
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
