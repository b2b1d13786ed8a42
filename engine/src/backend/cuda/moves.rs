//! The operations that move tensors and add them up.

use std::sync::PoisonError;

use animd_kernels::cuda::{Element, Volumes};

use super::Cuda;
use super::error::device;
use super::tensor::Tensor;
use crate::backend::{Fetched, TensorOps};
use crate::{Error, Result};

impl TensorOps for Cuda {
    type Tensor = Tensor;

    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        self.gpu.upload(&self.gpu.work, data, shape)
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let dense = self.gpu.dense(tensor, Element::F32)?;
        let mut out = vec![0.0; dense.elements()];
        if !out.is_empty() {
            self.gpu.receive(&dense, &mut out)?;
        }
        Ok(out)
    }

    fn fetch(&self, tensor: &Tensor) -> Result<Fetched> {
        let dense = self.gpu.dense(tensor, Element::F32)?;
        let bytes = 4 * dense.elements();
        if bytes == 0 {
            return Ok(Box::new(|| Ok(Vec::new())));
        }
        let gpu = self.gpu.clone();
        let mut landing = gpu.landing(bytes)?;
        // SAFETY: the tensor has as many bytes; the order of the stream keeps them.
        unsafe { landing.receive(&gpu.stream, bytes, dense.address)? };
        Ok(Box::new(move || {
            let values = bytemuck::cast_slice(&landing.bytes()?[..bytes]).to_vec();
            gpu.landing.lock().unwrap_or_else(PoisonError::into_inner).push(landing);
            Ok(values)
        }))
    }

    fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.shape.clone()
    }

    fn linear_combination(&self, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
        let Some((_, first)) = terms.first() else {
            return Err(Error::Internal("a sum of no tensors has no shape".into()));
        };
        let mut dense = Vec::with_capacity(terms.len());
        for (factor, term) in terms {
            if term.shape != first.shape {
                return Err(Error::Internal(format!("cannot add {:?} to {:?}", term.shape, first.shape)));
            }
            dense.push((*factor, self.gpu.dense(term, term.element)?));
        }
        let wide = dense.iter().any(|(_, term)| term.element == Element::F32);
        let element = if wide { Element::F32 } else { Element::Bf16 };
        let elements = first.elements();
        let mut sum: Option<Tensor> = None;
        let mut rest = &dense[..];
        while !rest.is_empty() {
            let room = Volumes::TERMS - usize::from(sum.is_some());
            let (now, later) = rest.split_at(room.min(rest.len()));
            // A sum that another launch continues is not rounded in between.
            let to = if later.is_empty() { element } else { Element::F32 };
            let before = sum.take();
            let terms: Vec<_> =
                before.iter().map(|sum| (1.0, sum)).chain(now.iter().map(|(f, x)| (*f, x))).collect();
            let y = self.gpu.row_major(&first.shape, to)?;
            self.gpu.sum(&terms, &y, elements)?;
            sum = Some(y);
            rest = later;
        }
        sum.ok_or_else(|| Error::Internal("a sum of no tensors".into()))
    }

    fn slice(&self, tensor: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        if tensor.shape.get(axis).is_none_or(|extent| start + len > *extent) {
            return Err(Error::Internal(format!(
                "{start} to {} of axis {axis} of {:?}",
                start + len,
                tensor.shape
            )));
        }
        let part = tensor.slice(axis, start, len);
        // The slice has some of a voxel's channels, so no zeros follow them.
        if axis == 0 && tensor.extents().is_some() && tensor.strides[0] == 1 && len < tensor.shape[0] {
            return self.gpu.volume_like(&part);
        }
        Ok(part)
    }

    fn contiguous(&self, tensor: &Tensor) -> Result<Tensor> {
        let own = match tensor.extents() {
            Some(extents) if tensor.strides[0] == 1 => self.gpu.empty_volume(extents, tensor.element)?,
            _ => self.gpu.row_major(&tensor.shape, tensor.element)?,
        };
        self.gpu.copy(tensor, &own)?;
        Ok(own)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        let Some(first) = parts.first() else {
            return Err(Error::Internal("no tensors to put one after the other".into()));
        };
        let alike = |part: &&Tensor| {
            part.shape.len() == first.shape.len()
                && part.shape.iter().zip(&first.shape).enumerate().all(|(i, (a, b))| i == axis || a == b)
        };
        if axis >= first.shape.len() || !parts.iter().all(alike) {
            let shapes: Vec<_> = parts.iter().map(|part| &part.shape).collect();
            return Err(Error::Internal(format!("cannot put {shapes:?} one after the other along {axis}")));
        }
        let mut shape = first.shape.clone();
        shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        let wide = parts.iter().any(|part| part.element == Element::F32);
        let element = if wide { Element::F32 } else { Element::Bf16 };
        let inner = parts.iter().all(|part| part.extents().is_some() && part.strides[0] == 1);
        let whole = match <[usize; 4]>::try_from(&shape[..]) {
            Ok(extents) if inner => self.gpu.empty_volume(extents, element)?,
            _ => self.gpu.row_major(&shape, element)?,
        };
        let mut start = 0;
        for part in parts {
            let len = part.shape[axis];
            self.gpu.copy(part, &whole.slice(axis, start, len))?;
            start += len;
        }
        Ok(whole)
    }

    fn throttle(&self) -> Result<()> {
        let mut events = self.gpu.pace.lock().unwrap_or_else(PoisonError::into_inner);
        events[0].synchronize().map_err(device)?;
        events[0].record(&self.gpu.stream).map_err(device)?;
        events.rotate_left(1);
        Ok(())
    }
}
