//! The pictures beside a video: poster and thumbnail from the decoded frames, previews from the sampler's estimates.

use std::fs::File;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use animd_protocol::messages::Pictures;

use crate::backend::Backend;
use crate::image::Picture;
use crate::model::vae::{Colours, LATENT_CHANNELS};
use crate::progress::Observer;
use crate::{Error, Result};

/// The pixels of a thumbnail's longer side: freedesktop's "x-large".
const THUMBNAIL: u32 = 512;
/// The pixels of a preview for each latent pixel.
const ENLARGED: u32 = 4;
/// The shortest time from one preview to the next.
const PAUSE: Duration = Duration::from_secs(2);
const POSTER_QUALITY: u8 = 90;
const THUMBNAIL_QUALITY: u8 = 85;
const PREVIEW_QUALITY: u8 = 80;

/// Returns the frame that stands for a video of so many. The first frame is only the picture that the user gave.
fn chosen(frames: usize) -> usize {
    frames / 3
}

/// The poster and the thumbnail, taken from the frames as they pass. Dropped before [`Stills::finish`], it removes
/// them.
pub struct Stills {
    pictures: Pictures,
    size: [usize; 2],
    /// The index of the frame to take, counted from the next one.
    wanted: Option<usize>,
    /// The thread that encodes and writes while later frames are decoded.
    writing: Option<JoinHandle<()>>,
    finished: bool,
}

impl Stills {
    /// Returns the stills of a video of `frames` frames of `width` x `height` pixels.
    pub fn new(pictures: &Pictures, width: usize, height: usize, frames: u32) -> Self {
        let asked = pictures.poster.is_some() || pictures.thumbnail.is_some();
        let wanted = asked.then(|| chosen(frames as usize));
        let pictures = pictures.clone();
        Self { pictures, size: [width, height], wanted, writing: None, finished: false }
    }

    /// Takes frames as the video's writer gets them, `[n, height, width, 3]`.
    pub fn see(&mut self, rgb: &[u8]) {
        let [width, height] = self.size;
        let bytes = 3 * width * height;
        let Some(wanted) = self.wanted else { return };
        let Some(frame) = rgb.get(wanted * bytes..(wanted + 1) * bytes) else {
            self.wanted = Some(wanted - rgb.len() / bytes);
            return;
        };
        self.wanted = None;
        let picture = Picture { width: width as u32, height: height as u32, rgb: frame.to_vec() };
        let Pictures { poster, thumbnail, .. } = self.pictures.clone();
        self.writing = Some(std::thread::spawn(move || {
            let began = Instant::now();
            if let Some(path) = thumbnail {
                tell(write(&picture.fitted_into(THUMBNAIL), &path, THUMBNAIL_QUALITY), "thumbnail");
            }
            if let Some(path) = poster {
                tell(write(&picture, &path, POSTER_QUALITY), "poster");
            }
            tracing::debug!("poster and thumbnail in {:?}", began.elapsed());
        }));
    }

    /// Waits until both pictures are written.
    pub fn finish(mut self) {
        self.wait();
        self.finished = true;
    }

    fn wait(&mut self) {
        if let Some(writing) = self.writing.take()
            && writing.join().is_err()
        {
            tracing::warn!("the poster's thread panicked");
        }
    }
}

