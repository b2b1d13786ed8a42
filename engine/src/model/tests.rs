//! Comparisons with the reference implementation's intermediates, on its tiny model with random weights.

use super::clip::Clip;
use super::dit::{Blocks, Context, Dit, Inputs, Prefix, Velocity, rope, sinusoid};
use super::t5::{T5, relative_bucket};
use crate::backend::cpu::{Cpu, Rounding};
use crate::backend::{Backend, Keeping, TensorOps};
use crate::goldens::{Golden, folder};
use crate::progress::{Observer, Progress, Quiet};
use crate::weights::{self, DitConfig};
use crate::{Error, Result};
use animd_protocol::profile::AttentionKind;

/// The relative L2 distance that rounding to f32 explains. The reference itself is 4e-7 to 6e-7 from exact arithmetic,
/// and the mistakes that are easiest to make (the other GELU, an epsilon) move a result by 4e-6 to 4e-5.
const TOLERANCE: f64 = 5e-6;
/// The error that sine and cosine of the largest angle may have, and the bound for the sinusoid.
const ABSOLUTE: f64 = 1e-6;

type Tensor = <Cpu as TensorOps>::Tensor;

fn usize_array<const N: usize>(golden: &Golden, pointer: &str) -> [usize; N] {
    std::array::from_fn(|i| {
        golden.json.pointer(&format!("{pointer}/{i}")).unwrap().as_u64().unwrap() as usize
    })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Cpu::new().download(tensor).unwrap()
}

fn load_dit(backend: &Cpu, layout: &str) -> (Dit<Cpu>, DitConfig) {
    let (weights, config) = weights::open_dit(&folder().join(layout)).unwrap();
    (Dit::load(&backend.loader(Keeping::F32), &weights, &config).unwrap(), config)
}

/// The inputs of one of the two forwards that the reference recorded.
struct Recorded {
    number: usize,
    t: f64,
    grid: [usize; 3],
    x: Tensor,
    y: Tensor,
    text: Tensor,
    image: Tensor,
}

impl Recorded {
    fn read(golden: &Golden, number: usize) -> Self {
        let fact = |key: &str| golden.json.pointer(&format!("/dit/{number}/{key}")).unwrap();
        let tensor = |key: &str| golden.upload(fact(key).as_str().unwrap());
        Self {
            number,
            t: fact("t").as_f64().unwrap(),
            grid: usize_array(golden, &format!("/dit/grid/{number}")),
            x: tensor("x"),
            y: tensor("y"),
            text: tensor("context"),
            image: tensor("clip"),
        }
    }

    fn context(&self, b: &Cpu, dit: &Dit<Cpu>) -> Context<Cpu> {
        dit.context(b, &self.text, Some(&self.image)).unwrap()
    }

    fn forward(
        &self,
        b: &Cpu,
        dit: &Dit<Cpu>,
        blocks: Blocks<'_, Cpu>,
        observer: &dyn Observer,
        probe: super::Probe<'_, Tensor>,
    ) -> Result<Velocity<Cpu>> {
        self.branch(b, dit, blocks, &mut Prefix::Own, observer, probe)
    }

    fn branch(
        &self,
        b: &Cpu,
        dit: &Dit<Cpu>,
        blocks: Blocks<'_, Cpu>,
        prefix: &mut Prefix<Cpu>,
        observer: &dyn Observer,
        probe: super::Probe<'_, Tensor>,
    ) -> Result<Velocity<Cpu>> {
        let [f, h, w] = self.grid;
        let (time, context, grid) = (&dit.time(b, self.t)?, &self.context(b, dit), &dit.grid(b, f, h, w)?);
        let (x, y, attention) = (&self.x, &self.y, AttentionKind::Exact);
        let inputs = Inputs { x, y, time, context, grid, attention };
        dit.branch(b, &inputs, blocks, prefix, observer, probe)
    }
}

