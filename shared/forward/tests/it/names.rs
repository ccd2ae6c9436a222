//! Names are looked up regularly, a failed look-up changes nothing, and all addresses of a name are
//! used.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::Duration,
};

use sekiwake_forward::{Resolution, Resolve};
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

/// A resolver with configurable answers.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Option<Vec<SocketAddr>>>>);

impl Scripted {
    fn answer(&self, addresses: Option<Vec<SocketAddr>>) {
        *self.0.lock().unwrap() = addresses;
    }

    fn resolution(&self) -> Resolution {
        self.resolution_every(Duration::from_millis(20))
    }

    fn resolution_every(&self, every: Duration) -> Resolution {
        Resolution { resolver: Arc::new(self.clone()), every, retry: every / 2 }
    }
}

impl Resolve for Scripted {
    fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, "siem.example");
        self.0.lock().unwrap().clone().ok_or_else(|| io::Error::other("no answer"))
    }
}

#[test]
fn datagrams_follow_a_name_to_its_new_address() {
    let rig = Rig::new();
    let resolver = Scripted::default();
    let ((first, _), (second, _)) = (loopback_sink(), loopback_sink());
    // The label has the name in lower case, because names are case-insensitive.
    let uri = "udp://siem.example:514";
    let mut engine = rig.engine_with("udp://SIEM.example:514", &resolver.resolution());

    // Before the first answer they wait.
    forward(&mut engine, &samples([b"one".to_vec()]));
    resolver.answer(Some(vec![first.addresses()[0], second.addresses()[0]]));
    first.wait_for(1, PATIENCE).unwrap();

    // Answers in another order, then a failure: the address in use stays.
    resolver.answer(Some(vec![second.addresses()[0], first.addresses()[0]]));
    let failures = |rig: &Rig| rig.metric("sekiwake_forward_resolve_failures_total", &[uri]);
    let before = failures(&rig);
    resolver.answer(None);
    wait_for("failing look-ups", PATIENCE, || failures(&rig) >= before + 2.0).unwrap();
    forward(&mut engine, &samples([b"two".to_vec()]));
    first.wait_for(2, PATIENCE).unwrap();

    // The name gets another address, and the forwarder follows.
    resolver.answer(Some(vec![second.addresses()[0]]));
    wait_for("the move", PATIENCE, || {
        forward(&mut engine, &samples([b"three".to_vec()]));
        second.received() > 0
    })
    .unwrap();
    rig.assert_ledger(uri);
    rig.stop();
}

#[test]
fn records_wait_for_a_name_until_it_is_resolved() {
    for transport in ["udp", "tcp"] {
        let rig = Rig::new();
        let resolver = Scripted::default();
        let uri = format!("{transport}://siem.example:514");
        let mut engine = rig.engine_with(&uri, &resolver.resolution_every(Duration::from_secs(1)));
        forward(&mut engine, &samples((0..10).map(|number| vec![number])));
        // Longer than records wait for anything else.
        let failures = || rig.metric("sekiwake_forward_resolve_failures_total", &[&uri]);
        wait_for("failing look-ups", PATIENCE, || failures() >= 5.0).unwrap();
        assert_eq!((rig.queued(&uri), rig.dropped(&uri, "unresolved")), (10, 0));
        let (sink, _) = loopback_sink();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = if transport == "udp" { sink.addresses()[0] } else { listener.local_addr().unwrap() };
        resolver.answer(Some(vec![address]));
        wait_for("the records", PATIENCE, || rig.sent(&uri) == 10).unwrap();
        if transport == "udp" {
            sink.wait_for(10, PATIENCE).unwrap();
        }
        rig.assert_ledger(&uri);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn next_address_is_used_when_one_is_refused() {
    for transport in ["udp", "tcp"] {
        let rig = Rig::new();
        let (sink, _) = loopback_sink();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = if transport == "udp" { sink.addresses()[0] } else { listener.local_addr().unwrap() };
        // The same port is closed there.
        let refused = [2, 3].map(|host| SocketAddr::from(([127, 0, 0, host], good.port())));
        let resolver = Scripted::default();
        resolver.answer(Some(vec![refused[0], refused[1], good]));
        let uri = format!("{transport}://siem.example:514");
        let mut engine = rig.engine_with(&uri, &resolver.resolution());
        match transport {
            // What is sent before an ICMP error arrives is lost.
            "udp" => wait_for("a datagram", PATIENCE, || {
                forward(&mut engine, &samples([b"hello".to_vec()]));
                sink.received() > 0
            })
            .unwrap(),
            _ => {
                forward(&mut engine, &samples([b"hello".to_vec()]));
                wait_for("the message", PATIENCE, || rig.sent(&uri) == 1).unwrap();
            }
        }
        wait_for("the state", PATIENCE, || rig.metric("sekiwake_forward_up", &[&uri]) == 1.0).unwrap();
        assert!(rig.metric("sekiwake_forward_errors_total", &["connection_refused", &uri]) >= 2.0);
        rig.assert_ledger(&uri);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn unusable_answer_is_ignored() {
    let rig = Rig::new();
    let resolver = Scripted::default();
    let ((sink, _), (own_host, _)) = (loopback_sink(), loopback_sink());
    // The kernel would take it for this host.
    let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, own_host.addresses()[0].port()));
    let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), sink.addresses()[0].port()));
    resolver.answer(Some(vec![unspecified, mapped]));
    let mut engine = rig.engine_with("udp://siem.example:514", &resolver.resolution());
    forward(&mut engine, &samples([b"hello".to_vec()]));
    sink.wait_for(1, PATIENCE).unwrap();
    assert_eq!(own_host.received(), 0);
    rig.stop();
}

#[test]
fn system_resolver_is_used() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let uri = uri.replace("127.0.0.1", "localhost");
    // localhost may be ::1 first, without a listener: only the look-up matters then.
    let mut engine = rig.engine(&uri);
    forward(&mut engine, &samples([b"hello".to_vec()]));
    wait_for("the send", PATIENCE, || rig.sent(&uri) == 1).unwrap();
    rig.assert_ledger(&uri);
    drop(sink);
    rig.stop();
}
