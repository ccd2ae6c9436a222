//! Stores syslog on disk.
//!
//! ```text
//! bus ─▶ receive: lines per file ═▶ write: Writer, fsynced ─▶ ack tokens are dropped
//!                                    files ─▶ maintain: compress, delete     files ─▶ /search
//! ```

mod command;
mod commit;
mod disk;
mod error;
pub mod find;
mod load;
mod maintenance;
mod metrics;
mod receive;
mod recovery;
mod retention_clock;
mod service;
mod settings;
mod template;
mod writer;

pub use command::process;
pub use disk::{Created, Disk, Found, Listing, Locked, RealDisk};
pub use error::StoreError;
pub use load::Load;
pub use maintenance::{DeletedFiles, FileTotals, Maintenance, MaintenanceSettings, Round};
pub use metrics::names;
pub use recovery::Recovered;
pub use service::Storer;
pub use settings::StorerSettings;
pub use template::{Template, TemplateError};
pub use writer::{Writer, WriterSettings};
