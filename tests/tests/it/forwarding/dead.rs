//! Two of four destinations are dead, in several ways, and the others receive everything.
//!
//! ```text
//!                          ┌─ dead, IPv4
//! capture ─▶ forwarder ────┼─ live, IPv4: every number, once, in order
//!                          ├─ dead, IPv6
//!                          └─ live, IPv6: every number, once, in order
//! ```

use std::{net::TcpListener, path::Path, process::Command, time::Duration};

use sekiwake_testkit::{
    process::Process,
    sink::{Options, Report},
};
use sekiwake_tests::{Ledger, MIRRORED, Samples, collector, collector_v6};

use super::*;

/// Datagrams per second for any machine.
const MODEST: u32 = 10_000;
/// Datagrams per second of the measurement.
const FULL: u32 = 100_000;

/// A failure mode of destinations.
struct Failure {
    name: &'static str,
    /// An IPv4 and an IPv6 destination with this failure.
    destinations: [String; 2],
    /// The final value of `sekiwake_forward_up`.
    up: f64,
    /// The expected reasons of drops.
    reasons: &'static [&'static str],
    /// Whether the kernel reports errors.
    has_errors: bool,
    /// Listeners that accept connections until the ledger is read.
    peers: Vec<TcpListener>,
}

/// Unused addresses of the collectors' network.
fn no_neighbour() -> Failure {
    let destinations = ["udp://198.51.100.200:514".to_owned(), "udp://[2001:db8:51::200]:514".to_owned()];
    Failure {
        name: "no answer to ARP and neighbour solicitation",
        destinations,
        up: 0.0,
        reasons: &["unreachable", "queue_full", "expired"],
        has_errors: true,
        peers: Vec::new(),
    }
}

/// Closed ports.
fn closed_port() -> Failure {
    let destinations = [format!("udp://{}:9", collector(2)), format!("udp://[{}]:9", collector_v6(2))];
    Failure { name: "ICMP port unreachable", destinations, up: 0.0, reasons: &[], has_errors: true, peers: Vec::new() }
}

/// Networks behind a router that drops silently.
fn black_hole(site: &TestSite) -> Failure {
    for (network, router) in
        [("198.51.101.0/24", collector(0).to_string()), ("2001:db8:52::/64", collector_v6(0).to_string())]
    {
        site.host.ip(&format!("route add {network} via {router}")).unwrap();
        site.collectors.ip(&format!("route add blackhole {network}")).unwrap();
    }
    let destinations = ["udp://198.51.101.7:514".to_owned(), "udp://[2001:db8:52::7]:514".to_owned()];
    // Without errors, a UDP destination is up.
    Failure { name: "black hole", destinations, up: 1.0, reasons: &[], has_errors: false, peers: Vec::new() }
}

/// Connections that the kernel accepts and no process reads.
fn never_reading(site: &TestSite) -> Failure {
    let places = [at(collector(2), 6514), at(collector_v6(2), 6514)];
    let peers = places.map(|place| site.collectors.enter(|| TcpListener::bind(place)).unwrap().unwrap());
    let destinations = places.map(|place| format!("tcp://{place}"));
    Failure {
        name: "TCP that never reads",
        destinations,
        up: 0.0,
        reasons: &["stalled", "disconnected", "queue_full", "expired"],
        has_errors: true,
        peers: peers.into(),
    }
}

