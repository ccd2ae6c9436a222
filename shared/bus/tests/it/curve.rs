//! Keys on the bus: clients with allowed keys connect, all others are rejected and counted.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    EVENT_PREFIX, EventSink, EventSource, Overflow, Publishing, Subscribing, names,
    zeromq::{
        AllowedKeys, ClientKeys, Context, Endpoints, EventPublisher, EventSubscriber, Gatekeeper, GatekeeperSettings,
        INPROC_PUBLISH, INPROC_SUBSCRIBE, KeyPair,
    },
};
use sekiwake_record::Name;
use sekiwake_runtime::{Ending, Metrics};
use sekiwake_testkit::{role::TestRole, wait::wait_for};
use tempfile::TempDir;

use crate::support::*;

/// The keys of a proxy and a client, and the list of allowed keys.
pub(crate) struct Keys {
    folder: TempDir,
    server: KeyPair,
    client: KeyPair,
}

impl Keys {
    pub(crate) fn new() -> Keys {
        let [server, client] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let keys = Keys { folder: tempfile::tempdir().unwrap(), server, client };
        keys.allow(&[&keys.client]);
        keys
    }

    fn list(&self) -> PathBuf {
        self.folder.path().join("allowed")
    }

    fn allow(&self, keys: &[&KeyPair]) {
        let lines: Vec<String> = keys.iter().map(|key| format!("{} a client\n", key.public())).collect();
        self.write_list(&lines.concat());
    }

    /// Replaces the file atomically.
    fn write_list(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.list()).unwrap();
    }

    pub(crate) fn gatekeeper_settings(&self) -> GatekeeperSettings {
        GatekeeperSettings { own: self.server.clone(), allowed: AllowedKeys::read(&self.list()).unwrap() }
    }

    fn relay(&self) -> TestRelay {
        TestRelay::guarded(ANY_PORT, ANY_PORT, self.gatekeeper_settings())
    }

    fn keys_with(&self, own: &KeyPair) -> Option<ClientKeys> {
        Some(ClientKeys { own: own.clone(), server: self.server.public() })
    }

    pub(crate) fn client_keys(&self) -> Option<ClientKeys> {
        self.keys_with(&self.client)
    }
}

fn denied(relay: &TestRelay, reason: &str) -> u64 {
    value_of(relay.role.metrics(), names::DENIED_CONNECTIONS, reason)
}

#[test]
fn libzmq_has_curve() {
    assert_eq!(zmq::has("curve"), Some(true));
}

#[test]
fn records_of_every_size_pass_encrypted_over_tcp_and_ipc() {
    let keys = Keys::new();
    let ipc = |name: &str| format!("ipc://{}", keys.folder.path().join(name).display());
    for (publish, subscribe) in [(ANY_PORT.to_owned(), ANY_PORT.to_owned()), (ipc("publish"), ipc("subscribe"))] {
        let relay = TestRelay::guarded(&publish, &subscribe, keys.gatekeeper_settings());
        let mut publisher = TestPublisher::keyed(&relay.publish, keys.client_keys());
        let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/", "xflow/2a"], keys.client_keys());
        publisher.wait_for_subscriber();
        for size in [0, 200, 9_000, 65_527] {
            publisher.offer(&topics(64), 3, size);
        }
        subscriber.pump_until_received(64 * 12);
        assert_eq!((subscriber.lost(), publisher.value(names::UNPUBLISHED_RECORDS)), (0, 0));
        assert_eq!((subscriber.value(names::CONNECTED), relay.value(names::DENIED_CONNECTIONS)), (1, 0));
        assert_eq!(relay.value(names::ALLOWED_KEYS), 1);
        drop((publisher, subscriber));
        assert_eq!(relay.role.stop(), Ending::Done);
    }
}

