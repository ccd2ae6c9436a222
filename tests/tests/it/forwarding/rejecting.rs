//! A collector that closes the connection at some messages gets all others.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, collector};

use crate::support::*;

/// The different messages that a collector has received.
#[derive(Default)]
struct Received {
    accepted: BTreeSet<Vec<u8>>,
    closed_at: BTreeSet<Vec<u8>>,
    /// Behind one at which it closed, when it closed.
    unread: BTreeSet<Vec<u8>>,
}

impl Received {
    fn different(&self) -> u64 {
        let unread = self.unread.iter().filter(|&one| !self.accepted.contains(one) && !self.closed_at.contains(one));
        (self.accepted.len() + self.closed_at.len() + unread.count()) as u64
    }
}

/// Reads octet-counted messages, and closes the connection at the first one that is not RFC 5424.
fn serve(mut stream: TcpStream, received: &Mutex<Received>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 65_536];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..length]);
        while let Some((message, rest)) = first_message(&buffer) {
            let is_accepted = message.windows(3).take(5).any(|three| three == b">1 ");
            let mut received = received.lock().unwrap();
            buffer = rest;
            if is_accepted {
                received.accepted.insert(message);
                continue;
            }
            received.closed_at.insert(message);
            // What has arrived by now is acknowledged by the kernel, so that no sender knows.
            stream.set_nonblocking(true).unwrap();
            let _ = stream.read_to_end(&mut buffer);
            while let Some((message, rest)) = first_message(&buffer) {
                received.unread.insert(message);
                buffer = rest;
            }
            return;
        }
    }
}

/// The first message of a stream of frames, and the stream after it.
fn first_message(stream: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let space = stream.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&stream[..space]).unwrap().parse().unwrap();
    let (message, rest) = stream[space + 1..].split_at_checked(length)?;
    Some((message.to_vec(), rest.to_vec()))
}

#[test]
fn collector_that_closes_at_some_messages_gets_the_others() {
    let Some(site) = site() else { return };
    let address = at(collector(0), 601);
    let listener = site.collectors.enter(|| TcpListener::bind(address)).unwrap().unwrap();
    let received = Arc::<Mutex<Received>>::default();
    let of_collector = Arc::clone(&received);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let received = Arc::clone(&of_collector);
            thread::spawn(move || serve(stream, &received));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let destination = format!("tcp://{address}?spool=16MiB");
    let services =
        site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination), ("SEKIWAKE_SPOOL_DIR", &spool)]);
    let sent = site.send(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 4 --protocol rfc5424:20,rfc3164 --rate 100 --duration 3s"
    ));
    // What arrives while the collector closes may be lost.
    let outcome = wait_for("nearly every message", LONG, || received.lock().unwrap().different() * 10 >= sent * 9);
    assert!(outcome.is_ok(), "{} of {sent} messages", received.lock().unwrap().different());
    let forwarder = services.get(SYSLOG);
    forwarder
        .wait_for_metrics("nothing waiting", LONG, |samples| {
            let count = |name, labels: &[&str]| samples.count(name, labels);
            let rejected = count("sekiwake_forward_dropped_datagrams_total", &["reason=\"rejected\""]);
            rejected > 0
                && count("sekiwake_forward_dropped_datagrams_total", &[]) == rejected
                && count("sekiwake_forward_sent_datagrams_total", &[]) + rejected == sent
        })
        .unwrap();
    let is_shown = |line: &str| line.contains("the destination closes the connection at it");
    forwarder.process.wait_for_line(LONG, is_shown).unwrap();
    services.stop().unwrap();
}
