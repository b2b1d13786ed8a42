//! The VAE's layers in the order in which the model runs them: what each computes, keeps alive, and remembers.

use super::Setup;
use crate::dims::{TILE, VaeConfig};
use crate::request::Tiling;

/// Returns the side of the VAE's tiles for a user's choice, in latent pixels; `None` if the frame is not divided.
pub fn tile(_: &VaeConfig, latent: [usize; 3], tiling: Tiling, _: &Setup) -> Option<usize> {
    (tiling == Tiling::Tiled).then_some(TILE / 8).filter(|&side| latent[1].max(latent[2]) > side)
}

/// Returns the longest side of tiles, in latent pixels, with which the activations of encoding and of decoding each fit
/// in `room` bytes; `None` if even the smallest tiles need more. A side may be longer than the frame.
pub fn largest_tile(_: &VaeConfig, _: [usize; 3], _: &Setup, _: u64) -> Option<usize> {
    Some(TILE / 8)
}

/// One convolution over a whole video.
struct Conv {
    inputs: usize,
    outputs: usize,
    /// The number of elements of the kernel.
    kernel: usize,
    /// The number of pixels in a frame of the result.
    pixels: usize,
    /// The number of frames of the result that are computed.
    frames: usize,
}

impl Conv {
    fn flops(&self) -> f64 {
        2.0 * (self.inputs * self.outputs * self.kernel) as f64 * self.pixels as f64 * self.frames as f64
    }
}

/// The totals of all layers.
#[derive(Default)]
pub(super) struct Walk {
    convs: Vec<Conv>,
    /// The floating-point operations of attention.
    attention: f64,
    /// The values that are kept from chunk to chunk: the frames that causal kernels reach back to and, where frames
    /// repeat, the last input frame of each residual block.
    pub kept: usize,
    /// The most values that are alive beside the kept ones.
    pub live: usize,
    repeating: bool,
    /// Whether kernels read copies of their input that are half as large again.
    copies: bool,
}

