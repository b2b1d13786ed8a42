//! Descriptions of matrices for the bulk tensor copies of Hopper.

use std::mem::MaybeUninit;

use cudarc::driver::{DeviceRepr, sys};

use super::Error;

/// A `CUtensorMap`, aligned as a kernel's parameter must be.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TensorMap(sys::CUtensorMap);

// SAFETY: an opaque structure that the driver defines for passing to kernels by value.
unsafe impl DeviceRepr for TensorMap {}

/// Element types of maps.
#[derive(Clone, Copy)]
pub(super) enum MapElement {
    U8,
    Bf16,
}

impl TensorMap {
    /// Returns a map of a tensor of `N` dimensions, the contiguous one first: `dims` in elements, `strides` in bytes
    /// (none for the first), boxes of `block` elements whose rows of 128 bytes are swizzled. Elements outside read as
    /// zero.
    pub(super) fn new<const N: usize>(
        element: MapElement,
        address: sys::CUdeviceptr,
        dims: [u64; N],
        strides: &[u64],
        block: [u32; N],
    ) -> Result<Self, Error> {
        Self::with_steps(element, address, dims, strides, block, [1; N])
    }

    /// Returns a map like that of [`Self::new`], but a box takes every `steps`th element along each dimension but the
    /// first: a box of `block` elements then has `block / steps`.
    pub(super) fn with_steps<const N: usize>(
        element: MapElement,
        address: sys::CUdeviceptr,
        dims: [u64; N],
        strides: &[u64],
        block: [u32; N],
        steps: [u32; N],
    ) -> Result<Self, Error> {
        debug_assert_eq!(strides.len() + 1, N);
        let element = match element {
            MapElement::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            MapElement::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let mut map = MaybeUninit::<Self>::uninit();
        // SAFETY: the driver writes the whole map, which is aligned to 64 bytes, and reads N (N - 1 for strides)
        // elements of each array; it does not touch the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr().cast(),
                element,
                N as u32,
                address as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                block.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()?;
            Ok(map.assume_init())
        }
    }
}
