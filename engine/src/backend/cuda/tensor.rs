//! Tensors: views of device memory in whatever layout it has, or results that nobody has asked for yet.

use std::sync::Arc;

use animd_kernels::cuda::{Element, Rows, Strided, Typed, Volume};

use super::deferred::Deferred;
use super::memory::Piece;

/// A tensor on the GPU.
#[derive(Clone)]
pub struct Tensor(pub(super) Value);

#[derive(Clone)]
pub(super) enum Value {
    /// It is there, or will be when the stream gets there.
    View(View),
    /// It is computed in the form that the first who reads it can use.
    Deferred(Arc<Deferred>),
}

/// Elements of a piece of memory.
#[derive(Clone)]
pub(super) struct View {
    /// Keeps the memory.
    pub piece: Arc<Piece>,
    /// Of the first element.
    pub address: u64,
    /// bf16 or f32; of weights e4m3, too.
    pub element: Element,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements from one to the next along each axis.
    pub strides: Vec<usize>,
}

impl From<View> for Tensor {
    fn from(view: View) -> Self {
        Self(Value::View(view))
    }
}

impl Tensor {
    /// Its extents, outermost first.
    pub(super) fn extents(&self) -> &[usize] {
        match &self.0 {
            Value::View(view) => &view.shape,
            Value::Deferred(deferred) => &deferred.shape,
        }
    }
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

impl View {
    /// How many elements there are, without those that fill up.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn has_strides(&self, strides: &[usize]) -> bool {
        // An axis of one element has no next one.
        let mut axes = self.shape.iter().zip(&self.strides).zip(strides);
        axes.all(|((extent, mine), other)| *extent == 1 || mine == other)
    }

    /// Whether the elements follow each other, the last axis innermost.
    pub fn is_row_major(&self) -> bool {
        self.has_strides(&row_major(&self.shape))
    }

    /// Whether kernels may read it 16 bytes at a time.
    pub fn is_aligned(&self) -> bool {
        self.address.is_multiple_of(16)
    }

    /// The extents, if it is a volume.
    pub fn extents(&self) -> Option<[usize; 4]> {
        <[usize; 4]>::try_from(&self.shape[..]).ok()
    }

    /// Whether it is a whole volume with its channels innermost and zeros after them.
    pub fn is_channels_last(&self) -> bool {
        let Some(extents) = self.extents() else { return false };
        // An axis of one element does not say it, but the last one has to: channels are filled up behind each pixel.
        self.strides[3] == padded(extents[0])
            && self.has_strides(&channels_last(extents))
            && self.is_aligned()
    }

    /// As a volume; only of a bf16 one that [`Self::is_channels_last`].
    pub fn volume(&self) -> Volume {
        let [channels, frames, height, width] = self.extents().unwrap_or_default();
        Volume { address: self.address, frames, height, width, channels: padded(channels) }
    }

    /// Whether it is a matrix that kernels read 16 bytes at a time.
    pub fn is_matrix(&self) -> bool {
        let [rows, columns] = self.shape[..] else { return false };
        let next = if rows == 1 { columns } else { self.strides[0] };
        (columns == 1 || self.strides[1] == 1)
            && (rows == 1 || (next * self.element.bytes()).is_multiple_of(16))
            && self.is_aligned()
    }

    /// As a matrix; only of one that [`Self::is_matrix`].
    pub fn rows(&self) -> Rows {
        let multiple = 16 / self.element.bytes();
        match self.shape[..] {
            [1, columns] => {
                Rows { address: self.address, rows: 1, stride: columns.next_multiple_of(multiple) }
            }
            _ => Rows { address: self.address, rows: self.shape[0], stride: self.strides[0] },
        }
    }

    /// As a matrix with its type.
    pub fn typed(&self) -> Typed {
        match self.element {
            Element::F32 => Typed::f32(self.rows()),
            _ => Typed::bf16(self.rows()),
        }
    }

    /// Elements `start..start + len` along `axis`.
    pub fn slice(&self, axis: usize, start: usize, len: usize) -> Self {
        let mut view = self.clone();
        view.shape[axis] = len;
        view.address += (start * self.strides[axis] * self.element.bytes()) as u64;
        view
    }

    /// For copies: of up to four axes, filled up with ones at the front.
    pub fn strided(&self) -> (Strided, [usize; 4]) {
        let (mut strides, mut extents) = ([0; 4], [1; 4]);
        let front = 4 - self.shape.len();
        strides[front..].copy_from_slice(&self.strides);
        extents[front..].copy_from_slice(&self.shape);
        (Strided { address: self.address, element: self.element, strides }, extents)
    }
}
