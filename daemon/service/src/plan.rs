//! Estimates what a video would cost: its time from earlier videos or the card's rates, its memory from the engine's plan,
//! and its profile as it is chosen now; and says which videos no plan fits.

use std::sync::Arc;

use animd_common::memory::total_memory;
use animd_protocol::plan::cards;
use animd_protocol::plan::{self, Prediction, Setup, Work};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::{Request, Size};

use crate::error::Result;
use crate::store::ledger::{Known, Ledger};
use crate::supervisor::profile::Profiles;

/// Finished jobs that are looked at.
const LOOKED_AT: u32 = 200;
/// Work that differs by no more (the logarithm of the ratio) counts as the same: pictures of different shapes do by so
/// much.
const SAME: f64 = 0.08;

/// What a video would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Seconds of work, without waiting and without loading the model; `None` while there is nothing to judge by.
    pub seconds: Option<f64>,
    /// Where the seconds come from: `history`, `prediction` or `unknown`.
    pub seconds_source: &'static str,
    /// Where the seconds come from, as a sentence.
    pub seconds_why: String,
    /// The number of parts that the video is made in, one after the other.
    pub parts: u32,
    /// Forwards of the DiT that are computed, at the most.
    pub forwards: u32,
    /// Bytes of memory that the model takes with this profile, on the GPU if it uses one; `None` without a profile,
    /// or while the model is not known.
    pub memory_bytes: Option<u64>,
    /// Bytes of the machine's memory in which weights wait for the GPU.
    pub host_bytes: Option<u64>,
    /// Bytes of weights that are copied to the GPU in each forward.
    pub streamed_bytes: Option<u64>,
    /// The profile's name; `None` while jobs wait for one.
    pub profile: Option<String>,
    /// Why this profile, as a sentence.
    pub why: String,
    /// What a user should know of the settings ([`Recipe::remarks`]), or that the model is not known.
    pub notes: Vec<String>,
}

/// Returns the plan of a video. `picture` is its picture's width and height in pixels, if known.
///
/// # Errors
/// What the ledger says.
pub async fn plan(
    ledger: &Ledger,
    profiles: &Profiles,
    request: &Request,
    picture: Option<(u32, u32)>,
) -> Result<Plan> {
    // Parts differ by four frames at most.
    let (whole, parts, request) = (request, request.parts().len() as u32, &request.largest_part());
    let choice = profiles.choice();
    let profile = choice.profile.as_ref().map(|p| p.name.clone());
    let known = match profile.clone() {
        Some(profile) => {
            let model = request.model.clone();
            ledger.call(move |db| db.known(&profile, model.as_deref(), LOOKED_AT)).await?
        }
        None => Vec::new(),
    };
    let why = choice.text();
    let Some(recipe) = profiles.recipes().of(request.model.as_deref()) else {
        let seconds_why = "the engine has not opened the model so far, so its size is not known".into();
        return Ok(Plan {
            seconds: None,
            seconds_source: "unknown",
            seconds_why,
            parts,
            forwards: parts * request.forwards(),
            memory_bytes: None,
            host_bytes: None,
            streamed_bytes: None,
            profile,
            why,
            notes: vec![
                "no engine has opened this model so far, so that the defaults of its family are not known, and those of Wan2.1 \
                 image-to-video are shown; the video will have its own"
                    .to_owned(),
            ],
        });
    };
    let size = size(request, picture);
    let setup = profiles.at_best(total_memory());
    let planned = setup.unwrap_or(Setup::CPU);
    let plan = plan::Plan::new(&recipe, request, size, &planned);
    let (seconds, seconds_why) = seconds(&recipe, &known, plan.work.flops());
    let card = choice.used_gpu().and_then(|gpu| cards::named(&gpu.name));
    let predicted = card.and_then(|card| Prediction::new(&recipe, &plan, &planned, &card));
    let (seconds, seconds_source, seconds_why) = match (seconds, predicted) {
        (Some(seconds), _) => (Some(seconds), "history", seconds_why),
        (None, Some(prediction)) => {
            let why = format!("predicted by the rates of {}: {seconds_why}", prediction.card);
            (Some(prediction.seconds), "prediction", why)
        }
        (None, None) => (None, "unknown", seconds_why),
    };
    let seconds = seconds.map(|seconds| f64::from(parts) * seconds);
    let seconds_why = match parts {
        1 => seconds_why,
        _ => format!("{parts} parts of at most {} frames; for each {seconds_why}", request.frames),
    };
    let dit = plan.memory.networks.first();
    Ok(Plan {
        seconds,
        seconds_source,
        seconds_why,
        parts,
        forwards: parts * plan.forwards.computed,
        memory_bytes: setup.map(|setup| plan.memory.total() + setup.reserve),
        host_bytes: setup.map(|_| plan.memory.host.pinned).filter(|bytes| *bytes > 0),
        streamed_bytes: dit.map(|dit| dit.placement.streamed_bytes()).filter(|bytes| *bytes > 0),
        profile,
        why,
        notes: recipe.remarks(whole),
    })
}

/// Returns why a video can never be made on this machine, with the nearest that can; `None` while that is not known.
/// What other programs hold of the memory does not count: they may give it back.
pub fn refusal(profiles: &Profiles, request: &Request, picture: Option<(u32, u32)>) -> Option<String> {
    let setup = profiles.at_best(total_memory())?;
    // Of a model that no engine has opened yet, it is known what every model of its family takes.
    let recipe = profiles
        .recipes()
        .of(request.model.as_deref())
        .unwrap_or_else(|| Arc::new(Recipe::wan21_i2v_least()));
    let part = request.largest_part();
    plan::refusal(&recipe, &part, size(request, picture), &setup).map(|refusal| refusal.to_string())
}

