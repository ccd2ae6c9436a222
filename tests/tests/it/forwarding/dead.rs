//! Two of four destinations are dead, in every way that there is: the others get everything.
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
use sekiwake_tests::{Ledger, MIRRORED, collector, collector_v6};

use super::*;

/// What a test on any machine sends, in a second.
const MODEST: u32 = 20_000;
/// What is promised.
const FULL: u32 = 100_000;

/// A way to be dead.
struct Death {
    name: &'static str,
    /// An IPv4 and an IPv6 destination that are dead in this way.
    destinations: [String; 2],
    /// What `sekiwake_forward_up` says of them in the end.
    up: f64,
    /// The only reasons for which their datagrams may be dropped.
    reasons: &'static [&'static str],
    /// Whether an ICMP error or the lack of a link-layer address is heard of.
    is_heard_of: bool,
    /// Who is connected to, until it is time to close the books.
    peers: Vec<TcpListener>,
}

/// Addresses of the collectors' network that nobody has.
fn no_neighbour() -> Death {
    let destinations = ["udp://198.51.100.200:514".to_owned(), "udp://[2001:db8:51::200]:514".to_owned()];
    Death {
        name: "no answer to ARP and neighbour solicitation",
        destinations,
        up: 0.0,
        reasons: &["unreachable", "queue_full", "expired"],
        is_heard_of: true,
        peers: Vec::new(),
    }
}

/// Ports that nobody listens at.
fn closed_port() -> Death {
    let destinations = [format!("udp://{}:9", collector(2)), format!("udp://[{}]:9", collector_v6(2))];
    Death { name: "ICMP port unreachable", destinations, up: 0.0, reasons: &[], is_heard_of: true, peers: Vec::new() }
}

/// Networks behind a router that says nothing.
fn black_hole(site: &TestSite) -> Death {
    for (network, router) in
        [("198.51.101.0/24", collector(0).to_string()), ("2001:db8:52::/64", collector_v6(0).to_string())]
    {
        site.host.ip(&format!("route add {network} via {router}")).unwrap();
        site.collectors.ip(&format!("route add blackhole {network}")).unwrap();
    }
    let destinations = ["udp://198.51.101.7:514".to_owned(), "udp://[2001:db8:52::7]:514".to_owned()];
    // Nobody complains, so it is up as far as UDP lets one know.
    Death { name: "black hole", destinations, up: 1.0, reasons: &[], is_heard_of: false, peers: Vec::new() }
}

/// Connections that are made and never read from: the kernel accepts them, nobody else does.
fn never_reading(site: &TestSite) -> Death {
    let places = [at(collector(2), 6514), at(collector_v6(2), 6514)];
    let peers = places.map(|place| site.collectors.enter(|| TcpListener::bind(place)).unwrap().unwrap());
    let destinations = places.map(|place| format!("tcp://{place}"));
    Death {
        name: "TCP that never reads",
        destinations,
        up: 0.0,
        reasons: &["stalled", "disconnected", "queue_full", "expired"],
        is_heard_of: true,
        peers: peers.into(),
    }
}

/// Servers with certificates that nobody vouches for. They end with their values.
fn untrusted(site: &TestSite, folder: &Path) -> (Death, [Process; 2]) {
    let (certificate, key) = (folder.join("certificate"), folder.join("key"));
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
    let death = Death {
        name: "TLS with a certificate that is not trusted",
        destinations: places.map(|place| format!("tls://{place}")),
        up: 0.0,
        reasons: &["disconnected", "queue_full"],
        is_heard_of: true,
        peers: Vec::new(),
    };
    (death, servers)
}

