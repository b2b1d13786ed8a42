//! Tiles: a frame in overlapping parts, each with a causal past of its own, faded into each other.
//!
//! Wan's usual scheme applies: tiles of 256 pixels start every 192, and the last ones are shorter. Each tile is faded
//! in over the end of the one above and then of the one to the left (after their own fading). All but its first 192
//! pixels are then cut off.

use std::ops::Range;

use crate::Result;
use crate::backend::Backend;
use animd_protocol::request::Tiling;

use animd_protocol::dims::{STRIDE, TILE};

/// The division of a frame along both axes.
pub(super) struct Grid {
    /// The length and stride of a tile, in elements of the frame that is divided.
    tile: usize,
    stride: usize,
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
}

impl Grid {
    /// Returns the grid of a frame of `height` x `width` elements, each of which stands for `pixels` pixels. A frame
    /// that fits into one tile is not divided.
    pub fn new([height, width]: [usize; 2], pixels: usize, tiling: Tiling) -> Self {
        let (tile, stride) = (TILE / pixels, STRIDE / pixels);
        if tiling == Tiling::Whole || (height <= tile && width <= tile) {
            return Self::whole(height, width);
        }
        let cut = |len: usize| (0..len).step_by(stride).map(|start| start..len.min(start + tile)).collect();
        Self { tile, stride, rows: cut(height), columns: cut(width) }
    }

    /// Returns a grid of one tile, however large.
    fn whole(height: usize, width: usize) -> Self {
        let longest = height.max(width);
        let all = |len: usize| std::iter::once(0..len).collect();
        Self { tile: longest, stride: longest, rows: all(height), columns: all(width) }
    }

    /// Returns the same division for a frame whose elements are smaller (`up`) or larger (`down`).
    pub fn scaled(&self, up: usize, down: usize) -> Self {
        let scale = |v: usize| v * up / down;
        let ranges = |r: &[Range<usize>]| r.iter().map(|r| scale(r.start)..scale(r.end)).collect();
        Self {
            tile: scale(self.tile),
            stride: scale(self.stride),
            rows: ranges(&self.rows),
            columns: ranges(&self.columns),
        }
    }

    /// Returns the number of tiles.
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Returns tile number `index` of `x` `[.., height, width]`, counted row by row.
    pub fn cut<B: Backend>(&self, b: &B, x: &B::Tensor, index: usize) -> Result<B::Tensor> {
        if self.len() == 1 {
            return Ok(x.clone());
        }
        let row = &self.rows[index / self.columns.len()];
        let column = &self.columns[index % self.columns.len()];
        b.slice(&b.slice(x, 2, row.start, row.len())?, 3, column.start, column.len())
    }

    /// Joins all tiles, row by row, to one volume.
    pub fn join<B: Backend>(&self, b: &B, mut tiles: Vec<B::Tensor>) -> Result<B::Tensor> {
        let columns = self.columns.len();
        let overlap = self.tile - self.stride;
        let mut rows = Vec::with_capacity(self.rows.len());
        for i in 0..self.rows.len() {
            let mut row = Vec::with_capacity(columns);
            for j in 0..columns {
                let at = i * columns + j;
                let fade = |tiles: &[B::Tensor], before: usize, axis: usize| {
                    let len = |t: usize| b.shape(&tiles[t])[axis];
                    let extent = overlap.min(len(before)).min(len(at));
                    b.fade(&tiles[before], &tiles[at], axis, extent)
                };
                if i > 0 {
                    tiles[at] = fade(&tiles, at - columns, 2)?;
                }
                if j > 0 {
                    tiles[at] = fade(&tiles, at - 1, 3)?;
                }
                let mut kept = tiles[at].clone();
                for (axis, range) in [(2, &self.rows[i]), (3, &self.columns[j])] {
                    if range.len() > self.stride {
                        kept = b.slice(&kept, axis, 0, self.stride)?;
                    }
                }
                row.push(kept);
            }
            rows.push(concat(b, row, 3)?);
        }
        concat(b, rows, 2)
    }
}

/// Joins parts in order along `axis`.
pub(super) fn concat<B: Backend>(b: &B, mut parts: Vec<B::Tensor>, axis: usize) -> Result<B::Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => b.concat(&parts.iter().collect::<Vec<_>>(), axis),
    }
}
