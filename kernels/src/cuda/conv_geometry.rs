//! The geometry of a convolution: volumes and layers, the tiles and the result of a launch, and how the kernel walks over voxels
//! and taps.
//!
//! The tests follow that walk with the geometry that the launcher computes, and compare it with the convolution's definition.

use cudarc::driver::DeviceRepr;
use cudarc::driver::sys::CUdeviceptr;

use super::Error;
use super::rows::refuse;
use super::tiles::Shape;
use crate::{Family, Spatial, Time};

pub(super) const KERNEL: &str = "conv";
/// The most parts of a launch, and after it the channels of a block of K, as `conv_walk.cuh` has them.
pub(super) const PARTS: usize = 8;
pub(super) const CHANNELS: u32 = 64;

pub(super) const FEW: Shape = Shape { parts: 2, columns: 16, cluster: 2 };
pub(super) const TALL: Shape = Shape { parts: 2, columns: 96, cluster: 2 };
pub(super) const WIDE: Shape = Shape { parts: 1, columns: 192, cluster: 2 };
pub(super) const SYNC_FEW: Shape = Shape { parts: 1, columns: 16, cluster: 1 };
pub(super) const SYNC_TALL: Shape = Shape { parts: 1, columns: 96, cluster: 1 };
pub(super) const SYNC_WIDE: Shape = Shape { parts: 1, columns: 192, cluster: 1 };

/// A volume `[frames, height, width, channels]` in device memory, bf16, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Device address of the first element, a multiple of 16.
    pub address: CUdeviceptr,
    /// Frames.
    pub frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Channels, a multiple of 8.
    pub channels: usize,
}

/// A convolution's weight in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvLayer {
    /// `[outputs, kt, kh, kw, channels]` bf16, or what [`fold_for_doubling`] makes of it. Channels and outputs may be filled
    /// up with zeros.
    pub weight: CUdeviceptr,
    /// `[outputs]` f32.
    pub bias: CUdeviceptr,
    /// Channels of the result: a multiple of 4, or of 8 if another convolution will read the result as bf16.
    pub outputs: usize,
    /// Channels of the input: a multiple of 8, like the volumes' channels.
    pub channels: usize,
    /// Extents of the kernel over time, height and width, 1 or 3 each, before folding.
    pub kernel: [usize; 3],
}

/// A convolution's extents and steps: `conv::Geometry` of `conv_walk.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Geometry {
    pub starts: [i32; PARTS + 1],
    pub frames: i32,
    pub height: i32,
    pub width: i32,
    pub patch_height_log2: i32,
    pub patch_width_log2: i32,
    pub patches_across: i32,
    pub patch_pairs: i32,
    pub channels: i32,
    pub outputs: i32,
    pub taps_t: i32,
    pub taps_y: i32,
    pub taps_x: i32,
    pub frame_step: i32,
    pub frames_before: i32,
    pub step: i32,
    pub x0: i32,
    pub y0: i32,
    pub out_step: i32,
    pub out_x: i32,
    pub out_y: i32,
    pub out_height: i32,
    pub out_width: i32,
    pub frame_out: i32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for Geometry {}

/// Returns the shape of the tiles of a convolution to so many channels.
pub(super) fn shape(family: Family, outputs: usize) -> Shape {
    let [few, tall, wide] = match family {
        Family::Wgmma => [FEW, TALL, WIDE],
        Family::MmaSync => [SYNC_FEW, SYNC_TALL, SYNC_WIDE],
    };
    match outputs {
        0..=16 => few,
        17..=96 => tall,
        _ => wide,
    }
}

