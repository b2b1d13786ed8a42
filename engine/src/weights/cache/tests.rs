use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::Error;
use crate::synth::{Size, synth_model};
use crate::weights::tests::{expert, load};
use crate::weights::{DType, Model, WeightSource, open_dit, open_expert, rounding};
use animd_protocol::dims::schema;
use animd_protocol::plan::network::ROTATED;
use animd_protocol::recipe::ExpertName;

/// A transformer and a cache in a temporary folder.
struct Bench {
    _dir: tempfile::TempDir,
    dit: PathBuf,
    cache: Cache,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dit = dir.path().join("model");
        synth_model(&dit, Size::Tiny, DType::F32, Some(Component::Dit), 3, &mut |_, _| Ok(())).unwrap();
        let cache = Cache::new(dir.path().join("cache/prepared"), Cache::DEFAULT_GIB);
        Self { _dir: dir, dit, cache }
    }

    fn prepare(&self, precision: Precision) -> Prepared {
        let mut made = prepare(&self.dit, precision, &self.cache, &mut |_, _| Ok(())).unwrap();
        assert_eq!(made.len(), 1);
        made.remove(0)
    }

    fn found(&self, precision: Precision) -> Option<PathBuf> {
        self.cache.find(&self.dit, precision).map(|lease| lease.folder().to_owned())
    }

    /// Returns the same cache with a limit in bytes.
    fn limited(&self, bytes: u64) -> Cache {
        Cache { limit: Some(bytes), ..self.cache.clone() }
    }
}

const BOTH: [Precision; 2] = [Precision::Fp8, Precision::Int8];

