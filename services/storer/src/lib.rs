//! Stores datagrams on disk: syslog as lines, flows and traps as packets. Each kind is a role of
//! its own, with its own group, threads, memory and files.
//!
//! ```text
//! bus ─▶ receive: lines per file ═▶ write: Writer, fsynced ─▶ ack tokens are dropped
//!                                    files ─▶ maintain: compress, delete     files ─▶ /search
//! ```

mod command;
mod commit;
mod disk;
mod encode;
mod error;
mod export;
pub mod find;
mod heads;
mod load;
mod maintenance;
mod metrics;
mod receive;
mod recovery;
mod replay;
mod retention_clock;
mod selection;
mod service;
mod settings;
mod show;
mod stored;
mod template;
mod writer;

pub use command::process;
pub use disk::{Created, Disk, Found, Listing, Locked, Owner, RealDisk};
pub use encode::RecordEncoder;
pub use error::StoreError;
pub use heads::SharedHeads;
pub use load::Load;
pub use maintenance::{DeletedFiles, FileTotals, Maintenance, MaintenanceSettings, Round};
pub use metrics::names;
pub use recovery::Recovered;
pub use service::{KindStorer, StoredKind, Storer, TrapStorer, XflowStorer};
pub use settings::{PerKind, StorerSettings};
pub use template::{Template, TemplateError};
pub use writer::{Writer, WriterSettings};
