//! The tensors of one change of a matrix, as they are found in a file, and what they make together.

use std::collections::BTreeMap;

use super::super::stored::Stored;
use super::super::{DType, dtype};
use super::keys::Part;
use super::magnitude::Magnitude;
use super::product::{Factor, Product};
use super::scale::Scaling;

/// The tensors that change one matrix.
#[derive(Default)]
pub(super) struct Pieces {
    /// The layer's name in the file, by which a configuration may scale it.
    pub layer: String,
    parts: BTreeMap<Part, Stored>,
}

impl Pieces {
    /// Puts a tensor in, and returns whether its place was free.
    pub fn put(&mut self, part: Part, stored: Stored) -> bool {
        self.parts.insert(part, stored).is_none()
    }

    /// Returns the change of a tensor of this shape that they make, with the lengths that its rows or columns get.
    ///
    /// # Errors
    /// The end of a sentence about the file: what is missing, or does not fit.
    pub fn product(
        mut self,
        tensor: &str,
        shape: &[usize],
        scaling: &Scaling,
    ) -> Result<(Product, Option<Magnitude>), String> {
        let alpha = self.take(Part::Alpha).map(|stored| number(tensor, &stored)).transpose()?;
        let magnitude = self.take(Part::Magnitude).map(|lengths| {
            Magnitude::new(lengths, shape).map_err(|lengths| {
                let lengths = &lengths.shape;
                format!(
                    "gives the rows or columns of `{tensor}` the lengths {lengths:?}, where the model has {shape:?}: it is for \
                     another one"
                )
            })
        });
        let magnitude = magnitude.transpose()?;
        let made = [
            self.low_rank(tensor, shape, alpha, scaling),
            self.hadamard(tensor, shape, alpha, scaling),
            self.kronecker(tensor, shape, alpha, scaling),
        ];
        let mut made = made.into_iter().filter_map(Result::transpose);
        let product = match (made.next(), made.next()) {
            (Some(product), None) => product?,
            (None, _) if magnitude.is_some() => {
                return Err(format!("has lengths of the rows or columns of `{tensor}` without its matrices"));
            }
            (None, _) => return Err(format!("has an alpha of `{tensor}` without its matrices")),
            (Some(_), Some(_)) => {
                return Err(format!("changes `{tensor}` in two ways at once; copy it again"));
            }
        };
        let scale = match &product {
            Product::LowRank { scale, .. }
            | Product::Hadamard { scale, .. }
            | Product::Kronecker { scale, .. } => *scale,
        };
        if !scale.is_finite() {
            return Err(format!("scales `{tensor}` by {scale}; copy it again"));
        }
        Ok((product, magnitude))
    }

    fn take(&mut self, part: Part) -> Option<Stored> {
        self.parts.remove(&part)
    }

    /// Returns the product of a first matrix (A, down) and a second one (B, up).
    fn low_rank(
        &mut self,
        tensor: &str,
        shape: &[usize],
        alpha: Option<f64>,
        scaling: &Scaling,
    ) -> Result<Option<Product>, String> {
        let (down, up) = match (self.take(Part::Down), self.take(Part::Up)) {
            (None, None) => return Ok(None),
            (Some(down), Some(up)) => (down, up),
            (Some(_), None) => {
                return Err(format!(
                    "has the first matrix of `{tensor}` (A, down) without the second (B, up)"
                ));
            }
            (None, Some(_)) => {
                return Err(format!(
                    "has the second matrix of `{tensor}` (B, up) without the first (A, down)"
                ));
            }
        };
        let [rows, cols] = extents(shape);
        let rank = down.shape.first().copied().unwrap_or(0);
        // A convolution's matrices have extents of 1 behind their own.
        let fits = rank > 0
            && down.elements().checked_div(rank) == Some(cols)
            && up.shape.first() == Some(&rows)
            && up.elements() == rows.saturating_mul(rank);
        if !fits {
            let (down, up) = (&down.shape, &up.shape);
            return Err(format!(
                "changes `{tensor}` by {up:?} times {down:?}, where the model has {shape:?}: it is for another one"
            ));
        }
        let scale = scaling.of(&self.layer, alpha, rank);
        Ok(Some(Product::LowRank { down, up, rank, scale }))
    }

