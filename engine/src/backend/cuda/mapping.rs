//! Ranges of device addresses, and physical memory that is mapped into them.
//!
//! A group of weights has one range for as long as it lives, so its tensors keep their addresses wherever it goes; what
//! memory lies behind the range changes. Several ranges can have the same memory behind them: those of the groups that
//! take turns in one slot.

use std::sync::Arc;

use animd_kernels::cuda::cudarc::driver::CudaContext;
use animd_kernels::cuda::cudarc::driver::sys::{
    self, CUdevice_attribute, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags,
    CUmemAllocationProp, CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};

use super::error::device;
use super::supply::{Refusal, Supply};
use crate::Result;

/// Describes memory of the context's device.
fn properties(context: &CudaContext) -> CUmemAllocationProp {
    // SAFETY: zeros are valid in all fields, which are numbers and a pointer for another system.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(context);
    properties
}

fn location(context: &CudaContext) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: context.cu_device() }
}

/// Returns the bytes of which mapped memory has a multiple; `None` if the driver cannot map memory on this device, as some
/// virtual ones.
///
/// # Errors
/// Returns [`crate::Error::Device`] if the driver has failed.
pub(super) fn granularity(context: &Arc<CudaContext>) -> Result<Option<usize>> {
    let supported = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED;
    if context.attribute(supported).map_err(device)? == 0 {
        return Ok(None);
    }
    let (mut bytes, properties) = (0, properties(context));
    let minimum = CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    context.bind_to_thread().map_err(device)?;
    // SAFETY: both point to values of this function.
    let result =
        unsafe { sys::cuMemGetAllocationGranularity(&raw mut bytes, &raw const properties, minimum) };
    result.result().map_err(device)?;
    Ok(Some(bytes).filter(|bytes| *bytes > 0))
}

/// Physical memory of the GPU. It goes back to the driver with its last mapping, so mappings must end first.
pub(super) struct Physical {
    supply: Arc<Supply>,
    context: Arc<CudaContext>,
    handle: CUmemGenericAllocationHandle,
    bytes: usize,
}

impl Physical {
    /// Takes memory from the driver; `bytes` must be a multiple of [`granularity`].
    pub fn new(
        context: &Arc<CudaContext>,
        supply: &Arc<Supply>,
        bytes: usize,
    ) -> std::result::Result<Self, Refusal> {
        let properties = properties(context);
        let create = || {
            let mut handle = 0;
            // SAFETY: both point to values of this function, and a context is current.
            unsafe { sys::cuMemCreate(&raw mut handle, bytes, &raw const properties, 0) }.result()?;
            Ok(handle)
        };
        let handle = supply.take(bytes, create)?;
        supply.mapped(bytes);
        Ok(Self { supply: supply.clone(), context: context.clone(), handle, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.context.bind_to_thread();
        // SAFETY: the handle came from the driver, and nobody uses it after this.
        let _ = unsafe { sys::cuMemRelease(self.handle) };
        self.supply.unmapped(self.bytes);
    }
}

/// A range of device addresses.
pub(super) struct Range {
    context: Arc<CudaContext>,
    pub address: u64,
    bytes: usize,
}

impl Range {
    /// Reserves addresses; `bytes` must be a multiple of [`granularity`]. That takes no memory.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let mut address = 0;
        context.bind_to_thread().map_err(device)?;
        // SAFETY: the address is written to a value of this function.
        unsafe { sys::cuMemAddressReserve(&raw mut address, bytes, 0, 0, 0) }.result().map_err(device)?;
        Ok(Self { context: context.clone(), address, bytes })
    }

    /// Maps memory to the addresses from `offset` on, which must be unmapped. The caller keeps the memory until it has
    /// unmapped the range.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub fn map(&self, offset: usize, memory: &Physical) -> Result<()> {
        let (at, bytes) = (self.address + offset as u64, memory.bytes);
        let access = CUmemAccessDesc {
            location: location(&self.context),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the addresses lie in this range, or the driver refuses them; the description is a value of this
        // function.
        unsafe {
            sys::cuMemMap(at, bytes, 0, memory.handle, 0).result().map_err(device)?;
            sys::cuMemSetAccess(at, bytes, &raw const access, 1).result().map_err(device)
        }
    }

    /// Unmaps the first `bytes`, all of which are mapped.
    ///
    /// # Safety
    /// Nothing that is enqueued may use them.
    ///
    /// # Errors
    /// Returns [`crate::Error::Device`] if the driver has failed.
    pub unsafe fn unmap(&self, bytes: usize) -> Result<()> {
        self.context.bind_to_thread().map_err(device)?;
        // SAFETY: the caller vouches for everything that could use the addresses.
        unsafe { sys::cuMemUnmap(self.address, bytes) }.result().map_err(device)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // A driver that fails here has failed for good, and the next call says so.
        let _ = self.context.bind_to_thread();
        // SAFETY: the addresses came from the driver, and their owner has unmapped them.
        let _ = unsafe { sys::cuMemAddressFree(self.address, self.bytes) };
    }
}
