//! The variables as they are in the environment, and in a file in its place.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use crate::{
    env_file::{self, Assignment},
    mistakes::Mistake,
    variables::VARIABLES,
};

/// The prefix of every variable.
pub const PREFIX: &str = "SEKIWAKE_";

/// How many characters of a name may be wrong, missing, too many or swapped for it to be a typing
/// error.
const MAX_TYPOS: usize = 2;

/// The `SEKIWAKE_` variables of an environment, unparsed, and those whose name is a typing error of
/// one (`SEKIWAK_SYSLOG_PORTS`). Other variables are ignored.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pairs: BTreeMap<OsString, Text>,
    /// What is wrong with lines of files.
    mistakes: Vec<Mistake>,
}

/// The text of a variable.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) value: OsString,
    /// File and line, unless it is from the environment.
    pub(crate) origin: Option<String>,
}

impl Environment {
    /// The environment of this process, as it is now.
    pub fn from_process() -> Environment {
        Environment::from_pairs(std::env::vars_os())
    }

    /// An environment of these pairs; of two with the same name the later wins. For tests.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Environment
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), Text { value: value.into(), origin: None }))
            .filter(|(name, _): &(OsString, Text)| {
                has_prefix(name) || name.to_str().is_some_and(|name| mistyped(name).is_some())
            })
            .collect();
        Environment { pairs, mistakes: Vec::new() }
    }

    /// This environment with the variables of a file in the syntax of systemd's `EnvironmentFile=`,
    /// as systemd would start a service: the file takes precedence, and of two lines with the same
    /// name the later. `file` is its name in messages, `contents` are its bytes. What is wrong with
    /// a line is a mistake that the [`Reader`](crate::Reader) reports.
    #[must_use]
    pub fn with_file(mut self, file: &str, contents: &[u8]) -> Environment {
        let parsed = env_file::parse(contents);
        for Assignment { name, value, line } in parsed.assignments {
            if name.starts_with(PREFIX) || mistyped(&name).is_some() {
                let origin = Some(format!("{file}:{line}"));
                self.pairs.insert(name.into(), Text { value: value.into(), origin });
            }
        }
        for env_file::Problem { line, what } in parsed.problems {
            self.mistakes.push(Mistake::Line { file: file.to_owned(), line, what });
        }
        self
    }

    /// Names and values, ordered by name.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&OsString, &Text)> {
        self.pairs.iter()
    }

    /// What is wrong with lines of files.
    pub(crate) fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

fn has_prefix(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// The variable of which this name is a typing error.
pub(crate) fn mistyped(name: &str) -> Option<&'static str> {
    let is_close = |known: &str| {
        known.len().abs_diff(name.len()) <= MAX_TYPOS
            && strsim::osa_distance(known, &name.to_ascii_uppercase()) <= MAX_TYPOS
    };
    VARIABLES.iter().map(|variable| variable.name).find(|known| is_close(known))
}
