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

/// The different messages that a collector has read.
#[derive(Default)]
struct Read5424 {
    accepted: BTreeSet<Vec<u8>>,
    closed_at: BTreeSet<Vec<u8>>,
}

/// Reads octet-counted messages, and closes the connection at the first one that is not RFC 5424.
fn serve(mut stream: TcpStream, read: &Mutex<Read5424>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 65_536];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..length]);
        while let Some((message, rest)) = first_message(&buffer) {
            let is_accepted = message.windows(3).take(5).any(|three| three == b">1 ");
            let mut read = read.lock().unwrap();
            match is_accepted {
                true => read.accepted.insert(message),
                false => read.closed_at.insert(message),
            };
            if !is_accepted {
                return;
            }
            buffer = rest;
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
    let read = Arc::<Mutex<Read5424>>::default();
    let of_collector = Arc::clone(&read);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let read = Arc::clone(&of_collector);
            thread::spawn(move || serve(stream, &read));
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
    let different = || {
        let read = read.lock().unwrap();
        (read.accepted.len() + read.closed_at.len()) as u64
    };
    // Messages behind a rejected one in its segment may be lost.
    wait_for("nearly every message", LONG, || different() * 10 >= sent * 9).unwrap();
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
