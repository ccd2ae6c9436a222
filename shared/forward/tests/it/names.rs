//! Names are looked up again, and an answer that fails changes nothing.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use sekiwake_forward::{Resolution, Resolve};
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

/// A resolver that answers what it is told to.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Option<Vec<SocketAddr>>>>);

impl Scripted {
    fn answer(&self, addresses: Option<Vec<SocketAddr>>) {
        *self.0.lock().unwrap() = addresses;
    }

    fn resolution(&self) -> Resolution {
        let (every, retry) = (Duration::from_millis(20), Duration::from_millis(10));
        Resolution { resolver: Arc::new(self.clone()), every, retry }
    }
}

impl Resolve for Scripted {
    fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, "siem.example");
        self.0.lock().unwrap().clone().ok_or_else(|| io::Error::other("no answer"))
    }
}

#[test]
fn datagrams_follow_a_name_to_its_new_address_and_survive_failing_look_ups() {
    let rig = Rig::new();
    let resolver = Scripted::default();
    let ((first, _), (second, _)) = (loopback_sink(), loopback_sink());
    // The label has the name in lower case, as names are compared.
    let uri = "udp://siem.example:514";
    let mut engine = rig.engine_with("udp://SIEM.example:514", &resolver.resolution());

    // Before the first answer they wait.
    forward(&mut engine, &samples([b"one".to_vec()]));
    resolver.answer(Some(vec![first.addresses()[0], second.addresses()[0]]));
    first.wait_for(1, PATIENCE).unwrap();

    // The answers in another order, then none: the address in use stays.
    resolver.answer(Some(vec![second.addresses()[0], first.addresses()[0]]));
    let failures = |rig: &Rig| rig.metric("sekiwake_forward_resolve_failures_total", &[uri]);
    let before = failures(&rig);
    resolver.answer(None);
    wait_for("failing look-ups", PATIENCE, || failures(&rig) >= before + 2.0).unwrap();
    forward(&mut engine, &samples([b"two".to_vec()]));
    first.wait_for(2, PATIENCE).unwrap();

    // The name moves, and the forwarder after it.
    resolver.answer(Some(vec![second.addresses()[0]]));
    wait_for("the move", PATIENCE, || {
        forward(&mut engine, &samples([b"three".to_vec()]));
        second.received() > 0
    })
    .unwrap();
    rig.assert_accounts_close(uri);
    rig.stop();
}

#[test]
fn an_answer_that_leads_nowhere_is_passed_over() {
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
fn the_systems_resolver_is_asked() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let uri = uri.replace("127.0.0.1", "localhost");
    // localhost may be ::1 first, where nobody listens: only the look-up is of interest then.
    let mut engine = rig.engine(&uri);
    forward(&mut engine, &samples([b"hello".to_vec()]));
    wait_for("the send", PATIENCE, || rig.sent(&uri) == 1).unwrap();
    rig.assert_accounts_close(&uri);
    drop(sink);
    rig.stop();
}
