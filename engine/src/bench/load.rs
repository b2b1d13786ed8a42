//! Measures the loading of model files: each network alone, from a disk whose cache has been emptied of its files.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use animd_protocol::plan::{Plan, Setup};
use animd_protocol::recipe::{Component, Recipe};
use animd_protocol::request::Settings;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

use crate::backend::{Backend, Keeping, Loader};
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::Vae;
use crate::pipeline::proc_bytes;
use crate::weights::{self, Model, ReadAhead, WeightSource, Weights};
use crate::{Error, Result};

use super::SEED;

/// The bytes that a thread reads at a time when the disk's own speed is measured, the number of threads, and the most bytes
/// that are read of a network.
const READ: usize = 8 << 20;
const READERS: usize = 16;
const MOST: u64 = 16 << 30;
/// How often the process's memory is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// How one network was loaded.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// The network's name in the recipe.
    pub network: String,
    /// The network's files.
    pub files: Vec<PathBuf>,
    /// How the files store and name the network.
    pub layout: String,
    /// The bytes that loading reads of the network's files.
    pub bytes: u64,
    /// The seconds from the first read until the network can compute.
    pub seconds: f64,
    /// The bytes that the disk gives in a second to programs that only read, many parts at a time.
    pub disk: f64,
    /// The most anonymous memory that the process had meanwhile, in bytes.
    pub anonymous_peak: u64,
    /// The anonymous memory that the process had when the network was loaded, in bytes.
    pub anonymous_kept: u64,
}

/// The networks of a model, as they were loaded.
#[derive(Clone, Debug, Serialize)]
pub struct Loads(pub Vec<Loaded>);

impl fmt::Display for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        writeln!(
            f,
            "{:10}{:22}{:>9}{:>9}{:>9}{:>11}{:>16}{:>16}",
            "", "layout", "GB", "seconds", "GB/s", "disk GB/s", "host peak GiB", "host kept GiB"
        )?;
        for row in &self.0 {
            let gb = row.bytes as f64 / 1e9;
            writeln!(
                f,
                "{:10}{:22}{gb:>9.2}{:>9.2}{:>9.2}{:>11.2}{:>16.2}{:>16.2}",
                row.network,
                row.layout,
                row.seconds,
                gb / row.seconds,
                row.disk / 1e9,
                gib(row.anonymous_peak),
                gib(row.anonymous_kept)
            )?;
        }
        Ok(())
    }
}

/// Loads the networks of a model's folder one after the other, or a DiT alone (its folder or file), each from the disk.
///
/// # Errors
/// [`Error::Model`] for files that are neither, and the errors of loading.
pub fn load<B: Backend>(backend: &B, setup: &Setup, path: &Path) -> Result<Loads> {
    let setup = &backend.resolve(setup);
    let (recipe, networks) = open(path)?;
    let request = Settings { prompt: Some("a boat".into()), ..Settings::default() }.resolve(|| SEED)?;
    backend.reserve(&Plan::new(&recipe, &request, [832, 480], setup).memory)?;
    let networks = networks.into_iter().map(|(name, weights)| one(backend, setup, &recipe, name, weights));
    Ok(Loads(networks.collect::<Result<_>>()?))
}

/// Returns the model's recipe, and its networks with their names in the order in which a job uses them. For a DiT alone, the recipe has the
/// released model's other networks.
fn open(path: &Path) -> Result<(Recipe, Vec<(String, Weights)>)> {
    let whole = match path.is_dir() {
        true => Model::open(path, None).map_err(Some),
        false => Err(None),
    };
    match whole {
        Ok(model) => {
            let recipe = model.recipe();
            let mut networks = vec![model.t5.0];
            networks.extend(model.clip.map(|(weights, _)| weights));
            networks.extend([model.vae.0, model.dit.0]);
            networks.extend(model.low_noise.map(|(weights, _)| weights));
            // Of each kind they come in the order in which the recipe has them.
            let named = |(i, weights): (usize, &Weights)| {
                let kind = weights.component();
                let before = networks[..i].iter().filter(|other| other.component() == kind).count();
                recipe
                    .networks()
                    .filter(|part| part.component() == kind)
                    .nth(before)
                    .map(|p| p.name.to_owned())
            };
            let names: Vec<String> = networks.iter().enumerate().filter_map(named).collect();
            Ok((recipe, names.into_iter().zip(networks).collect()))
        }
        Err(e) => {
            let (weights, config) = weights::open_dit(path).map_err(|own| e.unwrap_or(own))?;
            let mut recipe = Recipe::wan21_i2v_14b();
            recipe.experts.iter_mut().for_each(|expert| expert.network.config = config.clone());
            Ok((recipe, vec![(Component::Dit.title().to_owned(), weights)]))
        }
    }
}

