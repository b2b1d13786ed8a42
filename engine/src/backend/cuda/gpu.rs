//! The device and the basis of all operations: memory for tensors, copies, conversions of type and layout.
//!
//! Launches are enqueued on one stream, and allocations are returned in its order. A tensor's memory therefore stays
//! unchanged until every launch that was enqueued before the tensor's end is done. The `SAFETY` comments of this
//! backend call this the order of the stream.

use std::sync::{Arc, Mutex, PoisonError};

use animd_kernels::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};
use animd_kernels::cuda::{
    self, AnyAttention, Attention, Card, Conv, Copies, CrossAttention, Element, Expand, Gemm, Norms, Term,
    Volumes,
};

use super::error::{device, kernel};
use super::memory::{Arena, Memory};
use super::pinned::Pinned;
use super::slab::Pinning;
use super::supply::Supply;
use super::tensor::{Tensor, channels_last, filled_up, padded, row_major};
use super::transfer::Transfer;
use crate::{Error, Result};

/// The state that all clones of the backend share.
pub(super) struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub supply: Arc<Supply>,
    /// The bytes of which mapped memory has a multiple; `None` where all weights must stay, because nothing can be mapped.
    pub granularity: Option<usize>,
    /// The copies of weights that wait in host memory.
    pub transfer: Transfer,
    pub pinning: Arc<Pinning>,
    /// What the running job has to say about memory.
    pub notes: Mutex<Vec<String>>,
    pub weights: Arc<Arena>,
    pub work: Arc<Arena>,
    pub gemm: Gemm,
    pub norms: Norms,
    pub attention: Attention,
    pub cross_attention: CrossAttention,
    pub any_attention: AnyAttention,
    pub conv: Conv,
    pub volumes: Volumes,
    pub expand: Expand,
    pub copies: Copies,
    /// The events of the last calls of [`super::super::TensorOps::throttle`], the oldest first.
    pub pace: Mutex<[CudaEvent; 2]>,
    /// The stream for copies to the host.
    pub landing: Mutex<Vec<Pinned>>,
    /// The number of keys from which on attention counts as self-attention.
    pub long_context: usize,
    /// Whether 8-bit self-attention quantises queries and keys as their product leaves them.
    pub raw_heads: bool,
    /// Whether 8-bit products are summed up in the tensor cores alone.
    pub fast_sums: bool,
    /// Which kernels serve this GPU.
    pub card: Card,
}

/// Allocates a contiguous tensor, the last axis innermost.
pub(super) fn take(
    memory: &dyn Memory,
    elements: usize,
    element: Element,
    shape: &[usize],
) -> Result<Tensor> {
    let piece = Arc::new(memory.piece(elements * element.bytes())?);
    Ok(Tensor { address: piece.address, piece, element, shape: shape.to_vec(), strides: row_major(shape) })
}

