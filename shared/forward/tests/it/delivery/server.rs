//! A real nats-server, read by the client for Python.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use sekiwake_testkit::{
    process::{Process, Signal},
    skip::met_or_skipped,
    wait::wait_for,
};

use super::broker::{Stored, free_port, run};
use crate::rig::PATIENCE;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/receivers/bin/nats-server");

/// True when the server is installed. Otherwise reports that the running test is skipped.
pub(crate) fn installed_or_skipped() -> bool {
    met_or_skipped(Path::new(PROGRAM).is_file().then_some(()).ok_or("run tests/receivers/install"))
}

/// A server whose disk outlives its processes.
pub(crate) struct Server {
    process: Process,
    folder: PathBuf,
    pub(crate) port: u16,
}

impl Server {
    /// Starts one that keeps its disk in `folder`. `more` is appended to its configuration.
    pub(crate) fn start(folder: &Path, more: &str) -> Server {
        let server = Server::start_as("n1", folder, more);
        server.wait();
        server
    }

    /// Starts three that are a cluster, `n0` to `n2`.
    pub(crate) fn start_cluster(folder: &Path) -> [Server; 3] {
        let ports = [(); 3].map(|()| free_port());
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        let servers = [0, 1, 2].map(|number| {
            let port = ports[number];
            let cluster = format!("cluster {{ name: c, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}");
            Server::start_as(&format!("n{number}"), folder, &cluster)
        });
        servers.iter().for_each(Server::wait);
        servers
    }

    fn start_as(name: &str, folder: &Path, more: &str) -> Server {
        let port = free_port();
        let folder = folder.join(format!("nats-{port}"));
        fs::create_dir(&folder).unwrap();
        let store = folder.join("disk");
        let configuration = format!(
            "server_name: {name}\nhost: 127.0.0.1\nport: {port}\njetstream {{ store_dir: \"{}\" }}\n{more}\n",
            store.display()
        );
        fs::write(folder.join("nats.conf"), configuration).unwrap();
        Server { process: spawn(&folder), folder, port }
    }

    fn wait(&self) {
        self.process.wait_for_line(PATIENCE, |line| line.contains("Server is ready")).unwrap_or_else(|late| {
            panic!("{late}: {}", self.process.stderr().join("\n"));
        });
        wait_for("nats-server", PATIENCE, || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()).unwrap();
    }

    /// Starts it again on the same disk.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(&self.folder);
        self.wait();
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL).unwrap();
        self.process.wait(PATIENCE).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    pub(crate) fn uri(&self, subject: &str) -> String {
        format!("nats://127.0.0.1:{}/{subject}", self.port)
    }

    fn url(&self, user: &str) -> String {
        format!("nats://{user}127.0.0.1:{}", self.port)
    }

    /// Makes the stream LOGS. `settings` are those of the script.
    pub(crate) fn create(&self, subject: &str, settings: &[&str]) {
        self.create_as("", subject, settings);
    }

    pub(crate) fn create_as(&self, user: &str, subject: &str, settings: &[&str]) {
        run("subjects.py", &[&["create", &self.url(user), "LOGS", subject], settings].concat(), None);
    }

    /// The number of the server that leads the stream LOGS.
    pub(crate) fn leader(&self) -> usize {
        let name = run("subjects.py", &["leader", &self.url(""), "LOGS"], None);
        String::from_utf8(name).unwrap().trim().trim_start_matches('n').parse().unwrap()
    }

    /// The messages of the stream LOGS, in order.
    pub(crate) fn messages(&self) -> Vec<Stored> {
        self.messages_as("")
    }

    pub(crate) fn messages_as(&self, user: &str) -> Vec<Stored> {
        let lines = run("subjects.py", &["read", &self.url(user), "LOGS"], None);
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Stored(serde_json::from_slice(line).unwrap())).collect()
    }
}

fn spawn(folder: &Path) -> Process {
    let mut command = Command::new(PROGRAM);
    command.arg("-c").arg(folder.join("nats.conf"));
    Process::spawn(command).unwrap()
}
