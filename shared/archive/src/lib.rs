//! Stored datagrams: the formats of lines and packets, file names and compressed files, and reading
//! and searching them. The storer writes them.

mod compress;
mod found;
mod line;
mod lines;
mod name;
mod pcapng;
mod query;
mod search;
mod time;
mod walk;

pub use compress::compress;
pub use found::{Found, Origin};
pub use line::{LineEncoder, MAX_LINE_BYTES, Message, captured_at_of};
pub use lines::Lines;
pub use name::{FileFormat, FileState, LineFormat, MAX_PERIOD, Part, PartName, Period, is_marked_open, is_path};
pub use pcapng::{FrameWriter, GroupReader, Item, OpenGroup, PacketEncoder, holds_data, messages, templates};
pub use query::{Order, Query, QueryError};
pub use search::{SearchSummary, Selection, Templates, Unreadable, read, search};
pub use walk::{MAX_FILES, Unread, walk};
