//! Where the operands of 8-bit attention lie, on all cards.

use cudarc::driver::sys::CUdeviceptr;

use super::Error;

/// Channels of a head.
pub const HEAD_DIM: usize = 128;

/// Keys of a tile of `attention_8bit.cu`, and of one of `attention_int8.cuh`.
pub(super) const EIGHT_BIT_KEYS: usize = 96;
pub(super) const INT8_KEYS: usize = 128;

/// Rows that a block of `attention_statistics.cu` adds up.
pub(super) const CHUNK: usize = 512;

/// The places of 8-bit operands, scales and means in one piece of device memory, for one shape. The layout is the same
/// on all cards, so it has room for the largest tiles and for the most tiles that any card needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention8bitLayout {
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) query_scale: usize,
    pub(super) key_scale: usize,
    pub(super) key_mean: usize,
    pub(super) value_mean: usize,
    pub(super) value_scale: usize,
    pub(super) partial: usize,
    pub(super) residual: usize,
    bytes: usize,
}

impl Attention8bitLayout {
    /// Returns the layout for `rows` of Q, `keys` of K and V and `heads` heads of 128.
    pub fn new(rows: usize, keys: usize, heads: usize) -> Self {
        let width = heads * HEAD_DIM;
        let tiles = keys.div_ceil(EIGHT_BIT_KEYS);
        let padded = (tiles * EIGHT_BIT_KEYS).max(keys.next_multiple_of(INT8_KEYS));
        let mut bytes = 0;
        let mut take = |size: usize| {
            let offset = bytes;
            bytes += size.next_multiple_of(256);
            offset
        };
        Self {
            rows,
            keys,
            heads,
            query: take(rows * width),
            key: take(padded * width),
            value: take(padded * width),
            query_scale: take(4 * heads * rows),
            key_scale: take(4 * heads * tiles),
            key_mean: take(4 * width),
            value_mean: take(4 * width),
            value_scale: take(4 * width),
            partial: take(4 * 4 * width * keys.div_ceil(CHUNK)),
            residual: take(4 * width * tiles),
            bytes,
        }
    }

    /// Returns where the operands are, for checks.
    pub fn places(&self) -> Attention8bitPlaces {
        let Self { query, key, value, query_scale, key_scale, key_mean, value_mean, value_scale, .. } = *self;
        Attention8bitPlaces { query, key, value, query_scale, key_scale, key_mean, value_mean, value_scale }
    }

    /// Returns how many bytes of device memory a workspace takes; its address must be a multiple of 256.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns a workspace of this layout at a device address.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] if the address is no multiple of 256.
    pub fn at(&self, address: CUdeviceptr) -> Result<Attention8bitWorkspace, Error> {
        if address == 0 || !address.is_multiple_of(256) {
            let problem = format!("its address {address:#x} is no multiple of 256");
            return Err(Error::Argument { kernel: "attention_8bit", argument: "workspace", problem });
        }
        Ok(Attention8bitWorkspace { layout: *self, address })
    }
}

/// Offsets in bytes in the memory of an [`Attention8bitLayout`]. Tiles are of 96 keys on Hopper cards, of 128 on others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention8bitPlaces {
    /// `[rows, heads * 128]` int8.
    pub query: usize,
    /// `[keys, heads * 128]` int8 on Hopper cards, `[heads, tiles, 128, 128]` on others.
    pub key: usize,
    /// An image of V for each head and tile, as `attention_quantize_value.cu` of the card's folder describes it.
    pub value: usize,
    /// `[heads, rows]` f32, log2(e) / sqrt(128) included.
    pub query_scale: usize,
    /// `[heads, tiles]` f32.
    pub key_scale: usize,
    /// `[heads * 128]` f32.
    pub key_mean: usize,
    /// `[heads * 128]` f32.
    pub value_mean: usize,
    /// `[heads * 128]` f32.
    pub value_scale: usize,
}

/// Device memory for the operands of one 8-bit attention; made by [`Attention8bitLayout::at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention8bitWorkspace {
    pub(super) layout: Attention8bitLayout,
    pub(super) address: CUdeviceptr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_has_no_overlaps() {
        for (rows, keys, heads) in [(1, 1, 1), (32_760, 32_760, 40), (75_600, 75_600, 40), (1000, 97, 3)] {
            let w = Attention8bitLayout::new(rows, keys, heads);
            let (width, tiles) = (heads * 128, keys.div_ceil(96));
            let mut pieces = [
                (w.query, rows * width),
                (w.key, keys.div_ceil(128) * 128 * width),
                (w.value, (tiles * 96).max(keys.div_ceil(128) * 128) * width),
                (w.query_scale, 4 * heads * rows),
                (w.key_scale, 4 * heads * tiles),
                (w.key_mean, 4 * width),
                (w.value_mean, 4 * width),
                (w.value_scale, 4 * width),
                (w.partial, 16 * width * keys.div_ceil(512)),
                (w.residual, 4 * width * tiles),
            ];
            pieces.sort_unstable();
            for pair in pieces.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{w:?}");
                assert!(pair[1].0.is_multiple_of(256));
            }
            let last = pieces[pieces.len() - 1];
            assert!(last.0 + last.1 <= w.bytes());
        }
    }

    #[test]
    fn workspaces_begin_where_kernels_can_read() {
        let layout = Attention8bitLayout::new(10, 10, 2);
        assert!(layout.at(4096).is_ok());
        assert!(layout.at(4096 + 128).is_err());
    }
}
