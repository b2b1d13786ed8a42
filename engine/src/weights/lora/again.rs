//! What it costs that a quantised weight is expanded, changed, and rounded once more.

use animd_protocol::plan::network::ROTATED;
use animd_protocol::profile::Precision;

use super::Merged;
use crate::Result;
use crate::weights::{Encoding, WeightSource, e4m3, rounding};

/// The rows of a weight that are looked at: enough for a figure, and few enough to take no time.
const ROWS: usize = 64;

/// A weight that was quantised in its file, and is again on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundedAgain {
    /// The weight's official name.
    pub name: String,
    /// How its file stores it.
    pub stored: Encoding,
    /// The distance between the rounded and the changed values, relative to these: the root of the mean square.
    pub error: f64,
}

impl<S: WeightSource> Merged<S> {
    /// Returns what rounding once more costs at the first weight that a `LoRA` changes, if it is stored in 8 bits or fewer and the
    /// device rounds it again.
    ///
    /// # Errors
    /// The errors of reading the weight.
    pub fn rounded_again(&self, precision: Precision) -> Result<Option<RoundedAgain>> {
        let products = self.loras.iter().flat_map(|(lora, _)| &lora.changes);
        let name = products.filter(|(_, change)| change.product.is_some()).map(|(name, _)| name).min();
        let Some(name) = name else { return Ok(None) };
        let matrix = self.exact.matrix(name)?;
        if matrix.encoding.is_plain() || matrix.rows == 0 {
            return Ok(None);
        }
        let rows = ROWS.min(matrix.rows);
        let mut values = matrix.part(0, rows).to_f32();
        for (_, change, strength) in self.changes(name) {
            match change.low_rank(strength)? {
                Some(product) => product.add_to(&mut values, 0),
                // The whole matrix may be needed for a part of it.
                None => {
                    values = self.matrix(name)?.part(0, rows).to_f32();
                    break;
                }
            }
        }
        let (mut off, mut all) = (0.0, 0.0);
        for row in values.chunks_mut(matrix.cols.max(1)) {
            all += row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            off += match precision {
                Precision::Fp8 => off_in_fp8(row),
                Precision::Int8 if row.len().is_multiple_of(ROTATED) => off_in_int8(row),
                _ => return Ok(None),
            };
        }
        let error = if all > 0.0 { (off / all).sqrt() } else { 0.0 };
        Ok(Some(RoundedAgain { name: name.clone(), stored: matrix.encoding, error }))
    }
}

/// Returns the sum of the squares by which a row is off in e4m3 with a scale.
fn off_in_fp8(row: &[f32]) -> f64 {
    let mut codes = vec![0; row.len()];
    let scale = rounding::to_e4m3(row, &mut codes);
    row.iter().zip(codes).map(|(value, code)| f64::from(e4m3::decode(code) * scale - value).powi(2)).sum()
}

/// Returns the sum of the squares by which a rotated row is off in int8 with a scale; turned back it is off as far.
fn off_in_int8(row: &mut [f32]) -> f64 {
    let mut rotated = row.to_vec();
    rounding::rotate(&mut rotated, ROTATED);
    let scale = rounding::to_int8(row);
    // The rotation makes rows longer by the root of a group, and the scale takes that back.
    let length = (ROTATED as f32).sqrt();
    rotated.iter().zip(row).map(|(value, code)| f64::from(*code * scale - value / length).powi(2)).sum()
}
