//! Hand-off state over real sockets: the next owner of a shard receives it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Controlling, GroupSettings, GroupSource, HandoffState, KnownTemplates, Reporting, Requests, Subscribing, boot_now,
    names,
    zeromq::{Context, ControlReader, Endpoints, GroupSubscriber},
};
use sekiwake_group::{
    Coordinator, CoordinatorSettings, Peer,
    wire::{GetTemplates, HandoffEntry, HandoffKey, HandoffValue, Message, PutHandoff},
};
use sekiwake_record::{Kind, Name, SHARDS, Shard};
use sekiwake_testkit::role::TestRole;

use crate::{
    control::{TestProxy, dealer},
    support::*,
};

const GROUP: &str = "xflow-forwarder.default";

fn shards() -> impl Iterator<Item = Shard> {
    (0..SHARDS as u8).map(|index| Shard::new(index).unwrap())
}

/// The value and its time, by shard and key.
type Table = BTreeMap<(Shard, Vec<u8>), (Vec<u8>, u64)>;

/// A member that takes all entries, and puts them again for a new coordinator.
pub(crate) struct HandoffWriter {
    pub(crate) subscriber: GroupSubscriber,
    role: TestRole,
    table: Table,
    presented: usize,
}

impl HandoffWriter {
    fn start(subscribe: &str, controlling: Controlling) -> HandoffWriter {
        let role = TestRole::start("2s");
        let settings = GroupSettings {
            subscribing: Subscribing::from(Endpoints { endpoints: vec![subscribe.to_owned()], keys: None }),
            controlling,
            group: Name::new(GROUP).unwrap(),
            label: Name::new("m1").unwrap(),
            kind: Kind::Xflow,
            start_age: Duration::from_secs(30),
            single_active: false,
            handoff: true,
            deduplicate: None,
        };
        let reporting = Reporting::new(&role.scope, "lease", "group");
        let subscriber = GroupSubscriber::connect(&Context::default(), settings, reporting).unwrap();
        HandoffWriter { subscriber, role, table: Table::new(), presented: 0 }
    }

    pub(crate) fn of(proxy: &TestProxy) -> HandoffWriter {
        HandoffWriter::start(&proxy.relay.subscribe, proxy.controlling())
    }

    fn turn(&mut self) {
        assert!(self.subscriber.receive(Duration::from_millis(2)).unwrap().is_none(), "no records were published");
        while let Some(entry) = self.subscriber.take_handoff_entry() {
            let place = self.table.entry((entry.shard, entry.key.as_bytes().to_vec())).or_default();
            if entry.at_ns >= place.1 {
                *place = (entry.value.as_bytes().to_vec(), entry.at_ns);
            }
        }
        while let Some(shard) = self.subscriber.shard_to_present() {
            self.presented += 1;
            for ((_, key), (value, at_ns)) in self.table.iter().filter(|((owner, _), _)| *owner == shard) {
                assert!(self.subscriber.put_handoff_entry(shard, key, value, *at_ns));
            }
        }
    }

    pub(crate) fn put(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) {
        assert!(self.subscriber.put_handoff_entry(shard, key, value, at_ns));
        self.table.insert((shard, key.to_vec()), (value.to_vec(), at_ns));
    }

    /// Twenty entries per shard, and one MiB for one of them.
    fn put_many(&mut self) {
        for shard in shards() {
            for key in 0..20_u8 {
                let value = vec![key; usize::from(key) * 10];
                self.put(shard, &[key], &value, 1_000 + u64::from(key));
            }
        }
        let large = Shard::new(9).unwrap();
        for key in 0..128_u64 {
            self.put(large, &key.to_be_bytes(), &[key as u8; 8 << 10], key);
        }
    }

    fn owned(&self) -> u64 {
        value(self.role.metrics(), names::OWNED_SHARDS)
    }

    fn complete(&self) -> usize {
        shards().filter(|&shard| self.subscriber.handoff_complete(shard)).count()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.owned() == 64 && self.complete() == 64
    }
}

/// Runs all of them until `condition` holds.
pub(crate) fn pump<const N: usize>(
    what: &str,
    mut members: [&mut HandoffWriter; N],
    condition: impl Fn([&HandoffWriter; N]) -> bool,
) {
    let end = Instant::now() + LONG;
    while !condition(members.each_ref().map(|member| &**member)) {
        let owned = members.each_ref().map(|member| (member.owned(), member.complete(), member.table.len()));
        assert!(Instant::now() < end, "{what}: {owned:?} shards owned, complete, entries");
        members.iter_mut().for_each(|member| member.turn());
    }
}

