//! Tiles of volumes: what [`animd_protocol::tiles`] says of areas, done with a backend.

use crate::backend::Backend;
use crate::{Error, Result};
use animd_protocol::tiles::{Area, Grid};

use super::layers::{Chunk, concat};

/// Returns `want` of a volume that holds the area `have`, in memory of its own unless that is all of it.
pub(super) fn crop<B: Backend>(b: &B, x: &B::Tensor, have: &Area, want: &Area) -> Result<B::Tensor> {
    if have == want {
        return Ok(x.clone());
    }
    b.contiguous(&view(b, x, have, want)?)
}

/// Returns `want` of a volume that holds the area `have`, perhaps as a view of the volume.
pub(super) fn view<B: Backend>(b: &B, x: &B::Tensor, have: &Area, want: &Area) -> Result<B::Tensor> {
    let offset = |have: usize, want: usize| {
        want.checked_sub(have).ok_or_else(|| Error::Internal("a tile begins before its halo".into()))
    };
    let (row, column) =
        (offset(have.rows.start, want.rows.start)?, offset(have.columns.start, want.columns.start)?);
    b.slice(&b.slice(x, 2, row, want.rows.len())?, 3, column, want.columns.len())
}

/// Joins the chunks of all tiles, row by row, to one of the whole frame. All tiles have the same frames.
pub(super) fn join<B: Backend>(b: &B, grid: &Grid, tiles: Vec<Chunk<B::Tensor>>) -> Result<Chunk<B::Tensor>> {
    let repeats = tiles.first().map_or(0, |tile| tile.repeats);
    let frames: Vec<_> = tiles.into_iter().filter_map(|tile| tile.frames).collect();
    if frames.is_empty() {
        return Ok(Chunk { frames: None, repeats });
    }
    let [_, columns] = grid.counts();
    let rows = frames.chunks(columns).map(|row| concat(b, row.to_vec(), 3));
    Ok(Chunk { frames: Some(concat(b, rows.collect::<Result<_>>()?, 2)?), repeats })
}
