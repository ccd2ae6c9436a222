//! Keys on the bus: who has the right ones gets in, nobody else does, and both is seen.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    AllowedKeys, Bus, ClientKeys, EVENT_PREFIX, EventPublisher, EventSubscriber, Gatekeeper, GatekeeperSettings,
    INPROC_PUBLISH, INPROC_SUBSCRIBE, KeyPair, Overflow, Publishing, Subscribing, names,
};
use sekiwake_record::Name;
use sekiwake_runtime::{Ending, Metrics};
use sekiwake_testkit::wait::wait_for;
use tempfile::TempDir;

use crate::support::*;

/// A proxy's keys, a client's, and the list that allows it.
struct Keys {
    folder: TempDir,
    server: KeyPair,
    client: KeyPair,
}

impl Keys {
    fn new() -> Keys {
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

    /// In one step, as an operator with sense does it.
    fn write_list(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.list()).unwrap();
    }

    fn of_the_proxy(&self) -> GatekeeperSettings {
        GatekeeperSettings { own: self.server.clone(), allowed: AllowedKeys::read(&self.list()).unwrap() }
    }

    fn relay(&self) -> TestRelay {
        TestRelay::guarded(ANY_PORT, ANY_PORT, self.of_the_proxy())
    }

    fn of(&self, own: &KeyPair) -> Option<ClientKeys> {
        Some(ClientKeys { own: own.clone(), server: self.server.public() })
    }

    fn of_the_client(&self) -> Option<ClientKeys> {
        self.of(&self.client)
    }
}

fn denied(relay: &TestRelay, reason: &str) -> u64 {
    value_of(relay.member.metrics(), names::DENIED_CONNECTIONS, reason)
}

#[test]
fn libzmq_has_curve() {
    assert_eq!(zmq::has("curve"), Some(true));
}

#[test]
fn with_the_right_keys_records_of_every_size_arrive_over_tcp_and_over_ipc() {
    let keys = Keys::new();
    let ipc = |name: &str| format!("ipc://{}", keys.folder.path().join(name).display());
    for (publish, subscribe) in [(ANY_PORT.to_owned(), ANY_PORT.to_owned()), (ipc("publish"), ipc("subscribe"))] {
        let relay = TestRelay::guarded(&publish, &subscribe, keys.of_the_proxy());
        let mut publisher = TestPublisher::keyed(&relay.publish, keys.of_the_client());
        let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/", "xflow/2a"], keys.of_the_client());
        publisher.wait_for_subscriber();
        for size in [0, 200, 9_000, 65_527] {
            publisher.offer(&topics(64), 3, size);
        }
        subscriber.pump_until_received(64 * 12);
        assert_eq!((subscriber.lost(), publisher.value(names::UNPUBLISHED_RECORDS)), (0, 0));
        assert_eq!((subscriber.value(names::CONNECTED), relay.value(names::DENIED_CONNECTIONS)), (1, 0));
        assert_eq!(relay.value(names::ALLOWED_KEYS), 1);
        drop((publisher, subscriber));
        assert_eq!(relay.member.stop(), Ending::Done);
    }
}

#[test]
fn who_has_not_the_right_keys_gets_nothing_sends_nothing_and_is_counted() {
    let keys = Keys::new();
    let relay = keys.relay();
    let mut publisher = TestPublisher::keyed(&relay.publish, keys.of_the_client());
    let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.of_the_client());
    publisher.wait_for_subscriber();
    let (unknown, other_server) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap().public());
    let strangers = [
        ("not_encrypted", None),
        ("key_not_allowed", keys.of(&unknown)),
        ("wrong_server_key", Some(ClientKeys { server: other_server, ..keys.of_the_client().unwrap() })),
    ];
    for (reason, stranger) in strangers {
        let before = denied(&relay, reason);
        let mut reader = TestSubscriber::keyed(&relay.subscribe, &[""], stranger.clone());
        // Whoever speaks without encryption may hang up before the proxy has seen that: it is seen the next time.
        reader.pump_until("the refusal of a subscriber", |_| denied(&relay, reason) > before);
        let before = denied(&relay, reason);
        let mut writer = TestPublisher::keyed(&relay.publish, stranger);
        wait_for("the refusal of a publisher", LONG, || denied(&relay, reason) > before).unwrap();

        let (received, count) = (relay.value(names::RELAY_RECEIVED_RECORDS), subscriber.count);
        publisher.offer(&topics(8), 10, 100);
        writer.offer(&topics(8), 10, 100);
        subscriber.pump_until_received(count + 80);
        // They go on trying.
        let (before, end) = (denied(&relay, reason), Instant::now() + LONG);
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
    assert_eq!(relay.member.stop(), Ending::Done);
}