fn one<B: Backend>(
    backend: &B,
    setup: &Setup,
    recipe: &Recipe,
    name: String,
    weights: Weights,
) -> Result<Loaded> {
    let component = weights.component();
    let files: Vec<PathBuf> = weights.files().into_iter().map(Path::to_owned).collect();
    let (layout, bytes) = (weights.layout().name().to_owned(), weights.places().bytes());
    let disk = read_speed(&files)?;
    let weights = Arc::new(weights);
    let loader = backend.loader_of(&name, Keeping::of(setup, component)).reading(weights.clone());
    let watch = MemoryWatch::start();
    let began = Instant::now();
    let available = proc_bytes("/proc/meminfo", "MemAvailable");
    let ahead = ReadAhead::start(&[weights.places()], available);
    let network: Box<dyn std::any::Any> = match component {
        Component::Dit => Box::new(Dit::<B>::load(&loader, &*weights, &recipe.experts[0].network.config)?),
        Component::T5 => Box::new(T5::<B>::load(&loader, &*weights, &recipe.text_encoder.config)?),
        Component::Vae => Box::new(Vae::<B>::load(&loader, &*weights, &recipe.vae.config)?),
        Component::Clip => {
            let Some(network) = &recipe.conditioning.image_encoder else {
                return Err(Error::Internal("an image encoder that the recipe does not have".into()));
            };
            Box::new(Clip::<B>::load(&loader, &*weights, &network.config)?)
        }
    };
    // What is downloaded comes after everything that was enqueued before.
    backend.download(&backend.upload(&[0.0], &[1])?)?;
    let seconds = began.elapsed().as_secs_f64();
    let (anonymous_peak, anonymous_kept) = watch.finish();
    drop((network, ahead));
    Ok(Loaded { network: name, files, layout, bytes, seconds, disk, anonymous_peak, anonymous_kept })
}

/// Returns the bytes that the disk gives in a second. Nothing of the files is in the system's cache afterwards.
fn read_speed(files: &[PathBuf]) -> Result<f64> {
    let opened = |path: &PathBuf| File::open(path).map_err(Error::file("open", path));
    let opened = files.iter().map(opened).collect::<Result<Vec<_>>>()?;
    let forget = || {
        for (file, path) in opened.iter().zip(files) {
            // What was not written to the disk stays in memory.
            file.sync_data().map_err(Error::file("sync", path))?;
            fadvise(file, 0, None, Advice::DontNeed).map_err(|e| Error::file("read", path)(e.into()))?;
        }
        Ok::<_, Error>(())
    };
    forget()?;
    let mut pieces = Vec::new();
    for (index, (file, path)) in opened.iter().zip(files).enumerate() {
        let bytes = file.metadata().map_err(Error::file("read", path))?.len();
        pieces
            .extend((0..bytes).step_by(READ).map(|start| (index, start, READ.min((bytes - start) as usize))));
    }
    pieces.truncate((MOST / READ as u64) as usize);
    let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut buffer = vec![0; READ];
                while let Some(&(file, start, bytes)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // A file that cannot be read is told by its loader.
                    if opened[file].read_exact_at(&mut buffer[..bytes], start).is_ok() {
                        read.fetch_add(bytes as u64, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let speed = read.into_inner() as f64 / began.elapsed().as_secs_f64();
    forget()?;
    Ok(speed)
}

/// Watches the process's anonymous memory from a thread.
struct MemoryWatch {
    stop: Arc<AtomicBool>,
    peak: thread::JoinHandle<u64>,
}

fn anonymous() -> u64 {
    proc_bytes("/proc/self/status", "RssAnon").unwrap_or_default()
}

impl MemoryWatch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let peak = thread::spawn(move || {
            let mut peak = anonymous();
            while !stopped.load(Ordering::Relaxed) {
                peak = peak.max(anonymous());
                thread::sleep(GLANCE);
            }
            peak
        });
        Self { stop, peak }
    }

    /// Returns the peak and the present bytes.
    fn finish(self) -> (u64, u64) {
        let now = anonymous();
        self.stop.store(true, Ordering::Relaxed);
        (self.peak.join().unwrap_or_default().max(now), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::synth::{Family, Size, synth_model};
    use crate::weights::DType;

    #[test]
    fn a_model_has_a_row_for_each_network_and_a_dit_alone_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        synth_model(&folder, Size::Tiny, DType::F32, None, 1, &mut |_, _| Ok(())).unwrap();
        let rows = load(&Cpu::new(), &Setup::CPU, &folder).unwrap();
        let names: Vec<_> = rows.0.iter().map(|row| &*row.network).collect();
        assert_eq!(names, ["umT5", "CLIP", "VAE", "DiT"]);
        for row in &rows.0 {
            let on_disk: u64 = row.files.iter().map(|file| file.metadata().unwrap().len()).sum();
            assert!(row.bytes > 0 && row.bytes <= on_disk, "{row:?}");
            assert!(
                row.seconds > 0.0 && row.disk > 0.0 && row.anonymous_peak >= row.anonymous_kept,
                "{row:?}"
            );
        }
        assert_eq!(rows.to_string().lines().count(), 5);
        let dit =
            load(&Cpu::new(), &Setup::CPU, &folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        assert_eq!((dit.0.len(), dit.0[0].bytes), (1, rows.0[3].bytes));
        assert!(load(&Cpu::new(), &Setup::CPU, dir.path()).is_err());
    }

    #[test]
    fn each_of_two_transformers_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Size::Tiny.recipe_of(Family::Wan22);
        synth_model(dir.path(), recipe, DType::Bf16, None, 1, &mut |_, _| Ok(())).unwrap();
        let rows = load(&Cpu::new(), &Setup::CPU, dir.path()).unwrap();
        let names: Vec<_> = rows.0.iter().map(|row| &*row.network).collect();
        assert_eq!(names, ["umT5", "VAE", "DiT, high", "DiT, low"]);
        let folder = |row: usize| rows.0[row].files[0].parent().unwrap().file_name().unwrap().to_owned();
        assert_eq!([folder(2), folder(3)], ["high_noise_model", "low_noise_model"]);
    }
}
