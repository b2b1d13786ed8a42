//! The size of a video.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::InvalidSetting;

/// The number of positions that the rotary embedding has along each axis.
pub(crate) const ROPE_POSITIONS: u32 = 1024;
/// The most pixels along the longest side: a token has two latent pixels of eight pixels each.
pub const MAX_SIDE: u32 = 16 * ROPE_POSITIONS;

/// The size of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Size {
    /// About 480*832 pixels in the picture's own shape, by the official rule.
    P480,
    /// About 720*1280 pixels in the picture's own shape, by the official rule.
    P720,
    /// Exactly this many pixels, multiples of 16; the picture is cropped to its centre.
    Exact {
        /// The width in pixels.
        width: u32,
        /// The height in pixels.
        height: u32,
    },
}

impl Size {
    /// Returns the area in pixels that the size stands for.
    pub fn area(self) -> u32 {
        match self {
            Self::P480 => 480 * 832,
            Self::P720 => 720 * 1280,
            Self::Exact { width, height } => width * height,
        }
    }

    /// Returns whether the model's 480P conventions (shift, step-cache coefficients) apply, by area.
    pub fn is_480p(self) -> bool {
        // The border lies half way between the two areas that the model was trained at.
        self.area() < u32::midpoint(480 * 832, 720 * 1280)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P480 => f.write_str("480p"),
            Self::P720 => f.write_str("720p"),
            Self::Exact { width, height } => write!(f, "{width}x{height}"),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for Size {
    type Error = InvalidSetting;

    fn try_from(text: String) -> Result<Self, InvalidSetting> {
        text.parse()
    }
}

impl FromStr for Size {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        match text {
            "480p" => return Ok(Self::P480),
            "720p" => return Ok(Self::P720),
            _ => {}
        }
        let bad = || InvalidSetting(format!("`size` must be `480p`, `720p` or `WIDTHxHEIGHT`, not `{text}`"));
        let (width, height) = text.split_once('x').ok_or_else(bad)?;
        let width: u32 = width.parse().map_err(|_| bad())?;
        let height: u32 = height.parse().map_err(|_| bad())?;
        for (name, side) in [("width", width), ("height", height)] {
            if side == 0 || side % 16 != 0 || side > MAX_SIDE {
                let near = (side.clamp(16, MAX_SIDE) + 8) / 16 * 16;
                return Err(InvalidSetting(format!(
                    "`size` {text}: the {name} must be a multiple of 16, up to {MAX_SIDE}; the nearest to {side} is {near}"
                )));
            }
        }
        Ok(Self::Exact { width, height })
    }
}
