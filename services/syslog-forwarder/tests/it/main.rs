//! The process, on a bus that the test runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    cell::RefCell,
    net::Ipv4Addr,
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use sekiwake_bus::{
    Controlling, Overflow, Producer, Reporting, StreamSettings,
    zeromq::{Context, ControlPlane, ControlPlaneSettings, Endpoints, Publisher, Relay, RelaySettings},
};
use sekiwake_record::{Batcher, Flags, Format, Kind, Name, Record, Topic, Vlans};
use sekiwake_runtime::{About, Ending, Process, Role, Scope, StopHandle, Worker};
use sekiwake_settings::{Environment, Reader};
use sekiwake_testkit::{
    netns::{Namespace, namespaces_or_skipped},
    process,
};

const PATIENCE: Duration = Duration::from_secs(60);
const BATCH_EVERY: Duration = Duration::from_millis(5);

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Everything upstream of the forwarder.
struct Upstream;

impl Role for Upstream {
    const ABOUT: About = About { service: "capture", binary: "upstream", summary: "devices and bus", admin_port: 0 };
    type Settings = ();
    fn read(_: &mut Reader) {}
    fn start((): (), scope: &Scope) -> anyhow::Result<()> {
        SCOPE.set(Some(scope.clone()));
        Ok(scope.idle()?)
    }
}

/// A relay, and a publisher that publishes all the time.
struct Devices {
    stop: StopHandle,
    process: JoinHandle<Ending>,
}

impl Devices {
    fn start(subscribe: &str, control: &str) -> Devices {
        let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0")]);
        let running = Process::of::<Upstream>().read(&environment).unwrap().start().unwrap();
        let scope = SCOPE.take().unwrap();
        let bus = Context::default();
        let endpoints = RelaySettings {
            publish: vec!["tcp://127.0.0.1:0".to_owned()],
            subscribe: vec![subscribe.to_owned()],
            keys: None,
        };
        let relay = Relay::bind(&bus, &endpoints, scope.metrics()).unwrap();
        let settings = StreamSettings {
            name: Name::new("wire-1").unwrap(),
            publishing: Endpoints { endpoints: relay.publish_endpoints().to_vec(), keys: None }.into(),
            retain_bytes: [1 << 20; 3],
            overflow: Overflow::Drop,
        };
        let (mut publisher, producer) =
            Publisher::new(&bus, settings, scope.metrics(), scope.readiness("publisher")).unwrap();
        let endpoints = ControlPlaneSettings { endpoints: vec![control.to_owned()], keys: None };
        let reporting = Reporting::new(&scope, "control", "control");
        let plane = ControlPlane::bind(&bus, &endpoints, reporting).unwrap();
        scope.spawn("control", move |worker| Ok(plane.run(worker)?)).unwrap();
        let controlling = Controlling::from(Endpoints { endpoints: vec![control.to_owned()], keys: None });
        let reporting = Reporting::new(&scope, "stream", "stream");
        let stream = publisher.control(&controlling, reporting).unwrap();
        scope.spawn("stream", move |worker| Ok(stream.run(worker)?)).unwrap();
        scope.spawn("publisher", move |worker| Ok(publisher.run(worker).map(drop)?)).unwrap();
        scope.spawn("relay", move |worker| Ok(relay.run(worker)?)).unwrap();
        scope.spawn("devices", move |worker| publish(&producer, worker)).unwrap();
        let stop = running.stop_handle();
        Devices { stop, process: thread::spawn(move || running.run()) }
    }

    fn stop(self) -> Ending {
        self.stop.stop("the test is over");
        self.process.join().unwrap()
    }
}

fn publish(producer: &Producer, worker: &Worker) -> anyhow::Result<()> {
    let record = Record {
        captured_at_ns: 1,
        source: Ipv4Addr::new(198, 51, 100, 1).into(),
        source_port: 514,
        destination: Ipv4Addr::new(203, 0, 113, 1).into(),
        destination_port: 514,
        format: Format::Unknown,
        flags: Flags::default(),
        payload: b"<13>link down",
        vlans: Vlans::new(),
        dscp_ttl: 0,
        origin: None,
    };
    let mut batcher = Batcher::default();
    while !worker.stop().wait(BATCH_EVERY) {
        let topic = Topic::of(Kind::Syslog, record.source);
        (0..20).for_each(|_| batcher.push(topic, &record));
        producer.offer(batcher.take_all());
    }
    Ok(())
}

/// The forwarder in a namespace without routes.
fn forwarder(namespace: &Namespace, subscribe: &str, control: &str) -> process::Process {
    let mut command = namespace.command(Path::new(env!("CARGO_BIN_EXE_sekiwake-syslog-forwarder")));
    command.envs([
        ("SEKIWAKE_ADMIN", "127.0.0.1:0"),
        ("SEKIWAKE_BUS_SUBSCRIBE", subscribe),
        ("SEKIWAKE_BUS_CONTROL", control),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.99:514"),
        ("SEKIWAKE_DRAIN", "3s"),
    ]);
    process::Process::spawn(command).unwrap()
}

#[test]
fn dead_destination_does_not_delay_the_stop() {
    if !namespaces_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let subscribe = format!("ipc://{}", folder.path().join("subscribe").display());
    let control = format!("ipc://{}", folder.path().join("control").display());
    let devices = Devices::start(&subscribe, &control);
    let namespace = Namespace::new("skw-stop").unwrap();
    let mut forwarder = forwarder(&namespace, &subscribe, &control);
    // Records have arrived and expired, and more are waiting.
    forwarder.wait_for_line(PATIENCE, |line| line.contains("lost") && line.contains("unreachable")).unwrap();
    let status = forwarder.stop(PATIENCE).unwrap();
    let log = forwarder.stderr().join("\n");
    assert_eq!(status.code(), Some(0), "{log}");
    // The next owner of the shards sends them: the group's positions have not moved past them.
    assert!(log.lines().any(|line| line.contains("left to the group")), "{log}");
    assert_eq!(devices.stop(), Ending::Done);
}
