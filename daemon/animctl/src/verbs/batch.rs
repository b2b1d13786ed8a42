//! A verb on several jobs or pictures: one that fails does not keep the others from being done.

use serde_json::Value;

use super::exit::{Exit, Failure, Result};
use super::{Ctl, print, tell};

/// What has become of each of several things.
pub struct Batch {
    /// How many there are.
    count: usize,
    told: Vec<Value>,
    sentences: Vec<String>,
    exit: Exit,
}

impl Batch {
    /// Starts with nothing done of `count` things.
    pub fn new(count: usize) -> Self {
        Self { count, told: Vec::new(), sentences: Vec::new(), exit: Exit::Done }
    }

    /// Adds the outcome of one: its JSON and its sentence.
    ///
    /// # Errors
    /// Returns the failure of the only one. Of several, each failure is told at once, and the first gives the exit code.
    pub fn add(&mut self, outcome: Result<(Value, String)>) -> Result<()> {
        match outcome {
            Ok((object, sentence)) => {
                self.told.push(object);
                self.sentences.push(sentence);
            }
            // Without a service none of the others can be done.
            Err(e) if self.count == 1 || e.exit == Exit::Unreachable => return Err(e),
            Err(Failure { exit, text }) => {
                tell(&format!("animctl: {text}"));
                if self.exit == Exit::Done {
                    self.exit = exit;
                }
            }
        }
        Ok(())
    }

    /// Returns a batch of as many things that has the failures of this one, and nothing told.
    pub fn without_told(self) -> Self {
        Self { told: Vec::new(), sentences: Vec::new(), ..self }
    }

    /// Adds one that has ended without success, whose sentence is told already.
    pub fn note(&mut self, object: Value, exit: Exit) {
        self.told.push(object);
        if self.exit == Exit::Done {
            self.exit = exit;
        }
    }

    /// Prints everything, an object for one thing and an array for several, and returns the exit code.
    pub fn finish(mut self, ctl: &Ctl) -> Exit {
        if ctl.json {
            print(match self.count {
                1 if self.told.len() == 1 => self.told.remove(0),
                _ => Value::Array(self.told),
            });
        } else {
            self.sentences.iter().for_each(print);
        }
        self.exit
    }
}