/// Returns the frames, height, width and channels of a convolution's result, which is a [`Volume`].
///
/// # Errors
///
/// [`Error::Argument`] if the arguments do not go together.
pub(super) fn result(
    parts: &[Volume],
    past: usize,
    layer: &ConvLayer,
    spatial: Spatial,
    time: Time,
) -> Result<[usize; 4], Error> {
    let Some(&first) = parts.first() else {
        return refuse(KERNEL, "parts", "there are none");
    };
    let Volume { height, width, channels, .. } = first;
    let frames: usize = parts.iter().map(|p| p.frames).sum();
    let new = frames.saturating_sub(past);
    let alike =
        parts.iter().all(|p| [p.height, p.width, p.channels] == [height, width, channels] && p.frames > 0);
    if !alike || parts.len() > PARTS || channels != layer.channels || new * height * width == 0 {
        return refuse(
            KERNEL,
            "parts",
            format!("{parts:?}, {past} frames of them past, for {} channels", layer.channels),
        );
    }
    let (height, width) = match spatial {
        Spatial::Same => (height, width),
        Spatial::Halve if height % 2 + width % 2 == 0 => (height / 2, width / 2),
        Spatial::Halve => return refuse(KERNEL, "parts", format!("{height}x{width} cannot be halved")),
        Spatial::Double => (2 * height, 2 * width),
    };
    match time {
        Time::Same => Ok([new, height, width, layer.outputs]),
        Time::Halve if new.is_multiple_of(2) => Ok([new / 2, height, width, layer.outputs]),
        Time::Halve => refuse(KERNEL, "parts", format!("{new} new frames cannot be halved")),
        Time::Double => Ok([2 * new, height, width, layer.outputs / 2]),
    }
}

/// Returns the kernel's geometry; `corner` is the number of one of the four pixels that doubling makes of one.
pub(super) fn geometry(
    shape: Shape,
    parts: &[Volume],
    past: usize,
    layer: &ConvLayer,
    spatial: Spatial,
    time: Time,
    corner: usize,
) -> Geometry {
    let Volume { height, width, .. } = parts[0];
    let mut starts = [0; PARTS + 1];
    for i in 0..PARTS {
        starts[i + 1] = starts[i] + parts.get(i).map_or(0, |p| p.frames as i32);
    }
    let new = starts[PARTS] - past as i32;
    let [kt, kh, kw] = layer.kernel.map(|n| n as i32);
    let (out_y, out_x) = ((corner / 2) as i32, (corner % 2) as i32);
    // When pixels are doubled, three rows of them lie in two rows of the input: for the upper pixels in the row before
    // and their own.
    let (taps_y, taps_x, y0, x0, step, out_step) = match spatial {
        Spatial::Same => (kh, kw, -(kh / 2), -(kw / 2), 1, 1),
        Spatial::Halve => (kh, kw, 0, 0, 2, 1),
        Spatial::Double => (2, 2, out_y - 1, out_x - 1, 1, 2),
    };
    let (rows, columns) = (height as i32 / step, width as i32 / step);
    let (frames, frame_step, frame_out) = match time {
        Time::Same => (new, 1, 1),
        Time::Halve => (new / 2, 2, 1),
        Time::Double => (new, 1, 2),
    };
    let (down_log2, across_log2) = patch(shape.rows(), rows as usize, columns as usize);
    let patches_across = (columns + (1 << across_log2) - 1) >> across_log2;
    let patches = patches_across * ((rows + (1 << down_log2) - 1) >> down_log2);
    Geometry {
        starts,
        frames,
        height: rows,
        width: columns,
        patch_height_log2: down_log2,
        patch_width_log2: across_log2,
        patches_across,
        patch_pairs: (patches + shape.cluster as i32 - 1) / shape.cluster as i32,
        channels: layer.channels as i32,
        outputs: layer.outputs as i32,
        taps_t: kt,
        taps_y,
        taps_x,
        frame_step,
        frames_before: kt - past as i32 - frame_step,
        step,
        x0,
        y0,
        out_step,
        out_x,
        out_y,
        out_height: rows * out_step,
        out_width: columns * out_step,
        frame_out,
    }
}

