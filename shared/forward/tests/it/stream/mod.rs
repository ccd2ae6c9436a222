//! Stream destinations against real peers, well-behaved and hostile.

mod breaking;
mod engine;
mod hostile;
mod peer;
mod real;
mod rejecting;
mod send_test;
mod spool;
mod tls;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sekiwake_forward::{
    Host, Registry, Resolution,
    stream::{Framing, SpoolSettings, StreamDestination, StreamSettings, Tls},
};
use sekiwake_testkit::wait::wait_for;

use crate::rig::{PATIENCE, Rig, TestBatch, batches, samples};

/// The label of the destination in these tests.
const LABEL: &str = "stream";

/// A destination, the count of records given to it, and its metrics.
struct Stream {
    rig: Rig,
    destination: StreamDestination<Vec<u8>>,
    given: u64,
    spooled_before: u64,
}

fn settings(address: SocketAddr) -> StreamSettings {
    StreamSettings {
        host: Host::Address(address.ip()),
        port: address.port(),
        label: LABEL.to_owned(),
        tls: None,
        framing: Framing::OctetCounting,
        spool: None,
        replay_rate: 5_000,
        add_source: false,
    }
}

fn with_tls(address: SocketAddr, tls: Tls) -> StreamSettings {
    StreamSettings { tls: Some(tls), ..settings(address) }
}

fn with_spool(address: SocketAddr, dir: &std::path::Path, max_bytes: u64, replay_rate: u32) -> StreamSettings {
    let spool = Some(SpoolSettings { dir: dir.to_owned(), max_bytes });
    StreamSettings { spool, replay_rate, ..settings(address) }
}

impl Stream {
    fn start(settings: StreamSettings) -> Stream {
        Stream::start_with(settings, &Resolution::default(), &Registry::open())
    }

    fn start_with(settings: StreamSettings, resolution: &Resolution, registry: &Registry) -> Stream {
        Stream::start_in(Rig::new(), settings, resolution, registry)
    }

    fn start_in(rig: Rig, settings: StreamSettings, resolution: &Resolution, registry: &Registry) -> Stream {
        let destination = StreamDestination::start(settings, resolution, registry, &rig.scope).unwrap();
        let mut stream = Stream { rig, destination, given: 0, spooled_before: 0 };
        stream.spooled_before = stream.metric("sekiwake_forward_spool_datagrams");
        stream
    }

    fn forward(&mut self, payloads: impl IntoIterator<Item = Vec<u8>>) {
        for batch in batches(&samples(payloads)) {
            self.forward_batch(&batch);
        }
    }

    fn forward_batch(&mut self, batch: &TestBatch) {
        self.given += batch.batch.len() as u64;
        self.destination.forward(batch);
    }

    /// Forwards numbered messages at this rate.
    fn forward_paced(&mut self, numbers: std::ops::Range<u64>, rate: u64) {
        let start = Instant::now();
        let first = numbers.start;
        let step = (rate / 500).max(1);
        for begin in numbers.clone().step_by(step as usize) {
            self.forward((begin..numbers.end.min(begin + step)).map(numbered));
            let due = start + Duration::from_secs_f64((begin + step - first) as f64 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }

    /// Forwards numbered messages at this rate, or more slowly if the peer is slow: then no message
    /// waits so long that it expires.
    fn forward_as_sent(&mut self, numbers: std::ops::Range<u64>, rate: u64) {
        let before = self.sent();
        let first = numbers.start;
        for begin in numbers.clone().step_by(1_000) {
            wait_for("the messages before", PATIENCE, || (begin - first).saturating_sub(self.sent() - before) <= 4_000)
                .unwrap();
            self.forward_paced(begin..numbers.end.min(begin + 1_000), rate);
        }
    }

    fn metric(&self, name: &str) -> u64 {
        self.rig.metric(name, &[&format!("\"{LABEL}\"")]) as u64
    }

    fn up(&self) -> f64 {
        self.rig.metric("sekiwake_forward_up", &[&format!("\"{LABEL}\"")])
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.rig.dropped(LABEL, reason)
    }

    fn sent(&self) -> u64 {
        self.rig.sent(LABEL)
    }

    fn wait_until_sent(&self, count: u64) {
        wait_for(&format!("{count} sent"), PATIENCE, || self.sent() >= count)
            .unwrap_or_else(|error| panic!("{error}: {} of {}", self.sent(), self.given));
    }

    /// Waits for an empty queue, then checks the loss ledger.
    fn assert_ledger(&self) {
        wait_for("an empty queue", PATIENCE, || self.rig.queued(LABEL) == 0).unwrap();
        let dropped = self.metric("sekiwake_forward_dropped_datagrams_total");
        let spooled = self.metric("sekiwake_forward_spool_datagrams");
        assert_eq!(
            self.spooled_before + self.given,
            self.sent() + dropped + spooled,
            "{dropped} dropped, {spooled} spooled"
        );
        assert_eq!(self.metric("sekiwake_forward_queue_bytes"), 0);
    }

    /// Ends the destination cleanly, and the process around it.
    fn stop(self) {
        drop(self.destination);
        self.rig.stop();
    }
}

/// A message with a number.
fn numbered(number: u64) -> Vec<u8> {
    format!("<13>1 2026-01-01T00:00:00Z host app - - - number={number} {}", "x".repeat(number as usize % 200))
        .into_bytes()
}

/// The number of a message.
fn number_of(message: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(message);
    let (_, after) = text.split_once("number=").unwrap_or_else(|| panic!("no number in {text:?}"));
    after.split(' ').next().unwrap().parse().unwrap()
}
