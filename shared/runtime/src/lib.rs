//! The runtime of every service: logs, metrics, health, workers, and an orderly stop.
//!
//! A service is a [`Role`]: it reads its settings, opens files and sockets, and spawns workers
//! (named OS threads) in its [`Scope`]. Its whole `main` is [`Process::run`]; a [`Process`] has one
//! role or several. The order is always the same:
//!
//! ```text
//! settings   all roles read them, all mistakes are reported at once      exit 2
//! telemetry  logs to standard error, through a bounded queue
//! build      the admin server binds, then each role starts               exit 1
//! run        until a signal, until a role finishes, or until a worker fails; systemd is told
//! drain      role by role, in the order in which they were added: stopped, then joined; one deadline for all
//! exit       0 finished or stopped, 1 a worker failed or the deadline was exceeded
//! ```
//!
//! A worker that returns an error or panics ends the process: the orchestrator restarts it.
//! Failures of the outside world (an interface, a destination) are retried by the worker and shown
//! by a [`Latch`].
//!
//! The admin server has its own thread, so that it answers while the data plane is saturated.
//!
//! **Invariant:** no async outside the admin server. **Invariant:** no service is named here.

mod admin;
mod cli;
mod connection;
mod descriptors;
mod files;
mod health;
mod host;
mod job;
mod journal;
mod limit;
mod log_queue;
mod losses;
mod metrics;
mod mibs;
mod pages;
mod process;
mod scope;
mod site;
mod status;
mod status_feed;
mod stop;
mod stop_clock;
mod supervisor;
mod systemd;
mod telemetry;
mod tool;

use sekiwake_settings::Reader;

pub use cli::{CommandLine, EXIT_STATUSES};
pub use descriptors::{has_free_descriptor, with_reserve};
pub use files::FileContents;
pub use health::Latch;
pub use host::host_name;
pub use job::run_job;
pub use limit::{LOG_INTERVAL, RateLimited, Suppressed};
pub use log_queue::{messages, print_message};
pub use losses::{LossEvent, LossReason, Losses};
pub use metrics::Metrics;
pub use mibs::MibFolder;
pub use pages::{PageBody, PageError, PageRequest, PageWriter, WritePage};
pub use process::{Process, ReadyToStart, Running};
pub use prometheus;
pub use scope::{Scope, Worker};
pub use site::{SiteRequest, SiteResponse};
pub use status::StatusResponder;
pub use status_feed::StatusFeed;
pub use stop::{Hangups, Stop, Stopper, stop_pair};
pub use stop_clock::StopClock;
pub use supervisor::{Ending, StopHandle};
pub use tool::{Tool, run_tool, tool_command_line};

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The names of a service.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name in metrics, logs and the table of variables: `capture`.
    pub service: &'static str,
    /// Its binary: `sekiwake-capture`.
    pub binary: &'static str,
    /// Its purpose, in one line.
    pub summary: &'static str,
    /// The default port of its admin server.
    pub admin_port: u16,
}

/// What [`Role::examine`] finds, as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The service cannot work like this.
    Wrong(String),
    /// It cannot be examined now.
    Unknown(String),
}

/// One service, as the runtime sees it.
pub trait Role: Sized + 'static {
    /// Its names.
    const ABOUT: About;

    /// Its settings, parsed.
    type Settings;

    /// Reads the settings. It cannot fail: the reader records mistakes.
    fn read(reader: &mut Reader) -> Self::Settings;

    /// Additions to the output of `--check`. A pair with the name of a variable replaces its value
    /// (a default determined at run time, a masked secret); any other is printed as a comment (a
    /// memory limit that follows from several settings).
    fn describe(_settings: &Self::Settings) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Examines for `--check` what is not on this host, such as streams on servers. It is called
    /// for settings without mistakes, and may take seconds.
    fn examine(_settings: &Self::Settings) -> Vec<Finding> {
        Vec::new()
    }

    /// Opens files and sockets, spawns the workers and returns. An error ends the process with
    /// status 1.
    fn start(settings: Self::Settings, scope: &Scope) -> anyhow::Result<()>;
}
