//! The diffusion transformer: tables, embeddings, every block's branches, and the quantised layouts.

use animd_engine::backend::cpu::{Cpu, Rounding};
use animd_engine::backend::{Backend, Keeping, TensorOps};
use animd_engine::model::Probe;
use animd_engine::model::dit::{self, Blocks, Context, Dit, Inputs};
use animd_engine::progress::Quiet;
use animd_engine::weights::open_dit;
use animd_protocol::profile::AttentionKind;
use anyhow::{Context as _, Result};

use super::quantised::Quantised;
use super::{ABSOLUTE, Goldens, MODEL, Model, SIMULATED};

type Tensor = <Cpu as TensorOps>::Tensor;

/// Returns the context of a forward, from an embedding of the text and the output `clip` of the CLIP tower.
pub fn context(goldens: &Goldens, dit: &Dit<Cpu>, b: &Cpu, text: &str, clip: &str) -> Result<Context<Cpu>> {
    let text = goldens.get(text)?;
    let clip = goldens.get(clip)?;
    Ok(dit.context(b, &b.upload(&text.f32(), &text.shape)?, Some(&b.upload(&clip.f32(), &clip.shape)?))?)
}

/// Runs a forward as `golden.json`'s `dit/INDEX` describes it; intermediates go to `probe`.
fn forward(
    goldens: &Goldens,
    dit: &Dit<Cpu>,
    b: &Cpu,
    index: usize,
    probe: Probe<'_, Tensor>,
) -> Result<Vec<f32>> {
    let at = |key: &str| goldens.text(&format!("dit/{index}/{key}"));
    let (x, y) = (goldens.get(at("x")?)?, goldens.get(at("y")?)?);
    let context = context(goldens, dit, b, at("context")?, at("clip")?)?;
    let time = dit.time(b, goldens.real(&format!("dit/{index}/t"))?)?;
    let grid = dit.grid(b, x.shape[1], x.shape[2], x.shape[3])?;
    let (x, y) = (b.upload(&x.f32(), &x.shape)?, b.upload(&y.f32(), &y.shape)?);
    let blocks = Blocks::Compute { keep_residual: false };
    let (x, y, time, context, grid) = (&x, &y, &time, &context, &grid);
    let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
    let out = dit.forward(b, &inputs, blocks, &Quiet, probe)?;
    Ok(b.download(&out.velocity)?)
}

/// Checks `rope.*`, `time.*`, `dit.0.*`, `dit.1.*`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    let (b, dit) = (&model.backend, &model.dit);
    rope(goldens)?;

    let width = goldens.get("time.sinusoid")?.shape[1];
    let times = goldens.input("time.t")?.data.clone();
    let (mut sinusoid, mut e, mut e0) = (Vec::new(), Vec::new(), Vec::new());
    for t in times {
        let time = dit.time(b, t)?;
        sinusoid.extend(dit::sinusoid(t, width));
        e.extend_from_slice(&time.e_host);
        e0.extend_from_slice(&time.e0_host);
    }
    goldens.absolute("time.sinusoid", &sinusoid, ABSOLUTE)?;
    goldens.relative("time.e", &e, MODEL)?;
    goldens.relative("time.e0", &e0, MODEL)?;

    goldens.given("dit/grid")?;
    goldens.given("dit/t")?;
    for index in 0..2 {
        for given in ["x", "y", "context", "clip", "t"] {
            goldens.given(&format!("dit/{index}/{given}"))?;
        }
        for input in ["x", "y"] {
            goldens.input(&format!("dit.{index}.{input}"))?;
        }
        let mut parts = Vec::new();
        let mut probe = |name: &str, t: &Tensor| parts.push((name.to_owned(), t.clone()));
        let out = forward(goldens, dit, b, index, Some(&mut probe))?;
        for (part, tensor) in parts {
            let name = format!("dit.{index}.{part}");
            if part == "out" || !goldens.has(&name) {
                continue;
            }
            // The fixture keeps only one row of the padding after the prompt.
            let rows = goldens.get(&name)?.shape[0];
            let tensor = if part == "context_text" { b.slice(&tensor, 0, 0, rows)? } else { tensor };
            goldens.relative(&name, &b.download(&tensor)?, MODEL)?;
        }
        goldens.relative(&format!("dit.{index}.out"), &out, MODEL)?;
    }
    let out = goldens.get("dit.0.out")?.f32();
    goldens.number("dit/out_std", super::goldens::std(&out), MODEL)?;
    for i in 0..goldens.len("dit/block_out_std")? {
        let out = goldens.get(&format!("dit.0.block{i}.out"))?.f32();
        goldens.number(&format!("dit/block_out_std/{i}"), super::goldens::std(&out), MODEL)?;
    }
    Ok(())
}

