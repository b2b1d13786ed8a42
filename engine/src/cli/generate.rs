//! `animd-engine generate`.

use std::path::{Path, PathBuf};

use animd_engine::backend::Backend;
use animd_engine::find::lora_named;
use animd_engine::pipeline::{Film, Pipeline, model_file};
use animd_engine::weights::Cache;
use animd_engine::{Error, Result, image, verify, video, weights};
use animd_options::SettingsOptions;
use animd_protocol::lora::LoraChoice;
use animd_protocol::lora_files;
use animd_protocol::messages::{Pictures, Report};
use animd_protocol::model_settings::{with_model, with_sampling};
use animd_protocol::plan::Setup;
use animd_protocol::request::{Request, Settings};

use super::backend::{self, Chosen};
use super::bar::Bar;
use super::stop::Stop;
use super::{ModelArgs, print, print_json};

/// Make one video.
#[derive(clap::Args)]
// A later option outranks an earlier one, so that scripts can have defaults.
#[command(args_override_self = true)]
#[command(after_help = "\
Example:
  animd-engine generate cat.jpg -p 'the cat turns its head' -m ~/models/Wan2.1-I2V-14B-480P -o cat.mp4")]
pub struct Generate {
    /// The picture: JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF
    image: PathBuf,
    /// The picture that the video ends at; one of another size is cropped to cover the first one's shape
    #[arg(long, value_name = "IMAGE", conflicts_with = "looped")]
    last: Option<PathBuf>,
    /// The video; an existing file is not replaced [default: the picture's name and the seed, in this folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write one frame of the video as a JPEG, too
    #[arg(long, value_name = "FILE")]
    poster: Option<PathBuf>,
    /// Write the same frame, at most 512 pixels wide and high
    #[arg(long, value_name = "FILE")]
    thumbnail: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    settings: SettingsOptions,
    #[allow(clippy::doc_markdown, reason = "the words are the help of the option")]
    /// A folder whose LoRAs `--lora` names; several are looked into in their order, and then the model's own `loras` folders
    #[arg(long, value_name = "FOLDER")]
    lora_folder: Vec<PathBuf>,
    /// How to run it, with defaults for the settings: the name of a profile, such as `rtx4090`, or a profile's file [default:
    /// on the CPU]
    #[arg(long, value_name = "NAME-OR-FILE")]
    profile: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Print what was made, and what it cost, as JSON; no progress
    #[arg(long)]
    json: bool,
}

