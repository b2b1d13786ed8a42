//! The backend for NVIDIA's GPUs: the kernels of `animd-kernels` behind the vocabulary.
//!
//! - [`memory`] has the device's memory: two arenas, for weights and for the work, filled before a job from its plan.
//! - [`tensor`] is what a tensor is: a view with a type and strides. Volumes have their channels innermost wherever a
//!   convolution made them, latents and frames outermost.
//! - [`deferred`] computes norms and attention when they are read, in the form that suits the reader.
//! - [`linear`], [`sequence`] and [`volumes`] are the operations; [`loading`] brings matrices to the device.
//!
//! All work is enqueued on one stream, in the order of the calls. Nothing waits for it but downloads, and
//! [`TensorOps::throttle`] for what is two blocks old.

pub mod conformance;
mod deferred;
mod linear;
mod loading;
mod memory;
mod pinned;
mod sequence;
mod tensor;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use animd_kernels::cuda::cudarc::driver::sys::{CUevent_flags, CUresult};
use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result};
use animd_kernels::cuda::{
    self, AnyAttention, Attention, Conv, Copies, CrossAttention, Element, Gemm, Norms, Term, Volumes,
};

use super::{Backend, Fetched, TensorOps};
use crate::plan::{self, Setup};
use crate::profile::{self, AttentionKind, Place, Profile, Residency, Sensitive, Weights};
use crate::weights::Component;
use crate::{Error, Result};

use loading::Staging;
use memory::Arena;
use pinned::Pinned;
use tensor::{Value, View, channels_last, filled_up, row_major};

pub use animd_kernels::cuda::OLDEST_DRIVER;
pub use linear::Linear;
pub use memory::Usage;
pub use sequence::Rope;
pub use tensor::Tensor;
pub use volumes::Conv as Convolution;

/// Bytes that memory grows by where there is more than planned, or what is free lies in pieces.
const STEP: usize = 64 << 20;

/// Summands of one launch.
const TERMS: usize = 8;

/// How the backend computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// The types of each network's large matrices, and of what is small and sensitive.
    pub precision: profile::Precision,
    /// Self-attention over heads of 128 channels.
    pub attention: AttentionKind,
    /// Keys from which on attention counts as self-attention; before that `attention` has no say.
    pub long_context: usize,
    /// Sums 8-bit products up in the tensor cores alone, which keep some 14 bits, in place of f32 every 128 products.
    pub fast_sums: bool,
    /// Bytes of the GPU's memory that are left to others.
    pub leave: usize,
    /// Fills memory with NaN before its use, to find reads of what nobody wrote.
    pub poison: bool,
}

impl Options {
    /// What a profile asks for, of what this backend has.
    pub fn of(profile: &Profile) -> Self {
        let precision = profile.precision;
        for (name, place) in [
            ("dit", profile.residency.dit),
            ("text", profile.residency.text),
            ("clip", profile.residency.clip),
            ("vae", profile.residency.vae),
        ] {
            if place != Place::Device {
                tracing::warn!(
                    "`{name}` stays on the GPU, though the profile `{}` says otherwise",
                    profile.name
                );
            }
        }
        let leave = (profile.memory.reserve_mib as usize) << 20;
        Self { precision, attention: profile.attention.kind, leave, ..Self::BF16 }
    }

    /// Everything in bf16 but what is sensitive, attention in bf16, too.
    pub const BF16: Self = Self {
        precision: profile::Precision {
            dit: Weights::Bf16,
            sensitive: Sensitive::Fp32,
            text: Weights::Bf16,
            clip: Weights::Bf16,
            vae: Weights::Bf16,
        },
        attention: AttentionKind::Exact,
        long_context: 1024,
        fast_sums: true,
        leave: 0,
        poison: false,
    };
}

/// The backend; clones share the GPU and its memory.
#[derive(Clone)]
pub struct Cuda {
    gpu: Arc<Gpu>,
    precision: profile::Precision,
    /// The network that is loaded: its weights have its type.
    component: Component,
    /// Through which its weights come.
    staging: Staging,
}

/// What all clones share.
struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    weights: Arc<Arena>,
    work: Arc<Arena>,
    gemm: Gemm,
    norms: Norms,
    attention: Attention,
    cross_attention: CrossAttention,
    any_attention: AnyAttention,
    conv: Conv,
    volumes: Volumes,
    copies: Copies,
    /// Recorded by the last calls of [`TensorOps::throttle`], the oldest first.
    pace: Mutex<[CudaEvent; 2]>,
    /// For copies to the host.
    landing: Mutex<Vec<Pinned>>,
    eight_bit: AtomicBool,
    long_context: usize,
    fast_sums: bool,
}

