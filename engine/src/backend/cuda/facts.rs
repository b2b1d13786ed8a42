//! What the driver tells of a card, for predictions of time.

use animd_kernels::cuda::cudarc::driver::sys::CUdevice_attribute as Attribute;
use animd_protocol::plan::cards::{Card, Facts, named};

use super::Cuda;
use super::error::device;
use crate::Result;

/// Bytes a second that pinned memory reaches a card with of which that is not known: eight lanes of `PCIe` 4.
const COPY_RATE: f64 = 12e9;

impl Cuda {
    /// Returns the card with the rates that are known or can be told from its units and clocks; `None` for one that there
    /// are no kernels for.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn card(&self) -> Result<Option<Card>> {
        let context = &self.gpu.context;
        let name = self.gpu_name()?;
        let (_, memory) = context.mem_get_info().map_err(device)?;
        if let Some(card) = named(&name) {
            return Ok(Some(Card { memory: memory as u64, ..card }));
        }
        let attribute = |of| context.attribute(of).map(|value| value.max(0) as u32).map_err(device);
        let (major, minor) = context.compute_capability().map_err(device)?;
        // Clocks are in kHz, and memory moves data twice a clock.
        let width = f64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?) / 8.0;
        let memory_clock = 1e3 * f64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?);
        let facts = Facts {
            name: &name,
            memory: memory as u64,
            capability: (major as u32, minor as u32),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock: 1e-6 * f64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?),
            bandwidth: 2.0 * memory_clock * width,
            copy_rate: COPY_RATE,
        };
        Ok(facts.card())
    }
}
