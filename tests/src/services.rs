//! The services as processes inside a namespace.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_record::{Kind, SHARDS};
use sekiwake_testkit::{netns::Namespace, process::Process, wait::wait_for};

use crate::{
    ledger::FORWARDERS,
    metrics::{Samples, get},
};

/// How long a service may take to be ready.
const READY: Duration = Duration::from_secs(15);
/// How long it may take to end: the drain limit and a little.
const END: Duration = Duration::from_secs(15);

/// The path of a binary of the workspace, beside the one that runs.
///
/// # Panics
/// When it has not been built: `cargo build --release --workspace` builds them all.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process has a path");
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not built: cargo build --release --workspace"))
}

/// A running service.
pub struct Service<'a> {
    /// Its binary.
    pub name: String,
    /// The process.
    pub process: Process,
    namespace: &'a Namespace,
    admin: SocketAddr,
    /// The kinds that it subscribes to: those that it has destinations for, if it is one that forwards.
    wants: Vec<Kind>,
}

/// The binary with every role in it.
const ALL_IN_ONE: &str = "sekiwake";
/// The binary that captures.
const CAPTURE: &str = "sekiwake-capture";
/// The binaries that take syslog without being told a destination.
const SUBSCRIBERS_OF_SYSLOG: [&str; 3] = ["sekiwake-storer", "sekiwake-anomaly-detector", ALL_IN_ONE];
/// Where each kind's destinations are set.
const DESTINATIONS: [(Kind, &str); 3] = [
    (Kind::Syslog, "SEKIWAKE_SYSLOG_DESTINATIONS"),
    (Kind::Xflow, "SEKIWAKE_XFLOW_DESTINATIONS"),
    (Kind::SnmpTrap, "SEKIWAKE_TRAP_DESTINATIONS"),
];

impl<'a> Service<'a> {
    /// Starts a binary inside `namespace` with this environment and no other `SEKIWAKE_` variables.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(namespace: &'a Namespace, name: &str, environment: &[(&str, &str)]) -> anyhow::Result<Service<'a>> {
        let port = match name {
            "sekiwake-capture" => 9600,
            "sekiwake-proxy" => 9601,
            "sekiwake-syslog-forwarder" => 9602,
            "sekiwake-xflow-forwarder" => 9603,
            "sekiwake-trap-forwarder" => 9604,
            "sekiwake-storer" => 9605,
            "sekiwake-anomaly-detector" => 9606,
            _ => 9607,
        };
        let mut admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = namespace.command(binary(name));
        for (variable, _) in
            std::env::vars_os().filter(|(variable, _)| variable.to_string_lossy().starts_with("SEKIWAKE_"))
        {
            command.env_remove(variable);
        }
        for (variable, value) in environment {
            command.env(variable, value);
            if *variable == "SEKIWAKE_ADMIN" {
                admin = value.parse().context("SEKIWAKE_ADMIN of a test")?;
            }
        }
        let process = Process::spawn(command).with_context(|| format!("start {name}"))?;
        let can_forward = |kind| name == ALL_IN_ONE || FORWARDERS.contains(&(kind, name));
        let is_set = |variable| environment.iter().any(|(name, value)| *name == variable && !value.is_empty());
        let forwards = DESTINATIONS.iter().filter(|(kind, variable)| can_forward(*kind) && is_set(*variable));
        let of_syslog = SUBSCRIBERS_OF_SYSLOG.contains(&name).then_some(Kind::Syslog);
        let wants = forwards.map(|(kind, _)| *kind).chain(of_syslog).collect();
        Ok(Service { name: name.to_owned(), process, namespace, admin, wants })
    }

    /// Whether `/healthz` answers: it runs, connected or not.
    pub fn is_alive(&self) -> bool {
        self.namespace.enter(|| get(self.admin, "/healthz")).is_ok_and(|answer| answer.is_ok())
    }

    /// Whether `/readyz` says yes.
    pub fn is_ready(&self) -> bool {
        self.namespace.enter(|| get(self.admin, "/readyz")).is_ok_and(|answer| answer.is_ok())
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// It does not in time; with what the service has logged.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        wait_for(&format!("readiness of {}", self.name), READY, || self.is_ready())
            .with_context(|| self.process.stderr().join("\n"))
    }

    /// A page of its admin server.
    ///
    /// # Errors
    /// It does not answer, or not with status 200.
    pub fn page(&self, path: &str) -> anyhow::Result<String> {
        self.namespace.enter(|| get(self.admin, path))?.with_context(|| format!("{path} of {}", self.name))
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> anyhow::Result<Samples> {
        self.namespace.enter(|| Samples::scrape(self.admin))?.with_context(|| format!("metrics of {}", self.name))
    }

    /// Waits until `condition` holds for its metrics.
    ///
    /// # Errors
    /// It does not in time; with the service's log.
    pub fn wait_for_metrics(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&Samples) -> bool,
    ) -> anyhow::Result<()> {
        wait_for(what, timeout, || self.metrics().is_ok_and(|samples| condition(&samples)))
            .with_context(|| format!("{}: {}", self.name, self.process.stderr().join("\n")))
    }

    /// Asks it to stop and checks that it ends well.
    ///
    /// # Errors
    /// It does not end in time, or not with status 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if self.process.is_running()? {
            self.process.terminate()?;
        }
        self.wait_for_end()
    }

    /// Waits for the end of a service that has been asked to stop, and checks that it is a good one.
    ///
    /// # Errors
    /// It does not end in time, or not with status 0.
    pub fn wait_for_end(&mut self) -> anyhow::Result<()> {
        let status = self.process.wait(END)?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.process.stderr().join("\n"));
        Ok(())
    }
}

/// Several services, started and stopped together.
pub struct Services<'a>(pub Vec<Service<'a>>);

impl<'a> Services<'a> {
    /// Starts binaries with one environment, and waits until datagrams will flow through all of them.
    ///
    /// # Errors
    /// One cannot be started or does not get ready.
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

    /// Waits until all are ready and every capture knows of every forwarder's subscription: a forwarder is ready when it has
    /// reached the proxy, and what it wants is known at a capture a moment later.
    ///
    /// # Errors
    /// That does not happen in time.
    pub fn wait_until_datagrams_flow(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(Service::wait_until_ready)?;
        let captures = self.0.iter().filter(|service| [CAPTURE, ALL_IN_ONE].contains(&service.name.as_str()));
        for capture in captures {
            for kind in self.0.iter().flat_map(|service| &service.wants) {
                let label = format!("kind=\"{kind}\"");
                capture.wait_for_metrics(&format!("a subscription to {kind}"), READY, |samples| {
                    samples.count("sekiwake_bus_wanted_topics", &[&label]) == SHARDS as u64
                })?;
            }
        }
        Ok(())
    }

    /// Adds a service that was started by itself.
    pub fn add(&mut self, service: Service<'a>) {
        self.0.push(service);
    }

    /// Takes the service of this binary out, to stop it alone.
    ///
    /// # Panics
    /// There is none.
    pub fn take(&mut self, name: &str) -> Service<'a> {
        let index = self.0.iter().position(|service| service.name == name).expect("a service that was started");
        self.0.remove(index)
    }

    /// The service of this binary.
    ///
    /// # Panics
    /// There is none.
    pub fn get(&self, name: &str) -> &Service<'a> {
        self.0.iter().find(|service| service.name == name).expect("a service that was started")
    }

    /// Stops them in the order in which they were given: who brings before who takes.
    ///
    /// # Errors
    /// One does not end well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Service::stop)
    }
}
