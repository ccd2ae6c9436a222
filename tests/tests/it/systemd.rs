//! Services under systemd: the units, the messages to the service manager, and the log in the
//! journal.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sekiwake_testkit::{
    process::{Process, Signal},
    skip::met_or_skipped,
    wait::wait_for,
};
use sekiwake_tests::{MIRRORED, Service, binary, collector};
use tempfile::TempDir;

use crate::{documents::document, support::*};

const ALL_IN_ONE: &str = "sekiwake";
const STORER: &str = "sekiwake-storer";
const DETECTOR: &str = "sekiwake-anomaly-detector";
/// The services, each of which has a unit.
const UNITS: [&str; 9] = [ALL_IN_ONE, CAPTURE, PROXY, SYSLOG, XFLOW, TRAP, STORER, DETECTOR, "sekiwake-console"];
/// Those that also have a unit for instances.
const INSTANCES: [&str; 3] = [SYSLOG, XFLOW, TRAP];
/// The highest exposure that `systemd-analyze security` may find, in tenths.
const MAX_EXPOSURE: &str = "25";

fn analyze(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.current_dir(folder).args(arguments).args(["--man=no", "--no-pager"]).env("SYSTEMD_COLORS", "0");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The units with the binaries that were built here, in a folder of their own.
fn units() -> (TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(document("deploy/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".service") {
            let text = fs::read_to_string(&path).unwrap();
            let built = binary(ALL_IN_ONE).parent().unwrap().join("");
            fs::write(folder.path().join(&name), text.replace("/usr/bin/", built.to_str().unwrap())).unwrap();
            names.push(name);
        }
    }
    names.sort();
    (folder, names)
}

fn systemd_or_skipped() -> bool {
    met_or_skipped(run("systemd-analyze", &["--version"]))
}

#[test]
fn each_service_has_a_unit() {
    let mut wanted: Vec<String> = UNITS.iter().map(|name| format!("{name}.service")).collect();
    wanted.extend(INSTANCES.iter().map(|name| format!("{name}@.service")));
    wanted.sort();
    let (folder, names) = units();
    assert_eq!(names, wanted);
    for name in names {
        let text = fs::read_to_string(folder.path().join(&name)).unwrap();
        let program = name.split(['@', '.']).next().unwrap();
        assert!(text.contains(&format!("ExecStart={}\n", binary(program).display())), "{name}");
    }
}

#[test]
fn units_are_valid_and_confined() {
    if !systemd_or_skipped() {
        return;
    }
    let (folder, names) = units();
    // Also the forwarders' with the drop-in that lets them spoof.
    for name in INSTANCES.iter().flat_map(|name| [format!("{name}.service.d"), format!("{name}@.service.d")]) {
        fs::create_dir(folder.path().join(&name)).unwrap();
        fs::copy(document("deploy/systemd/spoof.conf"), folder.path().join(name).join("spoof.conf")).unwrap();
    }
    // An instance, because a template has no values for its specifiers.
    let names: Vec<String> = names.iter().map(|name| name.replace("@.", "@siem.")).collect();
    for name in names.iter().filter(|name| name.contains('@')) {
        fs::copy(folder.path().join(name.replace("@siem.", "@.")), folder.path().join(name)).unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (is_valid, output) = analyze(folder.path(), &[&["verify"][..], &names].concat());
    assert!(is_valid && output.trim().is_empty(), "{output}");
    for name in names {
        let threshold = format!("--threshold={MAX_EXPOSURE}");
        let (is_confined, output) = analyze(folder.path(), &["security", "--offline=true", &threshold, name]);
        assert!(is_confined && output.contains("Overall exposure level"), "{output}");
    }
}

/// The service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    received: Vec<String>,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path, received: Vec::new(), _folder: folder }
    }

    /// Starts a service with `Type=notify` and a watchdog of 400 ms.
    fn start<'a>(&self, site: &'a TestSite, name: &str, environment: &[(&str, &str)]) -> Service<'a> {
        let own = [("NOTIFY_SOCKET", self.path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")];
        Service::start(&site.host, name, &[&CAPTURE_SETTINGS[..], environment, &own].concat()).unwrap()
    }

    /// Receives messages until one has this line. Returns its index.
    fn wait_for(&mut self, what: &str, is_wanted: impl Fn(&str) -> bool) -> usize {
        let give_up = Instant::now() + LONG;
        self.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
                    self.received.push(message.trim_end().to_owned());
                    if message.lines().any(&is_wanted) {
                        return self.received.len() - 1;
                    }
                }
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < give_up, "no {what} among {:?}", self.received);
        }
    }
}

