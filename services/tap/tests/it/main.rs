//! The tap as a process.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    io::ioctl_fionread,
    process::{Pid, Signal, kill_process},
};
use sekiwake_record::{Format, Header, Record};
use sekiwake_testkit::{
    fixtures::{batch_of, record},
    process::Process,
    wait::{wait_for, wait_for_some},
};

const LONG: Duration = Duration::from_secs(60);

/// A stand-in for the proxy: an XPUB socket that a tap connects to.
struct Source {
    socket: zmq::Socket,
    endpoint: String,
    next: u64,
    _context: zmq::Context,
}

impl Source {
    fn new() -> Source {
        #[expect(clippy::disallowed_methods, reason = "a peer that is not ours")]
        let context = zmq::Context::new();
        let socket = context.socket(zmq::XPUB).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_rcvtimeo(20_000).unwrap();
        socket.bind("tcp://127.0.0.1:0").unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        Source { socket, endpoint, next: 0, _context: context }
    }

    fn tap(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-tap"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
            command.env_remove(name);
        }
        command.env("SEKIWAKE_BUS_SUBSCRIBE", &self.endpoint).args(arguments);
        command
    }

    fn wait_for_subscription(&self, prefix: &str) {
        while self.socket.recv_bytes(0).unwrap()[1..] != *prefix.as_bytes() {}
    }

    /// Records and events have separate connections, so their subscriptions arrive in any order.
    fn wait_for_subscriptions(&self, prefixes: &[&str]) {
        let mut left: Vec<&str> = prefixes.to_vec();
        while !left.is_empty() {
            let subscription = self.socket.recv_bytes(0).unwrap();
            left.retain(|prefix| subscription[1..] != *prefix.as_bytes());
        }
    }

    fn send(&mut self, topic: &str, payloads: &[&[u8]]) {
        self.send_records(topic, payloads.iter().map(|payload| record(payload)));
    }

    fn send_records<'a>(&mut self, topic: &str, records: impl IntoIterator<Item = Record<'a>>) {
        let captured_at_ns = 1_700_000_000_123_456_789;
        let records = records.into_iter().map(|record| Record { captured_at_ns, ..record });
        let batch = batch_of(records).close().unwrap();
        let header = Header {
            stream_name: "wire-1",
            stream_epoch: 1,
            first_sequence: self.next,
            count: batch.count,
            first_captured_at_ns: batch.first_captured_at_ns,
            last_captured_at_ns: batch.last_captured_at_ns,
        };
        self.next += u64::from(batch.count);
        let mut frame = Vec::new();
        header.encode(&mut frame);
        self.socket.send_multipart([topic.as_bytes(), &frame, &batch.body], 0).unwrap();
    }
}

#[test]
fn records_are_printed_as_json_lines_until_sigterm() {
    let mut source = Source::new();
    let mut tap = Process::spawn(source.tap(&[])).unwrap();
    source.wait_for_subscription("xflow/");
    source.send("syslog/00", &[b"<13>hello", b"\xff\x00"]);
    let lines = wait_for_some("two lines", LONG, || Some(tap.stdout()).filter(|lines| lines.len() == 2)).unwrap();
    let values: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        ("kind", "syslog"),
        ("format", "rfc3164"),
        ("source", "198.51.100.7"),
        ("destination", "203.0.113.1"),
        ("captured_at", "2023-11-14T22:13:20.123456789Z"),
        ("payload", "<13>hello"),
    ];
    for (name, value) in expected {
        assert_eq!(values[0][name], value, "{name}");
    }
    assert_eq!((&values[1]["payload_base64"], &values[1]["payload_length"]), (&"/wA=".into(), &2.into()));
    assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));
}

#[test]
fn count_and_topics_limit_the_printed_records() {
    let mut source = Source::new();
    let mut tap = Process::spawn(source.tap(&["--count", "3", "snmptrap/01"])).unwrap();
    source.wait_for_subscription("snmptrap/01");
    source.send("syslog/00", &[b"not selected"]);
    source.send("snmptrap/01", &[b"1", b"2"]);
    source.send("snmptrap/01", &[b"3", b"4"]);
    assert_eq!(tap.wait(LONG).unwrap().code(), Some(0));
    let lines = tap.stdout();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].contains(r#""payload":"3""#), "{}", lines[2]);
}

