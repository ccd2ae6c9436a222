//! Keeps syslog on disk.
//!
//! ```text
//! bus ─▶ receive: lines, by file ═▶ write: Writer, synced ─▶ the bus is told that it is done with
//!                                    files ─▶ keep: compressed, deleted     files ─▶ /search
//! ```

mod commit;
mod disk;
pub mod find;
mod keeping;
mod load;
mod metrics;
mod receive;
mod recovery;
mod service;
mod settings;
mod template;
mod writer;

pub use disk::{Disk, Found, RealDisk};
pub use keeping::{Keeping, KeepingSettings, Round};
pub use load::Load;
pub use metrics::names;
pub use recovery::Recovered;
pub use service::Storer;
pub use settings::StorerSettings;
pub use template::{Template, TemplateError};
pub use writer::{StoreError, Writer, WriterSettings};