/// Allocation, and copies of bytes.
impl Gpu {
    /// Tells the log, and whoever asks for the job's report, something about memory; the same words once a job.
    pub fn note(&self, text: &str) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.iter().any(|note| note == text) {
            tracing::warn!("{text}");
            notes.push(text.to_owned());
        }
    }

    /// Allocates a work matrix whose rows each begin at a multiple of 16 bytes.
    pub fn matrix(&self, [rows, columns]: [usize; 2], element: Element) -> Result<Tensor> {
        let stride = columns.next_multiple_of(16 / element.bytes());
        Ok(Tensor { strides: vec![stride, 1], ..take(&self.work, rows * stride, element, &[rows, columns])? })
    }

    /// Allocates a contiguous work tensor, the last axis innermost.
    pub fn row_major(&self, shape: &[usize], element: Element) -> Result<Tensor> {
        take(&self.work, shape.iter().product(), element, shape)
    }

    /// Allocates a work volume with its channels innermost. Channels that pad it are not zeroed.
    pub fn channels_last(&self, extents: [usize; 4], element: Element) -> Result<Tensor> {
        let tensor = take(&self.work, filled_up(extents), element, &extents)?;
        Ok(Tensor { strides: channels_last(extents), ..tensor })
    }

    /// Allocates a work volume with its channels innermost, and zeros in the channels that pad it.
    pub fn empty_volume(&self, extents: [usize; 4], element: Element) -> Result<Tensor> {
        let volume = self.channels_last(extents, element)?;
        if padded(extents[0]) != extents[0] {
            self.clear(&volume, filled_up(extents) * element.bytes())?;
        }
        Ok(volume)
    }

    /// Copies values to where a tensor begins. The host's memory may be reused when this returns.
    pub fn send<T: bytemuck::Pod>(&self, data: &[T], to: &Tensor) -> Result<()> {
        to.check_room(size_of_val(data))?;
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the tensor's memory has room for all of it. Ordinary memory is read before the driver returns.
        unsafe { result::memcpy_htod_async(to.address, data, self.stream.cu_stream()) }.map_err(device)
    }

    /// Copies contiguous f32 elements to the host, when all earlier work is done.
    pub fn receive(&self, from: &Tensor, out: &mut [f32]) -> Result<()> {
        from.check_room(size_of_val(out))?;
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the tensor's memory has as many bytes; the wait follows before anybody reads them.
        unsafe { result::memcpy_dtoh_async(out, from.address, self.stream.cu_stream()) }.map_err(device)?;
        self.stream.synchronize().map_err(device)
    }

    /// Returns pinned memory of at least so many bytes.
    pub fn landing(&self, bytes: usize) -> Result<Pinned> {
        let mut free = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = free.iter().position(|pinned| pinned.len() >= bytes) {
            return Ok(free.swap_remove(i));
        }
        free.clear();
        Pinned::new(&self.context, bytes)
    }

    /// Fills so many bytes of a tensor's memory with zeros.
    pub fn clear(&self, tensor: &Tensor, bytes: usize) -> Result<()> {
        tensor.check_room(bytes)?;
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the tensor's memory has as many bytes.
        unsafe { result::memset_d8_async(tensor.address, 0, bytes, self.stream.cu_stream()) }.map_err(device)
    }

    /// Copies so many bytes from where one tensor begins to where another does.
    pub fn move_bytes(&self, from: &Tensor, to: &Tensor, bytes: usize) -> Result<()> {
        from.check_room(bytes)?;
        to.check_room(bytes)?;
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: both tensors' memory has as many bytes; the order of the stream keeps them.
        unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, self.stream.cu_stream()) }
            .map_err(device)
    }

    /// Returns f32 values as a tensor.
    pub fn upload(&self, memory: &dyn Memory, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        let elements: usize = shape.iter().product();
        if data.len() != elements {
            return Err(Error::Internal(format!("{} values for {shape:?}", data.len())));
        }
        let tensor = take(memory, elements, Element::F32, shape)?;
        if elements > 0 {
            self.send(data, &tensor)?;
        }
        Ok(tensor)
    }
}

/// Conversions of type and layout.
impl Gpu {
    /// Sets `to` to the sum of `factor * term`, from left to right in f32, over so many contiguous elements of each.
    pub fn sum(&self, terms: &[(f32, &Tensor)], to: &Tensor, elements: usize) -> Result<()> {
        to.check_room(elements * to.element.bytes())?;
        let terms = terms.iter().map(|(factor, x)| {
            x.check_room(elements * x.element.bytes())?;
            Ok(Term { address: x.address, element: x.element, factor: *factor })
        });
        let terms = terms.collect::<Result<Vec<_>>>()?;
        // SAFETY: all tensors' memory has as many elements; the order of the stream keeps them.
        kernel(unsafe { self.volumes.combine(&self.stream, &terms, to.address, to.element, elements) })
    }

