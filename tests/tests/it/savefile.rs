//! A savefile instead of an interface: published completely, once, or an exit status that says otherwise.

use std::{fs, path::Path};

use sekiwake_testkit::{
    packets::{Datagram, SaveFile, ethernet},
    sink::Options,
};
use sekiwake_tests::{Service, Services, collector};

use crate::support::*;

/// Writes a savefile with `count` datagrams of many sources and gives their payloads.
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

struct Publishing<'a> {
    takers: Services<'a>,
    capture: Service<'a>,
}

/// Starts proxy and forwarder, and a capture that reads the file.
fn publish<'a>(site: &'a TestSite, path: &Path) -> Publishing<'a> {
    let takers =
        Services::start(&site.host, &[PROXY, SYSLOG], &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]).unwrap();
    let capture = Service::start(&site.host, CAPTURE, &[("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap())]).unwrap();
    Publishing { takers, capture }
}

#[test]
fn a_savefile_arrives_complete_and_the_capture_ends_well() {
    let Some(site) = site("a_savefile_arrives_complete_and_the_capture_ends_well") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    let payloads = write(&path, 5_000, 300);
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let Publishing { takers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    let said = capture.process.stderr().join("\n");
    assert!(status.success(), "{said}");
    let _ = sink.wait_for(payloads.len() as u64, LONG);
    takers.stop().unwrap();
    assert_same_set(&said, in_order(sink.finish()), payloads);
}

#[test]
fn a_savefile_that_nobody_wants_is_not_published_into_the_void() {
    let Some(site) = site("a_savefile_that_nobody_wants_is_not_published_into_the_void") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    write(&path, 10, 100);
    let proxy = Services::start(&site.host, &[PROXY], &[]).unwrap();
    let environment = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap()), ("SEKIWAKE_CAPTURE_WAIT", "1s")];
    let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
    let status = capture.process.wait(LONG).unwrap();
    let said = capture.process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no subscriber within 1s"), "{said}");
    proxy.stop().unwrap();
}

#[test]
fn a_damaged_savefile_is_published_up_to_the_damage_and_ends_with_status_1() {
    let Some(site) = site("a_damaged_savefile_is_published_up_to_the_damage_and_ends_with_status_1") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("datagrams.pcap");
    let payloads = write(&path, 1_000, 100);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0xff; 1_000]);
    fs::write(&path, bytes).unwrap();
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let Publishing { takers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    let said = capture.process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("damaged after packet 1000"), "{said}");
    let _ = sink.wait_for(payloads.len() as u64, LONG);
    takers.stop().unwrap();
    assert_same_set(&said, in_order(sink.finish()), payloads);
}

#[test]
fn a_file_that_is_no_savefile_ends_with_status_1_and_says_so() {
    let Some(site) = site("a_file_that_is_no_savefile_ends_with_status_1_and_says_so") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, "no savefile").unwrap();
    for (path, word) in [(path.as_path(), "text"), (Path::new("/nowhere/file.pcap"), "/nowhere/file.pcap")] {
        let environment = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap())];
        let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
        let status = capture.process.wait(LONG).unwrap();
        let said = capture.process.stderr().join("\n");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("cannot read savefile") && said.contains(word), "{said}");
    }
}

#[test]
fn a_large_savefile_at_full_speed_loses_nothing_uncounted() {
    let Some(site) = site("a_large_savefile_at_full_speed_loses_nothing_uncounted") else { return };
    const COUNT: u64 = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pcap");
    write(&path, COUNT, 200);
    let sink = site.sink(&[at(collector(0), 514)], Options { receive_buffer_bytes: 512 << 20, ..Options::counts() });
    let Publishing { takers, mut capture } = publish(&site, &path);
    let status = capture.process.wait(LONG).unwrap();
    assert!(status.success(), "{}", capture.process.stderr().join("\n"));
    let forwarder = takers.get(SYSLOG);
    let count = |name: &str| forwarder.metrics().unwrap().count(name, &[]);
    let gone = || count("sekiwake_bus_lost_records_total") + count("sekiwake_forward_dropped_datagrams_total");
    let _ =
        sekiwake_testkit::wait::wait_for("all to arrive or to be counted", LONG, || sink.received() + gone() == COUNT);
    let (lost, dropped) = (count("sekiwake_bus_lost_records_total"), count("sekiwake_forward_dropped_datagrams_total"));
    takers.stop().unwrap();
    let report = sink.finish();
    let at_the_sink = report.dropped.unwrap();
    println!("{COUNT} published, {} arrived, {lost} lost on the bus, {dropped} by the forwarder", report.received);
    assert_eq!(report.received + lost + dropped + at_the_sink, COUNT);
}
