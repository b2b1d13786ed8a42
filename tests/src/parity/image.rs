//! Size rules and resampling.

use animd_engine::image;
use animd_protocol::request::{Resize, Size};
use anyhow::Result;

use super::{Goldens, MODEL};

/// Returns every 16th pixel of `[3, h, w]`.
fn every_16th(pixels: &[f32], height: usize, width: usize) -> Vec<f32> {
    let rows = (0..3 * height).filter(|row| (row % height).is_multiple_of(16));
    rows.flat_map(|row| (0..width).step_by(16).map(move |x| pixels[row * width + x])).collect()
}

/// Checks `image_rules`, `img.*`.
pub fn check(goldens: &mut Goldens) -> Result<()> {
    for i in 0..goldens.len("image_rules")? {
        let side = |key| Ok::<_, anyhow::Error>(goldens.count(&format!("image_rules/{i}/{key}"))? as u32);
        let (w, h) = (side("w")?, side("h")?);
        goldens.given(&format!("image_rules/{i}/w"))?;
        goldens.given(&format!("image_rules/{i}/h"))?;
        for (name, size) in [("480p", Size::P480), ("720p", Size::P720)] {
            let at = |key: &str| format!("image_rules/{i}/{name}/{key}");
            let (lat_h, lat_w) = image::official(w, h, size.area())?;
            goldens.fact(&at("official_lat_hw"), vec![lat_h, lat_w])?;
            goldens.fact(&at("official_hw"), vec![lat_h * 8, lat_w * 8])?;
            let (dh, dw) = image::diffusers_example(w, h, size.area());
            goldens.fact(&at("diffusers_example_hw"), vec![dh, dw])?;
            let a = image::adaptive(w, h, size)?;
            goldens.fact(&at("lightx2v_adaptive/bucket_hw"), vec![a.bucket_height, a.bucket_width])?;
            let c = a.crop;
            let crop = vec![c.top, c.top + c.height, c.left, c.left + c.width];
            goldens.fact(&at("lightx2v_adaptive/crop_y0y1x0x1"), crop)?;
            goldens.fact(&at("lightx2v_adaptive/lat_hw"), vec![a.lat_h, a.lat_w])?;
        }
    }
    let picture = image::decode(&goldens.dir.join(goldens.text("clip/1/file")?))?;
    let area = goldens.count("spec/max_area")? as u32;
    let (lat_h, lat_w) = image::official(picture.width, picture.height, area)?;
    goldens.relative(
        "img.1.official_small",
        &image::bicubic(&picture, lat_h as usize * 8, lat_w as usize * 8),
        MODEL,
    )?;
    for (name, rule) in
        [("img.1.official_480p_16", Resize::Official), ("img.1.lightx2v_480p_16", Resize::Adaptive)]
    {
        let fitted = image::fit(&picture, &Size::P480, rule)?;
        goldens.relative(name, &every_16th(&fitted.first_frame, fitted.height, fitted.width), MODEL)?;
    }
    Ok(())
}
