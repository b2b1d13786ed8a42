//! Loading: each network just before it is first needed, in the order in which a job uses them.
//!
//! The encoders therefore work, and what is wrong with them or their inputs shows, long before the transformers' weights
//! are there. The disk meanwhile never rests: the files of all networks are read ahead in the same order.

use std::collections::BTreeMap;
use std::time::Instant;

use animd_protocol::plan::Setup;
use animd_protocol::profile::Place;
use animd_protocol::recipe::{Component, Network, Part};

use crate::Result;
use crate::backend::{Backend, Keeping, Loader};
use crate::model::clip::Clip;
use crate::model::dit::Dit;
use crate::model::t5::T5;
use crate::model::vae::Vae;
use crate::progress::Stage;
use crate::weights::{ReadAhead, WeightSource};

use super::Pipeline;
use super::clock::Clock;
use super::models::{Models, available_ram};
use super::sources::{LoadSeconds, Sources};
use super::watched::Count;

/// The networks in the order in which a job uses them.
const ORDER: [Component; 4] = [Component::T5, Component::Clip, Component::Vae, Component::Dit];

impl<B: Backend> Pipeline<B> {
    /// Starts to read the files of the networks that are not loaded, in the order in which they will be, until the result
    /// is dropped. Networks that are read each time that they are used are left out.
    pub(super) fn read_ahead(&self) -> ReadAhead {
        let kept = |part: &Part<'_>| self.places.get(part.name) != Some(&Place::Disk);
        let missing: Vec<Part<'_>> = self.missing().filter(kept).collect();
        let of = |component| missing.iter().filter(move |part| part.component() == component);
        let stored = ORDER.into_iter().flat_map(of).filter_map(|part| self.sources.weights.get(part.name));
        let places: Vec<_> = stored.map(|weights| weights.places()).collect();
        ReadAhead::start(&places, available_ram())
    }

    /// Loads all networks that are not loaded.
    pub(super) fn load_all(&mut self, clock: &mut Clock<'_>) -> Result<()> {
        let _ahead = self.read_ahead();
        ORDER.into_iter().try_for_each(|component| self.load(component, clock))
    }

    /// Loads the networks of a kind that are not loaded, and what differs in the transformers from those that are.
    pub(super) fn load(&mut self, component: Component, clock: &mut Clock<'_>) -> Result<()> {
        if component == Component::Dit {
            self.exchange_loras(clock)?;
        }
        if !self.missing().any(|part| part.component() == component) {
            return Ok(());
        }
        clock.stage(Stage::Load)?;
        let (total, left) = (self.sources.all_parameters(), self.parameters_to_load());
        let count = Count::new(clock, total - left, total);
        let Self { backend, setup, sources, places, load_seconds, models, .. } = self;
        let recipe = &sources.recipe;
        let mut loading = Loading { backend, setup, places, sources, seconds: load_seconds, count };
        match component {
            Component::T5 => {
                models.text_encoder = Some(loading.load(component, &recipe.text_encoder, T5::load)?);
            }
            Component::Clip => {
                if let Some(network) = &recipe.conditioning.image_encoder {
                    models.image_encoder = Some(loading.load(component, network, Clip::load)?);
                }
            }
            Component::Vae => models.vae = Some(loading.load(component, &recipe.vae, Vae::load)?),
            Component::Dit => {
                for expert in recipe.experts.iter().skip(models.experts.len()) {
                    models.experts.push(loading.load(component, &expert.network, Dit::load)?);
                }
                self.sources.adapters.loaded();
            }
        }
        Ok(())
    }

