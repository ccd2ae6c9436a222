//! A running site changes from ZeroMQ to JetStream, as docs/bus-jetstream.md describes it.

use std::time::Duration;

use sekiwake_testkit::wait::wait_for;

use super::server::{BUS, NatsServer, pause_until};
use crate::{
    replicas::{Completeness, Load, completeness, flow_for, large_sink},
    support::*,
};

/// How many datagrams a capture that has ended says that it has offered to the bus.
fn offered(log: &[String]) -> u64 {
    let line = log.iter().find(|line| line.contains("stream ended")).expect("the last line of a stream");
    let (_, number) = line.split_once("offered=").unwrap();
    number.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn site_that_moves_to_jetstream_misses_nothing_that_was_captured() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let sink = large_sink(&site, 0);
    let destination = ("SEKIWAKE_SYSLOG_DESTINATIONS", &*syslog_to(0));
    let mut old = site.start(&SYSLOG_PATH, &[destination]);
    let mut capture = old.take(CAPTURE);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));

    let _server = NatsServer::start(&site.host, "");
    let mut forwarder = site.start_one(SYSLOG, &[BUS, destination, ("SEKIWAKE_ADMIN", "127.0.0.1:9701")]);
    pause_until("the new forwarder", || forwarder.is_ready());
    capture.stop().unwrap();
    let before = offered(&capture.process.stderr());
    let mut capture = site.start_one(CAPTURE, &[BUS]);
    pause_until("the new capture", || capture.is_ready());
    flow_for(&sink, Duration::from_secs(1));
    old.stop().unwrap();

    let sent = load.stop();
    let after = || capture.metrics().unwrap().count("sekiwake_bus_published_records_total", &[]);
    wait_for("everything that was captured", LONG, || sink.received() >= before + after()).unwrap();
    // Whatever is published later would be missing.
    let _ = sink.wait_for_silence(Duration::from_millis(500), LONG);
    let after = after();
    capture.stop().unwrap();
    assert_eq!(offered(&capture.process.stderr()), after);
    forwarder.stop().unwrap();
    let Completeness { missing, duplicates } = completeness(sink, sent);
    println!("{sent} sent, {before} captured before and {after} after, {missing} in the gap, {duplicates} twice");
    assert!(before > 0 && after > 0);
    assert_eq!((sent - missing, duplicates), (before + after, 0));
}
