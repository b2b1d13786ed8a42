//! Writes results to files, for comparisons with other implementations.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::backend::TensorOps;
use crate::{Error, Result};

/// A folder for results, or `None` if results are not written.
pub struct Outputs(Option<PathBuf>);

impl Outputs {
    /// Creates the folder and returns the outputs that go into it.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be created.
    pub fn into(folder: Option<PathBuf>) -> Result<Self> {
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        Ok(Self(folder))
    }

    /// Returns whether results are written.
    pub fn wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Writes tensors as `NAME.safetensors`, in f32.
    pub fn save<B: TensorOps>(&self, name: &str, tensors: &[(&str, &B, &B::Tensor)]) -> Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let path = folder.join(format!("{name}.safetensors"));
        let (mut header, mut all, mut end) = (Map::new(), Vec::new(), 0);
        for (name, b, tensor) in tensors {
            let (values, from) = (b.download(tensor)?, end);
            end += 4 * values.len();
            header.insert(
                (*name).to_owned(),
                json!({"dtype": "F32", "shape": b.shape(tensor), "data_offsets": [from, end]}),
            );
            all.push(values);
        }
        let mut header = Value::Object(header).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            for values in &all {
                for value in values {
                    file.write_all(&value.to_le_bytes())?;
                }
            }
            file.flush()
        };
        write().map_err(Error::file("write", &path))
    }
}
