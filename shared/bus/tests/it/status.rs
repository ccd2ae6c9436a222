//! Status over real sockets: sent and published only while somebody subscribes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Controlling, EventSource, GroupSettings, GroupSource, Reporting, Subscribing, names,
    zeromq::{
        Context, ControlPlane, ControlPlaneSettings, Endpoints, EventSubscriber, GroupSubscriber, Relay, RelaySettings,
        status_channel,
    },
};
use sekiwake_group::wire::{Message, OfferStatus, Status, StatusPart, StatusText};
use sekiwake_record::{Kind, Name};
use sekiwake_runtime::{Ending, Metrics};
use sekiwake_testkit::{role::TestRole, wait::wait_for};
use serde_json::Value;

use crate::{control::dealer, support::*};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A proxy whose relay publishes status.
struct StatusProxy {
    role: TestRole,
    subscribe: String,
    control: String,
}

impl StatusProxy {
    fn start() -> StatusProxy {
        StatusProxy::at(ANY_PORT, ANY_PORT)
    }

    fn at(subscribe: &str, control: &str) -> StatusProxy {
        let role = TestRole::start("10s");
        let bus = Context::default();
        let settings =
            RelaySettings { publish: vec![ANY_PORT.to_owned()], subscribe: vec![subscribe.to_owned()], keys: None };
        let mut relay = Relay::bind(&bus, &settings, role.metrics()).unwrap();
        let settings = ControlPlaneSettings { endpoints: vec![control.to_owned()], keys: None };
        let mut plane = ControlPlane::bind(&bus, &settings, Reporting::new(&role.scope, "control", "control")).unwrap();
        let (inlet, outlet) = status_channel().unwrap();
        plane.set_status(inlet);
        relay.set_status(outlet);
        let (subscribe, control) = (relay.subscribe_endpoints()[0].clone(), plane.endpoints()[0].clone());
        role.scope.spawn("relay", move |worker| Ok(relay.run(worker)?)).unwrap();
        role.scope.spawn("control", move |worker| Ok(plane.run(worker)?)).unwrap();
        StatusProxy { role, subscribe, control }
    }

    fn member(&self, label: &str) -> (GroupSubscriber, TestRole) {
        let role = TestRole::start("2s");
        let settings = GroupSettings {
            subscribing: Subscribing::from(Endpoints { endpoints: vec![self.subscribe.clone()], keys: None }),
            controlling: Controlling::from(Endpoints { endpoints: vec![self.control.clone()], keys: None }),
            group: name("syslog-forwarder.default"),
            label: name(label),
            kind: Kind::Syslog,
            start_age: Duration::from_secs(30),
            single_active: false,
            handoff: false,
            deduplicate: None,
        };
        let reporting = Reporting::new(&role.scope, "lease", "group");
        (GroupSubscriber::connect(&Context::default(), settings, reporting).unwrap(), role)
    }

    fn reader(&self, prefix: &str) -> EventSubscriber {
        let from = Subscribing::from(Endpoints { endpoints: vec![self.subscribe.clone()], keys: None });
        EventSubscriber::connect(&Context::default(), &from, &[prefix.to_owned()], &Metrics::new("reader")).unwrap()
    }

    fn rejected(&self, reason: &str) -> u64 {
        value_of(self.role.metrics(), names::CONTROL_REJECTED, &format!("reason=\"{reason}\""))
    }

    fn sent_bytes(&self) -> u64 {
        value_of(self.role.metrics(), names::CONTROL_BYTES, "in")
    }
}

/// The newest parts by topic.
type Parts = BTreeMap<String, Value>;

/// Lets members work and a reader read until the condition holds.
fn pump(
    what: &str,
    members: &mut [&mut GroupSubscriber],
    reader: &mut Option<&mut EventSubscriber>,
    parts: &mut Parts,
    condition: impl Fn(&Parts) -> bool,
) {
    let end = Instant::now() + LONG;
    while !condition(parts) {
        assert!(Instant::now() < end, "{what}: {parts:?}");
        for member in &mut *members {
            member.receive(Duration::from_millis(5)).unwrap();
        }
        while let Some(event) = reader.as_mut().and_then(|reader| reader.receive(Duration::ZERO).unwrap()) {
            assert_eq!(event.publisher(), None);
            parts.insert(event.topic, serde_json::from_str(&event.json).unwrap());
        }
    }
}

/// The names of senders, without their parts.
fn senders(parts: &Parts) -> BTreeSet<&str> {
    parts.keys().map(|topic| topic.rsplit_once('/').unwrap().0).collect()
}

