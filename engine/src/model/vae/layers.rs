//! The layers that encoder and decoder share, and what they remember from chunk to chunk.
//!
//! A video goes through in chunks. A causal convolution remembers the last frames of the chunks before; the zero frames
//! after a picture are all alike, so from some frame on every layer's input is, and its output then need not be
//! computed: a [`Chunk`] says how often its last frame repeats, and every layer computes until its own output repeats,
//! exactly.

use super::super::Checkpoint;
use crate::Result;
use crate::backend::conv::{ConvEpilogue, ConvShape, Spatial, Step, Time};
use crate::backend::{Backend, Loader};

/// A chunk of frames: some new ones, then the last frame of the video so far, repeated.
pub(super) struct Chunk<T> {
    /// The new frames, `[channels, frames, height, width]`; none if the chunk only repeats.
    pub frames: Option<T>,
    /// How many times the last frame is repeated after the new ones.
    pub repeats: usize,
}

impl<T> Chunk<T> {
    pub fn new(frames: T) -> Self {
        Self { frames: Some(frames), repeats: 0 }
    }

    /// Returns the chunk with a reference to its frames.
    pub fn as_ref(&self) -> Chunk<&T> {
        Chunk { frames: self.frames.as_ref(), repeats: self.repeats }
    }

    /// Returns the chunk with its frames replaced by as many others.
    pub fn map<U>(self, f: impl FnOnce(T) -> Result<U>) -> Result<Chunk<U>> {
        Ok(Chunk { frames: self.frames.map(f).transpose()?, repeats: self.repeats })
    }
}

/// Returns the number of frames of a volume.
pub(super) fn count<B: Backend>(b: &B, x: &B::Tensor) -> usize {
    b.shape(x)[1]
}

/// Returns the last `n` frames.
fn tail<B: Backend>(b: &B, x: &B::Tensor, n: usize) -> Result<B::Tensor> {
    let frames = count(b, x);
    if n == frames { Ok(x.clone()) } else { b.slice(x, 1, frames - n, n) }
}

/// Returns the last `n` frames in memory of their own, so that they can outlive the others.
fn last_frames<B: Backend>(b: &B, x: &B::Tensor, n: usize) -> Result<B::Tensor> {
    let last = tail(b, x, n)?;
    if n == count(b, x) { Ok(last) } else { b.contiguous(&last) }
}

/// What one causal layer remembers of the frames before the chunk.
struct History<T> {
    /// The remembered frames in order; as many as the kernel reaches back, or fewer at the start.
    past: Vec<T>,
    /// How many of the last frames are known to be equal.
    equal: usize,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self { past: Vec::new(), equal: 0 }
    }
}

/// A chunk with its past, ready for a convolution.
struct Window<T> {
    parts: Vec<T>,
    past: usize,
    new: usize,
    /// The number of repetitions of the last frame that no longer change the output.
    repeats: usize,
}

impl<T: Clone> History<T> {
    /// Takes in a chunk. As many repetitions become frames as a kernel of 3 frames needs to see only equal ones, in
    /// whole groups of `group` frames. The last `keep` frames are kept.
    fn take<B: Backend<Tensor = T>>(
        &mut self,
        b: &B,
        chunk: Chunk<T>,
        keep: usize,
        group: usize,
    ) -> Result<Window<T>> {
        const KERNEL: usize = 3;
        let fresh = chunk.frames.as_ref().map_or(0, |x| count(b, x));
        if fresh > 0 {
            self.equal = 1;
        }
        let mut extra = chunk.repeats.min(KERNEL - self.equal);
        extra += (fresh + extra).next_multiple_of(group) - (fresh + extra);
        self.equal = KERNEL.min(self.equal + chunk.repeats);

        let past = self.past.iter().map(|x| count(b, x)).sum();
        let mut parts = self.past.clone();
        parts.extend(chunk.frames);
        if let Some(last) = parts.last().filter(|_| extra > 0) {
            let last = last_frames(b, last, 1)?;
            parts.extend(std::iter::repeat_n(last, extra));
        }
        self.past.clear();
        let mut missing = keep;
        for part in parts.iter().rev() {
            let all = count(b, part);
            let n = missing.min(all);
            if n > 0 {
                self.past.insert(0, last_frames(b, part, n)?);
            }
            missing -= n;
        }
        Ok(Window { parts, past, new: fresh + extra, repeats: chunk.repeats - extra })
    }
}

