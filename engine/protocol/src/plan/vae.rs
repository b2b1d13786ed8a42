//! The VAE's layers in the order in which the model runs them: what each computes, keeps alive, and remembers.
//!
//! Both networks have two parts. The layers at the latent's resolution run over the whole frame, for all latent frames;
//! the others run tile by tile, each tile for all latent frames. What the parts hand over, the features, is there for
//! all latent frames at once. A frame that is not divided is one tile.

use super::Setup;
use crate::dims::VaeConfig;
use crate::profile::{Backend, Precision};
use crate::request::Tiling;
use crate::tiles::{Grid, Halo, Tile};

/// The bytes of activations that tiles may take if nothing else asks for the memory. With the weights in bf16, and an
/// eighth for gaps between allocations, that is less than 2 GiB. At 1280x720 the halos are then a seventh of the work.
const ROOM: u64 = 3 << 29;

/// The shortest side of tiles that a plan chooses, in latent pixels. Shorter ones take hardly less memory, and their halos
/// are most of their work.
pub const SMALLEST_TILE: usize = 8;

/// The shortest side of tiles for which weights give up no room, in latent pixels: at 1280x720 halos are then 1.29 times
/// the work.
pub(super) const CHEAP_TILE: usize = 32;

/// The longest side of tiles that is tried, and the step from one side to the next.
const SIDES: [usize; 2] = [128, 4];

/// How a backend stores volumes and what it needs beside them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Volumes {
    /// The bytes of a value.
    bytes: usize,
    /// How many times the largest moment is alive.
    times: usize,
    /// Whether kernels read copies of their input that are half as large again.
    copies: bool,
    /// Whether the working memory is the host's, where the finished frames are, too.
    host: bool,
}

impl Volumes {
    /// Plain volumes of f32.
    pub const F32: Self = Self { bytes: 4, times: 1, copies: false, host: false };

    pub fn of(setup: &Setup) -> Self {
        match (setup.backend, setup.precision.vae) {
            (Backend::Cpu, _) => Self { times: 2, host: true, ..Self::F32 },
            (Backend::Cuda, Precision::Fp32) => Self { copies: true, ..Self::F32 },
            (Backend::Cuda, _) => Self { bytes: 2, ..Self::F32 },
        }
    }

    fn size(&self, values: usize) -> u64 {
        self.bytes as u64 * values as u64
    }
}

/// The cost of encoding a picture, or of decoding a video.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    pub flops: f64,
    /// The bytes of activations at the largest moment.
    pub bytes: u64,
}

/// Returns the side of the VAE's tiles for a user's choice, in latent pixels; `None` if the frame is not divided.
pub fn tile(c: &VaeConfig, latent: [usize; 3], tiling: Tiling, setup: &Setup) -> Option<usize> {
    match tiling {
        Tiling::Whole => None,
        Tiling::Tiled => largest_tile(c, latent, setup, ROOM).or(Some(SMALLEST_TILE)),
    }
    .filter(|&side| latent[1].max(latent[2]) > side)
}

/// Returns the longest side of tiles, in latent pixels, with which the activations of encoding and of decoding each fit
/// in `room` bytes; `None` if even the smallest tiles need more. A side may be longer than the frame.
pub fn largest_tile(c: &VaeConfig, latent: [usize; 3], setup: &Setup, room: u64) -> Option<usize> {
    let [longest, step] = SIDES;
    let mut sides = (SMALLEST_TILE..=longest).rev().step_by(step);
    sides.find(|&side| vae_activations(c, latent, Some(side), setup).into_iter().all(|bytes| bytes <= room))
}

/// Returns the bytes of activations of encoding and of decoding, in tiles of a side in latent pixels.
pub fn vae_activations(c: &VaeConfig, latent: [usize; 3], tile: Option<usize>, setup: &Setup) -> [u64; 2] {
    let volumes = Volumes::of(setup);
    [encoder(c, latent, tile, volumes, false).bytes, decoder(c, latent, tile, volumes).bytes]
}