    /// Returns the networks that are not loaded.
    pub(super) fn missing(&self) -> impl Iterator<Item = Part<'_>> {
        let Models { experts, text_encoder, image_encoder, vae, .. } = &self.models;
        let recipe = &self.sources.recipe;
        let loaded = move |part: &Part<'_>| match part.component() {
            Component::T5 => text_encoder.is_some(),
            Component::Clip => image_encoder.is_some(),
            Component::Vae => vae.is_some(),
            Component::Dit => {
                recipe.experts.iter().take(experts.len()).any(|expert| expert.network.name == part.name)
            }
        };
        recipe.networks().filter(move |part| !loaded(part))
    }

    /// Returns whether all networks are loaded.
    pub(super) fn is_loaded(&self) -> bool {
        self.missing().next().is_none()
    }

    /// Returns the number of parameters of the networks that are not loaded.
    pub(super) fn parameters_to_load(&self) -> usize {
        self.missing().filter_map(|part| self.sources.parameters.get(part.name)).sum()
    }
}

/// Loads one network after the other, and notes how long each takes.
struct Loading<'a, 'c, 'o, B> {
    backend: &'a B,
    setup: &'a Setup,
    places: &'a BTreeMap<String, Place>,
    sources: &'a Sources,
    seconds: &'a mut LoadSeconds,
    count: Count<'c, 'o>,
}

