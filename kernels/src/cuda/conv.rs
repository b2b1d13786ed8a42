//! Launchers of causal convolutions over channels-last volumes, as matrix products.
//!
//! This is one file because its last part is tests of private functions: they follow the kernel's walk over voxels and
//! taps with the geometry that the launcher computes, and compare it with the convolution's definition.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, PushKernelArg};

use super::gemm::{RawEpilogue, Shape, persistent, sync_grid};
use super::module::{fatbin, load_all};
use super::rows::{check_vector, refuse};
use super::tensor_map::{MapElement, TensorMap};
use super::{Card, Element, Error};
use crate::{Family, Spatial, Time};

const KERNEL: &str = "conv";
/// The most parts of a launch, and after it the channels of a block of K, as `conv_walk.cuh` has them.
const PARTS: usize = 8;
const CHANNELS: u32 = 64;

const FEW: Shape = Shape { parts: 2, columns: 16, cluster: 2 };
const TALL: Shape = Shape { parts: 2, columns: 96, cluster: 2 };
const WIDE: Shape = Shape { parts: 1, columns: 192, cluster: 2 };
const SYNC_FEW: Shape = Shape { parts: 1, columns: 16, cluster: 1 };
const SYNC_TALL: Shape = Shape { parts: 1, columns: 96, cluster: 1 };
const SYNC_WIDE: Shape = Shape { parts: 1, columns: 192, cluster: 1 };

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

/// What follows a convolution: a residual, a norm, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvEpilogue {
    /// A volume of the result's shape and type that is added. It may be the result itself.
    pub residual: Option<CUdeviceptr>,
    /// The gamma `[outputs]` f32 of a norm over channels with `SiLU`; see [`Conv::fuses_norm`].
    pub norm: Option<CUdeviceptr>,
}

/// A convolution's extents and steps: `conv::Geometry` of `conv_walk.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Geometry {
    starts: [i32; PARTS + 1],
    frames: i32,
    height: i32,
    width: i32,
    patch_height_log2: i32,
    patch_width_log2: i32,
    patches_across: i32,
    patch_pairs: i32,
    channels: i32,
    outputs: i32,
    taps_t: i32,
    taps_y: i32,
    taps_x: i32,
    frame_step: i32,
    frames_before: i32,
    step: i32,
    x0: i32,
    y0: i32,
    out_step: i32,
    out_x: i32,
    out_y: i32,
    out_height: i32,
    out_width: i32,
    frame_out: i32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for Geometry {}

/// The operands on Hopper cards: `conv::Maps` of `sm90/conv.cuh`.
#[repr(C)]
struct Maps {
    parts: [TensorMap; PARTS],
    weight: TensorMap,
}

// SAFETY: tensor maps, which are passed by value.
unsafe impl DeviceRepr for Maps {}

/// The operands on other cards: `sm80::Input` of `sm80/conv.cuh`.
#[repr(C)]
struct SyncInput {
    parts: [CUdeviceptr; PARTS],
    weight: CUdeviceptr,
    height: i32,
    width: i32,
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for SyncInput {}

/// Convolutions, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct Conv {
    /// The kernels that write bf16 and f32.
    few: [CudaFunction; 2],
    /// The kernels that write bf16, bf16 after a norm, and f32; those of `wide` likewise.
    tall: [CudaFunction; 3],
    wide: [CudaFunction; 3],
    family: Family,
    multiprocessors: usize,
}

