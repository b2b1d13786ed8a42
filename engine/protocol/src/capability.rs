//! Compute capabilities as a profile lists them.

use serde::{Deserialize, Serialize};

/// A compute capability such as `8.6` or, as `8`, all of one major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Capability {
    /// The major version.
    pub major: u32,
    /// The minor version; `None` stands for every one.
    pub minor: Option<u32>,
}

impl Capability {
    /// Returns whether a card has this compute capability.
    pub fn matches(self, (major, minor): (u32, u32)) -> bool {
        self.major == major && self.minor.is_none_or(|wanted| wanted == minor)
    }
}

impl From<Capability> for String {
    fn from(Capability { major, minor }: Capability) -> Self {
        minor.map_or_else(|| major.to_string(), |minor| format!("{major}.{minor}"))
    }
}

impl TryFrom<String> for Capability {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (major, minor) =
            text.split_once('.').map_or((&*text, None), |(major, minor)| (major, Some(minor)));
        let number = |digits: &str| {
            digits.parse().map_err(|_| {
                format!("`{text}` is no compute capability; write \"8.6\", or \"8\" for 8.0 to 8.9")
            })
        };
        Ok(Self { major: number(major)?, minor: minor.map(number).transpose()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capabilities_are_exact_or_all_of_a_major_version() {
        let of = |text: &str| Capability::try_from(text.to_owned());
        let matches = |text, card| of(text).is_ok_and(|wanted| wanted.matches(card));
        assert!(matches("8.6", (8, 6)) && !matches("8.6", (8, 9)) && !matches("8.6", (9, 6)));
        assert!(matches("8", (8, 0)) && matches("8", (8, 9)) && !matches("8", (12, 0)));
        for wrong in ["", "ada", "8.", ".9", "8.9a", "-8"] {
            assert!(of(wrong).is_err_and(|e| e.contains(&format!("`{wrong}`"))), "{wrong}");
        }
        for text in ["8", "8.9", "12.0"] {
            assert_eq!(of(text).map(String::from).as_deref(), Ok(text));
        }
    }
}
