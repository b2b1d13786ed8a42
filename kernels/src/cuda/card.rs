//! The GPU that kernels are loaded for.

use std::ops::Deref;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute;

use super::Error;
use crate::{Family, Support};

/// A GPU that is open, and which kernels serve it. It is used like its context.
#[derive(Clone, Debug)]
pub struct Card {
    context: Arc<CudaContext>,
    capability: (u32, u32),
    support: Support,
}

impl Card {
    /// Decides which kernels serve a GPU: those of its own compute capability, or those of `capability`, which must be an
    /// older one. The driver compiles the PTX of an older card for a newer one, so that checks and measurements can run the
    /// kernels of a card that is not there.
    pub(super) fn new(context: Arc<CudaContext>, capability: Option<(u32, u32)>) -> Result<Self, Error> {
        let (major, minor) = context.compute_capability()?;
        let own = (major as u32, minor as u32);
        let capability = capability.unwrap_or(own);
        let Some(support) = crate::support(capability) else {
            let (major, minor) = capability;
            return Err(Error::UnsupportedGpu { name: context.name()?, major, minor });
        };
        if capability > own || (capability != own && support.family == Family::Wgmma) {
            return Err(Error::OtherKernels { own, asked: capability });
        }
        Ok(Self { context, capability, support })
    }

    /// Returns the GPU's context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Returns the compute capability (major, minor) whose kernels serve this GPU: its own unless [`super::open`] was asked
    /// for another one.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Returns which kernels serve this GPU.
    pub fn support(&self) -> Support {
        self.support
    }

    /// Returns the number of multiprocessors.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver does not know.
    pub fn multiprocessors(&self) -> Result<usize, Error> {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(self.context.attribute(attribute)? as usize)
    }
}

impl Deref for Card {
    type Target = Arc<CudaContext>;

    fn deref(&self) -> &Self::Target {
        &self.context
    }
}
