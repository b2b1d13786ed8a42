//! A film: a video that may be longer than the model makes at once.
//!
//! It is made part by part. Each part starts from the last frame of the one before, which is kept without loss; the
//! finished parts are joined without encoding them again. A film of one part is an ordinary job.

use std::path::{Path, PathBuf};

use animd_protocol::messages::{Pictures, Report};
use animd_protocol::request::Request;

use crate::Result;
use crate::backend::Backend;
use crate::image::Picture;
use crate::progress::{Observer, Progress};
use crate::video;

use super::part_store::PartStore;
use super::{Computed, Framing, Job, Pipeline, ends_at};

/// A film whose pictures are fitted and whose request is checked.
pub struct Film {
    /// The request of the whole film.
    request: Request,
    /// The first part.
    first: Job,
    /// The picture that the last part ends at, in films of several parts.
    last: Option<Picture>,
}

impl Film {
    /// Fits the pictures to the size that the request asks for.
    ///
    /// # Errors
    /// The errors of [`Job::between`].
    pub fn new(picture: Picture, last: Option<Picture>, request: Request) -> Result<Self> {
        if request.parts().len() == 1 {
            let first = Job::between(&picture, last.as_ref(), request.of_part(0, (0, 0)))?;
            return Ok(Self { request, first, last: None });
        }
        let first = Job::new(&picture, request.of_part(0, (0, 0)))?;
        ends_at(&picture, last.as_ref(), &request)?;
        let last = last.or(request.looped.then_some(picture));
        Ok(Self { request, first, last })
    }

    /// Returns the request of the whole film.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Returns the largest part, for plans.
    pub fn largest_part(&self) -> &Job {
        // Parts get shorter, if anything.
        &self.first
    }

    fn size(&self) -> (u32, u32) {
        (self.first.width() as u32, self.first.height() as u32)
    }
}

impl<B: Backend> Pipeline<B> {
    /// Makes a film and writes it to `out`, complete and synced, with the `pictures` beside it. Finished parts of a film of
    /// several parts stay in the folder `parts`, and those that are there already are not made again; the caller removes
    /// the folder when the film is delivered or given up.
    ///
    /// # Errors
    /// Those of [`Pipeline::run`].
    pub fn film(
        &mut self,
        film: &Film,
        out: &Path,
        pictures: &Pictures,
        parts: Option<&Path>,
        observer: &dyn Observer,
    ) -> Result<Report> {
        self.compute_film(film, out, pictures, parts, observer)?.save(observer)
    }

    /// Does what [`Pipeline::film`] does, except for what the model is not needed for: finishing the file of a film of one
    /// part, which another job need not wait for.
    ///
    /// # Errors
    /// Those of [`Pipeline::run`].
    pub fn compute_film(
        &mut self,
        film: &Film,
        out: &Path,
        pictures: &Pictures,
        parts: Option<&Path>,
        observer: &dyn Observer,
    ) -> Result<Computed> {
        let count = film.request.parts().len();
        if count == 1 {
            return self.compute(&film.first, out, pictures, Framing::default(), observer);
        }
        // The model refuses what it cannot do with the whole film before it begins with a part.
        self.recipe().check(&film.request)?;
        let own = || -> Result<PathBuf> { Ok(video::part_path(out)?.with_extension("parts")) };
        let store = PartStore::open(&parts.map_or_else(own, |dir| Ok(dir.to_owned()))?)?;
        let made = self.parts_of(film, &store, pictures, observer).and_then(|reports| {
            let videos: Vec<PathBuf> = (0..count).map(|index| store.video(index)).collect();
            let metadata = self.metadata(&film.request, observer)?;
            let bytes = video::join_parts(&videos, out, &metadata, observer)?;
            store.place_stills(pictures);
            Ok(sum(&film.request, reports, bytes))
        });
        if parts.is_none() {
            store.remove();
        }
        made.map(Computed::saved)
    }

