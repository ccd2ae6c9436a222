//! A running scope with an engine in it, batches to give it, and its metrics.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sekiwake_forward::{Destinations, Engine, Parcel, Registry, Resolution};
use sekiwake_record::{Batch, BatchBuilder, Flags, Header, Kind, Record, Vlans};
use sekiwake_runtime::{About, Ending, Process, Role, Scope, StopHandle};
use sekiwake_settings::{Environment, Reader};
use sekiwake_testkit::{
    sink::{Options, Sink},
    wait::wait_for,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type TestEngine = Engine<Vec<u8>>;
pub(crate) type TestBatch = Arc<Parcel<Vec<u8>>>;

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// A role that does nothing but lend its scope.
struct Lender;

impl Role for Lender {
    const ABOUT: About =
        About { service: "syslog-forwarder", binary: "test", summary: "lends its scope", admin_port: 0 };
    type Settings = ();
    fn read(_reader: &mut Reader) {}
    fn start(_settings: (), scope: &Scope) -> anyhow::Result<()> {
        SCOPE.set(Some(scope.clone()));
        Ok(scope.idle()?)
    }
}

/// A process with one scope. Its threads are in the network namespace of the thread that makes it.
pub(crate) struct Rig {
    pub(crate) scope: Scope,
    stop: StopHandle,
    process: JoinHandle<Ending>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_DRAIN", "1s")]);
        let running = Process::new(Lender::ABOUT).add::<Lender>().read(&environment).unwrap().start().unwrap();
        let stop = running.stop_handle();
        let process = thread::spawn(move || running.run());
        Rig { scope: SCOPE.take().unwrap(), stop, process }
    }

    pub(crate) fn engine(&self, destinations: &str) -> TestEngine {
        let destinations = Destinations::parse(Kind::Syslog, destinations).unwrap();
        Engine::start(Kind::Syslog, &destinations, &self.scope).unwrap()
    }

    pub(crate) fn engine_with(&self, destinations: &str, resolution: &Resolution) -> TestEngine {
        let destinations = Destinations::parse(Kind::Syslog, destinations).unwrap();
        Engine::start_with(Kind::Syslog, &destinations, resolution, &Registry::open(), &self.scope).unwrap()
    }

    /// The sum of a metric's children whose labels contain all of these texts.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.scope.metrics().text();
        let children = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let children = children.filter(|line| labels.iter().all(|label| line.contains(label)));
        children.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(crate) fn dropped(&self, destination: &str, reason: &str) -> u64 {
        let labels = [format!("\"{destination}\""), format!("reason=\"{reason}\"")];
        self.metric("sekiwake_forward_dropped_datagrams_total", &[&labels[0], &labels[1]]) as u64
    }

    pub(crate) fn sent(&self, destination: &str) -> u64 {
        self.metric("sekiwake_forward_sent_datagrams_total", &[&format!("\"{destination}\"")]) as u64
    }

    /// What was not for this destination, for this reason or for any.
    pub(crate) fn skipped(&self, destination: &str, reason: &str) -> u64 {
        let labels = [format!("\"{destination}\""), format!("reason=\"{reason}")];
        self.metric("sekiwake_forward_skipped_records_total", &[&labels[0], &labels[1]]) as u64
    }

    pub(crate) fn queued(&self, destination: &str) -> u64 {
        self.metric("sekiwake_forward_queue_records", &[&format!("\"{destination}\"")]) as u64
    }

    /// Waits until nothing waits, then checks that every record is accounted for: sent, dropped, or not for this destination.
    pub(crate) fn assert_accounts_close(&self, destination: &str) {
        wait_for("an empty queue", PATIENCE, || self.queued(destination) == 0).unwrap();
        let received = self.metric("sekiwake_forward_received_records_total", &[]) as u64;
        let dropped = self.metric("sekiwake_forward_dropped_datagrams_total", &[&format!("\"{destination}\"")]) as u64;
        let sum = self.sent(destination) + dropped + self.skipped(destination, "");
        assert_eq!(received, sum, "records of {destination}");
        assert_eq!(self.metric("sekiwake_forward_queue_bytes", &[&format!("\"{destination}\"")]), 0.0);
    }

    /// Tells the process to stop, and waits for its end.
    pub(crate) fn stop(self) -> Ending {
        self.stop.stop("the test is over");
        self.process.join().unwrap()
    }
}

/// One datagram to be forwarded.
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

/// Batches of one topic, as a publisher makes them: full ones and a rest.
pub(crate) fn batches(samples: &[Sample]) -> Vec<TestBatch> {
    let mut batches = Vec::new();
    let mut builder = BatchBuilder::new(Vec::new());
    for sample in samples {
        let record = Record {
            captured_at_ns: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
            source: sample.source,
            source_port: 514,
            destination: Ipv4Addr::new(203, 0, 113, 1).into(),
            destination_port: 514,
            format: sekiwake_identify::identify(None, &sample.payload),
            flags: Flags::default(),
            payload: &sample.payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
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
    let closed = builder.close()?;
    let header = Header {
        stream_name: "test",
        stream_epoch: 1,
        first_sequence: 0,
        count: closed.count,
        first_captured_at_ns: closed.first_captured_at_ns,
        last_captured_at_ns: closed.last_captured_at_ns,
    };
    Some(Arc::new(Batch::decode(&header, closed.body).unwrap().into()))
}

pub(crate) fn forward(engine: &mut TestEngine, samples: &[Sample]) {
    batches(samples).iter().for_each(|batch| engine.forward(batch));
}

/// A sink on the loopback that keeps payloads, and the URI that leads to it.
pub(crate) fn loopback_sink() -> (Sink, String) {
    sink_on(SocketAddr::from(([127, 0, 0, 1], 0)))
}

pub(crate) fn sink_on(address: SocketAddr) -> (Sink, String) {
    let sink = Sink::bind(&[address], Options::counts().payloads()).unwrap();
    let uri = format!("udp://{}", sink.addresses()[0]);
    (sink, uri)
}

/// The payloads that arrive, in their order, once `count` have.
pub(crate) fn arrived(sink: Sink, count: usize) -> Vec<Vec<u8>> {
    sink.wait_for(count as u64, PATIENCE).unwrap();
    sink.finish().payloads.into_iter().map(|datagram| datagram.payload).collect()
}

/// Numbers that look random and are the same each time.
pub(crate) fn pseudo_random(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}
