//! Savefiles are published completely and once, or capture exits with an error.

use std::{fs, path::Path};

use sekiwake_testkit::{
    packets::{Datagram, SaveFile, ethernet},
    sink::Options,
    wait::wait_for,
};
use sekiwake_tests::{Service, Services, collector};

use crate::support::*;

/// Writes a savefile with `count` datagrams of many sources. Returns their payloads.
fn write(path: &Path, count: u64, length: usize) -> Vec<Vec<u8>> {
    let payloads: Vec<Vec<u8>> = (0..count).map(|number| noise(number, length)).collect();
    let file = payloads.iter().zip(0_u64..).fold(SaveFile::new(1), |file, (payload, number)| {
        let source = format!("198.19.{}.{}:5140", number / 100 % 64, number % 100 + 1);
        let datagram = Datagram::new(&source, "203.0.113.7:514", payload.clone());
        file.packet(1_700_000_000_000_000_000 + number * 1_000, &ethernet(&datagram.packet()))
    });
    file.write_to(path).unwrap();
    payloads
}

/// A capture that reads a savefile, and its subscribers.
struct SavefileRun<'a> {
    subscribers: Services<'a>,
    capture: Service<'a>,
}

/// Starts proxy and forwarder, then a capture that reads the file.
fn publish<'a>(site: &'a TestSite, path: &Path) -> SavefileRun<'a> {
    let subscribers = site.start_with(&[PROXY, SYSLOG], &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let environment = [site.bus(), &[("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap())]].concat();
    let capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
    SavefileRun { subscribers, capture }
}

#[test]
fn savefile_arrives_complete() {
    arrives_complete(Bus::ZeroMq);
}

#[test]
fn savefile_arrives_complete_on_jetstream() {
    arrives_complete(Bus::JetStream);
}

fn arrives_complete(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    let payloads = write(&path, 5_000, 300);
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let SavefileRun { subscribers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    let log = capture.process.stderr().join("\n");
    assert!(status.success(), "{log}");
    let _ = sink.wait_for(payloads.len() as u64, LONG);
    subscribers.stop().unwrap();
    assert_same_set(&log, in_order(sink.finish()), payloads);
}

#[test]
fn savefile_without_subscriber_is_not_published() {
    is_not_published(Bus::ZeroMq);
}

#[test]
fn savefile_without_subscriber_is_not_published_on_jetstream() {
    is_not_published(Bus::JetStream);
}

fn is_not_published(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    write(&path, 10, 100);
    let proxy = site.start_with(&[PROXY], &[]);
    let file = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap()), ("SEKIWAKE_CAPTURE_WAIT", "1s")];
    let environment = [site.bus(), &file].concat();
    let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
    let status = capture.process.wait(LONG).unwrap();
    let log = capture.process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("no subscriber within 1s"), "{log}");
    proxy.stop().unwrap();
}

#[test]
fn damaged_savefile_is_published_up_to_the_damage() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    let payloads = write(&path, 1_000, 100);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0xff; 1_000]);
    fs::write(&path, bytes).unwrap();
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let SavefileRun { subscribers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    let log = capture.process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("damaged after packet 1000"), "{log}");
    let _ = sink.wait_for(payloads.len() as u64, LONG);
    subscribers.stop().unwrap();
    assert_same_set(&log, in_order(sink.finish()), payloads);
}

#[test]
fn invalid_savefile_exits_with_status_1() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, "not a savefile").unwrap();
    for (path, word) in [(path.as_path(), "text"), (Path::new("/nowhere/file.pcap"), "/nowhere/file.pcap")] {
        let environment = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap())];
        let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
        let status = capture.process.wait(LONG).unwrap();
        let log = capture.process.stderr().join("\n");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("cannot read savefile") && log.contains(word), "{log}");
    }
}

#[test]
fn savefile_at_full_speed_counts_every_loss() {
    let Some(site) = site() else { return };
    const COUNT: u64 = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pcap");
    write(&path, COUNT, 200);
    let sink = site.sink(&[at(collector(0), 514)], Options { receive_buffer_bytes: 512 << 20, ..Options::counts() });
    let SavefileRun { subscribers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    assert!(status.success(), "{}", capture.process.stderr().join("\n"));
    let forwarder = subscribers.get(SYSLOG);
    let count = |name: &str| forwarder.metrics().unwrap().count(name, &[]);
    let counted = || count("sekiwake_bus_lost_records_total") + count("sekiwake_forward_dropped_datagrams_total");
    let _ = wait_for("all datagrams to arrive or to be counted as lost", LONG, || sink.received() + counted() == COUNT);
    let lost = count("sekiwake_bus_lost_records_total");
    let dropped = count("sekiwake_forward_dropped_datagrams_total");
    subscribers.stop().unwrap();
    let report = sink.finish();
    let at_the_sink = report.dropped.unwrap();
    println!("{COUNT} published, {} arrived, {lost} lost on the bus, {dropped} by the forwarder", report.received);
    assert_eq!(report.received + lost + dropped + at_the_sink, COUNT);
}
