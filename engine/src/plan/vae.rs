//! The VAE's convolutions, one after the other as the model runs them, with how much each computes and remembers.

use crate::dims::VaeConfig;

/// One convolution over a whole video.
pub(super) struct Conv {
    inputs: usize,
    outputs: usize,
    /// Elements of the kernel.
    kernel: usize,
    /// Pixels of a frame of its result.
    pixels: usize,
    /// Frames of the result that are computed.
    frames: usize,
    /// Frames of its input that are kept for the next chunk.
    past: usize,
}

impl Conv {
    pub fn flops(&self) -> f64 {
        2.0 * (self.inputs * self.outputs * self.kernel) as f64 * self.pixels as f64 * self.frames as f64
    }

    /// Values that are kept from chunk to chunk.
    pub fn kept(&self) -> usize {
        self.past * self.inputs * self.pixels
    }

    /// Values of input and result together, of chunks of `frames` frames at full size.
    pub fn live(&self, chunk: usize) -> usize {
        (self.inputs + self.outputs) * self.pixels * self.frames.min(chunk)
    }
}

/// All convolutions, and the floating-point operations of the attention between them.
pub(super) struct Walk {
    pub convs: Vec<Conv>,
    pub attention: f64,
}

impl Walk {
    pub fn flops(&self) -> f64 {
        self.attention + self.convs.iter().map(Conv::flops).sum::<f64>()
    }

    fn new() -> Self {
        Self { convs: Vec::new(), attention: 0.0 }
    }

    fn add(
        &mut self,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        pixels: usize,
        frames: usize,
        past: usize,
    ) {
        self.convs.push(Conv { inputs, outputs, kernel, pixels, frames, past });
    }

    /// A causal 3x3x3 convolution. Of frames that rest from some point on, it computes two more.
    fn causal(&mut self, channels: [usize; 2], pixels: usize, time: &mut Time) {
        time.moving = time.all.min(time.moving + 2);
        self.add(channels, 27, pixels, time.moving, 2);
    }

    fn residual(&mut self, [from, to]: [usize; 2], pixels: usize, time: &mut Time) {
        self.causal([from, to], pixels, time);
        self.causal([to, to], pixels, time);
        if from != to {
            self.add([from, to], 1, pixels, time.moving, 0);
        }
    }

    fn middle(&mut self, width: usize, pixels: usize, time: &mut Time) {
        self.residual([width; 2], pixels, time);
        self.add([width, 3 * width], 1, pixels, time.moving, 0);
        self.add([width; 2], 1, pixels, time.moving, 0);
        self.attention += 4.0 * (pixels as f64).powi(2) * width as f64 * time.moving as f64;
        self.residual([width; 2], pixels, time);
    }
}

/// Frames: all of them, and those up to the first from which on they are all equal.
struct Time {
    all: usize,
    moving: usize,
}

/// The encoder on a picture and black frames after it; latents of `[t, h, w]` come out.
pub(super) fn encoder(c: &VaeConfig, [t, h, w]: [usize; 3]) -> Walk {
    let mut walk = Walk::new();
    let mut pixels = 64 * h * w;
    let all = 4 * t - 3;
    let mut time = Time { all, moving: all.min(2) };
    walk.causal([3, c.base], pixels, &mut time);
    let mut width = c.base;
    for (stage, out) in c.channels().into_iter().enumerate() {
        walk.residual([width, out], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        width = out;
        if stage < 3 {
            pixels /= 4;
            walk.add([out; 2], 9, pixels, time.moving, 0);
            if stage > 0 {
                // The first frame stands alone, then pairs; and one pair of equal frames that ends the movement.
                time.all = time.all.div_ceil(2);
                time.moving = time.all.min(2 + (time.moving - 1).div_ceil(2));
                walk.add([out; 2], 3, pixels, time.moving - 1, 1);
            }
        }
    }
    walk.middle(width, pixels, &mut time);
    walk.causal([width, 2 * c.z_dim], pixels, &mut time);
    walk.add([2 * c.z_dim, c.z_dim], 1, pixels, time.moving, 0);
    walk
}

/// The decoder on latents of `[t, h, w]`.
pub(super) fn decoder(c: &VaeConfig, [t, h, w]: [usize; 3]) -> Walk {
    let mut walk = Walk::new();
    let mut pixels = h * w;
    let mut time = Time { all: t, moving: t };
    let channels = c.channels();
    let mut width = channels.last().copied().unwrap_or(c.base);
    walk.add([c.z_dim; 2], 1, pixels, t, 0);
    walk.causal([c.z_dim, width], pixels, &mut time);
    walk.middle(width, pixels, &mut time);
    for (stage, out) in channels.into_iter().rev().enumerate() {
        walk.residual([width, out], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        width = out;
        if stage < 3 {
            if stage < 2 {
                walk.add([out, 2 * out], 3, pixels, time.all - 1, 2);
                time.all = 2 * time.all - 1;
                time.moving = time.all;
            }
            pixels *= 4;
            width = out / 2;
            walk.add([out, width], 9, pixels, time.all, 0);
        }
    }
    walk.causal([c.base, 3], pixels, &mut time);
    walk
}
