//! Mistakes in the settings, one line per mistake.

use std::fmt;

use crate::printable;

/// Longer values are truncated in the message: a list of destinations can have many lines.
const MAX_SHOWN_CHARACTERS: usize = 120;

/// A mistake in the settings. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// An unknown name with the prefix of Sekiwake.
    #[error("{}={}: no such setting{hint}", printable(name), shown(value))]
    Unknown {
        /// The name as it is set.
        name: String,
        /// Its value.
        value: String,
        /// A hint to be appended; may be empty.
        hint: String,
    },
    /// A value that its variable does not accept.
    #[error("{name}={}: expected {}", shown(value), printable(takes))]
    Value {
        /// The variable.
        name: String,
        /// The value as it is set, trimmed.
        value: String,
        /// The accepted values, and the problem with this one.
        takes: String,
    },
    /// A required variable that is not set.
    #[error("{name} is not set: expected {}", printable(takes))]
    Missing {
        /// The variable.
        name: String,
        /// The accepted values.
        takes: String,
    },
    /// A value that is not UTF-8.
    #[error("{name}={}: expected UTF-8 text", shown(value))]
    NotText {
        /// The variable.
        name: String,
        /// The value, with replacement characters.
        value: String,
    },
    /// A line of a file that is not an assignment.
    #[error("{}:{line}: {what}", printable(file))]
    Line {
        /// The file.
        file: String,
        /// The line; the first is 1.
        line: usize,
        /// What was found, and what would be accepted.
        what: String,
    },
    /// A mistake in a file.
    #[error("{}: {mistake}", printable(origin))]
    InFile {
        /// File and line.
        origin: String,
        /// The mistake.
        mistake: Box<Mistake>,
    },
}

impl Mistake {
    /// The mistake with the file and line of the variable, if it is from a file.
    pub(crate) fn at(self, origin: Option<&String>) -> Mistake {
        match origin {
            Some(origin) => Mistake::InFile { origin: origin.clone(), mistake: Box::new(self) },
            None => self,
        }
    }
}

/// All mistakes in the settings. The text has one line per mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub(crate) Vec<Mistake>);

impl Mistakes {
    /// The mistakes: lines of files and unknown names first, then in reading order.
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

/// The value in quotes, with line breaks escaped and without user information of URIs.
fn shown(value: &str) -> String {
    let value = without_user_information(value);
    match value.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}

/// The text with `(hidden)` for all between `://` and the last `@` of a word: a password may
/// contain any character.
fn without_user_information(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        match word.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
            Some((scheme, host)) => shown.extend([scheme, "://(hidden)@", host]),
            None => shown.push_str(word),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_information_is_hidden() {
        for (value, expected) in [
            ("udp://user:s3cret@a:514 udp://b", "udp://(hidden)@a:514 udp://b"),
            ("udp://b\ntcp://u:s3/cr@et@a", "udp://b\ntcp://(hidden)@a"),
            ("tcp://a,udp://s3cret@b?spoof=true", "tcp://(hidden)@b?spoof=true"),
            ("a@b udp://c ", "a@b udp://c "),
            ("", ""),
        ] {
            assert_eq!(without_user_information(value), expected);
        }
    }
}