/// The memory of the layers of one encoder or decoder for one video (or tile), in the order of the layers.
pub(super) struct Memory<T> {
    slots: Vec<Slot<T>>,
    next: usize,
    /// Whether chunks may repeat frames.
    repeating: bool,
}

/// The memory of one layer.
struct Slot<T> {
    history: History<T>,
    started: bool,
    /// The last frame of a residual block's input, if frames repeat.
    last: Option<T>,
}

impl<T> Memory<T> {
    /// Returns an empty memory for a video in which frames may repeat, or not.
    pub fn new(repeating: bool) -> Self {
        Self { slots: Vec::new(), next: 0, repeating }
    }

    /// Starts a new chunk at the first layer.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Returns the slot of the next layer.
    fn slot(&mut self) -> &mut Slot<T> {
        if self.next == self.slots.len() {
            self.slots.push(Slot { history: History::default(), started: false, last: None });
        }
        self.next += 1;
        &mut self.slots[self.next - 1]
    }
}

/// Runs a convolution on one frame at a time.
pub(super) fn each_frame<B: Backend>(b: &B, x: &B::Tensor, conv: &B::Conv, step: Step) -> Result<B::Tensor> {
    b.conv(&[x], 0, conv, step, &ConvEpilogue::default())
}

/// Runs a convolution over a window, if there is anything to compute.
fn windowed<B: Backend>(
    b: &B,
    window: &Window<B::Tensor>,
    conv: &B::Conv,
    step: Step,
    epilogue: &ConvEpilogue<'_, B>,
) -> Result<Option<B::Tensor>> {
    if window.new == 0 {
        return Ok(None);
    }
    let parts: Vec<_> = window.parts.iter().collect();
    b.conv(&parts, window.past, conv, step, epilogue).map(Some)
}

/// `CausalConv3d` with a 3x3x3 kernel.
pub(super) struct CausalConv<B: Backend>(B::Conv);

impl<B: Backend> CausalConv<B> {
    pub fn load(l: &Checkpoint<'_, B>, name: &str) -> Result<Self> {
        Ok(Self(l.conv(name)?))
    }

    pub fn run(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        self.run_then(b, x, memory, None)
    }

    fn run_then(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
        norm: Option<&B::ChannelNorm>,
    ) -> Result<Chunk<B::Tensor>> {
        let window = memory.slot().history.take(b, x, 2, 1)?;
        let frames = windowed(b, &window, &self.0, Step::default(), &ConvEpilogue { residual: None, norm })?;
        Ok(Chunk { frames, repeats: window.repeats })
    }
}

/// `RMS_norm`, `SiLU`, causal convolution: the end of encoder and decoder.
pub(super) struct Head<B: Backend> {
    norm: B::ChannelNorm,
    conv: CausalConv<B>,
}

impl<B: Backend> Head<B> {
    pub fn load(l: &Checkpoint<'_, B>, name: &str) -> Result<Self> {
        Ok(Self {
            norm: l.channel_norm(&format!("{name}.0"))?,
            conv: CausalConv::load(l, &format!("{name}.2"))?,
        })
    }

    pub fn run(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        let x = x.map(|x| b.channel_norm(&x, &self.norm, true))?;
        self.conv.run(b, x, memory)
    }
}

/// `ResidualBlock`: norm, `SiLU`, convolution, twice; plus the input, through a 1x1x1 convolution if the channels
/// change.
pub(super) struct ResidualBlock<B: Backend> {
    norm1: B::ChannelNorm,
    conv1: CausalConv<B>,
    norm2: B::ChannelNorm,
    conv2: CausalConv<B>,
    shortcut: Option<B::Conv>,
}

