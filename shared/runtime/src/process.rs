//! A process of one or several roles, from the command line to the exit status.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Command};
use crossbeam_channel::Receiver;
use sekiwake_settings::{Environment, Mistakes, Reader};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use crate::admin::{self, AdminServer, AdminState};
use crate::health::{Health, Phase};
use crate::pages::Pages;
use crate::scope::Scope;
use crate::status::Boards;
use crate::stop::{Hangups, stop_pair};
use crate::supervisor::{Ending, Event, StopHandle, SupervisedRole, Supervisor};
use crate::telemetry::{self, LogSettings};
use crate::{About, Role, VERSION, cli};

/// How long a worker may be silent.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How many events may wait for the supervisor; who brings more waits as well.
const MAX_EVENTS: usize = 256;

/// A process and its roles, not started.
///
/// ```no_run
/// # use sekiwake_runtime::{About, Process, Role, Scope};
/// # struct Capture; struct Proxy;
/// # macro_rules! role { ($role:ident) => { impl Role for $role {
/// #     const ABOUT: About = About { service: "capture", binary: "", summary: "", admin_port: 0 };
/// #     type Settings = ();
/// #     fn read(_: &mut sekiwake_settings::Reader) {}
/// #     fn start(_: (), _: &Scope) -> anyhow::Result<()> { Ok(()) }
/// # } } }
/// # role!(Capture); role!(Proxy);
/// const ABOUT: About =
///     About { service: "all-in-one", binary: "sekiwake", summary: "Every role in one process", admin_port: 9607 };
///
/// fn main() -> std::process::ExitCode {
///     Process::new(ABOUT).add::<Capture>().add::<Proxy>().run()
/// }
/// ```
pub struct Process {
    about: About,
    roles: Vec<RoleEntry>,
    commands: Option<Commands>,
    stuck_after: Duration,
}

/// A role without its type: what is needed to read its settings.
struct RoleEntry {
    about: About,
    read: fn(&mut Reader) -> Box<dyn Resolved>,
}

/// A role without its type: its settings are read.
trait Resolved {
    fn describe(&self) -> Vec<(String, String)>;
    fn start(self: Box<Self>, scope: &Scope) -> anyhow::Result<()>;
}

struct ResolvedRole<R: Role>(R::Settings);

impl<R: Role> Resolved for ResolvedRole<R> {
    fn describe(&self) -> Vec<(String, String)> {
        R::describe(&self.0)
    }

    fn start(self: Box<Self>, scope: &Scope) -> anyhow::Result<()> {
        R::start(self.0, scope)
    }
}

type CommandHandler = dyn FnOnce(&ArgMatches, &Environment) -> anyhow::Result<ExitCode>;

/// Subcommands beyond the common ones.
struct Commands {
    augment: fn(Command) -> Command,
    handle: Box<CommandHandler>,
}

/// The settings of the process itself.
struct ProcessSettings {
    admin: Option<SocketAddr>,
    drain: Duration,
    log: LogSettings,
}

impl ProcessSettings {
    fn read(reader: &mut Reader) -> ProcessSettings {
        ProcessSettings {
            admin: reader.optional("SEKIWAKE_ADMIN"),
            drain: reader.within("SEKIWAKE_DRAIN", Duration::ZERO..=Duration::from_secs(3600)),
            log: LogSettings::read(reader),
        }
    }
}

impl Process {
    /// A process of this name, without roles.
    pub fn new(about: About) -> Process {
        Process { about, roles: Vec::new(), commands: None, stuck_after: STUCK_AFTER }
    }

    /// A process of this one role, named after it.
    pub fn of<R: Role>() -> Process {
        Process::new(R::ABOUT).add::<R>()
    }

    /// Adds a role. Roles start and stop in the order in which they are added, and each has ended before the next one is
    /// told to stop: those who bring come before those who take.
    #[must_use]
    pub fn add<R: Role>(mut self) -> Process {
        self.roles.push(RoleEntry { about: R::ABOUT, read: |reader| Box::new(ResolvedRole::<R>(R::read(reader))) });
        self
    }

    /// Adds subcommands, given as a clap enum, and what handles them. See [`run_with`](crate::run_with).
    #[must_use]
    pub fn commands<C: clap::Subcommand>(
        mut self,
        handler: impl FnOnce(C, &Environment) -> anyhow::Result<ExitCode> + 'static,
    ) -> Process {
        let handle =
            |matches: &ArgMatches, environment: &Environment| handler(C::from_arg_matches(matches)?, environment);
        self.commands = Some(Commands { augment: C::augment_subcommands, handle: Box::new(handle) });
        self
    }

    /// How long a worker may be silent before `/healthz` says so; 30 s, unless set here.
    #[must_use]
    pub fn stuck_after(mut self, silence: Duration) -> Process {
        self.stuck_after = silence;
        self
    }

