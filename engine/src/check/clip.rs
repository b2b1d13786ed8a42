//! Short videos of known motion, made from one bundled photograph.

use std::sync::LazyLock;

use crate::Result;
use crate::image::{self, Picture};

/// A cup of espresso, 400x240, photographed by Rachel Michetti and released under CC0 1.0.
static PHOTOGRAPH: &[u8] = include_bytes!("../../assets/photograph.jpg");

/// The height and width of the videos.
pub const SIZE: [usize; 2] = [192, 320];
/// How much larger or smaller the picture is in the last frame.
const ZOOM: f64 = 0.25;
/// How far the picture moves until the last frame, in pixels of the photograph.
const PAN: f64 = 48.0;

/// What the camera does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    Closer,
    Away,
    Left,
    Right,
}

impl Motion {
    pub const ALL: [Self; 4] = [Self::Closer, Self::Away, Self::Left, Self::Right];

    /// Returns the prompt that asks for this motion.
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Closer => "the camera zooms in",
            Self::Away => "the camera zooms out",
            Self::Left => "the camera pans to the left",
            Self::Right => "the camera pans to the right",
        }
    }

    /// Returns the opposite motion.
    pub fn opposite(self) -> Self {
        match self {
            Self::Closer => Self::Away,
            Self::Away => Self::Closer,
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }

    /// Returns the pixels of the photograph for one of the video, and how far the middle is to the right, when a share of
    /// the video is over.
    fn view(self, progress: f64) -> (f64, f64) {
        match self {
            Self::Closer => ((1.0 + ZOOM) / (1.0 + ZOOM * progress), 0.0),
            Self::Away => (1.0 + ZOOM * progress, 0.0),
            Self::Left => (1.0, PAN * (0.5 - progress)),
            Self::Right => (1.0, PAN * (progress - 0.5)),
        }
    }
}

/// Returns the photograph.
///
/// # Errors
/// There are none in a sound build.
pub fn photograph() -> Result<&'static Picture> {
    static DECODED: LazyLock<std::result::Result<Picture, String>> =
        LazyLock::new(|| image::decode_bytes(PHOTOGRAPH, "photograph.jpg").map_err(|e| e.to_string()));
    DECODED.as_ref().map_err(|e| crate::Error::Internal(format!("the bundled photograph: {e}")))
}

/// Returns a video `[3, frames, height, width]` from -1 to 1.
pub fn video(picture: &Picture, motion: Motion, frames: usize) -> Vec<f32> {
    let [height, width] = SIZE;
    let mut video = vec![0.0; 3 * frames * height * width];
    for frame in 0..frames {
        let (scale, right) = motion.view(frame as f64 / (frames.max(2) - 1) as f64);
        for y in 0..height {
            let row = place(y, height, scale, 0.0, picture.height);
            for x in 0..width {
                let column = place(x, width, scale, right, picture.width);
                for channel in 0..3 {
                    video[((channel * frames + frame) * height + y) * width + x] =
                        between(picture, row, column, channel);
                }
            }
        }
    }
    video
}

/// Returns where a pixel of the video lies in the photograph, along one axis: the pixel before it, and the share of the
/// next one.
fn place(at: usize, of: usize, scale: f64, shift: f64, extent: u32) -> (usize, f32) {
    let middle = |n: f64| (n - 1.0) / 2.0;
    let at = (at as f64 - middle(of as f64)) * scale + shift + middle(f64::from(extent));
    let at = at.clamp(0.0, f64::from(extent) - 1.0);
    let before = at.floor().min(f64::from(extent) - 2.0).max(0.0);
    (before as usize, (at - before) as f32)
}

/// Returns a value between four pixels, from -1 to 1.
fn between(
    picture: &Picture,
    (row, down): (usize, f32),
    (column, right): (usize, f32),
    channel: usize,
) -> f32 {
    let width = picture.width as usize;
    let value = |y: usize, x: usize| {
        f32::from(picture.rgb[((row + y) * width + column + x) * 3 + channel]) / 127.5 - 1.0
    };
    let line = |y: usize| value(y, 0) * (1.0 - right) + value(y, 1) * right;
    line(0) * (1.0 - down) + line(1) * down
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_photograph_moves_as_it_is_asked_to() {
        let picture = photograph().expect("the bundled picture");
        assert_eq!((picture.width, picture.height), (400, 240));
        let frame = |video: &[f32], frames: usize, i: usize| -> Vec<f32> {
            let size = SIZE[0] * SIZE[1];
            (0..3).flat_map(|c| video[(c * frames + i) * size..][..size].to_vec()).collect()
        };
        for motion in Motion::ALL {
            let (there, back) = (video(picture, motion, 5), video(picture, motion.opposite(), 5));
            assert!(there.iter().all(|v| (-1.0..=1.0).contains(v)));
            // The opposite ends where this begins, up to the different steps of zooming.
            let (first, last) = (frame(&there, 5, 0), frame(&back, 5, 4));
            let difference: f32 =
                first.iter().zip(&last).map(|(a, b)| (a - b).abs()).sum::<f32>() / first.len() as f32;
            assert!(difference < 1e-4, "{motion:?}: {difference}");
            assert_ne!(first, frame(&there, 5, 4));
        }
        // A pan to the right of 48 pixels in 4 steps shows 12 further columns at each.
        let right = video(picture, Motion::Right, 5);
        let (first, second) = (frame(&right, 5, 0), frame(&right, 5, 1));
        assert_eq!(first[20], second[8]);
        // A picture of two pixels a side has neighbours to mix.
        let dot = Picture { width: 2, height: 2, rgb: vec![0, 0, 0, 255, 255, 255, 0, 0, 0, 255, 255, 255] };
        assert!(video(&dot, Motion::Closer, 1).iter().all(|v| (-1.0..=1.0).contains(v)));
    }
}