impl Conv {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        let few = ["conv_16", "conv_16_f32"];
        let tall = ["conv_96", "conv_96_normed", "conv_96_f32"];
        let wide = ["conv_192", "conv_192_normed", "conv_192_f32"];
        macro_rules! kernels {
            ($folder:literal, $few:expr, $tall:expr, $wide:expr) => {
                (
                    load_all(card, fatbin!($folder, "conv_16"), few, $few)?,
                    load_all(card, fatbin!($folder, "conv_96"), tall, $tall)?,
                    load_all(card, fatbin!($folder, "conv_192"), wide, $wide)?,
                )
            };
        }
        let (family, multiprocessors) = (card.support().family, card.multiprocessors()?);
        let (few, tall, wide) = match family {
            Family::Wgmma => {
                kernels!("sm90", FEW.shared_bytes(), TALL.shared_bytes(), WIDE.shared_bytes())
            }
            Family::MmaSync => kernels!(
                "sm80",
                SYNC_FEW.sync_shared_bytes(),
                SYNC_TALL.sync_shared_bytes(),
                SYNC_WIDE.sync_shared_bytes()
            ),
        };
        Ok(Self { few, tall, wide, family, multiprocessors })
    }

    /// The most parts of a launch.
    pub const PARTS: usize = PARTS;
    /// The most channels of a result that is cheap to write as f32.
    pub const FEW: usize = FEW.columns;

    /// Returns whether a convolution to so many channels can write them as two frames: no tile may have channels of
    /// both halves.
    pub fn doubles_frames(outputs: usize) -> bool {
        (outputs / 2).is_multiple_of(shape(Family::Wgmma, outputs).columns.min(64))
    }

    /// Returns whether a convolution to so many channels can end with a norm: one tile must have all of them.
    pub fn fuses_norm(outputs: usize) -> bool {
        outputs == TALL.columns || outputs == WIDE.columns
    }

    /// Enqueues the convolution over `parts` (up to 8, of one height, width and number of channels, at most 2^31 voxels
    /// together with the result), which follow each other in time. The first `past` frames are what the kernel sees
    /// before the first new one; before all frames it sees zeros. `output` has the shape that [`result`] returns; it is
    /// bf16, or, without a norm, f32.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes and addresses, [`Error::Driver`] if a launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed these launches, `output`
    /// without overlapping anything but the residual, and nothing else may write to them meanwhile.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        parts: &[Volume],
        past: usize,
        layer: &ConvLayer,
        spatial: Spatial,
        time: Time,
        epilogue: &ConvEpilogue,
        output: CUdeviceptr,
        element: Element,
    ) -> Result<(), Error> {
        let [frames, height, width, channels] = result(parts, past, layer, spatial, time)?;
        check(parts, layer, spatial, time, epilogue, output, element)?;
        let shape = shape(self.family, layer.outputs);
        let ends = match element {
            Element::F32 => 2,
            _ => usize::from(epilogue.norm.is_some()),
        };
        let function = match layer.outputs {
            0..=16 => &self.few[usize::from(element == Element::F32)],
            17..=96 => &self.tall[ends],
            _ => &self.wide[ends],
        };
        let raw = RawEpilogue {
            row_scale: 0,
            column_scale: 0,
            bias: layer.bias,
            gate: 0,
            element_gate: 0,
            gamma: epilogue.norm.unwrap_or(0),
            residual: epilogue.residual.unwrap_or(0),
            output,
            squares: 0,
            gate_stride: 0,
            residual_stride: channels as i64,
            output_stride: channels as i64,
            width: channels as i32,
            half_step: (height * width) as i32,
            activation: 0,
            squared: 0,
        };
        debug_assert!(frames > 0);
        for corner in 0..if spatial == Spatial::Double { 4 } else { 1 } {
            let g = geometry(shape, parts, past, layer, spatial, time, corner);
            let [kt, kh, kw] = [g.taps_t, g.taps_y, g.taps_x].map(|n| n as u64);
            let (c, taps) = (layer.channels as u64, kt * kh * kw);
            let weight = layer.weight + corner as u64 * 2 * c * taps * layer.outputs as u64;
            let tiles = layer.outputs.div_ceil(shape.columns) * (g.frames * g.patch_pairs) as usize;
            if self.family == Family::MmaSync {
                let Volume { height, width, .. } = parts[0];
                let mut input =
                    SyncInput { parts: [0; PARTS], weight, height: height as i32, width: width as i32 };
                for (to, part) in input.parts.iter_mut().zip(parts) {
                    *to = part.address;
                }
                let mut launch = stream.launch_builder(function);
                launch.arg(&input).arg(&g).arg(&raw);
                // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
                unsafe { launch.launch(sync_grid(tiles, shape))? };
                continue;
            }
            let step = g.step as u32;
            let mut maps = Vec::with_capacity(PARTS);
            for i in 0..PARTS {
                // The kernel never reads the parts beyond the last.
                let part = parts.get(i).unwrap_or(&parts[0]);
                let [c, w, h, t] = [part.channels, part.width, part.height, part.frames].map(|n| n as u64);
                let (across, down) = (step << g.patch_width_log2, step << g.patch_height_log2);
                maps.push(TensorMap::with_steps(
                    MapElement::Bf16,
                    part.address,
                    [c, w, h, t],
                    &[2 * c, 2 * c * w, 2 * c * w * h],
                    [CHANNELS, across, down, 1],
                    [1, step, step, 1],
                )?);
            }
            let maps = Maps {
                parts: maps.try_into().unwrap_or_else(|_| unreachable!("one for each part")),
                weight: TensorMap::new(
                    MapElement::Bf16,
                    weight,
                    [c, taps, layer.outputs as u64],
                    &[2 * c, 2 * c * taps],
                    [CHANNELS, 1, (shape.columns / shape.cluster) as u32],
                )?,
            };
            let mut launch = stream.launch_builder(function);
            launch.arg(&maps).arg(&g).arg(&raw);
            // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
            unsafe { launch.launch(persistent(tiles, shape, self.multiprocessors))? };
        }
        Ok(())
    }
}

