//! The parts of a video that is longer than the model makes at once.
//!
//! Each part starts from the last frame of the one before, which the film then has once.

use serde::Serialize;

use crate::ranges::MAX_SEED;
use crate::request::{Request, Resize, Size};

/// A part of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The frames that the model makes, 4n+1. All parts but the first begin with a frame that the film has already.
    pub frames: u32,
    /// The seed of the part's noise: the request's, and one more for each part before.
    pub seed: u64,
}

impl Request {
    /// Returns the parts that the video is made in: one of `frames` where no `seconds` are given; else the fewest parts of
    /// at most `frames` that last at least so long, as equal as possible.
    pub fn parts(&self) -> Vec<Part> {
        if self.seconds <= 0.0 {
            return vec![Part { frames: self.frames, seed: self.seed }];
        }
        // The model makes frames in groups of four after the first one. A rounding error must not make one more.
        let groups = (self.seconds * f64::from(self.fps) / 4.0 - 1e-6).ceil().max(1.0) as u32;
        let most = (self.frames.saturating_sub(1) / 4).max(1);
        let count = groups.div_ceil(most);
        let (each, longer) = (groups / count, groups % count);
        let part = |n: u32| Part {
            frames: 4 * (each + u32::from(n < longer)) + 1,
            seed: ((u128::from(self.seed) + u128::from(n)) % (u128::from(MAX_SEED) + 1)) as u64,
        };
        (0..count).map(part).collect()
    }

    /// Returns the frames of the whole video.
    pub fn total_frames(&self) -> u32 {
        self.parts().iter().map(|part| part.frames - 1).sum::<u32>() + 1
    }

    /// Returns what the model is asked for in the part `index`; only the last part aims at a last picture. Parts after the
    /// first have the exact `size`, width and height, of the frame that they start from.
    #[must_use]
    pub fn of_part(&self, index: usize, size: (u32, u32)) -> Self {
        let parts = self.parts();
        let is_last = index + 1 >= parts.len();
        let part = parts.get(index).copied().unwrap_or(Part { frames: self.frames, seed: self.seed });
        Self {
            frames: part.frames,
            seed: part.seed,
            seconds: 0.0,
            size: if index == 0 { self.size } else { Size::Exact { width: size.0, height: size.1 } },
            // It has no meaning for an exact size, and would be called a setting that changes nothing.
            resize: if index == 0 { self.resize } else { Resize::default() },
            last: if is_last { self.last.clone() } else { String::new() },
            looped: is_last && self.looped,
            ..self.clone()
        }
    }

    /// Returns the part that takes the most time and memory, as a request of its own.
    #[must_use]
    pub fn largest_part(&self) -> Self {
        let frames = self.parts().iter().map(|part| part.frames).max().unwrap_or(self.frames);
        Self { frames, seconds: 0.0, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;
    use crate::request::Settings;

    fn request(seconds: f64, frames: u32) -> Request {
        let settings = Settings { seconds: Some(seconds), frames: Some(frames), ..Settings::default() };
        settings.resolve(|| MAX_SEED).expect("valid settings")
    }

    fn frames(seconds: f64, frames: u32) -> Vec<u32> {
        request(seconds, frames).parts().iter().map(|part| part.frames).collect()
    }

    #[test]
    fn parts_are_few_and_alike() {
        assert_eq!(frames(0.0, 33), [33], "no seconds are given");
        assert_eq!(frames(5.0, 81), [81]);
        assert_eq!(frames(3.0, 81), [49]);
        assert_eq!(frames(10.0, 81), [81, 81]);
        assert_eq!(frames(7.0, 81), [57, 57]);
        assert_eq!(frames(11.0, 81), [61, 61, 57]);
        assert_eq!(frames(0.01, 81), [5]);
        assert_eq!(frames(0.5, 1), [5, 5], "a part has at least one group of four");
        for tenths in 1..400 {
            let request = request(f64::from(tenths) / 10.0, 81);
            let whole = request.total_frames();
            let wanted = (f64::from(tenths) / 10.0 * 16.0).ceil() as u32 + 1;
            assert!((wanted..wanted + 4).contains(&whole), "{tenths}: {whole}");
        }
    }

    #[test]
    fn each_part_has_a_seed_of_its_own_and_only_the_last_one_aims() {
        let request = Request { looped: true, resize: Resize::Adaptive, ..request(15.0, 81) };
        assert_eq!(request.parts().iter().map(|part| part.seed).collect::<Vec<_>>(), [MAX_SEED, 0, 1]);
        let parts: Vec<Request> = (0..3).map(|index| request.of_part(index, (832, 464))).collect();
        assert_eq!(parts.iter().map(|part| part.looped).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!((parts[0].size, parts[1].size), (Size::P480, Size::Exact { width: 832, height: 464 }));
        assert!(parts.iter().all(|part| part.parts().len() == 1 && part.check().is_ok()));
        // A part says no more of its settings than the whole does.
        let recipe = Recipe::wan21_i2v_14b();
        assert_eq!(parts[0].resize, Resize::Adaptive);
        assert!(parts.iter().all(|part| recipe.remarks(part) == recipe.remarks(&request)), "{parts:?}");
    }
}
