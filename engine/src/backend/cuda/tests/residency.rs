//! Weights that do not stay on the device: the results are those of weights that do, whatever is there.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use animd_kernels::cuda::Element;
use animd_kernels::cuda::cudarc::driver::{CudaStream, sys};

use super::super::residency::Layout;
use super::super::slab::Slab;
use super::super::tensor::Tensor;
use super::{Cuda, Options, WORK, noise, open};
use crate::backend::{Backend, Keeping, Loader, TensorOps};
use crate::model::dit::{Blocks, Context, Dit, Inputs, Prefix};
use crate::model::t5::T5;
use crate::progress::{Observer, Progress, Quiet};
use crate::synth::{Size, Source};
use crate::weights::{Component, DType, DitConfig};
use crate::{Error, Result};
use animd_protocol::profile::{AttentionKind, Place, Precision};

/// The name of the network in the plans of these tests.
const DIT: &str = "DiT";
const T5_NAME: &str = "umT5";
/// The blocks of the model: more than there are slots, and an odd number.
const BLOCKS: usize = 5;

const IN_BF16: Keeping = Keeping { weights: Precision::Bf16, ..Keeping::F32 };

fn at(place: Place) -> Keeping {
    Keeping { place, ..IN_BF16 }
}

/// Returns a made-up model with [`BLOCKS`] blocks.
fn source() -> (Source, DitConfig) {
    let mut recipe = Size::Tiny.recipe();
    recipe.experts[0].network.config.num_layers = BLOCKS;
    let dit = recipe.networks().find(|part| part.component() == Component::Dit).expect("a DiT");
    (Source::new(&dit, DType::Bf16, 1), recipe.experts[0].network.config.clone())
}

/// A model with what its forwards take.
struct Model {
    b: Cuda,
    dit: Dit<Cuda>,
    context: Context<Cuda>,
}

impl Model {
    fn load(options: &Options, place: Place) -> Self {
        // Checks of poisoned memory would wait for the computations all the time.
        let b = Cuda::open(0, options, 0, WORK).expect("there is a GPU or the emulator");
        let (source, config) = source();
        let dit = Dit::load(&b.loader_of(DIT, at(place)), &source, &config).expect("there is room");
        let image_dim = config.image_dim.expect("it reads pictures");
        let upload =
            |shape: [usize; 2], seed| b.upload(&noise(shape[0] * shape[1], seed), &shape).expect("room");
        let (text, image) = (upload([20, config.text_dim], 3), upload([9, image_dim], 4));
        let context = dit.context(&b, &text, Some(&image)).expect("a context");
        Self { b, dit, context }
    }

    /// Computes a job of two forwards at a latent of this size.
    fn forwards(&self, [t, h, w]: [usize; 3], observer: &dyn Observer) -> Result<[Vec<f32>; 2]> {
        let Self { b, dit, context } = self;
        let upload = |shape: &[usize], seed| b.upload(&noise(shape.iter().product(), seed), shape);
        let (x, y) = (&upload(&[16, t, h, w], 1)?, &upload(&[20, t, h, w], 2)?);
        let grid = &dit.grid(b, t, h, w)?;
        let forward = |time: f64| -> Result<_> {
            let time = &dit.time(b, time)?;
            let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
            let blocks = Blocks::Compute { keep_residual: false };
            Ok(dit.forward(b, &inputs, blocks, observer, None)?.velocity)
        };
        let (first, second) = (forward(900.0)?, forward(400.0)?);
        Ok([b.download(&first)?, b.download(&second)?])
    }

    fn job(&self, latent: [usize; 3]) -> [Vec<f32>; 2] {
        self.forwards(latent, &Quiet).expect("a job")
    }

    /// Computes a step of two branches, the second of which begins with the first one's prefix or not.
    fn branches(&self, [t, h, w]: [usize; 3], shared: bool) -> Result<[Vec<f32>; 2]> {
        let Self { b, dit, context } = self;
        let (_, config) = source();
        let upload = |shape: &[usize], seed| b.upload(&noise(shape.iter().product(), seed), shape);
        let image = upload(&[9, config.image_dim.expect("it reads pictures")], 4)?;
        let other = &dit.context(b, &upload(&[5, config.text_dim], 5)?, Some(&image))?;
        let (x, y) = (&upload(&[16, t, h, w], 1)?, &upload(&[20, t, h, w], 2)?);
        let (time, grid) = (&dit.time(b, 700.0)?, &dit.grid(b, t, h, w)?);
        let mut prefix = if shared { Prefix::Wanted } else { Prefix::Own };
        let mut branch = |context| -> Result<_> {
            let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
            let blocks = Blocks::Compute { keep_residual: false };
            Ok(dit.branch(b, &inputs, blocks, &mut prefix, &Quiet, None)?.velocity)
        };
        let (first, second) = (branch(context)?, branch(other)?);
        Ok([b.download(&first)?, b.download(&second)?])
    }

    /// Sets what is on the device.
    fn lay_out(&self, resident: usize, slots: usize) {
        lay_out(&self.b, &[(DIT, resident, slots)]);
    }

