//! Every layout of model files: a directory with `layouts.json`, which lists tiny files with what they hold, and
//! `layouts.safetensors`, which has the expected values. The files lie beside them, or in pieces of one `pool.bin`.

mod dit;
mod encoders;
pub mod files;
mod folders;
mod lora;
mod wrong;

use std::collections::BTreeMap;
use std::path::Path;

use animd_engine::weights::WeightSource;
use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

use super::goldens::relative;
use super::{Goldens, Item};
use files::Files;

/// A file or folder of the directory, and what is known of it.
#[derive(Deserialize)]
struct Entry {
    id: String,
    path: String,
    component: String,
    /// The model that a transformer belongs to: `2.1`, `2.2-high`, `2.2-low`.
    model: Option<String>,
    family: Option<String>,
    /// The name of the forward's expected result.
    forward: Option<String>,
    /// The same of the two transformers of a folder of diffusers.
    forward_high: Option<String>,
    forward_low: Option<String>,
    /// Tensors whose values are known.
    #[serde(default)]
    goldens: BTreeMap<String, Golden>,
    /// The entry that holds the same network in the released layout.
    same_as: Option<String>,
    exact: Option<bool>,
    worst_rel_l2_of_a_tensor: Option<f64>,
    /// The transformers of a folder.
    dit: Option<Value>,
    /// The number of tensors that a `LoRA` changes.
    merged_tensors: Option<usize>,
    /// Why an adapter is not to be read, which begins with its kind.
    refuse: Option<String>,
}

/// What is known of a tensor: all of it, or some rows and the sums over its rows and columns.
#[derive(Deserialize)]
struct Golden {
    #[serde(default)]
    whole: bool,
    rows: Option<Vec<usize>>,
}

/// What the checks of all entries share.
struct Checks {
    goldens: Goldens,
    files: Files,
    entries: Vec<Entry>,
    items: Vec<Item>,
}

/// The error that f32 arithmetic in another order may have in a tensor's values: a sum of 256 products, and its factor.
const VALUES: f64 = 1e-6;

/// Checks every entry and returns one [`Item`] for each thing that is known of it.
///
/// # Errors
/// If the directory cannot be read.
pub fn run(dir: &Path) -> Result<Vec<Item>> {
    #[derive(Deserialize)]
    struct List {
        entries: Vec<Entry>,
    }
    let list = std::fs::read(dir.join("layouts.json")).context("cannot read `layouts.json`")?;
    let List { entries } = serde_json::from_slice(&list).context("layouts.json")?;
    let goldens = Goldens::of_layouts(dir)?;
    let files = Files::open(dir, &list)?;
    let mut checks = Checks { goldens, files, entries, items: Vec::new() };
    for index in 0..checks.entries.len() {
        checks.entry(index);
    }
    Ok(checks.items)
}

impl Checks {
    /// Checks one entry. A file that should be read and is not is an item that is out of bounds.
    fn entry(&mut self, index: usize) {
        let entry = &self.entries[index];
        let (id, component) = (entry.id.clone(), entry.component.clone());
        let result = match component.as_str() {
            "dit" => self.dit(index),
            "t5" | "clip" | "vae" => self.encoder(index),
            "folder" => self.folder(index),
            "lora" => self.lora(index),
            "wrong" => self.wrong(index),
            other => Err(anyhow!("a component `{other}` that is not known")),
        };
        if let Err(e) = result {
            self.note(&format!("{id}: {e:#}"), "read", f64::INFINITY, 0.0);
        }
    }

    fn note(&mut self, name: &str, measure: &'static str, error: f64, bound: f64) {
        self.items.push(Item { name: name.to_owned(), measure, error, bound, ok: error <= bound });
    }

    /// Notes whether something that is either so or not is so.
    fn fact(&mut self, name: &str, so: bool) {
        self.note(name, "equal", if so { 0.0 } else { 1.0 }, 0.0);
    }

    /// Compares a network's tensors with what is known of them.
    fn values(&mut self, index: usize, source: &dyn WeightSource) -> Result<()> {
        let entry = &self.entries[index];
        let mut notes = Vec::new();
        for (tensor, Golden { whole, rows }) in &entry.goldens {
            let matrix = source.matrix(tensor)?;
            let (values, cols) = (matrix.to_f32(), matrix.cols);
            let name = format!("{}.{tensor}", entry.id);
            if *whole {
                notes.push((name.clone(), relative(&values, &self.goldens.get(&name)?.data)));
            }
            let Some(rows) = rows else { continue };
            let some: Vec<f32> = rows
                .iter()
                .map(|row| values.get(row * cols..(row + 1) * cols).context("a row that is not there"))
                .collect::<Result<Vec<_>>>()?
                .concat();
            let by_row: Vec<f32> = values.chunks(cols).map(sum).collect();
            let by_col: Vec<f32> = (0..cols)
                .map(|col| sum(&values[col..].iter().step_by(cols).copied().collect::<Vec<_>>()))
                .collect();
            // The sums are close to zero among much larger values, so that they are compared with these.
            let scale = (cols as f64).sqrt();
            for (part, actual, scale) in
                [("rows", some, 1.0), ("row_sums", by_row, scale), ("col_sums", by_col, scale)]
            {
                let name = format!("{name}.{part}");
                if self.goldens.has(&name) {
                    notes.push((name.clone(), relative(&actual, &self.goldens.get(&name)?.data) / scale));
                }
            }
        }
        for (name, error) in notes {
            self.note(&name, "relative L2", error, VALUES);
        }
        Ok(())
    }

    /// Returns the index of the entry with this name.
    fn find(&self, id: &str) -> Result<usize> {
        match self.entries.iter().position(|entry| entry.id == id) {
            Some(index) => Ok(index),
            None => bail!("there is no entry `{id}`"),
        }
    }
}

fn sum(values: &[f32]) -> f32 {
    values.iter().map(|v| f64::from(*v)).sum::<f64>() as f32
}
