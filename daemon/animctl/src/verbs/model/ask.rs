//! Questions to a person at a terminal, about what no file says. Each has an option that answers it, too.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use animd_common::files::show;
use animd_protocol::findings::{Findings, FoundModel};
use animd_protocol::sources::quoted;

use super::super::exit::{Exit, Failure, Result};

/// A person who may be asked.
pub struct Person {
    is_there: bool,
}

impl Person {
    /// Returns the person at the terminal, if standard input and standard error are one.
    pub fn at_terminal() -> Self {
        Self { is_there: io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Returns nobody.
    pub fn nobody() -> Self {
        Self { is_there: false }
    }

    /// Asks until `understood` takes the answer. `None` if nobody is there.
    fn ask<T>(&self, question: &str, understood: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
        if !self.is_there {
            return Ok(None);
        }
        loop {
            eprint!("{question} ");
            _ = io::stderr().flush();
            let mut answer = String::new();
            let read = io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::new(e.to_string()))?;
            if read == 0 {
                return Err(Failure { exit: Exit::Interrupted, text: "nothing is changed".into() });
            }
            if let Some(answer) = understood(answer.trim()) {
                return Ok(Some(answer));
            }
        }
    }

    /// Asks which of two transformers is for the noisy steps; returns true for the first one.
    pub fn noisy(&self, files: [&Path; 2]) -> Result<Option<bool>> {
        let question = format!(
            "No name says which of these is for the noisy steps (`high noise`), and which for the last ones:\n  1  {}\n  2  {}\nWhich \
             is for the noisy steps?",
            show(files[0]),
            show(files[1])
        );
        self.ask(&question, |answer| match answer {
            "1" => Some(true),
            "2" => Some(false),
            _ => None,
        })
    }

    /// Asks whether a model was distilled to few steps.
    pub fn distilled(&self, model: &FoundModel) -> Result<Option<bool>> {
        let question = format!(
            "Was `{}` distilled to few steps (as LightX2V's are, or those called `4step`)? No file says so. [y/N]",
            model.name
        );
        self.ask(&question, |answer| match answer.to_lowercase().as_str() {
            "y" | "yes" => Some(true),
            "" | "n" | "no" => Some(false),
            _ => None,
        })
    }

    /// Returns which of several models to add.
    ///
    /// # Errors
    /// Nobody is there to choose: the sentence has the options that do.
    pub fn which(&self, models: Vec<FoundModel>) -> Result<Vec<FoundModel>> {
        let line =
            |(n, model): (usize, &FoundModel)| format!("  {}  {}, {}\n", n + 1, model.name, model.family);
        let lines: String = models.iter().enumerate().map(line).collect();
        let question = format!(
            "{} models are there:\n{lines}Which one should be added (a number, or `all`)?",
            models.len()
        );
        let count = models.len();
        let answer = self.ask(&question, |answer| match answer {
            "all" => Some(0),
            number => number.parse().ok().filter(|n| (1..=count).contains(n)),
        })?;
        match answer {
            Some(0) => Ok(models),
            Some(n) => Ok(models.into_iter().skip(n - 1).take(1).collect()),
            None => Err(Failure::usage(several(&models))),
        }
    }
}

/// Returns the options that choose among several models.
fn several(models: &[FoundModel]) -> String {
    let line = |model: &FoundModel| {
        let options = ["dit", "high_noise", "low_noise"].into_iter().filter_map(|key| {
            let path = &model.part(key)?.part.path;
            Some(format!("--{} {}", key.replace('_', "-"), quoted(&show(path))))
        });
        format!("\n  {}", options.collect::<Vec<_>>().join(" "))
    };
    let lines: String = models.iter().map(line).collect();
    format!("{} models are there; add all of them with --all, or choose one:{lines}", models.len())
}

/// Returns why no model can be added, with everything that was found.
pub fn nothing_whole(findings: &Findings) -> Failure {
    let why = match (&findings.unclear[..], findings.models.is_empty()) {
        ([_, ..], true) => "it is not clear which transformer is which",
        (_, true) => "no model was found",
        (_, false) => "no whole model was found",
    };
    let found = findings.to_string();
    Failure::new(if found.is_empty() { why.to_owned() } else { format!("{why}\n\n{found}") })
}
