//! The fixture's expected values, and the account of which were compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One comparison.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Item {
    /// The tensor's name, or the path in `golden.json`.
    pub name: String,
    /// What the error is: `relative L2`, `absolute`, `equal` (0 or 1), `fraction` (of differing bytes), `not checked`.
    pub measure: &'static str,
    /// The error.
    pub error: f64,
    /// The largest error that passes.
    pub bound: f64,
    /// Whether the error is within the bound.
    pub ok: bool,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok { "ok" } else { "OUT OF BOUNDS" };
        if self.measure == "not checked" {
            return write!(f, "{:44} NOT CHECKED", self.name);
        }
        write!(
            f,
            "{:44} {:12} {:9.2e} <= {:8.1e}  {verdict}",
            self.name, self.measure, self.error, self.bound
        )
    }
}

/// A tensor of `golden.safetensors`.
pub struct Golden {
    /// Extents.
    pub shape: Vec<usize>,
    /// The stored type, by torch's name.
    pub dtype: &'static str,
    /// Its values; integers too, exactly (none is above 2^53).
    pub data: Vec<f64>,
}

impl Golden {
    /// Returns the values as f32.
    pub fn f32(&self) -> Vec<f32> {
        self.data.iter().map(|&v| v as f32).collect()
    }
}

/// `golden.json` and `golden.safetensors` of a directory.
pub struct Goldens {
    /// The directory.
    pub dir: PathBuf,
    /// `golden.json`.
    pub json: Value,
    tensors: BTreeMap<String, Golden>,
    done: BTreeSet<String>,
    items: Vec<Item>,
}

/// Tables of `golden.json` that say how the fixture was made: inputs, not results. `tensors` is compared as a whole.
const INPUTS: [&str; 2] = ["fixture/", "spec/"];
/// Texts of `golden.json` that describe another item in words.
const NOTES: [&str; 6] =
    ["t5_rel_bucket", "unipc/toy", "dit/context_text", "rope/token_order", "rope/pairs", "randn/note"];

