//! A process of one or several roles, from the command line to the exit status.

use std::{
    ffi::OsString,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use sekiwake_settings::{Environment, Mistakes, Reader, Variable, printable};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tracing::{error, info, warn};

use crate::{
    About, Finding, Role, VERSION,
    admin::{self, AdminServer, AdminState},
    cli::{self, CommandLine},
    descriptors,
    health::Health,
    log_queue,
    pages::Pages,
    scope::{Scope, SharedState},
    site::Sites,
    status::StatusPages,
    stop::{Hangups, stop_pair},
    supervisor::{Ended, Ending, Event, StopHandle, SupervisedRole, Supervisor},
    systemd::Systemd,
    telemetry::{self, LogSettings},
};

/// How long a worker may go without a heartbeat.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The capacity of the supervisor's event channel; senders wait for room.
pub(crate) const MAX_EVENTS: usize = 256;

/// A process and its roles, before the settings are read.
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

/// A role without its type, before its settings are read.
struct RoleEntry {
    about: About,
    read: fn(&mut Reader) -> Box<dyn Resolved>,
}

/// A role without its type, after its settings were read.
trait Resolved {
    fn describe(&self) -> Vec<(String, String)>;
    fn examine(&self) -> Vec<Finding>;
    fn start(self: Box<Self>, scope: &Scope) -> anyhow::Result<()>;
}

struct ResolvedRole<R: Role>(R::Settings);

impl<R: Role> Resolved for ResolvedRole<R> {
    fn describe(&self) -> Vec<(String, String)> {
        R::describe(&self.0)
    }

    fn examine(&self) -> Vec<Finding> {
        R::examine(&self.0)
    }

    fn start(self: Box<Self>, scope: &Scope) -> anyhow::Result<()> {
        R::start(self.0, scope)
    }
}

type CommandHandler = dyn FnOnce(&ArgMatches, &Environment) -> anyhow::Result<ExitCode>;

/// Subcommands beyond the common ones.
struct Commands {
    augment: fn(Command) -> Command,
    /// Those with `--env-file`.
    with_env_file: Vec<&'static str>,
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

    /// A process with one role, named after it.
    pub fn of<R: Role>() -> Process {
        Process::new(R::ABOUT).add::<R>()
    }

    /// Adds a role. Roles start and stop in the order in which they are added, and each has ended
    /// before the next one is stopped: producers come before consumers, so that nothing is lost.
    #[must_use]
    pub fn add<R: Role>(mut self) -> Process {
        self.roles.push(RoleEntry { about: R::ABOUT, read: |reader| Box::new(ResolvedRole::<R>(R::read(reader))) });
        self
    }

    /// Adds subcommands, given as a clap enum, and their handler, which reads settings with
    /// [`sekiwake_settings::read`]. The status is 2 if it returns their mistakes as its error, and
    /// 1 for any other error.
    #[must_use]
    pub fn commands<C: clap::Subcommand>(
        mut self,
        handler: impl FnOnce(C, &Environment) -> anyhow::Result<ExitCode> + 'static,
    ) -> Process {
        let handle =
            |matches: &ArgMatches, environment: &Environment| handler(C::from_arg_matches(matches)?, environment);
        self.commands =
            Some(Commands { augment: C::augment_subcommands, with_env_file: Vec::new(), handle: Box::new(handle) });
        self
    }

    /// Gives the option `--env-file` to a subcommand: its handler's environment has the variables
    /// of that file.
    ///
    /// # Panics
    /// If no subcommand was added.
    #[must_use]
    pub fn env_file_for(mut self, subcommand: &'static str) -> Process {
        let commands = self.commands.as_mut().expect("subcommands come before their options");
        commands.with_env_file.push(subcommand);
        self
    }

    /// How long a worker may go without a heartbeat before `/healthz` is 503; 30 s unless set here.
    #[must_use]
    pub fn stuck_after(mut self, silence: Duration) -> Process {
        self.stuck_after = silence;
        self
    }

    /// The whole of `main`, with the arguments, environment and signals of this process.
    pub fn run(self) -> ExitCode {
        self.run_from(std::env::args_os())
    }

    /// As [`Process::run`], with these arguments; the first is the program's name.
    pub fn run_from<A: Into<OsString> + Clone>(self, arguments: impl IntoIterator<Item = A>) -> ExitCode {
        let code = self.run_to_end(arguments);
        log_queue::flush();
        code
    }

    fn run_to_end<A: Into<OsString> + Clone>(mut self, arguments: impl IntoIterator<Item = A>) -> ExitCode {
        let matches = match self.command_line().command.try_get_matches_from(arguments) {
            Ok(matches) => matches,
            Err(error) => return usage_error(&error),
        };
        let environment = match cli::environment(matches.subcommand().map_or(&matches, |(_, arguments)| arguments)) {
            Ok(environment) => environment,
            Err(error) => return usage_failure(self.about.binary, &error),
        };
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
            None if cli::wants_check(&matches) => self.check_settings(&environment, cli::wants_files(&matches)),
            None => self.serve(&environment),
        }
    }

    /// Reads the settings of the process and of its roles.
    ///
    /// # Errors
    /// All mistakes of all roles.
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

    /// The command line, for documentation.
    pub fn command_line(&self) -> CommandLine {
        let services: Vec<&str> = self.roles.iter().map(|role| role.about.service).collect();
        let ready = Arg::new("ready").long("ready").action(ArgAction::SetTrue).help("Ask whether it is ready instead");
        let healthcheck = Command::new("healthcheck")
            .about("Ask the running service at SEKIWAKE_ADMIN whether it is alive: exit status 0 or 1")
            .arg(ready);
        let reads = |variable: &Variable| services.iter().any(|service| variable.concerns(service));
        let mut line = CommandLine::new(self.about, reads);
        line.command = line.command.subcommand(healthcheck);
        if let Some(commands) = &self.commands {
            // With `--check` nothing is to be sent or written: it must not be ignored
            // beside a subcommand.
            line.command = (commands.augment)(line.command).args_conflicts_with_subcommands(true);
            for name in &commands.with_env_file {
                line.command = line.command.mut_subcommand(name, |command| command.arg(cli::env_file_of_subcommand()));
            }
        }
        line
    }

    fn check_settings(&self, environment: &Environment, with_files: bool) -> ExitCode {
        let mut reader = Reader::new(environment);
        if !with_files {
            reader = reader.without_files();
        }
        let (settings, roles) = self.read_all(&mut reader);
        let mut described: Vec<(String, String)> = roles.iter().flat_map(|role| role.describe()).collect();
        described.push(("SEKIWAKE_ADMIN".to_owned(), self.about.admin_address(settings.admin).to_string()));
        let resolved = cli::resolved(&reader, described);
        for (variable, text) in reader.warnings() {
            eprintln!("warning: {variable}: {}", printable(text));
        }
        if let Err(mistakes) = reader.finish() {
            return configuration_error(&mistakes);
        }
        let wrong = if with_files { examine(&roles) } else { Vec::new() };
        if !wrong.is_empty() {
            log_queue::print_message(wrong.join("\n"));
            return ExitCode::from(2);
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
        descriptors::set_limit();
        let running = ready.start_with(Systemd::from_environment(Instant::now()), catch_signals);
        match running {
            Ok(running) => ExitCode::from(running.run().status()),
            Err(error) => {
                error!(error = format!("{error:#}"), "cannot start");
                ExitCode::FAILURE
            }
        }
    }
}

/// What the roles find wrong, each once. What cannot be examined is printed as a warning, and not
/// tried again for other roles: they wait for the same servers.
fn examine(roles: &[Box<dyn Resolved>]) -> Vec<String> {
    let mut wrong = Vec::new();
    for role in roles {
        for finding in role.examine() {
            match finding {
                Finding::Wrong(text) if wrong.contains(&text) => {}
                Finding::Wrong(text) => wrong.push(text),
                Finding::Unknown(text) => {
                    eprintln!("warning: {text}");
                    return wrong;
                }
            }
        }
    }
    wrong
}

impl About {
    /// The address of the admin server: as set, else the service's port on loopback.
    pub fn admin_address(&self, set: Option<SocketAddr>) -> SocketAddr {
        set.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, self.admin_port)))
    }
}

