//! Several values in one variable.

use std::{fmt, ops::Deref};

use crate::Setting;

/// Values separated by commas or white space, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: Setting> Setting for List<T> {
    fn takes() -> &'static str {
        T::takes()
    }

    fn parse(text: &str) -> Result<List<T>, String> {
        let items = items(text)?;
        let several = items.len() > 1;
        let parse_item = |item: &str| {
            T::parse(item).map_err(|wrong| match (several, wrong.is_empty()) {
                (false, _) => wrong,
                (true, true) => format!("in {item:?}"),
                (true, false) => format!("in {item:?}: {wrong}"),
            })
        };
        items.into_iter().map(parse_item).collect::<Result<_, _>>().map(List)
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: fmt::Display> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_separated(f, &self.0)
    }
}

/// UDP or TCP ports, at least one, each from 1 to 65535 and listed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<u16>);

impl Ports {
    /// Whether this port is listed.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl Setting for Ports {
    fn takes() -> &'static str {
        "ports from 1 to 65535, separated by commas"
    }

    fn parse(text: &str) -> Result<Ports, String> {
        let mut ports = Vec::new();
        for item in items(text)? {
            match u16::parse(item) {
                Err(_) | Ok(0) => return Err(format!("{item:?} is not a port")),
                Ok(port) if ports.contains(&port) => return Err(format!("{port} is listed twice")),
                Ok(port) => ports.push(port),
            }
        }
        Ok(Ports(ports))
    }
}

impl Deref for Ports {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &self.0
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_separated(f, &self.0)
    }
}

/// The entries between commas and white space. `a,,b` is an error, because an entry has probably
/// been forgotten.
fn items(text: &str) -> Result<Vec<&str>, String> {
    let mut items = Vec::new();
    for part in text.split(',') {
        let before = items.len();
        items.extend(part.split_whitespace());
        if items.len() == before {
            return Err("an entry is empty".to_owned());
        }
    }
    Ok(items)
}

fn write_separated<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}
