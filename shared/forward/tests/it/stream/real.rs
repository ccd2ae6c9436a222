//! Real collectors: rsyslog and syslog-ng write the sent messages to their files, over TCP and TLS,
//! even when they are restarted.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sekiwake_testkit::{
    process::{Process, Signal},
    wait::{wait_for, wait_for_some},
};

use super::{Stream, number_of, numbered, settings, tls::Authority, with_spool, with_tls};
use crate::rig::{PATIENCE, Rig};

/// Where `deploy/packages test` unpacks packages that conflict with rsyslog's.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/unpacked/syslog-ng-core");

/// The root of syslog-ng's files: that of the file system where it is installed.
fn syslog_ng_root() -> &'static str {
    if fs::exists(UNPACKED).unwrap() { UNPACKED } else { "" }
}

/// The version in the name of its module folder.
fn syslog_ng_version() -> String {
    let folders =
        fs::read_dir(format!("{}/usr/lib/syslog-ng", syslog_ng_root())).expect("`deploy/packages test` unpacks it");
    let mut names = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    names.find(|name| name.starts_with(|first: char| first.is_ascii_digit())).unwrap()
}

/// A port of the loopback that is free at the moment.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn listens(port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| line.contains(&format!("0100007F:{port:04X} 00000000:0000 0A")))
}

/// A collector that writes each message as a line.
struct Collector {
    process: Process,
    port: u16,
    written: PathBuf,
}

