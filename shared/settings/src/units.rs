//! The units of durations and sizes, for help and manual pages.

use crate::Variable;

/// How a type of setting is written.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    /// The type, as in [`Variable::takes`].
    pub of: &'static str,
    /// Its form, as a phrase.
    pub form: &'static str,
}

/// The types with units.
pub const UNITS: [Units; 2] = [
    Units { of: "duration", form: "a whole number and a unit (us, ms, s, m, h, d or w): 2ms, 10s, 7d" },
    Units { of: "size", form: "a whole number and a unit (B, KiB, MiB, GiB or TiB; bytes if omitted): 64KiB, 1GiB" },
];

impl Units {
    /// Whether the variable is of this type.
    pub fn concern(&self, variable: &Variable) -> bool {
        variable.takes == self.of
    }
}
