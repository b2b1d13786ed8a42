//! What verifying a model has shown.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::weights::{Component, Layout};

use super::files::{Change, Hashed};

/// The number of mistakes of a network that are printed; JSON has all.
const SHOWN: usize = 12;

/// Something that is wrong with a network.
#[derive(Clone, Debug, Serialize)]
pub struct Mistake {
    /// The tensor's official name; none where the network as a whole is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What is wrong, as a sentence.
    pub what: String,
}

impl Mistake {
    pub(super) fn of_part(what: String) -> Self {
        Self { tensor: None, what }
    }

    /// Returns a mistake of a tensor from the end of a sentence about it.
    pub(super) fn of_tensor(name: &str, what: &str) -> Self {
        let what = if what.contains(name) { what.to_owned() } else { format!("`{name}` {what}") };
        Self { tensor: Some(name.to_owned()), what }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A network that was verified.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// The network's name in words.
    pub name: String,
    /// The kind of network.
    pub component: Component,
    /// How its tensors are named and quantised; unknown if it cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// The number of tensors that were looked at.
    pub tensors: usize,
    /// What is wrong.
    pub mistakes: Vec<Mistake>,
    /// The root of the mean square of each matrix that is plausible by itself.
    #[serde(skip)]
    pub rms: Vec<(String, f64)>,
}

/// What verifying a model has shown.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The files.
    pub files: Vec<Hashed>,
    /// The networks.
    pub parts: Vec<Part>,
}

impl Verification {
    /// Returns whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.parts.iter().all(|part| part.mistakes.is_empty())
            && self.files.iter().all(|file| file.change != Change::Decayed)
    }

    /// Returns what is wrong in a sentence, if anything is.
    pub fn verdict(&self) -> Option<String> {
        let decayed = self.files.iter().filter(|file| file.change == Change::Decayed);
        let decayed = decayed.map(|file| {
            format!(
                "`{}` has another content than before, although nobody has written it",
                file.path.display()
            )
        });
        let broken = self.parts.iter().filter_map(|part| match &part.mistakes[..] {
            [] => None,
            [one] if one.tensor.is_none() => Some(one.to_string()),
            [one] => Some(format!("the {} has a mistake: {one}", part.name)),
            [first, ..] => {
                Some(format!("the {} has {} mistakes, as: {first}", part.name, part.mistakes.len()))
            }
        });
        let all: Vec<String> = decayed.chain(broken).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let change = match file.change {
                Change::New => "seen for the first time",
                Change::Same => "as before",
                Change::Replaced => "CHANGED since the last time",
                Change::Decayed => "DAMAGED: another content, although nobody has written it",
            };
            writeln!(f, "{}  {}\n  {} bytes, {change}", file.sha256, file.path.display(), file.bytes)?;
        }
        for part in &self.parts {
            match &part.mistakes[..] {
                [] => writeln!(f, "\n{}: {} tensors, all plausible", part.name, part.tensors)?,
                mistakes => {
                    let tensors: BTreeSet<&str> =
                        mistakes.iter().filter_map(|mistake| mistake.tensor.as_deref()).collect();
                    match tensors.len() {
                        0 => writeln!(f, "\n{}: not usable", part.name)?,
                        wrong => writeln!(
                            f,
                            "\n{}: {wrong} of {} tensors are not plausible",
                            part.name, part.tensors
                        )?,
                    }
                    for mistake in mistakes.iter().take(SHOWN) {
                        writeln!(f, "  {mistake}")?;
                    }
                    if mistakes.len() > SHOWN {
                        writeln!(f, "  and {} more, which `--json` lists", mistakes.len() - SHOWN)?;
                    }
                }
            }
        }
        let verdict = if self.is_sound() { "no mistakes found" } else { "not as it should be" };
        write!(f, "\n{verdict}")
    }
}
