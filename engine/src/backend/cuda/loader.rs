//! Loading of weights to the device: they are copied as stored in their files, and converted on the device.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use animd_kernels::cuda::{Element, Norms, fold_for_doubling};
use half::bf16;
use rayon::prelude::*;

use super::Cuda;
use super::assembly::Assembly;
use super::gpu::{Gpu, take};
use super::linear::{Form, Linear};
use super::low_rank::Products;
use super::memory::Memory;
use super::residency::{Lane, Source};
use super::slab::Slab;
use super::staging::{STAGED, Staging};
use super::tensor::{Tensor, padded};
use super::volumes::{ChannelNorm, Conv};
use crate::backend::conv::ConvShape;
use crate::backend::loading::{self, Again, ConvWeights, Group, Keeping, LinearWeights, Role};
use crate::weights::{DType, Encoding, HostTensor, Matrix, WeightSource};
use crate::{Error, Result};
use animd_protocol::plan::network::ROTATED;
use animd_protocol::profile::{Place, Precision, Sensitive};

/// Loads one network's weights to the GPU. There they stay, or they leave for host memory group by group.
pub struct Loader {
    gpu: Arc<Gpu>,
    keeping: Keeping,
    staging: Arc<Staging>,
    /// The network, if its weights do not stay.
    network: Option<Lane>,
    /// The source of weights that are read each time that they are needed.
    source: Option<Arc<dyn WeightSource + Send>>,
    /// The group that is being loaded, if it does not stay.
    group: RefCell<Option<Arc<Assembly>>>,
    /// Whether tensors only get their addresses, and their values later.
    only_addresses: Cell<bool>,
}

impl Loader {
    pub(super) fn new(gpu: Arc<Gpu>, keeping: Keeping, network: Option<Lane>) -> Self {
        let (staging, group, only_addresses) = (Arc::default(), RefCell::default(), Cell::new(false));
        Self { gpu, keeping, staging, network, source: None, group, only_addresses }
    }

    /// Returns a loader that fills a group again; see [`Source::File`].
    fn again(gpu: &Arc<Gpu>, keeping: Keeping, staging: &Arc<Staging>, group: Assembly) -> Self {
        let group = RefCell::new(Some(Arc::new(group)));
        let (gpu, staging, only_addresses) = (gpu.clone(), staging.clone(), Cell::new(false));
        Self { gpu, keeping, staging, network: None, source: None, group, only_addresses }
    }

    /// Returns a tensor of f32 values.
    fn upload(&self, data: &[f32], shape: &[usize]) -> Result<Tensor> {
        match self.only_addresses.get() {
            true => take(&*self.memory(), shape.iter().product(), Element::F32, shape),
            false => self.gpu.upload(&*self.memory(), data, shape),
        }
    }

    /// Returns where tensors get their memory.
    fn memory(&self) -> Arc<dyn Memory> {
        match &*self.group.borrow() {
            Some(group) => group.clone(),
            None => Arc::new(self.gpu.weights.clone()),
        }
    }

    /// Loads a group, and moves it to where it waits.
    fn load<T>(&self, around: bool, load: impl FnOnce() -> Result<T>) -> Result<Group<Cuda, T>> {
        let Some(network) = &self.network else {
            return Ok(Group::new(load()?, None));
        };
        let group = Arc::new(network.start(true)?);
        let loaded = self.load_to(&group, load)?;
        let mut slab = Slab::new(&self.gpu.context, &self.gpu.pinning, group.bytes())?;
        group.take_out(slab.bytes_mut())?;
        Ok(Group::new(loaded, Some(network.add(&group.range, Source::Slab(slab), around)?)))
    }

    fn load_to<T>(&self, group: &Arc<Assembly>, load: impl FnOnce() -> Result<T>) -> Result<T> {
        *self.group.borrow_mut() = Some(group.clone());
        let loaded = load();
        *self.group.borrow_mut() = None;
        loaded
    }

    /// Returns how linear layers are computed, and the type of their results.
    fn form(&self, role: Role) -> (Form, Element) {
        match (role, self.keeping.weights) {
            (Role::Bulk, Precision::Fp32) => (Form::Split, Element::F32),
            (Role::Bulk, weights) => (Form::of(weights), Element::Bf16),
            (Role::Sensitive, _) if self.keeping.sensitive == Sensitive::Fp32 => (Form::Split, Element::F32),
            (Role::Sensitive, _) => (Form::Bf16, Element::Bf16),
        }
    }