/// A launcher's result.
fn kernel<T>(result: std::result::Result<T, cuda::Error>) -> Result<T> {
    result.map_err(|e| match e {
        cuda::Error::Driver(e) => device(e),
        e @ cuda::Error::Argument { .. } => Error::Internal(e.to_string()),
        e => Error::Device(e.to_string()),
    })
}

/// A driver's failure, in words.
fn device(e: DriverError) -> Error {
    let name = format!("{:?}", e.0);
    match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory(
            "the GPU has too little memory left for its driver: end other programs on it, or use a profile for a smaller \
             card"
                .into(),
        ),
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => Error::Device(
            "NVIDIA's driver is installed, but finds no GPU: `nvidia-smi` shows what it sees".into(),
        ),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => Error::Device(
            "NVIDIA's driver was changed while it was in use: restart the machine".into(),
        ),
        CUresult::CUDA_ERROR_INVALID_IMAGE
        | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Error::Device(format!(
            "NVIDIA's driver does not take the kernels ({name}): it is too old for this GPU; install a newer one"
        )),
        _ => Error::Device(format!("the GPU or its driver failed ({name}): `journalctl -k | grep NVRM` may say why")),
    }
}

impl Cuda {
    /// Opens the GPU of this number; `weights` and `work` bytes of its memory are taken at once, and more with
    /// [`Backend::reserve`].
    ///
    /// # Errors
    /// [`Error::Device`] without a driver, with one that is too old, and for a GPU that the kernels do not run on;
    /// [`Error::Memory`] if it has too little memory.
    pub fn open(ordinal: usize, options: &Options, weights: usize, work: usize) -> Result<Self> {
        let context = kernel(cuda::open(ordinal))?;
        let stream = context.new_stream().map_err(device)?;
        let poison = options.poison.then(|| stream.clone());
        let arena = |purpose, step| Arena::new(&context, purpose, [step, options.leave], poison.clone());
        let gpu = Gpu {
            weights: arena("the weights", STEP),
            work: arena("the computations", 0),
            gemm: kernel(Gemm::load(&context))?,
            norms: kernel(Norms::load(&context))?,
            attention: kernel(Attention::load(&context))?,
            cross_attention: kernel(CrossAttention::load(&context))?,
            any_attention: kernel(AnyAttention::load(&context))?,
            conv: kernel(Conv::load(&context))?,
            volumes: kernel(Volumes::load(&context))?,
            copies: kernel(Copies::load(&context))?,
            pace: Mutex::new([sleeping_event(&context)?, sleeping_event(&context)?]),
            landing: Mutex::default(),
            eight_bit: AtomicBool::new(options.attention == AttentionKind::EightBit),
            long_context: options.long_context,
            fast_sums: options.fast_sums,
            context,
            stream,
        };
        gpu.weights.grow(weights)?;
        gpu.work.reserve(work)?;
        let (precision, staging) = (options.precision, Staging::default());
        Ok(Self { gpu: Arc::new(gpu), precision, component: Component::Dit, staging })
    }

    /// What the weights and the work have of the GPU's memory.
    pub fn usage(&self) -> [Usage; 2] {
        [self.gpu.weights.usage(), self.gpu.work.usage()]
    }

    /// The GPU, as its driver calls it.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver has failed.
    pub fn gpu_name(&self) -> Result<String> {
        self.gpu.context.name().map_err(device)
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn loading(&self, component: Component) -> Self {
        Self { component, staging: Staging::default(), ..self.clone() }
    }

    fn retyped(&self, dit: Weights, attention: AttentionKind) -> Self {
        self.gpu.eight_bit.store(attention == AttentionKind::EightBit, Ordering::Relaxed);
        Self { precision: profile::Precision { dit, ..self.precision }, ..self.clone() }
    }

    fn reserve(&self, memory: &plan::Memory) -> Result<()> {
        let Gpu { weights, work, .. } = &*self.gpu;
        // What was taken for other weights may be too much for these.
        let unused = weights.release_unused();
        if unused {
            weights.reserve(memory.weights_to_take() as usize)?;
        }
        let taken = work.reserve(memory.work_to_take() as usize);
        if taken.is_err() && unused {
            weights.release_unused();
        }
        work.let_grow(STEP);
        taken
    }

    fn setup(&self) -> Setup {
        let attention = match self.gpu.eight_bit.load(Ordering::Relaxed) {
            true => AttentionKind::EightBit,
            false => AttentionKind::Exact,
        };
        let [dit, text, clip, vae] = [Place::Device; 4];
        Setup {
            backend: profile::Backend::Cuda,
            precision: self.precision,
            attention,
            residency: Residency { dit, text, clip, vae },
            reserve: 0,
        }
    }

    fn peak_memory(&self) -> u64 {
        let peak = self.usage().iter().map(|usage| usage.peak as u64).sum();
        self.gpu.weights.forget_peak();
        self.gpu.work.forget_peak();
        peak
    }
}

/// An event for which threads wait asleep.
fn sleeping_event(context: &Arc<CudaContext>) -> Result<CudaEvent> {
    context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC)).map_err(device)
}

