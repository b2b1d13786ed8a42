//! Findings in words.

use std::fmt;

use super::{Chosen, Findings, FoundLora, FoundModel, FoundPart, Missing};

/// The most files of one kind that are listed; the others are counted.
const LISTED: usize = 12;
/// The most parts that are named as what could be taken instead.
const OTHERS: usize = 3;
/// The longest sentence about a file, in characters: a file of many mistakes has many words.
const LONGEST: usize = 400;

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sections: Vec<String> = self.models.iter().map(FoundModel::to_string).collect();
        if !self.unclear.is_empty() {
            sections.push(list(
                "No name says which of these is for the noisy steps; say it with --high-noise and --low-noise:",
                self.unclear.iter().map(|path| format!("`{}`", path.display())),
            ));
        }
        if !self.loras.is_empty() {
            sections.push(list("LoRAs:", self.loras.iter().map(FoundLora::to_string)));
        }
        let (others, unusable): (Vec<_>, Vec<_>) =
            self.passed_over.iter().partition(|passed| passed.other_model);
        if !unusable.is_empty() {
            sections.push(list("Passed over:", unusable.iter().map(|passed| passed.why.clone())));
        }
        match &others[..] {
            [] => {}
            _ if self.models.is_empty() || others.len() <= LISTED => {
                sections.push(list("Of other models:", others.iter().map(|passed| passed.why.clone())));
            }
            _ => sections.push(format!("{} files are of other models", others.len())),
        }
        sections.extend(self.notes.iter().cloned());
        f.write_str(&sections.join("\n\n"))
    }
}

impl fmt::Display for FoundModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_whole() { "all parts are there" } else { "not whole" };
        write!(f, "{}: {}, {state}", self.name, self.family)?;
        for Chosen { key, part, others, because } in &self.parts {
            write!(f, "\n  {key:<11} {}", Shown(part))?;
            if let Some(because) = because {
                write!(f, "\n{:14}{because}", "")?;
            }
            if !others.is_empty() {
                let mut names: Vec<String> =
                    others.iter().take(OTHERS).map(|part| Shown(part).to_string()).collect();
                names.extend((others.len() > OTHERS).then(|| format!("{} more", others.len() - OTHERS)));
                write!(f, "; --{} takes another one: {}", key.replace('_', "-"), names.join(", "))?;
            }
        }
        for Missing { key, sentence, source } in &self.missing {
            write!(f, "\n  {key:<11} missing: {sentence}")?;
            if let Some(fetch) = source {
                let bytes = fetch.bytes.map(|bytes| format!("{}; ", in_units(bytes))).unwrap_or_default();
                write!(f, "\n{:14}to fetch it ({bytes}licence: {}): {}", "", fetch.licence, fetch.command)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for FoundLora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path, models, noise, partner, called_distilled, why, .. } = self;
        if let Some(why) = why {
            return f.write_str(why);
        }
        write!(f, "{name}: `{}`", path.display())?;
        match &models[..] {
            [] => f.write_str(", which can be matched with a model when there is one")?,
            models => write!(f, ", for {}", models.join(", "))?,
        }
        match (noise, partner) {
            (Some(noise), Some(partner)) => {
                write!(f, "; the {} one of a pair with {partner}", noise.words())?;
            }
            (Some(noise), None) => {
                write!(f, "; in a model of two transformers for the {} one", noise.words())?;
            }
            (None, _) => {}
        }
        f.write_str(if *called_distilled { "; by its name it distils a model to few steps" } else { "" })
    }
}

/// A part with its type and size.
struct Shown<'a>(&'a FoundPart);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FoundPart { path, layout, precision, bytes, .. } = self.0;
        write!(f, "`{}`", path.display())?;
        match precision.is_empty() {
            true => Ok(()),
            false => write!(f, " ({layout}, {precision}, {})", in_units(*bytes)),
        }
    }
}

/// Returns a heading and what belongs to it, a line each.
fn list(heading: &str, items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    let mut lines = vec![heading.to_owned()];
    lines.extend(items.take(LISTED).map(|item| match item.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("  {} ...", &item[..end]),
        None => format!("  {item}"),
    }));
    if count > LISTED {
        lines.push(format!("  and {} more, which --json lists", count - LISTED));
    }
    lines.join("\n")
}

/// Returns a number of bytes in a suitable unit: `16.4 GB`.
pub fn in_units(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
