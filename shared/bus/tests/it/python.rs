//! The subscribers in `docs/examples`, run as documented.

use std::{path::Path, process::Command};

use sekiwake_bus::{
    EventSink, HandoffState, Publishing,
    zeromq::{Context, Endpoints, EventPublisher},
};
use sekiwake_record::{Name, Shard, Topic};
use sekiwake_runtime::Metrics;
use sekiwake_testkit::{process::Process, wait::wait_for};

use crate::{
    control::TestProxy,
    handoff::{HandoffWriter, pump},
    support::*,
};

const PYTHON: &str = "/usr/bin/python3";

/// Whether Python has these modules.
fn has(modules: &str, packages: &str) -> bool {
    let imported = Command::new(PYTHON).args(["-c", &format!("import {modules}")]).output();
    let has = imported.is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("SKIPPED: {PYTHON} with {modules} is missing (Debian: {packages})");
    }
    has
}

fn example(name: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(PYTHON);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples").join(name)).args(arguments);
    Process::spawn(command).unwrap()
}

#[test]
fn python_event_subscriber_prints_events() {
    if !has("zmq", "python3-zmq") {
        return;
    }
    let relay = TestRelay::start();
    let to = Publishing::from(Endpoints { endpoints: vec![relay.publish.clone()], keys: None });
    let name = Name::new("watch-1").unwrap();
    let metrics = Metrics::new("toy");
    let mut publisher = EventPublisher::connect(&Context::default(), &to, &name, &metrics).unwrap();
    let process = example("events.py", &[&relay.subscribe]);
    wait_for("a subscriber", LONG, || publisher.publish(br#"{"status": "firing", "summary": "much"}"#)).unwrap();
    wait_for("a line", LONG, || !process.stdout().is_empty()).unwrap();
    assert_eq!(process.stdout(), ["watch-1 firing much"]);
}

#[test]
fn python_subscriber_prints_every_record() {
    if !has("zmq, msgpack", "python3-zmq, python3-msgpack") {
        return;
    }
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let process = example("subscriber.py", &[&relay.subscribe, "xflow/"]);
    publisher.wait_for_subscriber();
    let topics: Vec<Topic> =
        ["xflow/00", "xflow/3f", "syslog/00"].map(|name| Topic::parse(name.as_bytes()).unwrap()).into();
    for _ in 0..2 {
        publisher.offer(&topics, 3, 40);
    }
    wait_for("twelve lines", LONG, || process.stdout().len() == 12).unwrap();
    let lines = process.stdout();
    for topic in &topics[..2] {
        let expected: Vec<String> = (0..6)
            .map(|number| {
                let payload = String::from_utf8(payload(*topic, number, 40)).unwrap();
                format!("wire-1 {topic} {number} 198.51.100.7 40000 b'{payload}' None None")
            })
            .collect();
        let topic_lines: Vec<&String> = lines.iter().filter(|line| line.contains(topic.as_str())).collect();
        assert_eq!(topic_lines, expected.iter().collect::<Vec<_>>());
    }
}

#[test]
fn python_reader_prints_every_template() {
    if !has("zmq, msgpack", "python3-zmq, python3-msgpack") {
        return;
    }
    let proxy = TestProxy::start();
    let mut process = example("templates.py", &[&proxy.control]);
    process.wait(LONG).unwrap();
    assert_eq!(process.stderr(), ["no group of flows is running"]);
    let mut member = HandoffWriter::of(&proxy);
    pump("all shards", [&mut member], |[member]| member.is_settled());
    let mut expected = Vec::new();
    for id in 256..400_u16 {
        // Version, source, domain, template, port; a value that fills several pages.
        let source = [&[0; 10][..], &[0xff, 0xff, 198, 51, 100, 7]].concat();
        let key = [&[10][..], &source, &[0, 0, 0, 9], &id.to_be_bytes(), &[0, 5]].concat();
        member.put(Shard::of([198, 51, 100, 7].into()), &key, &[1; 4_000], 7);
        expected.push(format!("198.51.100.7 5 9 {id}"));
    }
    pump("the acknowledgements", [&mut member], |[member]| member.subscriber.pending_handoff() == 0);
    let mut process = example("templates.py", &[&proxy.control]);
    process.wait(LONG).unwrap();
    assert_eq!(process.stdout(), expected, "{:?}", process.stderr());
}
