//! The time that a forward of the 14B model takes with weights that are streamed, beside one with weights that stay, on
//! made-up weights.
//!
//! The test fails if the results differ, and never for being slow: `--ignored --nocapture speed_of_streaming` prints the
//! figures.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use half::bf16;

use super::{Cuda, Options, noise};
use crate::Result;
use crate::backend::{Backend, Keeping, TensorOps};
use crate::model::dit::{Blocks, Dit, Inputs};
use crate::progress::{Quiet, Stage};
use crate::weights::{Component, DType, HostTensor, Matrix, WeightSource};
use animd_protocol::dims::{DitConfig, schema};
use animd_protocol::plan::{Plan, Setup};
use animd_protocol::profile::{AttentionKind, Place, Precision, Profile};
use animd_protocol::recipe::Recipe;
use animd_protocol::request::Settings;

/// The budgets in GiB: all that a GPU has, then those of cards of 24, 16 and 12 GB.
const BUDGETS: [Option<u64>; 4] = [None, Some(22), Some(15), Some(11)];
/// The bytes per second of `PCIe` 4 with sixteen lanes, and with eight.
const RATES: [Option<u64>; 3] = [None, Some(25_000_000_000), Some(12_000_000_000)];

/// Matrices of noise, each from another part of one pattern, so that a wrong block's weights show.
struct Patterned {
    shapes: HashMap<String, Vec<usize>>,
    pattern: Vec<u8>,
}

/// The bytes in which parts of the pattern begin.
const BEGINNINGS: usize = 1 << 20;

impl Patterned {
    fn new(config: &DitConfig) -> Self {
        let shapes: HashMap<_, _> = schema::dit(config).into_iter().map(|e| (e.name, e.shape)).collect();
        let largest =
            shapes.values().map(|shape| 2 * shape.iter().product::<usize>()).max().unwrap_or_default();
        let some: Vec<u8> =
            noise(1 << 20, 1).into_iter().flat_map(|v| bf16::from_f32(0.02 * v).to_le_bytes()).collect();
        Self { shapes, pattern: some.into_iter().cycle().take(largest + BEGINNINGS).collect() }
    }
}

impl WeightSource for Patterned {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let shape = self.shapes[name].clone();
        let elements: usize = shape.iter().product();
        let data = match elements / shape[0].max(1) {
            // These are the norms' factors, and biases.
            1 => vec![if name.ends_with("bias") { 0.01 } else { 1.0 }; elements],
            inputs => noise(elements, 2).into_iter().map(|v| v / (inputs as f32 / 3.0).sqrt()).collect(),
        };
        Ok(HostTensor { shape, data })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let shape = &self.shapes[name];
        let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let first = hasher.finish() as usize % (BEGINNINGS / 16) * 16;
        let bytes = Cow::Borrowed(&self.pattern[first..][..2 * rows * cols]);
        Ok(Matrix::plain(rows, cols, DType::Bf16, bytes))
    }
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

#[test]
#[ignore = "it takes a GPU of 48 GiB and 40 GiB of memory, and says how fast that is"]
fn speed_of_streaming() {
    let recipe = Recipe::wan21_i2v_14b();
    let config = recipe.experts[0].network.config.clone();
    let source = Patterned::new(&config);
    let attention = AttentionKind::EightBit;
    let request = Settings::default().resolve(|| 1).expect("valid settings");
    for weights in [Precision::Fp8, Precision::Bf16] {
        for copy_rate in RATES {
            let b =
                Cuda::open(0, &Options { copy_rate, ..Options::default() }, 0, 0).expect("there is a GPU");
            let mut setup =
                Setup { attention, ..Setup::from(&Profile::built_in("h200").expect("a profile")) };
            (setup.precision.dit, setup.residency.dit) = (weights, Place::Host);
            let plan = |budget: Option<u64>| {
                // Without a budget, the plan has as little as possible there; a large budget holds everything.
                let budget = Some(budget.unwrap_or(100) << 30);
                let mut plan = Plan::new(&recipe, &request, [832, 480], &Setup { budget, ..setup });
                plan.memory.networks.retain(|network| network.component == Component::Dit);
                plan.memory.phases.retain(|phase| phase.stage == Stage::Denoise);
                plan
            };
            let first = plan(None);
            b.reserve(&first.memory).expect("there is room");
            let began = Instant::now();
            let keeping = Keeping { place: Place::Host, ..Keeping::of(&setup, Component::Dit) };
            let dit = Dit::load(&b.loader_of("DiT", keeping), &source, &config).expect("there is room");
            println!("\n{weights:?}, {copy_rate:?} B/s, loaded in {:.1?}", began.elapsed());
            let [t, h, w] = first.latent;
            let upload = |shape: &[usize], seed| {
                b.upload(&noise(shape.iter().product(), seed), shape).expect("there is room")
            };
            let (x, y) = (&upload(&[16, t, h, w], 1), &upload(&[20, t, h, w], 2));
            let text = upload(&[60, config.text_dim], 3);
            let image = upload(&[257, config.image_dim.expect("it reads pictures")], 4);
            let context = &dit.context(&b, &text, Some(&image)).expect("a context");
            let (time, grid) =
                (&dit.time(&b, 500.0).expect("a time"), &dit.grid(&b, t, h, w).expect("a grid"));
            let forward = || {
                let inputs = Inputs { x, y, time, context, grid, attention };
                let blocks = Blocks::Compute { keep_residual: false };
                dit.forward(&b, &inputs, blocks, &Quiet, None).expect("a forward").velocity
            };
            let mut resident: Option<(Vec<f32>, f64)> = None;
            for budget in BUDGETS {
                let plan = plan(budget);
                // The inputs stay where they are; only the weights move.
                b.gpu.supply.set_limit(plan.memory.budget.map(|all| (all - plan.memory.context) as usize));
                b.lay_out(&plan.memory);
                let values = b.download(&forward()).expect("it can be read");
                let mut seconds: Vec<f64> = (0..5)
                    .map(|_| {
                        b.gpu.stream.synchronize().expect("the driver works");
                        let began = Instant::now();
                        drop(forward());
                        b.gpu.stream.synchronize().expect("the driver works");
                        began.elapsed().as_secs_f64()
                    })
                    .collect();
                seconds.sort_by(f64::total_cmp);
                let (right, all_there) = resident.get_or_insert((values.clone(), seconds[2]));
                assert!(values == *right, "{budget:?}: streamed weights give other values");
                let (free, total) = b.gpu.context.mem_get_info().expect("the driver works");
                let placement = &plan.memory.networks[0].placement;
                println!(
                    "budget {budget:?} GiB: {:2} of 40 blocks stay, {} slots, {:.2} GiB taken, {:.2} in use on the GPU; {:.3} s, \
                     {:+.1} %",
                    placement.resident,
                    placement.slots,
                    gib(b.taken()),
                    gib(total - free),
                    seconds[2],
                    100.0 * (seconds[2] / *all_there - 1.0)
                );
            }
            println!("{:?}", b.notes());
        }
    }
}