/// Returns the channels of a volume as they are stored.
fn padded(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

impl Walk {
    pub fn flops(&self) -> f64 {
        self.attention + self.convs.iter().map(Conv::flops).sum::<f64>()
    }

    fn add(&mut self, [inputs, outputs]: [usize; 2], kernel: usize, pixels: usize, frames: usize) {
        self.convs.push(Conv { inputs, outputs, kernel, pixels, frames });
    }

    /// Notes that so many values are alive at once.
    fn moment(&mut self, values: usize) {
        self.live = self.live.max(values);
    }

    /// Notes a kernel that reaches back to so many frames. While it runs, those of the previous chunk are still alive.
    fn remember(&mut self, frames: usize, channels: usize, pixels: usize, time: &Time) -> usize {
        let values = frames.min(time.all) * padded(channels) * pixels;
        self.kept += values;
        values
    }

    /// Adds a causal 3x3x3 convolution; returns the values of its past and of its copies. Where frames repeat from some
    /// point on, the convolution computes two more of them.
    fn causal(&mut self, channels: [usize; 2], pixels: usize, time: &mut Time) -> usize {
        time.moving = time.all.min(time.moving + 2);
        self.add(channels, 27, pixels, time.moving);
        let past = self.remember(2, channels[0], pixels, time);
        let input = time.chunk() * pixels * padded(channels[0]);
        let past = past + if self.copies { (input + past) * 3 / 2 } else { 0 };
        self.moment(input + time.chunk() * pixels * padded(channels[1]) + past);
        past
    }

    fn residual(&mut self, [from, to]: [usize; 2], pixels: usize, time: &mut Time) {
        let frame = time.chunk() * pixels;
        // A residual block also keeps the last frame of the last chunk.
        let before = if self.repeating { from * pixels } else { 0 };
        self.kept += before;
        // Alive are the input, its norm and the first result; then the input or its shortcut, and both results.
        let past = self.causal([from, to], pixels, time) + before;
        self.moment(frame * (2 * from + to) + past);
        let past = self.causal([to, to], pixels, time) + before;
        self.moment(frame * 3 * to + past);
        if from != to {
            self.add([from, to], 1, pixels, time.moving);
            self.moment(frame * (from + 2 * to) + past);
        }
    }

    fn middle(&mut self, width: usize, pixels: usize, time: &mut Time) {
        self.residual([width; 2], pixels, time);
        self.add([width, 3 * width], 1, pixels, time.moving);
        self.add([width; 2], 1, pixels, time.moving);
        self.attention += 4.0 * (pixels as f64).powi(2) * width as f64 * time.moving as f64;
        // Alive are the input, its norm, and queries, keys and values; then the result takes the place of the norm.
        self.moment(6 * time.chunk() * pixels * width);
        self.residual([width; 2], pixels, time);
    }
}

/// The numbers of frames: of all, of those up to the first from which all are equal, and of those in a chunk.
struct Time {
    all: usize,
    moving: usize,
    chunk: usize,
}

impl Time {
    fn chunk(&self) -> usize {
        self.chunk.min(self.all)
    }
}

/// Counts the encoder on a picture and the black frames after it; it gives latents of `[t, h, w]`.
pub(super) fn encoder(c: &VaeConfig, [t, h, w]: [usize; 3], copies: bool) -> Walk {
    let mut walk = Walk { repeating: true, copies, ..Walk::default() };
    let mut pixels = 64 * h * w;
    let all = 4 * t - 3;
    let mut time = Time { all, moving: all.min(2), chunk: 4 };
    walk.causal([3, c.base], pixels, &mut time);
    let mut width = c.base;
    for (stage, out) in c.channels().into_iter().enumerate() {
        walk.residual([width, out], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        width = out;
        if stage < 3 {
            pixels /= 4;
            walk.add([out; 2], 9, pixels, time.moving);
            walk.moment(time.chunk() * out * 5 * pixels);
            if stage > 0 {
                walk.remember(1, out, pixels, &time);
                // The first frame stands alone, then come pairs, and last one pair of equal frames.
                time.all = time.all.div_ceil(2);
                time.moving = time.all.min(2 + (time.moving - 1).div_ceil(2));
                time.chunk /= 2;
                walk.add([out; 2], 3, pixels, time.moving - 1);
            }
        }
    }
    walk.middle(width, pixels, &mut time);
    walk.causal([width, 2 * c.z_dim], pixels, &mut time);
    walk.add([2 * c.z_dim, c.z_dim], 1, pixels, time.moving);
    walk
}

/// Counts the decoder on latents of `[t, h, w]`.
pub(super) fn decoder(c: &VaeConfig, [t, h, w]: [usize; 3], copies: bool) -> Walk {
    let mut walk = Walk { copies, ..Walk::default() };
    let mut pixels = h * w;
    let mut time = Time { all: t, moving: t, chunk: 1 };
    let channels = c.channels();
    let mut width = channels.last().copied().unwrap_or(c.base);
    walk.add([c.z_dim; 2], 1, pixels, t);
    walk.causal([c.z_dim, width], pixels, &mut time);
    walk.middle(width, pixels, &mut time);
    for (stage, out) in channels.into_iter().rev().enumerate() {
        walk.residual([width, out], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        width = out;
        if stage < 3 {
            if stage < 2 {
                walk.add([out, 2 * out], 3, pixels, time.all - 1);
                walk.remember(2, out, pixels, &time);
                time.all = 2 * time.all - 1;
                time.moving = time.all;
                time.chunk *= 2;
            }
            pixels *= 4;
            width = out / 2;
            walk.add([out, width], 9, pixels, time.all);
            let input = time.chunk() * pixels * out / 4;
            walk.moment(time.chunk() * pixels * width + if copies { input * 5 / 2 } else { input });
        }
    }
    walk.causal([c.base, 3], pixels, &mut time);
    walk
}
