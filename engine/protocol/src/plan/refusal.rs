//! Refuses a job that fits no plan, with the arithmetic and the nearest settings that do.

use std::fmt;

use serde::Serialize;

use super::{Plan, Setup, gib};
use crate::profile::{Backend, Precision};
use crate::recipe::Recipe;
use crate::request::Request;

/// The reason why a job cannot run within a setup's limits, whatever is brought to the device when it is needed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refusal {
    /// The width and height of the video in pixels.
    pub size: [usize; 2],
    /// The number of frames of the video.
    pub frames: u32,
    /// What there is too little of.
    pub shortage: Shortage,
    /// The largest video of the same shape and number of frames that fits.
    pub smaller: Option<[usize; 2]>,
    /// The most frames that fit at the same size.
    pub fewer_frames: Option<u32>,
}

/// What there is too little of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "of")]
pub enum Shortage {
    /// Working memory: the GPU's or, with the backend `cpu`, the machine's.
    Working {
        /// Whether it is a GPU's.
        gpu: bool,
        /// What may be used.
        budget: u64,
        /// What weights take that are there at once.
        weights: u64,
        /// What all else takes.
        work: u64,
        /// What the driver takes.
        context: u64,
    },
    /// The machine's memory, for weights that wait there for the GPU.
    Host {
        /// What may be used.
        budget: u64,
        /// What the weights take.
        weights: u64,
        /// Whether a profile with the transformer in 8 bits would make them smaller.
        #[serde(skip)]
        is_wide: bool,
    },
}

/// Returns why a job whose video has `size` pixels, width and height, both multiples of 16, cannot run; `None` if it can.
pub fn refusal(recipe: &Recipe, request: &Request, size: [usize; 2], setup: &Setup) -> Option<Refusal> {
    let plan = |size, frames| {
        let request = Request { frames, ..request.clone() };
        Plan::new(recipe, &request, size, setup).memory
    };
    let memory = plan(size, request.frames);
    if memory.fits() {
        return None;
    }
    let shortage = match (memory.fits_host(), memory.host_budget) {
        (false, Some(budget)) => {
            let is_wide = !matches!(setup.precision.dit, Precision::Fp8 | Precision::Int8);
            Shortage::Host { budget, weights: memory.host.pinned, is_wide }
        }
        _ => Shortage::Working {
            gpu: setup.backend == Backend::Cuda,
            budget: memory.budget.unwrap_or_default(),
            weights: memory.weights_to_take(),
            work: memory.work_to_take(),
            context: memory.context,
        },
    };
    let fits = |size, frames| plan(size, frames).fits();
    let latent_frames = request.latent_frames();
    let fewer = most(latent_frames - 1, |n| fits(size, 4 * n as u32 - 3));
    let [width, height] = size;
    // Sides shrink together, by sixteenths of the longer one's pixels.
    let steps = width.max(height) / 16;
    let at = |n: usize| [width, height].map(|side| (side * n / steps / 16 * 16).max(16));
    let smaller = most(steps.saturating_sub(1), |n| fits(at(n), request.frames)).map(at);
    Some(Refusal {
        size,
        frames: request.frames,
        shortage,
        smaller,
        fewer_frames: fewer.map(|n| 4 * n as u32 - 3),
    })
}

/// Returns the largest number from 1 to `limit` that fits, where each number that is smaller than one that fits does, too.
fn most(limit: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut fitting, mut beyond) = (0, limit + 1);
    while beyond - fitting > 1 {
        let middle = usize::midpoint(fitting, beyond);
        if fits(middle) { fitting = middle } else { beyond = middle }
    }
    (fitting > 0).then_some(fitting)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size: [width, height], frames, shortage, smaller, fewer_frames } = self;
        let count = |n: u32| if n == 1 { "1 frame".into() } else { format!("{n} frames") };
        match *shortage {
            Shortage::Working { gpu, budget, weights, work, context } => {
                let needed = gib(weights + work + context);
                let (weights, work, budget) = (gib(weights), gib(work), gib(budget));
                let (of, driver) = match gpu {
                    true => ("the GPU's memory", format!(" + {} driver", gib(context))),
                    false => ("the machine's memory", String::new()),
                };
                write!(
                    f,
                    "{width}x{height} with {} needs {needed} of {of} ({weights} weights + {work} work{driver}), and \
                     {budget} can be used",
                    count(*frames)
                )?;
            }
            Shortage::Host { budget, weights, is_wide } => write!(
                f,
                "the model's weights need {} of the machine's memory to wait in for the GPU, and {} can be used: use {}a card \
                 with more memory, or a machine with more",
                gib(weights),
                gib(budget),
                if is_wide { "a profile with `dit` in 8 bits, " } else { "" }
            )?,
        }
        match (smaller, fewer_frames, shortage) {
            (Some([w, h]), Some(fewer), _) => {
                write!(f, ": {w}x{h} fits, or {} at {width}x{height}", count(*fewer))
            }
            (Some([w, h]), None, _) => write!(f, ": {w}x{h} fits"),
            (None, Some(fewer), _) => write!(f, ": {} fit at {width}x{height}", count(*fewer)),
            (None, None, Shortage::Working { gpu: true, .. }) => {
                f.write_str(": no size fits; use a smaller model, or a card with more memory")
            }
            (None, None, Shortage::Working { gpu: false, .. }) => {
                f.write_str(": no size fits; use a smaller model, or a machine with more memory")
            }
            (None, None, Shortage::Host { .. }) => Ok(()),
        }
    }
}
