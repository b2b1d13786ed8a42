//! Tiles of matrix products and of convolutions: their shapes, the shared memory that a block takes, and the grids.

use cudarc::driver::LaunchConfig;

/// Threads of a block of `sm90/gemm.cuh`.
const THREADS: u32 = 384;
/// Bytes of a row of an operand in one stage.
pub(super) const ROW_BYTES: usize = 128;
/// The most shared memory of a block on Hopper cards, in bytes.
pub(super) const MAX_SHARED: usize = 232_448;

/// Threads of a block of `sm80/product.cuh`.
const SYNC_THREADS: u32 = 256;
/// The most shared memory of a block on the other cards, in bytes.
pub(super) const SYNC_MAX_SHARED: usize = 101_376;

/// A shape of tiles. For `sm90/gemm.cuh` it is the number of products of 64 rows for each of two warpgroups, the
/// columns, and the blocks of a cluster; for `sm80/product.cuh` the number of products of 16 rows for each of eight
/// warps, the columns, and 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub parts: usize,
    pub columns: usize,
    pub cluster: usize,
}

impl Shape {
    /// Returns the rows of a tile.
    pub const fn rows(self) -> usize {
        128 * self.parts
    }

    /// Returns the dynamic shared memory in bytes, as `sm80/product.cuh` computes it.
    pub const fn sync_shared_bytes(self) -> u32 {
        let stage = (self.rows() + self.columns) * ROW_BYTES;
        let most = SYNC_MAX_SHARED / stage;
        (stage * if most < 4 { most } else { 4 }) as u32
    }

    /// Returns the dynamic shared memory in bytes, as `sm90/gemm.cuh` computes it.
    pub const fn shared_bytes(self) -> u32 {
        let chunk = if self.columns.is_multiple_of(64) {
            64
        } else if self.columns.is_multiple_of(32) {
            32
        } else {
            16
        };
        let stage = (self.rows() + self.columns) * ROW_BYTES;
        let chunks = 8 * 16 * chunk * 4;
        let most = (MAX_SHARED - chunks - 1024 - 256) / stage;
        let stages = if most < 6 { most } else { 6 };
        (stages * stage + chunks + 16 * stages + 1024) as u32
    }
}

/// A shape of tiles of int8 products: `Tile` of `sm80/gemm_int8.cuh`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Int8Shape {
    pub rows: usize,
    pub columns: usize,
    pub stages: usize,
}

impl Int8Shape {
    /// Returns a grid with a block for each tile, and in it a warp for each 64 x 64 elements of the tile.
    pub fn grid(self, rows: usize, columns: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: ((rows.div_ceil(self.rows) * columns.div_ceil(self.columns)) as u32, 1, 1),
            block_dim: ((self.rows * self.columns / 128) as u32, 1, 1),
            shared_mem_bytes: self.shared_bytes(),
        }
    }

    /// Returns the dynamic shared memory in bytes.
    pub const fn shared_bytes(self) -> u32 {
        ((self.rows + self.columns) * 64 * self.stages) as u32
    }
}

/// Returns a grid with a block for each tile.
pub(super) fn sync_grid(tiles: usize, shape: Shape) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (tiles as u32, 1, 1),
        block_dim: (SYNC_THREADS, 1, 1),
        shared_mem_bytes: shape.sync_shared_bytes(),
    }
}

/// Returns a grid of whole clusters: one for each tile, but no more than run at once.
pub(super) fn persistent(tiles: usize, shape: Shape, multiprocessors: usize) -> LaunchConfig {
    let clusters = tiles.min(multiprocessors / shape.cluster).max(1);
    LaunchConfig {
        grid_dim: ((clusters * shape.cluster) as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shape.shared_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_whole_clusters() {
        let shape = Shape { parts: 1, columns: 256, cluster: 2 };
        assert_eq!(persistent(1, shape, 132).grid_dim, (2, 1, 1));
        assert_eq!(persistent(1000, shape, 132).grid_dim, (132, 1, 1));
        assert_eq!(persistent(1000, shape, 133).grid_dim, (132, 1, 1));
    }
}
