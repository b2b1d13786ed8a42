//! The names of the diffusion transformer's tensors.

use super::{DIFFUSERS as LAYOUT, Naming, OFFICIAL as RELEASED, Place, any};
use crate::weights::Component;

pub(super) static OFFICIAL: Naming = Naming {
    component: Component::Dit,
    layout: RELEASED,
    recognises: |tensors| {
        any(tensors, |n| {
            ["self_attn.q.weight", "self_attn.q.int8_weight", "time_projection.1.weight"]
                .iter()
                .any(|end| n.ends_with(end))
        })
    },
    place: |name| Place::whole(name),
};

pub(super) static DIFFUSERS: Naming = Naming {
    component: Component::Dit,
    layout: LAYOUT,
    recognises: |tensors| {
        any(tensors, |n| n.ends_with("scale_shift_table"))
            && any(tensors, |n| n.contains("condition_embedder.") || n.contains(".attn2.to_q."))
    },
    place: |name| Place::whole(released(name)),
};

/// The layers outside of the blocks: diffusers' names, and the official ones.
const AROUND: [(&str, &str); 11] = [
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("proj_out.", "head.head."),
];

/// The layers within a block's part.
const WITHIN: [(&str, &str); 11] = [
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "o."),
    ("add_k_proj.", "k_img."),
    ("add_v_proj.", "v_img."),
    ("norm_added_k.", "norm_k_img."),
    ("norm_q.", "norm_q."),
    ("norm_k.", "norm_k."),
    ("net.0.proj.", "0."),
    ("net.2.", "2."),
];

/// Returns the name that diffusers gives a layer of this official name, without the ending of a tensor.
pub(in crate::weights) fn in_diffusers(layer: &str) -> String {
    let theirs = |official: &str, pairs: &[(&str, &str)]| {
        let dotted = format!("{official}.");
        let found = pairs.iter().find(|(_, ours)| *ours == dotted);
        found.map(|(theirs, _)| theirs.trim_end_matches('.').to_owned())
    };
    let within = || {
        let (number, rest) = layer.strip_prefix("blocks.")?.split_once('.')?;
        let (part, inner) = rest.split_once('.').unwrap_or((rest, ""));
        let part = match part {
            "modulation" => return Some(format!("blocks.{number}.scale_shift_table")),
            "norm3" => return Some(format!("blocks.{number}.norm2")),
            "self_attn" => "attn1",
            "cross_attn" => "attn2",
            part => part,
        };
        Some(format!("blocks.{number}.{part}.{}", theirs(inner, &WITHIN)?))
    };
    match layer {
        "head.modulation" => "scale_shift_table".to_owned(),
        _ => within().or_else(|| theirs(layer, &AROUND)).unwrap_or_else(|| layer.to_owned()),
    }
}

/// Returns the official name of a tensor that diffusers names; a name of no layer stays as it is.
fn released(name: &str) -> String {
    in_block(name).or_else(|| around(name)).unwrap_or_else(|| name.to_owned())
}

fn around(name: &str) -> Option<String> {
    if name == "scale_shift_table" {
        return Some("head.modulation".to_owned());
    }
    AROUND.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
}

fn in_block(name: &str) -> Option<String> {
    let (number, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let (part, layer) = rest.split_once('.').unwrap_or((rest, ""));
    let part = match part {
        "scale_shift_table" => return Some(format!("blocks.{number}.modulation")),
        "norm2" => return Some(format!("blocks.{number}.norm3.{layer}")),
        "attn1" => "self_attn",
        "attn2" => "cross_attn",
        "ffn" => "ffn",
        _ => return None,
    };
    let layer =
        WITHIN.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", layer.strip_prefix(theirs)?)))?;
    Some(format!("blocks.{number}.{part}.{layer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_diffusers_become_official_ones() {
        for (theirs, ours) in [
            ("patch_embedding.weight", "patch_embedding.weight"),
            ("scale_shift_table", "head.modulation"),
            ("proj_out.bias", "head.head.bias"),
            ("condition_embedder.time_proj.weight", "time_projection.1.weight"),
            ("condition_embedder.image_embedder.ff.net.0.proj.weight", "img_emb.proj.1.weight"),
            ("blocks.11.scale_shift_table", "blocks.11.modulation"),
            ("blocks.0.norm2.weight", "blocks.0.norm3.weight"),
            ("blocks.0.attn1.to_out.0.bias", "blocks.0.self_attn.o.bias"),
            ("blocks.0.attn2.add_k_proj.weight", "blocks.0.cross_attn.k_img.weight"),
            ("blocks.0.attn2.norm_added_k.weight", "blocks.0.cross_attn.norm_k_img.weight"),
            ("blocks.3.ffn.net.0.proj.weight", "blocks.3.ffn.0.weight"),
            ("blocks.3.ffn.net.2.bias", "blocks.3.ffn.2.bias"),
            ("vace_blocks.0.proj_in.weight", "vace_blocks.0.proj_in.weight"),
        ] {
            assert_eq!(released(theirs), ours);
            let layer = |name: &str| name.trim_end_matches(".weight").trim_end_matches(".bias").to_owned();
            if !theirs.starts_with("vace") {
                assert_eq!(in_diffusers(&layer(ours)), layer(theirs));
            }
        }
    }
}