#[test]
fn each_event_is_one_line_and_malformed_events_are_skipped() {
    for (topics, subscriptions) in [
        (&["anomaly/"][..], &["anomaly/"][..]),
        (&["anomaly/", "syslog/"], &["anomaly/", "syslog/"]),
        (&[""], &["", "anomaly/"]),
    ] {
        let mut source = Source::new();
        let mut tap = Process::spawn(source.tap(topics)).unwrap();
        source.wait_for_subscriptions(subscriptions);
        let events: [&[u8]; 5] =
            [b"{ \"summary\" :\n \"a\\nb \\u001b[31m\" }", b"[]", b"{\"a\":\"\n\"}", b"\xff", b"{\"b\":2}"];
        for body in events {
            source.socket.send_multipart([b"anomaly/w/", body], 0).unwrap();
        }
        source.socket.send_multipart([b"anomaly/w/".as_slice(), b"{}", b"{}"], 0).unwrap();
        let both = topics != ["anomaly/"];
        if both {
            source.send("syslog/00", &[b"hello"]);
        }
        let count = if both { 3 } else { 2 };
        let lines =
            wait_for_some("the lines", LONG, || Some(tap.stdout()).filter(|lines| lines.len() == count)).unwrap();
        let (records, events): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.contains("payload"));
        assert_eq!(events, [r#"{"summary":"a\nb \u001b[31m"}"#, r#"{"b":2}"#]);
        assert_eq!(records.len(), count - 2);
        assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));
    }
}

#[test]
fn closed_pipe_ends_the_tap_with_status_0() {
    let mut source = Source::new();
    let mut tap = source.tap(&["syslog/"]).stdout(Stdio::piped()).spawn().unwrap();
    source.wait_for_subscription("syslog/");
    let mut out = BufReader::new(tap.stdout.take().unwrap());
    source.send("syslog/00", &[b"one"]);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains(r#""payload":"one""#));
    drop(out);
    let status = wait_for_some("the end of the tap", LONG, || {
        source.send("syslog/00", &[b"two"]);
        tap.try_wait().unwrap()
    });
    // No process may stay behind, even if the test fails.
    let _ = tap.kill();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[test]
fn sigterm_ends_a_tap_whose_output_is_not_read() {
    let mut source = Source::new();
    let mut tap = source.tap(&["syslog/"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    source.wait_for_subscription("syslog/");
    // Several times the capacity of the pipe and the buffer.
    for _ in 0..200 {
        source.send("syslog/00", &[&[b'x'; 4_000]]);
    }
    let out = tap.stdout.take().unwrap();
    let full = wait_for("a full pipe", LONG, || ioctl_fionread(&out).unwrap() > 60_000);
    kill_process(Pid::from_child(&tap), Signal::TERM).unwrap();
    let status = wait_for_some("the end of the tap", LONG, || tap.try_wait().unwrap());
    // No process may stay behind, even if the test fails.
    let _ = tap.kill();
    full.unwrap();
    assert_eq!(status.unwrap().code(), Some(1));
    let mut log = String::new();
    tap.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("sekiwake-tap: did not end within 2 s"), "{log}");
}

#[test]
fn impossible_topic_is_rejected_with_the_possible_ones() {
    let source = Source::new();
    for topic in ["foo", "syslog/40", "syslog/0A", "syslogs", "@stream/", "anomalies", "anomaly//", "anomaly/a b/"] {
        let mut tap = Process::spawn(source.tap(&["--count", "0", topic])).unwrap();
        assert_eq!(tap.wait(LONG).unwrap().code(), Some(2), "{topic}");
        let stderr = tap.stderr().join("\n");
        assert!(stderr.contains(topic) && stderr.contains("syslog/, xflow/ and snmptrap/"), "{stderr}");
    }
    for topic in [
        "",
        "s",
        "sys",
        "syslog",
        "syslog/",
        "syslog/0",
        "syslog/0a",
        "xflow/3f",
        "a",
        "anomaly/",
        "anomaly/w",
        "anomaly/w/",
    ] {
        let mut tap = Process::spawn(source.tap(&["--count", "0", topic])).unwrap();
        assert_eq!(tap.wait(LONG).unwrap().code(), Some(0), "{topic}");
    }
}

/// A stand-in for the control connection of a proxy of an earlier version: it answers nothing.
fn silent_control() -> (zmq::Context, zmq::Socket, String) {
    #[expect(clippy::disallowed_methods, reason = "a peer that is not ours")]
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER).unwrap();
    router.set_linger(0).unwrap();
    router.bind("tcp://127.0.0.1:0").unwrap();
    let endpoint = router.get_last_endpoint().unwrap().unwrap();
    (context, router, endpoint)
}

/// The lines of the log, without those of single records.
fn warnings(tap: &Process) -> Vec<String> {
    tap.stderr().into_iter().filter(|line| line.contains("WARN")).collect()
}

#[test]
fn proxy_that_cannot_answer_is_named_once_and_live_data_is_printed() {
    let (_context, _router, endpoint) = silent_control();
    let unreachable = "tcp://127.0.0.1:9".to_owned();
    for (control, said) in [(endpoint, "does not answer requests"), (unreachable, "no control connection")] {
        let mut source = Source::new();
        let mut command = source.tap(&["templates/", "xflow/"]);
        command.env("SEKIWAKE_BUS_CONTROL", &control);
        let mut tap = Process::spawn(command).unwrap();
        source.wait_for_subscription("xflow/");
        source.send("xflow/00", &[b"live"]);
        wait_for("the live record", LONG, || !tap.stdout().is_empty()).unwrap();
        assert!(tap.stdout()[0].contains(r#""payload":"live""#));
        let warnings = warnings(&tap);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("no templates") && warnings[0].contains(said), "{warnings:?}");
        assert!(warnings[0].contains(&control), "{warnings:?}");
        assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));
        // Alone, there is nothing else to print.
        let mut command = source.tap(&["templates/"]);
        command.env("SEKIWAKE_BUS_CONTROL", &control);
        let mut tap = Process::spawn(command).unwrap();
        assert_eq!(tap.wait(LONG).unwrap().code(), Some(1));
        assert_eq!((tap.stdout().len(), tap.stderr().len()), (0, 1), "{:?}", tap.stderr());
    }
}

/// An IPFIX message: its set, and the identifier and contents of that.
fn ipfix(set: u16, contents: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let header = [&[0, 10][..], &length(20 + contents.len()), &[0; 12]].concat();
    [&header[..], &set.to_be_bytes(), &length(4 + contents.len()), contents].concat()
}

fn flow_record(payload: &[u8]) -> Record<'_> {
    Record { format: Format::Ipfix, ..record(payload) }
}

