//! The diffusion transformers: known tensors, and the output of a forward.

use std::path::Path;

use animd_engine::backend::cpu::Cpu;
use animd_engine::backend::{Backend, Keeping, TensorOps};
use animd_engine::model::dit::{Blocks, Dit, Inputs};
use animd_engine::progress::Quiet;
use animd_engine::weights::{DitConfig, HostTensor, Matrix, WeightSource, Weights, open_dit, open_expert};
use animd_protocol::profile::AttentionKind;
use anyhow::Result;

use super::super::{Goldens, MODEL};
use super::{Checks, relative};

/// A transformer of Wan2.2, which sees no picture, as one of Wan2.1 whose picture says nothing: the values of its
/// attention to the picture are zero. The engine runs Wan2.1, and the result is the same.
pub(super) struct Blind {
    inner: Weights,
    dim: usize,
    image_dim: usize,
}

impl Blind {
    /// Returns the extents of a tensor that only Wan2.1 has.
    fn added(&self, name: &str) -> Option<Vec<usize>> {
        let (d, i) = (self.dim, self.image_dim);
        let layer = name.strip_prefix("img_emb.proj.");
        Some(match (layer, name.rsplit_once("cross_attn.")) {
            (Some("0.weight" | "0.bias" | "1.bias"), _) => vec![i],
            (Some("1.weight"), _) => vec![i, i],
            (Some("3.weight"), _) => vec![d, i],
            (_, Some((_, "k_img.weight" | "v_img.weight"))) => vec![d, d],
            (Some("3.bias" | "4.weight" | "4.bias"), _)
            | (_, Some((_, "k_img.bias" | "v_img.bias" | "norm_k_img.weight"))) => vec![d],
            _ => return None,
        })
    }
}

impl WeightSource for Blind {
    fn tensor(&self, name: &str) -> animd_engine::Result<HostTensor> {
        match self.added(name) {
            Some(shape) => Ok(HostTensor { data: vec![0.0; shape.iter().product()], shape }),
            None => self.inner.tensor(name),
        }
    }

    fn matrix(&self, name: &str) -> animd_engine::Result<Matrix<'_>> {
        use animd_engine::weights::DType;
        match self.added(name).as_deref() {
            Some([rows, cols]) => Ok(Matrix::plain(*rows, *cols, DType::F32, vec![0; 4 * rows * cols])),
            Some(_) | None => self.inner.matrix(name),
        }
    }
}

/// Opens a transformer of a model and returns it as the engine can run it.
pub(super) fn open(
    path: &Path,
    model: &str,
    goldens: &Goldens,
) -> Result<(Box<dyn WeightSource>, DitConfig, &'static str)> {
    if model == "2.1" {
        let (weights, config) = open_dit(path)?;
        let layout = weights.layout().name();
        return Ok((Box::new(weights), config, layout));
    }
    let (inner, config) = open_expert(path)?;
    let layout = inner.layout().name();
    let (blind, config) = blind(inner, &config, goldens)?;
    Ok((Box::new(blind), config, layout))
}

/// Returns a transformer of Wan2.2 with a picture that says nothing, for [`forward`].
pub(super) fn blind(inner: Weights, config: &DitConfig, goldens: &Goldens) -> Result<(Blind, DitConfig)> {
    let image_dim = goldens.get("in.clip")?.shape[1];
    let config = DitConfig { image_dim: Some(image_dim), ..config.clone() };
    Ok((Blind { inner, dim: config.dim, image_dim }, config))
}

/// Returns the output of a forward on the directory's inputs.
pub(super) fn forward(source: &dyn WeightSource, config: &DitConfig, goldens: &Goldens) -> Result<Vec<f32>> {
    let b = Cpu::new();
    let dit = Dit::load(&b.loader(Keeping::F32), source, config)?;
    let input = |name: &str| -> Result<_> {
        let tensor = goldens.get(name)?;
        Ok(b.upload(&tensor.f32(), &tensor.shape)?)
    };
    let (x, y) = (input("in.x")?, input("in.y")?);
    let context = dit.context(&b, &input("in.context")?, Some(&input("in.clip")?))?;
    let time = dit.time(&b, goldens.real("dit_input/t")?)?;
    let shape = goldens.get("in.x")?.shape.clone();
    let grid = dit.grid(&b, shape[1], shape[2], shape[3])?;
    let (x, y, time, context, grid) = (&x, &y, &time, &context, &grid);
    let inputs = Inputs { x, y, time, context, grid, attention: AttentionKind::Exact };
    let out = dit.forward(&b, &inputs, Blocks::Compute { keep_residual: false }, &Quiet, None)?;
    Ok(b.download(&out.velocity)?)
}

impl Checks {
    /// Checks a transformer's known tensors and its forward.
    pub(super) fn dit(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let found = self.files.get(&entry.path)?;
        let model = entry.model.clone().unwrap_or_default();
        let (source, config, layout) = open(&found.path, &model, &self.goldens)?;
        self.values(index, &*source)?;
        if let Some(forward) = self.entries[index].forward.clone() {
            self.forward(&forward, &format!("{forward} ({layout})"), &*source, &config)?;
        }
        Ok(())
    }

    /// Compares a forward with the expected one.
    pub(super) fn forward(
        &mut self,
        golden: &str,
        name: &str,
        source: &dyn WeightSource,
        config: &DitConfig,
    ) -> Result<()> {
        let out = forward(source, config, &self.goldens)?;
        let error = relative(&out, &self.goldens.get(golden)?.data);
        self.note(name, "relative L2", error, MODEL);
        Ok(())
    }
}
