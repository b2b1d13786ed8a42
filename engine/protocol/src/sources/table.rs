//! The facts of [`super`]: what is published where.
//!
//! Sizes are those that the repositories' pages show. Where a page gives none, there is none here.

use super::{Family, Kind, ModelPart, RELEASED_LICENCE, Source};

/// `Some` licence of the released weights, which many pages name.
const APACHE: Option<&str> = Some(RELEASED_LICENCE);

const GB: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

const WAN21_480P: &str = "Wan-AI/Wan2.1-I2V-14B-480P";
const WAN21_720P: &str = "Wan-AI/Wan2.1-I2V-14B-720P";
const WAN22: &str = "Wan-AI/Wan2.2-I2V-A14B";
const COMFY_21: &str = "Comfy-Org/Wan_2.1_ComfyUI_repackaged";
const COMFY_22: &str = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged";
const DISTILLED_21: &str = "lightx2v/Wan2.1-Distill-Models";
const DISTILLED_22: &str = "lightx2v/Wan2.2-Distill-Models";
const GGUF_480P: &str = "city96/Wan2.1-I2V-14B-480P-gguf";
const GGUF_720P: &str = "city96/Wan2.1-I2V-14B-720P-gguf";
const GGUF_22: &str = "QuantStack/Wan2.2-I2V-A14B-GGUF";
const GGUF_TEXT: &str = "city96/umt5-xxl-encoder-gguf";

/// Returns a source of which the page names this licence.
const fn of(
    kind: Kind,
    repository: &'static str,
    files: &'static [&'static str],
    bytes: u64,
    licence: Option<&'static str>,
) -> Source {
    Source { kind, repository, files, bytes: Some(bytes), licence, carries_tokenizer: false }
}

/// The transformer of Wan2.1 in the released form: fp32, in seven shards.
const WAN21_SHARDS: &[&str] = &[
    "config.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-00001-of-00007.safetensors",
    "diffusion_pytorch_model-00002-of-00007.safetensors",
    "diffusion_pytorch_model-00003-of-00007.safetensors",
    "diffusion_pytorch_model-00004-of-00007.safetensors",
    "diffusion_pytorch_model-00005-of-00007.safetensors",
    "diffusion_pytorch_model-00006-of-00007.safetensors",
    "diffusion_pytorch_model-00007-of-00007.safetensors",
];
const WAN21_DIT_BYTES: u64 = 65_579_515_136;

const DIT_480P: &[Source] = &[
    of(
        Kind::Comfy,
        COMFY_21,
        &["split_files/diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors"],
        164 * GB / 10,
        None,
    ),
    of(Kind::Official, WAN21_480P, WAN21_SHARDS, WAN21_DIT_BYTES, APACHE),
    of(
        Kind::Distilled,
        DISTILLED_21,
        &["wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v_4step.safetensors"],
        164 * GB / 10,
        None,
    ),
    of(Kind::GgufQ8, GGUF_480P, &["wan2.1-i2v-14b-480p-Q8_0.gguf"], 18_144_640_384, APACHE),
    of(Kind::GgufQ4, GGUF_480P, &["wan2.1-i2v-14b-480p-Q4_K_M.gguf"], 11_341_184_384, APACHE),
];

const DIT_720P: &[Source] = &[
    of(
        Kind::Comfy,
        COMFY_21,
        &["split_files/diffusion_models/wan2.1_i2v_720p_14B_fp8_scaled.safetensors"],
        164 * GB / 10,
        None,
    ),
    of(Kind::Official, WAN21_720P, WAN21_SHARDS, WAN21_DIT_BYTES, APACHE),
    of(
        Kind::Distilled,
        DISTILLED_21,
        &["wan2.1_i2v_720p_scaled_fp8_e4m3_lightx2v_4step.safetensors"],
        164 * GB / 10,
        None,
    ),
    of(Kind::GgufQ8, GGUF_720P, &["wan2.1-i2v-14b-720p-Q8_0.gguf"], 18_144_640_384, APACHE),
    of(Kind::GgufQ4, GGUF_720P, &["wan2.1-i2v-14b-720p-Q4_K_M.gguf"], 11_341_184_384, APACHE),
];