impl<B: Backend> ResidualBlock<B> {
    pub fn load(l: &Checkpoint<'_, B>, name: &str) -> Result<Self> {
        let conv1 = l.conv_weights(&format!("{name}.residual.2"))?;
        let ConvShape { outputs, inputs, .. } = conv1.shape;
        let shortcut = (inputs != outputs).then(|| l.conv(&format!("{name}.shortcut"))).transpose()?;
        Ok(Self {
            norm1: l.channel_norm(&format!("{name}.residual.0"))?,
            conv1: CausalConv(l.loader.conv(conv1)?),
            norm2: l.channel_norm(&format!("{name}.residual.3"))?,
            conv2: CausalConv::load(l, &format!("{name}.residual.6"))?,
            shortcut,
        })
    }

    pub fn run(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        let Chunk { frames, repeats } = x;
        let repeating = memory.repeating;
        let last = &mut memory.slot().last;
        let before = last.take();
        if repeating {
            *last = match &frames {
                Some(x) => Some(last_frames(b, x, 1)?),
                None => before.clone(),
            };
        }

        let normed = frames.as_ref().map(|x| b.channel_norm(x, &self.norm1, true)).transpose()?;
        let hidden = self.conv1.run_then(b, Chunk { frames: normed, repeats }, memory, Some(&self.norm2))?;
        let window = memory.slot().history.take(b, hidden, 2, 1)?;
        if window.new == 0 {
            return Ok(Chunk { frames: None, repeats: window.repeats });
        }

        // Repetitions of the input that the convolutions had to see are frames of the sum, too.
        let fresh = frames.as_ref().map_or(0, |x| count(b, x));
        let repeated = match frames.as_ref().or(before.as_ref()) {
            Some(last) if window.new > fresh => vec![tail(b, last, 1)?; window.new - fresh],
            _ => Vec::new(),
        };
        let input = concat(b, frames.into_iter().chain(repeated).collect(), 1)?;
        let residual = self.shortcut(b, input)?;
        let epilogue = ConvEpilogue { residual: Some(&residual), norm: None };
        let frames = windowed(b, &window, &self.conv2.0, Step::default(), &epilogue)?;
        Ok(Chunk { frames, repeats: window.repeats })
    }

    /// Returns the input with as many channels as the result has.
    fn shortcut(&self, b: &B, input: B::Tensor) -> Result<B::Tensor> {
        match &self.shortcut {
            Some(conv) => each_frame(b, &input, conv, Step::default()),
            None => Ok(input),
        }
    }
}

/// `AttentionBlock`: each pixel of a frame attends to all pixels of the same frame.
struct Attention<B: Backend> {
    norm: B::ChannelNorm,
    qkv: B::Conv,
    proj: B::Conv,
}

impl<B: Backend> Attention<B> {
    fn load(l: &Checkpoint<'_, B>, name: &str) -> Result<Self> {
        Ok(Self {
            norm: l.channel_norm(&format!("{name}.norm"))?,
            qkv: l.conv(&format!("{name}.to_qkv"))?,
            proj: l.conv(&format!("{name}.proj"))?,
        })
    }

    fn run(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let normed = b.channel_norm(x, &self.norm, false)?;
        let mixed = b.frame_attention(&each_frame(b, &normed, &self.qkv, Step::default())?)?;
        b.conv(&[&mixed], 0, &self.proj, Step::default(), &ConvEpilogue { residual: Some(x), norm: None })
    }
}

/// The layers at the lowest resolution.
pub(super) struct Middle<B: Backend> {
    first: ResidualBlock<B>,
    attention: Attention<B>,
    second: ResidualBlock<B>,
}

impl<B: Backend> Middle<B> {
    pub fn load(l: &Checkpoint<'_, B>, name: &str) -> Result<Self> {
        Ok(Self {
            first: ResidualBlock::load(l, &format!("{name}.0"))?,
            attention: Attention::load(l, &format!("{name}.1"))?,
            second: ResidualBlock::load(l, &format!("{name}.2"))?,
        })
    }

    pub fn run(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        let x = self.first.run(b, x, memory)?;
        let x = x.map(|x| self.attention.run(b, &x))?;
        self.second.run(b, x, memory)
    }
}

