//! Notes over real sockets: what the owner of a shard leaves, the next one gets.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sekiwake_bus::{Bus, Controlling, GroupSubscriber, GroupSubscriberSettings, Subscribing, boot_now, names};
use sekiwake_group::{
    Coordinator, CoordinatorSettings, Peer,
    wire::{Message, Note, NoteKey, NoteValue, Notes},
};
use sekiwake_record::{Kind, Name, SHARDS, Shard};

use crate::{
    control::{TestProxy, dealer},
    support::*,
};

const GROUP: &str = "xflow-forwarder.default";

fn shards() -> impl Iterator<Item = Shard> {
    (0..SHARDS as u8).map(|index| Shard::new(index).unwrap())
}

/// By shard and key: the value, and when that was so.
type Table = BTreeMap<(Shard, Vec<u8>), (Vec<u8>, u64)>;

/// A member that takes all notes, and presents what it has when it is to.
struct Noter {
    subscriber: GroupSubscriber,
    member: Member,
    table: Table,
    presented: usize,
}

impl Noter {
    fn start(subscribe: &str, controlling: Controlling) -> Noter {
        let member = Member::new("2s");
        let settings = GroupSubscriberSettings {
            subscribing: Subscribing { endpoints: vec![subscribe.to_owned()], keys: None },
            controlling,
            group: Name::new(GROUP).unwrap(),
            label: Name::new("m1").unwrap(),
            kind: Kind::Xflow,
            start_age: Duration::from_secs(30),
            one_works: false,
            notes: true,
        };
        let told = (member.scope.readiness("lease"), member.scope.status("group"));
        let subscriber = GroupSubscriber::connect(&Bus::default(), settings, member.metrics(), told).unwrap();
        Noter { subscriber, member, table: Table::new(), presented: 0 }
    }

    fn of(proxy: &TestProxy) -> Noter {
        Noter::start(&proxy.relay.subscribe, proxy.controlling())
    }

    fn turn(&mut self) {
        assert!(self.subscriber.receive(Duration::from_millis(2)).unwrap().is_none(), "nobody publishes");
        while let Some(note) = self.subscriber.take_note() {
            let place = self.table.entry((note.shard, note.key.as_bytes().to_vec())).or_default();
            if note.at_ns >= place.1 {
                *place = (note.value.as_bytes().to_vec(), note.at_ns);
            }
        }
        while let Some(shard) = self.subscriber.shard_to_present() {
            self.presented += 1;
            for ((_, key), (value, at_ns)) in self.table.iter().filter(|((of, _), _)| *of == shard) {
                assert!(self.subscriber.put_note(shard, key, value, *at_ns));
            }
        }
    }

    fn put(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) {
        assert!(self.subscriber.put_note(shard, key, value, at_ns));
        self.table.insert((shard, key.to_vec()), (value.to_vec(), at_ns));
    }

    /// Twenty notes for each shard, and a mebibyte for one of them.
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
        value(self.member.metrics(), names::OWNED_SHARDS)
    }

    fn complete(&self) -> usize {
        shards().filter(|&shard| self.subscriber.notes_complete(shard)).count()
    }

    fn is_settled(&self) -> bool {
        self.owned() == 64 && self.complete() == 64
    }
}

/// Lets all of them have their turns until `condition` holds of them.
fn pump<const N: usize>(what: &str, mut noters: [&mut Noter; N], condition: impl Fn([&Noter; N]) -> bool) {
    let end = Instant::now() + LONG;
    while !condition(noters.each_ref().map(|noter| &**noter)) {
        let owned = noters.each_ref().map(|noter| (noter.owned(), noter.complete(), noter.table.len()));
        assert!(Instant::now() < end, "{what}: {owned:?} shards owned, complete, notes");
        noters.iter_mut().for_each(|noter| noter.turn());
    }
}

fn held(proxy: &TestProxy) -> u64 {
    value_of(proxy.relay.member.metrics(), names::GROUP_NOTES, GROUP)
}

#[test]
fn what_one_member_notes_another_gets_when_it_prepares_and_when_the_first_has_left() {
    let proxy = TestProxy::start();
    let mut one = Noter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    let begun = Instant::now();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.waiting_notes() == 0);
    println!("{} notes kept after {} ms", one.table.len(), begun.elapsed().as_millis());
    let mut other = Noter::of(&proxy);
    pump("an even share", [&mut one, &mut other], |[one, other]| {
        (one.owned(), other.owned(), other.complete()) == (32, 32, 32)
    });
    // Something newer for all, of which half goes to a shard that is on its way.
    let owned: Vec<Shard> = shards().filter(|&shard| one.subscriber.notes_complete(shard)).collect();
    owned.into_iter().for_each(|shard| one.put(shard, b"last", b"word", 5_000));
    pump("the acknowledgements", [&mut one, &mut other], |[one, _]| one.subscriber.waiting_notes() == 0);
    one.subscriber.leave();
    let begun = Instant::now();
    pump("the rest", [&mut one, &mut other], |[one, other]| one.subscriber.has_left() && other.is_settled());
    println!("all shards and notes {} ms after the first began to leave", begun.elapsed().as_millis());
    assert_eq!(other.table, one.table);
    pump("the metric", [&mut other], |[other]| held(&proxy) == other.table.len() as u64);
    assert_eq!(proxy.refused(""), 0);
}

