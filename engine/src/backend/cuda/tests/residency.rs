//! Weights that wait in host memory: the results are those of weights that stay, whatever is on the device.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};

use animd_kernels::cuda::cudarc::driver::{CudaStream, sys};

use super::super::residency::Layout;
use super::super::transfer::Transfer;
use super::{Cuda, Options, noise, open};
use crate::backend::{Backend, Keeping, TensorOps};
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::progress::Quiet;
use crate::synth::{Size, Source};
use crate::weights::{Component, DType, DitConfig, WeightSource};
use animd_protocol::profile::{AttentionKind, Place, Precision};

/// The name of the network in the plans of these tests.
const NAME: &str = "DiT";
/// The blocks of the model: more than there are slots, and an odd number.
const BLOCKS: usize = 7;

const ON_HOST: Keeping = Keeping { weights: Precision::Bf16, place: Place::Host, ..Keeping::F32 };
const ON_DEVICE: Keeping = Keeping { place: Place::Device, ..ON_HOST };

/// Returns a made-up model with [`BLOCKS`] blocks.
fn model() -> (Source, DitConfig) {
    let mut recipe = Size::Tiny.recipe();
    recipe.experts[0].network.config.num_layers = BLOCKS;
    let dit = recipe.networks().find(|part| part.component() == Component::Dit).expect("a DiT");
    (Source::new(&dit, DType::Bf16, 1), recipe.experts[0].network.config.clone())
}

fn load(b: &Cuda, keeping: Keeping) -> Dit<Cuda> {
    let (source, config) = model();
    Dit::load(&b.loader_of(NAME, keeping), &source as &dyn WeightSource, &config).expect("there is room")
}

/// Sets what of the model is on the device.
fn lay_out(b: &Cuda, resident: usize, slots: usize) {
    b.lay_out(BTreeMap::from([(NAME.to_owned(), Layout { resident, slots })]));
}

/// Holds a stream of the emulator, which then runs only what somebody waits for; a GPU has no such thing.
fn hold(stream: &CudaStream, held: bool) {
    // SAFETY: the emulator defines the function so, and the stream lives.
    unsafe {
        if let Ok(hold) = sys::culib().get::<unsafe extern "C" fn(*mut c_void, c_int)>(b"emulator_hold") {
            hold(stream.cu_stream().cast(), c_int::from(held));
        }
    }
}

/// Runs a job of two forwards at a latent of this size, and returns the velocities.
fn job(b: &Cuda, dit: &Dit<Cuda>, [t, h, w]: [usize; 3]) -> Vec<Vec<f32>> {
    let upload = |shape: &[usize], seed| b.upload(&noise(shape.iter().product(), seed), shape).expect("room");
    let (x, y) = (upload(&[16, t, h, w], 1), upload(&[20, t, h, w], 2));
    let (_, config) = model();
    let image_dim = config.image_dim.expect("it reads pictures");
    let (text, image) = (upload(&[20, config.text_dim], 3), upload(&[257, image_dim], 4));
    let context = dit.context(b, &text, &image).expect("a context");
    let grid = dit.grid(b, t, h, w).expect("a grid");
    let forward = |time: f64| {
        let time = dit.time(b, time).expect("a time");
        let inputs = Inputs { x: &x, y: &y, time: &time, context: &context, grid: &grid, attention: AttentionKind::Exact };
        dit.forward(b, &inputs, Blocks::Compute { keep_residual: false }, &Quiet, None).expect("a forward").velocity
    };
    let both = [forward(900.0), forward(400.0)];
    both.iter().map(|velocity| b.download(velocity).expect("it can be read")).collect()
}

const SMALL: [usize; 3] = [1, 4, 4];
const LARGE: [usize; 3] = [2, 4, 6];

/// Returns what jobs of both sizes give with weights that stay.
fn resident() -> [Vec<Vec<f32>>; 2] {
    let b = open(&Options::default());
    let dit = load(&b, ON_DEVICE);
    [SMALL, LARGE].map(|size| job(&b, &dit, size))
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
    fn set(self, b: &Cuda) {
        let Transfer { stream: copies, .. } = &b.gpu.transfer;
        hold(copies, matches!(self, Self::Copies));
        hold(&b.gpu.stream, matches!(self, Self::Computations));
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "it takes a GPU")]
fn streamed_weights_give_the_same_bits() {
    let right = resident();
    assert!(right.iter().flatten().flatten().all(|v| v.is_finite()));
    let b = open(&Options::default());
    let dit = load(&b, ON_HOST);
    assert_eq!(b.taken(), super::WORK, "nothing is on the device before a group is entered");
    for held in [Held::Nothing, Held::Copies, Held::Computations] {
        held.set(&b);
        for (resident, slots) in [(BLOCKS, 0), (BLOCKS - 1, 1), (3, 2), (0, 2), (0, 3), (2, 2), (BLOCKS, 0)] {
            lay_out(&b, resident, slots);
            for (size, right) in [SMALL, LARGE].into_iter().zip(&right) {
                assert!(job(&b, &dit, size) == *right, "{resident} groups stay, {slots} slots, {held:?}, {size:?}");
            }
        }
    }
}