/// `Resample`: changes height and width and, with a `time_conv`, the number of frames to half or twice as much.
///
/// The first frame of a video stands alone: it is neither joined with another frame nor doubled.
pub(super) struct Resample<B: Backend> {
    spatial: B::Conv,
    time: Option<B::Conv>,
}

impl<B: Backend> Resample<B> {
    pub fn load(l: &Checkpoint<'_, B>, name: &str, with_time: bool) -> Result<Self> {
        let spatial = l.conv(&format!("{name}.resample.1"))?;
        let time = with_time.then(|| l.conv(&format!("{name}.time_conv"))).transpose()?;
        Ok(Self { spatial, time })
    }

    /// Halves height and width, then the frames.
    pub fn down(
        &self,
        b: &B,
        x: Chunk<B::Tensor>,
        memory: &mut Memory<B::Tensor>,
    ) -> Result<Chunk<B::Tensor>> {
        let step = Step { spatial: Spatial::Halve, time: Time::Same };
        let x = x.map(|x| each_frame(b, &x, &self.spatial, step))?;
        let Some(time) = &self.time else { return Ok(x) };
        let slot = memory.slot();
        let (first, rest) = if slot.started { (None, x) } else { split_first(b, x)? };
        slot.started = true;
        if let Some(first) = &first {
            slot.history.past = vec![first.clone()];
            slot.history.equal = 1;
        }
        let window = slot.history.take(b, rest, 1, 2)?;
        let step = Step { spatial: Spatial::Same, time: Time::Halve };
        let halved = windowed(b, &window, time, step, &ConvEpilogue::default())?;
        Ok(Chunk { frames: join(b, first, halved)?, repeats: window.repeats / 2 })
    }

    /// Doubles the frames, then height and width. The chunks must not repeat frames.
    pub fn up(&self, b: &B, x: Chunk<B::Tensor>, memory: &mut Memory<B::Tensor>) -> Result<Chunk<B::Tensor>> {
        let x = match &self.time {
            None => x,
            Some(time) => {
                let slot = memory.slot();
                // The first frame does not enter the history: zeros stand in its place.
                let (first, rest) = if slot.started { (None, x) } else { split_first(b, x)? };
                slot.started = true;
                let window = slot.history.take(b, rest, 2, 1)?;
                let step = Step { spatial: Spatial::Same, time: Time::Double };
                let doubled = windowed(b, &window, time, step, &ConvEpilogue::default())?;
                Chunk { frames: join(b, first, doubled)?, repeats: 2 * window.repeats }
            }
        };
        let step = Step { spatial: Spatial::Double, time: Time::Same };
        x.map(|x| each_frame(b, &x, &self.spatial, step))
    }
}

/// Splits a video's first chunk into the first frame and the rest.
#[expect(clippy::type_complexity, reason = "a pair")]
fn split_first<B: Backend>(b: &B, x: Chunk<B::Tensor>) -> Result<(Option<B::Tensor>, Chunk<B::Tensor>)> {
    let Some(frames) = x.frames else { return Ok((None, x)) };
    let (first, rest) = match count(b, &frames) {
        1 => (frames, None),
        n => (b.slice(&frames, 1, 0, 1)?, Some(b.slice(&frames, 1, 1, n - 1)?)),
    };
    Ok((Some(first), Chunk { frames: rest, repeats: x.repeats }))
}

/// Joins frames in order, where there are any.
fn join<B: Backend>(b: &B, first: Option<B::Tensor>, rest: Option<B::Tensor>) -> Result<Option<B::Tensor>> {
    match (first, rest) {
        (Some(first), Some(rest)) => concat(b, vec![first, rest], 1).map(Some),
        (first, rest) => Ok(first.or(rest)),
    }
}

/// Joins parts in order along `axis`.
pub(super) fn concat<B: Backend>(b: &B, mut parts: Vec<B::Tensor>, axis: usize) -> Result<B::Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => b.concat(&parts.iter().collect::<Vec<_>>(), axis),
    }
}
