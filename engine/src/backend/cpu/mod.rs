//! The reference backend: candle tensors in f32 on the CPU.
//!
//! Every tensor of this backend is contiguous, so that an operation may look at it as a slice ([`with_values`]).

mod attention;
mod conv;
mod linear;
#[cfg(test)]
mod naive;
mod sequence;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, Tensor};
use rayon::prelude::*;

use super::loading::{self, ConvWeights, Group, Keeping, LinearWeights, Role};
use super::{Backend, TensorOps};
use crate::weights::HostTensor;
use crate::{Error, Result};
use animd_protocol::plan::Setup;

pub use conv::{ChannelNorm, Conv};
pub use linear::Linear;
pub use sequence::Rope;

/// The reference backend.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// Rounds the inputs of layers whose weights have a scale for each row to 8 bits (e4m3 with one scale for each
    /// row), as 8-bit matrix units see them; the sums stay f32.
    pub simulate_fp8: bool,
}

impl Cpu {
    /// Returns a backend with exact arithmetic in f32.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Calls `f` with the values of a tensor.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => f(&values[start..end]),
        _ => Err(Error::Internal(
            "a tensor of the CPU backend is not f32, contiguous and in host memory".into(),
        )),
    }
}

/// Changes the values of a tensor in place. The tensor must be new, because clones share their values.
pub(crate) fn update(tensor: &Tensor, f: impl Fn(&mut [f32])) -> Result<()> {
    struct Update<F>(F);

    impl<F: Fn(&mut [f32])> InplaceOp1 for Update<F> {
        fn name(&self) -> &'static str {
            "update"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            match (storage, layout.contiguous_offsets()) {
                (CpuStorage::F32(values), Some((start, end))) => (self.0)(&mut values[start..end]),
                _ => {
                    return Err(candle_core::Error::msg(
                        "a tensor of the CPU backend is not f32 and contiguous",
                    ));
                }
            }
            Ok(())
        }
    }

    Ok(tensor.inplace_op1(&Update(f))?)
}

/// Returns `data` as a tensor.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// The number of elements that one task of an element-wise operation handles: enough to outweigh its start.
pub(crate) const GRAIN: usize = 1 << 14;

impl TensorOps for Cpu {
    type Tensor = Tensor;

    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        tensor(data.to_vec(), shape)
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        with_values(tensor, |values| Ok(values.to_vec()))
    }

    fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        tensor.dims().to_vec()
    }

    fn linear_combination(&self, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
        let Some((&(factor, first), rest)) = terms.split_first() else {
            return Err(Error::Internal("a sum of no tensors has no shape".into()));
        };
        let mut sum = with_values(first, |values| {
            Ok(values.par_iter().with_min_len(GRAIN).map(|v| factor * v).collect::<Vec<_>>())
        })?;
        for &(factor, term) in rest {
            if term.dims() != first.dims() {
                return Err(Error::Internal(format!("cannot add {:?} to {:?}", term.dims(), first.dims())));
            }
            with_values(term, |values| {
                sum.par_iter_mut().zip(values).with_min_len(GRAIN).for_each(|(s, v)| *s += factor * v);
                Ok(())
            })?;
        }
        tensor(sum, first.dims())
    }

    fn slice(&self, tensor: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        Ok(tensor.narrow(axis, start, len)?.contiguous()?)
    }

    fn concat(&self, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        Ok(Tensor::cat(parts, axis)?.contiguous()?)
    }
}

impl Backend for Cpu {
    type Loader = Loader;
    type Residence = ();

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn resolve(&self, wanted: &Setup) -> Setup {
        Setup { budget: wanted.budget, ..Setup::CPU }
    }

    fn loader_of(&self, _: &str, _: Keeping) -> Loader {
        Loader { simulate_fp8: self.simulate_fp8 }
    }

    fn enter(&self, (): &()) -> Result<()> {
        Ok(())
    }
}

/// The loader, which makes tensors and layers of weights, all in f32.
pub struct Loader {
    simulate_fp8: bool,
}

impl loading::Loader<Cpu> for Loader {
    fn linear(&self, weights: &LinearWeights<'_>, _: Role) -> Result<Linear> {
        Linear::load(weights, self.simulate_fp8)
    }

    fn conv(&self, weights: ConvWeights) -> Result<Conv> {
        Ok(Conv::load(weights))
    }

    fn channel_norm(&self, gamma: HostTensor) -> Result<ChannelNorm> {
        Ok(ChannelNorm::load(gamma))
    }

    fn tensor(&self, parameter: HostTensor) -> Result<Tensor> {
        tensor(parameter.data, &parameter.shape)
    }

    fn group<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<Cpu, T>> {
        Ok(Group::new(load()?, ()))
    }

    fn around<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<Cpu, T>> {
        self.group(load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_combination_adds_from_left_to_right_and_checks_shapes() {
        let cpu = Cpu::new();
        let a = cpu.upload(&[1.0, 2.0, 3.0], &[3]).unwrap();
        let b = cpu.upload(&[10.0, 20.0, 30.0], &[3]).unwrap();
        let sum = cpu.linear_combination(&[(2.0, &a), (-0.5, &b)]).unwrap();
        assert_eq!(cpu.download(&sum).unwrap(), [-3.0, -6.0, -9.0]);
        // 1e8 + 1 - 1e8 is 0 in f32 in this order, and 1 in any other that is exact.
        let big = cpu.upload(&[1e8], &[1]).unwrap();
        let one = cpu.upload(&[1.0], &[1]).unwrap();
        let sum = cpu.linear_combination(&[(1.0, &big), (1.0, &one), (-1.0, &big)]).unwrap();
        assert_eq!(cpu.download(&sum).unwrap(), [0.0]);
        assert!(cpu.linear_combination(&[(1.0, &a), (1.0, &one)]).is_err());
        assert!(cpu.linear_combination(&[]).is_err());
    }

    #[test]
    fn slice_and_concat_are_inverse_on_every_axis() {
        let cpu = Cpu::new();
        let data: Vec<f32> = (0..2 * 3 * 5).map(|v| v as f32).collect();
        let x = cpu.upload(&data, &[2, 3, 5]).unwrap();
        for (axis, extent) in [2, 3, 5].into_iter().enumerate() {
            let head = cpu.slice(&x, axis, 0, 1).unwrap();
            let tail = cpu.slice(&x, axis, 1, extent - 1).unwrap();
            let whole = cpu.concat(&[&head, &tail], axis).unwrap();
            assert_eq!(cpu.shape(&whole), [2, 3, 5]);
            assert_eq!(cpu.download(&whole).unwrap(), data);
        }
        assert_eq!(
            cpu.download(&cpu.slice(&x, 1, 2, 1).unwrap()).unwrap(),
            [10.0, 11.0, 12.0, 13.0, 14.0, 25.0, 26.0, 27.0, 28.0, 29.0]
        );
        assert!(cpu.slice(&x, 2, 4, 2).is_err());
        assert!(cpu.upload(&[1.0], &[2]).is_err());
    }
}