    /// The whole of `main`: with the arguments, the environment and the signals of this process.
    pub fn run(self) -> ExitCode {
        self.run_from(std::env::args_os())
    }

    /// As [`Process::run`], with these arguments; the first is the program's name.
    pub fn run_from<A: Into<OsString> + Clone>(mut self, arguments: impl IntoIterator<Item = A>) -> ExitCode {
        let matches = match self.command().try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(error) => return usage_error(&error),
        };
        let environment = Environment::from_process();
        match matches.subcommand() {
            Some(("healthcheck", arguments)) => self.check_health(&environment, arguments.get_flag("ready")),
            Some(_) => {
                let Some(commands) = self.commands.take() else { return ExitCode::from(2) };
                match sekiwake_settings::read(&environment, LogSettings::read) {
                    Ok(log) => telemetry::init(&log),
                    Err(mistakes) => return configuration_error(&mistakes),
                }
                (commands.handle)(&matches, &environment).unwrap_or_else(|error| failure(self.about.binary, &error))
            }
            None if cli::wants_check(&matches) => self.check_settings(&environment),
            None => self.serve(&environment),
        }
    }

    /// Reads the settings of the process and of its roles.
    ///
    /// # Errors
    /// All mistakes of all roles at once.
    pub fn read(self, environment: &Environment) -> Result<ReadyToStart, Mistakes> {
        let mut reader = Reader::new(environment);
        let (settings, roles) = self.read_all(&mut reader);
        let concerning = |role: &RoleEntry| reader.unused(role.about.service);
        let mut unused: Vec<&'static str> = self.roles.iter().flat_map(concerning).collect();
        unused.sort_unstable();
        unused.dedup();
        reader.finish()?;
        let services = self.roles.iter().map(|role| role.about.service);
        Ok(ReadyToStart {
            about: self.about,
            settings,
            roles: services.zip(roles).collect(),
            unused,
            stuck_after: self.stuck_after,
        })
    }

    fn read_all(&self, reader: &mut Reader) -> (ProcessSettings, Vec<Box<dyn Resolved>>) {
        let roles = self.roles.iter().map(|role| (role.read)(reader)).collect();
        (ProcessSettings::read(reader), roles)
    }

    fn command(&self) -> Command {
        let services: Vec<&str> = self.roles.iter().map(|role| role.about.service).collect();
        let ready = clap::Arg::new("ready")
            .long("ready")
            .action(clap::ArgAction::SetTrue)
            .help("Ask whether it is ready, not only whether it is alive");
        let healthcheck = Command::new("healthcheck")
            .about("Ask the running service at SEKIWAKE_ADMIN whether it is well: exit status 0 or 1")
            .arg(ready);
        let command = cli::command(&self.about, &services).subcommand(healthcheck);
        match &self.commands {
            Some(commands) => (commands.augment)(command),
            None => command,
        }
    }

    fn check_settings(&self, environment: &Environment) -> ExitCode {
        let mut reader = Reader::new(environment);
        let (settings, roles) = self.read_all(&mut reader);
        let mut described: Vec<(String, String)> = roles.iter().flat_map(|role| role.describe()).collect();
        described.push(("SEKIWAKE_ADMIN".to_owned(), self.about.admin_address(settings.admin).to_string()));
        let resolved = cli::resolved(&reader, described);
        if let Err(mistakes) = reader.finish() {
            return configuration_error(&mistakes);
        }
        print(&resolved);
        ExitCode::SUCCESS
    }

    fn check_health(&self, environment: &Environment, ready: bool) -> ExitCode {
        let read = |reader: &mut Reader| reader.optional("SEKIWAKE_ADMIN");
        let address = match sekiwake_settings::read(environment, read) {
            Ok(address) => self.about.admin_address(address),
            Err(mistakes) => return configuration_error(&mistakes),
        };
        match admin::ask(address, if ready { "/readyz" } else { "/healthz" }) {
            Ok((status, body)) => {
                print(&body);
                if status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => failure(self.about.binary, &error),
        }
    }

    fn serve(self, environment: &Environment) -> ExitCode {
        let ready = match self.read(environment) {
            Ok(ready) => ready,
            Err(mistakes) => return configuration_error(&mistakes),
        };
        telemetry::init(&ready.settings.log);
        telemetry::log_panics();
        let running = ready.start_with(catch_signals);
        match running {
            Ok(running) => ExitCode::from(running.run().status()),
            Err(error) => {
                error!(error = format!("{error:#}"), "cannot start");
                ExitCode::FAILURE
            }
        }
    }
}

impl About {
    /// The address of the admin server: what was set, else loopback and the service's own port.
    pub fn admin_address(&self, set: Option<SocketAddr>) -> SocketAddr {
        set.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port)))
    }
}