#[test]
fn clients_without_allowed_keys_are_rejected_and_counted() {
    let keys = Keys::new();
    let relay = keys.relay();
    let mut publisher = TestPublisher::keyed(&relay.publish, keys.client_keys());
    let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.client_keys());
    publisher.wait_for_subscriber();
    let unknown = KeyPair::generate().unwrap();
    let other_server = KeyPair::generate().unwrap().public();
    let strangers = [
        ("not_encrypted", None),
        ("key_not_allowed", keys.keys_with(&unknown)),
        ("wrong_server_key", Some(ClientKeys { server: other_server, ..keys.client_keys().unwrap() })),
    ];
    for (reason, stranger) in strangers {
        let before = denied(&relay, reason);
        let mut reader = TestSubscriber::keyed(&relay.subscribe, &[""], stranger.clone());
        // An unencrypted client may close its connection before the proxy knows its mechanism, and
        // is then counted at the next attempt.
        reader.pump_until("the rejection of a subscriber", |_| denied(&relay, reason) > before);
        let before = denied(&relay, reason);
        let mut writer = TestPublisher::keyed(&relay.publish, stranger);
        wait_for("the rejection of a publisher", LONG, || denied(&relay, reason) > before).unwrap();

        let received = relay.value(names::RELAY_RECEIVED_RECORDS);
        let count = subscriber.count;
        publisher.offer(&topics(8), 10, 100);
        writer.offer(&topics(8), 10, 100);
        subscriber.pump_until_received(count + 80);
        // They keep trying.
        let before = denied(&relay, reason);
        let end = Instant::now() + LONG;
        while denied(&relay, reason) < before + 3 && Instant::now() < end {
            reader.pump(SHORT);
        }
        assert!(denied(&relay, reason) >= before + 3, "{reason}");
        assert_eq!((reader.count, reader.value(names::STREAMS), reader.value(names::CONNECTED)), (0, 0, 0), "{reason}");
        assert_eq!((writer.value(names::PUBLISHED_RECORDS), writer.value(names::CONNECTED)), (0, 0), "{reason}");
        assert_eq!(relay.value(names::RELAY_RECEIVED_RECORDS), received + 80, "{reason}");
        assert!(!subscriber.pump(SHORT));
    }
    assert_eq!(subscriber.lost(), 0);
    drop((publisher, subscriber));
    assert_eq!(relay.role.stop(), Ending::Done);
}

#[test]
fn changed_list_is_reloaded_and_a_broken_one_is_ignored() {
    let keys = Keys::new();
    let relay = keys.relay();
    let late = KeyPair::generate().unwrap();
    let mut publisher = TestPublisher::keyed(&relay.publish, keys.client_keys());
    let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.keys_with(&late));
    wait_for("a rejection", LONG, || denied(&relay, "key_not_allowed") > 0).unwrap();

    keys.allow(&[&keys.client, &late]);
    subscriber.pump_until("the connection", |subscriber| subscriber.value(names::CONNECTED) == 1);
    publisher.wait_for_subscriber();
    assert_eq!(relay.value(names::ALLOWED_KEYS), 2);
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(10);

    for (number, broken) in ["", "no key\n", "# only a comment\n"].into_iter().enumerate() {
        keys.write_list(broken);
        let errors = || relay.value(names::ALLOWED_KEYS_ERRORS);
        wait_for("the error for a broken list", LONG, || errors() == number as u64 + 1).unwrap();
        assert_eq!((relay.value(names::ALLOWED_KEYS), relay.value(names::ALLOWED_KEYS_FILE_IN_USE)), (2, 0));
    }
    fs::remove_file(keys.list()).unwrap();
    wait_for("the error for a missing list", LONG, || relay.value(names::ALLOWED_KEYS_ERRORS) == 4).unwrap();
    let again = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.keys_with(&late));
    drop(again);

    // Established connections stay, new ones are checked.
    keys.allow(&[&keys.client]);
    wait_for("the shorter list", LONG, || relay.value(names::ALLOWED_KEYS) == 1).unwrap();
    assert_eq!(relay.value(names::ALLOWED_KEYS_FILE_IN_USE), 1);
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(20);
    let before = denied(&relay, "key_not_allowed");
    let mut again = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.keys_with(&late));
    wait_for("the rejection", LONG, || denied(&relay, "key_not_allowed") > before).unwrap();
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(30);
    assert!(!again.pump(SHORT));
    assert_eq!((again.count, subscriber.lost()), (0, 0));
}

#[test]
fn client_with_keys_rejects_a_proxy_without_keys() {
    let keys = Keys::new();
    let relay = TestRelay::start();
    let publisher = TestPublisher::keyed(&relay.publish, keys.client_keys());
    let mut keyed = TestSubscriber::keyed(&relay.subscribe, &[""], keys.client_keys());
    let mut plain = TestSubscriber::start(&relay.subscribe, &[""]);
    plain.pump_until("the connection of the client without keys", |plain| plain.value(names::CONNECTED) == 1);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        assert!(!keyed.pump(SHORT));
        assert_eq!((keyed.value(names::CONNECTED), publisher.value(names::CONNECTED)), (0, 0));
    }
}

