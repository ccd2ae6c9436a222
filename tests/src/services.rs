//! The services as processes inside a namespace.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_record::{Kind, SHARDS};
use sekiwake_testkit::{
    netns::Namespace,
    process::{Process, Signal},
    wait::wait_for,
};

use crate::{
    ledger::FORWARDERS,
    metrics::{Samples, get},
};

/// Time limit for a service to become ready.
const READY: Duration = Duration::from_secs(60);
/// Time limit for a service to end, well above its drain deadline.
const END: Duration = Duration::from_secs(60);

/// The path of a binary of the workspace, in the directory of the running one.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process has a path");
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not built, run cargo build --release --workspace"))
}

/// A command that runs a binary inside `namespace`, with this environment and no other `SEKIWAKE_`
/// variables.
pub fn command(namespace: &Namespace, path: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = namespace.command(path);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("SEKIWAKE_") {
            command.env_remove(variable);
        }
    }
    command.envs(environment.iter().copied());
    command
}

/// Waits for the end of a sender with `--json`. Returns the number of datagrams sent.
pub fn sent_by(sender: &mut Process, timeout: Duration) -> anyhow::Result<u64> {
    let status = sender.wait(timeout)?;
    ensure!(status.success(), "sekiwake-sender ended with {status}: {}", sender.stderr().join("\n"));
    let line = sender.stdout().pop().context("sekiwake-sender printed nothing")?;
    let summary: serde_json::Value = serde_json::from_str(&line)?;
    summary["sent"].as_u64().with_context(|| format!("no count in {line}"))
}

/// A running service.
pub struct Service<'a> {
    /// Its binary.
    pub name: String,
    /// The process.
    pub process: Process,
    namespace: &'a Namespace,
    admin: SocketAddr,
    /// The kinds that it subscribes to.
    subscribed: Vec<Kind>,
    /// Whether its bus is NATS JetStream.
    is_on_jetstream: bool,
}

/// The binary with all roles.
const ALL_IN_ONE: &str = "sekiwake";
/// The capture binary.
const CAPTURE: &str = "sekiwake-capture";
/// The anomaly detector's binary.
const DETECTOR: &str = "sekiwake-anomaly-detector";
/// The binaries that subscribe without a destination: to syslog, or to the kinds that they store.
const SUBSCRIBERS: [&str; 3] = ["sekiwake-storer", DETECTOR, ALL_IN_ONE];
/// The variable of each kind's destinations.
const DESTINATIONS: [(Kind, &str); 3] = [
    (Kind::Syslog, "SEKIWAKE_SYSLOG_DESTINATIONS"),
    (Kind::Xflow, "SEKIWAKE_XFLOW_DESTINATIONS"),
    (Kind::SnmpTrap, "SEKIWAKE_TRAP_DESTINATIONS"),
];

impl<'a> Service<'a> {
    /// Starts a binary inside `namespace` with this environment and no other `SEKIWAKE_` variables.
    pub fn start(namespace: &'a Namespace, name: &str, environment: &[(&str, &str)]) -> anyhow::Result<Service<'a>> {
        Service::start_binary(namespace, &binary(name), name, environment)
    }

    /// Starts the binary at `path`, perhaps of another version, like [`Service::start`].
    pub fn start_binary(
        namespace: &'a Namespace,
        path: &Path,
        name: &str,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Service<'a>> {
        Service::start_with_stderr(namespace, path, name, environment, Stdio::piped())
    }

    /// The same with another standard error.
    pub fn start_with_stderr(
        namespace: &'a Namespace,
        path: &Path,
        name: &str,
        environment: &[(&str, &str)],
        stderr: Stdio,
    ) -> anyhow::Result<Service<'a>> {
        let port = match name {
            "sekiwake-capture" => 9600,
            "sekiwake-proxy" => 9601,
            "sekiwake-syslog-forwarder" => 9602,
            "sekiwake-xflow-forwarder" => 9603,
            "sekiwake-trap-forwarder" => 9604,
            "sekiwake-storer" => 9605,
            "sekiwake-anomaly-detector" => 9606,
            "sekiwake-console" => 9608,
            _ => 9607,
        };
        let mut admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if let Some((_, value)) = environment.iter().find(|(variable, _)| *variable == "SEKIWAKE_ADMIN") {
            admin = value.parse().context("SEKIWAKE_ADMIN of a test")?;
        }
        let command = command(namespace, path, environment);
        let process = Process::spawn_with_stderr(command, stderr).with_context(|| format!("start {name}"))?;
        let can_forward = |kind| name == ALL_IN_ONE || FORWARDERS.contains(&(kind, name));
        let is_set = |variable| environment.iter().any(|(name, value)| *name == variable && !value.is_empty());
        let forwards = DESTINATIONS.iter().filter(|(kind, variable)| can_forward(*kind) && is_set(*variable));
        let kinds = environment.iter().find(|(name, _)| *name == "SEKIWAKE_STORE_KINDS").map(|(_, kinds)| *kinds);
        let is_stored = |kind: &Kind| match kinds.filter(|_| name != DETECTOR) {
            None | Some("") => *kind == Kind::Syslog,
            Some(kinds) => kinds == "all" || kinds.split(',').any(|one| one == kind.as_str()),
        };
        let stores = Kind::ALL.into_iter().filter(|kind| SUBSCRIBERS.contains(&name) && is_stored(kind));
        let subscribed = forwards.map(|(kind, _)| *kind).chain(stores).collect();
        let is_on_jetstream = is_set("SEKIWAKE_BUS");
        Ok(Service { name: name.to_owned(), process, namespace, admin, subscribed, is_on_jetstream })
    }

