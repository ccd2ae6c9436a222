//! What every service runs in: logs, metrics, health, workers, an orderly stop.
//!
//! A service is a [`Role`]: it reads its settings, opens and binds what it needs, and spawns workers (named OS threads)
//! in its [`Scope`]. Its whole `main` is [`run`]; [`Process`] puts several roles into one process. The order is the same
//! in all of them:
//!
//! ```text
//! settings   all roles read them, all mistakes are reported at once      exit 2
//! telemetry  logs to standard error
//! build      the admin server binds, then each role starts               exit 1
//! run        until a signal, until a role is done, or until a worker dies
//! drain      role by role in the order in which they were added: told to stop, then joined; one deadline for all
//! exit       0 done or told to stop, 1 a worker died or somebody was late
//! ```
//!
//! A worker that returns an error or panics ends the process: there is no restart inside, the orchestrator does that.
//! What comes and goes in the world (an interface, a destination) is retried by the worker itself and shown by a [`Latch`].
//!
//! The admin server has a thread of its own, so that it answers while the data plane is saturated.
//!
//! **Invariant:** no async outside of the admin server. **Invariant:** nothing here knows a service by name.

mod admin;
mod cli;
mod connection;
mod health;
mod host;
mod limit;
mod losses;
mod metrics;
mod pages;
mod process;
mod scope;
mod status;
mod stop;
mod supervisor;
mod telemetry;
mod tool;

use std::process::ExitCode;

use sekiwake_settings::{Environment, Reader};

pub use health::Latch;
pub use host::host_name;
pub use limit::{LOG_INTERVAL, RateLimited};
pub use losses::{LossEvent, LossReason, Losses};
pub use metrics::Metrics;
pub use pages::{PageBody, PageRefusal, PageRequest, PageWriter, WritePage};
pub use process::{Process, ReadyToStart, Running};
pub use prometheus;
pub use scope::{Scope, Worker};
pub use status::StatusDesk;
pub use stop::{Hangups, Stop, Stopper, stop_pair};
pub use supervisor::{Ending, StopHandle};
pub use tool::{Tool, run_tool};

/// The version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a service is called.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name in metrics, logs and the table of variables: `capture`.
    pub service: &'static str,
    /// Its binary: `sekiwake-capture`.
    pub binary: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// The port of its admin server, where no setting says otherwise.
    pub admin_port: u16,
}

/// One service, as the runtime sees it.
pub trait Role: Sized + 'static {
    /// What it is called.
    const ABOUT: About;

    /// Its settings, parsed.
    type Settings;

    /// Reads the settings. Never fails: mistakes are noted by the reader.
    fn read(reader: &mut Reader) -> Self::Settings;

    /// What `--check` prints beside the variables that were read. A pair that is named like a variable replaces its value
    /// (a default that was found out, a secret to be masked); any other is printed as a comment (a memory limit that
    /// follows from several settings).
    fn describe(_settings: &Self::Settings) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Opens and binds, then spawns the workers and returns. An error ends the process with status 1.
    fn start(settings: Self::Settings, scope: &Scope) -> anyhow::Result<()>;
}

/// The whole `main` of a service.
pub fn run<R: Role>() -> ExitCode {
    Process::of::<R>().run()
}

/// The whole `main` of a service that has subcommands of its own, given as a clap enum. The handler reads what it needs with
/// [`sekiwake_settings::read`]; if it returns those mistakes as its error, the status is 2, with any other it is 1.
pub fn run_with<R: Role, C: clap::Subcommand>(
    handler: impl FnOnce(C, &Environment) -> anyhow::Result<ExitCode> + 'static,
) -> ExitCode {
    Process::of::<R>().commands(handler).run()
}
