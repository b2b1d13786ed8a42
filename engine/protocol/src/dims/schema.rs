//! The tensors of each component with their shapes, under Wan2.1's own names as its released files have them.

use super::{ClipConfig, DitConfig, T5Config, VaeConfig};

/// A tensor that a model must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its official name.
    pub name: String,
    /// The extents; 0 stands for an unknown one, because the tensor that would tell it is missing.
    pub shape: Vec<usize>,
    /// Whether a quantised layout may store the tensor in 8 bits, with a scale.
    pub quantisable: bool,
}

#[derive(Default)]
struct List(Vec<Expected>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(Expected { name: name.into(), shape: shape.to_vec(), quantisable: false });
    }

    /// Returns a weight, and its bias with one value for each row.
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.add(format!("{name}.weight"), shape);
        self.add(format!("{name}.bias"), &shape[..1]);
    }

    fn quantisable(&mut self, name: &str, shape: &[usize]) {
        self.layer(name, shape);
        let weight = self.0.len() - 2;
        self.0[weight].quantisable = true;
    }
}

/// Returns the diffusion transformer's tensors: 23 and 32 for each block with an image embedding, else 15 and 27; one more
/// with positions of two pictures.
pub fn dit(c: &DitConfig) -> Vec<Expected> {
    let (d, f) = (c.dim, c.ffn_dim);
    let mut list = List::default();
    list.layer("patch_embedding", &[d, c.in_dim, 1, 2, 2]);
    list.layer("text_embedding.0", &[d, c.text_dim]);
    list.layer("text_embedding.2", &[d, d]);
    list.layer("time_embedding.0", &[d, c.freq_dim]);
    list.layer("time_embedding.2", &[d, d]);
    list.layer("time_projection.1", &[6 * d, d]);
    if let Some(i) = c.image_dim {
        list.layer("img_emb.proj.0", &[i]);
        list.layer("img_emb.proj.1", &[i, i]);
        list.layer("img_emb.proj.3", &[d, i]);
        list.layer("img_emb.proj.4", &[d]);
        if let Some(positions) = c.image_positions {
            list.add("img_emb.emb_pos", &[1, positions, i]);
        }
    }
    for n in 0..c.num_layers {
        let block = format!("blocks.{n}");
        list.add(format!("{block}.modulation"), &[1, 6, d]);
        for part in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"] {
            list.quantisable(&format!("{block}.{part}"), &[d, d]);
        }
        let image = c.image_dim.is_some();
        for part in ["q", "k", "v", "o"].into_iter().chain(["k_img", "v_img"].into_iter().filter(|_| image)) {
            list.quantisable(&format!("{block}.cross_attn.{part}"), &[d, d]);
        }
        let norms = ["self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k"];
        for part in norms.into_iter().chain(image.then_some("cross_attn.norm_k_img")) {
            list.add(format!("{block}.{part}.weight"), &[d]);
        }
        list.layer(&format!("{block}.norm3"), &[d]);
        list.quantisable(&format!("{block}.ffn.0"), &[f, d]);
        list.quantisable(&format!("{block}.ffn.2"), &[d, f]);
    }
    list.layer("head.head", &[4 * c.out_dim, d]);
    list.add("head.modulation", &[1, 2, d]);
    list.0
}

/// Returns the `umT5` encoder's tensors.
pub fn t5(c: &T5Config) -> Vec<Expected> {
    let mut list = List::default();
    list.add("token_embedding.weight", &[c.rows, c.dim]);
    for n in 0..c.layers {
        let block = format!("blocks.{n}");
        list.add(format!("{block}.norm1.weight"), &[c.dim]);
        for part in ["q", "k", "v"] {
            list.add(format!("{block}.attn.{part}.weight"), &[c.inner, c.dim]);
        }
        list.add(format!("{block}.attn.o.weight"), &[c.dim, c.inner]);
        list.add(format!("{block}.norm2.weight"), &[c.dim]);
        list.add(format!("{block}.ffn.gate.0.weight"), &[c.ffn_dim, c.dim]);
        list.add(format!("{block}.ffn.fc1.weight"), &[c.ffn_dim, c.dim]);
        list.add(format!("{block}.ffn.fc2.weight"), &[c.dim, c.ffn_dim]);
        list.add(format!("{block}.pos_embedding.embedding.weight"), &[c.buckets, c.heads]);
    }
    list.add("norm.weight", &[c.dim]);
    list.0
}

