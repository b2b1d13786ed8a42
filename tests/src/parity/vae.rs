//! The autoencoder, its intermediates, and the DiT's conditioning.

use std::collections::BTreeMap;

use animd_engine::backend::TensorOps;
use animd_engine::backend::cpu::Cpu;
use animd_engine::image;
use animd_engine::model::vae::{self, Footage, Piece};
use animd_engine::progress::Quiet;
use anyhow::Result;

use super::goldens::std;
use super::{Goldens, MODEL, Model};

type Tensor = <Cpu as TensorOps>::Tensor;

/// Intermediates by name, chunk after chunk; joined along time at the end.
#[derive(Default)]
struct Chunks(BTreeMap<String, Vec<Tensor>>);

impl Chunks {
    fn check(self, goldens: &mut Goldens, backend: &Cpu) -> Result<()> {
        for (part, chunks) in self.0 {
            let name = format!("vae.{part}");
            if goldens.has(&name) {
                let joined = backend.concat(&chunks.iter().collect::<Vec<_>>(), 1)?;
                goldens.relative(&name, &backend.download(&joined)?, MODEL)?;
            }
        }
        Ok(())
    }
}

/// Returns `e2e`'s picture, fitted: pixels `[3, 1, h, w]` on the device, and the latent height and width.
pub fn first_frame(goldens: &Goldens, model: &Model) -> Result<(Tensor, usize, usize)> {
    let picture = image::decode(&goldens.dir.join(goldens.text("clip/0/file")?))?;
    let (lat_h, lat_w) =
        image::official(picture.width, picture.height, goldens.count("spec/max_area")? as u32)?;
    let (lat_h, lat_w) = (lat_h as usize, lat_w as usize);
    let pixels = image::bicubic(&picture, lat_h * 8, lat_w * 8);
    Ok((model.backend.upload(&pixels, &[3, 1, lat_h * 8, lat_w * 8])?, lat_h, lat_w))
}

/// Returns the number of latent frames of the fixture's videos.
pub fn latent_frames(goldens: &Goldens) -> Result<usize> {
    Ok((goldens.count("spec/frames")? - 1) / 4 + 1)
}

/// Checks `vae.*`, `y`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let b = &model.backend;
    let (first, ..) = first_frame(goldens, model)?;
    goldens.relative("vae.enc.first_frame", &b.download(&first)?, MODEL)?;

    // Runs the whole computation, with its intermediates; then the short cut for still pictures, which must give the
    // same.
    let shape = b.shape(&first);
    let zeros = vec![0.0; 3 * (goldens.count("spec/frames")? - 1) * shape[2] * shape[3]];
    let zeros = b.upload(&zeros, &[3, goldens.count("spec/frames")? - 1, shape[2], shape[3]])?;
    let mut chunks = Chunks::default();
    let mut probe = |name: &str, t: &Tensor| {
        chunks.0.entry(name.to_owned()).or_default().push(t.clone());
    };
    let video = b.concat(&[&first, &zeros], 1)?;
    model.vae.encode(b, Footage::Video(&video), None, &Quiet, Some(&mut probe))?;
    chunks.check(goldens, b)?;
    let footage = Footage::Picture { picture: &first, last: None, latent_frames: latent_frames(goldens)? };
    let latents = model.vae.encode(b, footage, None, &Quiet, None)?;
    let values = b.download(&latents)?;
    goldens.relative("vae.enc.out", &values, MODEL)?;
    goldens.number("vae/enc_out_std", std(&values), MODEL)?;
    goldens.relative("y", &b.download(&vae::condition(b, &latents, false)?)?, MODEL)?;

    let video = goldens.input("vae.enc2.in")?;
    let video = b.upload(&video.f32(), &video.shape)?;
    let latents = model.vae.encode(b, Footage::Video(&video), None, &Quiet, None)?;
    goldens.relative("vae.enc2.out", &b.download(&latents)?, MODEL)?;

    let z = goldens.input("vae.dec.in")?;
    let z = b.upload(&z.f32(), &z.shape)?;
    let mut chunks = Chunks::default();
    let mut probe = |name: &str, t: &Tensor| {
        chunks.0.entry(name.to_owned()).or_default().push(t.clone());
    };
    let mut frames = Vec::new();
    let mut sink = |piece: Piece<Tensor>| {
        frames.push(piece.frames);
        Ok(())
    };
    model.vae.decode(b, &z, None, &Quiet, &mut sink, Some(&mut probe))?;
    chunks.check(goldens, b)?;
    let out = b.download(&b.concat(&frames.iter().collect::<Vec<_>>(), 1)?)?;
    goldens.relative("vae.dec.out_unclamped", &out, MODEL)?;
    goldens.number("vae/dec_out_std", std(&out), MODEL)?;
    let clamped = out.iter().filter(|v| v.abs() > 1.0).count() as f64 / out.len() as f64;
    // A value at the edge of the range may be clamped or not.
    goldens.number("vae/dec_clamped_fraction", clamped, 1e-3)?;

    let list = |values: &[f32]| values.iter().map(|&v| Some(f64::from(v))).collect::<Vec<_>>();
    goldens.numbers("vae/mean", &list(&vae::LATENT_MEAN), 1e-12)?;
    goldens.numbers("vae/std", &list(&vae::LATENT_STD), 1e-12)
}
