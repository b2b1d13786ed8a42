//! Results that are computed when they are read, in the form that suits the reader: a norm as 8-bit rows with their scales
//! for a product in 8 bits, in bf16 or f32 for others; two norms in one launch; two attentions as one kernel that adds them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use animd_kernels::cuda::cudarc::driver::sys::CUdeviceptr;
use animd_kernels::cuda::{Affine, Element, KeyValue, Rows, Typed};

use super::memory::Piece;
use super::sequence::Rope;
use super::tensor::{Tensor, Value, View};
use super::{Gpu, kernel};
use crate::{Error, Result};

/// A result `[rows, columns]` that may not be there yet.
pub(super) struct Deferred {
    pub shape: [usize; 2],
    state: Mutex<State>,
}

struct State {
    operation: Operation,
    bf16: Option<View>,
    f32: Option<View>,
    e4m3: Option<Quantised>,
}

/// What it is the result of.
#[derive(Clone)]
pub(super) enum Operation {
    /// A layer norm of a matrix.
    LayerNorm { x: View, factor: View, summand: View, modulated: bool, eps: f32 },
    /// An RMS norm of a matrix, maybe with a rotary embedding.
    RmsNorm { x: View, weight: View, eps: f32, rope: Option<Rope> },
    /// Attention over heads of 128 channels, with the usual scale.
    Attention { q: Tensor, k: Tensor, v: Tensor, heads: usize },
    /// Whatever is computed and cannot be again: it has let go of what it read, or overwritten it.
    Done,
}

/// Rows in 8 bits, with what each is to be multiplied with.
#[derive(Clone)]
pub(super) struct Quantised {
    piece: Arc<Piece>,
    pub rows: Rows,
    pub scale: CUdeviceptr,
}

impl Quantised {
    /// Memory for so many rows.
    pub fn new(gpu: &Gpu, rows: usize, columns: usize) -> Result<Self> {
        let values = (rows * columns).next_multiple_of(256);
        let piece = Arc::new(gpu.work.take(values + 4 * rows)?);
        let (address, scale) = (piece.address, piece.address + values as u64);
        Ok(Self { piece, rows: Rows::dense(address, rows, columns), scale })
    }

    pub fn typed(&self) -> Typed {
        debug_assert!(self.piece.address == self.rows.address);
        Typed::e4m3(self.rows, self.scale)
    }
}