/// The bytes of one transformer of Wan2.2, which both have.
const COMFY_22_BYTES: u64 = 14_294_742_832;
const OFFICIAL_22_BYTES: u64 = 572 * GB / 10;
const DISTILLED_22_BYTES: u64 = 15 * GB;
const GGUF_22_Q4_BYTES: u64 = 9_651_728_896;

const HIGH_NOISE: &[Source] = &[
    of(
        Kind::Comfy,
        COMFY_22,
        &["split_files/diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"],
        COMFY_22_BYTES,
        None,
    ),
    of(
        Kind::Official,
        WAN22,
        &[
            "high_noise_model/config.json",
            "high_noise_model/diffusion_pytorch_model.safetensors.index.json",
            "high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors",
            "high_noise_model/diffusion_pytorch_model-00002-of-00006.safetensors",
            "high_noise_model/diffusion_pytorch_model-00003-of-00006.safetensors",
            "high_noise_model/diffusion_pytorch_model-00004-of-00006.safetensors",
            "high_noise_model/diffusion_pytorch_model-00005-of-00006.safetensors",
            "high_noise_model/diffusion_pytorch_model-00006-of-00006.safetensors",
        ],
        OFFICIAL_22_BYTES,
        APACHE,
    ),
    of(
        Kind::Distilled,
        DISTILLED_22,
        &["wan2.2_i2v_A14b_high_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors"],
        DISTILLED_22_BYTES,
        APACHE,
    ),
    of(Kind::GgufQ4, GGUF_22, &["HighNoise/Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf"], GGUF_22_Q4_BYTES, None),
];

const LOW_NOISE: &[Source] = &[
    of(
        Kind::Comfy,
        COMFY_22,
        &["split_files/diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"],
        COMFY_22_BYTES,
        None,
    ),
    of(
        Kind::Official,
        WAN22,
        &[
            "low_noise_model/config.json",
            "low_noise_model/diffusion_pytorch_model.safetensors.index.json",
            "low_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors",
            "low_noise_model/diffusion_pytorch_model-00002-of-00006.safetensors",
            "low_noise_model/diffusion_pytorch_model-00003-of-00006.safetensors",
            "low_noise_model/diffusion_pytorch_model-00004-of-00006.safetensors",
            "low_noise_model/diffusion_pytorch_model-00005-of-00006.safetensors",
            "low_noise_model/diffusion_pytorch_model-00006-of-00006.safetensors",
        ],
        OFFICIAL_22_BYTES,
        APACHE,
    ),
    of(
        Kind::Distilled,
        DISTILLED_22,
        &["wan2.2_i2v_A14b_low_noise_scaled_fp8_e4m3_lightx2v_4step.safetensors"],
        DISTILLED_22_BYTES,
        APACHE,
    ),
    of(Kind::GgufQ4, GGUF_22, &["LowNoise/Wan2.2-I2V-A14B-LowNoise-Q4_K_M.gguf"], GGUF_22_Q4_BYTES, None),
];

/// The released text encoder, whose tokenizer is a part of its own.
const OFFICIAL_TEXT: &[&str] = &["models_t5_umt5-xxl-enc-bf16.pth"];
const OFFICIAL_TEXT_BYTES: u64 = 114 * GB / 10;
const COMFY_TEXT: Source = Source {
    carries_tokenizer: true,
    ..of(
        Kind::Comfy,
        COMFY_21,
        &["split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"],
        674 * GB / 100,
        None,
    )
};
const GGUF_TEXT_Q8: Source = Source {
    carries_tokenizer: true,
    ..of(Kind::GgufQ8, GGUF_TEXT, &["umt5-xxl-encoder-Q8_0.gguf"], 604 * GB / 100, APACHE)
};
const GGUF_TEXT_Q4: Source = Source {
    carries_tokenizer: true,
    ..of(Kind::GgufQ4, GGUF_TEXT, &["umt5-xxl-encoder-Q4_K_M.gguf"], 366 * GB / 100, APACHE)
};

/// Returns the places of the text encoder; the released one lies with each released model.
macro_rules! text {
    ($repository:expr) => {
        &[
            COMFY_TEXT,
            of(Kind::Official, $repository, OFFICIAL_TEXT, OFFICIAL_TEXT_BYTES, APACHE),
            GGUF_TEXT_Q8,
            GGUF_TEXT_Q4,
        ]
    };
}
const TEXT_480P: &[Source] = text!(WAN21_480P);
const TEXT_720P: &[Source] = text!(WAN21_720P);
const TEXT_22: &[Source] = text!(WAN22);

