//! Launchers of operations on volumes and latents: sums, patches, layouts, the VAE's norm.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg};

use super::module::{fatbin, load, load_all};
use super::norms::grid;
use super::rows::{check_vector, refuse};
use super::{Card, Element, Error, Rows};

const TERMS: usize = 8;
const THREADS: usize = 256;
const VECTOR: usize = 8;

/// A summand of [`Volumes::combine`].
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Device address of the elements, which have no gaps.
    pub address: CUdeviceptr,
    /// The type of the elements: bf16 or f32.
    pub element: Element,
    /// The factor of the elements.
    pub factor: f32,
}

/// A summand as the kernel takes it: `Term` of `combine.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawTerm {
    x: CUdeviceptr,
    factor: f32,
    is_f32: i32,
}

#[repr(C)]
struct RawTerms([RawTerm; TERMS]);

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for RawTerms {}

/// Operations on volumes, loaded for one GPU. The same input gives the same bits.
#[derive(Debug)]
pub struct Volumes {
    /// The kernels to bf16 and to f32.
    combine: [CudaFunction; 2],
    patchify: CudaFunction,
    unpatchify: CudaFunction,
    /// The kernels with 4, 8, 16 and 32 threads for a voxel of bf16, then those for a voxel of f32.
    channel_norm: [CudaFunction; 8],
    channels_last: CudaFunction,
    /// The kernels from bf16 and from f32.
    channels_first: [CudaFunction; 2],
}