/// Gives a copy's last use another time, so many seconds ago.
fn used_ago(copy: &Path, seconds: u64) {
    let list = File::options().write(true).open(copy.join(SOURCES)).unwrap();
    list.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

/// Returns the greatest error that rounding a row in this precision may have at one of its values.
fn allowed(row: &[f32], value: f32, precision: Precision) -> f32 {
    let top = row.iter().fold(0f32, |top, value| top.max(value.abs()));
    match precision {
        // Half a step of e4m3 (2^-4 of a normal number, 2^-10 of the scale below) and f32's own roundings.
        Precision::Fp8 => (value.abs() / 16.0).max(top / 448.0 / 1024.0) * 1.000_001,
        // Half a unit of each of 256 rotated numbers, whose greatest is at most 16 times the row's: the rotation
        // back keeps the root of the sum of squares.
        _ => (16.0 * top / 127.0) / 2.0 * 16.0,
    }
}

#[test]
fn a_prepared_dit_is_the_same_but_for_the_rounding() {
    let bench = Bench::new();
    for (precision, layout) in BOTH.into_iter().zip(["lightx2v-fp8", "comfy-quant"]) {
        assert_eq!(bench.found(precision), None);
        let mut last = (0, 0);
        let mut wrote = |done, all| {
            last = (done, all);
            Ok(())
        };
        let prepared = prepare(&bench.dit, precision, &bench.cache, &mut wrote).unwrap().remove(0);
        assert_eq!((last.0, last.1), (prepared.after, prepared.after));
        assert_eq!(bench.found(precision).as_deref(), Some(&*prepared.folder));

        let (official, config) = open_dit(&bench.dit).unwrap();
        let (copy, same) = open_dit(&prepared.folder).unwrap();
        assert_eq!((copy.layout().name(), &same), (layout, &config));
        assert!(copy.names().eq(official.names()));
        let mut large = 0;
        for name in official.names() {
            let (a, b) = (official.matrix(name).unwrap(), copy.matrix(name).unwrap());
            if b.encoding.is_plain() {
                assert_eq!((a.encoding, &a.bytes), (b.encoding, &b.bytes), "{name}");
                continue;
            }
            large += 1;
            let (a, b, cols) = (a.to_f32(), b.to_f32(), a.cols);
            let (mut squares, mut of_values) = (0.0, 0.0);
            for (a, b) in a.chunks(cols).zip(b.chunks(cols)) {
                for (x, y) in a.iter().zip(b) {
                    let allowed = allowed(a, *x, precision);
                    assert!((x - y).abs() <= allowed, "{name}: {x} became {y}, {allowed} allowed");
                    squares += f64::from(x - y).powi(2);
                    of_values += f64::from(*x).powi(2);
                }
            }
            // Rounding to 3 bits of mantissa errs by 2^-4 at most, evenly spread: 2^-4 / sqrt(3) of the values. Int8
            // errs less.
            assert!(squares.sqrt() <= of_values.sqrt() * 0.0361, "{name}: {squares} of {of_values}");
        }
        assert_eq!(large, schema::dit(&config).iter().filter(|e| e.quantisable).count());
    }
}

/// The copy holds the numbers and scales of the rounding that backends do when they load, not others close to them.
#[test]
fn an_int8_copy_is_taken_as_it_is() {
    let bench = Bench::new();
    let prepared = bench.prepare(Precision::Int8);
    let ((official, _), (copy, _)) = (open_dit(&bench.dit).unwrap(), open_dit(&prepared.folder).unwrap());
    for name in copy.names() {
        let matrix = copy.matrix(name).unwrap();
        let Some((dtype, scales, group)) = matrix.rotated_rows() else { continue };
        assert_eq!((dtype, group), (DType::I8, ROTATED));
        let mut values = official.matrix(name).unwrap().to_f32();
        let wanted: Vec<f32> = values.chunks_mut(matrix.cols).map(rounding::to_int8).collect();
        assert!(scales[..] == wanted && matrix.numbers() == values, "{name}");
    }
}

#[test]
fn copies_in_both_precisions_lie_side_by_side() {
    let bench = Bench::new();
    let whole = find::files(&bench.dit, Component::Dit).unwrap();
    let int8 = bench.prepare(Precision::Int8).folder;
    assert_eq!(bench.found(Precision::Fp8), None);
    let fp8 = bench.prepare(Precision::Fp8).folder;
    assert_eq!(bench.found(Precision::Int8), Some(int8));
    assert_eq!(bench.found(Precision::Fp8), Some(fp8));
    assert_eq!(bench.found(Precision::Bf16), None);
    assert_eq!(find::files(&bench.dit, Component::Dit).unwrap(), whole);
    let refused = prepare(&bench.dit, Precision::Bf16, &bench.cache, &mut |_, _| Ok(()));
    assert!(matches!(refused, Err(Error::Setting(_))), "{refused:?}");
}

#[test]
fn a_copy_of_other_files_is_not_taken() {
    for precision in BOTH {
        let bench = Bench::new();
        let prepared = bench.prepare(precision);
        let state = || bench.cache.list().unwrap()[0].state;
        assert_eq!(state(), State::Current);
        let file = &find::files(&bench.dit, Component::Dit).unwrap()[0];
        let earlier = UNIX_EPOCH + Duration::from_secs(1);
        File::options().write(true).open(file).unwrap().set_modified(earlier).unwrap();
        assert_eq!(bench.found(precision), None);
        assert_eq!(state(), State::Changed);
        // A second copy replaces the first.
        assert_eq!(bench.prepare(precision).folder, prepared.folder);
        assert_eq!(bench.found(precision), Some(prepared.folder.clone()));
        // So does one in place of a copy whose list another version wrote.
        fs::write(prepared.folder.join(SOURCES), r#"[{"name": "a", "bytes": 1, "modified_ns": 2}]"#).unwrap();
        assert_eq!(bench.found(precision), None);
        bench.prepare(precision);
        // Other values in the same place, with the size and the time of those before.
        let (of, end) = (file.metadata().unwrap(), file.metadata().unwrap().len() - 4);
        let open = File::options().write(true).open(file).unwrap();
        open.write_all_at(&[0; 4], end).unwrap();
        open.set_modified(of.modified().unwrap()).unwrap();
        assert_eq!(bench.found(precision), None);
        let again = prepare(&prepared.folder, precision, &bench.cache, &mut |_, _| Ok(()));
        let again = again.unwrap_err().to_string();
        assert!(again.contains("in 8 bits already"), "{again}");
        fs::remove_dir_all(&bench.dit).unwrap();
        assert_eq!(state(), State::Gone);
    }
}

#[test]
fn what_is_stopped_leaves_nothing() {
    let bench = Bench::new();
    for precision in BOTH {
        let stopped = prepare(&bench.dit, precision, &bench.cache, &mut |_, _| Err(Error::Canceled));
        assert!(matches!(stopped, Err(Error::Canceled)));
        assert_eq!(bench.cache.folders().unwrap(), Vec::<PathBuf>::new());
    }
}

#[test]
fn both_experts_of_a_pair_are_prepared_and_taken() {
    let bench = Bench::new();
    let model = bench.dit.with_file_name("Wan2.2");
    for (name, seed) in [("high_noise_model", 0), ("low_noise_model", 1)] {
        let folder = model.join(name);
        fs::create_dir_all(&folder).unwrap();
        // Two experts differ in their values.
        expert(&folder.join("diffusion_pytorch_model.safetensors"), |tensors| {
            tensors.iter_mut().find(|(name, ..)| name == "head.head.bias").unwrap().3[0] ^= seed;
        });
    }
    let mut steps = Vec::new();
    let mut wrote = |done, all| {
        steps.push((done, all));
        Ok(())
    };
    let made = prepare(&model, Precision::Fp8, &bench.cache, &mut wrote).unwrap();
    assert_eq!(made.iter().map(|copy| copy.expert).collect::<Vec<_>>(), ExpertName::ALL.map(Some));
    let all: u64 = made.iter().map(|copy| copy.after).sum();
    assert_eq!(steps.last(), Some(&(all, all)));
    assert!(steps.is_sorted(), "the second copy counts on from the first");
    for (name, copy) in ["high_noise_model", "low_noise_model"].iter().zip(&made) {
        let lease = bench.cache.find(&model.join(name), Precision::Fp8).unwrap();
        assert_eq!(lease.folder(), copy.folder);
        assert!(copy.folder.to_string_lossy().contains(name), "{}", copy.folder.display());
        let (copied, own) = (open_expert(lease.folder()).unwrap(), open_expert(&model.join(name)).unwrap());
        assert_eq!(copied.1, own.1);
        let bias = "head.head.bias";
        assert_eq!(copied.0.matrix(bias).unwrap().bytes, own.0.matrix(bias).unwrap().bytes);
    }
    // One of them alone is prepared as well: as the file that it is.
    let alone = prepare(&model.join("low_noise_model"), Precision::Fp8, &bench.cache, &mut |_, _| Ok(()));
    assert_eq!(alone.unwrap()[0].folder, made[1].folder);

    // A whole model is opened with both copies, and holds them for as long as it lives.
    let official = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-a/official");
    for entry in fs::read_dir(&official).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("models_t5") || name.starts_with("Wan2.1_VAE") {
            fs::copy(entry.path(), model.join(name)).unwrap();
        }
    }
    fs::create_dir_all(model.join("google/umt5-xxl")).unwrap();
    let tokenizer = "google/umt5-xxl/tokenizer.json";
    fs::copy(official.join(tokenizer), model.join(tokenizer)).unwrap();
    let whole = Model::open_prepared(&model, None, &bench.cache, Precision::Fp8).unwrap();
    for (copy, made) in whole.copies.iter().zip(&made) {
        assert!(copy.as_ref().unwrap().1.file().unwrap().starts_with(&made.folder));
    }
    assert_eq!(whole.copies.len(), 2);
    let in_use = || bench.cache.list().unwrap().iter().filter(|copy| copy.in_use).count();
    assert_eq!(in_use(), 2);
    drop(whole);
    assert_eq!(in_use(), 0);
    let plain = Model::open_prepared(&model, None, &bench.cache, Precision::Bf16).unwrap();
    assert!(plain.copies.iter().all(Option::is_none));
}

#[test]
fn the_copy_that_was_not_used_for_the_longest_time_makes_room() {
    let bench = Bench::new();
    let (old, new) = (bench.prepare(Precision::Fp8).folder, bench.prepare(Precision::Int8).folder);
    used_ago(&old, 7200);
    used_ago(&new, 3600);
    let listed: Vec<_> = bench.cache.list().unwrap();
    let size = |folder: &Path| listed.iter().find(|copy| folder.ends_with(&copy.name)).unwrap().bytes;
    assert_eq!(
        listed.iter().map(|copy| copy.precision).collect::<Vec<_>>(),
        [Precision::Int8, Precision::Fp8]
    );
    assert!(bench.limited(size(&old) + size(&new)).keep_limit().unwrap().is_empty(), "both fit");
    // A use makes the older one the newer one.
    assert!(bench.found(Precision::Fp8).is_some());
    let dropped = bench.limited(size(&old)).keep_limit().unwrap();
    assert_eq!(dropped.iter().map(|copy| copy.precision).collect::<Vec<_>>(), [Precision::Int8]);
    assert!(old.exists() && !new.exists());
    // One that is written makes room for itself before it is written.
    let cache = bench.limited(size(&new));
    let made = prepare(&bench.dit, Precision::Int8, &cache, &mut |_, _| {
        assert!(!old.exists());
        Ok(())
    });
    assert_eq!(made.unwrap()[0].folder, new);
    // What is larger than the whole cache is refused, and nothing is dropped for it.
    let refused = prepare(&bench.dit, Precision::Fp8, &bench.limited(1000), &mut |_, _| Ok(()));
    assert!(refused.is_err_and(|e| e.to_string().contains("raise `cache_gib`")) && new.exists());
    assert!(Cache::new(PathBuf::new(), 0).limit().is_none());
}

#[test]
fn a_copy_in_use_stays() {
    let bench = Bench::new();
    let copy = bench.prepare(Precision::Fp8).folder;
    let lease = bench.cache.find(&bench.dit, Precision::Fp8).unwrap();
    assert!(bench.limited(1).keep_limit().unwrap().is_empty());
    let (dropped, kept) = bench.cache.clear(None).unwrap();
    assert_eq!((dropped.len(), kept.len()), (0, 1));
    let refused = prepare(
        &bench.dit,
        Precision::Int8,
        &bench.limited(dir_bytes(&copy) + 1_000_000),
        &mut |_, _| Ok(()),
    );
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("engines use now"), "{refused}");
    drop(lease);
    assert_eq!(bench.cache.clear(None).unwrap().0.len(), 1);
    assert!(!copy.exists() && bench.cache.list().unwrap().is_empty());
}

