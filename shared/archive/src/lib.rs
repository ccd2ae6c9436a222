//! Stored syslog: the format of lines, file names and compressed files, and reading and searching
//! them. The storer writes them.

mod compress;
mod line;
mod lines;
mod name;
mod query;
mod search;
mod time;
mod walk;

pub use compress::compress;
pub use line::{LineEncoder, MAX_LINE_BYTES, Message, captured_at_of};
pub use lines::Lines;
pub use name::{FileState, LineFormat, MAX_PERIOD, Part, PartName, Period, is_marked_open, is_path};
pub use query::{Order, Query, QueryError};
pub use search::{SearchSummary, Unreadable, search};
pub use walk::{MAX_FILES, Unread, walk};
