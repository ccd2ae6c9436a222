//! Settings from pairs, not from the process environment.

mod files;
mod reading;
mod table;
mod values;
