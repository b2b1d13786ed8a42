//! CLIP and its preprocessing.

use animd_engine::backend::TensorOps;
use animd_engine::backend::cpu::Cpu;
use animd_engine::image;
use anyhow::Result;

use super::goldens::std;
use super::{Goldens, MODEL, Model};

const SIDE: usize = 224;

/// Checks `clip.*`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    for i in 0..goldens.len("clip")? {
        let file = goldens.text(&format!("clip/{i}/file"))?.to_owned();
        let picture = image::decode(&goldens.dir.join(file))?;
        let pixels = image::clip_pixels(&picture);
        goldens.given(&format!("clip/{i}/file"))?;
        goldens.fact(&format!("clip/{i}/wh"), vec![picture.width, picture.height])?;
        if goldens.has(&format!("clip.{i}.image_u8")) {
            let bytes: Vec<i64> = picture.rgb.iter().map(|&b| i64::from(b)).collect();
            goldens.equal(&format!("clip.{i}.image_u8"), &bytes)?;
            goldens.relative(&format!("clip.{i}.pixel_values"), &pixels, MODEL)?;
        }
        if goldens.has(&format!("clip.{i}.pixel_values_7")) {
            let rows = (0..3 * SIDE).filter(|row| (row % SIDE).is_multiple_of(7));
            let sample: Vec<f32> = rows
                .flat_map(|row| (0..SIDE).step_by(7).map(move |x| (row, x)))
                .map(|(y, x)| pixels[y * SIDE + x])
                .collect();
            goldens.relative(&format!("clip.{i}.pixel_values_7"), &sample, MODEL)?;
        }
        let mut parts = Vec::new();
        let mut probe = |name: &str, t: &<Cpu as TensorOps>::Tensor| parts.push((name.to_owned(), t.clone()));
        let out = model.clip.encode(&model.backend, &pixels, Some(&mut probe))?;
        for (part, values) in parts {
            let name = format!("clip.{i}.{part}");
            if goldens.has(&name) {
                goldens.relative(&name, &model.backend.download(&values)?, MODEL)?;
            }
        }
        let out = model.backend.download(&out)?;
        goldens.relative(&format!("clip.{i}.out"), &out, MODEL)?;
        goldens.number(&format!("clip/{i}/std"), std(&out), MODEL)?;
    }
    Ok(())
}
