//! Receivers of OTLP: one that decodes with the OpenTelemetry project's own types, and rotel.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sekiwake_testkit::{
    process::{Process, Signal},
    skip::met_or_skipped,
    wait::wait_for,
};
use serde_json::Value;

use crate::rig::PATIENCE;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// True when the receivers are installed. Otherwise reports that the running test is skipped.
pub(crate) fn installed_or_skipped() -> bool {
    let python = Path::new(ROOT).join("target/receivers/bin/python");
    let is_installed = python.is_file().then_some(()).ok_or("run tests/receivers/install");
    met_or_skipped(is_installed)
}

fn python(script: &str) -> Command {
    let mut command = Command::new(Path::new(ROOT).join("target/receivers/bin/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(Path::new(ROOT).join("tests/receivers").join(script));
    command
}

/// Validates envelopes, one per line, against their schema. Returns their number, or what is wrong.
pub(crate) fn validate(lines: &[u8]) -> Result<String, String> {
    let mut command = python("envelope.py");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|threads| {
        // It may end before it has read everything.
        threads.spawn(move || input.write_all(lines));
        child.wait_with_output().unwrap()
    });
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// The decoding receiver.
pub(crate) struct Receiver {
    process: Process,
    pub(crate) port: u16,
}

/// A record that it has accepted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Accepted(pub(crate) Value);

impl Accepted {
    pub(crate) fn body(&self) -> &str {
        self.0["body"].as_str().unwrap_or_else(|| panic!("{} is not text", self.0["body"]))
    }

    pub(crate) fn attribute(&self, name: &str) -> &Value {
        &self.0["attributes"][name]
    }
}

impl Receiver {
    pub(crate) fn start() -> Receiver {
        Receiver::start_with(0, &[])
    }

    pub(crate) fn start_with(port: u16, arguments: &[&Path]) -> Receiver {
        let mut command = python("otlp.py");
        command.args(["--port", &port.to_string()]);
        command.args(arguments);
        let process = Process::spawn(command).unwrap();
        let is_port = |line: &str| line.parse::<u16>().is_ok();
        let port = process.wait_for_line(PATIENCE, is_port).unwrap().parse().unwrap();
        Receiver { process, port }
    }

    pub(crate) fn uri(&self) -> String {
        format!("otlp+http://127.0.0.1:{}", self.port)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn get(&self, path: &str) -> Value {
        let mut answer = ureq::get(self.url(path)).call().unwrap();
        let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// How requests are answered from now on, see otlp.py.
    pub(crate) fn set_rules(&self, rules: &Value) {
        ureq::put(self.url("/rules")).send(rules.to_string()).unwrap();
    }

    pub(crate) fn requests(&self) -> Value {
        self.get("/requests")
    }

    pub(crate) fn records(&self) -> Vec<Accepted> {
        let mut records: Vec<Accepted> = Vec::new();
        loop {
            let more = self.get(&format!("/records?from={}", records.len()));
            let Value::Array(more) = more else { panic!("{more}") };
            if more.is_empty() {
                return records;
            }
            records.extend(more.into_iter().map(Accepted));
        }
    }

    pub(crate) fn wait_for_records(&self, count: usize) -> Vec<Accepted> {
        let mut records = Vec::new();
        let waited = wait_for("all records", PATIENCE, || {
            records = self.records();
            records.len() >= count
        });
        waited.unwrap_or_else(|error| panic!("{error}: {} of {count}", records.len()));
        records
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Ends it, and returns its port.
    pub(crate) fn kill(mut self) -> u16 {
        self.process.signal(Signal::KILL).unwrap();
        self.process.wait(PATIENCE).unwrap();
        self.port
    }
}

/// A rotel that passes everything on to a receiver.
pub(crate) struct Rotel {
    pub(crate) port: u16,
    _process: Process,
}

impl Rotel {
    pub(crate) fn start(to: &Receiver) -> Rotel {
        let packages = Path::new(ROOT).join("target/receivers/lib");
        let versions = std::fs::read_dir(packages).unwrap().flatten();
        let agents = versions.map(|version| version.path().join("site-packages/rotel/rotel-agent"));
        let agent: PathBuf = agents.into_iter().find(|agent| agent.is_file()).unwrap();
        // Two ports that are free now.
        let ports = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [http, grpc] = ports.map(|port| port.local_addr().unwrap());
        let mut command = Command::new(agent);
        command.arg("start");
        command.args(["--otlp-http-endpoint", &http.to_string(), "--otlp-grpc-endpoint", &grpc.to_string()]);
        command.args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"]);
        command.args(["--otlp-exporter-endpoint", &format!("http://127.0.0.1:{}", to.port)]);
        command.args(["--batch-timeout", "100ms"]);
        let process = Process::spawn(command).unwrap();
        let is_up = || std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], http.port()))).is_ok();
        let waited = wait_for("rotel", PATIENCE, is_up);
        waited.unwrap_or_else(|error| panic!("{error}: {:?} {:?}", process.stdout(), process.stderr()));
        Rotel { port: http.port(), _process: process }
    }
}
