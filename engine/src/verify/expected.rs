//! What the values of a tensor must be like, from what the tensor is for.
//!
//! The bounds are wide: training moves a tensor by a factor of a few, and a wrong format by a factor of hundreds. A
//! matrix that adds up `n` products starts with an rms of about `1 / sqrt(n)`, so that its results are as large as its
//! inputs; the product of rms and `sqrt(n)` is its gain.

use crate::weights::Component;

use super::statistics::Statistics;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear layer's or a convolution's weight.
    Matrix,
    /// A table whose rows or values are looked up, or added: embeddings, position biases.
    Table,
    /// The factors of a norm, which begin at 1.
    Norm,
    /// The shifts and scales to which the embedded time is added.
    Modulation,
    /// What is added to a layer's result, which may be zero.
    Bias,
}

/// The gains of matrices, from the least that still passes anything on to what no training reaches. A dropped scale of
/// 8-bit values multiplies the gain by the inverse of the scale, 100 to 5000; a scale that is applied twice divides by
/// as much.
const GAIN: [f64; 2] = [0.01, 64.0];
/// The gains of the text encoder, which is trained without weight decay at rates that follow the size of each matrix, and
/// whose queries hold the factor of attention.
const TEXT_GAIN: [f64; 2] = [0.003, 256.0];
/// The rms of the factors of a norm.
const NORM: [f64; 2] = [0.01, 100.0];
/// The rms of tables, which differ most.
const TABLE: [f64; 2] = [1e-5, 1e3];
const MODULATION: [f64; 2] = [1e-4, 30.0];
/// The greatest rms of biases.
const BIAS: f64 = 100.0;
/// The greatest magnitude of a matrix over the mean magnitude. Outliers of trained transformers reach some hundreds; a bit
/// that has flipped in an exponent gives a factor of 65536 or more.
const OUTLIER: f64 = 3000.0;
/// The values that are no numbers from which on more than memory or a disk has failed.
const FLIPPED: usize = 16;
/// The share of a tensor that may be zero in one stretch, and the least stretch that counts. 4-bit values are zero one
/// time in five: 64 of them in a row do not happen by chance.
const ZEROS: (usize, usize) = (64, 64);

impl Role {
    /// Returns what a tensor with this official name and shape is for.
    pub fn of(component: Component, name: &str, shape: &[usize]) -> Self {
        let last = name.rsplit('.').next().unwrap_or(name);
        let extents = shape.iter().filter(|extent| **extent > 1).count();
        match last {
            "modulation" => Self::Modulation,
            "gamma" => Self::Norm,
            "bias" => Self::Bias,
            "cls_embedding" | "pos_embedding" => Self::Table,
            _ if name.starts_with("token_embedding") || name.contains("pos_embedding") => Self::Table,
            _ if extents <= 1 && component != Component::Vae => Self::Norm,
            _ => Self::Matrix,
        }
    }

    /// Returns the bounds of the rms of a tensor with `inputs` values for each output.
    fn rms(self, component: Component, inputs: usize) -> [f64; 2] {
        match (self, component) {
            (Self::Matrix, Component::T5) => TEXT_GAIN.map(|gain| gain / (inputs as f64).sqrt()),
            (Self::Matrix, _) => GAIN.map(|gain| gain / (inputs as f64).sqrt()),
            (Self::Table, _) => TABLE,
            (Self::Norm, _) => NORM,
            (Self::Modulation, _) => MODULATION,
            (Self::Bias, _) => [0.0, BIAS],
        }
    }

