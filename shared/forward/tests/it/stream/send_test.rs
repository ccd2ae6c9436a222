//! One test message through each destination: what is said of those that take it, and of those that
//! do not.

use std::{io::Read, net::UdpSocket, sync::Arc};

use rustls::version::{TLS12, TLS13};
use sekiwake_forward::{Destinations, send_test};
use sekiwake_record::Kind;

use super::{
    peer::{Peer, Refusing, listener},
    tls::{Authority, tls_peer},
};
use crate::rig::{arrived, loopback_sink};

/// Sends a test message through these destinations. Returns whether all went, and the lines.
fn sent(kind: Kind, uris: &[String]) -> (bool, Vec<String>) {
    let destinations = Destinations::parse(kind, &uris.join(" ")).unwrap();
    let mut out = Vec::new();
    let all_went = send_test(kind, &destinations, "public", &Arc::default(), &mut out).unwrap();
    let lines = String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
    (all_went, lines)
}

/// The name of the test in its first line.
fn name(lines: &[String]) -> &str {
    lines[0].split(',').next().unwrap()
}

#[test]
fn message_arrives_as_the_destination_is_configured() {
    let (sink, plain) = loopback_sink();
    let (with, with_source) = loopback_sink();
    let (filtered, filtering) = loopback_sink();
    let peer = Peer::reading(listener());
    let tcp = format!("tcp://{}", peer.address);
    let uris = [
        plain.clone(),
        format!("{with_source}?add_source=true"),
        format!("{filtering}?source=203.0.113.0/24"),
        tcp.clone(),
    ];
    let (all_went, lines) = sent(Kind::Syslog, &uris);
    assert!(all_went && lines.len() == 5, "{lines:#?}");
    let name = name(&lines);
    for (line, label) in lines[1..].iter().zip([&plain, &with_source, &filtering, &tcp]) {
        assert!(line.starts_with(&format!("{label}: ")), "{line}");
    }
    assert!(lines[1].contains("no ICMP error"), "{}", lines[1]);
    assert!(lines[4].contains("acknowledged"), "{}", lines[4]);
    for (sink, uri, text) in
        [(sink, plain, " - "), (with, with_source, "[origin ip=\"127.0.0.1\"]"), (filtered, filtering, " - ")]
    {
        let message = String::from_utf8(arrived(sink, 1).remove(0)).unwrap();
        assert!(message.ends_with(&format!(" test {} {name}: test message to {uri}", text.trim())), "{message}");
    }
    let messages = peer.book.messages();
    assert_eq!(messages.len(), 1);
    assert!(String::from_utf8_lossy(&messages[0]).contains(name));
}

#[test]
fn refusals_are_failures() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = Refusing::new();
    let closing = Peer::serve(listener(), |mut stream, _, _| {
        let _ = stream.read(&mut [0; 10]);
    });
    let uris =
        [format!("udp://{closed}"), format!("tcp://{}", refusing.address()), format!("tcp://{}", closing.address)];
    let (all_went, lines) = sent(Kind::Syslog, &uris);
    assert!(!all_went, "{lines:#?}");
    for (line, why) in lines[1..].iter().zip(["refused", "refused", "connected, then: "]) {
        assert!(line.contains(": FAILED: ") && line.contains(why), "{line}");
    }
}

#[test]
fn tls_peer_is_named_or_the_reason_is_given() {
    let authority = Authority::new();
    let identity = authority.identity("server", &["siem.example"], false);
    let stranger = Authority::new();
    let ours = authority.identity("ours", &["forwarder.example"], false);
    for version in [&TLS12, &TLS13] {
        let (good, _) = tls_peer(listener(), authority.server(&identity, version, false));
        let (asking, _) = tls_peer(listener(), authority.server(&identity, version, true));
        let uri = |peer: &Peer, ca: &Authority, more: &str| {
            format!("tls://{}?server_name=siem.example&ca={}{more}", peer.address, ca.ca().display())
        };
        let certificate = format!("&cert={}&key={}", ours.certificate.display(), ours.key.display());
        for (peer, more) in [(&good, ""), (&asking, &certificate)] {
            let (all_went, lines) = sent(Kind::Syslog, &[uri(peer, &authority, more)]);
            assert!(all_went && lines[1].contains("with siem.example, certificate SHA-256 "), "{lines:#?}");
        }
        for (uri, why) in [
            (uri(&good, &stranger, ""), "a signature cannot be verified"),
            (uri(&asking, &authority, ""), "does it require a client certificate (cert=, key=)?"),
            (uri(&good, &authority, "").replace("siem.example", "other.example"), "other.example"),
            ("tls://127.0.0.1:1?ca=/nowhere.pem".to_owned(), "/nowhere.pem: no such file"),
        ] {
            let (all_went, lines) = sent(Kind::Syslog, &[uri]);
            assert!(!all_went && lines[1].contains(": FAILED: ") && lines[1].contains(why), "{why}: {lines:#?}");
        }
    }
}

#[test]
fn name_that_does_not_resolve_is_a_failure() {
    let (all_went, lines) = sent(Kind::SnmpTrap, &["udp://collector.invalid".to_owned()]);
    assert!(!all_went && lines[1].contains("cannot resolve collector.invalid"), "{lines:#?}");
}