/// Returns the CLIP vision tower's tensors.
pub fn clip(c: &ClipConfig) -> Vec<Expected> {
    let d = c.dim;
    let mut list = List::default();
    list.add("visual.patch_embedding.weight", &[d, 3, c.patch, c.patch]);
    list.add("visual.cls_embedding", &[1, 1, d]);
    list.add("visual.pos_embedding", &[1, c.tokens(), d]);
    list.layer("visual.pre_norm", &[d]);
    for n in 0..c.layers {
        let block = format!("visual.transformer.{n}");
        list.layer(&format!("{block}.norm1"), &[d]);
        list.layer(&format!("{block}.attn.to_qkv"), &[3 * d, d]);
        list.layer(&format!("{block}.attn.proj"), &[d, d]);
        list.layer(&format!("{block}.norm2"), &[d]);
        list.layer(&format!("{block}.mlp.0"), &[c.mlp_dim, d]);
        list.layer(&format!("{block}.mlp.2"), &[d, c.mlp_dim]);
    }
    list.0
}

/// Returns the causal VAE's tensors.
pub fn vae(c: &VaeConfig) -> Vec<Expected> {
    let channels = c.channels();
    let top = channels[3];
    let z = c.z_dim;
    let mut list = List::default();

    list.layer("encoder.conv1", &[c.base, 3, 3, 3, 3]);
    let mut width = c.base;
    for (stage, &out) in channels.iter().enumerate() {
        for block in 0..2 {
            residual(&mut list, &format!("encoder.downsamples.{}", 3 * stage + block), width, out);
            width = out;
        }
        if stage < 3 {
            let name = format!("encoder.downsamples.{}", 3 * stage + 2);
            list.layer(&format!("{name}.resample.1"), &[out, out, 3, 3]);
            if stage > 0 {
                list.layer(&format!("{name}.time_conv"), &[out, out, 3, 1, 1]);
            }
        }
    }
    middle(&mut list, "encoder", top);
    list.add("encoder.head.0.gamma", &[top, 1, 1, 1]);
    list.layer("encoder.head.2", &[2 * z, top, 3, 3, 3]);
    list.layer("conv1", &[2 * z, 2 * z, 1, 1, 1]);

    list.layer("conv2", &[z, z, 1, 1, 1]);
    list.layer("decoder.conv1", &[top, z, 3, 3, 3]);
    middle(&mut list, "decoder", top);
    let mut width = top;
    for (stage, &out) in channels.iter().rev().enumerate() {
        for block in 0..3 {
            residual(&mut list, &format!("decoder.upsamples.{}", 4 * stage + block), width, out);
            width = out;
        }
        if stage < 3 {
            let name = format!("decoder.upsamples.{}", 4 * stage + 3);
            list.layer(&format!("{name}.resample.1"), &[out / 2, out, 3, 3]);
            if stage < 2 {
                list.layer(&format!("{name}.time_conv"), &[2 * out, out, 3, 1, 1]);
            }
            width = out / 2;
        }
    }
    list.add("decoder.head.0.gamma", &[c.base, 1, 1, 1]);
    list.layer("decoder.head.2", &[3, c.base, 3, 3, 3]);
    list.0
}

fn residual(list: &mut List, name: &str, from: usize, to: usize) {
    list.add(format!("{name}.residual.0.gamma"), &[from, 1, 1, 1]);
    list.layer(&format!("{name}.residual.2"), &[to, from, 3, 3, 3]);
    list.add(format!("{name}.residual.3.gamma"), &[to, 1, 1, 1]);
    list.layer(&format!("{name}.residual.6"), &[to, to, 3, 3, 3]);
    if from != to {
        list.layer(&format!("{name}.shortcut"), &[to, from, 1, 1, 1]);
    }
}

fn middle(list: &mut List, side: &str, width: usize) {
    residual(list, &format!("{side}.middle.0"), width, width);
    list.add(format!("{side}.middle.1.norm.gamma"), &[width, 1, 1]);
    list.layer(&format!("{side}.middle.1.to_qkv"), &[3 * width, width, 1, 1]);
    list.layer(&format!("{side}.middle.1.proj"), &[width, width, 1, 1]);
    residual(list, &format!("{side}.middle.2"), width, width);
}