    /// Returns two products of low rank, multiplied element by element.
    fn hadamard(
        &mut self,
        tensor: &str,
        shape: &[usize],
        alpha: Option<f64>,
        scaling: &Scaling,
    ) -> Result<Option<Product>, String> {
        let pairs = [[Part::Hadamard1A, Part::Hadamard1B], [Part::Hadamard2A, Part::Hadamard2B]];
        let found = pairs.map(|pair| pair.map(|part| self.take(part)));
        let factors = match found {
            [[None, None], [None, None]] => return Ok(None),
            [[Some(a), Some(b)], [Some(c), Some(d)]] => [Factor::Pair([a, b]), Factor::Pair([c, d])],
            _ => {
                return Err(format!(
                    "lacks a part of the change of `{tensor}`, which has four: `hada_w1_a`, `hada_w1_b`, `hada_w2_a` and `hada_w2_b`"
                ));
            }
        };
        if factors.iter().any(|factor| factor.extents() != extents(shape) || !is_product(factor)) {
            return Err(unfit(tensor, shape, &factors));
        }
        let scale = scaling.of(&self.layer, alpha, factors[0].rank().unwrap_or(1));
        Ok(Some(Product::Hadamard { factors, scale }))
    }

    /// Returns the Kronecker product of two matrices, each as it is or as a product.
    fn kronecker(
        &mut self,
        tensor: &str,
        shape: &[usize],
        alpha: Option<f64>,
        scaling: &Scaling,
    ) -> Result<Option<Product>, String> {
        let of = [
            [Part::Kronecker1, Part::Kronecker1A, Part::Kronecker1B],
            [Part::Kronecker2, Part::Kronecker2A, Part::Kronecker2B],
        ];
        let found = of.map(|parts| parts.map(|part| self.take(part)));
        if found.iter().flatten().all(Option::is_none) {
            return Ok(None);
        }
        let [first, second] = found.map(|parts| match parts {
            [Some(whole), None, None] => Some(Factor::Whole(whole)),
            [None, Some(left), Some(right)] => Some(Factor::Pair([left, right])),
            _ => None,
        });
        let (Some(first), Some(second)) = (first, second) else {
            return Err(format!(
                "lacks a part of the change of `{tensor}`, which has two: `lokr_w1` and `lokr_w2`, or `_a` and `_b` of each"
            ));
        };
        let factors = [first, second];
        let [[a, b], [c, d]] = [factors[0].extents(), factors[1].extents()];
        let fits = a.checked_mul(c).zip(b.checked_mul(d)).map(<[usize; 2]>::from) == Some(extents(shape));
        // Behind the first two, a convolution's extents are in the second matrix.
        let is_flat = factors[0].shapes().iter().all(|shape| shape.len() == 2);
        if !fits || !is_flat || !factors.iter().all(is_product) {
            return Err(unfit(tensor, shape, &factors));
        }
        let scale = scaling.of_kronecker(&self.layer, alpha, factors[1].rank().or(factors[0].rank()));
        Ok(Some(Product::Kronecker { factors, scale }))
    }
}

/// Returns whether the matrices of a product can be multiplied, and none is empty.
fn is_product(factor: &Factor) -> bool {
    let [rows, cols] = factor.extents();
    let inner = match factor {
        Factor::Whole(_) => true,
        Factor::Pair([left, right]) => {
            let rank = right.shape.first().copied().unwrap_or(0);
            rank > 0 && left.shape.len() == 2 && left.elements() == rows * rank
        }
    };
    inner && rows > 0 && cols > 0
}

fn unfit(tensor: &str, shape: &[usize], factors: &[Factor; 2]) -> String {
    let [first, second] = factors.each_ref().map(Factor::shapes);
    format!(
        "changes `{tensor}` by {first:?} with {second:?}, where the model has {shape:?}: it is for another one"
    )
}

/// Returns the rows and columns of a tensor as a matrix.
fn extents(shape: &[usize]) -> [usize; 2] {
    let rows = shape.first().copied().unwrap_or(1);
    [rows, shape.get(1..).map_or(1, |rest| rest.iter().product())]
}

/// Returns the only number of a tensor.
fn number(tensor: &str, stored: &Stored) -> Result<f64, String> {
    let dtype = stored.dtype().filter(|_| stored.elements() == 1);
    let dtype: DType = dtype.ok_or_else(|| format!("has an alpha of `{tensor}` that is not one number"))?;
    let bytes = stored.bytes().map_err(|e| e.to_string())?;
    Ok(f64::from(dtype::to_f32(dtype, &bytes)[0]))
}
