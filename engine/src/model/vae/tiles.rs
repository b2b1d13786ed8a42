//! Tiles: a frame in overlapping parts, each with a causal past of its own, faded into each other.
//!
//! The scheme that Wan's users know: tiles of 256 pixels every 192, the last ones shorter; each tile is faded in over
//! the end of the one above and then of the one to the left (as these are after their own fading), and all but its
//! first 192 pixels are cut off.

use std::ops::Range;

use crate::Result;
use crate::backend::Backend;
use animd_protocol::request::Tiling;

use animd_protocol::dims::{STRIDE, TILE};

/// How a frame is divided along both axes.
pub(super) struct Grid {
    /// Length and stride of a tile, in whatever the grid is laid over.
    tile: usize,
    stride: usize,
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
}

impl Grid {
    /// A grid over `height` x `width` elements, of which one stands for `pixels` pixels. Frames that fit into one tile
    /// are not divided.
    pub fn new([height, width]: [usize; 2], pixels: usize, tiling: Tiling) -> Self {
        let (tile, stride) = (TILE / pixels, STRIDE / pixels);
        if tiling == Tiling::Whole || (height <= tile && width <= tile) {
            return Self::whole(height, width);
        }
        let cut = |len: usize| (0..len).step_by(stride).map(|start| start..len.min(start + tile)).collect();
        Self { tile, stride, rows: cut(height), columns: cut(width) }
    }

    /// One tile, however large.
    fn whole(height: usize, width: usize) -> Self {
        let longest = height.max(width);
        let all = |len: usize| std::iter::once(0..len).collect();
        Self { tile: longest, stride: longest, rows: all(height), columns: all(width) }
    }

    /// The same division of a frame whose elements are smaller (`up`) or larger (`down`).
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

    /// How many tiles there are.
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Tile number `index` of `x` `[.., height, width]`; row by row.
    pub fn cut<B: Backend>(&self, b: &B, x: &B::Tensor, index: usize) -> Result<B::Tensor> {
        if self.len() == 1 {
            return Ok(x.clone());
        }
        let row = &self.rows[index / self.columns.len()];
        let column = &self.columns[index % self.columns.len()];
        b.slice(&b.slice(x, 2, row.start, row.len())?, 3, column.start, column.len())
    }

    /// All tiles, row by row, as one volume.
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

/// Parts after each other along `axis`.
pub(super) fn concat<B: Backend>(b: &B, mut parts: Vec<B::Tensor>, axis: usize) -> Result<B::Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => b.concat(&parts.iter().collect::<Vec<_>>(), axis),
    }
}