/// A process whose settings were read.
pub struct ReadyToStart {
    about: About,
    settings: ProcessSettings,
    roles: Vec<(&'static str, Box<dyn Resolved>)>,
    unused: Vec<&'static str>,
    stuck_after: Duration,
}

impl ReadyToStart {
    /// Binds the admin server and starts the roles, without signal handlers: for tests.
    ///
    /// # Errors
    /// When the admin server cannot bind or a role cannot start; roles that have started are
    /// drained first.
    pub fn start(self) -> anyhow::Result<Running> {
        self.start_with(Systemd::default(), |_| Ok(()))
    }

    fn start_with(
        self,
        systemd: Systemd,
        prepare: impl FnOnce(StopHandle) -> anyhow::Result<()>,
    ) -> anyhow::Result<Running> {
        for variable in self.unused {
            warn!(variable, "setting has no effect in this version");
        }
        // Not of crossbeam, whose waits yield several times before they sleep.
        let (event_sender, events) = mpsc::sync_channel(MAX_EVENTS);
        let stop = StopHandle::new(event_sender.clone());
        let health = Arc::new(Health::new(self.stuck_after));
        let hangups = Hangups::default();
        let pages = Pages::default();
        let sites = Sites::default();
        let shared = SharedState {
            health: health.clone(),
            hangups: hangups.clone(),
            events: event_sender,
            pages: pages.clone(),
            sites: sites.clone(),
        };
        let mut supervised = Vec::new();
        let mut settings = Vec::new();
        for (position, (service, role)) in self.roles.into_iter().enumerate() {
            let (stopper, stop) = stop_pair();
            let scope = Scope::new(service, position, stop, shared.clone());
            supervised.push(SupervisedRole { scope, stopper });
            settings.push(role);
        }
        let metrics = supervised.iter().map(|role| (role.scope.service(), role.scope.metrics()));
        let state = AdminState::new(health.clone(), metrics, pages, sites);
        let status = supervised.iter().map(|role| (role.scope.service(), role.scope.status_parts()));
        let status = StatusPages::new(self.about.service, status);
        let admin = AdminServer::start(self.about.admin_address(self.settings.admin), state, status)?;
        prepare(stop.clone())?;

        let scopes: Vec<Scope> = supervised.iter().map(|role| role.scope.clone()).collect();
        let mut supervisor = Supervisor::new(supervised, health, hangups, systemd, self.settings.drain);
        for (scope, role) in scopes.iter().zip(settings) {
            if let Err(error) = role.start(scope) {
                supervisor.fail(Instant::now());
                supervisor.run(&events);
                return Err(error.context(scope.service()));
            }
        }
        supervisor.started();
        info!(service = self.about.service, version = VERSION, admin = %admin.address(), "service started");
        Ok(Running { supervisor, events, admin, stop })
    }
}

/// A process whose roles have started.
#[derive(Debug)]
pub struct Running {
    supervisor: Supervisor,
    events: Receiver<Event>,
    admin: AdminServer,
    stop: StopHandle,
}

impl Running {
    /// The address of the admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// A handle to stop it from another thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Runs until all roles have ended, or have exceeded the deadline. The admin server answers
    /// until then.
    pub fn run(self) -> Ending {
        let Ended { ending, cause } = self.supervisor.run(&self.events);
        let status = ending.status();
        // Draining has logged other lines since the failure.
        match cause {
            Some(error) => error!(status, error, "service ended"),
            None => info!(status, "service ended"),
        }
        ending
    }
}

/// The first SIGTERM or SIGINT starts draining, the second one exits immediately, even while a role
/// is stuck in its start. SIGHUP is for roles that can reload files.
fn catch_signals(stop: StopHandle) -> anyhow::Result<()> {
    catch(&[SIGTERM, SIGINT, SIGHUP], stop)
}

/// The same for a tool, which SIGHUP terminates.
pub(crate) fn catch_tool_signals(stop: StopHandle) -> anyhow::Result<()> {
    catch(&[SIGTERM, SIGINT], stop)
}

fn catch(signals: &[i32], stop: StopHandle) -> anyhow::Result<()> {
    let mut signals = Signals::new(signals)?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut is_stopping = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                info!("SIGHUP received, reloading files");
                stop.reload();
                continue;
            }
            if is_stopping {
                error!("second signal received, exiting immediately");
                log_queue::flush();
                std::process::exit(1);
            }
            is_stopping = true;
            stop.stop(if signal == SIGTERM { "SIGTERM" } else { "SIGINT" });
        }
    })?;
    Ok(())
}