impl Drop for Stills {
    fn drop(&mut self) {
        self.wait();
        if !self.finished && self.wanted.is_none() {
            for path in [&self.pictures.poster, &self.pictures.thumbnail].into_iter().flatten() {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Writes and syncs a picture that is kept.
fn write(picture: &Picture, path: &Path, quality: u8) -> Result<()> {
    picture.write_jpeg(path, quality)?;
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("sync", path))
}

/// Logs a picture that cannot be written; the video does not fail for it.
fn tell(written: Result<()>, what: &str) {
    if let Err(e) = written {
        tracing::warn!("the video has no {what}: {e}");
    }
}

/// The previews that show the video while the DiT works.
pub struct Previews<'a> {
    /// `None` if nobody asked for previews, or one could not be written.
    path: Option<&'a Path>,
    colours: Option<Colours>,
    last: Option<Instant>,
    written: u32,
}

impl<'a> Previews<'a> {
    /// Returns previews at `path`, if there is one, in colours by `colours`.
    pub fn new(path: Option<&'a Path>, colours: Option<Colours>) -> Self {
        Self { path, colours, last: None, written: 0 }
    }

    /// Shows the clean latent that the model points to: from the sample `x` `[16, t, h, w]` with `sigma` of noise, and
    /// the velocity there. It is written if the last preview is old enough; the rest of the work waits for one frame of
    /// latents, a few milliseconds.
    ///
    /// # Errors
    /// Returns the backend's errors.
    pub fn offer<B: Backend>(
        &mut self,
        b: &B,
        x: &B::Tensor,
        velocity: &B::Tensor,
        sigma: f32,
        observer: &dyn Observer,
    ) -> Result<()> {
        let (Some(path), Some(colours)) = (self.path, &self.colours) else { return Ok(()) };
        if self.last.is_some_and(|at| at.elapsed() < PAUSE) {
            return Ok(());
        }
        let began = Instant::now();
        self.last = Some(began);
        let [t, h, w] = match b.shape(x)[..] {
            [LATENT_CHANNELS, t, h, w] => [t, h, w],
            ref other => return Err(Error::Internal(format!("{other:?} is no latent's shape"))),
        };
        let frame = |all| b.slice(all, 1, chosen(t), 1);
        let clean = b.linear_combination(&[(1.0, &frame(x)?), (-sigma, &frame(velocity)?)])?;
        let clean = b.download(&clean)?;
        let byte = |v: f32| ((v + 1.0) * 127.5).clamp(0.0, 255.0) as u8;
        let rgb = (0..h * w).flat_map(|i| colours.of(|c| clean[c * h * w + i]).map(byte)).collect();
        let small = Picture { width: w as u32, height: h as u32, rgb };
        let written =
            small.resized(ENLARGED * small.width, ENLARGED * small.height).write_jpeg(path, PREVIEW_QUALITY);
        match written {
            Ok(()) => {
                self.written += 1;
                tracing::debug!("preview {} in {:?}", self.written, began.elapsed());
                observer.preview(self.written);
            }
            Err(e) => {
                tracing::warn!("there will be no more previews: {e}");
                self.path = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_frame_becomes_poster_and_thumbnail() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name| Some(folder.path().join(name));
        let pictures =
            Pictures { poster: path("poster.jpg"), thumbnail: path("thumbnail.jpg"), preview: None };
        // Frame n has brightness n; frames come in ones and fours, as from the VAE.
        let frames =
            |from: u8, n: u8| (from..from + n).flat_map(|i| vec![10 * i; 3 * 1024 * 16]).collect::<Vec<_>>();
        let mut stills = Stills::new(&pictures, 1024, 16, 13);
        for (from, n) in [(0, 1), (1, 4), (5, 4), (9, 4)] {
            stills.see(&frames(from, n));
        }
        stills.finish();
        for (path, size) in [(&pictures.poster, (1024, 16)), (&pictures.thumbnail, (512, 8))] {
            let read = crate::image::decode(path.as_deref().expect("a path")).expect("a picture");
            assert_eq!((read.width, read.height), size);
            assert!(read.rgb.iter().all(|v| v.abs_diff(40) < 3), "{:?}", &read.rgb[..3]);
        }

        // A second one is dropped before its end.
        let mut stills = Stills::new(&pictures, 1024, 16, 1);
        stills.see(&frames(0, 1));
        drop(stills);
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_folder_that_is_gone_costs_only_the_pictures() {
        let gone = Some("/nonexistent/a.jpg".into());
        let pictures = Pictures { poster: gone.clone(), thumbnail: gone, preview: None };
        let mut stills = Stills::new(&pictures, 2, 2, 1);
        stills.see(&[0; 12]);
        stills.finish();
    }
}
