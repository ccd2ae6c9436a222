//! nats-server, installed by `tests/receivers/install`: a server process, and requests to it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{
    netns::Namespace,
    process::{Process, Signal},
    skip::met_or_skipped,
    wait::wait_for,
};
use serde_json::{Value, json};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/receivers/bin/nats-server");
/// Time limit of a start and of an end.
const LONG: Duration = Duration::from_secs(60);
/// Time limit of a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// True when it is installed. Otherwise reports that the running test is skipped.
pub fn nats_or_skipped() -> bool {
    let missing = format!("{PROGRAM} is missing (tests/receivers/install)");
    met_or_skipped(if Path::new(PROGRAM).exists() { Ok(()) } else { Err(missing) })
}

/// A server with its configuration. Dropping it kills it.
pub struct NatsServer<'a> {
    namespace: &'a Namespace,
    configuration: PathBuf,
    /// Its process.
    pub process: Process,
}

impl<'a> NatsServer<'a> {
    /// Starts a server with this configuration, which is written to `folder`, and waits until it
    /// listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(namespace: &'a Namespace, folder: &Path, configuration: &str) -> anyhow::Result<NatsServer<'a>> {
        let path = folder.join("nats.conf");
        fs::write(&path, configuration).with_context(|| format!("cannot write {}", path.display()))?;
        let process = spawn(namespace, &path)?;
        let server = NatsServer { namespace, configuration: path, process };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(LONG).map(drop)
    }

    /// Stops it with SIGTERM.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.process.stop(LONG).map(drop)
    }

    /// Starts it again on the same disk, and waits until it listens.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = spawn(self.namespace, &self.configuration)?;
        self.wait_until_ready()
    }

    /// Makes it read this configuration, as an administrator does. Connections of users that it no
    /// longer accepts end.
    ///
    /// # Errors
    /// It does not say that it has read it.
    pub fn reload(&self, configuration: &str) -> anyhow::Result<()> {
        let reloads =
            || self.process.stderr().iter().filter(|line| line.contains("Reloaded server configuration")).count();
        let before = reloads();
        fs::write(&self.configuration, configuration)?;
        self.process.signal(Signal::HUP)?;
        Ok(wait_for("a reloaded configuration", LONG, || reloads() > before)?)
    }

    /// The process alone.
    pub fn into_process(self) -> Process {
        self.process
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        self.process.wait_for_line(LONG, |line| line.contains("Server is ready")).map(drop)
    }
}

fn spawn(namespace: &Namespace, configuration: &Path) -> anyhow::Result<Process> {
    let mut command = namespace.command(PROGRAM);
    command.arg("-c").arg(configuration);
    Process::spawn(command)
}

/// A request to the API of JetStream, as the program `nats` makes it, without `$JS.API.` in its
/// subject.
///
/// # Errors
/// There is no answer in time.
pub fn api(namespace: &Namespace, server: SocketAddr, subject: &str, request: &Value) -> anyhow::Result<Value> {
    api_as(namespace, server, subject, request, &|_| json!({}))
}

/// The same as a user. `login` returns the fields of CONNECT that say who it is, for a nonce that a
/// key has to sign.
///
/// # Errors
/// There is no answer in time.
pub fn api_as(
    namespace: &Namespace,
    server: SocketAddr,
    subject: &str,
    request: &Value,
    login: &dyn Fn(&str) -> Value,
) -> anyhow::Result<Value> {
    let body = request.to_string();
    let stream = namespace.enter(|| TcpStream::connect_timeout(&server, ANSWER_WITHIN))??;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let info: Value = serde_json::from_str(line.trim_start_matches("INFO "))?;
    let mut connect = login(info["nonce"].as_str().unwrap_or_default());
    for (option, is_set) in [("verbose", false), ("headers", true), ("no_responders", true)] {
        connect[option] = json!(is_set);
    }
    let length = body.len();
    let sent = format!("CONNECT {connect}\r\nSUB answer 1\r\nPUB $JS.API.{subject} answer {length}\r\n{body}\r\n");
    (&stream).write_all(sent.as_bytes())?;
    while !line.starts_with("MSG ") {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "{server} closed the connection");
        ensure!(!line.starts_with("HMSG "), "no server answers {subject}");
    }
    let length = line.trim_end().rsplit(' ').next().and_then(|length| length.parse().ok());
    let mut answer = vec![0; length.with_context(|| format!("no length in {line:?}"))?];
    reader.read_exact(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
