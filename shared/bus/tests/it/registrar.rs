//! Clients that are in no group and register destinations, over real sockets.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use sekiwake_bus::{
    Bus, Controlling, Registered, Registrar, names,
    zeromq::{ClientKeys, Endpoints, KeyPair},
};
use sekiwake_record::Name;
use sekiwake_testkit::wait::wait_for;

use crate::{
    control::{TestProxy, TestStream},
    curve::Keys,
    support::*,
};

const CLIENT: &str = "client=\"replay\"";

fn registrar(to: &Controlling, destinations: u16) -> Box<dyn Registrar> {
    let address = |index| SocketAddr::from(([198, 51, 100, 7], 1 + index));
    let destinations: Vec<SocketAddr> = (0..destinations).map(address).collect();
    Bus::default().registrar(to, Name::new("replay").unwrap(), &destinations).unwrap()
}

#[test]
fn registration_survives_a_restart_of_the_proxy_and_ends_with_the_client() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 1 << 20);
    let mut client = registrar(&proxy.controlling(), 3);
    assert_eq!(client.register(&|| false).unwrap(), Registered::Acknowledged);
    let registered = |proxy: &TestProxy| value_of(proxy.relay.role.metrics(), names::CLIENT_DESTINATIONS, CLIENT);
    wait_for("the metric", LONG, || registered(&proxy) == 3).unwrap();
    let (is_stopped, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let proxy = thread::scope(|scope| {
        let (is_stopped, changes) = (&is_stopped, &changes);
        let mut on_change = move |_| {
            changes.fetch_add(1, Relaxed);
        };
        let kept = scope.spawn(move || client.keep(&|| is_stopped.load(Relaxed), &mut on_change).unwrap());
        let proxy = proxy.restart();
        wait_for("the registration at the new proxy", LONG, || registered(&proxy) == 3).unwrap();
        // On a slow machine it may have lapsed, and must then be registered again.
        wait_for("the registration", LONG, || changes.load(Relaxed).is_multiple_of(2)).unwrap();
        is_stopped.store(true, Relaxed);
        kept.join().unwrap();
        proxy
    });
    wait_for("the end of the registration", LONG, || registered(&proxy) == 0).unwrap();
    drop(stream);
}

#[test]
fn registration_with_keys_needs_an_allowed_key() {
    let keys = Keys::new();
    let client_keys = keys.client_keys().unwrap();
    let proxy = TestProxy::guarded(keys.gatekeeper_settings(), client_keys.clone());
    let stream = TestStream::start(&proxy, 1 << 20);
    let mut client = registrar(&proxy.controlling(), 3);
    assert_eq!(client.register(&|| false).unwrap(), Registered::Acknowledged);
    for keys in [None, Some(ClientKeys { own: KeyPair::generate().unwrap(), ..client_keys })] {
        let stranger = Controlling::from(Endpoints { endpoints: vec![proxy.control.clone()], keys });
        assert_eq!(registrar(&stranger, 2).register(&|| false).unwrap(), Registered::NoConnection);
    }
    assert_eq!(value_of(proxy.relay.role.metrics(), names::CLIENT_DESTINATIONS, CLIENT), 3);
    drop(stream);
}

#[test]
fn registration_that_cannot_be_is_explained() {
    let proxy = TestProxy::start();
    assert_eq!(registrar(&proxy.controlling(), 65).register(&|| false).unwrap(), Registered::Full);
    wait_for("the rejections", LONG, || proxy.rejected("clients") > 0).unwrap();
    let nobody = Controlling::from(Endpoints { endpoints: vec!["tcp://127.0.0.1:9".to_owned()], keys: None });
    assert_eq!(registrar(&nobody, 1).register(&|| false).unwrap(), Registered::NoConnection);
    assert_eq!(registrar(&nobody, 1).register(&|| true).unwrap(), Registered::Stopped);
    // A proxy of an earlier version does not know the message.
    #[expect(clippy::disallowed_methods, reason = "a proxy of an earlier version")]
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER).unwrap();
    router.set_linger(0).unwrap();
    router.bind(ANY_PORT).unwrap();
    let silent =
        Controlling::from(Endpoints { endpoints: vec![router.get_last_endpoint().unwrap().unwrap()], keys: None });
    assert_eq!(registrar(&silent, 1).register(&|| false).unwrap(), Registered::NoAnswer);
}