#[test]
fn t5_is_the_references() {
    let golden = Golden::open();
    let b = Cpu::new();
    let (weights, config) =
        weights::open_t5(&folder().join("official/models_t5_umt5-xxl-enc-bf16.pth")).unwrap();
    let t5 = T5::load(&b.loader(Keeping::F32), &weights, &config).unwrap();
    let prompts = golden.json["t5"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for fact in prompts {
        let (prompt, len) = (fact["prompt"].as_u64().unwrap(), fact["len"].as_u64().unwrap() as usize);
        let ids: Vec<u32> =
            golden.numbers(&format!("tok.{prompt}.ids"))[..len].iter().map(|id| *id as u32).collect();
        let mut seen = 0;
        let out = t5
            .encode(
                &b,
                &ids,
                Some(&mut |name, tensor| {
                    golden.compare(&format!("t5.{prompt}.{name}"), &values(tensor), TOLERANCE);
                    seen += 1;
                }),
            )
            .unwrap();
        assert_eq!(seen, config.layers + 1);
        assert_eq!(b.shape(&out), [len, config.dim]);
    }
    let beyond = t5.encode(&b, &[0, config.rows as u32], None);
    assert!(matches!(beyond, Err(Error::Model(_))));
}

#[test]
fn relative_positions_have_the_references_buckets() {
    let want = Golden::open().numbers("t5.rel_bucket");
    let got: Vec<f64> = (-200..=200).map(|distance| relative_bucket(distance).into()).collect();
    assert_eq!(got, want);
}

#[test]
fn clip_is_the_references() {
    let golden = Golden::open();
    let b = Cpu::new();
    let file = "official/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth";
    let (weights, config) = weights::open_clip(&folder().join(file)).unwrap();
    let clip = Clip::load(&b.loader(Keeping::F32), &weights, &config).unwrap();
    let pixels = values(&golden.upload("clip.0.pixel_values"));
    let mut seen = Vec::new();
    clip.encode(
        &b,
        &pixels,
        Some(&mut |name, tensor| {
            golden.compare(&format!("clip.0.{name}"), &values(tensor), TOLERANCE);
            seen.push(name.to_owned());
        }),
    )
    .unwrap();
    assert_eq!(seen, ["after_pre_norm", "out"]);
    assert!(clip.encode(&b, &pixels[1..], None).is_err());
}

#[test]
fn the_time_and_the_rotary_embedding_are_the_references() {
    let golden = Golden::open();
    let b = Cpu::new();
    let (dit, config) = load_dit(&b, "official");
    let times = golden.numbers("time.t");
    let sinusoids = times.iter().flat_map(|t| sinusoid(*t, config.freq_dim)).map(f64::from);
    golden.compare_each("time.sinusoid", sinusoids, ABSOLUTE);
    let times: Vec<_> = times.iter().map(|t| dit.time(&b, *t).unwrap()).collect();
    golden.compare("time.e", &times.iter().flat_map(|t| t.e_host.clone()).collect::<Vec<_>>(), TOLERANCE);
    golden.compare("time.e0", &times.iter().flat_map(|t| t.e0_host.clone()).collect::<Vec<_>>(), TOLERANCE);

    let head_dim = config.dim / config.num_heads;
    let (cos, sin) = rope(usize_array(&golden, "/rope/grid"), head_dim);
    golden.compare_each("rope.cos", cos, ABSOLUTE);
    golden.compare_each("rope.sin", sin, ABSOLUTE);
    // The angles of position n on all three axes are those of the token (n, n, n).
    let diagonal = |part: &[f64]| -> Vec<f64> {
        (0..64)
            .flat_map(|n| {
                part[(n * 64 + n) * 64 * head_dim / 2 + n * head_dim / 2..][..head_dim / 2].to_vec()
            })
            .collect()
    };
    let (cos, sin) = rope([64, 64, 64], head_dim);
    golden.compare_each("rope.table_cos_pos0_63", diagonal(&cos), ABSOLUTE);
    golden.compare_each("rope.table_sin_pos0_63", diagonal(&sin), ABSOLUTE);
}

#[test]
fn both_forwards_are_the_references() {
    let golden = Golden::open();
    let b = Cpu::new();
    let (dit, config) = load_dit(&b, "official");
    for (number, all) in [(0, true), (1, false)] {
        let recorded = Recorded::read(&golden, number);
        let blocks = Blocks::Compute { keep_residual: false };
        let mut seen = 0;
        let mut probe = |name: &str, tensor: &Tensor| {
            let key = format!("dit.{}.{name}", recorded.number);
            if !all && golden.json["tensors"].get(&key).is_none() {
                return;
            }
            let mut got = values(tensor);
            if name == "context_text" {
                // The reference keeps the prompt's rows and one padding row; all padding rows are equal.
                let rows = b.shape(&recorded.text)[0];
                let (kept, rest) = got.split_at((rows + 1) * config.dim);
                assert!(rest.chunks(config.dim).all(|row| row == &kept[rows * config.dim..]));
                got.truncate((rows + 1) * config.dim);
            }
            golden.compare(&key, &got, TOLERANCE);
            seen += 1;
        };
        let out = recorded.forward(&b, &dit, blocks, &Quiet, Some(&mut probe)).unwrap();
        assert_eq!(seen, if all { 7 + 4 * config.num_layers } else { 2 + config.num_layers });
        assert!(out.residual.is_none());
        let plain =
            recorded.forward(&b, &dit, Blocks::Compute { keep_residual: false }, &Quiet, None).unwrap();
        assert_eq!(values(&plain.velocity), values(&out.velocity), "the probe changes the result");
    }
}

#[test]
fn quantised_weights_give_the_references_results() {
    let golden = Golden::open();
    for (layout, simulate_fp8, key, tolerance) in [
        ("lightx2v_fp8", false, "dit.0.out_lightx2v_fp8_dequant", TOLERANCE),
        ("comfy_fp8", false, "dit.0.out_comfy_fp8_dequant", TOLERANCE),
        // There is one scale for each matrix, so there is nothing to simulate.
        ("comfy_fp8", true, "dit.0.out_comfy_fp8_dequant", TOLERANCE),
        // A value near the border between two 8-bit ones falls to either side by the rounding of f32, and later results
        // depend on it: changing the picture's embedding by one unit in the last place moves the result by up to
        // 1.4e-2. Without rounding the inputs at all, the result is 1.8e-2 to 2.0e-2 away.
        ("lightx2v_fp8", true, "dit.0.out_lightx2v_fp8_w8a8", 1.5e-2),
    ] {
        let b = Cpu { simulate: simulate_fp8.then_some(Rounding::Fp8) };
        let (dit, _) = load_dit(&b, layout);
        let recorded = Recorded::read(&golden, 0);
        let out = recorded.forward(&b, &dit, Blocks::Compute { keep_residual: false }, &Quiet, None).unwrap();
        golden.compare(key, &values(&out.velocity), tolerance);
    }
}

#[test]
fn a_kept_residual_stands_for_the_blocks() {
    let golden = Golden::open();
    let b = Cpu::new();
    let (dit, _) = load_dit(&b, "official");
    let recorded = Recorded::read(&golden, 0);
    let out = recorded.forward(&b, &dit, Blocks::Compute { keep_residual: true }, &Quiet, None).unwrap();
    let residual = out.residual.unwrap();
    let mut blocks = 0;
    let mut probe = |name: &str, _: &Tensor| blocks += usize::from(name.starts_with("block"));
    let reused = recorded.forward(&b, &dit, Blocks::Reuse(&residual), &Quiet, Some(&mut probe)).unwrap();
    assert_eq!(blocks, 0);
    assert!(reused.residual.is_none());
    golden.compare("dit.0.out", &values(&reused.velocity), TOLERANCE);
}

#[test]
fn a_branch_begins_where_another_one_had_not_read_its_text() {
    let golden = Golden::open();
    let b = Cpu::new();
    let (dit, _) = load_dit(&b, "official");
    let first = Recorded::read(&golden, 0);
    let second = Recorded { text: b.slice(&first.text, 0, 1, 2).unwrap(), ..Recorded::read(&golden, 0) };
    let run = |branch: &Recorded, blocks, prefix: &mut Prefix<Cpu>| {
        let mut seen = Vec::new();
        let mut probe = |name: &str, _: &Tensor| seen.push(name.to_owned());
        let out = branch.branch(&b, &dit, blocks, prefix, &Quiet, Some(&mut probe)).unwrap();
        (values(&out.velocity), out.residual.map(|residual| values(&residual)), seen)
    };
    for keep_residual in [false, true] {
        let blocks = Blocks::Compute { keep_residual };
        let apart = [&first, &second].map(|branch| run(branch, blocks, &mut Prefix::Own));
        assert!(apart[0].0 != apart[1].0, "the text changes the velocity");
        let mut prefix = Prefix::Wanted;
        assert!(run(&first, blocks, &mut prefix) == apart[0]);
        // Forwards that do not compute all blocks leave it to those that do.
        run(&second, Blocks::Without(0), &mut prefix);
        assert!(matches!(prefix, Prefix::Kept(_)));
        let (velocity, residual, seen) = run(&second, blocks, &mut prefix);
        assert!((&velocity, &residual) == (&apart[1].0, &apart[1].1));
        let computed_before = |name: &String| ["patch_tokens", "block0.self_attn"].contains(&name.as_str());
        let rest: Vec<_> = apart[1].2.iter().filter(|name| !computed_before(name)).cloned().collect();
        assert_eq!((seen, apart[1].2.len()), (rest.clone(), rest.len() + 2));
        // It is for one branch, so that the next step computes its own.
        assert!(matches!(prefix, Prefix::Own));
        assert!(run(&second, blocks, &mut prefix) == apart[1]);
    }
}

#[test]
fn a_cancelled_forward_stops_within_a_block() {
    struct Stop(std::sync::atomic::AtomicUsize);
    impl Observer for Stop {
        fn progress(&self, _: &Progress) {}
        fn canceled(&self) -> bool {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1
        }
    }
    let golden = Golden::open();
    let b = Cpu::new();
    let (dit, _) = load_dit(&b, "official");
    let recorded = Recorded::read(&golden, 0);
    let mut outs = Vec::new();
    let mut probe = |name: &str, _: &Tensor| {
        if name.split('.').next_back() == Some("out") {
            outs.push(name.to_owned());
        }
    };
    let blocks = Blocks::Compute { keep_residual: false };
    let result = recorded.forward(&b, &dit, blocks, &Stop(0.into()), Some(&mut probe));
    assert!(matches!(result, Err(Error::Canceled)));
    assert_eq!(outs, ["block0.out"]);
}

#[test]
fn a_grid_must_be_even_and_within_the_positions() {
    let b = Cpu::new();
    let (dit, _) = load_dit(&b, "official");
    for (f, h, w) in [(1, 3, 4), (1, 4, 3), (0, 4, 4), (1, 0, 4), (1025, 2, 2), (1, 2050, 2)] {
        assert!(matches!(dit.grid(&b, f, h, w), Err(Error::Setting(_))), "{f} {h} {w}");
    }
    assert!(dit.grid(&b, 1, 2, 2).is_ok());
}
