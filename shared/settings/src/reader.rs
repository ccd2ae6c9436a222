//! From raw strings to domain types.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::environment::PREFIX;
use crate::mistakes::{Mistake, Mistakes};
use crate::variables::{VARIABLES, Variable, VariableDefault, variable};
use crate::{Environment, Setting};

/// How alike (Jaro-Winkler, 0 to 1) an unknown name and a known one must be for the one to be suggested for the other.
const SUGGESTION_LIKENESS: f64 = 0.9;

/// Reads settings and collects mistakes. Several services can read from one reader, and get their mistakes together.
#[derive(Debug)]
pub struct Reader {
    /// By the lower-case name without the prefix, as envy gives them; trimmed, without the empty ones.
    texts: HashMap<String, String>,
    mistakes: Vec<Mistake>,
    /// What was read, and the text that counted: the one that was set, or the default.
    resolved: Vec<(&'static str, String)>,
    read: BTreeSet<&'static str>,
}

/// Reads with `body` and gives what it made, or all mistakes.
pub fn read<T>(environment: &Environment, body: impl FnOnce(&mut Reader) -> T) -> Result<T, Mistakes> {
    let mut reader = Reader::new(environment);
    let settings = body(&mut reader);
    reader.finish().map(|()| settings)
}

impl Reader {
    /// A reader of this environment. Names that nobody knows and values that are no text are noted as mistakes.
    pub fn new(environment: &Environment) -> Reader {
        let mut mistakes = Vec::new();
        let mut known = Vec::new();
        for (name, value) in environment.pairs() {
            let (name, value) = (name.to_string_lossy(), value.to_str().ok_or_else(|| value.to_string_lossy()));
            // Judged here and by the exact name: envy would take `SEKIWAKE_tick` and `SEKIWAKE_SEKIWAKE_TICK` for `SEKIWAKE_TICK`.
            if variable(&name).is_none() {
                let value = value.map_or_else(|lossy| lossy.into_owned(), str::to_owned);
                mistakes.push(Mistake::Unknown { hint: hint(&name, &value), name: name.into_owned(), value });
                continue;
            }
            match value {
                Ok(value) if value.trim().is_empty() => {}
                Ok(value) => known.push((name.into_owned(), value.trim().to_owned())),
                Err(lossy) => mistakes.push(Mistake::NotText { name: name.into_owned(), value: lossy.into_owned() }),
            }
        }
        // Strings into a map of strings: there is nothing that could fail to parse yet.
        let texts = envy::prefixed(PREFIX).from_iter(known).unwrap_or_default();
        Reader { texts, mistakes, resolved: Vec::new(), read: BTreeSet::new() }
    }

    /// The variable's value, or its default. On a mistake: noted, and the default, so that reading goes on.
    ///
    /// # Panics
    /// When the variable is not in [`VARIABLES`], or its default is only described or does not parse. Both are mistakes of
    /// the program, not of its user.
    pub fn value<T: Setting>(&mut self, name: &'static str) -> T {
        self.checked(name, T::takes(), |_| true)
    }

    /// As [`Reader::value`], and a value outside of the range is a mistake.
    ///
    /// # Panics
    /// As [`Reader::value`].
    pub fn within<T: Setting + PartialOrd + Debug>(&mut self, name: &'static str, range: RangeInclusive<T>) -> T {
        let takes = format!("{}, from {} to {}", T::takes(), range.start().show(), range.end().show());
        self.checked(name, &takes, |value| range.contains(value))
    }

    /// The variable's value, or `None` when it is unset or set to nothing. On a mistake: noted, and `None`.
    ///
    /// # Panics
    /// When the variable is not in [`VARIABLES`].
    pub fn optional<T: Setting>(&mut self, name: &'static str) -> Option<T> {
        known(name);
        let text = self.text(name);
        self.note(name, text.clone().unwrap_or_default());
        let text = text?;
        match T::parse(&text) {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.mistake(name, &text, &expected(T::takes(), &wrong));
                None
            }
        }
    }

    /// Notes a mistake that only shows when settings are looked at together. `takes` follows "expected"; with an empty
    /// value the line says that the variable is not set. The same mistake is noted once, however many services find it.
    pub fn mistake(&mut self, name: &str, value: &str, takes: &str) {
        let (name, takes) = (name.to_owned(), takes.to_owned());
        let mistake = match value {
            "" => Mistake::Missing { name, takes },
            _ => Mistake::Value { name, value: value.to_owned(), takes },
        };
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }

    /// Name and text of what was read so far, in the order of the reading: what was set, else the default, else nothing.
    pub fn resolved(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.resolved.iter().map(|(name, text)| (*name, text.as_str()))
    }

    /// What is set and meant for this service, but was not read: to be warned of, as it has no effect.
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
        self.note(name, text.clone().unwrap_or_else(|| default.to_owned()));
        if let Some(text) = text {
            match T::parse(&text) {
                Ok(value) if is_valid(&value) => return value,
                Ok(_) => self.mistake(name, &text, takes),
                Err(wrong) => self.mistake(name, &text, &expected(takes, &wrong)),
            }
        }
        T::parse(default).unwrap_or_else(|wrong| panic!("the default of {name} does not parse: {wrong}"))
    }

    fn text(&self, name: &str) -> Option<String> {
        let key = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
        self.texts.get(&key).cloned()
    }

    fn note(&mut self, name: &'static str, text: String) {
        if self.read.insert(name) {
            self.resolved.push((name, text));
        }
    }
}

fn known(name: &str) -> &'static Variable {
    variable(name).unwrap_or_else(|| panic!("{name} is not in the table of variables"))
}

fn default_text(variable: &Variable) -> &'static str {
    match variable.default {
        VariableDefault::Value(text) => text,
        VariableDefault::Described(_) => panic!("{} has no default that could be parsed", variable.name),
    }
}

fn expected(takes: &str, wrong: &str) -> String {
    if wrong.is_empty() { takes.to_owned() } else { format!("{takes} ({wrong})") }
}

/// What may have been meant by a name that nobody knows.
fn hint(name: &str, value: &str) -> String {
    if is_kubernetes_link(name, value) {
        return ", it looks like a link that Kubernetes injected: set enableServiceLinks to false".to_owned();
    }
    let name = name[PREFIX.len()..].to_uppercase();
    let likeness = |variable: &Variable| strsim::jaro_winkler(&name, &variable.name[PREFIX.len()..]);
    VARIABLES
        .iter()
        .map(|variable| (likeness(variable), variable.name))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .filter(|(likeness, _)| *likeness >= SUGGESTION_LIKENESS)
        .map(|(_, name)| format!(", did you mean {name}?"))
        .unwrap_or_default()
}

/// A Service named `sekiwake-proxy` injects `SEKIWAKE_PROXY_SERVICE_HOST`, `_SERVICE_PORT`, `_PORT=tcp://...`, `_PORT_5559_TCP` and so on.
fn is_kubernetes_link(name: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
        || (name.ends_with("_PORT") && is_url)
}
