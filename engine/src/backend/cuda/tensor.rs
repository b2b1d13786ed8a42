//! Tensors: elements of device memory in whatever layout they have.

use std::sync::Arc;

use animd_kernels::cuda::{Element, Rows, Strided, Typed, Volume};

use super::memory::Piece;
use crate::{Error, Result};

/// A tensor on the GPU: it is there, or will be when the stream gets there.
#[derive(Clone)]
pub struct Tensor {
    /// Keeps the memory.
    pub(super) piece: Arc<Piece>,
    /// Of the first element.
    pub(super) address: u64,
    /// bf16 or f32; of weights and of what products in 8 bits read e4m3, too.
    pub(super) element: Element,
    /// Extents, outermost first.
    pub(super) shape: Vec<usize>,
    /// Elements from one to the next along each axis.
    pub(super) strides: Vec<usize>,
}

/// Channels of a volume in memory: 16 bytes of them at a time.
pub(super) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(8)
}

/// Strides of a shape whose elements follow each other, the last axis innermost.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Elements of a volume with its channels innermost, with those that fill up.
pub(super) fn filled_up([channels, frames, height, width]: [usize; 4]) -> usize {
    padded(channels) * frames * height * width
}

/// Strides of a volume `[channels, frames, height, width]` with its channels innermost, filled up to [`padded`].
pub(super) fn channels_last([channels, _, height, width]: [usize; 4]) -> Vec<usize> {
    let c = padded(channels);
    vec![1, height * width * c, width * c, c]
}

impl Tensor {
    /// How many elements there are, without those that fill up.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether its memory has room for so many bytes from its first element on.
    ///
    /// # Errors
    /// [`Error::Internal`] if it has not.
    pub(super) fn check_room(&self, bytes: usize) -> Result<()> {
        let room = self.piece.end().saturating_sub(self.address);
        if bytes as u64 > room {
            return Err(Error::Internal(format!("{bytes} bytes for a tensor that has room for {room}")));
        }
        Ok(())
    }

    fn has_strides(&self, strides: &[usize]) -> bool {
        // An axis of one element has no next one.
        let mut axes = self.shape.iter().zip(&self.strides).zip(strides);
        axes.all(|((extent, mine), other)| *extent == 1 || mine == other)
    }

    /// Whether the elements follow each other, the last axis innermost.
    pub(super) fn is_row_major(&self) -> bool {
        self.has_strides(&row_major(&self.shape))
    }

    /// Whether kernels may read it 16 bytes at a time.
    pub(super) fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
    }

    /// The extents, if it is a volume.
    pub(super) fn extents(&self) -> Option<[usize; 4]> {
        <[usize; 4]>::try_from(&self.shape[..]).ok()
    }

    /// Whether it is a whole volume with its channels innermost and zeros after them.
    pub(super) fn is_channels_last(&self) -> bool {
        let Some(extents) = self.extents() else { return false };
        // An axis of one element does not say it, but the last one has to: channels are filled up behind each pixel.
        self.strides[3] == padded(extents[0])
            && self.has_strides(&channels_last(extents))
            && self.is_aligned()
    }

    /// As a volume; only of a bf16 one that [`Self::is_channels_last`].
    pub(super) fn volume(&self) -> Volume {
        let [channels, frames, height, width] = self.extents().unwrap_or_default();
        Volume { address: self.address, frames, height, width, channels: padded(channels) }
    }

    /// Rows and columns.
    ///
    /// # Errors
    /// [`Error::Internal`] if it is no matrix.
    pub(super) fn matrix(&self) -> Result<[usize; 2]> {
        <[usize; 2]>::try_from(&self.shape[..])
            .map_err(|_| Error::Internal(format!("{:?} is no matrix of rows and features", self.shape)))
    }

    /// Whether it is a matrix that kernels read 16 bytes at a time.
    pub(super) fn is_matrix(&self) -> bool {
        let [rows, columns] = self.shape[..] else { return false };
        let next = if rows == 1 { columns } else { self.strides[0] };
        (columns == 1 || self.strides[1] == 1)
            && (rows == 1 || (next * self.element.bytes()).is_multiple_of(16))
            && self.is_aligned()
    }

    /// As a matrix; only of one that [`Self::is_matrix`].
    pub(super) fn rows(&self) -> Rows {
        let multiple = 16 / self.element.bytes();
        match self.shape[..] {
            [1, columns] => {
                Rows { address: self.address, rows: 1, stride: columns.next_multiple_of(multiple) }
            }
            _ => Rows { address: self.address, rows: self.shape[0], stride: self.strides[0] },
        }
    }

    /// As a matrix of bf16 or f32 with its type.
    pub(super) fn typed(&self) -> Typed {
        match self.element {
            Element::F32 => Typed::f32(self.rows()),
            _ => Typed::bf16(self.rows()),
        }
    }

    /// Elements `start..start + len` along `axis`.
    pub(super) fn slice(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut part = self.clone();
        part.shape[axis] = len;
        part.address += (start * self.strides[axis] * self.element.bytes()) as u64;
        part
    }

    /// For copies: of up to four axes, filled up with ones at the front.
    pub(super) fn strided(&self) -> (Strided, [usize; 4]) {
        let (mut strides, mut extents) = ([0; 4], [1; 4]);
        let front = 4 - self.shape.len();
        strides[front..].copy_from_slice(&self.strides);
        extents[front..].copy_from_slice(&self.shape);
        (Strided { address: self.address, element: self.element, strides }, extents)
    }
}
