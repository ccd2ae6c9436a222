//! Stored syslog: what a line is, what files are called, how they are packed, read and searched. Writing them is the storer's.

mod line;
mod name;
mod pack;
mod search;

pub use name::{LineFormat, MAX_PERIOD, PartName, Period, is_path};
