//! Tensors in host memory, which the sampler's tests share.

use crate::Result;
use crate::backend::TensorOps;

/// A tensor: row-major values and their extents.
pub type HostTensor = (Vec<f32>, Vec<usize>);

/// Just enough of a backend to sample with.
pub struct Host;

impl TensorOps for Host {
    type Tensor = HostTensor;

    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<HostTensor> {
        assert_eq!(data.len(), shape.iter().product::<usize>());
        Ok((data.to_vec(), shape.to_vec()))
    }

    fn download(&self, tensor: &HostTensor) -> Result<Vec<f32>> {
        Ok(tensor.0.clone())
    }

    fn shape(&self, tensor: &HostTensor) -> Vec<usize> {
        tensor.1.clone()
    }

    fn linear_combination(&self, terms: &[(f32, &HostTensor)]) -> Result<HostTensor> {
        let shape = &terms[0].1.1;
        assert!(terms.iter().all(|(_, tensor)| tensor.1 == *shape));
        let sum = |i| {
            terms[1..].iter().fold(terms[0].0 * terms[0].1.0[i], |sum, (factor, t)| sum + factor * t.0[i])
        };
        Ok(((0..terms[0].1.0.len()).map(sum).collect(), shape.clone()))
    }

    fn slice(&self, _: &HostTensor, _: usize, _: usize, _: usize) -> Result<HostTensor> {
        unimplemented!("no sampler slices")
    }

    fn concat(&self, _: &[&HostTensor], _: usize) -> Result<HostTensor> {
        unimplemented!("no sampler concatenates")
    }
}

/// Returns |a - b| / |b|, both Euclidean norms.
pub fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b)))
}