#[test]
fn in_process_connections_ignore_keys() {
    let keys = Keys::new();
    let bus = Context::default();
    let role = TestRole::start("10s");
    let gatekeeper = Gatekeeper::bind(&bus, keys.gatekeeper_settings(), role.metrics()).unwrap();
    let server_keys = gatekeeper.keys();
    role.scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?)).unwrap();
    let relay = TestRelay::with(role, &bus, INPROC_PUBLISH, INPROC_SUBSCRIBE, Some(server_keys));
    for keys in [None, keys.client_keys()] {
        let mut publisher = TestPublisher::of(&bus, INPROC_PUBLISH, 64 << 20, Overflow::Drop, "2s", keys.clone());
        let mut subscriber = TestSubscriber::of(&bus, INPROC_SUBSCRIBE, &["syslog/"], keys);
        publisher.wait_for_subscriber();
        publisher.offer(&topics(8), 10, 100);
        subscriber.pump_until_received(80);
    }
    drop(bus);
    assert_eq!(relay.role.stop(), Ending::Done);
}

#[test]
fn connections_are_rejected_while_no_gatekeeper_answers() {
    let keys = Keys::new();
    let bus = Context::default();
    let role = TestRole::start("1s");
    let gatekeeper = Gatekeeper::bind(&bus, keys.gatekeeper_settings(), role.metrics()).unwrap();
    let relay = TestRelay::with(role, &bus, ANY_PORT, ANY_PORT, Some(gatekeeper.keys()));
    let assert_rejected = || {
        let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &[""], keys.client_keys());
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            assert!(!subscriber.pump(SHORT));
            assert_eq!(subscriber.value(names::CONNECTED), 0);
        }
    };
    // First it is bound but does not answer; then it does not exist.
    assert_rejected();
    drop(gatekeeper);
    assert_rejected();
}

#[test]
fn second_gatekeeper_cannot_bind() {
    let keys = Keys::new();
    let bus = Context::default();
    let metrics = Metrics::new("proxy");
    let _first = Gatekeeper::bind(&bus, keys.gatekeeper_settings(), &metrics).unwrap();
    assert!(Gatekeeper::bind(&bus, keys.gatekeeper_settings(), &metrics).is_err());
}

#[test]
fn guarded_relay_restarts_without_loss_despite_strangers() {
    let keys = Keys::new();
    let mut relay = keys.relay();
    let publish = relay.publish.clone();
    let subscribe = relay.subscribe.clone();
    let unknown = KeyPair::generate().unwrap();
    let _strangers: Vec<TestSubscriber> =
        (0..20).map(|_| TestSubscriber::keyed(&subscribe, &[""], keys.keys_with(&unknown))).collect();
    let mut publisher = TestPublisher::keyed(&publish, keys.client_keys());
    let mut subscriber = TestSubscriber::keyed(&subscribe, &["syslog/"], keys.client_keys());
    publisher.wait_for_subscriber();
    for round in 1..=3 {
        publisher.offer(&topics(8), 1_000, 100);
        // `Done` also means that it ended before its drain deadline.
        assert_eq!(relay.role.stop(), Ending::Done);
        relay = TestRelay::guarded(&publish, &subscribe, keys.gatekeeper_settings());
        publisher.offer(&topics(8), 1_000, 100);
        subscriber.pump_until_received(round * 16_000);
    }
    assert_eq!(subscriber.lost(), 0);
}

#[test]
fn events_pass_once_the_keys_are_allowed() {
    let keys = Keys::new();
    let stranger = KeyPair::generate().unwrap();
    keys.allow(&[&stranger]);
    let relay = keys.relay();
    let metrics = Metrics::new("toy");
    let to = Publishing::from(Endpoints { endpoints: vec![relay.publish.clone()], keys: keys.client_keys() });
    let from = Subscribing::from(Endpoints { endpoints: vec![relay.subscribe.clone()], keys: keys.client_keys() });
    let name = Name::new("watch-1").unwrap();
    let mut publisher = EventPublisher::connect(&Context::default(), &to, &name, &metrics).unwrap();
    let prefixes = [EVENT_PREFIX.to_owned()];
    let mut subscriber = EventSubscriber::connect(&Context::default(), &from, &prefixes, &metrics).unwrap();
    wait_for("the rejection of both", LONG, || {
        publisher.poll();
        subscriber.receive(SHORT).unwrap();
        denied(&relay, "key_not_allowed") >= 2
    })
    .unwrap();
    assert!(!publisher.publish(b"{}"));
    keys.allow(&[&keys.client]);
    wait_for("an event", LONG, || {
        publisher.publish(b"{}");
        subscriber.receive(SHORT).unwrap().is_some()
    })
    .unwrap();
}
