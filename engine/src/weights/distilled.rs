//! What a name says about distillation: no file says itself that a model, or a `LoRA`, was distilled to few steps.
//!
//! A name is a hint and no proof, so nothing is decided by it that a person cannot change.
//!
//! What a model computes is no proof either. A model that was trained to many steps predicts the mean of all videos that fit a noisy
//! one, which is blurred where there is much noise; one that was distilled by comparing distributions or along its own path predicts a
//! sharp video from there. So one forward at two noise levels should tell them apart, by how much of the clean latents each leaves open:
//! about the same for a distilled model, and much more at the noisier level for another. That was tried on the small model, which is
//! right in four steps: of a photograph that moves it leaves open 4 % of the latents' mean square at noise 0.3 and 23 % at 0.9 on 81 frames,
//! 7 % and 60 % on 21, and would be called a model of many steps. It was trained by flow matching to begin with, and four steps do
//! because picture and prompt leave little open in its own videos. Made-up weights leave open what the blind guess of
//! [`crate::check`] does, or more, at either level. So this tells how a model was trained and what it is shown, and not how many steps
//! suffice; it decides nothing here.

use std::path::Path;

use animd_protocol::request::MAX_DISTILL_STEPS;

use super::find::title;

/// Names of distilled models and of methods of distillation, which are parts of words, as in `Wan21CausVid`.
const PARTS: [&str; 3] = ["lightx2v", "causvid", "turbowan"];
/// Words that say it by themselves. Words that end with the first one do, too: `StepDistill`.
const WORDS: [&str; 4] = ["distill", "distilled", "lightning", "turbo"];
/// How many folders above a transformer may say it: its model's folder.
const ABOVE: usize = 2;

/// Returns whether the name of a file or folder says that what is in it was distilled to few steps.
pub(crate) fn says_distilled(name: &str) -> bool {
    let words: Vec<String> = words(name).collect();
    let counts = |word: &str| word.parse().is_ok_and(|steps: u32| (1..=MAX_DISTILL_STEPS).contains(&steps));
    let is_steps = |word: &str| word == "step" || word == "steps";
    let says = |word: &String| {
        let joined = word.strip_suffix("steps").or_else(|| word.strip_suffix("step")).is_some_and(counts);
        joined
            || WORDS.contains(&&**word)
            || word.ends_with(WORDS[0])
            || PARTS.iter().any(|part| word.contains(part))
    };
    words.iter().any(says) || words.windows(2).any(|pair| counts(&pair[0]) && is_steps(&pair[1]))
}

/// Returns whether the path of a transformer says that it was distilled: its own name, or that of its model's folder.
pub(crate) fn path_says_distilled(path: &Path) -> bool {
    path.ancestors().take(1 + ABOVE).any(|path| says_distilled(&title(path)))
}

fn words(name: &str) -> impl Iterator<Item = String> {
    name.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_and_loras_say_that_they_are_distilled() {
        for (name, is) in [
            ("wan2.1_i2v_480p_int8_lightx2v_4step", true),
            ("Wan2.1-I2V-14B-480P-StepDistill-CfgDistill", true),
            ("lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16", true),
            ("Wan21_CausVid_14B_T2V_lora_rank32", true),
            ("Wan21CausVid", true),
            ("Wan2.2-Lightning_I2V-A14B-8steps-lora_HIGH", true),
            ("my 4-step lora", true),
            ("TurboWan2.2-I2V-A14B-high-720P", true),
            ("wan_turbo", true),
            ("wan2.1_i2v_480p_14B_fp8_scaled", false),
            ("Wan2.2-I2V-A14B-HighNoise-Q4_K_M", false),
            ("undistilled", false),
            ("footsteps", false),
            ("a-step-ahead", false),
            ("20steps_preview", false),
            ("turbocharged-engine", false),
            ("", false),
        ] {
            assert_eq!(says_distilled(name), is, "{name}");
        }
    }

    #[test]
    fn folders_around_a_transformer_say_it_too() {
        for (path, is) in [
            ("/m/wan2.1_i2v_480p_int8_lightx2v_4step.safetensors", true),
            ("/m/Wan2.1-I2V-14B-480P-StepDistill-CfgDistill-Lightx2v/distill_fp8", true),
            ("/m/TurboWan2.2-I2V-A14B-high-720P.pth", true),
            ("/m/diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors", false),
            ("/distilled/a/b/c/wan.gguf", false),
        ] {
            assert_eq!(path_says_distilled(Path::new(path)), is, "{path}");
        }
    }
}