#[test]
fn systemd_is_told_the_state_of_every_service() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    // A disk that is missing, and a collector that is not reachable.
    let missing = file.join("store").display().to_string();
    let destination = format!("tcp://{}:6514", collector(1));
    let environment = [
        ("SEKIWAKE_STORE_DIR", missing.as_str()),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &destination),
        ("SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.99:2055"),
        ("SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.99:162"),
        ("SEKIWAKE_DRAIN", "3s"),
    ];
    for name in UNITS {
        let mut manager = Manager::new();
        let mut service = manager.start(&site, name, &environment);
        manager.wait_for("READY", |line| line == "READY=1");
        let is_waiting = |line: &str| line.starts_with("STATUS=") && line != "STATUS=ready";
        let is_expected = |line: &str| if name == PROXY { line == "STATUS=ready" } else { is_waiting(line) };
        manager.wait_for("status", is_expected);
        for _ in 0..3 {
            manager.wait_for("watchdog message", |line| line == "WATCHDOG=1");
        }
        service.process.signal(Signal::HUP).unwrap();
        let reloading = manager.wait_for("RELOADING", |line| line == "RELOADING=1");
        assert!(manager.received[reloading].contains("\nMONOTONIC_USEC="), "{:?}", manager.received);
        manager.wait_for("READY after RELOADING", |line| line == "READY=1");
        service.process.terminate().unwrap();
        let stopping = manager.wait_for("STOPPING", |line| line == "STOPPING=1");
        assert!(manager.received[stopping].contains("\nEXTEND_TIMEOUT_USEC=13000000"), "{:?}", manager.received);
        // Also although the manager reads no more. The status does not matter: an unreachable proxy
        // may take all of the drain time.
        service.process.wait(LONG).unwrap();
    }
}

#[test]
fn status_line_says_what_a_service_waits_for() {
    let Some(site) = site() else { return };
    let mut manager = Manager::new();
    let destination = syslog_to(0);
    let forwarder = manager.start(&site, SYSLOG, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination)]);
    manager.wait_for("READY", |line| line == "READY=1");
    manager.wait_for("status", |line| line.starts_with("STATUS=syslog-forwarder: ") && line.contains("lease"));
    let proxy = site.start_one(PROXY, &[]);
    manager.wait_for("status", |line| line == "STATUS=ready");
    for mut service in [forwarder, proxy] {
        service.stop().unwrap();
    }
}

/// A file system on a loop device, mounted at a temporary folder.
struct LoopDisk(TempDir);