impl Generate {
    /// Runs the command.
    pub fn run(mut self) -> Result<()> {
        if let Some(path) = &self.prompt_file {
            let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
            let text = String::from_utf8(bytes).map_err(|e| {
                Error::Setting(format!(
                    "`{}` is not UTF-8 from byte {} on; save the prompt as UTF-8",
                    path.display(),
                    e.utf8_error().valid_up_to()
                ))
            })?;
            self.settings.prompt = Some(text);
        }
        let profile = self.profile.as_deref().map(super::profile::open).transpose()?;
        let mut settings = Settings::from(self.settings);
        let (lora_folders, model_folders) = (&self.lora_folder, lora_files::folders_of(&self.model.model));
        let folders = [lora_folders.as_slice(), &model_folders].concat();
        let by_profile = profile.as_ref().and_then(|profile| profile.settings.lora.clone());
        settings = with_loras(settings, by_profile.as_deref().unwrap_or_default(), &folders)?;
        // Another DiT may be of another model.
        if self.model.dit.is_none()
            && let Some(model) = model_file(&self.model.model)?
        {
            settings = with_model(settings, &model);
        }
        if let Some(profile) = &profile {
            settings = settings.or(profile.settings.clone());
        }
        if let Some(last) = &self.last {
            settings.last = last.file_name().map(|name| name.to_string_lossy().into_owned());
        }
        let model = weights::Model::open(&self.model.model, self.model.dit.as_deref())?.recipe();
        let mut request = settings.resolve_for(&model.defaults, super::draw_seed)?;
        model.check(&request)?;
        let loras = loras(&mut request, &folders)?;
        let picture = image::decode(&self.image)?;
        let last = self.last.as_deref().map(image::decode).transpose()?;
        let out = self.out.unwrap_or_else(|| {
            let mut name = self.image.file_stem().unwrap_or_default().to_owned();
            name.push(format!("-{}.mp4", request.seed));
            PathBuf::from(name)
        });
        let pictures = Pictures { poster: self.poster, thumbnail: self.thumbnail, preview: None };
        let files = [&pictures.poster, &pictures.thumbnail].into_iter().flatten();
        for path in std::iter::once(&out).chain(files.clone()) {
            check_new(path)?;
        }
        check_different(&[
            ("--out", Some(&*out)),
            ("--poster", pictures.poster.as_deref()),
            ("--thumbnail", pictures.thumbnail.as_deref()),
        ])?;

        let stop = Stop::listen()?;
        let film = Film::new(picture, last, request)?;
        let part = video::part_path(&out)?;
        let setup = backend::setup(profile.as_ref());
        let (setup, loras) = (&setup, &loras[..]);
        let run = Run { model: &self.model, setup, loras, film: &film, part: &part, pictures: &pictures };
        let (report, bar) = match backend::choose(profile.as_ref())? {
            Chosen::Cpu(backend) => run.with(backend, stop, self.json)?,
            #[cfg(feature = "cuda")]
            Chosen::Cuda(backend) => run.with(backend, stop, self.json)?,
        };
        bar.finish();
        let report = report?;
        video::place(&part, &out).inspect_err(|_| {
            let _ = std::fs::remove_file(&part);
        })?;
        if let Some(missing) = files.into_iter().find(|path| !path.exists()) {
            return Err(Error::Output(format!(
                "`{}` is made, but `{}` could not be written, as the warning above says",
                out.display(),
                missing.display()
            )));
        }
        if self.json {
            print_json(&serde_json::json!({ "video": out, "request": film.request(), "report": report }))
        } else {
            let total: f64 = report.seconds.iter().map(|(_, s)| s).sum();
            print(&format!(
                "{}: {} frames of {}x{}, seed {}, {total:.1} s",
                out.display(),
                report.frames,
                report.width,
                report.height,
                report.seed
            ))
        }
    }
}

/// One video, on whichever backend computes it.
struct Run<'a> {
    model: &'a ModelArgs,
    setup: &'a Setup,
    loras: &'a [PathBuf],
    film: &'a Film,
    part: &'a Path,
    pictures: &'a Pictures,
}

impl Run<'_> {
    fn with<B: Backend>(&self, backend: B, stop: Stop, quiet: bool) -> Result<(Result<Report>, Bar)> {
        let ModelArgs { model, dit } = self.model;
        let cache = Cache::default_folder().map(|folder| Cache::new(folder, Cache::DEFAULT_GIB));
        let mut pipeline = Pipeline::open(backend, self.setup, model, dit.as_deref(), cache.as_ref())?;
        pipeline.adapt(&self.film.request().lora, self.loras)?;
        stop.unfinished(self.part);
        let bar = Bar::new(quiet, stop);
        Ok((pipeline.film(self.film, self.part, self.pictures, None, &bar), bar))
    }
}

/// Returns the settings, with what the files beside the wanted `LoRA`s say of sampling where they say nothing. Without `LoRA`s of
/// their own those of the profile are wanted.
fn with_loras(settings: Settings, by_profile: &[LoraChoice], folders: &[PathBuf]) -> Result<Settings> {
    let wanted = settings.lora.clone();
    let wanted = wanted.as_deref().unwrap_or(by_profile).iter();
    let sampled = wanted
        .map(|choice| lora_files::sampling(&lora_named(folders, &choice.name)?).map_err(Error::Setting));
    let sampled = sampled.collect::<Result<Vec<_>>>()?;
    Ok(sampled.iter().flatten().fold(settings, with_sampling))
}

/// Returns the files of the request's `LoRA`s, and puts their hashes into the request.
fn loras(request: &mut Request, folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let files = request.lora.iter().map(|choice| lora_named(folders, &choice.name));
    let files = files.collect::<Result<Vec<_>>>()?;
    for (choice, file) in request.lora.iter_mut().zip(&files) {
        let hash = verify::hash_of(file)?;
        if choice.sha256.as_ref().is_some_and(|wanted| *wanted != hash) {
            return Err(Error::Setting(format!(
                "the LoRA `{}` has the SHA-256 {hash}, another one than asked for",
                choice.name
            )));
        }
        choice.sha256 = Some(hash);
    }
    Ok(files)
}