impl Volumes {
    /// The most summands of a launch.
    pub const TERMS: usize = TERMS;

    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        macro_rules! kernel {
            ($name:literal) => {
                load(card, fatbin!("any", $name), $name, 0)?
            };
        }
        let norms = [
            "channel_norm_4",
            "channel_norm_8",
            "channel_norm_16",
            "channel_norm_32",
            "channel_norm_4_f32",
            "channel_norm_8_f32",
            "channel_norm_16_f32",
            "channel_norm_32_f32",
        ];
        let first = ["channels_first_bf16", "channels_first_f32"];
        Ok(Self {
            combine: load_all(card, fatbin!("any", "combine"), ["combine_bf16", "combine_f32"], 0)?,
            patchify: kernel!("patchify"),
            unpatchify: kernel!("unpatchify"),
            channel_norm: load_all(card, fatbin!("any", "channel_norm"), norms, 0)?,
            channels_last: kernel!("channels_last"),
            channels_first: load_all(card, fatbin!("any", "channels_first"), first, 0)?,
        })
    }

    /// Enqueues `y = the sum of factor * x`, from left to right in f32, over one to eight terms of `elements` each; `y` is
    /// bf16 or f32. With one term it converts.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for numbers and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All that is named must lie in memory of the stream's GPU until the stream has passed this launch, without
    /// overlapping, and nothing else may write to it meanwhile. `y` may be a term of its type.
    pub unsafe fn combine(
        &self,
        stream: &CudaStream,
        terms: &[Term],
        y: CUdeviceptr,
        element: Element,
        elements: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "combine";
        if terms.is_empty() || terms.len() > TERMS {
            return refuse(KERNEL, "terms", format!("{} are not 1 to {TERMS}", terms.len()));
        }
        if elements == 0 || element.bytes() == 1 || terms.iter().any(|t| t.element.bytes() == 1) {
            return refuse(KERNEL, "terms", format!("{elements} elements, or elements of e4m3"));
        }
        check_vector(KERNEL, "y", y)?;
        let mut raw = RawTerms([RawTerm::default(); TERMS]);
        for (raw, term) in raw.0.iter_mut().zip(terms) {
            check_vector(KERNEL, "terms", term.address)?;
            let is_f32 = i32::from(term.element == Element::F32);
            *raw = RawTerm { x: term.address, factor: term.factor, is_f32 };
        }
        let (count, total) = (terms.len() as i32, elements as i64);
        let mut launch = stream.launch_builder(&self.combine[usize::from(element == Element::F32)]);
        launch.arg(&raw).arg(&count).arg(&y).arg(&total);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(elements.div_ceil(THREADS * VECTOR), 1, THREADS as u32))? };
        Ok(())
    }

    /// Enqueues the conversion of latents to tokens: `x` `[x.1, frames, height, width]` and, as further channels, `y`
    /// `[y.1, ..]`, both f32, to `tokens` `[frames * height/2 * width/2, 4 (x.1 + y.1)]` f32, features in the order
    /// channel, row, column.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::combine`].
    pub unsafe fn patchify(
        &self,
        stream: &CudaStream,
        x: (CUdeviceptr, usize),
        y: Option<(CUdeviceptr, usize)>,
        [frames, height, width]: [usize; 3],
        tokens: Rows,
    ) -> Result<(), Error> {
        const KERNEL: &str = "patchify";
        let (y, more) = y.unwrap_or((0, 0));
        check_grid(KERNEL, [frames, height, width], tokens)?;
        tokens.check_as(KERNEL, "tokens", 4 * (x.1 + more), Element::F32)?;
        let (channels, more, stride) = (x.1 as i32, more as i32, tokens.stride as i64);
        let (frames, height, width) = (frames as i32, height as i32, width as i32);
        let mut launch = stream.launch_builder(&self.patchify);
        launch.arg(&x.0).arg(&channels).arg(&y).arg(&more).arg(&tokens.address).arg(&stride);
        launch.arg(&frames).arg(&height).arg(&width);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(tokens.rows, 1, THREADS as u32))? };
        Ok(())
    }

    /// Enqueues the conversion of tokens `[frames * height/2 * width/2, 4 channels]` f32, features in the order row,
    /// column, channel, to `x` `[channels, frames, height, width]` f32.
    ///
    /// # Errors
    ///
    /// As [`Self::patchify`].
    ///
    /// # Safety
    ///
    /// As [`Self::combine`].
    pub unsafe fn unpatchify(
        &self,
        stream: &CudaStream,
        tokens: Rows,
        x: CUdeviceptr,
        channels: usize,
        [frames, height, width]: [usize; 3],
    ) -> Result<(), Error> {
        const KERNEL: &str = "unpatchify";
        check_grid(KERNEL, [frames, height, width], tokens)?;
        tokens.check_as(KERNEL, "tokens", 4 * channels, Element::F32)?;
        if frames * height > 65_535 || channels > 65_535 {
            return refuse(KERNEL, "x", format!("{channels} channels of {frames} frames of {height} rows"));
        }
        let shape = (width.div_ceil(THREADS) as u32, (frames * height) as u32, channels as u32);
        let stride = tokens.stride as i64;
        let (frames, height, width) = (frames as i32, height as i32, width as i32);
        let mut launch = stream.launch_builder(&self.unpatchify);
        launch.arg(&tokens.address).arg(&stride).arg(&x).arg(&frames).arg(&height).arg(&width);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(volume_grid(shape))? };
        Ok(())
    }

    /// Enqueues the VAE's norm over channels: `y = x / max(|x|, 1e-12) * sqrt(channels) * gamma` for each voxel, then `SiLU`
    /// if `silu`. `x`, `y`: `[voxels, channels]`, both bf16 or both f32, without gaps, `y` may be `x`; gamma: `[channels]` f32; channels a
    /// multiple of 8 up to 768.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::combine`].
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub unsafe fn channel_norm(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        gamma: CUdeviceptr,
        y: CUdeviceptr,
        element: Element,
        [voxels, channels]: [usize; 2],
        silu: bool,
    ) -> Result<(), Error> {
        const KERNEL: &str = "channel_norm";
        for (name, address) in [("x", x), ("gamma", gamma), ("y", y)] {
            check_vector(KERNEL, name, address)?;
        }
        if voxels == 0 || channels == 0 || channels > 768 || !channels.is_multiple_of(VECTOR) {
            return refuse(KERNEL, "x", format!("{voxels} voxels of {channels} channels"));
        }
        let wide = match element {
            Element::Bf16 => 0,
            Element::F32 => 4,
            Element::E4m3 | Element::Int8 => return refuse(KERNEL, "element", "a norm is over bf16 or f32"),
        };
        let lanes = channels.div_ceil(3 * VECTOR).next_power_of_two().max(4);
        let number = wide + lanes.ilog2() as usize - 2;
        let (total, channels, silu) = (voxels as i64, channels as i32, i32::from(silu));
        let mut launch = stream.launch_builder(&self.channel_norm[number]);
        launch.arg(&x).arg(&gamma).arg(&y).arg(&total).arg(&channels).arg(&silu);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid((voxels * lanes).div_ceil(THREADS), 1, THREADS as u32))? };
        Ok(())
    }

    /// Enqueues the conversion of `x` `[channels, voxels]` f32 to `y` `[voxels, y.stride]` bf16, with zeros after the
    /// channels.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::combine`].
    pub unsafe fn channels_last(
        &self,
        stream: &CudaStream,
        x: CUdeviceptr,
        channels: usize,
        y: Rows,
    ) -> Result<(), Error> {
        y.check_as("channels_last", "y", channels, Element::Bf16)?;
        let (voxels, channels32, stride) = (y.rows as i64, channels as i32, y.stride as i32);
        let mut launch = stream.launch_builder(&self.channels_last);
        launch.arg(&x).arg(&channels32).arg(&y.address).arg(&stride).arg(&voxels);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(y.rows.div_ceil(THREADS), y.stride / VECTOR, THREADS as u32))? };
        Ok(())
    }

    /// Enqueues the conversion of `x` `[voxels, x.stride]`, bf16 or f32, to `y` `[channels, voxels]` f32, channels
    /// `plane` elements apart; the stride is a multiple of 8.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for shapes, strides and addresses, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// As [`Self::combine`].
    pub unsafe fn channels_first(
        &self,
        stream: &CudaStream,
        x: Rows,
        element: Element,
        y: CUdeviceptr,
        channels: usize,
        plane: usize,
    ) -> Result<(), Error> {
        const KERNEL: &str = "channels_first";
        x.check_as(KERNEL, "x", channels.next_multiple_of(VECTOR), element)?;
        if element.bytes() == 1 || channels == 0 || !x.stride.is_multiple_of(VECTOR) || plane < x.rows {
            return refuse(KERNEL, "x", format!("{channels} channels, {} apart, to {plane} apart", x.stride));
        }
        let (voxels, channels32, stride, plane) =
            (x.rows as i64, channels as i32, x.stride as i64, plane as i64);
        let mut launch = stream.launch_builder(&self.channels_first[usize::from(element == Element::F32)]);
        launch.arg(&x.address).arg(&stride).arg(&y).arg(&channels32).arg(&voxels).arg(&plane);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(x.rows.div_ceil(THREADS), channels.div_ceil(VECTOR), THREADS as u32))? };
        Ok(())
    }
}

fn volume_grid(grid_dim: (u32, u32, u32)) -> LaunchConfig {
    LaunchConfig { grid_dim, block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 }
}

fn check_grid(kernel: &'static str, [frames, height, width]: [usize; 3], tokens: Rows) -> Result<(), Error> {
    let fits = height.is_multiple_of(2) && width.is_multiple_of(2);
    if !fits || tokens.rows != frames * height * width / 4 {
        return refuse(kernel, "tokens", format!("{} for {frames} frames of {height}x{width}", tokens.rows));
    }
    Ok(())
}