impl Deferred {
    /// As a tensor.
    pub fn tensor(shape: [usize; 2], operation: Operation) -> Tensor {
        let state = State { operation, bf16: None, f32: None, e4m3: None };
        Tensor(Value::Deferred(Arc::new(Self { shape, state: Mutex::new(state) })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bits of the numbers in memory so far; for tests.
    #[cfg(test)]
    pub fn forms(&self) -> (bool, bool, bool) {
        let state = self.state();
        (state.bf16.is_some(), state.f32.is_some(), state.e4m3.is_some())
    }

    /// The result in this type, or, where it is there in the other one already, in that.
    pub fn view(&self, gpu: &Gpu, element: Element) -> Result<View> {
        let mut state = self.state();
        let State { operation, bf16, f32, .. } = &mut *state;
        let found = match element {
            Element::F32 => f32.as_ref(),
            _ => bf16.as_ref(),
        };
        if let Some(view) = found {
            return Ok(view.clone());
        }
        // Attention is written as bf16 alone.
        let element = match operation {
            Operation::Attention { .. } | Operation::Done => Element::Bf16,
            _ => element,
        };
        if let (Operation::Done, Some(view)) = (&*operation, &*bf16) {
            return Ok(view.clone());
        }
        let view = gpu.matrix(self.shape, element)?;
        match operation {
            Operation::Attention { q, k, v, heads } => {
                gpu.attend(q, k, v, *heads, &view)?;
                *operation = Operation::Done;
            }
            norm => gpu.norm(norm, view.typed(), self.shape[1])?,
        }
        match element {
            Element::F32 => *f32 = Some(view.clone()),
            _ => *bf16 = Some(view.clone()),
        }
        Ok(view)
    }

    /// The result in 8 bits, if it is a norm.
    pub fn quantised(&self, gpu: &Gpu) -> Result<Option<Quantised>> {
        let mut state = self.state();
        let State { operation, e4m3, .. } = &mut *state;
        if let (None, Operation::LayerNorm { .. } | Operation::RmsNorm { .. }) = (&e4m3, &operation) {
            let made = Quantised::new(gpu, self.shape[0], self.shape[1])?;
            gpu.norm(operation, made.typed(), self.shape[1])?;
            *e4m3 = Some(made);
        }
        Ok(e4m3.clone())
    }

    /// The operation, if nothing has come of it yet.
    fn pending(&self) -> Option<Operation> {
        let state = self.state();
        let none = state.bf16.is_none() && state.f32.is_none() && state.e4m3.is_none();
        none.then(|| state.operation.clone())
    }
}

impl Gpu {
    /// Enqueues a norm.
    fn norm(&self, operation: &Operation, y: Typed, columns: usize) -> Result<()> {
        match operation {
            Operation::LayerNorm { x, factor, summand, modulated, eps } => {
                let affine =
                    Affine { factor: factor.address, summand: summand.address, modulated: *modulated };
                // SAFETY: the views keep their memory, `y` is the caller's own, and pieces are given back in the
                // order of the stream.
                kernel(unsafe { self.norms.layer_norm(&self.stream, x.typed(), &affine, *eps, y, columns) })
            }
            Operation::RmsNorm { x, weight, eps, rope } => {
                let tables = rope.as_ref().map(Rope::tables);
                let matrices = [(x.typed(), weight.address, y)];
                // SAFETY: as above.
                kernel(unsafe { self.norms.rms_norm(&self.stream, &matrices, *eps, tables, columns) })
            }
            Operation::Attention { .. } | Operation::Done => {
                Err(Error::Internal("attention was taken for a norm".into()))
            }
        }
    }

    /// Queries and keys in bf16; if both are norms of one form that nobody has read yet, in one launch, and where they come
    /// from, if nobody but these three looks at that any more.
    pub fn query_and_key(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(View, View)> {
        if let (Value::Deferred(a), Value::Deferred(b)) = (&q.0, &k.0)
            && !Arc::ptr_eq(a, b)
            && let (
                Some(Operation::RmsNorm { x: x0, weight: w0, eps, rope }),
                Some(Operation::RmsNorm { x: x1, weight: w1, eps: eps1, rope: rope1 }),
            ) = (a.pending(), b.pending())
            && eps == eps1
            && a.shape == b.shape
            && x0.rows().stride == x1.rows().stride
            && x0.element == x1.element
            && Rope::same(rope.as_ref(), rope1.as_ref())
        {
            let in_place = nobody_else_sees(&x0, &x1, v);
            let y = match in_place {
                true => [x0.clone(), x1.clone()],
                false => [self.matrix(a.shape, Element::Bf16)?, self.matrix(a.shape, Element::Bf16)?],
            };
            let matrices = [(x0.typed(), w0.address, y[0].typed()), (x1.typed(), w1.address, y[1].typed())];
            let tables = rope.as_ref().map(Rope::tables);
            // SAFETY: the views keep their memory, and pieces are given back in the order of the stream.
            kernel(unsafe { self.norms.rms_norm(&self.stream, &matrices, eps, tables, a.shape[1]) })?;
            for (deferred, y) in [a, b].into_iter().zip(y) {
                let mut state = deferred.state();
                state.bf16 = Some(y);
                if in_place {
                    state.operation = Operation::Done;
                }
            }
        }
        Ok((self.rows(q, Element::Bf16)?, self.rows(k, Element::Bf16)?))
    }

    /// Attention over heads of 128 channels to an own matrix.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, to: &View) -> Result<()> {
        let (q, k) = self.query_and_key(q, k, v)?;
        let v = self.rows(v, Element::Bf16)?;
        let (q, k, v, to) = (q.rows(), k.rows(), v.rows(), to.rows());
        if k.rows < self.long_context {
            let set = [KeyValue { k, v }];
            // SAFETY: the views keep their memory, and pieces are given back in the order of the stream.
            return kernel(unsafe { self.cross_attention.run(&self.stream, q, &set, None, to, heads) });
        }
        if self.eight_bit.load(Ordering::Relaxed) && self.attention.has_8bit() {
            let layout = animd_kernels::cuda::Attention8bitLayout::new(q.rows, k.rows, heads);
            let piece = self.work.take(layout.bytes())?;
            let workspace = kernel(layout.at(piece.address))?;
            // SAFETY: as above, and of the workspace.
            return kernel(unsafe { self.attention.eight_bit(&self.stream, q, k, v, to, &workspace) });
        }
        // SAFETY: as above.
        kernel(unsafe { self.attention.bf16(&self.stream, q, k, v, to, heads) })
    }

    /// What a residual is the attention of, if it is one that nobody has read yet, from these queries: both can then be
    /// one kernel.
    pub fn pending_attention(
        &self,
        residual: &Tensor,
        q: &Tensor,
        heads: usize,
    ) -> Result<Option<KeyValueViews>> {
        let (Value::Deferred(residual), Value::Deferred(mine)) = (&residual.0, &q.0) else { return Ok(None) };
        let Some(Operation::Attention { q, k, v, heads: its }) = residual.pending() else { return Ok(None) };
        let same = matches!(&q.0, Value::Deferred(q) if Arc::ptr_eq(q, mine));
        if !same || its != heads || k.extents()[0] >= self.long_context {
            return Ok(None);
        }
        Ok(Some(KeyValueViews { k: self.rows(&k, Element::Bf16)?, v: self.rows(&v, Element::Bf16)? }))
    }
}

/// Whether two inputs of norms, of which the caller and the norms have a view each, can be overwritten: they are parts of
/// one piece, beside each other, as is `v` or nothing else.
fn nobody_else_sees(a: &View, b: &View, v: &Tensor) -> bool {
    let (mut views, mut known) = (vec![a, b], 4);
    if let Value::View(v) = &v.0
        && Arc::ptr_eq(&v.piece, &a.piece)
    {
        views.push(v);
        known += 1;
    }
    let width = (a.shape[1] * a.element.bytes()) as u64;
    let apart = |i: usize, j: usize| views[i].address.abs_diff(views[j].address) >= width;
    Arc::ptr_eq(&a.piece, &b.piece)
        && Arc::strong_count(&a.piece) == known
        && a.element == Element::Bf16
        && views.iter().all(|view| view.shape == a.shape && view.strides == a.strides)
        && a.strides[0] * a.element.bytes() >= width as usize * views.len()
        && (0..views.len()).all(|i| (0..i).all(|j| apart(i, j)))
        // From the same row on.
        && views.iter().all(|view| view.address.abs_diff(a.address) < (a.strides[0] * a.element.bytes()) as u64)
}

/// Keys and values, with their memory.
pub(super) struct KeyValueViews {
    pub k: View,
    pub v: View,
}

impl KeyValueViews {
    pub fn rows(&self) -> KeyValue {
        KeyValue { k: self.k.rows(), v: self.v.rows() }
    }
}
