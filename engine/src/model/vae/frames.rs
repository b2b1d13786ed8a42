//! Decoded frames in 8 bits, put together from tiles.

use rayon::prelude::*;

use super::{LATENT_CHANNELS, Vae, extents};
use crate::backend::{Backend, Fetched};
use crate::progress::Observer;
use crate::{Error, Result, finite};
use animd_protocol::tiles::Area;

/// Decoded frames of one tile, or of the whole frame if it is not divided.
#[derive(Clone, Debug)]
pub struct Piece<T> {
    /// The frames, `[3, n, height, width]`. Their values are meant to be in -1..1 and may exceed it.
    pub frames: T,
    /// The number of the first of these frames in the video.
    pub first: usize,
    /// The part of the frame that they show, in pixels.
    pub area: Area,
}

/// What a further part of the work has brought.
#[derive(Debug)]
pub struct Rendered {
    /// How much of all work is done, from 0 to 1.
    pub done: f64,
    /// The frames that are complete now, `[n, height, width, 3]` in RGB: the next ones of the video, or none so far.
    pub frames: Vec<u8>,
}

impl<B: Backend> Vae<B> {
    /// Decodes normalised latents as [`Vae::decode`] does, to 8-bit frames: clamped to -1..1, scaled to 0..255,
    /// truncated. `sink` gets all frames in their order, while the next ones are decoded. The frames of a divided video
    /// wait in host memory, with 3 bytes a pixel, until its last tile is decoded.
    ///
    /// # Errors
    /// Returns the errors of [`Vae::decode`] and of `sink`, and [`Error::Model`] for values that are not finite.
    pub fn render(
        &self,
        b: &B,
        latents: &B::Tensor,
        tile: Option<usize>,
        observer: &dyn Observer,
        sink: &mut dyn FnMut(Rendered) -> Result<()>,
    ) -> Result<()> {
        let [_, count, h, w] = extents(b, latents, LATENT_CHANNELS, 1)?;
        let mut canvas = Canvas::new(4 * count - 3, [8 * h, 8 * w]);
        let mut show = |(fetched, place): (Fetched, Piece<()>)| {
            let values = fetched()?;
            finite::check_frames(&values)?;
            sink(canvas.draw(&values, &place)?)
        };
        let mut on_its_way = None;
        let mut fetch = |piece: Piece<B::Tensor>| {
            let Piece { frames, first, area } = piece;
            let next = (b.fetch(&frames)?, Piece { frames: (), first, area });
            on_its_way.replace(next).map_or(Ok(()), &mut show)
        };
        self.decode(b, latents, tile, observer, &mut fetch, None)?;
        on_its_way.map_or(Ok(()), show)
    }
}

/// The frames of a video that are not complete.
struct Canvas {
    /// The height and width.
    size: [usize; 2],
    frames: Vec<Frame>,
    /// The number of frames that are complete.
    complete: usize,
    /// The number of pixels of all frames that are drawn.
    drawn: usize,
}

/// A frame of a canvas.
#[derive(Clone)]
struct Frame {
    /// The bytes `[height, width, 3]`; none before the first tile and after the last.
    bytes: Vec<u8>,
    /// The number of pixels that are not drawn.
    missing: usize,
}

impl Canvas {
    fn new(frames: usize, size: [usize; 2]) -> Self {
        let empty = Frame { bytes: Vec::new(), missing: size[0] * size[1] };
        Self { size, frames: vec![empty; frames], complete: 0, drawn: 0 }
    }

    /// Draws the values `[3, n, height, width]` of a piece; returns the frames that this completes.
    fn draw<T>(&mut self, values: &[f32], piece: &Piece<T>) -> Result<Rendered> {
        let (all, pixels) = (self.frames.len(), piece.area.pixels());
        let count = values.len() / (3 * pixels);
        let Some(frames) = self.frames.get_mut(piece.first..piece.first + count) else {
            return Err(Error::Internal(format!("frame {} of {all}", piece.first + count)));
        };
        let channels: Vec<&[f32]> = values.chunks_exact(count * pixels).collect();
        for (i, frame) in frames.iter_mut().enumerate() {
            frame.draw(self.size, &piece.area, |c| &channels[c][i * pixels..][..pixels])?;
        }
        self.drawn += count * pixels;
        let mut bytes = Vec::new();
        while let Some(frame) = self.frames.get_mut(self.complete).filter(|frame| frame.missing == 0) {
            bytes.append(&mut std::mem::take(&mut frame.bytes));
            self.complete += 1;
        }
        let [height, width] = self.size;
        Ok(Rendered { done: self.drawn as f64 / (all * height * width) as f64, frames: bytes })
    }
}

