//! The results of the reference implementation, for the unit tests.
//!
//! `ANIMD_FIXTURE` names a folder to compare with instead of `tests/fixtures/tiny-a`.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::backend::TensorOps;
use crate::backend::cpu::Cpu;

type Tensor = <Cpu as TensorOps>::Tensor;

/// Returns the path of a file or folder in `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Returns the tiny model's folder.
pub fn folder() -> PathBuf {
    std::env::var_os("ANIMD_FIXTURE").map_or_else(|| fixture("tiny-a"), PathBuf::from)
}

/// Reads a JSON file.
pub fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).expect("the fixture is JSON")
}

/// The tensors of a reference result, and its other values.
pub struct Golden {
    /// The values that are not tensors.
    pub json: Value,
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads the tiny model's results.
    pub fn open() -> Self {
        Self::read(&folder().join("golden"))
    }

    /// Reads `PATH.safetensors` and `PATH.json`.
    pub fn read(path: &Path) -> Self {
        let bytes =
            std::fs::read(path.with_extension("safetensors")).expect("the fixture is in the repository");
        Self { json: json(&path.with_extension("json")), bytes }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a valid file")
    }

    /// Returns the names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.file().names().into_iter().map(str::to_owned).collect()
    }

    /// Returns a tensor's values as they are stored.
    pub fn values<T: bytemuck::Pod>(&self, name: &str) -> Vec<T> {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(view.dtype().bitsize(), 8 * size_of::<T>(), "{name} is {:?}", view.dtype());
        bytemuck::pod_collect_to_vec(view.data())
    }

    /// Returns a tensor's extents.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }

    /// Returns a tensor of f32.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.values(name)
    }

    /// Returns a tensor of i64.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        self.values(name)
    }

    /// Returns a tensor of numbers of any type as f64.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        match self.file().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).dtype() {
            Dtype::F64 => self.values(name),
            Dtype::F32 => self.f32(name).into_iter().map(f64::from).collect(),
            Dtype::I32 => self.values::<i32>(name).into_iter().map(f64::from).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// Uploads a tensor to the CPU backend.
    pub fn upload(&self, name: &str) -> Tensor {
        let values: Vec<f32> = self.numbers(name).iter().map(|v| *v as f32).collect();
        Cpu::new().upload(&values, &self.shape(name)).expect("as many values as the shape says")
    }

    /// Asserts that `got` is within a relative L2 distance of a tensor.
    #[track_caller]
    pub fn compare(&self, name: &str, got: &[f32], tolerance: f64) {
        let want = self.numbers(name);
        assert_eq!(got.len(), want.len(), "{name}");
        let square = |v: f64| v * v;
        let distance: f64 = got.iter().zip(&want).map(|(g, w)| square(f64::from(*g) - w)).sum();
        let distance = (distance / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt();
        println!("{name:32} {distance:.1e}");
        assert!(distance <= tolerance, "{name} is {distance:.1e} away, {tolerance:.0e} allowed");
    }

    /// Asserts that every value is within an absolute distance of a tensor's value.
    #[track_caller]
    pub fn compare_each(&self, name: &str, got: impl IntoIterator<Item = f64>, tolerance: f64) {
        let want = self.numbers(name);
        let got: Vec<f64> = got.into_iter().collect();
        assert_eq!(got.len(), want.len(), "{name}");
        let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        println!("{name:32} {worst:.1e} absolute");
        assert!(worst <= tolerance, "{name} is up to {worst:.1e} away, {tolerance:.0e} allowed");
    }
}
