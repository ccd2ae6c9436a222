//! The binary on real sockets.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use sekiwake_testkit::process::{Process, Signal};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn receiver(arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-receiver"));
    command.args(arguments);
    Process::spawn(command).unwrap()
}

#[test]
fn datagrams_are_counted_by_port_and_source() {
    let port = 20_514;
    let address = format!("127.0.0.7:{port}");
    let mut process = receiver(&["--listen", &address, "--every", "100ms", "--json", "--by-source"]);
    process.wait_for_line(LONG, |line| line.contains("\"received\":0")).unwrap();
    for source in ["127.0.0.8:0", "127.0.0.9:0", "127.0.0.8:0"] {
        UdpSocket::bind(source).unwrap().send_to(b"<13>not numbered", &address).unwrap();
    }
    process.wait_for_line(LONG, |line| line.contains("\"received\":3")).unwrap();
    process.signal(Signal::TERM).unwrap();
    assert!(process.wait(LONG).unwrap().success());
    let last: Value = serde_json::from_str(process.stdout().last().unwrap()).unwrap();
    assert_eq!((&last["received"], &last["sources"], &last["dropped"]), (&3.into(), &2.into(), &0.into()));
    assert_eq!(last["by_port"], serde_json::json!({ "20514": 3 }));
    assert_eq!(last["by_source"], serde_json::json!({ "127.0.0.8": 2, "127.0.0.9": 1 }));
    assert_eq!(last["numbered"]["unreadable"], 3);
}

#[test]
fn messages_over_tcp_are_counted_and_other_streams_closed() {
    let address = "127.0.0.7:20601";
    let mut process = receiver(&["--listen-tcp", address, "--every", "100ms", "--json"]);
    process.wait_for_line(LONG, |line| line.contains("\"messages\":0")).unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    // In two segments, with the space at the end of the first.
    for part in ["5 <13>a7 ", "<13>b c"] {
        connection.write_all(part.as_bytes()).unwrap();
    }
    process.wait_for_line(LONG, |line| line.contains("\"messages\":2")).unwrap();
    for wrong in ["<13>a line\n", "123456789 ", " "] {
        let mut other = TcpStream::connect(address).unwrap();
        other.write_all(wrong.as_bytes()).unwrap();
        other.set_read_timeout(Some(LONG)).unwrap();
        // Closed, with what was not read or without.
        let end = other.read(&mut [0; 1]);
        assert!(
            end.as_ref().is_ok_and(|&count| count == 0)
                || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
    }
    process.signal(Signal::TERM).unwrap();
    assert!(process.wait(LONG).unwrap().success());
    let last: Value = serde_json::from_str(process.stdout().last().unwrap()).unwrap();
    assert_eq!(last["tcp"], serde_json::json!({ "messages": 2, "bytes": 12 }));
}

#[test]
fn unbindable_address_is_reported() {
    let mut process = receiver(&["--listen", "203.0.113.7:514"]);
    assert_eq!(process.wait(LONG).unwrap().code(), Some(1));
    assert!(process.stderr().concat().contains("cannot bind 203.0.113.7:514"), "{:?}", process.stderr());
}
