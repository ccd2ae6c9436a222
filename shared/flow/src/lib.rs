//! What a forwarder knows of flow exporters: their templates, and how far they have counted.
//!
//! NetFlow v9 and IPFIX describe their data by templates that an exporter sends once in a while (RFC 3954, RFC 7011 §8). A collector
//! that has not seen them drops the data. So the templates are kept as they came, and are sent ahead of the data to a destination that
//! is new. The sequence numbers of the headers tell what was lost between the exporter and here.
//!
//! No socket, no clock, no thread: datagrams and their capture times go in, values come out.

mod bytes;
mod change;
mod datagrams;
mod exporters;
mod header;
mod recency;
mod sequence;
mod template;

pub use change::{Change, ChangeKey};
pub use exporters::{Counters, Exporters, Limits, Observed};
pub use sequence::Sequence;