    /// Enqueues all work that fills a layer's weight.
    fn fill(&self, layer: &Linear, weights: &LinearWeights<'_>) -> Result<()> {
        let (gpu, staging) = (&*self.gpu, &self.staging);
        let Linear { form, weight, scale, .. } = layer;
        let columns = if *form == Form::Split { weight.shape[1] / 3 } else { weight.shape[1] };
        let mut row = 0;
        for (matrix, products) in weights.sums() {
            let products = Products::new(gpu, products, columns)?;
            let to = Destination { gpu, staging, weight, scale: scale.as_ref(), row, products };
            to.load(matrix, *form)?;
            row += matrix.rows;
        }
        Ok(())
    }

    /// Returns whether volumes are in f32.
    fn in_f32(&self) -> bool {
        self.keeping.weights == Precision::Fp32
    }
}

impl loading::Loader<Cuda> for Loader {
    fn linear(&self, weights: &LinearWeights<'_>, role: Role) -> Result<Linear> {
        let (inputs, outputs) = (weights.inputs(), weights.outputs());
        if !outputs.is_multiple_of(8) {
            return Err(Error::Internal(format!(
                "a linear layer of {outputs} features from {inputs}: the GPU computes multiples of 8"
            )));
        }
        // Layers that the 8-bit kernels do not support are computed in bf16.
        let (form, result) = match self.form(role) {
            (Form::Fp8, result) if !inputs.is_multiple_of(16) || inputs > Norms::MOST_COLUMNS => {
                (Form::Bf16, result)
            }
            (Form::Int8, result) if !inputs.is_multiple_of(ROTATED) || inputs > Norms::MOST_COLUMNS => {
                (Form::Bf16, result)
            }
            other => other,
        };
        let (gpu, memory) = (&*self.gpu, &*self.memory());
        gpu.check_form(form)?;
        let filled_up = inputs.next_multiple_of(8);
        let columns = match form {
            Form::Bf16 => filled_up,
            Form::Fp8 | Form::Int8 => inputs,
            Form::Split => 3 * filled_up,
        };
        let weight = take(memory, outputs * columns, form.element(), &[outputs, columns])?;
        let scale = match form {
            Form::Fp8 | Form::Int8 => Some(take(memory, outputs, Element::F32, &[outputs])?),
            _ => None,
        };
        let bias = weights.bias().map(|bias| self.upload(&bias, &[outputs])).transpose()?;
        let layer = Linear { form, weight, scale, bias, inputs, outputs, result };
        if !self.only_addresses.get() {
            self.fill(&layer, weights)?;
        }
        Ok(layer)
    }

    fn replace(&self, layer: &mut Linear, weights: &LinearWeights<'_>, _: Role) -> Result<()> {
        let bias = weights.bias();
        let same = (layer.inputs, layer.outputs) == (weights.inputs(), weights.outputs());
        if !same || layer.bias.is_some() != bias.is_some() {
            return Err(Error::Internal(format!(
                "a layer of {} features from {} in the place of one of {} from {}",
                weights.outputs(),
                weights.inputs(),
                layer.outputs,
                layer.inputs
            )));
        }
        if let Some((to, bias)) = layer.bias.as_ref().zip(bias) {
            self.gpu.send(&bias, to)?;
        }
        self.fill(layer, weights)
    }

    fn adds_products(&self) -> bool {
        true
    }

    fn conv(&self, weights: ConvWeights) -> Result<Conv> {
        let ConvWeights { shape, weight, bias: mut filled } = weights;
        let ConvShape { outputs, inputs, kernel } = shape;
        let taps: usize = kernel.iter().product();
        let (channels, rows) = (padded(inputs), padded(outputs));
        let mut rearranged = vec![0.0; rows * taps * channels];
        for (o, from) in weight.chunks_exact(inputs * taps).enumerate() {
            for (i, from) in from.chunks_exact(taps).enumerate() {
                for (tap, value) in from.iter().enumerate() {
                    rearranged[(o * taps + tap) * channels + i] = *value;
                }
            }
        }
        filled.resize(rows, 0.0);
        let (gpu, memory, split) = (&self.gpu, &*self.memory(), self.in_f32());
        let load = |values: &[f32]| -> Result<Tensor> {
            let rounded = match split {
                true => split_channels(values, channels),
                false => values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect(),
            };
            let tensor = take(memory, rounded.len(), Element::Bf16, &[rounded.len()])?;
            if !self.only_addresses.get() {
                gpu.send(&rounded, &tensor)?;
            }
            Ok(tensor)
        };
        let doubling = kernel == [1, 3, 3];
        let folded = doubling.then(|| load(&fold_for_doubling(&rearranged, channels))).transpose()?;
        let (weight, bias) = (load(&rearranged)?, self.upload(&filled, &[rows])?);
        Ok(Conv { shape, weight, folded, bias, split })
    }

