//! From variables to domain types.
//!
//! envy deserializes the text of a variable into the type of its setting, through that type's
//! [`Setting::parse`]. It is given one variable at a time, because deserializing a whole struct
//! ends at the first error and this reader reports all mistakes at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    ops::RangeInclusive,
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    Environment, Setting,
    environment::{PREFIX, Text, mistyped},
    mistakes::{Mistake, Mistakes},
    variables::{VARIABLES, Variable, VariableDefault, variable},
};

/// The similarity (Jaro-Winkler, 0 to 1) from which a known name is suggested for an unknown one.
const SUGGESTION_SIMILARITY: f64 = 0.9;

/// Stands for a value that may be a secret.
const HIDDEN: &str = "(hidden)";

/// Parts of names whose values may be secrets.
const SENSITIVE: [&str; 6] = ["KEY", "NOTIF", "WEBHOOK", "PASSWORD", "SECRET", "TOKEN"];

/// Reads settings and collects mistakes. Several services can read from one reader and have their
/// mistakes reported together.
#[derive(Debug)]
pub struct Reader {
    /// The variables that are set, trimmed, without the empty ones.
    texts: BTreeMap<&'static str, String>,
    /// File and line of those that are set in a file.
    origins: BTreeMap<&'static str, String>,
    mistakes: Vec<Mistake>,
    /// What is allowed and probably not meant: variable and text.
    warnings: Vec<(&'static str, String)>,
    /// The variables that were read, and their text: as set, or the default.
    resolved: Vec<(&'static str, String)>,
    read: BTreeSet<&'static str>,
    reads_files: bool,
}

/// A setting, for serde.
struct Parsed<T>(T);

impl<'de, T: Setting> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parsed<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::parse(&text).map(Parsed).map_err(D::Error::custom)
    }
}

/// Reads with `body` and returns its result, or all mistakes.
pub fn read<T>(environment: &Environment, body: impl FnOnce(&mut Reader) -> T) -> Result<T, Mistakes> {
    let mut reader = Reader::new(environment);
    let settings = body(&mut reader);
    reader.finish().map(|()| settings)
}

impl Reader {
    /// A reader of this environment. Unknown names, values that are not UTF-8 and lines of files
    /// that are not assignments are mistakes.
    pub fn new(environment: &Environment) -> Reader {
        let mut mistakes = environment.mistakes().to_vec();
        let mut texts = BTreeMap::new();
        let mut origins = BTreeMap::new();
        for (name, Text { value, origin }) in environment.pairs() {
            let name = name.to_string_lossy();
            let Some(variable) = variable(&name) else {
                let value = value.to_string_lossy();
                let hint = hint(&name, &value);
                let value = if may_be_secret(&name, &value, &hint) { HIDDEN.to_owned() } else { value.into_owned() };
                let mistake = Mistake::Unknown { hint, name: name.into_owned(), value };
                mistakes.push(mistake.at(origin.as_ref()));
                continue;
            };
            match value.to_str().map(str::trim) {
                Some("") => {}
                Some(text) => {
                    texts.insert(variable.name, text.to_owned());
                    origins.extend(origin.clone().map(|origin| (variable.name, origin)));
                }
                None => {
                    let value = value.to_string_lossy().into_owned();
                    mistakes.push(Mistake::NotText { name: name.into_owned(), value }.at(origin.as_ref()));
                }
            }
        }
        Reader {
            texts,
            origins,
            mistakes,
            warnings: Vec::new(),
            resolved: Vec::new(),
            read: BTreeSet::new(),
            reads_files: true,
        }
    }

    /// The same reader for a check on another host than the service's, which lacks the files that
    /// settings name.
    #[must_use]
    pub fn without_files(mut self) -> Reader {
        self.reads_files = false;
        self
    }

    /// Whether files that settings name are to be read. Without them settings are incomplete, and
    /// only their mistakes are of use.
    pub fn reads_files(&self) -> bool {
        self.reads_files
    }

    /// The variable's value, or its default. A mistake is recorded and gives the default, so that
    /// reading continues.
    ///
    /// # Panics
    /// When the variable is not in [`VARIABLES`], or its default is only described or cannot be
    /// parsed. Both are programming errors.
    pub fn value<T: Setting>(&mut self, name: &'static str) -> T {
        self.checked(name, T::takes(), |_| true)
    }

    /// As [`Reader::value`], and a value outside the range is a mistake.
    ///
    /// # Panics
    /// As [`Reader::value`].
    pub fn within<T: Setting + PartialOrd + Debug>(&mut self, name: &'static str, range: RangeInclusive<T>) -> T {
        let takes = format!("{}, from {} to {}", T::takes(), range.start().show(), range.end().show());
        self.checked(name, &takes, |value| range.contains(value))
    }

