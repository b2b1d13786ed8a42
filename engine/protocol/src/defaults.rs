//! The default settings of a family of models.

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// The negative prompt that Wan2.1 image-to-video was released with.
pub const NEGATIVE_PROMPT: &str = "镜头晃动，色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，\
最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，\
手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

/// The multiprocessors of an H200 or H100 SXM, whose CUDA noise a seed gives unless a job says otherwise.
pub const NOISE_MULTIPROCESSORS: u32 = 132;

/// The negative prompt that Wan2.1 first-and-last-frame was released with: the one of image-to-video, and no cuts.
fn negative_prompt_flf2v() -> String {
    format!("镜头切换，{NEGATIVE_PROMPT}")
}

/// Returns the negative prompt that Wan2.2 image-to-video was released with: it says nothing of a shaking camera.
fn negative_prompt_wan22() -> String {
    NEGATIVE_PROMPT.trim_start_matches("镜头晃动，").to_owned()
}

/// A value for each of the two areas that a family was trained at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByArea<T> {
    /// For about 480*832 pixels.
    pub p480: T,
    /// For about 720*1280 pixels.
    pub p720: T,
}

impl<T> ByArea<T> {
    /// Returns the value for videos of this size.
    pub fn of(&self, size: Size) -> &T {
        if size.is_480p() { &self.p480 } else { &self.p720 }
    }
}

/// The settings that a job gets where it sets no others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// What should not be in the video.
    pub negative_prompt: String,
    /// Frames of the video.
    pub frames: u32,
    /// Frames a second.
    pub fps: u32,
    /// Denoising steps of the released model.
    pub steps: u32,
    /// The shift of the released model's schedule.
    pub shift: ByArea<f64>,
    /// The shift of either schedule for a video that ends at a given picture; none where that changes nothing.
    #[serde(default)]
    pub last_frame_shift: Option<f64>,
    /// The guidance scale of the released model.
    pub guidance: f64,
    /// The shift of the step-distilled model's schedule.
    pub distilled_shift: f64,
    /// The guidance scale of the step-distilled model.
    pub distilled_guidance: f64,
}

impl Defaults {
    /// Returns whether a negative prompt is the one that some family was released with, which a job has that names none.
    pub fn is_negative_prompt(prompt: &str) -> bool {
        prompt == NEGATIVE_PROMPT || prompt == negative_prompt_flf2v() || prompt == negative_prompt_wan22()
    }

    /// Returns the shift of a schedule, of the released or of the step-distilled model, for a video of this size, which ends at a
    /// given picture or not.
    pub fn shift_of(&self, is_distilled: bool, size: Size, has_last_frame: bool) -> f64 {
        let shift = if is_distilled { self.distilled_shift } else { *self.shift.of(size) };
        self.last_frame_shift.filter(|_| has_last_frame).unwrap_or(shift)
    }

    /// Returns the guidance scale of the released or of the step-distilled model.
    pub fn guidance_of(&self, is_distilled: bool) -> f64 {
        if is_distilled { self.distilled_guidance } else { self.guidance }
    }

    /// Returns the defaults that Wan2.1 image-to-video was released with, and those of its step-distilled variants.
    pub fn wan21_i2v() -> Self {
        Self {
            negative_prompt: NEGATIVE_PROMPT.to_owned(),
            frames: 81,
            fps: 16,
            steps: 40,
            shift: ByArea { p480: 3.0, p720: 5.0 },
            last_frame_shift: None,
            guidance: 5.0,
            distilled_shift: 5.0,
            distilled_guidance: 1.0,
        }
    }

    /// Returns the defaults that Wan2.1 first-and-last-frame was released with.
    pub fn wan21_flf2v() -> Self {
        Self {
            negative_prompt: negative_prompt_flf2v(),
            steps: 50,
            shift: ByArea { p480: 16.0, p720: 16.0 },
            last_frame_shift: Some(16.0),
            ..Self::wan21_i2v()
        }
    }

    /// Returns the defaults that Wan2.2 image-to-video was released with, and those of its step-distilled variants.
    pub fn wan22_i2v() -> Self {
        Self {
            negative_prompt: negative_prompt_wan22(),
            shift: ByArea { p480: 5.0, p720: 5.0 },
            guidance: 3.5,
            last_frame_shift: Some(16.0),
            ..Self::wan21_i2v()
        }
    }
}
