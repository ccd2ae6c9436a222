//! Stored syslog: what a line is, what files are called, how they are packed, read and searched. Writing them is the storer's.

mod line;
mod lines;
mod name;
mod pack;
mod query;
mod search;
mod walk;

pub use line::{LineEncoder, MAX_LINE_BYTES, Message, captured_at_of};
pub use lines::Lines;
pub use name::{LineFormat, MAX_PERIOD, Part, PartName, Period, is_path};
pub use pack::{PackSummary, pack};
pub use query::{Query, QueryError};
pub use search::{SearchSummary, search};
pub use walk::{MAX_FILES, Unread, walk};