/// Returns the height and the width, as powers of 2, of the patch of so many pixels that covers a frame with the least
/// waste. Of equally good patches it takes the squarest, since neighbouring taps then share most.
fn patch(pixels: usize, height: usize, width: usize) -> (i32, i32) {
    let total = pixels.ilog2();
    let cost = |across: u32| {
        let down = total - across;
        let area = height.next_multiple_of(1 << down) * width.next_multiple_of(1 << across);
        (area, across.abs_diff(down), across)
    };
    let across = (1..total).min_by_key(|&across| cost(across)).unwrap_or(total / 2);
    ((total - across) as i32, across as i32)
}

/// Returns the weight of a 3x3 convolution over doubled pixels as four 2x2 convolutions over the pixels themselves, one
/// for each of the four that a pixel becomes: rows and columns of the kernel that meet the same pixel are added up.
/// `[outputs, kt, 3, 3, channels]` becomes `[4, outputs, kt, 2, 2, channels]`.
///
/// # Panics
///
/// If `weight` is no whole number of 3x3 kernels of `channels`.
pub fn fold_for_doubling(weight: &[f32], channels: usize) -> Vec<f32> {
    let kernels = weight.chunks_exact(9 * channels);
    assert!(channels > 0 && kernels.remainder().is_empty(), "a weight of {} for {channels}", weight.len());
    let mut folded = Vec::with_capacity(weight.len() / 9 * 16);
    // Which rows (or columns) of the kernel meet the first and the second pixel.
    let rows = |odd: bool, second: bool| match (odd, second) {
        (false, false) => 0..1,
        (false, true) => 1..3,
        (true, false) => 0..2,
        (true, true) => 2..3,
    };
    for corner in 0..4 {
        for kernel in kernels.clone() {
            for tap in 0..4 {
                for c in 0..channels {
                    let mut sum = 0.0;
                    for y in rows(corner / 2 == 1, tap / 2 == 1) {
                        for x in rows(corner % 2 == 1, tap % 2 == 1) {
                            sum += kernel[(3 * y + x) * channels + c];
                        }
                    }
                    folded.push(sum);
                }
            }
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(frames: usize, height: usize, width: usize, channels: usize) -> Volume {
        Volume { address: 4096, frames, height, width, channels }
    }

    fn layer(outputs: usize, channels: usize, kernel: [usize; 3]) -> ConvLayer {
        ConvLayer { weight: 4096, bias: 4096, outputs, channels, kernel }
    }

    #[test]
    fn the_geometry_has_the_kernels_layout() {
        assert_eq!(size_of::<Geometry>(), 4 * 32);
    }

    #[test]
    fn patches_waste_little() {
        assert_eq!(patch(256, 480, 832), (4, 4));
        assert_eq!(patch(128, 240, 416), (4, 3));
        // 60x104 in patches of 4x32 would be 60x128.
        let (down, across) = patch(128, 60, 104);
        assert!(60usize.next_multiple_of(1 << down) * 104usize.next_multiple_of(1 << across) <= 60 * 112);
        assert_eq!(patch(256, 1, 1), (4, 4));
    }

    #[test]
    fn frames_before_the_first_are_left_out() {
        let one = [volume(1, 8, 8, 16)];
        let g = geometry(TALL, &one, 0, &layer(96, 16, [3, 3, 3]), Spatial::Same, Time::Same, 0);
        assert_eq!((g.frames, g.frames_before, g.frame_step), (1, 2, 1));
        let parts = [volume(2, 8, 8, 16), volume(4, 8, 8, 16)];
        let g = geometry(TALL, &parts, 2, &layer(96, 16, [3, 3, 3]), Spatial::Same, Time::Same, 0);
        assert_eq!((g.frames, g.frames_before), (4, 0));
        assert_eq!(&g.starts[..4], [0, 2, 6, 6]);
        let parts = [volume(1, 8, 8, 16), volume(4, 8, 8, 16)];
        let g = geometry(TALL, &parts, 1, &layer(96, 16, [3, 1, 1]), Spatial::Same, Time::Halve, 0);
        assert_eq!((g.frames, g.frames_before, g.frame_step), (2, 0, 2));
    }

    #[test]
    fn shapes_must_agree() {
        let x = [volume(2, 8, 6, 16)];
        let l = layer(96, 16, [3, 3, 3]);
        let shape = |time, spatial| result(&x, 0, &l, spatial, time);
        assert_eq!(shape(Time::Same, Spatial::Same).ok(), Some([2, 8, 6, 96]));
        assert_eq!(shape(Time::Halve, Spatial::Halve).ok(), Some([1, 4, 3, 96]));
        assert_eq!(shape(Time::Double, Spatial::Double).ok(), Some([4, 16, 12, 48]));
        assert!(result(&x, 2, &l, Spatial::Same, Time::Same).is_err());
        assert!(result(&x, 1, &l, Spatial::Same, Time::Halve).is_err());
        assert!(result(&[volume(2, 8, 6, 24)], 0, &l, Spatial::Same, Time::Same).is_err());
        assert!(result(&[], 0, &l, Spatial::Same, Time::Same).is_err());
    }

    #[test]
    fn folding_adds_up_what_meets_one_pixel() {
        let weight: Vec<f32> = (1..=9).map(|n| n as f32).collect();
        let folded = fold_for_doubling(&weight, 1);
        assert_eq!(folded[..4], [1.0, 2.0 + 3.0, 4.0 + 7.0, 5.0 + 6.0 + 8.0 + 9.0]);
        assert_eq!(folded[12..], [1.0 + 2.0 + 4.0 + 5.0, 3.0 + 6.0, 7.0 + 8.0, 9.0]);
    }

    /// Walks over voxels and taps as `conv.cuh` does, with one channel, and compares with the convolution's definition.
    fn follow(frames_of_parts: &[usize], past: usize, kernel: [usize; 3], spatial: Spatial, time: Time) {
        for family in [Family::MmaSync, Family::Wgmma] {
            follow_on(family, frames_of_parts, past, kernel, spatial, time);
        }
    }

    fn follow_on(
        family: Family,
        frames_of_parts: &[usize],
        past: usize,
        kernel: [usize; 3],
        spatial: Spatial,
        time: Time,
    ) {
        let (h, w) = (6, 10);
        let parts: Vec<Volume> = frames_of_parts.iter().map(|&frames| volume(frames, h, w, 8)).collect();
        let frames: usize = frames_of_parts.iter().sum();
        let outputs = if time == Time::Double { 384 } else { 4 };
        let layer = layer(outputs, 8, kernel);
        let tiles = shape(family, outputs);
        let [of, oh, ow, oc] = result(&parts, past, &layer, spatial, time).expect("they fit");
        let at = |frame: usize, y: usize, x: usize| ((frame * h + y) * w + x) as f32;
        let [kt, kh, kw] = kernel;
        let taps = kt * kh * kw;
        let weight: Vec<f32> = (0..outputs * taps).map(|i| (i * 7 % 13) as f32).collect();
        let folded = if spatial == Spatial::Double { fold_for_doubling(&weight, 1) } else { weight.clone() };

        let mut given = vec![f32::NAN; of * oh * ow * oc];
        for corner in 0..if spatial == Spatial::Double { 4 } else { 1 } {
            let g = geometry(tiles, &parts, past, &layer, spatial, time, corner);
            let all = (g.taps_t * g.taps_y * g.taps_x) as usize;
            let patch = 1 << (g.patch_height_log2 + g.patch_width_log2);
            for frame in 0..g.frames {
                for number in 0..tiles.cluster as i32 * g.patch_pairs * patch {
                    let (down, across) =
                        (number / patch / g.patches_across, number / patch % g.patches_across);
                    let pixel = number % patch;
                    let y = (down << g.patch_height_log2) + (pixel >> g.patch_width_log2);
                    let x = (across << g.patch_width_log2) + (pixel & ((1 << g.patch_width_log2) - 1));
                    if y >= g.height || x >= g.width {
                        continue;
                    }
                    let row = (frame * g.frame_out * g.out_height + y * g.out_step + g.out_y) * g.out_width
                        + x * g.out_step
                        + g.out_x;
                    for o in 0..outputs {
                        let mut sum = 0.0;
                        let first = (g.frames_before - frame * g.frame_step).max(0);
                        for tap in (first * g.taps_y * g.taps_x) as usize..all {
                            let (t, rest) =
                                (tap as i32 / (g.taps_y * g.taps_x), tap as i32 % (g.taps_y * g.taps_x));
                            let from = frame * g.frame_step - g.frames_before + t;
                            let (sy, sx) =
                                (y * g.step + g.y0 + rest / g.taps_x, x * g.step + g.x0 + rest % g.taps_x);
                            assert!((0..frames as i32).contains(&from), "frame {from}");
                            if (0..h as i32).contains(&sy) && (0..w as i32).contains(&sx) {
                                sum += at(from as usize, sy as usize, sx as usize)
                                    * folded[(corner * outputs + o) * all + tap];
                            }
                        }
                        let (half, column) = (o / oc, o % oc);
                        given[(row as usize + half * oh * ow) * oc + column] = sum;
                    }
                }
            }
        }

        for (i, given) in given.iter().enumerate() {
            let (voxel, column) = (i / oc, i % oc);
            let (t, y, x) = (voxel / (oh * ow), voxel / ow % oh, voxel % ow);
            let (end, o) = match time {
                Time::Same => (past + t + 1, column),
                Time::Halve => (past + 2 * t + 2, column),
                Time::Double => (past + t / 2 + 1, t % 2 * oc + column),
            };
            let mut sum = 0.0;
            for tap in 0..taps {
                let pixel = |at: usize, tap: usize, extent: usize, size: usize| match spatial {
                    Spatial::Same => (at + tap).checked_sub(extent / 2).filter(|&i| i < size),
                    Spatial::Halve => Some(2 * at + tap).filter(|&i| i < size),
                    Spatial::Double => (at + tap).checked_sub(1).map(|i| i / 2).filter(|&i| i < size),
                };
                let frame = (end + tap / (kh * kw)).checked_sub(kt);
                if let (Some(frame), Some(y), Some(x)) =
                    (frame, pixel(y, tap / kw % kh, kh, h), pixel(x, tap % kw, kw, w))
                {
                    sum += at(frame, y, x) * weight[o * taps + tap];
                }
            }
            assert_eq!(*given, sum, "{frames_of_parts:?} {past} {kernel:?} {spatial:?} {time:?} {i}");
        }
    }

    #[test]
    fn the_kernels_walk_is_the_convolution() {
        for spatial in [Spatial::Same, Spatial::Halve, Spatial::Double] {
            follow(&[2], 0, [1, 3, 3], spatial, Time::Same);
            follow(&[1, 3], 1, [3, 3, 3], spatial, Time::Same);
        }
        follow(&[1], 0, [3, 3, 3], Spatial::Same, Time::Same);
        follow(&[2, 1], 2, [3, 3, 3], Spatial::Same, Time::Same);
        follow(&[2], 0, [1, 1, 1], Spatial::Same, Time::Same);
        follow(&[1, 4], 1, [3, 1, 1], Spatial::Same, Time::Halve);
        follow(&[4], 0, [3, 1, 1], Spatial::Same, Time::Halve);
        follow(&[2], 0, [3, 1, 1], Spatial::Same, Time::Double);
        follow(&[2, 2], 2, [3, 1, 1], Spatial::Same, Time::Double);
    }
}