impl Goldens {
    /// Reads both files.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::named(dir, "golden")
    }

    /// Reads `layouts.json` and `layouts.safetensors`.
    pub fn of_layouts(dir: &Path) -> Result<Self> {
        Self::named(dir, "layouts")
    }

    fn named(dir: &Path, stem: &str) -> Result<Self> {
        let (list, tensors) = (format!("{stem}.json"), format!("{stem}.safetensors"));
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))
        };
        let json: Value = serde_json::from_slice(&read(&list)?).context(list)?;
        let bytes = read(&tensors)?;
        let file = SafeTensors::deserialize(&bytes).context(tensors)?;
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let (dtype, data) = values(view.dtype(), view.data()).with_context(|| name.to_owned())?;
                Ok((name.to_owned(), Golden { shape: view.shape().to_vec(), dtype, data }))
            })
            .collect::<Result<_>>()?;
        Ok(Self { dir: dir.to_owned(), json, tensors, done: BTreeSet::new(), items: Vec::new() })
    }

    /// Returns a tensor, as an input or for the caller's own comparison. It does not count as checked.
    pub fn get(&self, name: &str) -> Result<&Golden> {
        self.tensors.get(name).ok_or_else(|| anyhow!("golden.safetensors has no `{name}`"))
    }

    /// Returns whether the tensor exists.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the names of all tensors that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter(|n| n.starts_with(prefix)).cloned().collect()
    }

    /// Returns a tensor that other items are computed from, and counts it as an input.
    pub fn input(&mut self, name: &str) -> Result<&Golden> {
        self.done.insert(name.to_owned());
        self.get(name)
    }

    /// Checks the relative L2 error of `actual` against the tensor.
    pub fn relative(&mut self, name: &str, actual: &[f32], bound: f64) -> Result<()> {
        let error = relative(actual, &self.expect(name, actual.len())?.data);
        self.note(name, "relative L2", error, bound);
        Ok(())
    }

    /// Checks the largest difference of `actual` from the tensor.
    pub fn absolute(&mut self, name: &str, actual: &[f32], bound: f64) -> Result<()> {
        let golden = &self.expect(name, actual.len())?.data;
        let worst = |worst: f64, (&a, &g): (&f32, &f64)| worst.max((f64::from(a) - g).abs());
        let error = if actual.iter().any(|v| v.is_nan()) {
            f64::INFINITY
        } else {
            actual.iter().zip(golden).fold(0.0, worst)
        };
        self.note(name, "absolute", error, bound);
        Ok(())
    }

    /// Checks that integers are equal to the tensor.
    pub fn equal(&mut self, name: &str, actual: &[i64]) -> Result<()> {
        let golden = &self.get(name)?.data;
        let same = golden.len() == actual.len() && golden.iter().zip(actual).all(|(&g, &a)| g == a as f64);
        self.note(name, "equal", if same { 0.0 } else { 1.0 }, 0.0);
        Ok(())
    }

    /// Checks the fraction of bytes that differ, none by more than one.
    pub fn frames(&mut self, name: &str, actual: &[u8], bound: f64) -> Result<()> {
        let golden = &self.expect(name, actual.len())?.data;
        let differ = |(&a, &g): (&u8, &f64)| (f64::from(a) - g).abs();
        let error = if actual.iter().zip(golden).map(differ).any(|d| d > 1.0) {
            1.0
        } else {
            actual.iter().zip(golden).filter(|&pair| differ(pair) > 0.0).count() as f64 / golden.len() as f64
        };
        self.note(name, "fraction", error, bound);
        Ok(())
    }

    /// Checks a fact of `golden.json` at `path` against what the engine says.
    pub fn fact(&mut self, path: &str, actual: impl Into<Value>) -> Result<()> {
        let same = *self.at(path)? == actual.into();
        self.note(path, "equal", if same { 0.0 } else { 1.0 }, 0.0);
        Ok(())
    }

    /// Checks a number of `golden.json` at `path`, by relative difference.
    pub fn number(&mut self, path: &str, actual: f64, bound: f64) -> Result<()> {
        let golden = self.at(path)?.as_f64().with_context(|| format!("`{path}` is no number"))?;
        let error = (actual - golden).abs() / golden.abs().max(f64::MIN_POSITIVE);
        self.note(path, "relative", if golden == actual { 0.0 } else { error }, bound);
        Ok(())
    }

    /// Checks numbers of `golden.json` at `path` (null: none), by largest difference.
    pub fn numbers(&mut self, path: &str, actual: &[Option<f64>], bound: f64) -> Result<()> {
        let golden = self.at(path)?.as_array().with_context(|| format!("`{path}` is no list"))?;
        let mut error = if golden.len() == actual.len() { 0.0_f64 } else { f64::INFINITY };
        for (golden, actual) in golden.iter().zip(actual) {
            error = error.max(match (golden.as_f64(), actual) {
                (Some(g), Some(a)) => (g - a).abs(),
                (None, None) => 0.0,
                _ => f64::INFINITY,
            });
        }
        self.note(path, "absolute", error, bound);
        Ok(())
    }

    /// Returns a value of `golden.json` that the check takes as its input.
    pub fn given(&mut self, path: &str) -> Result<&Value> {
        self.done.insert(path.to_owned());
        self.at(path)
    }

    /// Returns a tensor that the check takes as its input, or that says what another program does.
    pub fn taken(&mut self, name: &str) -> Result<&Golden> {
        self.done.insert(name.to_owned());
        self.get(name)
    }

    /// Checks a number of `golden.json` at `path`, by difference.
    pub fn near(&mut self, path: &str, actual: f64, bound: f64) -> Result<()> {
        let golden = self.real(path)?;
        self.note(path, "absolute", (actual - golden).abs(), bound);
        Ok(())
    }

    /// Returns the value at a path such as `clip/0/file`.
    pub fn at(&self, path: &str) -> Result<&Value> {
        path.split('/')
            .try_fold(&self.json, |value, key| match value {
                Value::Array(list) => key.parse::<usize>().ok().and_then(|i| list.get(i)),
                _ => value.get(key),
            })
            .ok_or_else(|| anyhow!("golden.json has no `{path}`"))
    }

    /// Returns an unsigned number at a path.
    pub fn count(&self, path: &str) -> Result<usize> {
        self.at(path)?.as_u64().map(|n| n as usize).with_context(|| format!("`{path}` is no count"))
    }

    /// Returns a number at a path.
    pub fn real(&self, path: &str) -> Result<f64> {
        self.at(path)?.as_f64().with_context(|| format!("`{path}` is no number"))
    }

    /// Returns a text at a path.
    pub fn text(&self, path: &str) -> Result<&str> {
        self.at(path)?.as_str().with_context(|| format!("`{path}` is no text"))
    }

    /// Returns how many elements the list at a path has.
    pub fn len(&self, path: &str) -> Result<usize> {
        self.at(path)?.as_array().map(Vec::len).with_context(|| format!("`{path}` is no list"))
    }

    fn expect(&self, name: &str, len: usize) -> Result<&Golden> {
        let golden = self.get(name)?;
        if golden.data.len() != len {
            bail!("`{name}` has {} values {:?}, the engine gave {len}", golden.data.len(), golden.shape);
        }
        Ok(golden)
    }

    fn note(&mut self, name: &str, measure: &'static str, error: f64, bound: f64) {
        self.done.insert(name.to_owned());
        // A NaN is not within any bound.
        self.items.push(Item { name: name.to_owned(), measure, error, bound, ok: error <= bound });
    }

    /// Returns all items, including those that were not compared.
    pub fn finish(mut self) -> Vec<Item> {
        let mut leaves = Vec::new();
        collect(&self.json, String::new(), &mut leaves);
        let listed = self.json["tensors"].clone();
        for (name, golden) in &self.tensors {
            let shape = serde_json::json!(golden.shape);
            let ok = listed[name]["shape"] == shape && listed[name]["dtype"] == golden.dtype;
            let name = format!("tensors/{name}");
            self.done.insert(name.clone());
            self.items.push(Item {
                name,
                measure: "equal",
                error: if ok { 0.0 } else { 1.0 },
                bound: 0.0,
                ok,
            });
        }
        let checked = |name: &str| {
            // A list or table that was compared whole has its leaves compared.
            let whole = name.match_indices('/').any(|(i, _)| self.done.contains(&name[..i]));
            let described = NOTES.contains(&name) || INPUTS.iter().any(|table| name.starts_with(table));
            // The last layer of CLIP is never run.
            let unused = name.ends_with("/last_layer_rel_change");
            whole || described || unused || self.done.contains(name)
        };
        let missing: Vec<String> =
            self.tensors.keys().chain(&leaves).filter(|n| !checked(n)).cloned().collect();
        let unchecked =
            |name| Item { name, measure: "not checked", error: f64::INFINITY, bound: 0.0, ok: false };
        self.items.extend(missing.into_iter().map(unchecked));
        self.items
    }
}

