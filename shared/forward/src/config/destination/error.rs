//! The mistake in a list of destinations, and its position.

use sekiwake_settings::printable;

/// The first mistake in a list of destinations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {}", printable(problem))]
pub struct DestinationError {
    /// Where the mistake is, in characters from the beginning of the whole list, which is column 1.
    pub column: usize,
    /// The mistake, and what was expected.
    pub problem: String,
}

/// A mistake in one URI or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Bytes from the beginning of that part.
    offset: usize,
    problem: String,
}

impl Mistake {
    pub(super) fn new(offset: usize, problem: impl Into<String>) -> Mistake {
        Mistake { offset, problem: problem.into() }
    }

    /// The same mistake, seen from a text in which the part begins at this offset.
    pub(super) fn moved(self, by: usize) -> Mistake {
        Mistake { offset: by + self.offset, problem: self.problem }
    }

    /// The same mistake, seen from the whole list, in which the URI begins at `start`.
    pub(super) fn in_list(self, list: &str, start: usize) -> DestinationError {
        let before = &list[..start + self.offset];
        DestinationError { column: before.chars().count() + 1, problem: self.problem }
    }
}

/// A mistake as the result of reading.
pub(super) fn mistake<T>(offset: usize, problem: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake::new(offset, problem))
}
