//! A step of `animctl setup`: what is done, what is to do, and how it is shown.

use std::ffi::OsString;
use std::io::IsTerminal;

use animd_protocol::sources::quoted;
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::print;
use super::super::term::{Color, paint, width, wrap};

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its result is there.
    Done,
    /// There is something to do.
    Todo,
    /// It is not needed on this machine, or for these files.
    Skipped,
    /// It was tried, and failed.
    Failed,
}

impl State {
    /// Returns the word for people.
    fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Todo => "to do",
            Self::Skipped => "skip",
            Self::Failed => "fail",
        }
    }

    fn color(self) -> Option<Color> {
        match self {
            Self::Done => Some(Color::Green),
            Self::Todo => Some(Color::Yellow),
            Self::Failed => Some(Color::Red),
            Self::Skipped => None,
        }
    }
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name: one word.
    pub name: &'static str,
    /// How far it is.
    pub state: State,
    /// What was found, or what is to do.
    pub message: String,
    /// The commands that do it, in their order, as people type them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    /// The commands as `setup` runs them itself; none where a person has to.
    #[serde(skip)]
    pub runs: Vec<Run>,
    /// More for programs.
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

/// A command that does a part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The verb of `animctl` and its arguments.
    pub args: Vec<OsString>,
}

impl Run {
    /// Returns the run of a verb with these words, and then these arguments.
    pub fn new(words: &[&str], args: impl IntoIterator<Item = OsString>) -> Self {
        Self { args: words.iter().map(OsString::from).chain(args).collect() }
    }

    /// Returns the line that a person types.
    pub fn line(&self) -> String {
        let words = self.args.iter().map(|word| quoted(&word.to_string_lossy()));
        std::iter::once("animctl".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

impl Step {
    fn new(name: &'static str, state: State, message: impl Into<String>) -> Self {
        Self {
            name,
            state,
            message: message.into(),
            commands: Vec::new(),
            runs: Vec::new(),
            facts: Map::new(),
        }
    }

    /// Returns a step whose result is there.
    pub fn done(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, State::Done, message)
    }

    /// Returns a step that is not needed.
    pub fn skipped(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, State::Skipped, message)
    }

    /// Returns a step that these commands do.
    pub fn todo(name: &'static str, message: impl Into<String>, commands: Vec<String>) -> Self {
        Self { commands, ..Self::new(name, State::Todo, message) }
    }

    /// Returns a step that `setup` does by running these commands; if they need root and this is another user, a person has
    /// to.
    pub fn runs(name: &'static str, message: impl Into<String>, runs: Vec<Run>, needs_root: bool) -> Self {
        let mut commands: Vec<String> = runs.iter().map(Run::line).collect();
        if needs_root && !rustix::process::geteuid().is_root() {
            for command in &mut commands {
                command.insert_str(0, "sudo ");
            }
            return Self::todo(name, message, commands);
        }
        Self { runs, ..Self::todo(name, message, commands) }
    }

    /// Returns the step after its command has failed.
    #[must_use]
    pub fn failed(self, why: impl Into<String>) -> Self {
        Self { state: State::Failed, message: why.into(), ..self }
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(key.to_owned(), value.into());
        self
    }

    /// Returns whether nothing is left to do.
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Done | State::Skipped)
    }

    /// Shows the step. Commands stay on one line each, so that they can be copied.
    pub fn show(&self) {
        // Away from a terminal each message stays on its line, for programs that search them.
        let most = if std::io::stdout().is_terminal() { width().saturating_sub(16) } else { usize::MAX };
        let state = paint(&format!("{:<5}", self.state.word()), self.state.color());
        let lines = self.message.lines().flat_map(|line| wrap(line, most)).collect::<Vec<_>>();
        for (n, line) in lines.iter().enumerate() {
            match n {
                0 => print(format!("{state}  {:<8} {line}", self.name)),
                _ => print(format!("{:16}{line}", "")),
            }
        }
        for command in &self.commands {
            print(format!("{:18}{command}", ""));
        }
    }
}
