//! The diffusion transformers: known tensors, and the output of a forward.

use std::path::Path;

use animd_engine::backend::cpu::Cpu;
use animd_engine::backend::{Backend, Keeping, TensorOps};
use animd_engine::model::dit::{Blocks, Dit, Inputs};
use animd_engine::progress::Quiet;
use animd_engine::weights::{DitConfig, WeightSource, Weights, open_dit, open_expert};
use animd_protocol::profile::AttentionKind;
use anyhow::Result;

use super::super::{Goldens, MODEL};
use super::{Checks, relative};

/// Opens a transformer: a whole model's, or one of the two experts of Wan2.2.
pub(super) fn open(path: &Path, model: &str) -> Result<(Weights, DitConfig)> {
    Ok(if model == "2.1" { open_dit(path)? } else { open_expert(path)? })
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
    let picture = config.image_dim.is_some().then(|| input("in.clip")).transpose()?;
    let context = dit.context(&b, &input("in.context")?, picture.as_ref())?;
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
        let (source, config) = open(&found.path, &model)?;
        let layout = source.layout().name();
        self.values(index, &source)?;
        if let Some(forward) = self.entries[index].forward.clone() {
            self.forward(&forward, &format!("{forward} ({layout})"), &source, &config)?;
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