#[test]
fn the_list_of_allowed_keys_is_read_again_when_it_changes_and_a_broken_one_keeps_the_old() {
    let keys = Keys::new();
    let relay = keys.relay();
    let late = KeyPair::generate().unwrap();
    let mut publisher = TestPublisher::keyed(&relay.publish, keys.of_the_client());
    let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.of(&late));
    wait_for("a refusal", LONG, || denied(&relay, "key_not_allowed") > 0).unwrap();

    keys.allow(&[&keys.client, &late]);
    subscriber.pump_until("the connection", |subscriber| subscriber.value(names::CONNECTED) == 1);
    publisher.wait_for_subscriber();
    assert_eq!(relay.value(names::ALLOWED_KEYS), 2);
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(10);

    for (number, broken) in ["", "no key\n", "# nothing but a comment\n"].into_iter().enumerate() {
        keys.write_list(broken);
        let errors = || relay.value(names::ALLOWED_KEYS_ERRORS);
        wait_for("the notice of a broken list", LONG, || errors() == number as u64 + 1).unwrap();
        assert_eq!(relay.value(names::ALLOWED_KEYS), 2);
    }
    fs::remove_file(keys.list()).unwrap();
    wait_for("the notice of a missing list", LONG, || relay.value(names::ALLOWED_KEYS_ERRORS) == 4).unwrap();
    let again = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.of(&late));
    drop(again);

    // Whoever is in stays in; whoever comes anew is asked.
    keys.allow(&[&keys.client]);
    wait_for("the shorter list", LONG, || relay.value(names::ALLOWED_KEYS) == 1).unwrap();
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(20);
    let before = denied(&relay, "key_not_allowed");
    let mut again = TestSubscriber::keyed(&relay.subscribe, &["syslog/"], keys.of(&late));
    wait_for("the refusal", LONG, || denied(&relay, "key_not_allowed") > before).unwrap();
    publisher.offer(&topics(1), 10, 100);
    subscriber.pump_until_received(30);
    assert!(!again.pump(SHORT));
    assert_eq!((again.count, subscriber.lost()), (0, 0));
}

#[test]
fn a_client_with_keys_does_not_connect_to_a_proxy_without() {
    let (keys, relay) = (Keys::new(), TestRelay::start());
    let publisher = TestPublisher::keyed(&relay.publish, keys.of_the_client());
    let mut keyed = TestSubscriber::keyed(&relay.subscribe, &[""], keys.of_the_client());
    let mut plain = TestSubscriber::start(&relay.subscribe, &[""]);
    plain.pump_until("the connection of one without keys", |plain| plain.value(names::CONNECTED) == 1);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        assert!(!keyed.pump(SHORT));
        assert_eq!((keyed.value(names::CONNECTED), publisher.value(names::CONNECTED)), (0, 0));
    }
}