    /// Copies elements between tensors of one shape, with conversion.
    pub fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        if from.shape != to.shape {
            return Err(Error::Internal(format!("cannot copy {:?} to {:?}", from.shape, to.shape)));
        }
        let elements = from.elements();
        if elements == 0 {
            return Ok(());
        }
        let whole = from.is_row_major() && to.is_row_major() && from.is_aligned() && to.is_aligned();
        let volumes = from.is_channels_last() && to.is_channels_last();
        if (whole || volumes) && from.element == to.element {
            let elements = if whole { elements } else { filled_up(from.extents().unwrap_or_default()) };
            return self.move_bytes(from, to, elements * from.element.bytes());
        }
        if whole {
            return self.sum(&[(1.0, from)], to, elements);
        }
        let ((from, extents), (to, _)) = (from.strided(), to.strided());
        // SAFETY: the tensors have these extents; the order of the stream keeps them.
        kernel(unsafe { self.copies.run(&self.stream, from, to, extents) })
    }

    /// Returns a contiguous tensor of this type, the last axis innermost.
    pub fn dense(&self, tensor: &Tensor, element: Element) -> Result<Tensor> {
        if tensor.element == element && tensor.is_row_major() && tensor.is_aligned() {
            return Ok(tensor.clone());
        }
        let dense = self.row_major(&tensor.shape, element)?;
        if tensor.is_channels_last() && element == Element::F32 {
            let [channels, frames, height, width] = tensor.extents().unwrap_or_default();
            let voxels = frames * height * width;
            let rows = cuda::Rows::dense(tensor.address, voxels, tensor.strides[3]);
            // SAFETY: the tensors have these extents; the order of the stream keeps them.
            kernel(unsafe {
                let (from, to) = (tensor.element, dense.address);
                self.volumes.channels_first(&self.stream, rows, from, to, channels, voxels)
            })?;
            return Ok(dense);
        }
        self.copy(tensor, &dense)?;
        Ok(dense)
    }

    /// Returns a matrix of this type that kernels can read.
    pub fn rows(&self, tensor: &Tensor, element: Element) -> Result<Tensor> {
        let shape = tensor.matrix()?;
        if tensor.element == element && tensor.is_matrix() {
            return Ok(tensor.clone());
        }
        let matrix = self.matrix(shape, element)?;
        self.copy(tensor, &matrix)?;
        Ok(matrix)
    }

    /// Returns a matrix that kernels can read, in its own type.
    pub fn any_rows(&self, tensor: &Tensor) -> Result<Tensor> {
        self.rows(tensor, tensor.element)
    }

    /// Returns `n` contiguous f32 factors.
    pub fn vector(&self, tensor: &Tensor, n: usize) -> Result<Tensor> {
        let vector = self.dense(tensor, Element::F32)?;
        if vector.elements() != n {
            return Err(Error::Internal(format!("{:?} for {n} features", vector.shape)));
        }
        Ok(vector)
    }

    /// Returns a matrix with its columns padded with zeros to so many.
    pub fn filled_up(&self, x: Tensor, columns: usize) -> Result<Tensor> {
        if x.shape[1] == columns {
            return Ok(x);
        }
        let wide = self.matrix([x.shape[0], columns], x.element)?;
        self.clear(&wide, x.shape[0] * wide.strides[0] * x.element.bytes())?;
        self.copy(&x, &wide.slice(1, 0, x.shape[1]))?;
        Ok(wide)
    }

    /// Returns a tensor as a volume of this type with its channels innermost.
    pub fn volume(&self, tensor: &Tensor, element: Element) -> Result<Tensor> {
        let Some(extents @ [channels, frames, height, width]) = tensor.extents() else {
            return Err(Error::Internal(format!(
                "{:?} is no volume of channels, frames, height, width",
                tensor.shape
            )));
        };
        if tensor.is_channels_last() && tensor.element == element {
            return Ok(tensor.clone());
        }
        if tensor.strides[0] == 1 && channels > 1 {
            return self.volume_like(tensor).and_then(|volume| self.converted(volume, element));
        }
        if element == Element::F32 {
            let volume = self.empty_volume(extents, element)?;
            self.copy(tensor, &volume)?;
            return Ok(volume);
        }
        let dense = self.dense(tensor, Element::F32)?;
        let volume = self.channels_last(extents, element)?;
        let voxels = frames * height * width;
        if voxels > 0 {
            let rows = cuda::Rows::dense(volume.address, voxels, padded(channels));
            // SAFETY: the tensors have these extents; the order of the stream keeps them.
            kernel(unsafe { self.volumes.channels_last(&self.stream, dense.address, channels, rows) })?;
        }
        Ok(volume)
    }

    /// Returns a volume in another type, with the same padding.
    fn converted(&self, tensor: Tensor, element: Element) -> Result<Tensor> {
        if tensor.element == element {
            return Ok(tensor);
        }
        let extents = tensor.extents().unwrap_or_default();
        let volume = self.channels_last(extents, element)?;
        let elements = filled_up(extents);
        if elements > 0 {
            self.sum(&[(1.0, &tensor)], &volume, elements)?;
        }
        Ok(volume)
    }

    /// Returns a tensor as a volume of the same type with its channels innermost; it is copied only if it is not one.
    pub fn volume_like(&self, tensor: &Tensor) -> Result<Tensor> {
        if tensor.is_channels_last() {
            return Ok(tensor.clone());
        }
        let volume = self.empty_volume(tensor.extents().unwrap_or_default(), tensor.element)?;
        self.copy(tensor, &volume)?;
        Ok(volume)
    }
}