    /// Returns the last values of the context.
    fn context(&self) -> Vec<f32> {
        self.b.download(self.context.last().expect("it has blocks")).expect("it can be read")
    }
}

fn lay_out(b: &Cuda, layouts: &[(&str, usize, usize)]) {
    let layout =
        |&(name, resident, slots): &(&str, _, _)| (name.to_owned(), Layout { resident, slots, turns: None });
    b.networks.plan(layouts.iter().map(layout).collect::<BTreeMap<_, _>>());
}

const SMALL: [usize; 3] = [1, 4, 4];
const LARGE: [usize; 3] = [2, 4, 6];

/// Returns a model whose weights stay, and what its jobs of both sizes give.
fn right() -> (Model, [[Vec<f32>; 2]; 2]) {
    let model = Model::load(&Options::default(), Place::Device);
    let right = [SMALL, LARGE].map(|size| model.job(size));
    assert!(right.iter().flatten().flatten().all(|v| v.is_finite()));
    (model, right)
}

/// The streams that are held while a job runs.
#[derive(Clone, Copy, Debug)]
enum Held {
    Nothing,
    /// A copy runs when something waits for it.
    Copies,
    /// Computations run when something waits for them, and copies as soon as their events let them.
    Computations,
}

impl Held {
    /// Holds streams of the emulator; a GPU has no such thing.
    fn set(self, b: &Cuda) {
        let hold = |stream: &CudaStream, held: bool| {
            // SAFETY: the emulator defines the function so, and the stream lives.
            unsafe {
                type Hold = unsafe extern "C" fn(*mut c_void, c_int);
                if let Ok(hold) = sys::culib().get::<Hold>(b"emulator_hold") {
                    hold(stream.cu_stream().cast(), c_int::from(held));
                }
            }
        };
        hold(&b.gpu.transfer.stream, matches!(self, Self::Copies));
        hold(&b.gpu.stream, matches!(self, Self::Computations));
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn streamed_weights_give_the_same_bits() {
    let (resident, right) = right();
    let model = Model::load(&Options::default(), Place::Host);
    assert!(model.context() == resident.context());
    drop(resident);
    for held in [Held::Nothing, Held::Copies, Held::Computations] {
        held.set(&model.b);
        // A plan holds for jobs of one size; the one that comes first finds what the plan before has left.
        for (i, (resident, slots)) in
            [(BLOCKS, 0), (2, 2), (0, 2), (0, 3), (BLOCKS - 1, 1)].into_iter().enumerate()
        {
            model.lay_out(resident, slots);
            let (size, right) = ([SMALL, LARGE][i % 2], &right[i % 2]);
            assert!(model.job(size) == *right, "{resident} groups stay, {slots} slots, {held:?}");
        }
    }
    assert!(model.b.notes().is_empty());
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn branches_share_their_prefix_wherever_the_blocks_are() {
    let (resident, _) = right();
    let right = resident.branches(LARGE, false).expect("a step");
    assert!(right[0] != right[1], "the text changes the velocity");
    assert!(resident.branches(LARGE, true).expect("a step") == right);
    drop(resident);
    let model = Model::load(&Options::default(), Place::Host);
    for held in [Held::Nothing, Held::Copies, Held::Computations] {
        held.set(&model.b);
        for (resident, slots) in [(BLOCKS, 0), (2, 2), (0, 2), (BLOCKS - 1, 1)] {
            model.lay_out(resident, slots);
            let shared = model.branches(LARGE, true).expect("a step");
            assert!(shared == right, "{resident} groups stay, {slots} slots, {held:?}");
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn memory_that_is_not_pinned_serves_too() {
    let (_, right) = right();
    // Every link is faster than this rate, so that copies are repeated.
    for options in [
        Options { pinned: Some(0), poison: true, ..Options::default() },
        Options { copy_rate: Some(1 << 28), ..Options::default() },
        Options { pinned: Some(1 << 20), copy_rate: Some(1 << 28), ..Options::default() },
    ] {
        let model = Model::load(&options, Place::Host);
        for held in [Held::Nothing, Held::Copies, Held::Computations] {
            held.set(&model.b);
            model.lay_out(1, 2);
            assert!(model.job(SMALL) == right[0], "{options:?} {held:?}");
        }
    }
}

/// Stops the work at one of its questions.
struct StopAt(AtomicU32);

impl Observer for StopAt {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

/// A fork copies pinned pages at once, so a program that is started must not inherit them.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn waiting_weights_are_not_copied_by_a_fork() {
    let b = open(&Options::default());
    let slab = Slab::new(&b.gpu.context, &b.gpu.pinning, 3 << 20).unwrap();
    let address = slab.bytes().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut within = false;
    let flags = maps.lines().find_map(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((from, to)) = range.filter(|_| !line.contains(": ")) {
            let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).unwrap());
            within = (from..to).contains(&address);
        }
        line.strip_prefix("VmFlags:").filter(|_| within)
    });
    let flags = flags.expect("the memory is mapped");
    assert!(flags.split_whitespace().any(|flag| flag == "dc"), "{flags}");
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn a_job_that_stops_leaves_no_copy_behind() {
    let (_, right) = right();
    let model = Model::load(&Options::default(), Place::Host);
    for held in [Held::Copies, Held::Computations] {
        held.set(&model.b);
        for stop in [0, 2, BLOCKS as u32] {
            model.lay_out(1, 2);
            let stopped = model.forwards(SMALL, &StopAt(AtomicU32::new(stop)));
            assert!(matches!(stopped, Err(Error::Canceled)), "{:?}", stopped.err());
            // Another layout maps other memory, behind copies that are under way.
            model.lay_out(0, 3);
            assert!(model.job(SMALL) == right[0], "{held:?} {stop}");
        }
        let _ = model.forwards(SMALL, &StopAt(AtomicU32::new(2)));
    }
    // The emulator ends the program if a copy into memory that is given back has not run.
    let Model { b, dit, context } = model;
    drop((dit, context));
    assert_eq!(b.taken(), WORK);
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn networks_take_turns_within_a_limit() {
    let (resident, right) = right();
    let recipe = Size::Tiny.recipe();
    let part = recipe.networks().find(|part| part.component() == Component::T5).expect("a text encoder");
    let text: Arc<Source> = Arc::new(Source::new(&part, DType::Bf16, 1));
    let config = &recipe.text_encoder.config;
    let load = |b: &Cuda, place| {
        let loader = b.loader_of(T5_NAME, at(place)).reading(text.clone());
        T5::load(&loader, &*text, config).expect("there is room")
    };
    let encoded = |b: &Cuda, t5: &T5<Cuda>| {
        b.download(&t5.encode(b, &[5, 7, 11, 13], None).expect("a text")).expect("it can be read")
    };
    let wanted = encoded(&resident.b, &load(&resident.b, Place::Device));

    let model = Model::load(&Options::default(), Place::Host);
    let b = &model.b;
    for place in [Place::Host, Place::Disk] {
        let t5 = load(b, place);
        lay_out(b, &[(DIT, BLOCKS, 0), (T5_NAME, 0, 2)]);
        model.job(SMALL);
        // There is room for the DiT, or for most of it and the text encoder.
        let limit = b.taken();
        b.gpu.supply.set_limit(Some(limit));
        for _ in 0..2 {
            assert!(encoded(b, &t5) == wanted, "{place:?}");
            assert!(b.taken() <= limit);
            assert!(model.job(SMALL) == right[0], "{place:?}");
            assert!(b.taken() <= limit);
        }
        assert!(b.notes().is_empty(), "everything went as planned");
        b.gpu.supply.set_limit(None);
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn less_memory_than_planned_is_no_end() {
    let (_, right) = right();
    let model = Model::load(&Options::default(), Place::Host);
    let b = &model.b;
    b.gpu.work.let_grow(1 << 20);
    model.lay_out(BLOCKS, 0);
    model.job(SMALL);
    let all = b.taken();
    let group = (all - WORK) / (BLOCKS + 1);

    // Another program has taken memory: fewer groups stay.
    b.gpu.supply.set_limit(Some(all - group));
    model.lay_out(BLOCKS, 0);
    b.gpu.supply.set_limit(Some(all - 2 * group));
    let big = b.upload(&noise(WORK / 4 + 1, 1), &[WORK / 4 + 1]);
    assert!(
        matches!(&big, Err(Error::Memory(text)) if text.contains("budget")),
        "there is not so much: {:?}",
        big.err()
    );
    assert!(model.job(SMALL) == right[0]);
    assert!(b.taken() <= all - 2 * group);
    let notes = b.notes();
    assert!(notes.iter().any(|note| note.contains("planned to stay")), "{notes:?}");

    // While it works, it gives up what others need.
    for held in [Held::Nothing, Held::Copies, Held::Computations] {
        held.set(b);
        b.gpu.supply.set_limit(None);
        model.lay_out(BLOCKS, 0);
        let _ = b.notes();
        let needy = Needy { b, questions: AtomicU32::new(0), taken: Mutex::default() };
        assert!(model.forwards(SMALL, &needy).expect("a job") == right[0], "{held:?}");
        assert!(b.notes().iter().any(|note| note.contains("from now on")), "{held:?}");
    }
}

/// Takes all that the work has, and more, in the middle of a forward.
struct Needy<'a> {
    b: &'a Cuda,
    questions: AtomicU32,
    taken: Mutex<Vec<Tensor>>,
}

impl Observer for Needy<'_> {
    fn progress(&self, _: &Progress) {}

    fn canceled(&self) -> bool {
        if self.questions.fetch_add(1, Ordering::Relaxed) == 3 {
            let gpu = &self.b.gpu;
            let before = self.b.usage()[1].reservations;
            gpu.supply.set_limit(Some(self.b.taken()));
            let mut taken = self.taken.lock().expect("nobody else has it");
            while self.b.usage()[1].reservations == before {
                taken.push(gpu.row_major(&[1 << 18], Element::F32).expect("the weights make room"));
            }
        }
        false
    }
}
