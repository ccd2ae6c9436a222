//! What is wrong with the settings, one line each.

use std::fmt;

/// A value longer than this is cut in the message: a list of destinations can be many lines long.
const MAX_SHOWN_CHARACTERS: usize = 120;

/// One thing that is wrong with the settings. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A name with our prefix that no part of the project knows.
    #[error("{name}={}: no such setting{hint}", shown(value))]
    Unknown {
        /// The name as it was found.
        name: String,
        /// Its value.
        value: String,
        /// What may have been meant, to be appended; may be empty.
        hint: String,
    },
    /// A value that its variable does not take.
    #[error("{name}={}: expected {takes}", shown(value))]
    Value {
        /// The variable.
        name: String,
        /// The value as it was found, trimmed.
        value: String,
        /// What the variable takes, and what is wrong with the value.
        takes: String,
    },
    /// A variable that has to be set and is not.
    #[error("{name} is not set: expected {takes}")]
    Missing {
        /// The variable.
        name: String,
        /// What it takes.
        takes: String,
    },
    /// A value that is no text.
    #[error("{name}={}: expected UTF-8 text", shown(value))]
    NotText {
        /// The variable.
        name: String,
        /// The value, with replacement characters for what is not UTF-8.
        value: String,
    },
}

/// Everything that is wrong with the settings. Its text is one line for each mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub(crate) Vec<Mistake>);

impl Mistakes {
    /// The mistakes, unknown names first, then in the order in which the variables were read.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

/// In quotes, with escapes for what would break the line.
fn shown(value: &str) -> String {
    match value.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}