/// A process whose settings are read.
pub struct ReadyToStart {
    about: About,
    settings: ProcessSettings,
    roles: Vec<(&'static str, Box<dyn Resolved>)>,
    unused: Vec<&'static str>,
    stuck_after: Duration,
}

impl ReadyToStart {
    /// Binds the admin server and starts the roles. Without signals: for tests, and for whoever embeds a service.
    ///
    /// # Errors
    /// When the admin server cannot bind or a role cannot start; roles that had started are drained first.
    pub fn start(self) -> anyhow::Result<Running> {
        self.start_with(|_, _| Ok(()))
    }

    fn start_with(self, prepare: impl FnOnce(StopHandle, Hangups) -> anyhow::Result<()>) -> anyhow::Result<Running> {
        for variable in self.unused {
            warn!(variable, "this setting has no effect in this version");
        }
        let (event_sender, events) = crossbeam_channel::bounded(MAX_EVENTS);
        let stop = StopHandle::new(event_sender.clone());
        let (hangups, pages) = (Hangups::default(), Pages::default());
        let health = Arc::new(Health::new(self.stuck_after));
        let mut supervised = Vec::new();
        let mut settings = Vec::new();
        for (position, (service, role)) in self.roles.into_iter().enumerate() {
            let (stopper, stop) = stop_pair();
            let told = (stop, hangups.clone());
            let scope = Scope::new(service, position, health.clone(), told, event_sender.clone(), pages.clone());
            supervised.push(SupervisedRole { scope, stopper });
            settings.push(role);
        }
        let metrics = supervised.iter().map(|role| (role.scope.service(), role.scope.metrics()));
        let state = AdminState::new(health.clone(), metrics, pages);
        let boards = supervised.iter().map(|role| (role.scope.service(), role.scope.board()));
        let boards = Boards::new(self.about.service, boards);
        let admin = AdminServer::start(self.about.admin_address(self.settings.admin), state, boards)?;
        prepare(stop.clone(), hangups)?;

        let scopes: Vec<Scope> = supervised.iter().map(|role| role.scope.clone()).collect();
        let mut supervisor = Supervisor::new(supervised, health.clone(), self.settings.drain);
        for (scope, role) in scopes.iter().zip(settings) {
            if let Err(error) = role.start(scope) {
                supervisor.fail(Instant::now());
                supervisor.run(&events);
                return Err(error.context(scope.service()));
            }
        }
        health.enter(Phase::Running);
        info!(service = self.about.service, version = VERSION, admin = %admin.address(), "started");
        Ok(Running { supervisor, events, admin, stop })
    }
}

/// A process whose roles run.
#[derive(Debug)]
pub struct Running {
    supervisor: Supervisor,
    events: Receiver<Event>,
    admin: AdminServer,
    stop: StopHandle,
}

impl Running {
    /// Where the admin server listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// What can ask it to stop, from another thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Runs until all roles have ended, or were told to and did not in time. The admin server answers until the end.
    pub fn run(self) -> Ending {
        let ending = self.supervisor.run(&self.events);
        info!(status = ending.status(), "ended");
        ending
    }
}

/// The first SIGTERM or SIGINT asks for an orderly stop, the second one ends the process at once: it works even while a
/// role is stuck in its start. SIGHUP is counted for whoever has something to read again, and ends nothing.
fn catch_signals(stop: StopHandle, hangups: Hangups) -> anyhow::Result<()> {
    catch(&[SIGTERM, SIGINT, SIGHUP], stop, hangups)
}

/// The same for a tool, which a terminal that hangs up may end.
pub(crate) fn catch_signals_of_tool(stop: StopHandle) -> anyhow::Result<()> {
    catch(&[SIGTERM, SIGINT], stop, Hangups::default())
}

fn catch(signals: &[i32], stop: StopHandle, hangups: Hangups) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut is_stopping = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                info!("SIGHUP: reading again what can be read again");
                hangups.add();
                continue;
            }
            if is_stopping {
                error!("a second signal: ending at once");
                std::process::exit(1);
            }
            is_stopping = true;
            stop.stop(if signal == SIGTERM { "SIGTERM" } else { "SIGINT" });
        }
    })?;
    Ok(())
}

/// What clap has to say: help and version to standard output with status 0, mistakes to standard error with status 2.
pub(crate) fn usage_error(error: &clap::Error) -> ExitCode {
    // Nothing can be said when nobody listens.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// One line a mistake, plain: they are for the person who has just typed them.
pub(crate) fn configuration_error(mistakes: &Mistakes) -> ExitCode {
    eprintln!("{mistakes}");
    ExitCode::from(2)
}

/// An error with its whole chain, once; a mistake in the settings has a status of its own.
pub(crate) fn failure(binary: &str, error: &anyhow::Error) -> ExitCode {
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        return configuration_error(mistakes);
    }
    eprintln!("{binary}: {error:#}");
    ExitCode::FAILURE
}

/// To standard output, which may be a pipe that nobody reads any more.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