#[test]
fn decoded_flows_are_lines_of_json_or_text() {
    let template = ipfix(2, &[1, 0, 0, 2, 0, 8, 0, 4, 0, 12, 0, 4]);
    let data = ipfix(256, &[198, 18, 0, 1, 198, 18, 0, 2]);
    let (_context, _router, endpoint) = silent_control();
    for style in ["json", "text"] {
        let mut source = Source::new();
        let default: &[&str] = if style == "json" { &[] } else { &["--output", style] };
        let mut command = source.tap(&[&["--decode", "--count", "3", "xflow/"], default].concat());
        command.env("SEKIWAKE_BUS_CONTROL", &endpoint);
        let mut tap = Process::spawn(command).unwrap();
        source.wait_for_subscription("xflow/");
        // One record more than --count.
        source.send_records("xflow/00", [&data, &template, &data, &data].map(|payload| flow_record(payload)));
        assert_eq!(tap.wait(LONG).unwrap().code(), Some(0));
        let lines = tap.stdout();
        assert_eq!(lines.len(), 3, "{lines:?}");
        if style == "text" {
            assert!(lines[0].contains(" ipfix undecoded: template has not been received, template 256"), "{lines:?}");
            assert_eq!(lines[2], "2023-11-14T22:13:20.123Z 198.51.100.7 ipfix flow 198.18.0.1 > 198.18.0.2");
            continue;
        }
        let values: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&values[0]["type"], &values[1]["type"]), (&"undecoded".into(), &"template".into()));
        let expected = [
            ("kind", "xflow"),
            ("source", "198.51.100.7"),
            ("captured_at", "2023-11-14T22:13:20.123456789Z"),
            ("format", "ipfix"),
            ("type", "flow"),
            ("sourceIPv4Address", "198.18.0.1"),
        ];
        for (name, value) in expected {
            assert_eq!(values[2][name], value, "{name}");
        }
        assert_eq!(warnings(&tap).len(), 1, "{:?}", tap.stderr());
    }
}