/// The totals of the layers of one pass: over the whole frame, or over one tile.
struct Walk {
    flops: f64,
    /// The values that are kept from chunk to chunk: the frames that causal kernels reach back to and, where frames
    /// repeat, the last input frame of each residual block.
    kept: usize,
    /// The most values that are alive beside the kept ones.
    live: usize,
    repeating: bool,
    /// Whether other frames come after the repeated ones: a last picture.
    resumed: bool,
    volumes: Volumes,
}

/// Returns the channels of a volume as they are stored.
fn padded(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

impl Walk {
    fn new(repeating: bool, volumes: Volumes) -> Self {
        Self { flops: 0.0, kept: 0, live: 0, repeating, resumed: false, volumes }
    }

    /// Returns the values at the largest moment, each as often as the backend has it.
    fn peak(&self) -> usize {
        self.kept + self.volumes.times * self.live
    }

    /// Adds a convolution that computes so many frames of so many pixels.
    fn add(&mut self, [inputs, outputs]: [usize; 2], kernel: usize, pixels: usize, frames: usize) {
        self.flops += 2.0 * (inputs * outputs * kernel) as f64 * pixels as f64 * frames as f64;
    }

    /// Notes that so many values are alive at once.
    fn moment(&mut self, values: usize) {
        self.live = self.live.max(values);
    }

    /// Notes a kernel that reaches back to so many frames; returns the values of those of the previous chunk, which are
    /// still alive while it runs. Where frames repeat to the end, only the second chunk has many, and one frame precedes it.
    fn remember(&mut self, frames: usize, channels: usize, pixels: usize, time: &Time) -> usize {
        let values = frames.min(time.all) * padded(channels) * pixels;
        self.kept += values;
        if self.repeating && !self.resumed { values / 2 } else { values }
    }

    /// Adds a causal 3x3x3 convolution; returns the values of its past and of its copies. Where frames repeat from some
    /// point on, the convolution computes two more of them.
    fn causal(&mut self, channels: [usize; 2], pixels: usize, time: &mut Time) -> usize {
        time.moving = time.all.min(time.moving + 2);
        self.add(channels, 27, pixels, time.moving);
        let past = self.remember(2, channels[0], pixels, time);
        let input = time.chunk() * pixels * padded(channels[0]);
        let past = past + if self.volumes.copies { (input + past) * 3 / 2 } else { 0 };
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
        self.flops += 4.0 * (pixels as f64).powi(2) * width as f64 * time.moving as f64;
        // Alive are the input, its norm, and queries, keys and values; then the result takes the place of the norm.
        self.moment(6 * time.chunk() * pixels * width);
        self.residual([width; 2], pixels, time);
    }
}

/// The numbers of frames: of all, of those up to the first from which all are equal, and of those in a chunk.
#[derive(Clone, Copy)]
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

/// Counts the encoder on a picture and the black frames after it, in tiles of a side; it gives latents of `[t, h, w]`.
pub(super) fn encoder(
    c: &VaeConfig,
    [t, h, w]: [usize; 3],
    side: Option<usize>,
    volumes: Volumes,
    last: bool,
) -> Cost {
    let frame = h * w;
    let all = 4 * t - 3;
    let first = Time { all, moving: all.min(2), chunk: 4 };
    let (mut flops, mut peak, mut time) = (0.0, 0, first);
    for tile in Grid::new([h, w], side).tiles() {
        let mut walk = Walk { resumed: last, ..Walk::new(true, volumes) };
        time = first;
        encode_tile(&mut walk, c, &tile, &mut time);
        (flops, peak) = (flops + walk.flops, peak.max(walk.peak()));
    }
    let [.., from, width] = c.channels()[..] else { return Cost::default() };
    // All features are there in the end and, while the tiles of one frame are joined, that frame twice.
    let features = (time.moving + 1) * from * frame;
    let mut walk = Walk { resumed: last, ..Walk::new(true, volumes) };
    walk.residual([from, width], frame, &mut time);
    walk.residual([width; 2], frame, &mut time);
    walk.middle(width, frame, &mut time);
    walk.causal([width, 2 * c.z_dim], frame, &mut time);
    walk.add([2 * c.z_dim, c.z_dim], 1, frame, time.moving);
    // These are the picture and a black frame, and the latents, in f32.
    let pictures = 4 * (2 * 3 * 64 * frame + c.z_dim * t * frame) as u64;
    let bytes = pictures + volumes.size(features + peak.max(walk.peak()));
    Cost { flops: flops + walk.flops, bytes }
}

/// Counts the encoder's layers above the latent's resolution on one tile.
fn encode_tile(walk: &mut Walk, c: &VaeConfig, tile: &Tile, time: &mut Time) {
    let [input, halves @ ..] = Halo::ENCODER;
    let mut pixels = tile.area(8, input).pixels();
    walk.causal([3, c.base], pixels, time);
    let mut width = c.base;
    for (stage, (out, halo)) in c.channels().into_iter().zip(halves).enumerate() {
        walk.residual([width, out], pixels, time);
        walk.residual([out; 2], pixels, time);
        width = out;
        let area = tile.area(8 >> stage, halo);
        let cut = area.pixels();
        if cut < pixels {
            walk.moment(time.chunk() * out * (pixels + cut));
        }
        pixels = area.halved().pixels();
        walk.add([out; 2], 9, pixels, time.moving);
        walk.moment(time.chunk() * out * (cut + pixels));
        if stage > 0 {
            walk.remember(1, out, pixels, time);
            // The first frame stands alone, then come pairs, and last one pair of equal frames.
            time.all = time.all.div_ceil(2);
            time.moving = time.all.min(2 + (time.moving - 1).div_ceil(2));
            time.chunk /= 2;
            walk.add([out; 2], 3, pixels, time.moving - 1);
        }
    }
}

/// Counts the decoder on latents of `[t, h, w]`, in tiles of a side.
pub(super) fn decoder(c: &VaeConfig, [t, h, w]: [usize; 3], side: Option<usize>, volumes: Volumes) -> Cost {
    let frame = h * w;
    let mut time = Time { all: t, moving: t, chunk: 1 };
    let width = c.channels().last().copied().unwrap_or(c.base);
    let mut walk = Walk::new(false, volumes);
    walk.add([c.z_dim; 2], 1, frame, t);
    walk.causal([c.z_dim, width], frame, &mut time);
    walk.middle(width, frame, &mut time);
    for _ in 0..3 {
        walk.residual([width; 2], frame, &mut time);
    }
    // The features of all latent frames, and what they are made from.
    let features = t * frame * (width + padded(c.z_dim));
    let (mut flops, mut peak) = (walk.flops, walk.peak());
    let grid = Grid::new([h, w], side);
    for tile in grid.tiles() {
        let mut walk = Walk::new(false, volumes);
        decode_tile(&mut walk, c, &tile, time);
        (flops, peak) = (flops + walk.flops, peak.max(walk.peak()));
    }
    let mut bytes = volumes.size(features + peak);
    if volumes.host && grid.counts() != [1, 1] {
        // The frames of the whole video wait in 8 bits for the last tile.
        bytes += 3 * 64 * (frame * (4 * t - 3)) as u64;
    }
    Cost { flops, bytes }
}

/// Counts the decoder's layers from its first doubling on, on one tile.
fn decode_tile(walk: &mut Walk, c: &VaeConfig, tile: &Tile, mut time: Time) {
    let channels: Vec<usize> = c.channels().into_iter().rev().collect();
    let mut pixels = tile.area(1, Halo::DECODER[0]).pixels();
    for (step, (&from, halo)) in channels.iter().zip(Halo::DECODER).enumerate() {
        let area = tile.area(1 << step, halo);
        let cut = area.pixels();
        if step == 0 || cut < pixels {
            walk.moment(time.chunk() * from * (pixels + cut));
        }
        if step < 2 {
            walk.add([from, 2 * from], 3, cut, time.all - 1);
            let past = walk.remember(2, from, cut, &time);
            walk.moment(3 * time.chunk() * from * cut + past);
            time.all = 2 * time.all - 1;
            time.moving = time.all;
            time.chunk *= 2;
        }
        pixels = area.doubled().pixels();
        let width = from / 2;
        walk.add([from, width], 9, pixels, time.all);
        let input = time.chunk() * cut * from;
        walk.moment(time.chunk() * pixels * width + if walk.volumes.copies { input * 5 / 2 } else { input });
        let out = channels[step + 1];
        walk.residual([width, out], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
        walk.residual([out; 2], pixels, &mut time);
    }
    walk.causal([c.base, 3], pixels, &mut time);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use crate::recipe::Recipe;

    /// The latents of 81 frames of 832x480 and of 1280x720.
    const LATENTS: [[usize; 3]; 2] = [[21, 60, 104], [21, 90, 160]];

    fn of_profile(name: &str) -> (VaeConfig, Setup) {
        let profile = Profile::built_in(name).expect("it comes with animd");
        (Recipe::wan21_i2v_14b().vae.config, Setup::from(&profile))
    }

    #[test]
    fn tiles_take_at_most_2_gib_and_1_4_times_the_work() {
        let (c, setup) = of_profile("rtx4090");
        let weights = 300 << 20;
        for latent in LATENTS {
            let side = tile(&c, latent, Tiling::Tiled, &setup);
            assert!(side.is_some());
            let flops = |side| {
                [encoder(&c, latent, side, Volumes::F32, false), decoder(&c, latent, side, Volumes::F32)]
            };
            for (tiled, whole) in flops(side).into_iter().zip(flops(None)) {
                let ratio = tiled.flops / whole.flops;
                assert!((1.0..1.2).contains(&ratio), "{latent:?} in tiles of {side:?}: {ratio}");
            }
            for bytes in vae_activations(&c, latent, side, &setup) {
                assert!(bytes + bytes / 8 + weights < 2 << 30, "{latent:?} in tiles of {side:?}: {bytes}");
            }
        }
    }

    #[test]
    fn the_longest_side_that_fits_is_chosen() {
        let (c, setup) = of_profile("rtx4090");
        let [latent, large] = LATENTS;
        let takes =
            |side| vae_activations(&c, latent, Some(side), &setup).into_iter().max().expect("there are two");
        let mut last = usize::MAX;
        for room in [4 << 30, 1 << 30, 600 << 20, 300 << 20] {
            let side = largest_tile(&c, latent, &setup, room).expect("it fits");
            assert!(takes(side) <= room && side <= last);
            assert!(side == SIDES[0] || takes(side + SIDES[1]) > room, "{side} for {room} bytes");
            last = side;
        }
        assert_eq!(largest_tile(&c, latent, &setup, 100 << 20), None);
        // Somewhat more than the features and the largest layer at the latent's resolution.
        assert!(largest_tile(&c, large, &setup, 520 << 20).is_some());
        assert_eq!(tile(&c, latent, Tiling::Whole, &setup), None);
        assert_eq!(tile(&c, [21, 16, 24], Tiling::Tiled, &setup), None, "a frame that fits whole");
    }

    #[test]
    fn halos_are_counted_as_work() {
        let (c, _) = of_profile("rtx4090");
        let [t, h, w] = LATENTS[0];
        // The six convolutions of 96 channels at the full resolution, counted by hand, are two fifths of all work.
        let finest = 2.0 * 27.0 * (96 * 96 * 6 * (4 * t - 3) * 64 * h * w) as f64;
        let whole = decoder(&c, LATENTS[0], None, Volumes::F32).flops;
        assert!((0.3..0.5).contains(&(finest / whole)), "{}", finest / whole);
        // Two tiles side by side compute the halo between them twice: 8 pixels of each at the finest resolution.
        let halves = decoder(&c, LATENTS[0], Some(64), Volumes::F32).flops;
        let more = (halves - whole) / whole;
        assert!((16.0 / (8 * w) as f64..0.06).contains(&more), "{more}");
    }
}