/// Checks `rope.*`: the table of the first forward's grid, and the first 64 positions along each axis.
fn rope(goldens: &mut Goldens) -> Result<()> {
    let mut grid = [0; 3];
    for (i, tokens) in grid.iter_mut().enumerate() {
        *tokens = goldens.count(&format!("rope/grid/{i}"))?;
    }
    goldens.given("rope/grid")?;
    goldens.given("rope/theta")?;
    let head_dim = goldens.count("fixture/sizes/dit/head_dim")?;
    let pairs = dit::rope_pairs(head_dim);
    goldens.fact("rope/split_columns_t_h_w", pairs.to_vec())?;
    let narrow = |table: &[f64]| table.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let (cos, sin) = dit::rope(grid, head_dim);
    goldens.absolute("rope.cos", &narrow(&cos), ABSOLUTE)?;
    goldens.absolute("rope.sin", &narrow(&sin), ABSOLUTE)?;

    // A row of tokens along one axis shows that axis's columns at each position.
    let half = head_dim / 2;
    let (mut cos64, mut sin64) = (vec![0.0; 64 * half], vec![0.0; 64 * half]);
    let mut first = 0;
    for axis in 0..3 {
        let mut line = [1; 3];
        line[axis] = 64;
        let (cos, sin) = dit::rope(line, head_dim);
        for position in 0..64 {
            let columns = position * half + first..position * half + first + pairs[axis];
            cos64[columns.clone()].copy_from_slice(&narrow(&cos[columns.clone()]));
            sin64[columns.clone()].copy_from_slice(&narrow(&sin[columns]));
        }
        first += pairs[axis];
    }
    goldens.absolute("rope.table_cos_pos0_63", &cos64, ABSOLUTE)?;
    goldens.absolute("rope.table_sin_pos0_63", &sin64, ABSOLUTE)
}

/// Checks `dit.0.out_*`: the fp8 layouts, dequantised, and with simulated 8-bit activations.
pub fn check_quantised(goldens: &mut Goldens) -> Result<()> {
    let exact = Cpu::new();
    let simulated = Cpu { simulate: Some(Rounding::Fp8) };
    for (name, layout, b, bound) in [
        ("dit.0.out_lightx2v_fp8_dequant", "lightx2v_fp8", &exact, MODEL),
        ("dit.0.out_comfy_fp8_dequant", "comfy_fp8", &exact, MODEL),
        ("dit.0.out_lightx2v_fp8_w8a8", "lightx2v_fp8", &simulated, SIMULATED),
    ] {
        if !goldens.has(name) {
            continue;
        }
        let folder = goldens.dir.join(layout);
        let dit = if folder.exists() {
            let (weights, config) = open_dit(&folder).with_context(|| layout.to_owned())?;
            Dit::load(&b.loader(Keeping::F32), &weights, &config)?
        } else {
            let (inner, config) = open_dit(&goldens.dir.join("official"))?;
            let quantised = Quantised { inner, per_row: layout == "lightx2v_fp8" };
            Dit::load(&b.loader(Keeping::F32), &quantised, &config)?
        };
        let out = forward(goldens, &dit, b, 0, None)?;
        goldens.relative(name, &out, bound)?;
        // How far the quantisation moves the result, from the engine's own two results.
        let plain = goldens.get("dit.0.out")?.data.clone();
        let moved = super::goldens::relative(&out, &plain);
        let bound = if bound == SIMULATED { 0.1 } else { 1e-3 };
        goldens.number(&format!("fp8/{name}/rel_l2_vs_fp32"), moved, bound)?;
    }
    Ok(())
}
