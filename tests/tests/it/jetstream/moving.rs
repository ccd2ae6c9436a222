//! A running site changes from ZeroMQ to JetStream or back, as docs/bus-jetstream.md describes it.

use std::time::Duration;

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::Service;

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

/// What services set to use a bus.
fn setting(bus: Bus) -> &'static [(&'static str, &'static str)] {
    match bus {
        Bus::ZeroMq => &[],
        Bus::JetStream => &[BUS],
    }
}

#[test]
fn site_that_moves_to_jetstream_misses_nothing_that_was_captured() {
    moves(Bus::ZeroMq, Bus::JetStream);
}

#[test]
fn site_that_moves_to_zeromq_misses_nothing_that_was_captured() {
    moves(Bus::JetStream, Bus::ZeroMq);
}

fn moves(from: Bus, to: Bus) {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let sink = large_sink(&site, 0);
    let destination = ("SEKIWAKE_SYSLOG_DESTINATIONS", &*syslog_to(0));
    let _server = NatsServer::start(&site.host, "");
    let start = |bus: Bus, name: &str, more: &[(&str, &str)]| {
        let service = site.start_one(name, &[setting(bus), more].concat());
        pause_until("a ready service", || service.is_ready());
        service
    };
    let _proxy = site.start_one(PROXY, &[]);
    let mut old = start(from, SYSLOG, &[destination]);
    let mut capture = start(from, CAPTURE, &[]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));

    let mut forwarder = start(to, SYSLOG, &[destination, ("SEKIWAKE_ADMIN", "127.0.0.1:9750")]);
    capture.stop().unwrap();
    let before = offered(&capture.process.stderr());
    let mut capture = start(to, CAPTURE, &[]);
    flow_for(&sink, Duration::from_secs(1));
    let lag = |service: &Service<'_>| service.metrics().unwrap().count("sekiwake_bus_shard_lag_records", &[]);
    pause_until("the old forwarder to receive everything", || from == Bus::ZeroMq || lag(&old) == 0);
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