#[test]
fn what_a_member_that_dies_has_noted_the_next_one_gets_when_its_lease_is_over() {
    let proxy = TestProxy::start();
    let mut one = Noter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    one.put(Shard::new(5).unwrap(), &[3], b"", 2_000);
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.waiting_notes() == 0);
    let Noter { subscriber, member, table, .. } = one;
    drop((subscriber, member));
    let mut other = Noter::of(&proxy);
    pump("all shards and notes", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
    pump("the metric", [&mut other], |[other]| {
        value(other.member.metrics(), names::RECEIVED_NOTES) >= other.table.len() as u64
    });
}

#[test]
fn a_proxy_that_restarts_is_given_again_what_owners_have_and_gives_it_to_the_next() {
    let proxy = TestProxy::start();
    let mut one = Noter::of(&proxy);
    pump("all shards", [&mut one], |[one]| one.is_settled());
    one.put_many();
    pump("the acknowledgements", [&mut one], |[one]| one.subscriber.waiting_notes() == 0);
    let proxy = proxy.restart();
    pump("that all is presented", [&mut one], |[one]| one.presented == 64 && one.subscriber.waiting_notes() == 0);
    pump("all of it", [&mut one], |[one]| held(&proxy) == one.table.len() as u64);
    let Noter { subscriber, member, table, .. } = one;
    drop((subscriber, member));
    let mut other = Noter::of(&proxy);
    pump("all shards and notes", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
}

#[test]
fn a_proxy_of_the_version_before_serves_a_member_with_notes_and_is_asked_rarely() {
    // Its control plane: a coordinator, and nothing that keeps notes.
    let relay = TestRelay::start();
    #[expect(clippy::disallowed_methods, reason = "a proxy that is not this version's")]
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER).unwrap();
    router.set_linger(0).unwrap();
    router.bind(ANY_PORT).unwrap();
    let endpoint = router.get_last_endpoint().unwrap().unwrap();
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 1, boot_now());
    let mut member = Noter::start(&relay.subscribe, Controlling { endpoints: vec![endpoint], keys: None });
    let mut noted = false;
    let mut turns_until = |what: &str, condition: &dyn Fn(&Noter) -> bool| {
        let end = Instant::now() + LONG;
        while !condition(&member) {
            assert!(Instant::now() < end, "{what}: {} owned", member.owned());
            member.turn();
            if member.owned() == 64 && !noted {
                noted = true;
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
    turns_until("all shards", &|member| member.owned() == 64);
    let later = Instant::now() + Duration::from_secs(4);
    turns_until("a while", &|_| Instant::now() >= later);
    assert_eq!((member.complete(), member.owned()), (0, 64));
    assert!(member.subscriber.has_lease() && member.subscriber.waiting_notes() > 1_000);
    // At once, and after 1 and 3 s.
    let refused = coordinator.refusals().malformed;
    assert!((1..=3).contains(&refused), "{refused} messages that it does not know");
}

#[test]
fn a_stranger_leaves_no_notes_and_a_member_too_much() {
    let proxy = TestProxy::start();
    let mut honest = Noter::of(&proxy);
    pump("all shards", [&mut honest], |[honest]| honest.is_settled());
    honest.put_many();
    pump("the acknowledgements", [&mut honest], |[honest]| honest.subscriber.waiting_notes() == 0);
    pump("the metric", [&mut honest], |[honest]| held(&proxy) == honest.table.len() as u64);
    let evil = dealer(&proxy.control);
    let note = |at_ns| Note {
        shard: Shard::new(3).unwrap(),
        key: NoteKey::new(&[3]).unwrap(),
        value: NoteValue::new(b"evil").unwrap(),
        at_ns,
    };
    for number in 0..5_000 {
        let notes = vec![note(u64::MAX); 100];
        let notes = Notes { group: Name::new(GROUP).unwrap(), incarnation: number, number, notes };
        evil.send(Message::from(notes).encode(), 0).unwrap();
    }
    evil.send(vec![0x93, 1, 10, 0xc0], 0).unwrap();
    pump("the refusals", [&mut honest], |_| proxy.refused("foreign") == 5_000 && proxy.refused("malformed") == 1);
    assert!(honest.subscriber.has_lease() && honest.owned() == 64);
    assert!(!honest.subscriber.put_note(Shard::new(3).unwrap(), &[0; 65], b"", 1));
    let table = std::mem::take(&mut honest.table);
    let Noter { subscriber, member, .. } = honest;
    drop((subscriber, member));
    let mut other = Noter::of(&proxy);
    pump("all shards and notes", [&mut other], |[other]| other.is_settled());
    assert_eq!(other.table, table);
}