#[test]
fn every_service_is_read_and_none_sends_unread() {
    let proxy = StatusProxy::start();
    // Members of one name do not collide.
    let (mut one, _one) = proxy.member("m");
    let (mut other, _other) = proxy.member("m");
    let mut parts = Parts::new();
    let mut reader = proxy.reader("status/");
    pump("all parts", &mut [&mut one, &mut other], &mut Some(&mut reader), &mut parts, |parts| {
        let of = |service: &str, part: &str| {
            parts
                .keys()
                .filter(|topic| topic.starts_with(&format!("status/{service}")) && topic.ends_with(part))
                .count()
        };
        // A test's role has the service's name `test`.
        senders(parts).len() == 3 && of("", "/process") == 3 && of("", "/group") == 2 && of("", "/control") == 1
    });
    let group = parts.iter().find(|(topic, _)| topic.ends_with("/group")).unwrap().1;
    assert_eq!((&group["member"], &group["part"]), (&"m".into(), &"group".into()));
    assert!(group["shards"].is_array() && group["sent_at_ns"].is_u64(), "{group}");
    // Only as long as it is read.
    drop(reader);
    let silent_since = Instant::now();
    pump("the end", &mut [&mut one, &mut other], &mut None, &mut parts, |_| {
        silent_since.elapsed() > Duration::from_secs(6)
    });
    let before = proxy.sent_bytes();
    let since = Instant::now();
    pump("silence", &mut [&mut one, &mut other], &mut None, &mut parts, |_| since.elapsed() > Duration::from_secs(4));
    // Renewals and offers: a status has several hundred bytes per second.
    let (idle, seconds) = (proxy.sent_bytes() - before, since.elapsed().as_secs() + 1);
    assert!(idle < 2 * 500 * seconds, "{idle} bytes of two members in {seconds} seconds");
    assert_eq!(proxy.rejected(""), 0);
}

#[test]
fn stop_is_said_at_once_and_new_proxy_is_found() {
    let proxy = StatusProxy::start();
    let (mut one, _role) = proxy.member("m");
    let mut reader = proxy.reader("status/");
    let mut parts = Parts::new();
    let of_member = |parts: &Parts, state: &str| {
        parts.iter().any(|(topic, part)| topic.contains(".m.") && topic.ends_with("/process") && part["state"] == state)
    };
    pump("the member", &mut [&mut one], &mut Some(&mut reader), &mut parts, |parts| of_member(parts, "running"));
    let StatusProxy { role, subscribe, control } = proxy;
    assert_eq!(role.stop(), Ending::Done);
    let _proxy = StatusProxy::at(&subscribe, &control);
    parts.clear();
    pump("the member", &mut [&mut one], &mut Some(&mut reader), &mut parts, |parts| of_member(parts, "running"));
    one.leave();
    pump("the stop", &mut [&mut one], &mut Some(&mut reader), &mut parts, |parts| of_member(parts, "stopping"));
}

#[test]
fn hostile_sender_delays_no_other_status() {
    let proxy = StatusProxy::start();
    let (mut one, _role) = proxy.member("m");
    let mut reader = proxy.reader("status/");
    let evil = dealer(&proxy.control);
    evil.set_sndhwm(1_000).unwrap();
    let send = |message: Message| evil.send(message.encode(), zmq::DONTWAIT).is_ok();
    let offer =
        |service: &str| OfferStatus { service: name(service), group: None, member: name("evil"), incarnation: 1 };
    assert!(send(offer("capture").into()));
    let part = StatusPart { part: name("p"), text: StatusText(vec![b' '; 16 << 10]) };
    let mut parts = Parts::new();
    let end = Instant::now() + LONG;
    let mut received = 0;
    while received < 5 || proxy.rejected("status_rate") == 0 || proxy.rejected("foreign") == 0 {
        assert!(Instant::now() < end, "{received} statuses of the member");
        for _ in 0..20 {
            send(Status { incarnation: 1, parts: vec![part.clone(); 3] }.into());
        }
        // In another name, and without one.
        send(offer("storer").into());
        send(Status { incarnation: 2, parts: vec![part.clone()] }.into());
        one.receive(Duration::from_millis(5)).unwrap();
        // Texts that are not JSON objects are counted by the reader.
        while let Some(event) = reader.receive(Duration::ZERO).unwrap() {
            assert!(!event.topic.contains("evil"), "{}", event.topic);
            received += usize::from(event.topic.ends_with("/group"));
            parts.insert(event.topic, serde_json::from_str(&event.json).unwrap());
        }
    }
    wait_for("the lease", LONG, || {
        one.receive(Duration::from_millis(5)).unwrap();
        one.has_lease()
    })
    .unwrap();
    assert_eq!(senders(&parts).iter().filter(|sender| sender.contains("storer")).count(), 0);
    wait_for("the flood to be over", LONG, || proxy.rejected("malformed") == 0).unwrap();
}

#[test]
fn subscriber_to_everything_ignores_status() {
    let proxy = StatusProxy::start();
    let (mut one, _role) = proxy.member("m");
    let mut all = TestSubscriber::start(&proxy.subscribe, &[""]);
    let mut reader = proxy.reader("status/");
    let mut parts = Parts::new();
    pump("status", &mut [&mut one], &mut Some(&mut reader), &mut parts, |parts| parts.len() >= 4);
    while all.pump(SHORT) {}
    assert_eq!(all.value(names::MALFORMED_MESSAGES), 0);
}
