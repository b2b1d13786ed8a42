//! Launchers of copies from any layout to any other.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, PushKernelArg};
use std::cmp::Reverse;

use super::module::{fatbin, load_all};
use super::norms::grid;
use super::rows::refuse;
use super::{Card, Element, Error};

const THREADS: usize = 256;

/// A tensor of up to four axes in device memory, with any strides.
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// Device address of the first element, a multiple of the element's size.
    pub address: CUdeviceptr,
    /// The type of the elements: bf16 or f32.
    pub element: Element,
    /// Elements from one to the next along each axis.
    pub strides: [usize; 4],
}

/// The kernel's argument: `Layout` of `copy.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawLayout {
    extents: [i64; 4],
    from: [i64; 4],
    to: [i64; 4],
}

// SAFETY: plain numbers in the layout of the kernel's structure.
unsafe impl DeviceRepr for RawLayout {}

/// Copies, loaded for one GPU.
#[derive(Debug)]
pub struct Copies {
    /// The kernels from bf16 to bf16 and to f32, then those from f32 to bf16 and to f32.
    functions: [CudaFunction; 4],
}

impl Copies {
    /// Loads the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] if the driver cannot load them.
    pub fn load(card: &Card) -> Result<Self, Error> {
        let names = ["copy_bf16_bf16", "copy_bf16_f32", "copy_f32_bf16", "copy_f32_f32"];
        Ok(Self { functions: load_all(card, fatbin!("any", "copy"), names, 0)? })
    }

    /// Enqueues the copy of `extents` elements, with conversion where the types differ.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for types, addresses and extents of nothing, [`Error::Driver`] if the launch fails.
    ///
    /// # Safety
    ///
    /// All elements must lie in memory of the stream's GPU until the stream has passed this launch, those of `to` without
    /// overlapping each other or `from`, and nothing else may write to them meanwhile.
    pub unsafe fn run(
        &self,
        stream: &CudaStream,
        from: Strided,
        to: Strided,
        extents: [usize; 4],
    ) -> Result<(), Error> {
        const KERNEL: &str = "copy";
        for (name, x) in [("from", from), ("to", to)] {
            let aligned = x.address != 0 && x.address.is_multiple_of(x.element.bytes() as u64);
            if x.element.bytes() == 1 || !aligned {
                return refuse(KERNEL, name, format!("{:?} at {:#x}", x.element, x.address));
            }
        }
        let elements: usize = extents.iter().product();
        if elements == 0 || elements.div_ceil(THREADS) > i32::MAX as usize {
            return refuse(KERNEL, "extents", format!("{extents:?}"));
        }
        // Neighbouring threads write neighbouring elements.
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&axis| Reverse(if extents[axis] == 1 { usize::MAX } else { to.strides[axis] }));
        let layout = RawLayout {
            extents: order.map(|axis| extents[axis] as i64),
            from: order.map(|axis| from.strides[axis] as i64),
            to: order.map(|axis| to.strides[axis] as i64),
        };
        let number = |element| usize::from(element == Element::F32);
        let total = elements as i64;
        let mut launch =
            stream.launch_builder(&self.functions[2 * number(from.element) + number(to.element)]);
        launch.arg(&from.address).arg(&to.address).arg(&layout).arg(&total);
        // SAFETY: the arguments are those of the kernel's signature; the caller vouches for the memory.
        unsafe { launch.launch(grid(elements.div_ceil(THREADS), 1, THREADS as u32))? };
        Ok(())
    }
}