fn dir_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn copies_are_cleared_by_name_and_leftovers_with_them() {
    let bench = Bench::new();
    let (fp8, int8) = (bench.prepare(Precision::Fp8).folder, bench.prepare(Precision::Int8).folder);
    let name = fp8.file_name().unwrap().to_string_lossy().into_owned();
    let wrong = bench.cache.clear(Some("other")).unwrap_err();
    assert!(matches!(&wrong, Error::Setting(text) if text.contains("no prepared copy is called `other`")));
    let leftover = bench.cache.folder().join(format!(".{name}.part"));
    fs::create_dir(&leftover).unwrap();
    let (dropped, kept) = bench.cache.clear(Some(&name)).unwrap();
    assert_eq!((dropped[0].name.as_str(), dropped.len(), kept.len()), (name.as_str(), 1, 0));
    assert!(!fp8.exists() && int8.exists() && !leftover.exists());
    // While somebody writes or removes a copy, nobody else does.
    let writing = bench.cache.lock().unwrap();
    for busy in [bench.cache.clear(None).map(drop), bench.cache.keep_limit().map(drop)] {
        assert!(busy.is_err_and(|e| e.to_string().contains("try again")));
    }
    drop(writing);
    let none = Cache::new(bench.dit.join("none"), 1);
    assert!(none.list().unwrap().is_empty() && none.clear(None).unwrap().0.is_empty());
    assert!(none.keep_limit().unwrap().is_empty() && !none.folder().exists());
}

