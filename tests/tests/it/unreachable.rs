//! Without a proxy, or a name server that answers, services say what they wait for, and stop.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, Service, binary, collector};

use crate::support::*;

const PROXY_NAME: &str = "proxy.example";
/// The clients' endpoints, with a name.
const NAMED: [(&str, &str); 3] = [
    ("SEKIWAKE_BUS_PUBLISH", "tcp://proxy.example:5559"),
    ("SEKIWAKE_BUS_SUBSCRIBE", "tcp://proxy.example:5560"),
    ("SEKIWAKE_BUS_CONTROL", "tcp://proxy.example:5561"),
];

/// Files that `ip netns exec` shows in `/etc` to the programs of a namespace. Dropping it removes
/// them.
struct Etc(PathBuf);

impl Etc {
    fn new(namespace: &str, name: &str, text: &str) -> Etc {
        let folder = Path::new("/etc/netns").join(namespace);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
        Etc(folder)
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn clients_log_an_outage_of_the_proxy_and_its_end() {
    let Some(site) = site() else { return };
    let _hosts = Etc::new(site.host.name(), "hosts", &format!("127.0.0.1 localhost\n127.0.0.1 {PROXY_NAME}\n"));
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let destination = syslog_to(0);
    let environment = [&NAMED[..], &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination)]].concat();
    let mut services = site.start(&SYSLOG_PATH, &environment);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} --from 198.19.0.0/16 --rate 1000 --duration 15s"));
    sink.wait_for(1_000, LONG).unwrap();
    services.take(PROXY).kill().unwrap();
    let sides = [
        (CAPTURE, "publish", 5559),
        (CAPTURE, "control", 5561),
        (SYSLOG, "subscribe", 5560),
        (SYSLOG, "control", 5561),
    ];
    let wait_for_line = |name: &str, parts: &[&str]| {
        let process = &services.get(name).process;
        let found = process.wait_for_line(LONG, |line| parts.iter().all(|part| line.contains(part)));
        found.unwrap_or_else(|error| panic!("{name}, {parts:?}: {error}: {}", process.stderr().join("\n")))
    };
    for (name, side, port) in sides {
        let endpoint = format!("endpoint=\"tcp://{PROXY_NAME}:{port}\"");
        let setting = format!("setting=\"SEKIWAKE_BUS_{}\"", side.to_uppercase());
        let (side, address) = (format!("side=\"{side}\""), format!("127.0.0.1:{port}"));
        wait_for_line(
            name,
            &["no connection to the proxy", &side, &setting, &endpoint, &address, "Connection refused"],
        );
    }
    let proxy = site.start_one(PROXY, &[]);
    for (name, side, _) in sides {
        let side = format!("side=\"{side}\"");
        wait_for_line(name, &["connected to the proxy again", &side, "seconds="]);
    }
    // Where records are retransmitted, the line says how many.
    for name in [CAPTURE, SYSLOG] {
        wait_for_line(name, &["connected to the proxy again", "retransmitted_records="]);
    }
    services.add(proxy);
    let sent = sent_by(&mut sender);
    sink.wait_for(sent, LONG).unwrap();
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!((report.received - report.sequence.duplicates, report.sequence.missing), (sent, 0));
}

/// A name server that receives queries and never answers. Look-ups take minutes to fail.
fn silent_name_server(site: &TestSite) -> (Etc, UdpSocket) {
    let etc = Etc::new(site.host.name(), "resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:5\n");
    (etc, site.host.udp_socket(at(Ipv4Addr::LOCALHOST, 53)).unwrap())
}

#[test]
fn services_start_and_stop_while_names_do_not_resolve() {
    let Some(site) = site() else { return };
    let _name_server = silent_name_server(&site);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let all = "udp://collector.example:514 tcp://collector.example:514 tls://collector.example:6514";
    let notify = "webhook+http://collector.example/ syslog+udp://collector.example";
    let environment = [
        &NAMED[..],
        &[("SEKIWAKE_SYSLOG_DESTINATIONS", all), ("SEKIWAKE_STORE_DIR", folder), ("SEKIWAKE_NOTIFY", notify)],
    ]
    .concat();
    for name in [CAPTURE, SYSLOG, "sekiwake-storer", "sekiwake-anomaly-detector"] {
        let mut service = site.start_one(name, &environment);
        let endpoint = format!("(tcp://{PROXY_NAME}:55");
        let waits_for_it = || service.page("/readyz").is_err_and(|error| format!("{error:#}").contains(&endpoint));
        wait_for("its readiness to name the endpoint", LONG, waits_for_it).unwrap();
        let unresolved = format!("the name {PROXY_NAME} has not been resolved yet");
        let is_reported = |line: &str| line.contains("no connection to the proxy") && line.contains(&unresolved);
        service.process.wait_for_line(LONG, is_reported).unwrap();
        service.stop().unwrap();
    }
}

#[test]
fn destinations_whose_names_do_not_resolve_affect_no_others() {
    let Some(site) = site() else { return };
    let _name_server = silent_name_server(&site);
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let unresolved = "udp://collector.example:514 tcp://collector.example:514 tls://collector.example:6514";
    let destinations = format!("{} {unresolved}", syslog_to(0));
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --rate 1000 --count 2000"));
    sink.wait_for(sent, LONG).unwrap();
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!((report.received, report.sequence.missing), (sent, 0));
}

#[test]
fn tap_with_blocked_output_survives_its_proxy() {
    let Some(site) = site() else { return };
    let mut services = site.start(&[CAPTURE, PROXY], &[]);
    let mut command = site.host.command(binary("sekiwake-tap"));
    let mut tap = command.arg("syslog/").stdout(Stdio::piped()).spawn().unwrap();
    let mut sender = site.start_sender(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --rate 20000"));
    // The tap's own queue is full, and then its queue in the proxy.
    let is_stalled = |proxy: &Service<'_>| {
        let full = proxy.metrics().unwrap().count("sekiwake_relay_subscriber_queue_full_total", &[]);
        full > 0
    };
    wait_for("a stalled tap", LONG, || is_stalled(services.get(PROXY))).unwrap();
    sender.stop(LONG).unwrap();
    services.take(PROXY).kill().unwrap();
    services.add(site.start_one(PROXY, &[]));
    // It goes on printing: what it has, and what is sent through the new proxy.
    let mut lines = BufReader::new(tap.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || {
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("198.19.77.1"));
        (found, lines)
    });
    wait_for("a line through the new proxy, or the end of the tap", LONG, || {
        site.send(&format!("--to {MIRRORED} --from 198.19.77.1 --rate 1000 --count 10"));
        reader.is_finished()
    })
    .unwrap();
    let (found, _lines) = reader.join().unwrap();
    assert!(found && tap.try_wait().unwrap().is_none(), "{:?}", tap.try_wait());
    tap.kill().unwrap();
    tap.wait().unwrap();
    services.stop().unwrap();
}