    fn channel_norm(&self, gamma: HostTensor) -> Result<ChannelNorm> {
        let element = if self.in_f32() { Element::F32 } else { Element::Bf16 };
        Ok(ChannelNorm { gamma: self.tensor(gamma)?, element })
    }

    fn tensor(&self, parameter: HostTensor) -> Result<Tensor> {
        self.upload(&parameter.data, &parameter.shape)
    }

    fn group<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<Cuda, T>> {
        self.load(false, load)
    }

    fn reread<T>(&self, load: impl FnOnce() -> Result<T>, again: Again<Self>) -> Result<Group<Cuda, T>> {
        let Some(network) = &self.network else { return self.group(load) };
        let group = Arc::new(network.start(false)?);
        self.only_addresses.set(true);
        let loaded = self.load_to(&group, load);
        self.only_addresses.set(false);
        let (gpu, keeping, staging) = (self.gpu.clone(), self.keeping, self.staging.clone());
        let (range, bytes) = (group.range.clone(), group.bytes());
        let read = move || again(&Self::again(&gpu, keeping, &staging, Assembly::again(&gpu, &range, bytes)));
        let source = Source::File { bytes, read: Box::new(read) };
        Ok(Group::new(loaded?, Some(network.add(&group.range, source, false)?)))
    }

    fn reading(self, source: Arc<dyn WeightSource + Send>) -> Self {
        Self { source: Some(source), ..self }
    }

    fn source(&self) -> Option<Arc<dyn WeightSource + Send>> {
        self.source.clone().filter(|_| self.keeping.place == Place::Disk)
    }

    fn around<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<Group<Cuda, T>> {
        self.load(true, load)
    }
}

/// Returns weights of so many channels each as sums of two bf16 numbers: high, high, low.
fn split_channels(values: &[f32], channels: usize) -> Vec<u16> {
    let mut wide = vec![0; 3 * values.len()];
    wide.par_chunks_mut(3 * channels).zip(values.par_chunks(channels)).for_each(|(to, from)| {
        for (i, value) in from.iter().enumerate() {
            let high = bf16::from_f32(*value);
            let low = bf16::from_f32(value - high.to_f32());
            to[i] = high.to_bits();
            to[channels + i] = high.to_bits();
            to[2 * channels + i] = low.to_bits();
        }
    });
    wide
}

/// The destination of a matrix: the rows of a weight from `row` on.
struct Destination<'a> {
    gpu: &'a Gpu,
    staging: &'a Staging,
    weight: &'a Tensor,
    scale: Option<&'a Tensor>,
    row: usize,
    /// What is added to the matrix.
    products: Products<'a>,
}

