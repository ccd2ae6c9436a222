//! A running scope with an engine, batches for it, and its metrics.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sekiwake_forward::{Destinations, Engine, EngineOptions, Parcel, Resolution};
use sekiwake_record::{BatchBuilder, Kind, Record};
use sekiwake_runtime::{Ending, Scope};
use sekiwake_testkit::{
    fixtures::record,
    random::Random,
    role::TestRole,
    sink::{Options, Sink},
    wait::wait_for,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type TestEngine = Engine<Vec<u8>>;
pub(crate) type TestBatch = Arc<Parcel<Vec<u8>>>;

/// A process with one scope. Its threads are in the network namespace of the thread that starts it.
pub(crate) struct Rig {
    pub(crate) scope: Scope,
    role: TestRole,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::draining("1s")
    }

    /// With another drain deadline.
    pub(crate) fn draining(drain: &str) -> Rig {
        let role = TestRole::start(drain);
        Rig { scope: role.scope.clone(), role }
    }

    pub(crate) fn engine(&self, destinations: &str) -> TestEngine {
        let destinations = Destinations::parse(Kind::Syslog, destinations).unwrap();
        Engine::start(Kind::Syslog, &destinations, EngineOptions::default(), &self.scope).unwrap()
    }

    pub(crate) fn engine_with(&self, destinations: &str, resolution: &Resolution) -> TestEngine {
        let destinations = Destinations::parse(Kind::Syslog, destinations).unwrap();
        let options = EngineOptions { resolution: resolution.clone(), ..EngineOptions::default() };
        Engine::start(Kind::Syslog, &destinations, options, &self.scope).unwrap()
    }

    /// The sum of a metric's children whose labels contain all of these texts.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.role.metric(name, labels)
    }

    pub(crate) fn dropped(&self, destination: &str, reason: &str) -> u64 {
        let labels = [format!("\"{destination}\""), format!("reason=\"{reason}\"")];
        self.metric("sekiwake_forward_dropped_datagrams_total", &[&labels[0], &labels[1]]) as u64
    }

    pub(crate) fn sent(&self, destination: &str) -> u64 {
        self.metric("sekiwake_forward_sent_datagrams_total", &[&format!("\"{destination}\"")]) as u64
    }

    /// Records that the destination filtered out, for this reason or for any.
    pub(crate) fn skipped(&self, destination: &str, reason: &str) -> u64 {
        let labels = [format!("\"{destination}\""), format!("reason=\"{reason}")];
        self.metric("sekiwake_forward_skipped_records_total", &[&labels[0], &labels[1]]) as u64
    }

    pub(crate) fn queued(&self, destination: &str) -> u64 {
        self.metric("sekiwake_forward_queue_records", &[&format!("\"{destination}\"")]) as u64
    }

    /// Waits for an empty queue, then checks the loss ledger: every record is sent, dropped, or
    /// filtered out.
    pub(crate) fn assert_ledger(&self, destination: &str) {
        wait_for("an empty queue", PATIENCE, || self.queued(destination) == 0).unwrap();
        let received = self.metric("sekiwake_forward_received_records_total", &[]) as u64;
        let dropped = self.metric("sekiwake_forward_dropped_datagrams_total", &[&format!("\"{destination}\"")]) as u64;
        let sum = self.sent(destination) + dropped + self.skipped(destination, "");
        assert_eq!(received, sum, "records of {destination}");
        assert_eq!(self.metric("sekiwake_forward_queue_bytes", &[&format!("\"{destination}\"")]), 0.0);
    }

    /// Stops the process, and waits for its end.
    pub(crate) fn stop(self) -> Ending {
        self.role.stop()
    }
}

/// One datagram to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) source: IpAddr,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn device(number: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, number).into()
}

/// Samples of one device with these payloads.
pub(crate) fn samples(payloads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Sample> {
    payloads.into_iter().map(|payload| Sample { source: device(1), payload }).collect()
}

/// Batches of one topic, as a publisher makes them: full ones and a remainder.
pub(crate) fn batches(samples: &[Sample]) -> Vec<TestBatch> {
    let mut batches = Vec::new();
    let mut builder = BatchBuilder::new(Vec::new());
    for sample in samples {
        let record = Record {
            captured_at_ns: sekiwake_sys::clock::wall_now_ns(),
            source: sample.source,
            source_port: 514,
            format: sekiwake_identify::identify(None, &sample.payload),
            dscp_ttl: 0,
            origin: None,
            ..record(&sample.payload)
        };
        if !builder.has_room_for(&record) {
            batches.extend(close(std::mem::replace(&mut builder, BatchBuilder::new(Vec::new()))));
        }
        builder.push(&record);
    }
    batches.extend(close(builder));
    batches
}

fn close(builder: BatchBuilder) -> Option<TestBatch> {
    Some(Arc::new(builder.into_batch()?.into()))
}

pub(crate) fn forward(engine: &mut TestEngine, samples: &[Sample]) {
    batches(samples).iter().for_each(|batch| engine.forward(batch));
}

/// A sink on the loopback that keeps payloads, and its URI.
pub(crate) fn loopback_sink() -> (Sink, String) {
    sink_on(SocketAddr::from(([127, 0, 0, 1], 0)))
}

pub(crate) fn sink_on(address: SocketAddr) -> (Sink, String) {
    let sink = Sink::bind(&[address], Options::counts().payloads()).unwrap();
    let uri = format!("udp://{}", sink.addresses()[0]);
    (sink, uri)
}

/// The first `count` payloads, in the order of their arrival.
pub(crate) fn arrived(sink: Sink, count: usize) -> Vec<Vec<u8>> {
    sink.wait_for(count as u64, PATIENCE).unwrap();
    sink.finish().payloads.into_iter().map(|datagram| datagram.payload).collect()
}

/// Pseudo-random numbers below a bound.
pub(crate) fn pseudo_random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = Random::new(seed);
    move |below| random.below(below)
}