/// Sends at this rate for these seconds, and checks and prints what became of it.
fn check(site: &TestSite, mut death: Death, rate: u32, seconds: u32) {
    let options = || Options { receive_buffer_bytes: 512 << 20, ..numbered() };
    let live = [at(collector(0), 514), at(collector_v6(1), 514)].map(|address| site.sink(&[address], options()));
    let alive = [format!("udp://{}:514", collector(0)), format!("udp://[{}]:514", collector_v6(1))];
    let destinations = format!("{} {} {} {}", death.destinations[0], alive[0], death.destinations[1], alive[1]);
    let services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let dropped_before = site.dropped_by_wire().unwrap();
    let load = format!("--from 198.19.0.0/16 --sources 64 --size 200 --rate {rate} --duration {seconds}s");
    let sent = site.send(&format!("--to {MIRRORED} {load}"));
    let sent = sent - (site.dropped_by_wire().unwrap() - dropped_before);
    for sink in &live {
        // What is missing shows below.
        let _ = sink.wait_for(sent, LONG);
    }
    let forwarder = services.get(SYSLOG);
    let label = |uri: &str| format!("destination=\"{uri}\"");
    forwarder
        .wait_for_metrics("the dead to be known", LONG, |samples| {
            let said = |uri: &String| samples.sum("sekiwake_forward_up", &[&label(uri)]);
            // Not known is no number, and equal to none.
            alive.iter().all(|uri| samples.count("sekiwake_forward_queue_records", &[&label(uri)]) == 0)
                && death.destinations.iter().all(|uri| said(uri) == death.up)
        })
        .unwrap();
    // A connection that nobody reads has taken what is neither sent nor given up, as long as it lasts.
    death.peers.clear();
    let is_idle = |samples: &sekiwake_tests::Samples| samples.count("sekiwake_forward_queue_records", &[]) == 0;
    forwarder.wait_for_metrics("nothing to wait any more", LONG, is_idle).unwrap();
    let ledger = closed_books(&services);
    let cpu = forwarder.process.cpu_time().unwrap();
    services.stop().unwrap();
    let reports = live.map(|sink| sink.finish());
    print(&death, sent, cpu, &ledger, &reports);

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
    for uri in &death.destinations {
        let dropped = count("dropped_datagrams_total", uri, &[]);
        let reasons = death.reasons.iter().map(|reason| format!("reason=\"{reason}\""));
        let by_reason: u64 = reasons.map(|reason| count("dropped_datagrams_total", uri, &[&reason])).sum();
        assert_eq!(by_reason, dropped, "{uri}: {:?}", ledger.losses());
        assert_eq!(count("sent_datagrams_total", uri, &[]) + dropped, sent, "{uri}");
        assert_eq!(count("errors_total", uri, &[]) > 0, death.is_heard_of, "{uri}");
    }
    assert_eq!(ledger.lost_for_good(), Vec::<String>::new());
}

fn print(death: &Death, sent: u64, cpu: Duration, ledger: &Ledger, reports: &[Report; 2]) {
    let [one, other] = reports.each_ref().map(|report| (report.received, report.rate() as u64));
    println!(
        "{}: {sent} sent; the live received (and a second) {one:?} and {other:?}; the forwarder took {cpu:?}",
        death.name
    );
    let names = ["sent_datagrams_total", "dropped_datagrams_total", "errors_total", "up"];
    for name in names {
        let samples = ledger.forwarders[0].nonzero(&format!("sekiwake_forward_{name}"), &[]);
        samples.iter().for_each(|(text, value)| println!("  {text} {value}"));
    }
}

#[test]
fn destinations_that_answer_no_arp_cost_the_live_ones_nothing() {
    let Some(site) = site("destinations_that_answer_no_arp_cost_the_live_ones_nothing") else { return };
    check(&site, no_neighbour(), MODEST, 4);
}

#[test]
fn destinations_whose_port_is_closed_cost_the_live_ones_nothing() {
    let Some(site) = site("destinations_whose_port_is_closed_cost_the_live_ones_nothing") else { return };
    check(&site, closed_port(), MODEST, 4);
}

#[test]
fn destinations_in_a_black_hole_cost_the_live_ones_nothing() {
    let Some(site) = site("destinations_in_a_black_hole_cost_the_live_ones_nothing") else { return };
    let death = black_hole(&site);
    check(&site, death, MODEST, 4);
}

#[test]
fn destinations_that_never_read_their_connection_cost_the_live_ones_nothing() {
    let Some(site) = site("destinations_that_never_read_their_connection_cost_the_live_ones_nothing") else { return };
    let death = never_reading(&site);
    check(&site, death, MODEST, 4);
}

#[test]
fn destinations_with_a_certificate_that_is_not_trusted_cost_the_live_ones_nothing() {
    let test = "destinations_with_a_certificate_that_is_not_trusted_cost_the_live_ones_nothing";
    let Some(site) = site(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (death, _servers) = untrusted(&site, folder.path());
    check(&site, death, MODEST, 4);
}

#[test]
#[ignore = "takes a quiet machine: prints figures at 100,000 a second"]
fn dead_destinations_at_100000_a_second() {
    let Some(site) = site("dead_destinations_at_100000_a_second") else { return };
    let deaths = [no_neighbour(), closed_port(), black_hole(&site), never_reading(&site)];
    deaths.into_iter().for_each(|death| check(&site, death, FULL, 5));
    let folder = tempfile::tempdir().unwrap();
    let (death, _servers) = untrusted(&site, folder.path());
    check(&site, death, FULL, 5);
}
