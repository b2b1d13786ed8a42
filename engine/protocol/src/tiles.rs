//! The division of a frame into tiles, shared by the VAE and by its plan.
//!
//! Layers at the latent's resolution see the whole frame: there are few pixels, and attention relates all of them. The
//! layers above that resolution reach a few pixels each, so a tile can be computed alone with a halo as wide as its
//! remaining layers reach together. The halo's own results are wrong where its edge is not the frame's, and are cut off.
//! What remains equals the computation of the whole frame: no blending is needed.

use std::ops::Range;

/// The number of 3x3 convolutions in a residual block. Each reaches one pixel.
const BLOCK: usize = 2;
/// The number of residual blocks of the decoder at each resolution, and of the encoder.
const BLOCKS: [usize; 2] = [3, 2];

/// The pixels around a part of a frame that its computation needs, at one resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Halo {
    /// The pixels above and to the left.
    pub before: usize,
    /// The pixels below and to the right.
    pub after: usize,
}

impl Halo {
    /// No pixels.
    pub const NONE: Self = Self { before: 0, after: 0 };

    /// The halos of what the decoder doubles: at the latent's resolution, at twice, and at four times that.
    pub const DECODER: [Self; 3] = decoder();

    /// The halos of the encoder's input, and of what it halves: at eight, four and two times the latent's resolution.
    pub const ENCODER: [Self; 4] = encoder();
}

/// Counts the decoder's halos from the last layer to the first.
const fn decoder() -> [Halo; 3] {
    let mut halos = [Halo::NONE; 3];
    // At the full resolution the head's convolution follows the blocks.
    let mut reach = BLOCKS[0] * BLOCK + 1;
    let mut step = halos.len();
    while step > 0 {
        step -= 1;
        // The convolution of the doubled pixels reaches one more; two pixels come from one.
        let needed = (reach + 1).div_ceil(2);
        halos[step] = Halo { before: needed, after: needed };
        reach = needed + BLOCKS[0] * BLOCK;
    }
    halos
}

/// Counts the encoder's halos from its last halving to its first layer.
const fn encoder() -> [Halo; 4] {
    let mut halos = [Halo::NONE; 4];
    let (mut before, mut after) = (0, 0);
    let mut step = halos.len() - 1;
    while step > 0 {
        // Pixel y of the result comes from 2y, 2y + 1 and 2y + 2. The last of these is one pixel beyond the pairs, so
        // one more pair is needed, and its result is wrong.
        halos[step] = Halo { before: 2 * before, after: 2 * after + 2 };
        before = 2 * before + BLOCKS[1] * BLOCK;
        after = 2 * after + 1 + BLOCKS[1] * BLOCK;
        step -= 1;
    }
    // The blocks at the full resolution follow the first convolution.
    halos[0] = Halo { before: before + 1, after: after + 1 };
    halos
}

/// A part of a frame, in pixels of some resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// The rows.
    pub rows: Range<usize>,
    /// The columns.
    pub columns: Range<usize>,
}

impl Area {
    /// Returns the number of pixels.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Returns the same part of a frame with twice as many rows and columns.
    #[must_use]
    pub fn doubled(&self) -> Self {
        self.map(|n| 2 * n)
    }

    /// Returns the same part of a frame with half as many rows and columns. All bounds must be even.
    #[must_use]
    pub fn halved(&self) -> Self {
        self.map(|n| n / 2)
    }

    fn map(&self, f: impl Fn(usize) -> usize) -> Self {
        let range = |r: &Range<usize>| f(r.start)..f(r.end);
        Self { rows: range(&self.rows), columns: range(&self.columns) }
    }
}

/// A tile: the part of a frame that is computed and written alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// The tile without its halo, in latent pixels.
    core: Area,
    /// The height and width of the frame in latent pixels.
    frame: [usize; 2],
}

impl Tile {
    /// Returns the tile with a halo, at `scale` times the latent's resolution. The halo ends at the frame's edges.
    #[must_use]
    pub fn area(&self, scale: usize, halo: Halo) -> Area {
        let range = |core: &Range<usize>, end: usize| {
            (core.start * scale).saturating_sub(halo.before)..(core.end * scale + halo.after).min(end * scale)
        };
        let [height, width] = self.frame;
        Area { rows: range(&self.core.rows, height), columns: range(&self.core.columns, width) }
    }

    /// Returns the whole frame in latent pixels.
    #[must_use]
    pub fn frame(&self) -> Area {
        let [height, width] = self.frame;
        Area { rows: 0..height, columns: 0..width }
    }
}

/// The division of a frame into tiles that meet without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    frame: [usize; 2],
    /// The numbers of rows and columns of tiles.
    counts: [usize; 2],
}

impl Grid {
    /// Divides a frame of `[height, width]` latent pixels into as few tiles as possible with sides of at most `side`
    /// latent pixels, all of about one size. Without a side there is one tile, the whole frame.
    #[must_use]
    pub fn new(frame: [usize; 2], side: Option<usize>) -> Self {
        let count = |extent: usize| side.map_or(1, |side| extent.div_ceil(side.max(1)).max(1));
        Self { frame, counts: frame.map(count) }
    }