/// Returns an error if the file exists already, or if its folder does not exist.
fn check_new(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::Output(format!("`{}` exists; remove it or choose another name", path.display())));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::Output(format!(
            "there is no folder `{}` for `{}`; make it first",
            folder.display(),
            path.display()
        )));
    }
    Ok(())
}

/// Returns an error if two options name the same file, of which one result would replace the other. Their folders exist.
fn check_different(files: &[(&str, Option<&Path>)]) -> Result<()> {
    let real = |path: &Path| -> Result<PathBuf> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.canonicalize().map_err(Error::file("read", folder))?;
        Ok(folder.join(path.file_name().unwrap_or_default()))
    };
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (option, path) in files.iter().filter_map(|(option, path)| Some((*option, (*path)?))) {
        let place = real(path)?;
        if let Some((other, _)) = seen.iter().find(|(_, known)| *known == place) {
            return Err(Error::Setting(format!(
                "`{other}` and `{option}` name the same file, `{}`; choose another name for one",
                path.display()
            )));
        }
        seen.push((option, place));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::slice::from_ref;

    use animd_protocol::request::Sampler;

    use super::*;

    #[test]
    fn no_two_results_go_into_one_file() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("in")).expect("it can be made");
        let [video, other] = ["a.mp4", "a.jpg"].map(|name| dir.path().join(name));
        let roundabout = dir.path().join("in/../a.mp4");
        assert!(
            check_different(&[("--out", Some(&video)), ("--poster", Some(&other)), ("--x", None)]).is_ok()
        );
        for (files, options) in [
            ([Some(&*video), Some(&*video), None], "`--out` and `--poster`"),
            ([Some(&*video), None, Some(&*roundabout)], "`--out` and `--thumbnail`"),
            ([Some(&*video), Some(&*other), Some(&*other)], "`--poster` and `--thumbnail`"),
        ] {
            let named: Vec<_> = ["--out", "--poster", "--thumbnail"].into_iter().zip(files).collect();
            let refused = check_different(&named).expect_err(options);
            assert!(
                matches!(refused, Error::Setting(_)) && refused.to_string().contains(options),
                "{refused}"
            );
        }
    }

    #[test]
    fn files_beside_loras_say_how_to_sample() {
        let dir = tempfile::tempdir().expect("a folder");
        let folders = [dir.path().to_owned()];
        fs::write(dir.path().join("few.safetensors"), "").expect("writable");
        fs::write(dir.path().join("few.toml"), "[sampling]\ndistilled = true\n").expect("writable");
        let few = "few".parse::<LoraChoice>().expect("a name");
        let wanted = || Settings { lora: Some(vec![few.clone()]), ..Settings::default() };
        let sampled = with_loras(wanted(), &[], &folders).expect("it is there");
        assert_eq!((sampled.sampler, sampled.steps), (Some(Sampler::Distill), Some(4)));
        let by_profile = with_loras(Settings::default(), from_ref(&few), &folders).expect("it is there");
        assert_eq!(by_profile.sampler, Some(Sampler::Distill));
        let none = Settings { lora: Some(Vec::new()), ..Settings::default() };
        assert_eq!(with_loras(none.clone(), from_ref(&few), &folders).expect("nothing is wanted"), none);
        let own = Settings { sampler: Some(Sampler::Unipc), ..wanted() };
        assert_eq!(with_loras(own.clone(), &[], &folders).expect("it is there"), own);
        let refused = with_loras(wanted(), &[], &[]).expect_err("no folder");
        assert!(refused.to_string().ends_with("give one with `--lora-folder`"), "{refused}");
        fs::write(dir.path().join("few.toml"), "[sampling]\nsteeps = 4\n").expect("writable");
        assert!(with_loras(wanted(), &[], &folders).is_err_and(|e| e.to_string().contains("`steps`")));
    }
}