/// Prints clap's message: help and version to standard output with status 0, mistakes to standard
/// error with status 2.
pub(crate) fn usage_error(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.use_stderr() {
        true => log_queue::print_message(text.trim_end()),
        false => print(&text),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// One line per mistake, without log formatting: they are read at a terminal.
pub(crate) fn configuration_error(mistakes: &Mistakes) -> ExitCode {
    log_queue::print_message(mistakes);
    ExitCode::from(2)
}

/// What the command line names cannot be used.
pub(crate) fn usage_failure(binary: &str, error: &anyhow::Error) -> ExitCode {
    log_queue::print_message(format_args!("{binary}: {error:#}"));
    ExitCode::from(2)
}

/// The error with its whole chain. Mistakes in the settings have their own status.
pub(crate) fn failure(binary: &str, error: &anyhow::Error) -> ExitCode {
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        return configuration_error(mistakes);
    }
    log_queue::print_message(format_args!("{binary}: {error:#}"));
    ExitCode::FAILURE
}

/// Prints to standard output, which may be a closed pipe, or one that nobody reads: waits a second
/// at most.
pub(crate) fn print(text: &str) {
    const PRINT_TIME: Duration = Duration::from_secs(1);

    let text = text.to_owned();
    let (end, ended) = crossbeam_channel::bounded::<()>(0);
    let write = move || {
        let _end = end;
        let _ = io::stdout().write_all(text.as_bytes());
    };
    if thread::Builder::new().name("print".to_owned()).spawn(write).is_ok() {
        // The channel is disconnected when everything is printed.
        let _ = ended.recv_timeout(PRINT_TIME);
    }
}