    /// The variable's value, or `None` when it is unset or empty. A mistake is recorded and gives
    /// `None`.
    ///
    /// # Panics
    /// When the variable is not in [`VARIABLES`].
    pub fn optional<T: Setting>(&mut self, name: &'static str) -> Option<T> {
        known(name);
        let text = self.text(name);
        self.record(name, text.clone().unwrap_or_default());
        let text = text?;
        match parse(name, &text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.mistake(name, &text, &expected(T::takes(), &wrong));
                None
            }
        }
    }

    /// Records a mistake that is found only by comparing several settings. `takes` follows
    /// "expected"; with an empty value the message says that the variable is not set. The same
    /// mistake is recorded once, however many services find it.
    pub fn mistake(&mut self, name: &str, value: &str, takes: &str) {
        let origin = self.origins.get(name);
        let name = name.to_owned();
        let takes = takes.to_owned();
        let mistake = match value {
            "" => Mistake::Missing { name, takes },
            _ => Mistake::Value { name, value: value.to_owned(), takes },
        };
        let mistake = mistake.at(origin);
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Whether the variable is set and not empty.
    pub fn is_set(&self, name: &str) -> bool {
        self.texts.contains_key(name)
    }

    /// Records a mistake if this variable is set. `why` follows "expected it to be unset, ".
    pub fn must_be_unset(&mut self, name: &'static str, why: &str) {
        known(name);
        self.read.insert(name);
        if let Some(text) = self.text(name) {
            let is_sensitive = SENSITIVE.iter().any(|word| name.contains(word));
            let shown = if is_sensitive { HIDDEN } else { &text };
            self.mistake(name, shown, &format!("it to be unset, {why}"));
        }
    }

    /// Replaces the default of a variable, for a default that depends on other settings.
    pub fn default_to(&mut self, name: &'static str, text: &str) {
        known(name);
        self.texts.entry(name).or_insert_with(|| text.to_owned());
    }

    /// Reports what is allowed and probably not meant, for `--check`.
    pub fn warning(&mut self, name: &'static str, text: String) {
        self.warnings.push((name, text));
    }

    /// The warnings so far: variable and text.
    pub fn warnings(&self) -> &[(&'static str, String)] {
        &self.warnings
    }

    /// Name and text of the variables read so far, in reading order: as set, else the default, else
    /// empty.
    pub fn resolved(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.resolved.iter().map(|(name, text)| (*name, text.as_str()))
    }

    /// The variables of this service that are set but were not read. They have no effect, so a
    /// warning is logged.
    pub fn unused(&self, service: &str) -> Vec<&'static str> {
        let is_unused = |variable: &&Variable| {
            variable.concerns(service) && self.text(variable.name).is_some() && !self.read.contains(variable.name)
        };
        VARIABLES.iter().filter(is_unused).map(|variable| variable.name).collect()
    }

    /// All mistakes, or none.
    pub fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }

    fn checked<T: Setting>(&mut self, name: &'static str, takes: &str, is_valid: impl Fn(&T) -> bool) -> T {
        let default = default_text(known(name));
        let text = self.text(name);
        self.record(name, text.clone().unwrap_or_else(|| default.to_owned()));
        if let Some(text) = text {
            match parse(name, &text) {
                Ok(value) if is_valid(&value) => return value,
                Ok(_) => self.mistake(name, &text, takes),
                Err(wrong) => self.mistake(name, &text, &expected(takes, &wrong)),
            }
        }
        T::parse(default).unwrap_or_else(|wrong| panic!("the default of {name} cannot be parsed: {wrong}"))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.texts.get(name).cloned()
    }

    fn record(&mut self, name: &'static str, text: String) {
        if self.read.insert(name) {
            self.resolved.push((name, text));
        }
    }
}

fn parse<T: Setting>(name: &str, text: &str) -> Result<T, String> {
    let variables = [(name.to_owned(), text.to_owned())];
    let values: BTreeMap<String, Parsed<T>> =
        envy::prefixed(PREFIX).from_iter(variables).map_err(|error| match error {
            envy::Error::Custom(wrong) => wrong,
            missing => missing.to_string(),
        })?;
    // One variable with the prefix gives one value.
    values.into_values().next().map(|parsed| parsed.0).ok_or_else(String::new)
}

fn known(name: &str) -> &'static Variable {
    variable(name).unwrap_or_else(|| panic!("{name} is not in the table of variables"))
}

fn default_text(variable: &Variable) -> &'static str {
    match variable.default {
        VariableDefault::Value(text) => text,
        VariableDefault::Described(_) => panic!("{} has no default that can be parsed", variable.name),
    }
}

fn expected(takes: &str, wrong: &str) -> String {
    if wrong.is_empty() { takes.to_owned() } else { format!("{takes} ({wrong})") }
}

/// A hint for an unknown name, to be appended to the message.
fn hint(name: &str, value: &str) -> String {
    if is_kubernetes_link(name, value) {
        return ", it looks like a service link injected by Kubernetes: set enableServiceLinks to false".to_owned();
    }
    let Some(name) = name.strip_prefix(PREFIX) else {
        return mistyped(name).map(|name| format!(", did you mean {name}?")).unwrap_or_default();
    };
    let name = name.to_uppercase();
    let similarity = |variable: &Variable| strsim::jaro_winkler(&name, &variable.name[PREFIX.len()..]);
    VARIABLES
        .iter()
        .map(|variable| (similarity(variable), variable.name))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY)
        .map(|(_, name)| format!(", did you mean {name}?"))
        .unwrap_or_default()
}

/// Whether the value of an unknown name may be a secret: that of a notifier, a key, or a URI that
/// belongs to no known variable.
fn may_be_secret(name: &str, value: &str, hint: &str) -> bool {
    let name = name.to_ascii_uppercase();
    SENSITIVE.iter().any(|word| name.contains(word) || hint.contains(word)) || hint.is_empty() && value.contains("://")
}

/// A Service named `sekiwake-proxy` injects `SEKIWAKE_PROXY_SERVICE_HOST`, `_SERVICE_PORT`,
/// `_PORT=tcp://...`, `_PORT_5559_TCP` and so on.
fn is_kubernetes_link(name: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && is_url)
}
