//! `animctl demo [PICTURE]`

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use animd_client::id_of;
use animd_common::files::show;
use animd_common::models::SMALL;
use rustix::fs::{MemfdFlags, memfd_create};
use zbus::Variant;

use super::batch::Batch;
use super::exit::{Failure, Result};
use super::submit::{Submitted, finish, open};
use super::{Ctl, fetch, path};

/// The picture of a demo that is given none: dandelions, by Clemens Engelhardt, CC0.
const PICTURE: &[u8] = include_bytes!("../../assets/demo.jpg");
/// How the videos of demos are called.
const NAME: &str = "animd-demo";
/// What the demo is, for a person who may take its video for what animd can do.
const ABOUT: &str = "this is animd's small model: it shows how animd works, and is no measure of Wan 14B";

/// Try animd with the small model that comes with it.
///
/// It makes a video of five seconds, in less than a minute also where there is no GPU. The small model knows motions of the
/// camera (closer, away, left, right, up, down, turning), of the light and of the air (snow, rain, haze), and nothing else. It
/// shows how animd works, not how well Wan 14B does. A model that is loaded makes room for it meanwhile.
#[derive(clap::Args)]
#[command(
    after_help = "Example: animctl demo photo.jpg -p 'the camera pans to the left'\n\nStandard output has the video's path. Ctrl-C \
ends the wait, and the job goes on.\n\nJSON: what `animctl show` prints"
)]
pub struct Args {
    /// The picture [default: dandelions in the evening]
    #[arg(value_parser = path())]
    picture: Option<PathBuf>,
    /// What should happen [default: the camera comes gently closer]
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Copy the video to this file, which must not exist [default: animd-demo.mp4 in this folder, with a number if there is one]
    #[arg(short, long, value_name = "FILE", value_parser = path())]
    output: Option<PathBuf>,
}

pub async fn run(args: &Args, ctl: &Ctl) -> Result {
    let output = args.output.clone().unwrap_or_else(|| unused(Path::new("")));
    fetch::check(&output).map_err(|e| match args.output {
        Some(_) => e,
        None => Failure { text: format!("{}; choose a file with --output", e.text), ..e },
    })?;
    let (picture, name) = match &args.picture {
        Some(picture) => (open(picture)?, picture.file_name().map(show).unwrap_or_default()),
        None => (own_picture().map_err(Failure::file("keep in memory", "the demo's picture"))?, NAME.into()),
    };
    let mut options: HashMap<&str, Variant<'_>> =
        HashMap::from([("model", SMALL.into()), ("name", name.as_str().into())]);
    if let Some(prompt) = &args.prompt {
        options.insert("prompt", prompt.as_str().into());
    }
    let job = ctl.manager.submit(picture.as_fd().into(), options).await?;
    let job = Submitted { id: id_of(&job).unwrap_or(0), name };
    eprintln!("animctl: {ABOUT}");
    finish(&[job], Some(output), Batch::new(1), ctl).await
}

/// Returns the first name for a demo's video that is not taken in a folder.
fn unused(dir: &Path) -> PathBuf {
    let numbered = (2_u32..).map(|n| dir.join(format!("{NAME}-{n}.mp4")));
    let mut names = std::iter::once(dir.join(format!("{NAME}.mp4"))).chain(numbered);
    names.find(|name| name.symlink_metadata().is_err()).unwrap_or_default()
}

/// Returns the demo's own picture as an open file, as the service takes pictures.
fn own_picture() -> io::Result<File> {
    let mut file = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
    file.write_all(PICTURE)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_replaces_no_video() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["animd-demo.mp4", "animd-demo-2.mp4", "animd-demo-3.mp4"] {
            let file = unused(dir.path());
            assert_eq!(file, dir.path().join(name));
            std::fs::write(file, "").expect("written");
        }
    }
}