/// A sandbox shows a model's folder under another name.
#[test]
fn a_copy_is_found_wherever_its_files_are_seen() {
    let bench = Bench::new();
    let made = bench.prepare(Precision::Fp8);
    let elsewhere = bench.dit.with_file_name("home-ann-models");
    fs::rename(&bench.dit, &elsewhere).unwrap();
    let found = bench.cache.find(&elsewhere, Precision::Fp8).unwrap();
    assert_eq!(found.folder(), made.folder);
    drop(found);
    let again = prepare(&elsewhere, Precision::Fp8, &bench.cache, &mut |_, _| Ok(())).unwrap();
    assert_eq!((&again[0].folder, bench.cache.list().unwrap().len()), (&made.folder, 1));
}

/// A link in the Hugging Face cache has a name, and the blob that it leads to has none: the copy has the link's.
#[test]
fn a_copy_has_the_name_of_the_file_that_was_given() {
    let bench = Bench::new();
    let blob = bench.dit.with_file_name("0a1b2c");
    let link = bench.dit.with_file_name("wan 2.1 (fp32).safetensors");
    fs::rename(&find::files(&bench.dit, Component::Dit).unwrap()[0], &blob).unwrap();
    std::os::unix::fs::symlink(&blob, &link).unwrap();
    let made = prepare(&link, Precision::Fp8, &bench.cache, &mut |_, _| Ok(())).unwrap();
    let name = made[0].folder.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("wan-2.1--fp32--") && name.ends_with("-fp8"), "{name}");
    assert_eq!(bench.cache.list().unwrap()[0].of, link);
    assert!(load(&made[0].folder.join("diffusion_pytorch_model.safetensors")).len() > 100);
}