#[test]
fn within_the_process_keys_change_nothing() {
    let (keys, bus) = (Keys::new(), Bus::default());
    let member = Member::new("10s");
    let gatekeeper = Gatekeeper::bind(&bus, keys.of_the_proxy(), member.metrics()).unwrap();
    let server_keys = gatekeeper.keys();
    member.scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?)).unwrap();
    let relay = TestRelay::with(member, &bus, INPROC_PUBLISH, INPROC_SUBSCRIBE, Some(server_keys));
    for keys in [None, keys.of_the_client()] {
        let mut publisher = TestPublisher::of(&bus, INPROC_PUBLISH, 64 << 20, Overflow::Drop, "2s", keys.clone());
        let mut subscriber = TestSubscriber::of(&bus, INPROC_SUBSCRIBE, &["syslog/"], keys);
        publisher.wait_for_subscriber();
        publisher.offer(&topics(8), 10, 100);
        subscriber.pump_until_received(80);
    }
    drop(bus);
    assert_eq!(relay.member.stop(), Ending::Done);
}

#[test]
fn where_nobody_answers_nobody_gets_in() {
    let (keys, bus, member) = (Keys::new(), Bus::default(), Member::new("1s"));
    let gatekeeper = Gatekeeper::bind(&bus, keys.of_the_proxy(), member.metrics()).unwrap();
    let relay = TestRelay::with(member, &bus, ANY_PORT, ANY_PORT, Some(gatekeeper.keys()));
    let stays_out = || {
        let mut subscriber = TestSubscriber::keyed(&relay.subscribe, &[""], keys.of_the_client());
        let end = Instant::now() + Duration::from_millis(700);
        while Instant::now() < end {
            assert!(!subscriber.pump(SHORT));
            assert_eq!(subscriber.value(names::CONNECTED), 0);
        }
    };
    // It is bound and does not answer; then it is not even there.
    stays_out();
    drop(gatekeeper);
    stays_out();
}

#[test]
fn a_proxy_has_one_gatekeeper() {
    let (keys, bus) = (Keys::new(), Bus::default());
    let metrics = Metrics::new("proxy");
    let _first = Gatekeeper::bind(&bus, keys.of_the_proxy(), &metrics).unwrap();
    assert!(Gatekeeper::bind(&bus, keys.of_the_proxy(), &metrics).is_err());
}

#[test]
fn a_guarded_relay_ends_in_time_while_strangers_knock_and_loses_nothing() {
    let keys = Keys::new();
    let mut relay = keys.relay();
    let (publish, subscribe) = (relay.publish.clone(), relay.subscribe.clone());
    let unknown = KeyPair::generate().unwrap();
    let _strangers: Vec<TestSubscriber> =
        (0..20).map(|_| TestSubscriber::keyed(&subscribe, &[""], keys.of(&unknown))).collect();
    let mut publisher = TestPublisher::keyed(&publish, keys.of_the_client());
    let mut subscriber = TestSubscriber::keyed(&subscribe, &["syslog/"], keys.of_the_client());
    publisher.wait_for_subscriber();
    for round in 1..=3 {
        publisher.offer(&topics(8), 1_000, 100);
        let started = Instant::now();
        assert_eq!(relay.member.stop(), Ending::Done);
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        relay = TestRelay::guarded(&publish, &subscribe, keys.of_the_proxy());
        publisher.offer(&topics(8), 1_000, 100);
        subscriber.pump_until_received(round * 16_000);
    }
    assert_eq!(subscriber.lost(), 0);
}

#[test]
fn events_pass_between_those_who_are_let_in_also_when_that_comes_later() {
    let keys = Keys::new();
    let stranger = KeyPair::generate().unwrap();
    keys.allow(&[&stranger]);
    let relay = keys.relay();
    let metrics = Metrics::new("toy");
    let to = Publishing { endpoints: vec![relay.publish.clone()], keys: keys.of_the_client() };
    let from = Subscribing { endpoints: vec![relay.subscribe.clone()], keys: keys.of_the_client() };
    let name = Name::new("watch-1").unwrap();
    let mut publisher = EventPublisher::connect(&Bus::default(), &to, &name, &metrics).unwrap();
    let prefixes = [EVENT_PREFIX.to_owned()];
    let mut subscriber = EventSubscriber::connect(&Bus::default(), &from, &prefixes, &metrics).unwrap();
    wait_for("the refusal of both", LONG, || {
        publisher.tend();
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
