//! The names of the causal VAE's tensors.

use super::{DIFFUSERS as LAYOUT, Naming, OFFICIAL as RELEASED, Place, any, numbered};
use crate::weights::Component;

pub(super) static OFFICIAL: Naming = Naming {
    component: Component::Vae,
    layout: RELEASED,
    recognises: |tensors| {
        any(tensors, |n| n.starts_with("decoder.upsamples.") && !n.contains(".upsamples.0.upsamples."))
    },
    place: |name| Place::whole(name),
};

pub(super) static DIFFUSERS: Naming = Naming {
    component: Component::Vae,
    layout: LAYOUT,
    recognises: |tensors| {
        any(tensors, |n| n == "decoder.norm_out.gamma")
            && any(tensors, |n| n.starts_with("decoder.up_blocks."))
    },
    place: |name| Place::whole(released(name).unwrap_or_else(|| name.to_owned())),
};

/// The parts of a residual block.
const RESIDUAL: [(&str, &str); 5] = [
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
];

/// Returns the official name of a tensor that diffusers names.
fn released(name: &str) -> Option<String> {
    for (theirs, ours) in [("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")] {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Some(format!("{ours}{rest}"));
        }
    }
    let (side, rest) = name.split_once('.')?;
    for (theirs, ours) in [("conv_in.", "conv1."), ("norm_out.", "head.0."), ("conv_out.", "head.2.")] {
        if let Some(rest) = rest.strip_prefix(theirs) {
            return Some(format!("{side}.{ours}{rest}"));
        }
    }
    if let Some(rest) = rest.strip_prefix("mid_block.attentions.0.") {
        return Some(format!("{side}.middle.1.{rest}"));
    }
    if let Some((number, rest)) = numbered(rest, "mid_block.resnets.") {
        return Some(format!("{side}.middle.{}.{}", number.checked_mul(2)?, residual(rest)?));
    }
    if let Some((number, rest)) = numbered(rest, "down_blocks.") {
        // A step between resolutions keeps its names.
        let rest = residual(rest).unwrap_or_else(|| rest.to_owned());
        return Some(format!("{side}.downsamples.{number}.{rest}"));
    }
    let (stage, rest) = numbered(rest, "up_blocks.")?;
    // A stage has three residual blocks, and then the step to the next resolution.
    let first = stage.checked_mul(4)?;
    if let Some(rest) = rest.strip_prefix("upsamplers.0.") {
        return Some(format!("{side}.upsamples.{}.{rest}", first.checked_add(3)?));
    }
    let (number, rest) = numbered(rest, "resnets.")?;
    Some(format!("{side}.upsamples.{}.{}", first.checked_add(number)?, residual(rest)?))
}

fn residual(rest: &str) -> Option<String> {
    RESIDUAL.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", rest.strip_prefix(theirs)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_diffusers_become_official_ones() {
        for (theirs, ours) in [
            ("quant_conv.weight", "conv1.weight"),
            ("post_quant_conv.bias", "conv2.bias"),
            ("encoder.conv_in.weight", "encoder.conv1.weight"),
            ("decoder.norm_out.gamma", "decoder.head.0.gamma"),
            ("encoder.mid_block.resnets.1.conv2.bias", "encoder.middle.2.residual.6.bias"),
            ("decoder.mid_block.attentions.0.to_qkv.weight", "decoder.middle.1.to_qkv.weight"),
            ("encoder.down_blocks.2.resample.1.weight", "encoder.downsamples.2.resample.1.weight"),
            ("encoder.down_blocks.3.conv_shortcut.weight", "encoder.downsamples.3.shortcut.weight"),
            ("decoder.up_blocks.1.upsamplers.0.time_conv.bias", "decoder.upsamples.7.time_conv.bias"),
            ("decoder.up_blocks.2.resnets.1.norm1.gamma", "decoder.upsamples.9.residual.0.gamma"),
        ] {
            assert_eq!(released(theirs).as_deref(), Some(ours));
        }
        assert_eq!(released("decoder.up_blocks.18446744073709551615.resnets.0.norm1.gamma"), None);
        assert_eq!(released("decoder.mid_block.resnets.9223372036854775808.norm1.gamma"), None);
    }
}