#[test]
fn tap_without_recent_records_says_so_once_and_prints_live_ones() {
    let (_context, _router, endpoint) = silent_control();
    let unreachable = "tcp://127.0.0.1:9".to_owned();
    for (control, said) in [(endpoint, "does not answer requests"), (unreachable, "no control connection")] {
        let mut source = Source::new();
        let mut command = source.tap(&["--since", "30s", "xflow/"]);
        command.env("SEKIWAKE_BUS_CONTROL", &control);
        let mut tap = Process::spawn(command).unwrap();
        source.wait_for_subscription("xflow/");
        source.send("xflow/00", &[b"live", b"records"]);
        wait_for("the live records", LONG, || tap.stdout().len() == 2).unwrap();
        source.send("xflow/00", &[b"more"]);
        wait_for("one more", LONG, || tap.stdout().len() == 3).unwrap();
        let warnings = warnings(&tap);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("no recent records") && warnings[0].contains(said), "{warnings:?}");
        assert!(warnings[0].contains(&control), "{warnings:?}");
        assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));
    }
}

#[test]
fn signal_ends_a_tap_that_waits_for_templates() {
    let (_context, router, endpoint) = silent_control();
    let source = Source::new();
    let mut command = source.tap(&["templates/"]);
    command.env("SEKIWAKE_BUS_CONTROL", &endpoint);
    let mut tap = Process::spawn(command).unwrap();
    router.set_rcvtimeo(20_000).unwrap();
    router.recv_multipart(0).unwrap();
    assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));
}

/// An SNMPv2c trap whose trap OID is 1.3.6.1.4.1.32473.7.
fn trap() -> Vec<u8> {
    fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(contents.len()).unwrap()][..], contents].concat()
    }
    let uptime = [tlv(6, &[0x2b, 6, 1, 2, 1, 1, 3, 0]), tlv(0x43, &[1])].concat();
    let trap_oid = [
        tlv(6, &[0x2b, 6, 1, 6, 3, 1, 1, 4, 1, 0]),
        // 32473 takes three octets of seven bits.
        tlv(6, &[0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 7]),
    ]
    .concat();
    let bindings = tlv(0x30, &[tlv(0x30, &uptime), tlv(0x30, &trap_oid)].concat());
    let number = |value: u8| tlv(2, &[value]);
    let pdu = tlv(0xa7, &[number(9), number(0), number(0), bindings].concat());
    tlv(0x30, &[number(1), tlv(4, b"public"), pdu].concat())
}

#[test]
fn decoded_traps_have_the_names_of_mib_files_which_sighup_reads_again() {
    let module = |name: &str| {
        format!(
            "TEST-MIB DEFINITIONS ::= BEGIN {name} NOTIFICATION-TYPE STATUS current DESCRIPTION \"\" \
             ::= {{ enterprises 32473 7 }} END"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("test.mib"), module("before")).unwrap();
    let mut source = Source::new();
    let mut command = source.tap(&["--decode", "snmptrap/"]);
    command.env("SEKIWAKE_MIB_DIR", folder.path());
    let mut tap = Process::spawn(command).unwrap();
    source.wait_for_subscription("snmptrap/");
    let payload = trap();
    let mut named = |tap: &Process, name: &str| {
        let wanted = format!("\"trap_name\":\"{name}\"");
        wait_for(name, LONG, || {
            source.send_records("snmptrap/00", [Record { format: Format::Snmp2cTrap, ..record(&payload) }]);
            std::thread::sleep(Duration::from_millis(20));
            tap.stdout().iter().any(|line| line.contains(&wanted))
        })
    };
    let outcome = named(&tap, "before");
    assert!(outcome.is_ok(), "{:?} {:?}", tap.stdout().first(), tap.stderr());
    std::fs::write(folder.path().join("test.mib"), module("after")).unwrap();
    tap.signal(Signal::HUP).unwrap();
    named(&tap, "after").unwrap();
    assert!(!tap.stdout().iter().any(|line| line.contains("public")), "the community is never shown");
    assert_eq!(tap.stop(LONG).unwrap().code(), Some(0));

    let mut command = source.tap(&["--decode", "snmptrap/"]);
    command.env("SEKIWAKE_MIB_DIR", folder.path().join("missing"));
    let mut tap = Process::spawn(command).unwrap();
    assert_eq!(tap.wait(LONG).unwrap().code(), Some(1));
    assert!(tap.stderr().iter().any(|line| line.contains("SEKIWAKE_MIB_DIR")), "{:?}", tap.stderr());
}
