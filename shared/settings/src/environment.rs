//! The raw strings.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// What every variable's name begins with.
pub const PREFIX: &str = "SEKIWAKE_";

/// The `SEKIWAKE_` pairs of an environment, as they were found. Other variables are left out at the door.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pairs: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// The environment of this process, as it is now.
    pub fn from_process() -> Environment {
        Environment::from_pairs(std::env::vars_os())
    }

    /// An environment made of these pairs; of two with one name the later wins. This is how tests give settings.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Environment
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
            .collect();
        Environment { pairs }
    }

    /// Name and value of each, in the order of the names.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.pairs.iter()
    }
}