fn kept_entries(proxy: &TestProxy) -> u64 {
    value_of(proxy.relay.role.metrics(), names::GROUP_HANDOFF_ENTRIES, GROUP)
}

#[test]
fn entries_move_to_the_member_that_takes_over() {
    let proxy = TestProxy::start();
    let mut one = HandoffWriter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    let begun = Instant::now();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.pending_handoff() == 0);
    println!("{} entries kept after {} ms", one.table.len(), begun.elapsed().as_millis());
    let mut other = HandoffWriter::of(&proxy);
    pump("an even share", [&mut one, &mut other], |[one, other]| {
        (one.owned(), other.owned(), other.complete()) == (32, 32, 32)
    });
    // A newer entry for every shard; half of the shards are being handed over.
    let owned: Vec<Shard> = shards().filter(|&shard| one.subscriber.handoff_complete(shard)).collect();
    owned.into_iter().for_each(|shard| one.put(shard, b"last", b"word", 5_000));
    pump("the acknowledgements", [&mut one, &mut other], |[one, _]| one.subscriber.pending_handoff() == 0);
    one.subscriber.leave();
    let begun = Instant::now();
    pump("the rest", [&mut one, &mut other], |[one, other]| one.subscriber.has_left() && other.is_settled());
    println!("all shards and entries {} ms after the first began to leave", begun.elapsed().as_millis());
    assert_eq!(other.table, one.table);
    pump("the metric", [&mut other], |[other]| kept_entries(&proxy) == other.table.len() as u64);
    assert_eq!(proxy.rejected(""), 0);
}

#[test]
fn entries_of_a_killed_member_reach_its_successor() {
    let proxy = TestProxy::start();
    let mut one = HandoffWriter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    one.put(Shard::new(5).unwrap(), &[3], b"", 2_000);
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.pending_handoff() == 0);
    let HandoffWriter { subscriber, role, table, .. } = one;
    drop((subscriber, role));
    let mut other = HandoffWriter::of(&proxy);
    pump("all shards and entries", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
    pump("the metric", [&mut other], |[other]| {
        value(other.role.metrics(), names::RECEIVED_HANDOFF_ENTRIES) >= other.table.len() as u64
    });
}

#[test]
fn restarted_proxy_receives_all_entries_again() {
    let proxy = TestProxy::start();
    let mut one = HandoffWriter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.pending_handoff() == 0);
    let proxy = proxy.restart();
    pump("all shards to be put again", [&mut one], |[one]| {
        one.presented == 64 && one.subscriber.pending_handoff() == 0
    });
    pump("all entries", [&mut one], |[one]| kept_entries(&proxy) == one.table.len() as u64);
    let HandoffWriter { subscriber, role, table, .. } = one;
    drop((subscriber, role));
    let mut other = HandoffWriter::of(&proxy);
    pump("all shards and entries", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
}

#[test]
fn proxy_without_hand_off_support_is_probed_rarely() {
    // Its control plane has a coordinator, but keeps no hand-off state.
    let relay = TestRelay::start();
    #[expect(clippy::disallowed_methods, reason = "a proxy of an earlier version")]
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER).unwrap();
    router.set_linger(0).unwrap();
    router.bind(ANY_PORT).unwrap();
    let endpoint = router.get_last_endpoint().unwrap().unwrap();
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1, boot_now());
    let mut member =
        HandoffWriter::start(&relay.subscribe, Controlling::from(Endpoints { endpoints: vec![endpoint], keys: None }));
    let mut has_put = false;
    let mut turns_until = |what: &str, condition: &dyn Fn(&HandoffWriter) -> bool| {
        let end = Instant::now() + LONG;
        while !condition(&member) {
            assert!(Instant::now() < end, "{what}: {} owned", member.owned());
            member.turn();
            if member.owned() == 64 && !has_put {
                has_put = true;
                member.put_many();
            }
            while let Ok(parts) = router.recv_multipart(zmq::DONTWAIT) {
                coordinator.on_message(boot_now(), &Peer::new(&parts[0]).unwrap(), &parts[1]);
            }
            coordinator.on_tick(boot_now());
            while let Some((peer, frame)) = coordinator.poll_output() {
                router.send_multipart([peer.as_bytes(), &frame], zmq::DONTWAIT).unwrap();
            }
        }
    };
    let start = Instant::now();
    turns_until("all shards", &|member| member.owned() == 64);
    let later = Instant::now() + Duration::from_secs(4);
    turns_until("a while", &|_| Instant::now() >= later);
    assert_eq!((member.complete(), member.owned()), (0, 64));
    assert!(member.subscriber.has_lease() && member.subscriber.pending_handoff() > 1_000);
    // Hand-off state and status are offered at once, and after 1 s, 3 s, 7 s and so on.
    let rejected = coordinator.rejections().malformed;
    let most = 2.0 * (1.0 + (start.elapsed().as_secs_f64() + 1.0).log2());
    assert!((1.0..=most).contains(&(rejected as f64)), "{rejected} of at most {most} unknown messages");
}