    /// Whether `/healthz` answers with 200: it runs, connected or not.
    pub fn is_alive(&self) -> bool {
        self.namespace.enter(|| get(self.admin, "/healthz")).is_ok_and(|answer| answer.is_ok())
    }

    /// Whether `/readyz` answers with 200.
    pub fn is_ready(&self) -> bool {
        self.namespace.enter(|| get(self.admin, "/readyz")).is_ok_and(|answer| answer.is_ok())
    }

    /// Waits until `/readyz` answers with 200.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        wait_for(&format!("readiness of {}", self.name), READY, || self.is_ready())
            .with_context(|| self.process.stderr().join("\n"))
    }

    /// A page of its admin server.
    pub fn page(&self, path: &str) -> anyhow::Result<String> {
        self.namespace.enter(|| get(self.admin, path))?.with_context(|| format!("{path} of {}", self.name))
    }

    /// Its metrics now.
    pub fn metrics(&self) -> anyhow::Result<Samples> {
        self.namespace.enter(|| Samples::scrape(self.admin))?.with_context(|| format!("metrics of {}", self.name))
    }

    /// Waits until `condition` holds for its metrics.
    pub fn wait_for_metrics(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&Samples) -> bool,
    ) -> anyhow::Result<()> {
        wait_for(what, timeout, || self.metrics().is_ok_and(|samples| condition(&samples)))
            .with_context(|| format!("{}: {}", self.name, self.process.stderr().join("\n")))
    }

    /// Sends SIGTERM and checks that it exits with status 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if self.process.is_running()? {
            self.process.terminate()?;
        }
        self.wait_for_end()
    }

    /// Kills it, as a crash does, and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(END).map(drop)
    }

    /// Waits for the end of a service that is stopping, and checks that it exits with status 0.
    pub fn wait_for_end(&mut self) -> anyhow::Result<()> {
        let status = self.process.wait(END)?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.process.stderr().join("\n"));
        Ok(())
    }
}

/// Several services, started and stopped together.
pub struct Services<'a>(pub Vec<Service<'a>>);

impl<'a> Services<'a> {
    /// Starts binaries with the same environment, and waits until datagrams can flow through all of
    /// them.
    pub fn start(
        namespace: &'a Namespace,
        names: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Services<'a>> {
        let started: anyhow::Result<Vec<_>> =
            names.iter().map(|name| Service::start(namespace, name, environment)).collect();
        let services = Services(started?);
        services.wait_until_datagrams_flow()?;
        Ok(services)
    }

    /// Waits until all are ready and every capture has every subscription. Readiness is not enough:
    /// a forwarder is ready when it has reached the proxy, and its subscription reaches the
    /// captures later. On JetStream it is ready when it has a lease, and a new group begins when
    /// its first shards are owned.
    pub fn wait_until_datagrams_flow(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(Service::wait_until_ready)?;
        if self.0.iter().any(|service| service.is_on_jetstream) {
            return self.wait_until_all_is_owned();
        }
        let captures = self.0.iter().filter(|service| [CAPTURE, ALL_IN_ONE].contains(&service.name.as_str()));
        for capture in captures {
            for kind in self.0.iter().flat_map(|service| &service.subscribed) {
                let label = format!("kind=\"{kind}\"");
                capture.wait_for_metrics(&format!("a subscription to {kind}"), READY, |samples| {
                    samples.count("sekiwake_bus_subscribed_topics", &[&label]) == SHARDS as u64
                })?;
            }
        }
        Ok(())
    }

    /// Waits until every shard of every group has an owner.
    fn wait_until_all_is_owned(&self) -> anyhow::Result<()> {
        for name in self.0.iter().filter(|service| !service.subscribed.is_empty()).map(|service| &service.name) {
            let members = || self.0.iter().filter(|service| service.name == *name);
            let kinds = members().map(|member| member.subscribed.len()).max().unwrap_or_default();
            let owned = || -> u64 {
                let count = |samples: Samples| samples.count("sekiwake_group_owned_shards", &[]);
                members().map(|member| member.metrics().map_or(0, count)).sum()
            };
            wait_for(&format!("owners of all shards of {name}"), READY, || owned() >= (kinds * SHARDS) as u64)?;
        }
        Ok(())
    }

    /// Adds a service that was started separately.
    pub fn add(&mut self, service: Service<'a>) {
        self.0.push(service);
    }

    /// Removes and returns the service of this binary, to stop it alone.
    pub fn take(&mut self, name: &str) -> Service<'a> {
        let index = self.0.iter().position(|service| service.name == name).expect("a service that was started");
        self.0.remove(index)
    }

    /// The service of this binary.
    pub fn get(&self, name: &str) -> &Service<'a> {
        self.0.iter().find(|service| service.name == name).expect("a service that was started")
    }

    /// Stops them in the given order, which puts producers before consumers.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Service::stop)
    }
}
