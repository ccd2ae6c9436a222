//! Settings from pairs, never from the process environment.

mod reading;
mod table;
mod values;