const OFFICIAL_CLIP: &[&str] = &["models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"];
const OFFICIAL_CLIP_BYTES: u64 = 48 * GB / 10;
const COMFY_CLIP: Source =
    of(Kind::Comfy, COMFY_21, &["split_files/clip_vision/clip_vision_h.safetensors"], 126 * GB / 100, None);
const CLIP_480P: &[Source] =
    &[COMFY_CLIP, of(Kind::Official, WAN21_480P, OFFICIAL_CLIP, OFFICIAL_CLIP_BYTES, APACHE)];
const CLIP_720P: &[Source] =
    &[COMFY_CLIP, of(Kind::Official, WAN21_720P, OFFICIAL_CLIP, OFFICIAL_CLIP_BYTES, APACHE)];

const OFFICIAL_VAE: &[&str] = &["Wan2.1_VAE.pth"];
const OFFICIAL_VAE_BYTES: u64 = 508 * MB;
const COMFY_VAE: Source =
    of(Kind::Comfy, COMFY_21, &["split_files/vae/wan_2.1_vae.safetensors"], 254 * MB, None);
const VAE_480P: &[Source] =
    &[COMFY_VAE, of(Kind::Official, WAN21_480P, OFFICIAL_VAE, OFFICIAL_VAE_BYTES, APACHE)];
const VAE_720P: &[Source] =
    &[COMFY_VAE, of(Kind::Official, WAN21_720P, OFFICIAL_VAE, OFFICIAL_VAE_BYTES, APACHE)];
const VAE_22: &[Source] = &[COMFY_VAE, of(Kind::Official, WAN22, OFFICIAL_VAE, OFFICIAL_VAE_BYTES, APACHE)];

/// Returns the tokenizer in the repository of a released model.
const fn tokenizer(repository: &'static str) -> Source {
    Source {
        kind: Kind::Official,
        repository,
        files: &["google/umt5-xxl/tokenizer.json"],
        bytes: None,
        licence: APACHE,
        carries_tokenizer: false,
    }
}
const TOKENIZER_480P: &[Source] = &[tokenizer(WAN21_480P)];
const TOKENIZER_720P: &[Source] = &[tokenizer(WAN21_720P)];
const TOKENIZER_22: &[Source] = &[tokenizer(WAN22)];

/// Returns the places of a part, the recommended one first.
pub(super) fn sources(family: Family, part: ModelPart) -> &'static [Source] {
    use Family::{Wan21I2v480p, Wan21I2v720p, Wan22I2vA14b};
    match (part, family) {
        (ModelPart::Dit, Wan21I2v480p) => DIT_480P,
        (ModelPart::Dit, Wan21I2v720p) => DIT_720P,
        (ModelPart::HighNoise, Wan22I2vA14b) => HIGH_NOISE,
        (ModelPart::LowNoise, Wan22I2vA14b) => LOW_NOISE,
        (ModelPart::Text, Wan21I2v480p) => TEXT_480P,
        (ModelPart::Text, Wan21I2v720p) => TEXT_720P,
        (ModelPart::Text, Wan22I2vA14b) => TEXT_22,
        (ModelPart::Clip, Wan21I2v480p) => CLIP_480P,
        (ModelPart::Clip, Wan21I2v720p) => CLIP_720P,
        (ModelPart::Vae, Wan21I2v480p) => VAE_480P,
        (ModelPart::Vae, Wan21I2v720p) => VAE_720P,
        (ModelPart::Vae, Wan22I2vA14b) => VAE_22,
        (ModelPart::Tokenizer, Wan21I2v480p) => TOKENIZER_480P,
        (ModelPart::Tokenizer, Wan21I2v720p) => TOKENIZER_720P,
        (ModelPart::Tokenizer, Wan22I2vA14b) => TOKENIZER_22,
        (ModelPart::Dit | ModelPart::Clip, Wan22I2vA14b)
        | (ModelPart::HighNoise | ModelPart::LowNoise, Wan21I2v480p | Wan21I2v720p) => &[],
    }
}