impl Collector {
    fn start(command: Command, port: u16, written: PathBuf) -> Collector {
        let process = Process::spawn(command).unwrap();
        wait_for("the collector to listen", PATIENCE, || listens(port))
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", process.stderr(), process.stdout()));
        Collector { process, port, written }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read(&self.written).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    fn wait_for_lines(&self, count: usize) -> Vec<String> {
        let enough = || Some(self.lines()).filter(|lines| lines.len() >= count);
        wait_for_some(&format!("{count} lines"), PATIENCE, enough)
            .unwrap_or_else(|error| panic!("{error}: {} lines, {:?}", self.lines().len(), self.process.stderr()))
    }
}

fn rsyslog(folder: &Path, port: u16, tls: Option<&Authority>) -> Collector {
    let file = |name: &str| folder.join(name).display().to_string();
    let written = folder.join("written");
    let (global, module) = match tls {
        None => (String::new(), String::new()),
        Some(authority) => {
            let identity = authority.identity("rsyslog", &["127.0.0.1", "rsyslog.example"], false);
            let path = |path: &Path| path.display().to_string();
            (
                format!(
                    "global(DefaultNetstreamDriver=\"gtls\" DefaultNetstreamDriverCAFile=\"{}\" DefaultNetstreamDriverCertFile=\"{}\" DefaultNetstreamDriverKeyFile=\"{}\")\n",
                    path(&authority.ca()),
                    path(&identity.certificate),
                    path(&identity.key)
                ),
                " StreamDriver.Name=\"gtls\" StreamDriver.Mode=\"1\" StreamDriver.AuthMode=\"x509/certvalid\""
                    .to_owned(),
            )
        }
    };
    let configuration = format!(
        "global(workDirectory=\"{}\" maxMessageSize=\"64k\" parser.escapeControlCharactersOnReceive=\"on\")\n{global}\
         module(load=\"imtcp\"{module})\n\
         template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
         input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"all\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfile\" file=\"{}\" template=\"raw\") }}\n",
        folder.display(),
        written.display(),
    );
    fs::write(folder.join("rsyslog.conf"), configuration).unwrap();
    let mut command = Command::new("rsyslogd");
    command.args(["-n", "-f", &file("rsyslog.conf"), "-i", &file("pid")]);
    Collector::start(command, port, written)
}

fn syslog_ng(folder: &Path, port: u16, tls: Option<&Authority>) -> Collector {
    let root = syslog_ng_root();
    let version = syslog_ng_version();
    let file = |name: &str| folder.join(name).display().to_string();
    let written = folder.join("written");
    let transport = match tls {
        None => "transport(\"tcp\")".to_owned(),
        Some(authority) => {
            let identity = authority.identity("syslog-ng", &["127.0.0.1"], false);
            format!(
                "transport(\"tls\") tls(key-file(\"{}\") cert-file(\"{}\") ca-file(\"{}\") peer-verify(required-trusted))",
                identity.key.display(),
                identity.certificate.display(),
                authority.ca().display()
            )
        }
    };
    let configuration = format!(
        "@version: {version}\noptions {{ keep-hostname(yes); use-dns(no); log-msg-size(65536); stats-freq(0); }};\n\
         source s {{ syslog(ip(\"127.0.0.1\") port({port}) {transport} flags(store-raw-message)); }};\n\
         destination d {{ file(\"{}\" template(\"${{RAWMSG}}\\n\") flush-lines(0)); }};\n\
         log {{ source(s); destination(d); }};\n",
        written.display()
    );
    fs::write(folder.join("syslog-ng.conf"), configuration).unwrap();
    let mut command = Command::new(format!("{root}/usr/sbin/syslog-ng"));
    command.env("LD_LIBRARY_PATH", format!("{root}/usr/lib/syslog-ng"));
    command.arg("-F").arg(format!("--module-path={root}/usr/lib/syslog-ng/{version}"));
    for (option, name) in [("-f", "syslog-ng.conf"), ("-R", "persist"), ("-p", "pid"), ("-c", "control")] {
        command.args([option, &file(name)]);
    }
    Collector::start(command, port, written)
}

type Start = fn(&Path, u16, Option<&Authority>) -> Collector;

const COLLECTORS: [(&str, Start); 2] = [("rsyslog", rsyslog), ("syslog-ng", syslog_ng)];

#[test]
fn collectors_write_messages_sent_over_tcp() {
    for (name, start) in COLLECTORS {
        let folder = tempfile::tempdir().unwrap();
        let collector = start(folder.path(), free_port(), None);
        let mut stream = Stream::start(settings(collector.address()));
        let long = [numbered(5_000), vec![b'x'; 8_000]].concat();
        stream.forward((0..5_000).map(numbered));
        stream.forward([long.clone()]);
        let lines = collector.wait_for_lines(5_001);
        let sent: Vec<String> =
            (0..5_000).map(numbered).chain([long]).map(|message| String::from_utf8(message).unwrap()).collect();
        assert!(lines == sent, "{name}");
        stream.wait_until_sent(5_001);
        stream.assert_ledger();
        stream.stop();
    }
}

#[test]
fn collectors_write_messages_sent_over_tls() {
    for (name, start) in COLLECTORS {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let collector = start(folder.path(), free_port(), Some(&authority));
        let ours = authority.identity("ours", &["forwarder.example"], false);
        let mut settings = authority.trusting();
        (settings.certificate, settings.key) = (Some(ours.certificate), Some(ours.key));
        let mut stream = Stream::start(with_tls(collector.address(), settings.load("127.0.0.1").unwrap()));
        stream.forward((0..5_000).map(numbered));
        let lines = collector.wait_for_lines(5_000);
        assert!(lines.into_iter().map(String::into_bytes).eq((0..5_000).map(numbered)), "{name}");
        stream.wait_until_sent(5_000);
        stream.assert_ledger();
        stream.stop();
    }
}

#[test]
fn missing_client_certificate_is_reported() {
    for (name, start) in COLLECTORS {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let collector = start(folder.path(), free_port(), Some(&authority));
        let rig = Rig::new();
        let engine = rig.engine(&format!("tls://{}?ca={}", collector.address(), authority.ca().display()));
        let error = || engine.status()[0]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
        let is_asked = || error().contains("does it require a client certificate (cert=, key=)?");
        wait_for("the question", PATIENCE, is_asked).unwrap_or_else(|late| panic!("{late}: {name}: {}", error()));
        drop(engine);
        rig.stop();
    }
}

#[test]
fn client_certificate_of_another_authority_is_named() {
    for (name, start) in COLLECTORS {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let folder = tempfile::tempdir().unwrap();
        let collector = start(folder.path(), free_port(), Some(&authority));
        let rig = Rig::new();
        let ours = stranger.identity("ours", &["forwarder.example"], false);
        let (ca, certificate, key) = (authority.ca(), ours.certificate.display(), ours.key.display());
        let files = format!("ca={}&cert={certificate}&key={key}", ca.display());
        let engine = rig.engine(&format!("tls://{}?{files}", collector.address()));
        let error = || engine.status()[0]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
        // Some close the connection without an alert.
        let named = format!("the client certificate {certificate} (cert=)");
        wait_for("the file", PATIENCE, || error().contains(&named))
            .unwrap_or_else(|late| panic!("{late}: {name}: {}", error()));
        drop(engine);
        rig.stop();
    }
}

#[test]
fn restarted_collector_misses_no_unacknowledged_message() {
    for (name, start) in COLLECTORS {
        let folder = tempfile::tempdir().unwrap();
        let spool = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut collector = start(folder.path(), port, None);
        let mut stream = Stream::start(with_spool(collector.address(), spool.path(), 64 << 20, 20_000));
        stream.forward_paced(0..4_000, 4_000);
        stream.wait_until_sent(4_000);
        collector.process.signal(Signal::TERM).unwrap();
        collector.process.wait(PATIENCE).unwrap();
        stream.forward_paced(4_000..16_000, 4_000);
        let collector = start(folder.path(), port, None);
        wait_for("a connection", Duration::from_secs(40), || stream.up() == 1.0).unwrap();
        stream.forward_paced(16_000..18_000, 4_000);
        stream.wait_until_sent(18_000);
        collector.wait_for_lines(18_000);
        let mut numbers: Vec<u64> = collector.lines().iter().map(|line| number_of(line.as_bytes())).collect();
        let came = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert!(numbers.into_iter().eq(0..18_000), "{name}");
        println!("{name}: {} arrived twice", came - 18_000);
        stream.assert_ledger();
        stream.stop();
    }
}
