//! Prompts, tokens, umT5.

use animd_engine::backend::TensorOps;
use animd_engine::backend::cpu::Cpu;
use animd_engine::model::t5;
use animd_engine::text;
use anyhow::{Context as _, Result};

use super::goldens::std;
use super::{Goldens, MODEL, Model};

/// Token ids that the model was trained with.
const SPECIAL: [(&str, u32); 4] = [("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)];

/// Returns the embedding `[n, dim]` of the prompt at place `index` of the list.
pub fn embedding(goldens: &Goldens, model: &Model, index: usize) -> Result<<Cpu as TensorOps>::Tensor> {
    let prompt = goldens.text(&format!("tokenizer/prompts/{index}/raw"))?;
    let tokens = model.tokenizer.encode(&text::clean(prompt))?;
    Ok(model.t5.encode(&model.backend, &tokens.ids, None)?)
}

/// Returns the place of the negative prompt in the list.
pub fn negative(goldens: &Goldens) -> Result<usize> {
    (0..goldens.len("tokenizer/prompts")?)
        .find(|i| goldens.text(&format!("tokenizer/prompts/{i}/tag")).is_ok_and(|tag| tag == "neg_i2v"))
        .context("no prompt is tagged `neg_i2v`")
}

/// Checks `tok.*`, `tokenizer`, `t5.*`.
pub fn check(goldens: &mut Goldens, model: &Model) -> Result<()> {
    goldens.fact("tokenizer/seq_len", text::MAX_TOKENS)?;
    for (name, id) in SPECIAL {
        goldens.fact(&format!("tokenizer/{name}"), id)?;
    }
    goldens.given("tokenizer/byte_fallback")?;
    for i in 0..goldens.len("tokenizer/prompts")? {
        let at = |key: &str| format!("tokenizer/prompts/{i}/{key}");
        let raw = goldens.text(&at("raw"))?.to_owned();
        let cleaned = text::clean(&raw);
        let tokens = model.tokenizer.encode(&cleaned)?;
        let padded: Vec<i64> = tokens.padded(text::MAX_TOKENS).iter().map(|&id| i64::from(id)).collect();
        goldens.equal(&format!("tok.{i}.ids"), &padded)?;
        goldens.given(&at("raw"))?;
        goldens.given(&at("tag"))?;
        goldens.fact(&at("cleaned"), cleaned)?;
        goldens.fact(&at("len"), tokens.ids.len())?;
        goldens.fact(&at("untruncated_len"), tokens.whole)?;
        goldens.fact(&at("unk_count"), tokens.ids.iter().filter(|&&id| id == 3).count())?;
    }

    for i in 0..goldens.len("t5")? {
        let prompt = goldens.count(&format!("t5/{i}/prompt"))?;
        goldens.given(&format!("t5/{i}/prompt"))?;
        let raw = goldens.text(&format!("tokenizer/prompts/{prompt}/raw"))?;
        let ids = model.tokenizer.encode(&text::clean(raw))?.ids;
        let mut parts = Vec::new();
        let mut probe = |name: &str, t: &<Cpu as TensorOps>::Tensor| parts.push((name.to_owned(), t.clone()));
        let out = model.t5.encode(&model.backend, &ids, Some(&mut probe))?;
        for (part, values) in parts {
            let name = format!("t5.{prompt}.{part}");
            if goldens.has(&name) {
                goldens.relative(&name, &model.backend.download(&values)?, MODEL)?;
            }
        }
        let out = model.backend.download(&out)?;
        goldens.relative(&format!("t5.{prompt}.out"), &out, MODEL)?;
        goldens.fact(&format!("t5/{i}/len"), ids.len())?;
        goldens.number(&format!("t5/{i}/std"), std(&out), MODEL)?;
    }
    let prompt = goldens.count("spec/e2e_prompt")?;
    for (name, index) in [("t5.e2e.context", prompt), ("t5.e2e.context_null", negative(goldens)?)] {
        let out = model.backend.download(&embedding(goldens, model, index)?)?;
        goldens.relative(name, &out, MODEL)?;
    }
    let buckets: Vec<i64> = (-200..=200).map(|rel| i64::from(t5::relative_bucket(rel))).collect();
    goldens.equal("t5.rel_bucket", &buckets)
}