impl LoopDisk {
    fn new() -> Result<LoopDisk, String> {
        let disk = LoopDisk(tempfile::tempdir().unwrap());
        let image = disk.0.path().join("image");
        let root = disk.root();
        fs::create_dir(&root).unwrap();
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()])?;
        run("mount", &["-o", "loop", image.to_str().unwrap(), root.to_str().unwrap()])?;
        Ok(disk)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// Makes every write wait, as a disk does that does not answer.
    fn freeze(&self) {
        run("fsfreeze", &["--freeze", self.root().to_str().unwrap()]).unwrap();
    }

    fn unfreeze(&self) -> Result<(), String> {
        run("fsfreeze", &["--unfreeze", self.root().to_str().unwrap()])
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Fails unless a test failed while it was frozen.
        let _ = self.unfreeze();
        // Lazily, because that test's service may still run.
        let _ = run("umount", &["--lazy", self.root().to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", text.trim())) }
}

#[test]
fn watchdog_spares_a_worker_that_waits_for_a_disk() {
    let Some(site) = site() else { return };
    let disk = LoopDisk::new();
    if !met_or_skipped(disk.as_ref().map(|_| ())) {
        return;
    }
    let disk = disk.unwrap();
    let store = disk.root().display().to_string();
    let mut manager = Manager::new();
    let mut capture = site.start_one(CAPTURE, &[]);
    let mut proxy = site.start_one(PROXY, &[]);
    let mut storer = manager.start(&site, STORER, &[("SEKIWAKE_STORE_DIR", &store)]);
    manager.wait_for("status", |line| line == "STATUS=ready");
    disk.freeze();
    let mut sender = site.start_sender(&format!("--to {MIRRORED} --rate 50"));
    manager.wait_for("stuck worker", |line| line == "STATUS=stuck: storer write");
    assert!(!storer.is_alive());
    let stuck = manager.received.len();
    for _ in 0..3 {
        manager.wait_for("watchdog message", |line| line == "WATCHDOG=1");
    }
    assert!(!manager.received[stuck..].iter().any(|message| message.contains("STATUS=ready")));
    disk.unfreeze().unwrap();
    manager.wait_for("status", |line| line == "STATUS=ready");
    sender.stop(LONG).unwrap();
    for service in [&mut capture, &mut storer, &mut proxy] {
        service.stop().unwrap();
    }
}

/// A file in the place of a stream of the journal, and its `JOURNAL_STREAM`.
fn journal(folder: &TempDir) -> (File, PathBuf, String) {
    let path = folder.path().join("journal");
    let file = File::create(&path).unwrap();
    let metadata = file.metadata().unwrap();
    (file, path, format!("{}:{}", metadata.dev(), metadata.ino()))
}

#[test]
fn journal_gets_priorities_and_no_times() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let destination = format!("tcp://{}:6514", collector(1));
    for format in ["text", "json"] {
        let (file, path, stream) = journal(&folder);
        let environment = [
            ("JOURNAL_STREAM", stream.as_str()),
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &destination),
            ("SEKIWAKE_LOG", "debug"),
            ("SEKIWAKE_LOG_FORMAT", format),
        ];
        let mut service =
            Service::start_with_stderr(&site.host, &binary(SYSLOG), SYSLOG, &environment, file.into()).unwrap();
        let mut proxy = site.start_one(PROXY, &[]);
        let log = || fs::read_to_string(&path).unwrap();
        wait_for("a warning", LONG, || log().lines().any(|line| line.starts_with("<4>"))).unwrap();
        service.stop().unwrap();
        proxy.stop().unwrap();
        let log = log();
        for line in log.lines() {
            let (priority, rest) = line.split_at_checked(3).unwrap_or_else(|| panic!("{line:?}"));
            let level = match format {
                "text" => rest.split_whitespace().next().unwrap().to_owned(),
                _ => serde_json::from_str::<serde_json::Value>(rest).unwrap()["level"].as_str().unwrap().to_owned(),
            };
            let expected = match priority {
                "<3>" => "ERROR",
                "<4>" => "WARN",
                "<6>" => "INFO",
                "<7>" => "DEBUG",
                _ => panic!("{line:?}"),
            };
            assert_eq!(level, expected, "{line:?}");
        }
        assert!(log.lines().any(|line| line.starts_with("<6>")), "{log}");
    }
}

/// Runs the proxy with a mistake in its settings. Returns standard error.
fn mistakes(stream: Option<&str>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (file, path, own) = journal(&folder);
    let mut command = Command::new(binary(PROXY));
    command.env("SEKIWAKE_DRAIN", "soon").env("SEKIWAKE_LOG", "loud");
    command.env("JOURNAL_STREAM", stream.unwrap_or(&own));
    let mut process = Process::spawn_with_stderr(command, file.into()).unwrap();
    assert_eq!(process.wait(LONG).unwrap().code(), Some(2));
    fs::read_to_string(path).unwrap()
}

#[test]
fn journal_gets_mistakes_in_settings_as_errors() {
    let log = mistakes(None);
    assert_eq!(log.lines().filter(|line| line.starts_with("<3>SEKIWAKE_")).count(), 2, "{log}");
    // A process whose standard error was redirected inherits the variable.
    let log = mistakes(Some("1:1"));
    assert_eq!(log.lines().filter(|line| line.starts_with("SEKIWAKE_")).count(), 2, "{log}");
}