impl<B: Backend> Loading<'_, '_, '_, B> {
    fn load<C, N>(
        &mut self,
        component: Component,
        network: &Network<C>,
        load: impl FnOnce(&B::Loader, &dyn WeightSource, &C) -> Result<N>,
    ) -> Result<N> {
        let began = Instant::now();
        let mut keeping = Keeping::of(self.setup, component);
        if let Some(place) = self.places.get(&network.name) {
            keeping.place = *place;
        }
        let source = self.sources.of(network)?;
        let loader = self.backend.loader_of(&network.name, keeping).reading(source.clone());
        let loaded = load(&loader, &self.count.of(&**source), &network.config);
        self.seconds.note(&network.name, began.elapsed().as_secs_f64());
        loaded
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use animd_protocol::messages::Pictures;
    use animd_protocol::request::{Sampler, Settings, Size};

    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::image::Picture;
    use crate::pipeline::Job;
    use crate::progress::{Observer, Progress};
    use crate::synth::{self, synth_model};
    use crate::weights::DType;

    /// Notes the stages in the order in which a job comes to them, and stops the job at one of them.
    #[derive(Default)]
    struct Seen {
        stages: Mutex<Vec<Stage>>,
        fractions: Mutex<Vec<f64>>,
        /// The stage, and how many times it is come to before the job stops.
        stop: Option<(Stage, usize)>,
    }

    impl Observer for Seen {
        fn progress(&self, progress: &Progress) {
            self.fractions.lock().unwrap().push(progress.fraction);
            let mut stages = self.stages.lock().unwrap();
            if stages.last() != Some(&progress.stage) {
                stages.push(progress.stage);
            }
        }

        fn canceled(&self) -> bool {
            let stages = self.stages.lock().unwrap();
            self.stop.is_some_and(|(at, times)| stages.iter().filter(|stage| **stage == at).count() >= times)
        }
    }

    fn job() -> Job {
        let rgb = (0..64 * 48 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let settings = Settings {
            prompt: Some("a boat".into()),
            size: Some(Size::Exact { width: 64, height: 48 }),
            frames: Some(5),
            sampler: Some(Sampler::Distill),
            ..Settings::default()
        };
        Job::new(&Picture { width: 64, height: 48, rgb }, settings.resolve(|| 1).unwrap()).unwrap()
    }

    /// Runs a job, and returns its stages with the names of those that its report has seconds of.
    fn run<B: Backend>(pipeline: &mut Pipeline<B>, seen: &Seen) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let report = pipeline.run(&job(), &dir.path().join("a.mp4"), &Pictures::default(), seen)?;
        Ok(report.seconds.into_iter().map(|(name, _)| name).collect())
    }

    /// The stages of a job that finds no weights, and of one that finds them all.
    fn each_network_is_loaded_before_its_work<B: Backend>(backend: B, setup: &Setup) {
        use Stage::{Denoise, Image, Load, Text, VaeDecode, VaeEncode, Write};
        let mut pipeline = Pipeline::made_up(backend, setup, synth::Size::Tiny, 1).unwrap();
        let names = Stage::ALL.map(|stage| stage.name().to_owned());
        let first = Seen::default();
        assert_eq!(run(&mut pipeline, &first).unwrap(), names);
        let stages = first.stages.into_inner().unwrap();
        assert_eq!(
            stages,
            [Load, Text, Load, Image, Load, VaeEncode, Load, Denoise, VaeDecode, Write],
            "the encoders work before the transformer is loaded"
        );
        let fractions = first.fractions.into_inner().unwrap();
        assert!(fractions.is_sorted(), "{fractions:?}");
        let second = Seen::default();
        assert_eq!(run(&mut pipeline, &second).unwrap(), names);
        assert_eq!(second.stages.into_inner().unwrap(), Stage::ALL);
    }

    #[test]
    fn each_network_is_loaded_before_its_work_on_the_cpu() {
        each_network_is_loaded_before_its_work(Cpu::new(), &Setup::CPU);
    }

    #[cfg(feature = "cuda")]
    #[test]
    #[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
    fn each_network_is_loaded_before_its_work_by_cuda() {
        use crate::backend::cuda::{Cuda, Options};
        use animd_protocol::profile::{Precision, Profile};
        let profile = Profile::built_in("h200").unwrap();
        let mut setup = Setup::from(&profile);
        // The text encoder in 8 bits too, which no profile of animd's own asks for.
        setup.precision.text = Precision::Fp8;
        let cuda = Cuda::open(0, &Options { poison: true, ..Options::of(&profile) }, 0, 0).unwrap();
        each_network_is_loaded_before_its_work(cuda, &setup);
    }

    #[test]
    fn what_was_loaded_stays_when_a_job_stops() {
        use Stage::{Image, Load, Text, VaeEncode};
        let mut pipeline = Pipeline::made_up(Cpu::new(), &Setup::CPU, synth::Size::Tiny, 1).unwrap();
        let all = pipeline.parameters_to_load();
        let stopped = Seen { stop: Some((VaeEncode, 1)), ..Seen::default() };
        assert!(matches!(run(&mut pipeline, &stopped), Err(crate::Error::Canceled)));
        let left = pipeline.parameters_to_load();
        assert!(left > 0 && left < all && !pipeline.is_loaded());
        let next = Seen::default();
        run(&mut pipeline, &next).unwrap();
        assert_eq!(next.stages.into_inner().unwrap()[..5], [Load, Text, Image, VaeEncode, Load]);
        assert!(pipeline.is_loaded() && pipeline.parameters_to_load() == 0);
    }

    #[test]
    fn a_file_that_fails_late_is_named_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        synth_model(&folder, synth::Size::Tiny, DType::Bf16, None, 3, &mut |_, _| Ok(())).unwrap();
        let mut pipeline = Pipeline::open(Cpu::new(), &Setup::CPU, &folder, None, None).unwrap();
        let file = folder.join("diffusion_pytorch_model.safetensors");
        let content = std::fs::read(&file).unwrap();
        let write = |bytes: &[u8]| {
            use std::io::Write;
            // The file stays the one that is mapped.
            let mut opened = std::fs::File::options().write(true).truncate(false).open(&file).unwrap();
            opened.set_len(bytes.len() as u64).and_then(|()| opened.write_all(bytes)).unwrap();
        };
        write(&content[..content.len() / 2]);
        let seen = Seen::default();
        let error = run(&mut pipeline, &seen).unwrap_err().to_string();
        assert!(error.contains(&*file.to_string_lossy()) && error.contains("copy it again"), "{error}");
        assert_eq!(seen.stages.into_inner().unwrap().last(), Some(&Stage::Load), "after the encoders");
        let loaded = |pipeline: &Pipeline<Cpu>| {
            pipeline.load_seconds().networks().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(loaded(&pipeline)[..3], ["umT5", "CLIP", "VAE"]);
        write(&content);
        run(&mut pipeline, &Seen::default()).unwrap();
        assert_eq!(loaded(&pipeline), ["umT5", "CLIP", "VAE", "DiT"]);
    }
}