/// Elements one after the other, the last axis innermost.
fn take(arena: &Arc<Arena>, elements: usize, element: Element, shape: &[usize]) -> Result<View> {
    let piece = Arc::new(arena.take(elements * element.bytes())?);
    Ok(View { address: piece.address, piece, element, shape: shape.to_vec(), strides: row_major(shape) })
}

/// What operations are made of.
impl Gpu {
    /// A matrix for the work, each row of which begins at a multiple of 16 bytes.
    fn matrix(&self, [rows, columns]: [usize; 2], element: Element) -> Result<View> {
        let stride = columns.next_multiple_of(16 / element.bytes());
        Ok(View { strides: vec![stride, 1], ..take(&self.work, rows * stride, element, &[rows, columns])? })
    }

    /// Elements one after the other, the last axis innermost, for the work.
    fn row_major(&self, shape: &[usize], element: Element) -> Result<View> {
        take(&self.work, shape.iter().product(), element, shape)
    }

    /// A volume with its channels innermost, for the work. If they are filled up, what fills them is not yet zero.
    fn channels_last(&self, extents: [usize; 4], element: Element) -> Result<View> {
        let view = take(&self.work, filled_up(extents), element, &extents)?;
        Ok(View { strides: channels_last(extents), ..view })
    }

    /// Copies bytes to the device. The host's memory is free again when this returns.
    fn send<T: bytemuck::Pod>(&self, data: &[T], address: u64) -> Result<()> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the caller's piece has as many bytes. Ordinary memory is read before the driver returns.
        unsafe { result::memcpy_htod_async(address, data, self.stream.cu_stream()) }.map_err(device)
    }

    /// Copies a piece to the host, when all before it is done.
    fn receive(&self, view: &View, out: &mut [f32]) -> Result<()> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the view has as many f32; the wait follows before anybody reads them.
        unsafe { result::memcpy_dtoh_async(out, view.address, self.stream.cu_stream()) }.map_err(device)?;
        self.stream.synchronize().map_err(device)
    }

    /// Pinned memory of at least so many bytes.
    fn landing(&self, bytes: usize) -> Result<Pinned> {
        let mut free = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = free.iter().position(|pinned| pinned.len() >= bytes) {
            return Ok(free.swap_remove(i));
        }
        free.clear();
        Pinned::new(&self.context, bytes)
    }

    /// Fills memory with zeros.
    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the caller's piece has as many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }.map_err(device)
    }

    /// Copies bytes within the device.
    fn move_bytes(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the caller's pieces have as many bytes; the order of the stream keeps them.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(device)
    }

    /// f32 values as a tensor of the work.
    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<View> {
        self.upload_to(&self.work, data, shape)
    }

    fn upload_to(&self, arena: &Arc<Arena>, data: &[f32], shape: &[usize]) -> Result<View> {
        let elements: usize = shape.iter().product();
        if data.len() != elements {
            return Err(Error::Internal(format!("{} values for {shape:?}", data.len())));
        }
        let view = take(arena, elements, Element::F32, shape)?;
        if elements > 0 {
            self.send(data, view.address)?;
        }
        Ok(view)
    }

    /// Copies elements between views of one shape, with conversion.
    fn copy(&self, from: &View, to: &View) -> Result<()> {
        debug_assert_eq!(from.shape, to.shape);
        let elements = from.elements();
        if elements == 0 {
            return Ok(());
        }
        let whole = from.is_row_major() && to.is_row_major() && from.is_aligned() && to.is_aligned();
        let volumes = from.is_channels_last() && to.is_channels_last();
        if (whole || volumes) && from.element == to.element {
            let elements = if whole { elements } else { filled_up(from.extents().unwrap_or_default()) };
            return self.move_bytes(from.address, to.address, elements * from.element.bytes());
        }
        if whole {
            let term = Term { address: from.address, element: from.element, factor: 1.0 };
            // SAFETY: as above.
            return kernel(unsafe {
                self.volumes.combine(&self.stream, &[term], to.address, to.element, elements)
            });
        }
        let ((from, extents), (to, _)) = (from.strided(), to.strided());
        // SAFETY: as above.
        kernel(unsafe { self.copies.run(&self.stream, from, to, extents) })
    }

    /// A tensor as it is, or, if it is not there yet, in f32.
    fn view(&self, tensor: &Tensor) -> Result<View> {
        match &tensor.0 {
            Value::View(view) => Ok(view.clone()),
            Value::Deferred(deferred) => deferred.view(self, Element::F32),
        }
    }

    /// A tensor with its elements one after the other, the last axis innermost, in this type.
    fn dense(&self, tensor: &Tensor, element: Element) -> Result<View> {
        let view = match &tensor.0 {
            Value::View(view) => view.clone(),
            Value::Deferred(deferred) => deferred.view(self, element)?,
        };
        if view.element == element && view.is_row_major() && view.is_aligned() {
            return Ok(view);
        }
        let dense = self.row_major(&view.shape, element)?;
        if view.is_channels_last() && element == Element::F32 {
            let [channels, frames, height, width] = view.extents().unwrap_or_default();
            let voxels = frames * height * width;
            let rows = cuda::Rows::dense(view.address, voxels, view.strides[3]);
            // SAFETY: the views have these extents; the order of the stream keeps them.
            kernel(unsafe {
                let (from, to) = (view.element, dense.address);
                self.volumes.channels_first(&self.stream, rows, from, to, channels, voxels)
            })?;
            return Ok(dense);
        }
        self.copy(&view, &dense)?;
        Ok(dense)
    }

    /// A matrix that kernels can read, in this type.
    fn rows(&self, tensor: &Tensor, element: Element) -> Result<View> {
        let view = match &tensor.0 {
            Value::View(view) => view.clone(),
            Value::Deferred(deferred) => deferred.view(self, element)?,
        };
        self.as_rows(view, element)
    }

    /// A matrix that kernels can read, in whatever type it has.
    fn any_rows(&self, tensor: &Tensor) -> Result<View> {
        let view = self.view(tensor)?;
        let element = view.element;
        self.as_rows(view, element)
    }

    fn as_rows(&self, view: View, element: Element) -> Result<View> {
        let [rows, columns] = view.shape[..] else {
            return Err(Error::Internal(format!("{:?} is no matrix", view.shape)));
        };
        if view.element == element && view.is_matrix() {
            return Ok(view);
        }
        let matrix = self.matrix([rows, columns], element)?;
        self.copy(&view, &matrix)?;
        Ok(matrix)
    }

    /// `n` f32 factors, one after the other.
    fn vector(&self, tensor: &Tensor, n: usize) -> Result<View> {
        let view = self.dense(tensor, Element::F32)?;
        if view.elements() != n {
            return Err(Error::Internal(format!("{:?} for {n} features", view.shape)));
        }
        Ok(view)
    }
}

