//! The state that a forwarder keeps of flow exporters: their templates and sequence numbers.
//!
//! NetFlow v9 and IPFIX describe their data by templates, which an exporter sends at intervals (RFC
//! 3954, RFC 7011 §8). A collector that has not received them drops the data. Therefore the
//! templates are kept as they were received, and are sent ahead of the data to a new destination.
//! Gaps in the sequence numbers show losses between the exporter and the capture.
//!
//! An exporter is a process: its address, its port (RFC 7011 §2) and its domain.
//!
//! No socket, no clock, no thread: datagrams and their capture times go in, values come out.

mod addresses;
mod change;
mod datagrams;
mod exporter;
mod exporters;
mod header;
mod known;
mod lru;
mod options_data;
mod plausibility;
mod sequence;
mod sets;
mod template;

pub use change::Change;
pub use exporters::{Counters, DestinationSlots, Exporters, Limits, Observed};
pub use known::{KnownTemplate, TemplateDatagrams, TemplateField, known_templates, template_datagrams};
pub use plausibility::{Countable, Losses};
pub use sequence::Sequence;
pub use sets::{MissingTemplate, Set, TemplateLayout, Templates};
