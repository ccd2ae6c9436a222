//! The subscriber of `docs/examples`, as its readers run it.

use std::{path::Path, process::Command};

use sekiwake_record::Topic;
use sekiwake_testkit::{process::Process, wait::wait_for};

use crate::support::*;

#[test]
fn the_subscriber_in_python_prints_every_record() {
    const PYTHON: &str = "/usr/bin/python3";
    let available = Command::new(PYTHON).args(["-c", "import zmq, msgpack"]).output();
    if !available.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: {PYTHON} with zmq and msgpack is missing (Debian: python3-zmq, python3-msgpack)");
        return;
    }
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/subscriber.py");
    let mut command = Command::new(PYTHON);
    command.arg(example).args([relay.subscribe.as_str(), "xflow/"]);
    let process = Process::spawn(command).unwrap();
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
                format!("wire-1 {topic} {number} 198.51.100.7 40000 b'{payload}'")
            })
            .collect();
        let of_topic: Vec<&String> = lines.iter().filter(|line| line.contains(topic.as_str())).collect();
        assert_eq!(of_topic, expected.iter().collect::<Vec<_>>());
    }
}