impl TensorOps for Cuda {
    type Tensor = Tensor;

    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        Ok(self.gpu.upload(data, shape)?.into())
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let view = self.gpu.dense(tensor, Element::F32)?;
        let mut out = vec![0.0; view.elements()];
        if !out.is_empty() {
            self.gpu.receive(&view, &mut out)?;
        }
        Ok(out)
    }

    fn fetch(&self, tensor: &Tensor) -> Result<Fetched> {
        let view = self.gpu.dense(tensor, Element::F32)?;
        let bytes = 4 * view.elements();
        if bytes == 0 {
            return Ok(Box::new(|| Ok(Vec::new())));
        }
        let gpu = self.gpu.clone();
        let mut landing = gpu.landing(bytes)?;
        // SAFETY: the view has as many bytes, and pieces are given back in the order of the stream.
        unsafe { landing.receive(&gpu.stream, bytes, view.address)? };
        Ok(Box::new(move || {
            let values = bytemuck::cast_slice(&landing.bytes()?[..bytes]).to_vec();
            gpu.landing.lock().unwrap_or_else(PoisonError::into_inner).push(landing);
            Ok(values)
        }))
    }

    fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.extents().to_vec()
    }

    fn linear_combination(&self, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
        let Some((_, first)) = terms.first() else {
            return Err(Error::Internal("a sum of no tensors has no shape".into()));
        };
        let mut views = Vec::with_capacity(terms.len());
        for (factor, term) in terms {
            if term.extents() != first.extents() {
                return Err(Error::Internal(format!(
                    "cannot add {:?} to {:?}",
                    term.extents(),
                    first.extents()
                )));
            }
            let view = self.gpu.view(term)?;
            let element = view.element;
            views.push((*factor, self.gpu.dense(&view.into(), element)?));
        }
        let wide = views.iter().any(|(_, view)| view.element == Element::F32);
        let element = if wide { Element::F32 } else { Element::Bf16 };
        let elements = views[0].1.elements();
        let mut sum: Option<View> = None;
        let mut rest = &views[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(TERMS - usize::from(sum.is_some())));
            // What is added to in another launch is not rounded in between.
            let to = if later.is_empty() { element } else { Element::F32 };
            let term = |(factor, view): &(f32, View)| Term {
                address: view.address,
                element: view.element,
                factor: *factor,
            };
            let before = sum.take().map(|view| (1.0, view));
            let all: Vec<Term> = before.iter().chain(now).map(term).collect();
            let y = self.gpu.row_major(first.extents(), to)?;
            // SAFETY: all views have as many elements; the order of the stream keeps them.
            kernel(unsafe { self.gpu.volumes.combine(&self.gpu.stream, &all, y.address, to, elements) })?;
            sum = Some(y);
            rest = later;
        }
        sum.map(Into::into).ok_or_else(|| Error::Internal("a sum of no tensors".into()))
    }

    fn slice(&self, tensor: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        let view = self.gpu.view(tensor)?;
        if view.shape.get(axis).is_none_or(|extent| start + len > *extent) {
            return Err(Error::Internal(format!(
                "{start} to {} of axis {axis} of {:?}",
                start + len,
                view.shape
            )));
        }
        let part = view.slice(axis, start, len);
        // Some of a voxel's channels: what follows them is not zeros.
        if axis == 0 && view.extents().is_some() && view.strides[0] == 1 && len < view.shape[0] {
            return Ok(self.gpu.volume_like(&part)?.into());
        }
        Ok(part.into())
    }

    fn contiguous(&self, tensor: &Tensor) -> Result<Tensor> {
        let view = self.gpu.view(tensor)?;
        let own = match view.extents() {
            Some(extents) if view.strides[0] == 1 => self.gpu.empty_volume(extents, view.element)?,
            _ => self.gpu.row_major(&view.shape, view.element)?,
        };
        self.gpu.copy(&view, &own)?;
        Ok(own.into())
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        let views = parts.iter().map(|part| self.gpu.view(part)).collect::<Result<Vec<_>>>()?;
        let Some(first) = views.first() else {
            return Err(Error::Internal("no tensors to put one after the other".into()));
        };
        let alike = |view: &View| {
            view.shape.len() == first.shape.len()
                && view.shape.iter().zip(&first.shape).enumerate().all(|(i, (a, b))| i == axis || a == b)
        };
        if axis >= first.shape.len() || !views.iter().all(alike) {
            let shapes: Vec<_> = views.iter().map(|view| &view.shape).collect();
            return Err(Error::Internal(format!("cannot put {shapes:?} one after the other along {axis}")));
        }
        let mut shape = first.shape.clone();
        shape[axis] = views.iter().map(|view| view.shape[axis]).sum();
        let wide = views.iter().any(|view| view.element == Element::F32);
        let element = if wide { Element::F32 } else { Element::Bf16 };
        let inner = views.iter().all(|view| view.extents().is_some() && view.strides[0] == 1);
        let whole = match <[usize; 4]>::try_from(&shape[..]) {
            Ok(extents) if inner => self.gpu.empty_volume(extents, element)?,
            _ => self.gpu.row_major(&shape, element)?,
        };
        let mut start = 0;
        for view in &views {
            let len = view.shape[axis];
            self.gpu.copy(view, &whole.slice(axis, start, len))?;
            start += len;
        }
        Ok(whole.into())
    }

    fn throttle(&self) -> Result<()> {
        let mut events = self.gpu.pace.lock().unwrap_or_else(PoisonError::into_inner);
        events[0].synchronize().map_err(device)?;
        events[0].record(&self.gpu.stream).map_err(device)?;
        events.rotate_left(1);
        Ok(())
    }

    fn load(&self, parameter: crate::weights::HostTensor) -> Result<Tensor> {
        Ok(self.gpu.upload_to(&self.gpu.weights, &parameter.data, &parameter.shape)?.into())
    }
}
