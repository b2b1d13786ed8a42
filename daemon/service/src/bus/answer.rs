//! Dictionaries that the bus answers with. Every text in one has been made a [`Text`] first.

use std::collections::HashMap;

use animd_common::text::Text;
use zbus::{OwnedVariant, Variant};

/// A dictionary from names to values: `a{sv}`.
pub type Dict = HashMap<String, OwnedVariant>;

/// Builds a dictionary.
#[derive(Default)]
pub struct Answer(Dict);

impl Answer {
    /// Adds a value, if it is known.
    pub fn put(&mut self, key: &str, value: impl Fact) {
        if let Some(Ok(value)) = value.variant().map(Variant::try_into_owned) {
            self.0.insert(key.to_owned(), value);
        }
    }

    /// Adds a value as [`Self::put`] does, for a chain of calls.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Fact) -> Self {
        self.put(key, value);
        self
    }

    /// Returns the dictionary.
    pub fn dict(self) -> Dict {
        self.0
    }
}

/// A value that the bus can carry, whatever its contents. A [`Variant`] is deliberately none, because it holds any
/// text.
pub trait Fact {
    /// Returns the value; `None` while it is not known.
    fn variant(self) -> Option<Variant<'static>>;
}

impl<T: Fact> Fact for Option<T> {
    fn variant(self) -> Option<Variant<'static>> {
        self?.variant()
    }
}

impl Fact for String {
    fn variant(self) -> Option<Variant<'static>> {
        Text::from(self).variant()
    }
}

impl Fact for &str {
    fn variant(self) -> Option<Variant<'static>> {
        Text::from(self).variant()
    }
}

/// A JSON value: a string, a number, a boolean or a list of strings.
impl Fact for serde_json::Value {
    fn variant(self) -> Option<Variant<'static>> {
        match self {
            Self::String(text) => text.variant(),
            Self::Array(items) => {
                let text = |item| if let Self::String(text) = item { Some(Text::from(text)) } else { None };
                items.into_iter().map(text).collect::<Option<Vec<Text>>>().variant()
            }
            value => animd_common::bus::variant(&value)?.try_into_owned().ok().map(Into::into),
        }
    }
}

impl Fact for Answer {
    fn variant(self) -> Option<Variant<'static>> {
        Some(Variant::new(self.0))
    }
}

macro_rules! facts {
    ($($kind:ty),+ $(,)?) => {$(
        impl Fact for $kind {
            fn variant(self) -> Option<Variant<'static>> {
                Some(Variant::new(self))
            }
        }
    )+};
}

facts!(
    bool,
    i32,
    u32,
    u64,
    f64,
    Text,
    (u32, u32),
    Vec<Text>,
    Vec<(Text, f64)>,
    Vec<(Text, f64, f64)>,
    Vec<(Text, Vec<f64>, Text)>,
    Vec<(u64, Text, Text)>,
    Vec<(f64, bool)>,
    Vec<(u64, f64, u32, u32, u32, u64)>,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_an_answer_has_what_the_bus_refuses() {
        let bad = "a\0b\x1bc";
        let dict = Answer::default()
            .with("line", bad)
            .with("owned", bad.to_owned())
            .with("unknown", None::<String>)
            .with("rows", vec![(1, bad.into(), bad.into())])
            .with("stages", vec![(bad.into(), 1.0)])
            .with("inner", Answer::default().with("text", Some(bad)))
            .dict();
        assert_eq!(dict.len(), 5);
        let all = format!("{dict:?}");
        assert_eq!(all.matches("a\u{fffd}b\u{fffd}c").count(), 6, "{all}");
    }
}
