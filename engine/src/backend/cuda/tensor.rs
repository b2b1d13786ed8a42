//! Tensors: elements of device memory in any layout.

use std::sync::Arc;

use animd_kernels::cuda::{Element, Rows, Strided, Typed, Volume};

use super::memory::Piece;
use crate::{Error, Result};

/// A tensor on the GPU. Its values are there once the stream has reached the point where it was made.
#[derive(Clone)]
pub struct Tensor {
    /// The allocation, which the tensor keeps alive.
    pub(super) piece: Arc<Piece>,
    /// The address of the first element.
    pub(super) address: u64,
    /// bf16 or f32; weights and the operands of 8-bit products can be e4m3 or int8, too.
    pub(super) element: Element,
    /// Extents, outermost first.
    pub(super) shape: Vec<usize>,
    /// The strides: elements from one to the next along each axis.
    pub(super) strides: Vec<usize>,
}

/// Returns the channels of a volume as stored: a multiple of 16 bytes.
pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

/// Returns the strides of a contiguous shape, the last axis innermost.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Returns the number of elements of a volume with its channels innermost, padding included.
pub(super) fn filled_up([channels, frames, height, width]: [usize; 4]) -> usize {
    padded(channels) * frames * height * width
}

/// Returns the strides of a volume `[channels, frames, height, width]` with its channels innermost, padded to
/// [`padded`].
pub(super) fn channels_last([channels, _, height, width]: [usize; 4]) -> Vec<usize> {
    let c = padded(channels);
    vec![1, height * width * c, width * c, c]
}

impl Tensor {
    /// Returns the number of elements, without padding.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Checks that its memory has room for so many bytes from its first element on.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if it does not.
    pub(super) fn check_room(&self, bytes: usize) -> Result<()> {
        let room = self.piece.end().saturating_sub(self.address);
        if bytes as u64 > room {
            return Err(Error::Internal(format!("{bytes} bytes for a tensor that has room for {room}")));
        }
        Ok(())
    }

    fn has_strides(&self, strides: &[usize]) -> bool {
        // The stride of an axis of one element does not matter.
        let mut axes = self.shape.iter().zip(&self.strides).zip(strides);
        axes.all(|((extent, mine), other)| *extent == 1 || mine == other)
    }

    /// Returns whether the elements are contiguous, the last axis innermost.
    pub(super) fn is_row_major(&self) -> bool {
        self.has_strides(&row_major(&self.shape))
    }

    /// Returns whether kernels may read it 16 bytes at a time.
    pub(super) fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
    }

    /// Returns the extents, if it is a volume.
    pub(super) fn extents(&self) -> Option<[usize; 4]> {
        <[usize; 4]>::try_from(&self.shape[..]).ok()
    }

    /// Returns whether it is a whole volume with its channels innermost and zeros after them.
    pub(super) fn is_channels_last(&self) -> bool {
        let Some(extents) = self.extents() else { return false };
        // The comparison skips an axis of one element, but the last stride must always be right: each pixel has
        // padding.
        self.strides[3] == padded(extents[0])
            && self.has_strides(&channels_last(extents))
            && self.is_aligned()
    }

    /// Returns the kernels' view of it as a volume; it must be a bf16 one that [`Self::is_channels_last`].
    pub(super) fn volume(&self) -> Volume {
        let [channels, frames, height, width] = self.extents().unwrap_or_default();
        Volume { address: self.address, frames, height, width, channels: padded(channels) }
    }

    /// Returns the rows and columns.
    ///
    /// # Errors
    /// Returns [`Error::Internal`] if it is not a matrix.
    pub(super) fn matrix(&self) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(&self.shape[..])
            .map_err(|_| Error::Internal(format!("{:?} is no matrix of rows and features", self.shape)))
    }

    /// Returns whether it is a matrix that kernels can read 16 bytes at a time.
    pub(super) fn is_matrix(&self) -> bool {
        let [rows, columns] = self.shape[..] else { return false };
        let next = if rows == 1 { columns } else { self.strides[0] };
        (columns == 1 || self.strides[1] == 1)
            && (rows == 1 || (next * self.element.bytes()).is_multiple_of(16))
            && self.is_aligned()
    }

    /// Returns the kernels' view of it as a matrix; it must be one that [`Self::is_matrix`].
    pub(super) fn rows(&self) -> Rows {
        let multiple = 16 / self.element.bytes();
        match self.shape[..] {
            [1, columns] => {
                Rows { address: self.address, rows: 1, stride: columns.next_multiple_of(multiple) }
            }
            _ => Rows { address: self.address, rows: self.shape[0], stride: self.strides[0] },
        }
    }

    /// Returns the kernels' view of it as a matrix of bf16 or f32, with its type.
    pub(super) fn typed(&self) -> Typed {
        match self.element {
            Element::F32 => Typed::f32(self.rows()),
            _ => Typed::bf16(self.rows()),
        }
    }

    /// Returns the elements `start..start + len` along `axis`.
    pub(super) fn slice(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut part = self.clone();
        part.shape[axis] = len;
        part.address += (start * self.strides[axis] * self.element.bytes()) as u64;
        part
    }

    /// Returns the view for copies, with up to four axes, padded with ones at the front.
    pub(super) fn strided(&self) -> (Strided, [usize; 4]) {
        let (mut strides, mut extents) = ([0; 4], [1; 4]);
        let front = 4 - self.shape.len();
        strides[front..].copy_from_slice(&self.strides);
        extents[front..].copy_from_slice(&self.shape);
        (Strided { address: self.address, element: self.element, strides }, extents)
    }
}