fn shape(family: Family, outputs: usize) -> Shape {
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
fn result(
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

fn check(
    parts: &[Volume],
    layer: &ConvLayer,
    spatial: Spatial,
    time: Time,
    epilogue: &ConvEpilogue,
    output: CUdeviceptr,
    element: Element,
) -> Result<(), Error> {
    for part in parts {
        check_vector(KERNEL, "parts", part.address)?;
    }
    for (name, address) in [("weight", layer.weight), ("bias", layer.bias), ("output", output)] {
        check_vector(KERNEL, name, address)?;
    }
    for (name, address) in [("residual", epilogue.residual), ("norm", epilogue.norm)] {
        address.map_or(Ok(()), |address| check_vector(KERNEL, name, address))?;
    }
    let [kt, kh, kw] = layer.kernel;
    if !matches!(kt, 1 | 3)
        || !matches!((kh, kw), (1, 1) | (3, 3))
        || (spatial != Spatial::Same && kh != 3)
        || !layer.channels.is_multiple_of(8)
        || !layer.outputs.is_multiple_of(4)
        || layer.outputs == 0
    {
        return refuse(KERNEL, "layer", format!("{layer:?}, {spatial:?}"));
    }
    if time == Time::Double && !Conv::doubles_frames(layer.outputs) {
        return refuse(KERNEL, "layer", format!("{} outputs cannot become frames", layer.outputs));
    }
    if epilogue.norm.is_some()
        && (epilogue.residual.is_some() || time == Time::Double || !Conv::fuses_norm(layer.outputs))
    {
        return refuse(KERNEL, "norm", format!("after {} outputs, {time:?}, {epilogue:?}", layer.outputs));
    }
    match element {
        Element::Bf16 => Ok(()),
        Element::F32 if epilogue.norm.is_none() => Ok(()),
        _ => refuse(KERNEL, "element", format!("{element:?}, {epilogue:?}")),
    }
}

/// Returns the kernel's geometry; `corner` is the number of one of the four pixels that doubling makes of one.
fn geometry(
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
    fn a_block_has_the_shared_memory() {
        for shape in [FEW, TALL, WIDE] {
            assert!(shape.shared_bytes() <= 232_448, "{shape:?}");
        }
        for shape in [SYNC_FEW, SYNC_TALL, SYNC_WIDE] {
            assert!(shape.sync_shared_bytes() <= 101_376, "{shape:?}");
        }
        assert_eq!(TALL.shared_bytes(), 4 * 45_056 + 16_384 + 4 * 16 + 1024);
        assert_eq!(FEW.shared_bytes(), 6 * 34_816 + 8_192 + 6 * 16 + 1024);
    }

    #[test]
    fn structures_have_the_kernels_layout() {
        assert_eq!(size_of::<Maps>(), 9 * 128);
        assert_eq!(size_of::<Geometry>(), 4 * 32);
        assert_eq!(size_of::<SyncInput>(), 8 * 9 + 8);
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
        let normed = ConvEpilogue { norm: Some(4096), residual: None };
        let ok =
            |l: &ConvLayer| check(&x, l, Spatial::Same, Time::Same, &normed, 4096, Element::Bf16).is_ok();
        assert!(ok(&l) && ok(&layer(192, 16, [3, 3, 3])) && !ok(&layer(384, 16, [3, 3, 3])));
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
