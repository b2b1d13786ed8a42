//! What a video would cost before anybody orders it: from what earlier ones did, and from the choice of the profile.

use animd_engine::request::{Request, Size};

use crate::Result;
use crate::delivery::Desk;
use crate::ledger::Known;

/// Finished jobs that are looked at.
const LOOKED_AT: u32 = 200;
/// Work that differs by no more (the logarithm of the ratio) counts as the same: pictures of different shapes do by so much.
const SAME: f64 = 0.08;

/// What a video would cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Seconds of work, without waiting and without loading the model; `None` while there is nothing to judge by.
    pub seconds: Option<f64>,
    /// Where the seconds come from, as a sentence.
    pub seconds_why: String,
    /// Bytes of memory that the engine would take, on the GPU if there is one; `None` if not known.
    pub memory_bytes: Option<u64>,
    /// The profile's name; `None` while jobs wait for one.
    pub profile: Option<String>,
    /// Why this profile, as a sentence.
    pub why: String,
}

/// Plans. `picture` is its width and height in pixels, if known.
///
/// # Errors
/// What the ledger says.
pub async fn plan(desk: &Desk, request: &Request, picture: Option<(u32, u32)>) -> Result<Plan> {
    let choice = desk.profiles.choice();
    let profile = choice.profile.as_ref().map(|p| p.name.clone());
    let known = match profile.clone() {
        Some(profile) => desk.ledger.call(move |db| db.known(&profile, LOOKED_AT)).await?,
        None => Vec::new(),
    };
    let forwards = request.steps * if request.uses_guidance() { 2 } else { 1 };
    let (seconds, seconds_why) = seconds(&known, work(pixels(request, picture), request.frames, forwards));
    Ok(Plan { seconds, seconds_why, memory_bytes: None, profile, why: choice.text() })
}

/// Pixels of a frame. The official rule keeps the picture's shape and comes close to the area.
fn pixels(request: &Request, picture: Option<(u32, u32)>) -> u64 {
    match (request.size, picture) {
        (Size::Exact { width, height }, _) => u64::from(width) * u64::from(height),
        (size, _) => u64::from(size.area()),
    }
}

/// What a video takes, in operations of the 14B model's DiT. Only the ratio of two counts.
fn work(pixels: u64, frames: u32, forwards: u32) -> f64 {
    // Tokens are 16x16 pixels of one latent frame; linear layers go with them, self-attention with their square.
    let tokens = pixels as f64 / 256.0 * f64::from((frames + 3) / 4);
    let forward = 2.453e10 * tokens + 819_200.0 * tokens * tokens;
    forward * f64::from(forwards.max(1))
}

/// From jobs of the same work their median; else from those nearest to it, scaled.
fn seconds(known: &[Known], wanted: f64) -> (Option<f64>, String) {
    let mut jobs: Vec<(f64, f64)> = known
        .iter()
        .filter(|job| job.seconds > 0.0)
        .map(|job| {
            let pixels = u64::from(job.width) * u64::from(job.height);
            let ratio = wanted / work(pixels, job.frames, job.forwards);
            (ratio, job.seconds)
        })
        .collect();
    let far = |ratio: f64| ratio.ln().abs();
    jobs.sort_by(|a, b| far(a.0).total_cmp(&far(b.0)));
    let Some((nearest, _)) = jobs.first().copied() else {
        return (None, "no video was made with this profile yet, to judge by".into());
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
    use super::*;

    fn known(width: u32, height: u32, frames: u32, forwards: u32, seconds: f64) -> Known {
        Known { width, height, frames, forwards, seconds }
    }

    #[test]
    fn the_work_is_that_of_the_model() {
        // 832x480, 81 frames: 7.83e14 of linear layers, 2.1e13 of cross-attention, 8.79e14 of self-attention.
        let forward = work(832 * 480, 81, 1);
        assert!((forward / 1.683e15 - 1.0).abs() < 0.01, "{forward:e}");
        let forward = work(1280 * 720, 81, 1);
        assert!((forward / 6.54e15 - 1.0).abs() < 0.01, "{forward:e}");
    }

    #[test]
    fn alike_jobs_are_believed_and_others_are_scaled() {
        let wanted = work(832 * 480, 81, 80);
        assert_eq!(seconds(&[], wanted).0, None);
        let jobs = [
            known(832, 480, 81, 80, 130.0),
            known(480, 832, 81, 80, 132.0),
            known(832, 480, 81, 80, 900.0),
            known(1280, 720, 81, 80, 508.0),
        ];
        assert_eq!(seconds(&jobs, wanted).0, Some(132.0));
        // 44 of 80 forwards: the nearest is the full one.
        let (got, why) = seconds(&jobs[..1], work(832 * 480, 81, 44));
        assert!(got.is_some_and(|s| (s - 130.0 * 44.0 / 80.0).abs() < 0.01), "{got:?}");
        assert!(why.contains("0.55 times the work"), "{why}");
        // A clock that was set back is no reason to promise nothing.
        assert_eq!(seconds(&[known(832, 480, 81, 80, -5.0), jobs[0]], wanted).0, Some(130.0));
    }
}