impl Destination<'_> {
    /// Enqueues all work that converts the matrix to a weight of this form.
    fn load(&self, matrix: &Matrix<'_>, form: Form) -> Result<()> {
        match form {
            Form::Bf16 => self.load_bf16(matrix),
            Form::Fp8 => self.load_fp8(matrix),
            Form::Int8 => self.load_int8(matrix),
            Form::Split => self.load_split(matrix),
        }
    }

    /// Returns some of the weight's rows.
    fn rows(&self, first: usize, rows: usize) -> Tensor {
        self.weight.slice(0, self.row + first, rows)
    }

    fn load_bf16(&self, matrix: &Matrix<'_>) -> Result<()> {
        let columns = self.weight.shape[1];
        let as_it_is = matrix.encoding == Encoding::Plain(DType::Bf16) && columns == matrix.cols;
        if as_it_is && self.products.is_empty() {
            return self.staging.send(self.gpu, &matrix.bytes, &self.rows(0, matrix.rows));
        }
        each_chunk(matrix, |row, chunk| {
            self.gpu.copy(&self.sum(row, chunk, columns)?, &self.rows(row, chunk.rows))
        })
    }

    /// Copies values that are 8-bit as they are; others are rounded on the GPU.
    fn load_fp8(&self, matrix: &Matrix<'_>) -> Result<()> {
        if let Some((DType::F8E4m3, factors)) = matrix.scaled_rows()
            && self.products.is_empty()
        {
            return self.send_rows(matrix, &factors);
        }
        self.load_quantised(matrix, Element::E4m3)
    }

    /// Copies int8 values that are rotated as the kernels rotate them as they are; others are rounded on the GPU.
    fn load_int8(&self, matrix: &Matrix<'_>) -> Result<()> {
        if let Some((DType::I8, factors, ROTATED)) = matrix.rotated_rows()
            && self.products.is_empty()
        {
            return self.send_rows(matrix, &factors);
        }
        self.load_quantised(matrix, Element::Int8)
    }

    /// Copies 8-bit values as they are, and the factor of each row.
    fn send_rows(&self, matrix: &Matrix<'_>, factors: &[f32]) -> Result<()> {
        self.staging.send(self.gpu, &matrix.bytes, &self.rows(0, matrix.rows))?;
        self.gpu.send(factors, &self.scales(0, matrix.rows)?)
    }

    /// Rounds values on the GPU to e4m3 or, rotated, to int8, each row with its own scale.
    fn load_quantised(&self, matrix: &Matrix<'_>, element: Element) -> Result<()> {
        let gpu = self.gpu;
        each_chunk(matrix, |row, chunk| {
            // The scales are written one by one, but their first address must be aligned for a vector.
            let own = gpu.quantised(&self.sum(row, chunk, chunk.cols)?, element)?;
            gpu.move_bytes(&own.values, &self.rows(row, chunk.rows), chunk.rows * chunk.cols)?;
            gpu.move_bytes(&own.scales, &self.scales(row, chunk.rows)?, 4 * chunk.rows)
        })
    }

    /// Returns the scales of some of the weight's rows.
    fn scales(&self, first: usize, rows: usize) -> Result<Tensor> {
        match self.scale {
            Some(scale) => Ok(scale.slice(0, self.row + first, rows)),
            None => Err(Error::Internal("a weight in 8 bits has no scales".into())),
        }
    }

    fn load_split(&self, matrix: &Matrix<'_>) -> Result<()> {
        let (gpu, columns) = (self.gpu, self.weight.shape[1] / 3);
        each_chunk(matrix, |row, chunk| {
            let staged = gpu.dense(&self.sum(row, chunk, columns)?, Element::F32)?;
            gpu.split(&staged, &self.rows(row, chunk.rows), true)
        })
    }

    /// Returns rows of the matrix, from `row` on, with the products that are added to them.
    fn sum(&self, row: usize, chunk: &Matrix<'_>, columns: usize) -> Result<Tensor> {
        self.products.added(self.gpu, self.stage(chunk, columns)?, row)
    }

    /// Returns the file's values if they are bf16 or f32 and fill the columns. Others travel as they are stored and become
    /// f32 on the device; the CPU expands those that the kernels do not know, and rows that need zeros after them.
    fn stage(&self, chunk: &Matrix<'_>, columns: usize) -> Result<Tensor> {
        let as_it_is = match chunk.encoding {
            _ if chunk.cols != columns => None,
            Encoding::Plain(DType::Bf16) => Some(Element::Bf16),
            Encoding::Plain(DType::F32) => Some(Element::F32),
            _ => None,
        };
        if as_it_is.is_none()
            && chunk.cols == columns
            && let Some(expanded) = self.gpu.expanded(self.staging, chunk)?
        {
            return Ok(expanded);
        }
        let staged = self.gpu.row_major(&[chunk.rows, columns], as_it_is.unwrap_or(Element::F32))?;
        match as_it_is {
            Some(_) => self.staging.send(self.gpu, &chunk.bytes, &staged)?,
            None => {
                let values = filled_up(chunk.to_f32(), chunk.cols, columns);
                self.staging.send(self.gpu, bytemuck::cast_slice(&values), &staged)?;
            }
        }
        Ok(staged)
    }
}

/// Processes rows of a matrix, as many at a time as a buffer holds as f32.
fn each_chunk(matrix: &Matrix<'_>, mut f: impl FnMut(usize, &Matrix<'_>) -> Result<()>) -> Result<()> {
    let rows = (STAGED / (4 * matrix.cols)).max(1);
    for first in (0..matrix.rows).step_by(rows) {
        f(first, &matrix.part(first, rows.min(matrix.rows - first)))?;
    }
    Ok(())
}

/// Returns rows padded with zeros to `padded` columns.
fn filled_up(values: Vec<f32>, columns: usize, padded: usize) -> Vec<f32> {
    if columns == padded {
        return values;
    }
    let mut wide = vec![0.0; values.len() / columns * padded];
    for (to, from) in wide.chunks_exact_mut(padded).zip(values.chunks_exact(columns)) {
        to[..columns].copy_from_slice(from);
    }
    wide
}