    /// Returns the number of rows and of columns of tiles.
    #[must_use]
    pub fn counts(&self) -> [usize; 2] {
        self.counts
    }

    /// Returns the tiles, row by row.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + use<> {
        let Self { frame, counts: [rows, columns] } = *self;
        let part = |extent: usize, count: usize, i: usize| extent * i / count..extent * (i + 1) / count;
        (0..rows * columns).map(move |i| {
            let core = Area {
                rows: part(frame[0], rows, i / columns),
                columns: part(frame[1], columns, i % columns),
            };
            Tile { core, frame }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which of the positions `0..extent` of a row are right after `layers`, if those in `known` are right before.
    /// A position outside the frame is a zero, and is right.
    fn after_convolutions(known: Range<usize>, extent: usize, layers: usize) -> Range<usize> {
        let start = if known.start == 0 { 0 } else { known.start + layers };
        let end = if known.end == extent { extent } else { known.end - layers };
        start..end
    }

    fn range(tile: &Tile, scale: usize, halo: Halo) -> Range<usize> {
        tile.area(scale, halo).columns
    }

    /// Cuts a halo off, which must lie within what is computed.
    #[track_caller]
    fn cut(computed: &Range<usize>, right: Range<usize>, want: Range<usize>) -> (Range<usize>, Range<usize>) {
        assert!(computed.start <= want.start && want.end <= computed.end, "{want:?} of {computed:?}");
        let right = right.start.max(want.start)..right.end.min(want.end);
        (want, right)
    }

    #[test]
    fn halos_reach_as_far_as_the_layers() {
        for (width, side) in [(40, 8), (41, 7), (9, 2), (16, 1), (5, 9), (1, 4)] {
            for tile in Grid::new([1, width], Some(side)).tiles() {
                let core = range(&tile, 1, Halo::NONE);
                let whole = |scale: usize| scale * width;

                // The decoder: three doublings, each with a convolution, and blocks after it.
                let mut computed = range(&tile, 1, Halo::DECODER[0]);
                let mut right = computed.clone();
                for (i, scale) in [1, 2, 4].into_iter().enumerate() {
                    (computed, right) = cut(&computed, right, range(&tile, scale, Halo::DECODER[i]));
                    computed = 2 * computed.start..2 * computed.end;
                    right =
                        after_convolutions(2 * right.start..2 * right.end, whole(2 * scale), 1 + 3 * BLOCK);
                }
                right = after_convolutions(right, whole(8), 1);
                let (_, right) = cut(&computed, right, range(&tile, 8, Halo::NONE));
                assert_eq!(right, 8 * core.start..8 * core.end, "decoding {tile:?}");

                // The encoder: blocks, then a halving, whose last row reaches one pixel further.
                let mut computed = range(&tile, 8, Halo::ENCODER[0]);
                let mut right = after_convolutions(computed.clone(), whole(8), 1);
                for (i, scale) in [8, 4, 2].into_iter().enumerate() {
                    right = after_convolutions(right, whole(scale), 2 * BLOCK);
                    (computed, right) = cut(&computed, right, range(&tile, scale, Halo::ENCODER[i + 1]));
                    assert!(
                        computed.start.is_multiple_of(2) && computed.end.is_multiple_of(2),
                        "{computed:?}"
                    );
                    computed = computed.start / 2..computed.end / 2;
                    let end = if right.end == whole(scale) { right.end / 2 } else { (right.end - 1) / 2 };
                    right = right.start.div_ceil(2)..end;
                }
                let (_, right) = cut(&computed, right, range(&tile, 1, Halo::NONE));
                assert_eq!(right, core, "encoding {tile:?}");
            }
        }
    }

    #[test]
    fn halos_are_no_wider_than_the_layers_reach() {
        let both = |n| Halo { before: n, after: n };
        assert_eq!(Halo::DECODER, [both(7), both(6), both(4)]);
        let halo = |before, after| Halo { before, after };
        assert_eq!(Halo::ENCODER, [halo(29, 36), halo(24, 32), halo(8, 12), halo(0, 2)]);
    }

    #[test]
    fn tiles_cover_a_frame_once() {
        for (frame, side) in [
            ([60, 104], Some(32)),
            ([90, 160], Some(64)),
            ([7, 11], Some(3)),
            ([1, 1], Some(8)),
            ([5, 9], None),
        ] {
            let mut seen = vec![0; frame[0] * frame[1]];
            let grid = Grid::new(frame, side);
            for tile in grid.tiles() {
                let Area { rows, columns } = tile.area(1, Halo::NONE);
                assert!(side.is_none_or(|side| rows.len() <= side && columns.len() <= side));
                for y in rows {
                    columns.clone().for_each(|x| seen[y * frame[1] + x] += 1);
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{frame:?} by {side:?}");
        }
        assert_eq!(Grid::new([90, 160], Some(64)).counts(), [2, 3]);
    }
}