/// Servers with untrusted certificates, which stop when dropped.
fn untrusted(site: &TestSite, folder: &Path) -> (Failure, [Process; 2]) {
    let certificate = folder.join("certificate");
    let key = folder.join("key");
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
    command.args(["-subj", "/CN=nobody", "-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-addext").arg(format!("subjectAltName=IP:{},IP:{}", collector(2), collector_v6(2)));
    command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert!(command.output().unwrap().status.success());
    let places = [at(collector(2), 6515), at(collector_v6(2), 6515)];
    let servers = places.map(|place| {
        let mut command = site.collectors.command("openssl");
        command
            .args(["s_server", "-www", "-accept", &place.to_string()])
            .arg("-cert")
            .arg(&certificate)
            .arg("-key")
            .arg(&key);
        let server = Process::spawn(command).unwrap();
        server.wait_for_line(LONG, |line| line.contains("ACCEPT")).unwrap();
        server
    });
    let failure = Failure {
        name: "TLS with a certificate that is not trusted",
        destinations: places.map(|place| format!("tls://{place}")),
        up: 0.0,
        reasons: &["disconnected", "queue_full"],
        has_errors: true,
        peers: Vec::new(),
    };
    (failure, servers)
}

/// Sends at this rate for these seconds, and checks and prints the results.
fn check(site: &TestSite, mut failure: Failure, rate: u32, seconds: u32) {
    let options = || Options { receive_buffer_bytes: 512 << 20, ..numbered() };
    let live = [at(collector(0), 514), at(collector_v6(1), 514)].map(|address| site.sink(&[address], options()));
    let alive = [format!("udp://{}:514", collector(0)), format!("udp://[{}]:514", collector_v6(1))];
    let destinations = format!("{} {} {} {}", failure.destinations[0], alive[0], failure.destinations[1], alive[1]);
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let dropped_before = site.dropped_by_wire().unwrap();
    let load = format!("--from 198.19.0.0/16 --sources 64 --size 200 --rate {rate} --duration {seconds}s");
    let sent = site.send(&format!("--to {MIRRORED} {load}"));
    let sent = sent - (site.dropped_by_wire().unwrap() - dropped_before);
    for sink in &live {
        // The comparison below reports missing datagrams.
        let _ = sink.wait_for(sent, LONG);
    }
    let forwarder = services.get(SYSLOG);
    let label = |uri: &str| format!("destination=\"{uri}\"");
    forwarder
        .wait_for_metrics("the dead destinations to be known", LONG, |samples| {
            let up = |uri: &String| samples.sum("sekiwake_forward_up", &[&label(uri)]);
            alive.iter().all(|uri| samples.count("sekiwake_forward_queue_records", &[&label(uri)]) == 0)
                && failure.destinations.iter().all(|uri| up(uri) == failure.up)
        })
        .unwrap();
    // Datagrams in an unread connection are neither sent nor dropped until it closes.
    failure.peers.clear();
    let is_idle = |samples: &Samples| samples.count("sekiwake_forward_queue_records", &[]) == 0;
    forwarder.wait_for_metrics("empty queues", LONG, is_idle).unwrap();
    let ledger = balanced_ledger(&services);
    let cpu = forwarder.process.cpu_time().unwrap();
    services.stop().unwrap();
    let reports = live.map(|sink| sink.finish());
    print(&failure, sent, cpu, &ledger, &reports);

    let samples = &ledger.forwarders[0];
    let count = |what: &str, uri: &str, more: &[&str]| {
        samples.count(&format!("sekiwake_forward_{what}"), &[&[label(uri).as_str()], more].concat())
    };
    for (uri, report) in alive.iter().zip(&reports) {
        assert_eq!(report.dropped, Some(0), "the sink itself was too slow");
        assert_eq!(report.received, sent, "{uri}: {:?}", ledger.losses());
        assert!(report.sequence.is_complete(), "{uri}: {:?}", report.sequence);
        assert_eq!((report.sequence.streams, report.sequence.out_of_order), (64, 0), "{uri}");
        assert_eq!((count("sent_datagrams_total", uri, &[]), count("dropped_datagrams_total", uri, &[])), (sent, 0));
        assert_eq!(samples.sum("sekiwake_forward_up", &[&label(uri)]), 1.0, "{uri}");
    }
    for uri in &failure.destinations {
        let dropped = count("dropped_datagrams_total", uri, &[]);
        let reasons = failure.reasons.iter().map(|reason| format!("reason=\"{reason}\""));
        let by_reason: u64 = reasons.map(|reason| count("dropped_datagrams_total", uri, &[&reason])).sum();
        assert_eq!(by_reason, dropped, "{uri}: {:?}", ledger.losses());
        assert_eq!(count("sent_datagrams_total", uri, &[]) + dropped, sent, "{uri}");
        assert_eq!(count("errors_total", uri, &[]) > 0, failure.has_errors, "{uri}");
    }
    assert_eq!(ledger.lost_for_good(), Vec::<String>::new());
}

fn print(failure: &Failure, sent: u64, cpu: Duration, ledger: &Ledger, reports: &[Report; 2]) {
    let [one, other] = reports.each_ref().map(|report| (report.received, report.rate() as u64));
    println!(
        "{}: {sent} sent; live destinations received (total, per second) {one:?} and {other:?}; the forwarder used {cpu:?} of CPU",
        failure.name
    );
    let names = ["sent_datagrams_total", "dropped_datagrams_total", "errors_total", "up"];
    for name in names {
        let samples = ledger.forwarders[0].nonzero(&format!("sekiwake_forward_{name}"), &[]);
        samples.iter().for_each(|(text, value)| println!("  {text} {value}"));
    }
}

#[test]
fn destinations_without_arp_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    check(&site, no_neighbour(), MODEST, 4);
}

#[test]
fn destinations_with_closed_ports_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    check(&site, closed_port(), MODEST, 4);
}

#[test]
fn black_hole_destinations_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    let failure = black_hole(&site);
    check(&site, failure, MODEST, 4);
}

#[test]
fn tcp_destinations_that_never_read_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    let failure = never_reading(&site);
    check(&site, failure, MODEST, 4);
}

#[test]
fn untrusted_tls_destinations_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (failure, _servers) = untrusted(&site, folder.path());
    check(&site, failure, MODEST, 4);
}

#[test]
#[ignore = "a measurement at 100,000 per second, requires a quiet machine"]
fn dead_destinations_at_100000_per_second() {
    let Some(site) = site() else { return };
    let failures = [no_neighbour(), closed_port(), black_hole(&site), never_reading(&site)];
    failures.into_iter().for_each(|failure| check(&site, failure, FULL, 5));
    let folder = tempfile::tempdir().unwrap();
    let (failure, _servers) = untrusted(&site, folder.path());
    check(&site, failure, FULL, 5);
}