    /// Returns what is wrong with a tensor of this role, as the end of a sentence that begins with its name.
    pub fn mistake(self, component: Component, shape: &[usize], found: &Statistics) -> Option<String> {
        let Statistics { count, not_finite, largest, .. } = *found;
        if not_finite > 0 {
            // A single one is a flipped bit; many are the exponents of bytes in another order.
            let how = if not_finite > FLIPPED { ", as with its bytes in another order" } else { "" };
            return Some(format!("has {not_finite} values of {count} that are infinite or no numbers{how}"));
        }
        let (rms, zeros) = (found.rms(), found.zeros());
        let inputs = shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>());
        let [least, most] = self.rms(component, inputs.max(1));
        // A layer that was never trained from zero has such weights, but no released file does.
        let can_be_zero = self == Self::Bias;
        if !can_be_zero && zeros == count {
            return Some("is all zeros".into());
        }
        if !can_be_zero && zeros > ZEROS.0.max(count / ZEROS.1) {
            return Some(format!(
                "has {zeros} zeros in a row, of {count} values, as a part that was not copied"
            ));
        }
        if rms > most {
            let how = if self == Self::Matrix {
                "as without its scale, with an inverted one, or with its bytes in another order"
            } else {
                "as with its bytes in another order"
            };
            return Some(format!(
                "is too large, {how}: its rms is {rms:.3e}, and at most {most:.1e} is plausible"
            ));
        }
        if rms < least {
            return Some(format!(
                "is too small, as with a scale that was applied twice: its rms is {rms:.3e}, and at least {least:.1e} is \
                 plausible"
            ));
        }
        if self == Self::Matrix && largest > OUTLIER * found.magnitude() {
            return Some(format!(
                "has values up to {largest:.3e} where the mean magnitude is {:.3e}, as no trained matrix has: it is damaged",
                found.magnitude()
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_known_by_their_names() {
        let role = |component, name: &str, shape: &[usize]| Role::of(component, name, shape);
        let dit = Component::Dit;
        assert_eq!(role(dit, "blocks.3.ffn.0.weight", &[64, 32]), Role::Matrix);
        assert_eq!(role(dit, "patch_embedding.weight", &[64, 36, 1, 2, 2]), Role::Matrix);
        assert_eq!(role(dit, "text_embedding.0.weight", &[64, 32]), Role::Matrix);
        assert_eq!(role(dit, "blocks.3.self_attn.norm_q.weight", &[64]), Role::Norm);
        assert_eq!(role(dit, "img_emb.proj.0.weight", &[64]), Role::Norm);
        assert_eq!(role(dit, "head.modulation", &[1, 2, 64]), Role::Modulation);
        assert_eq!(role(Component::T5, "blocks.0.pos_embedding.embedding.weight", &[32, 4]), Role::Table);
        assert_eq!(role(Component::T5, "token_embedding.weight", &[99, 4]), Role::Table);
        assert_eq!(role(Component::Clip, "visual.patch_embedding.weight", &[64, 3, 14, 14]), Role::Matrix);
        assert_eq!(role(Component::Clip, "visual.pos_embedding", &[1, 257, 64]), Role::Table);
        assert_eq!(role(Component::Vae, "conv1.weight", &[32, 32, 1, 1, 1]), Role::Matrix);
        assert_eq!(role(Component::Vae, "decoder.head.0.gamma", &[96, 1, 1, 1]), Role::Norm);
    }

    #[test]
    fn every_kind_of_mistake_has_its_words() {
        let shape = [256, 1024];
        let values = |f: &dyn Fn(usize) -> f32| {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(f).collect();
            Statistics::of_values(&values)
        };
        // About the size of a trained layer with 1024 inputs: a gain of 1.
        let sound = |i: usize| ((i * 7919 % 1000) as f32 / 500.0 - 0.999) * 0.054;
        let said = |f: &dyn Fn(usize) -> f32| Role::Matrix.mistake(Component::Dit, &shape, &values(f));
        assert_eq!(said(&sound), None);
        let expect = |f: &dyn Fn(usize) -> f32, words: &str| {
            let text = said(f).unwrap_or_default();
            assert!(text.contains(words), "{text:?} lacks {words:?}");
        };
        // A scale of 1/1000, not applied, applied twice, and inverted.
        expect(&|i| sound(i) * 1000.0, "without its scale");
        expect(&|i| sound(i) / 1000.0, "applied twice");
        expect(&|i| sound(i) * 1e6, "inverted");
        expect(&|i| if i == 77 { f32::NAN } else { sound(i) }, "has 1 values of");
        expect(&|_| 0.0, "all zeros");
        expect(&|i| if i > 200_000 { 0.0 } else { sound(i) }, "zeros in a row");
        expect(&|i| f32::from_bits(sound(i).to_bits().swap_bytes()), "bytes in another order");
        // The same size and a few values far away.
        expect(&|i| if i == 77 { 250.0 } else { sound(i) * 0.5 }, "damaged");
        // A bias may be zero.
        let zeros = Statistics::of_values(&[0.0; 512]);
        assert_eq!(Role::Bias.mistake(Component::Dit, &[512], &zeros), None);
        assert!(Role::Norm.mistake(Component::Dit, &[512], &zeros).is_some());
    }
}
