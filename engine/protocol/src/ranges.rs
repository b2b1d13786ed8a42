//! The numbers that each setting takes, and the sentences that refuse all others.

use std::fmt::Display;

use crate::InvalidSetting;
use crate::size::ROPE_POSITIONS;

/// The longest prompt, in bytes of UTF-8. The model reads 512 tokens, which is far less.
pub const MAX_PROMPT_BYTES: usize = 16 * 1024;
/// The frames of the longest video: it has as many latent frames as the rotary embedding has positions.
pub const MAX_FRAMES: u32 = 4 * (ROPE_POSITIONS - 1) + 1;
/// The longest video, in seconds: each part starts from the last frame of the one before, and so drifts a little.
pub const MAX_SECONDS: f64 = 600.0;
/// The longest name of a file.
const MAX_NAME_BYTES: usize = 255;
/// The largest seed. SQLite, D-Bus and JSON all hold it.
pub const MAX_SEED: u64 = i64::MAX as u64;

/// The whole numbers that a setting takes.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    name: &'static str,
    low: u64,
    high: u64,
    /// What would do, where that is not plain from the range.
    hint: &'static str,
}

/// The numbers that a setting takes, whole or not.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    name: &'static str,
    low: f64,
    high: f64,
}

pub const SEED: Whole =
    Whole { name: "seed", low: 0, high: MAX_SEED, hint: "; leave it out to have one drawn" };
pub const FPS: Whole = Whole { name: "fps", low: 1, high: 240, hint: "" };
pub const QUALITY: Whole = Whole { name: "quality", low: 1, high: 51, hint: "; 1 is the best" };
pub const STEPS: Whole = Whole { name: "steps", low: 1, high: 1000, hint: "" };
pub const STEPS_HIGH: Whole = Whole { name: "steps_high", low: 0, high: 1000, hint: "" };
pub const STEPS_BASE: Whole = Whole { name: "steps_base", low: 0, high: 100, hint: "" };
pub const NOISE_MULTIPROCESSORS: Whole =
    Whole { name: "noise_multiprocessors", low: 1, high: 1024, hint: "" };
pub const SECONDS: Real = Real { name: "seconds", low: 0.0, high: MAX_SECONDS };
pub const SHIFT: Real = Real { name: "shift", low: 0.01, high: 100.0 };
pub const SHIFT_LOW: Real = Real { name: "shift_low", low: 0.01, high: 100.0 };
pub const GUIDANCE: Real = Real { name: "guidance", low: 0.0, high: 100.0 };
pub const GUIDANCE_LOW: Real = Real { name: "guidance_low", low: 0.0, high: 100.0 };
pub const GUIDANCE_BASE: Real = Real { name: "guidance_base", low: 0.0, high: 100.0 };
pub const STEP_CACHE_THRESHOLD: Real = Real { name: "step_cache_threshold", low: 0.0, high: 100.0 };

impl Whole {
    /// Returns the number if the setting takes it.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] with the setting, the number and the range.
    pub fn check(&self, number: i128) -> Result<u64, InvalidSetting> {
        let fits = u64::try_from(number).ok().filter(|number| (self.low..=self.high).contains(number));
        fits.ok_or_else(|| self.refuse(number))
    }

    /// Returns the sentence that refuses a value of any kind.
    pub fn refuse(&self, given: impl Display) -> InvalidSetting {
        let Self { name, low, high, hint } = self;
        InvalidSetting(format!("`{name}` must be a whole number from {low} to {high}, not {given}{hint}"))
    }
}

impl Real {
    /// Returns the number if the setting takes it.
    ///
    /// # Errors
    /// Returns an [`InvalidSetting`] with the setting, the number and the range.
    pub fn check(&self, number: f64) -> Result<f64, InvalidSetting> {
        if (self.low..=self.high).contains(&number) { Ok(number) } else { Err(self.refuse(number)) }
    }

    /// Returns the sentence that refuses a value of any kind.
    pub fn refuse(&self, given: impl Display) -> InvalidSetting {
        let Self { name, low, high } = self;
        InvalidSetting(format!("`{name}` must be a number from {low} to {high}, not {given}"))
    }
}

/// Returns the number of frames if a video can have so many.
///
/// # Errors
/// Returns an [`InvalidSetting`] with the nearest number that is possible.
pub fn frames(number: i128) -> Result<u32, InvalidSetting> {
    match u32::try_from(number) {
        Ok(frames) if frames % 4 == 1 && frames <= MAX_FRAMES => Ok(frames),
        _ => {
            let near = (number.clamp(1, MAX_FRAMES.into()) - 1 + 2) / 4 * 4 + 1;
            let text =
                format!("`frames` must be 4n+1, up to {MAX_FRAMES}; the nearest to {number} is {near}");
            Err(InvalidSetting(text))
        }
    }
}

/// Returns the sentence that refuses frames that are no whole number.
pub fn refuse_frames(given: impl Display) -> InvalidSetting {
    InvalidSetting(format!("`frames` must be a whole number, 4n+1, up to {MAX_FRAMES}, not {given}"))
}

/// Checks the name of the picture that a video ends at: a file in the folder of the first picture.
///
/// # Errors
/// Returns an [`InvalidSetting`] for what is no plain name of a file.
pub fn last(name: &str) -> Result<(), InvalidSetting> {
    let plain = !name.contains(['/', '\0']) && !matches!(name, "." | "..") && name.len() <= MAX_NAME_BYTES;
    if plain {
        return Ok(());
    }
    let shown: String = name.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    Err(InvalidSetting(format!(
        "`last` must be the name of a picture in the same folder, without `/`, not `{shown}`"
    )))
}

/// Checks the length of a prompt, the setting `name`.
///
/// # Errors
/// Returns an [`InvalidSetting`] with the length that is possible.
pub fn prompt(name: &str, text: &str) -> Result<(), InvalidSetting> {
    if text.len() <= MAX_PROMPT_BYTES {
        return Ok(());
    }
    Err(InvalidSetting(format!(
        "`{name}` has {} bytes; shorten it to at most {MAX_PROMPT_BYTES} (the model reads 512 tokens, about 2000 letters)",
        text.len()
    )))
}
