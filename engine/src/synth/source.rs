//! A made-up model without files.

use std::collections::BTreeMap;

use animd_protocol::recipe::{Component, Part};

use crate::weights::{DType, HostTensor, Matrix, RowTable, WeightSource};
use crate::{Error, Result};

use super::files::Plan;
use super::plan;
use super::values::{Fill, fill, tensor_seed};

/// One network of a made-up model. Every tensor is made when it is asked for, and equals the one that
/// [`synth_model`](super::synth_model) writes into files.
pub struct Source {
    component: Component,
    seed: u64,
    plans: BTreeMap<String, Plan>,
}

impl Source {
    /// Returns the source of a recipe's network; `dtype` is the type of a DiT's weights.
    pub fn new(part: &Part<'_>, dtype: DType, seed: u64) -> Self {
        let plans = plan(part, dtype).into_iter().map(|plan| (plan.name.clone(), plan)).collect();
        Self { component: part.component(), seed, plans }
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.plans.values().map(Plan::elements).sum()
    }

    fn find(&self, name: &str) -> Result<&Plan> {
        self.plans
            .get(name)
            .ok_or_else(|| Error::Internal(format!("the {} has no tensor `{name}`", self.component.title())))
    }
}

impl WeightSource for Source {
    fn tensor(&self, name: &str) -> Result<HostTensor> {
        let plan = self.find(name)?;
        let whole = Matrix::plain(1, plan.elements(), plan.dtype, plan.make(self.seed));
        Ok(HostTensor { shape: plan.shape.clone(), data: whole.to_f32() })
    }

    fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let plan = self.find(name)?;
        let [rows, rest @ ..] = &plan.shape[..] else {
            return Err(Error::Internal(format!("`{name}` is a scalar, not a matrix")));
        };
        Ok(Matrix::plain(*rows, rest.iter().product(), plan.dtype, plan.make(self.seed)))
    }

    fn row_table(&self, name: &str) -> Result<RowTable> {
        let (plan, seed) = (self.find(name)?.clone(), self.seed);
        let cols = plan.columns();
        Ok(RowTable::new(plan.elements() / cols, move |row| {
            let bytes = plan.make_part(seed, row * cols, cols);
            Ok(Matrix::plain(1, cols, plan.dtype, bytes).to_f32())
        }))
    }
}

/// Returns made-up inputs for comparisons: the values that a tensor of this name would have, with a mean of 0.
pub fn noise(seed: u64, name: &str, deviation: f32, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * count];
    fill(&mut bytes, DType::F32, tensor_seed(seed, name), 0, count.max(1), &Fill::new(0.0, deviation));
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::{Size, synth_model};
    use crate::weights::Model;

    #[test]
    fn it_is_what_the_files_hold() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        synth_model(&folder, Size::Tiny, DType::Bf16, None, 3, &mut |_, _| Ok(())).unwrap();
        let files = Model::open(&folder, None).unwrap();
        for part in Size::Tiny.recipe().networks() {
            let files = match part.component() {
                Component::Dit => &files.dit.0,
                Component::T5 => &files.t5.0,
                Component::Clip => &files.clip.as_ref().unwrap().0,
                Component::Vae => &files.vae.0,
            };
            let source = Source::new(&part, DType::Bf16, 3);
            for name in files.names() {
                assert_eq!(source.tensor(name).unwrap(), files.tensor(name).unwrap(), "{name}");
                let (made, stored) = (source.matrix(name).unwrap(), files.matrix(name).unwrap());
                assert_eq!(
                    (made.rows, made.cols, made.encoding),
                    (stored.rows, stored.cols, stored.encoding),
                    "{name}"
                );
                assert!(made.bytes == stored.bytes, "{name}");
                let (rows, values) = (source.row_table(name).unwrap(), stored.to_f32());
                for (row, values) in values.chunks_exact(stored.cols).enumerate() {
                    assert!(rows.row(row).unwrap() == values, "row {row} of {name}");
                }
            }
            assert!(source.tensor("nonsense").is_err());
        }
    }

    #[test]
    fn parts_can_be_made_beside_each_other() {
        // The full model's largest matrices are never made here, only their first values.
        let recipe = Size::Full.recipe();
        let dit = recipe.networks().find(|part| part.component() == Component::Dit).unwrap();
        let source = Source::new(&dit, DType::Bf16, 1);
        assert_eq!(source.parameters(), 16_394_878_784);
        let bias = source.tensor("blocks.39.ffn.0.bias").unwrap();
        assert_eq!(bias.shape, [13_824]);
        assert_eq!(noise(1, "x", 1.0, 8)[..4], noise(1, "x", 1.0, 4)[..]);
    }
}
