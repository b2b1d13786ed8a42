//! The text encoder, the image encoder and the VAE: the same network as in the released file, but for what the layout's
//! precision loses; and the tokenizers that text encoders carry.

use std::path::Path;

use animd_engine::text::Tokenizer;
use animd_engine::weights::{WeightSource, Weights, open_clip, open_t5, open_vae};
use anyhow::Result;

use super::{Checks, relative};

/// Texts in which tokenizers differ that leave out a rule: full-width letters, ligatures, several spaces, characters
/// that no piece has, and special tokens.
const TEXTS: [&str; 9] = [
    "A white cat on a surfboard, summer beach.",
    "  two  spaces   and three ",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁne ﬂow ½ ™",
    "naïve café — “quotes” … 日本語 🙂",
    "a </s> b <pad> c <extra_id_7> d<unk>",
    "",
    "▁ already",
    "tab\tand\nline\u{200b}zero\u{feff}width",
    "x",
];

fn open(path: &Path, component: &str) -> Result<Weights> {
    Ok(match component {
        "t5" => open_t5(path)?.0,
        "clip" => open_clip(path)?.0,
        _ => open_vae(path)?.0,
    })
}

impl Checks {
    /// Compares a network with the same one in the released layout.
    pub(super) fn encoder(&mut self, index: usize) -> Result<()> {
        let entry = &self.entries[index];
        let found = self.files.get(&entry.path)?;
        let source = open(&found.path, &entry.component)?;
        let id = entry.id.clone();
        if let Some(same) = entry.same_as.clone() {
            let original = &self.entries[self.find(&same)?];
            let released = self.files.get(&original.path)?;
            let released = open(&released.path, &original.component)?;
            let mut worst = 0.0_f64;
            for name in released.names() {
                let (ours, theirs) = (source.tensor(name)?, released.tensor(name)?);
                let theirs_f64: Vec<f64> = theirs.data.iter().map(|v| f64::from(*v)).collect();
                let same = ours.shape == theirs.shape;
                worst = worst.max(if same { relative(&ours.data, &theirs_f64) } else { f64::INFINITY });
            }
            let same_names = source.names().eq(released.names());
            // The figure of the list has four digits.
            let bound = match entry.worst_rel_l2_of_a_tensor {
                Some(worst) if entry.exact == Some(false) => worst * 1.001 + 1e-8,
                _ => 0.0,
            };
            let name = format!("{id} ({})", source.layout().name());
            self.note(&name, "relative L2", if same_names { worst } else { f64::INFINITY }, bound);
        }
        self.values(index, &source)?;
        if self.entries[index].component == "t5" {
            self.tokenizer(&id, &found.path)?;
        }
        Ok(())
    }

    /// Compares the tokenizer that a text encoder carries, if it does, with the released one.
    fn tokenizer(&mut self, id: &str, path: &Path) -> Result<()> {
        let Ok(carried) = Tokenizer::open(path) else { return Ok(()) };
        let released = self.files.get("tokenizer/tokenizer.json")?;
        let released = Tokenizer::open(&released.path)?;
        let mut same = true;
        for text in TEXTS {
            same &= carried.encode(text)?.ids == released.encode(text)?.ids;
        }
        self.fact(&format!("{id}: tokenizer"), same);
        Ok(())
    }
}
