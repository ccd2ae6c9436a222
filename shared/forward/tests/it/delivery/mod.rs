//! OpenTelemetry logs, Kafka and NATS to real receivers: every record, its order, outages,
//! rejections.

mod broker;
mod kafka;
mod nats;
mod outage;
mod receiver;
mod records;
mod rejecting;
mod server;

use std::path::Path;

use sekiwake_forward::{Destinations, Engine, EngineOptions};
use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;

use crate::rig::{PATIENCE, Rig, Sample, TestEngine, device};

/// An engine whose spools are in this folder.
fn engine(rig: &Rig, kind: Kind, destinations: &str, folder: &Path) -> TestEngine {
    let destinations = Destinations::parse(kind, destinations).unwrap();
    let options = EngineOptions { spool_dir: folder.to_owned(), ..EngineOptions::default() };
    Engine::start(kind, &destinations, options, &rig.scope).unwrap()
}

/// Messages of three devices: `<14>1 DEVICE NUMBER`, numbered in order.
fn numbered(numbers: std::ops::Range<u64>) -> Vec<Sample> {
    let sample = |number: u64| {
        let source = (number % 3) as u8 + 1;
        Sample { source: device(source), payload: format!("<14>device {source} number {number}").into_bytes() }
    };
    numbers.map(sample).collect()
}

fn number_of(body: &str) -> u64 {
    body.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Checks that every number has arrived, and that the first arrivals of each device are in order.
/// Returns how many arrived twice.
fn assert_complete(bodies: &[String], count: u64) -> usize {
    let mut next = [0; 4];
    let mut seen = vec![false; count as usize];
    let mut doubles = 0;
    for body in bodies {
        let number = number_of(body);
        let device = (number % 3) as usize + 1;
        if std::mem::replace(&mut seen[number as usize], true) {
            doubles += 1;
        } else {
            assert!(number >= next[device], "{number} of device {device} after {}", next[device]);
            next[device] = number;
        }
    }
    let missing: Vec<u64> = (0..count).filter(|&number| !seen[number as usize]).collect();
    assert!(missing.is_empty(), "{} missing, the first is {}", missing.len(), missing[0]);
    doubles
}

fn spool_datagrams(rig: &Rig) -> u64 {
    rig.metric("sekiwake_forward_spool_datagrams", &[]) as u64
}

fn wait_for_empty(rig: &Rig, destination: &str) {
    wait_for("an empty queue and spool", PATIENCE, || rig.queued(destination) == 0 && spool_datagrams(rig) == 0)
        .unwrap();
}