impl Frame {
    /// Draws an area; `channel` gives its values of red, green and blue.
    fn draw<'a>(
        &mut self,
        [height, width]: [usize; 2],
        area: &Area,
        channel: impl Fn(usize) -> &'a [f32],
    ) -> Result<()> {
        let Area { rows, columns } = area;
        if rows.end > height || columns.end > width || area.pixels() > self.missing {
            return Err(Error::Internal(format!("{area:?} does not fit a frame of {width}x{height}")));
        }
        self.bytes.resize(3 * height * width, 0);
        self.missing -= area.pixels();
        let channels = [channel(0), channel(1), channel(2)];
        let lines = self.bytes.par_chunks_exact_mut(3 * width).skip(rows.start).take(rows.len());
        lines.enumerate().for_each(|(y, line)| {
            let pixels = line[3 * columns.start..3 * columns.end].chunks_exact_mut(3);
            for (x, pixel) in (y * columns.len()..).zip(pixels) {
                pixel.iter_mut().zip(channels).for_each(|(to, values)| *to = byte(values[x]));
            }
        });
        Ok(())
    }
}

/// Returns a value of -1..1 in 8 bits. `as` truncates, and turns NaN into 0.
fn byte(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(first: usize, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> Piece<()> {
        Piece { frames: (), first, area: Area { rows, columns } }
    }

    #[test]
    fn values_are_cut_off_and_interleaved() -> Result<()> {
        // The pixels of a 1x3 picture are red, green and blue.
        let values = [-1.0, 1.0, 0.0, -7.0, 7.0, 0.999, f32::NAN, -0.999, 0.004];
        let drawn = Canvas::new(1, [1, 3]).draw(&values, &piece(0, 0..1, 0..3))?;
        assert_eq!(drawn.frames, [0, 0, 0, 255, 255, 0, 127, 254, 128]);
        assert_eq!(drawn.done, 1.0);
        Ok(())
    }

    #[test]
    fn frames_leave_in_order_when_their_last_tile_is_there() -> Result<()> {
        // Three frames of 2x3, in a tile of two columns and one of one column.
        let mut canvas = Canvas::new(3, [2, 3]);
        let values = |count: usize, pixels: usize, v: f32| vec![v; 3 * count * pixels];
        let (left, right) = (|first| piece(first, 0..2, 0..2), |first| piece(first, 0..2, 2..3));
        assert!(canvas.draw(&values(1, 4, -1.0), &left(0))?.frames.is_empty());
        let drawn = canvas.draw(&values(2, 4, -1.0), &left(1))?;
        assert!(drawn.frames.is_empty() && (drawn.done - 2.0 / 3.0).abs() < 1e-9, "{drawn:?}");
        let row = [0, 0, 0, 0, 0, 0, 255, 255, 255];
        assert_eq!(canvas.draw(&values(1, 2, 1.0), &right(0))?.frames, row.repeat(2));
        let drawn = canvas.draw(&values(2, 2, 1.0), &right(1))?;
        assert_eq!((drawn.frames, drawn.done), (row.repeat(4), 1.0));
        // The same pixels twice, more frames than there are, and a place outside are mistakes.
        assert!(canvas.draw(&values(1, 2, 1.0), &right(0)).is_err());
        assert!(Canvas::new(1, [2, 3]).draw(&values(2, 2, 1.0), &right(0)).is_err());
        assert!(Canvas::new(1, [2, 2]).draw(&values(1, 2, 1.0), &right(0)).is_err());
        Ok(())
    }
}