/// Returns |a - g| / |g| in f64; infinite if any value is not a number.
pub fn relative(actual: &[f32], golden: &[f64]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &g) in actual.iter().zip(golden) {
        difference += (f64::from(a) - g).powi(2);
        norm += g * g;
    }
    let error = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Returns the standard deviation as torch computes it, with n - 1.
pub fn std(data: &[f32]) -> f64 {
    let n = data.len() as f64;
    let mean = data.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (data.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

fn collect(value: &Value, path: String, leaves: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}/{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| collect(v, join(k), leaves)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| collect(v, join(&i.to_string()), leaves));
        }
        _ => leaves.push(path),
    }
}

fn values(dtype: Dtype, bytes: &[u8]) -> Result<(&'static str, Vec<f64>)> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect()
    }
    Ok(match dtype {
        Dtype::F32 => ("float32", each(bytes, |b| f64::from(f32::from_le_bytes(b)))),
        Dtype::F64 => ("float64", each(bytes, f64::from_le_bytes)),
        Dtype::I32 => ("int32", each(bytes, |b| f64::from(i32::from_le_bytes(b)))),
        Dtype::I64 => ("int64", each(bytes, |b| i64::from_le_bytes(b) as f64)),
        Dtype::U8 => ("uint8", each::<1>(bytes, |b| f64::from(b[0]))),
        other => bail!("type {other:?} is not known"),
    })
}