/// Width and height. For an area its own shape, or that on its side: the picture's shape makes few per cent.
fn size(request: &Request, picture: Option<(u32, u32)>) -> [usize; 2] {
    let area = match request.size {
        Size::Exact { width, height } => return [width as usize, height as usize],
        Size::P480 => [832, 480],
        Size::P720 => [1280, 720],
    };
    match picture {
        Some((width, height)) if height > width => [area[1], area[0]],
        _ => area,
    }
}

/// Returns the work that an earlier job has computed.
fn work(recipe: &Recipe, job: &Known) -> f64 {
    let latent = [(job.frames as usize).div_ceil(4), job.height as usize / 8, job.width as usize / 8];
    // The prompts count for little.
    Work::of_forwards(recipe, latent, 2, job.forwards).flops()
}

/// From jobs of the same work their median; else from those nearest to it, scaled.
fn seconds(recipe: &Recipe, known: &[Known], wanted: f64) -> (Option<f64>, String) {
    let mut jobs: Vec<(f64, f64)> = known
        .iter()
        .filter(|job| job.seconds > 0.0)
        .map(|job| (wanted / work(recipe, job), job.seconds))
        .collect();
    let far = |ratio: f64| ratio.ln().abs();
    jobs.sort_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    let Some((nearest, _)) = jobs.first().copied() else {
        return (
            None,
            "no video has been made with this profile so far, so there is nothing to estimate from".into(),
        );
    };
    let same: Vec<f64> = jobs.iter().filter(|(ratio, _)| far(*ratio) <= SAME).map(|(_, s)| *s).collect();
    if !same.is_empty() {
        let jobs = if same.len() == 1 { "one earlier video" } else { "earlier videos" };
        return (median(same), format!("the time of {jobs} of this size and number of steps"));
    }
    let alike = jobs.iter().take_while(|(ratio, _)| far(*ratio) - far(nearest) <= SAME);
    let scaled = alike.map(|(ratio, seconds)| ratio * seconds).collect();
    (
        median(scaled),
        format!("{nearest:.2} times the work of the most similar earlier video, which was scaled"),
    )
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied()?;
    match values.len() % 2 {
        0 => Some(f64::midpoint(middle, values[values.len() / 2 - 1])),
        _ => Some(middle),
    }
}

#[cfg(test)]
mod tests {
    use animd_protocol::messages::Kernels;
    use animd_protocol::request::Settings;

    use super::*;
    use crate::supervisor::gpu::Machine;
    use crate::supervisor::profile::Wish;

    fn known(width: u32, height: u32, frames: u32, forwards: u32, seconds: f64) -> Known {
        Known { width, height, frames, forwards, seconds }
    }

    #[test]
    fn a_video_larger_than_the_machine_is_refused_whatever_the_model() {
        let profiles = Profiles::default();
        let request = |size: &str, frames| {
            let settings = Settings { size: size.parse().ok(), frames: Some(frames), ..Settings::default() };
            settings.resolve(|| 1).expect("valid settings")
        };
        let huge = request("16384x16384", 4093);
        assert_eq!(refusal(&profiles, &huge, None), None, "nothing is known of the machine");
        let machine = Machine::NoDriver { why: "there is no driver".into(), on_bus: 0 };
        profiles.decide(machine, Kernels::default(), &Wish::default());
        let text = refusal(&profiles, &huge, None).expect("no machine has so much memory");
        assert!(text.starts_with("16384x16384 with 4093 frames needs ") && text.contains(" fits"), "{text}");
        assert_eq!(refusal(&profiles, &request("320x192", 9), None), None, "a small model may make it");
        // The 14B model in float32 has 85 GB of weights.
        profiles.recipes().learn(None, Arc::new(Recipe::wan21_i2v_14b()));
        let other = Request { model: Some("small".into()), ..request("320x192", 9) };
        assert_eq!(refusal(&profiles, &other, None), None, "it says nothing of other models");
        if total_memory().is_some_and(|bytes| bytes < 70 << 30) {
            let text = refusal(&profiles, &request("320x192", 9), None).expect("its weights do not fit");
            assert!(
                text.ends_with("no size fits; use a smaller model, or a machine with more memory"),
                "{text}"
            );
        }
    }

    #[test]
    fn alike_jobs_are_believed_and_others_are_scaled() {
        let recipe = Recipe::wan21_i2v_14b();
        let of = |forwards| work(&recipe, &known(832, 480, 81, forwards, 0.0));
        let seconds = |jobs: &[Known], wanted| seconds(&recipe, jobs, wanted);
        let wanted = of(80);
        assert_eq!(seconds(&[], wanted).0, None);
        let jobs = [
            known(832, 480, 81, 80, 130.0),
            known(480, 832, 81, 80, 132.0),
            known(832, 480, 81, 80, 900.0),
            known(1280, 720, 81, 80, 508.0),
        ];
        assert_eq!(seconds(&jobs, wanted).0, Some(132.0));
        // 44 of 80 forwards: the nearest is the full one.
        let (got, why) = seconds(&jobs[..1], of(44));
        assert!(got.is_some_and(|s| (s - 130.0 * of(44) / wanted).abs() < 0.01), "{got:?}");
        assert!(why.contains("0.55 times the work"), "{why}");
        // Another shape of the same area is the same work.
        assert_eq!(seconds(&[known(464, 832, 81, 80, 125.0)], wanted).0, Some(125.0));
        // A clock that was set back is no reason to promise nothing.
        assert_eq!(seconds(&[known(832, 480, 81, 80, -5.0), jobs[0]], wanted).0, Some(130.0));
    }
}
