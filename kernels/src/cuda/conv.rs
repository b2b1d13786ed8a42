//! Launchers of causal convolutions over channels-last volumes, as matrix products.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, PushKernelArg};

use super::conv_geometry::{
    CHANNELS, ConvLayer, FEW, KERNEL, PARTS, SYNC_FEW, SYNC_TALL, SYNC_WIDE, TALL, Volume, WIDE, geometry,
    result, shape,
};
use super::epilogue::RawEpilogue;
use super::module::{fatbin, load_all};
use super::rows::{check_vector, refuse};
use super::tensor_map::{MapElement, TensorMap};
use super::tiles::{persistent, sync_grid};
use super::{Card, Element, Error};
use crate::{Family, Spatial, Time};

/// What follows a convolution: a residual, a norm, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvEpilogue {
    /// A volume of the result's shape and type that is added. It may be the result itself.
    pub residual: Option<CUdeviceptr>,
    /// The gamma `[outputs]` f32 of a norm over channels with `SiLU`; see [`Conv::fuses_norm`].
    pub norm: Option<CUdeviceptr>,
}

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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(size_of::<SyncInput>(), 8 * 9 + 8);
    }

    #[test]
    fn only_what_one_tile_has_ends_with_a_norm() {
        let part = Volume { address: 4096, frames: 2, height: 8, width: 6, channels: 16 };
        let layer = |outputs| ConvLayer { weight: 4096, bias: 4096, outputs, channels: 16, kernel: [3; 3] };
        let normed = ConvEpilogue { norm: Some(4096), residual: None };
        let ok = |outputs| {
            let (spatial, time) = (Spatial::Same, Time::Same);
            check(&[part], &layer(outputs), spatial, time, &normed, 4096, Element::Bf16).is_ok()
        };
        assert!(ok(96) && ok(192) && !ok(384));
    }
}
