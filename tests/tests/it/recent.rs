//! Taps that begin with what the capture still holds, while groups receive everything.

use std::{
    collections::{HashMap, HashSet},
    process::Command,
};

use sekiwake_testkit::{process::Process, wait::wait_for};
use sekiwake_tests::{MIRRORED, collector};
use serde_json::Value;

use crate::support::*;

/// Longer than any test.
const SINCE: [&str; 3] = ["--since", "1h", "syslog/"];

/// What a tap has printed.
struct Printed {
    lines: usize,
    /// Lines of records that were captured before this time.
    before: usize,
}

/// Checks that each record was printed once, and those of a source in order of their capture.
fn check(tap: &Process, before: &str) -> Printed {
    let mut seen = HashSet::new();
    let mut last: HashMap<String, String> = HashMap::new();
    let mut printed = Printed { lines: 0, before: 0 };
    for line in tap.stdout() {
        let value: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        let (source, captured_at) = (text("source"), text("captured_at"));
        assert!(seen.insert((source.clone(), text("payload"))), "printed twice: {line}");
        printed.lines += 1;
        printed.before += usize::from(*captured_at < *before);
        let earlier = last.insert(source, captured_at.clone());
        assert!(earlier.is_none_or(|earlier| earlier <= captured_at), "out of order: {line}");
    }
    printed
}

/// A group receives all datagrams while this many taps catch up, and a second group begins
/// meanwhile, which gets most of them from the past: on ZeroMQ by repair.
fn groups_lose_nothing_beside(bus: Bus, taps: usize, rate: u64, count: u64) {
    let Some(site) = site_on(bus) else { return };
    let sinks = [0, 1].map(|number| site.sink(&[at(collector(number), 514)], numbered()));
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let mut sender = site.start_sender(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 200 --rate {rate} --count {count}"
    ));
    sinks[0].wait_for(count / 3, LONG).unwrap();
    let started_at = now();
    let count_text = count.to_string();
    let arguments = [&SINCE[..], &["--count", &count_text]].concat();
    let mut taps: Vec<Process> = (0..taps).map(|_| run(&site.host, "sekiwake-tap", &arguments, site.bus())).collect();
    let other = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", syslog_to(1)),
        ("SEKIWAKE_GROUP", "other".to_owned()),
        ("SEKIWAKE_GROUP_START", "1h".to_owned()),
        ("SEKIWAKE_ADMIN", "127.0.0.1:9702".to_owned()),
    ];
    let other = other.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut second = site.start_one(SYSLOG, &other);
    let sent = sent_by(&mut sender);
    let on_the_wire = sent - site.dropped_by_wire().unwrap();
    for sink in &sinks {
        let _ = sink.wait_for(on_the_wire, LONG);
    }
    let captured = services.get(CAPTURE).metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    let lost = |tap: &Process| tap.stderr().iter().any(|line| line.contains("records lost"));
    // A tap that the machine is too slow for loses live records, and never prints all.
    wait_for("all records at the taps", LONG, || {
        taps.iter_mut().all(|tap| {
            let has_ended = !tap.is_running().unwrap();
            has_ended || lost(tap) || captured < count && tap.stdout().len() as u64 == captured
        })
    })
    .unwrap_or_else(|late| {
        let lines: Vec<usize> = taps.iter().map(|tap| tap.stdout().len()).collect();
        panic!("{late}: {lines:?} of {sent}: {:?}", taps[0].stderr())
    });
    let ledger = balanced_ledger(&services);
    let repaired = second.metrics().unwrap();
    assert_eq!(repaired.count("sekiwake_bus_lost_records_total", &[]), 0);
    assert_eq!(repaired.count("sekiwake_group_repaired_batches_total", &[]) > 0, bus == Bus::ZeroMq);
    second.stop().unwrap();
    services.stop().unwrap();
    for sink in sinks {
        let report = sink.finish();
        assert_eq!((report.received, report.sequence.duplicates), (captured, 0), "{:?}", ledger.losses());
    }
    for tap in &mut taps {
        let is_whole = !tap.is_running().unwrap();
        let Printed { lines, before } = check(tap, &started_at);
        println!("{lines} of {sent} printed, {before} from before the tap: {:?}", tap.stderr());
        // The first third arrived before the tap started, and was in the capture's memory.
        assert!(before as u64 >= count / 3, "{before} of {}: {:?}", count / 3, tap.stderr());
        assert!(!is_whole || lines as u64 == count);
    }
}

/// The time as records have it.
fn now() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn groups_lose_nothing_beside_ten_taps_that_catch_up() {
    groups_lose_nothing_beside(Bus::ZeroMq, 10, 5_000, 30_000);
}

#[test]
fn groups_lose_nothing_beside_ten_taps_that_catch_up_on_jetstream() {
    groups_lose_nothing_beside(Bus::JetStream, 10, 5_000, 30_000);
}

#[test]
fn groups_lose_nothing_beside_two_taps_at_50000_per_second() {
    // A test keeps 100,000 lines of a process.
    groups_lose_nothing_beside(Bus::ZeroMq, 2, 50_000, 90_000);
}
