//! Stored syslog: what a line is, what files are called, how they are packed, read and searched. Writing them is the storer's.

mod line;
mod name;
mod pack;
mod search;

pub use line::{LineEncoder, MAX_LINE_BYTES, Message, captured_at_of};
pub use name::{LineFormat, MAX_PERIOD, Part, PartName, Period, is_path};