    /// Makes the parts that are not finished, and returns the reports of all.
    fn parts_of(
        &mut self,
        film: &Film,
        store: &PartStore,
        pictures: &Pictures,
        observer: &dyn Observer,
    ) -> Result<Vec<Report>> {
        let count = film.request.parts().len();
        let requests = (0..count).map(|index| film.request.of_part(index, film.size()));
        // A part after one that is missing starts from another frame than the one that is going to be there.
        let mut reports: Vec<Report> = requests
            .clone()
            .enumerate()
            .map_while(|(index, request)| store.finished(index, &request))
            .collect();
        if !reports.is_empty() {
            tracing::info!("{} of {count} parts are finished already", reports.len());
        }
        for (index, request) in requests.enumerate().skip(reports.len()) {
            let later;
            let job = match index.checked_sub(1) {
                None => &film.first,
                Some(before) => {
                    let last = film.last.as_ref().filter(|_| request.has_last_frame());
                    later = Job::between(&store.picture(before)?, last, request.clone())?;
                    &later
                }
            };
            // The poster is a frame from the middle, as that of a short video. It waits with the parts, because an
            // interrupted job loses what lies elsewhere.
            let stills = if index == count / 3 { store.stills(pictures) } else { Pictures::default() };
            let pictures = Pictures { preview: pictures.preview.clone(), ..stills };
            let last_frame = store.last_frame(index);
            let framing =
                Framing { continues: index > 0, last_frame: (index + 1 < count).then_some(&*last_frame) };
            let part = PartOf { film: observer, index, count };
            let report = self.compute(job, &store.video(index), &pictures, framing, &part)?.save(&part)?;
            store.finish(index, &request, &report)?;
            reports.push(report);
        }
        Ok(reports)
    }
}

/// Returns the report of a film from those of its parts.
fn sum(request: &Request, parts: Vec<Report>, bytes: u64) -> Report {
    let mut whole = Report { seed: request.seed, bytes, ..Report::default() };
    for part in parts {
        (whole.width, whole.height) = (part.width, part.height);
        whole.frames += part.frames;
        whole.forwards_computed += part.forwards_computed;
        whole.forwards_skipped += part.forwards_skipped;
        whole.peak_ram_bytes = whole.peak_ram_bytes.max(part.peak_ram_bytes);
        whole.peak_gpu_bytes = whole.peak_gpu_bytes.max(part.peak_gpu_bytes);
        for (stage, seconds) in part.seconds {
            match whole.seconds.iter_mut().find(|(known, _)| *known == stage) {
                Some((_, sum)) => *sum += seconds,
                None => whole.seconds.push((stage, seconds)),
            }
        }
        whole.steps.extend(part.steps);
        // All parts are of one model.
        whole.model_loras = part.model_loras;
        for note in part.notes {
            if !whole.notes.contains(&note) {
                whole.notes.push(note);
            }
        }
    }
    whole
}

/// Turns the progress of a part into that of its film.
struct PartOf<'a> {
    film: &'a dyn Observer,
    index: usize,
    count: usize,
}

impl Observer for PartOf<'_> {
    fn progress(&self, progress: &Progress) {
        let (index, count) = (self.index as f64, self.count as f64);
        // The parts that are left take as long as this one.
        let whole = progress.seconds_left.map(|left| {
            let rest = (1.0 - progress.fraction).max(f64::MIN_POSITIVE);
            let part = if progress.fraction < 1.0 { left / rest } else { 0.0 };
            left + part * (count - index - 1.0)
        });
        let last = self.index + 1 == self.count;
        self.film.progress(&Progress {
            step: self.index as u32 * progress.steps + progress.step,
            steps: self.count as u32 * progress.steps,
            fraction: ((index + progress.fraction) / count).min(1.0),
            // At the end of a part nothing is known of the next one's pace.
            seconds_left: whole.filter(|_| last || progress.fraction < 1.0),
            ..*progress
        });
    }

    fn preview(&self, n: u32) {
        self.film.preview(n);
    }

    fn canceled(&self) -> bool {
        self.film.canceled()
    }
}