#[test]
fn entries_of_strangers_and_oversized_ones_are_rejected() {
    let proxy = TestProxy::start();
    let mut honest = HandoffWriter::of(&proxy);
    pump("all shards", [&mut honest], |[honest]| honest.is_settled());
    honest.put_many();
    pump("the acknowledgements", [&mut honest], |[honest]| honest.subscriber.pending_handoff() == 0);
    pump("the metric", [&mut honest], |[honest]| kept_entries(&proxy) == honest.table.len() as u64);
    let evil = dealer(&proxy.control);
    let entry = |at_ns| HandoffEntry {
        shard: Shard::new(3).unwrap(),
        key: HandoffKey::new(&[3]).unwrap(),
        value: HandoffValue::new(b"evil").unwrap(),
        at_ns,
    };
    for number in 0..5_000 {
        let entries = vec![entry(u64::MAX); 100];
        let message = PutHandoff { group: Name::new(GROUP).unwrap(), incarnation: number, number, entries };
        evil.send(Message::from(message).encode(), 0).unwrap();
    }
    evil.send(vec![0x93, 1, 10, 0xc0], 0).unwrap();
    pump("the rejections", [&mut honest], |_| proxy.rejected("foreign") == 5_000 && proxy.rejected("malformed") == 1);
    assert!(honest.subscriber.has_lease() && honest.owned() == 64);
    assert!(!honest.subscriber.put_handoff_entry(Shard::new(3).unwrap(), &[0; 65], b"", 1));
    let table = std::mem::take(&mut honest.table);
    let HandoffWriter { subscriber, role, .. } = honest;
    drop((subscriber, role));
    let mut other = HandoffWriter::of(&proxy);
    pump("all shards and entries", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
}

fn templates(proxy: &TestProxy) -> KnownTemplates {
    ControlReader::connect(&Context::default(), &proxy.controlling())
        .unwrap()
        .templates(Kind::Xflow, &|| false)
        .unwrap()
}

/// What a reader has, as a member has it.
fn table_of(known: KnownTemplates) -> Table {
    let KnownTemplates::Entries(entries) = known else { panic!("{known:?}") };
    let row = |entry: HandoffEntry| {
        let place = (entry.shard, entry.key.as_bytes().to_vec());
        (place, (entry.value.as_bytes().to_vec(), entry.at_ns))
    };
    entries.into_iter().map(row).collect()
}

#[test]
fn reader_outside_the_group_gets_all_entries_page_by_page() {
    let proxy = TestProxy::start();
    assert!(matches!(templates(&proxy), KnownTemplates::NoGroup));
    let mut one = HandoffWriter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    assert_eq!(table_of(templates(&proxy)), Table::new());
    one.put_many();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.pending_handoff() == 0);
    assert_eq!(table_of(templates(&proxy)), one.table);
    // The state stays when the last member has left, and so the templates are known.
    let HandoffWriter { subscriber, role, table, .. } = one;
    drop((subscriber, role));
    assert_eq!(table_of(templates(&proxy)), table);
    assert_eq!(proxy.rejected(""), 0);
}

#[test]
fn reader_that_floods_the_proxy_delays_only_itself() {
    let proxy = TestProxy::start();
    let mut one = HandoffWriter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.pending_handoff() == 0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // It requests the first page over and over, and never reads.
        scope.spawn(|| {
            let evil = dealer(&proxy.control);
            evil.set_sndhwm(1_000).unwrap();
            evil.set_sndtimeo(100).unwrap();
            let get = |request| GetTemplates {
                kind: Kind::Xflow,
                request,
                coordinator: 0,
                group: None,
                shard: Shard::FIRST,
                after: 0,
            };
            let mut requests = 0..;
            while !is_over.load(Ordering::Relaxed) {
                let frame = Message::from(get(requests.next().unwrap())).encode();
                let _ = evil.send(frame, 0);
            }
        });
        pump("the flood", [&mut one], |_| proxy.rejected("reader_requests") > 1_000);
        pump("the lease during the flood", [&mut one], |[one]| one.subscriber.has_lease());
        let reader = scope.spawn(|| {
            let known = templates(&proxy);
            is_over.store(true, Ordering::Relaxed);
            known
        });
        pump("the templates", [&mut one], |_| is_over.load(Ordering::Relaxed));
        assert_eq!(table_of(reader.join().unwrap()), one.table);
    });
}
