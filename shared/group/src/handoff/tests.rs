//! Limits, order, and hostile parties.

use std::time::Duration;

use proptest::prelude::*;
use sekiwake_record::{Kind, Name, SHARDS, Shard};

use super::*;
use crate::{
    BootTime, Coordinator, CoordinatorSettings, LEASE, LEASE_MARGIN, Peer, ShardPhase, ShardStatus,
    time::{MILLISECOND, SECOND},
    wire::{
        GetHandoff, GetTemplates, HandoffEntries, HandoffEntry, HandoffKey, HandoffStored, HandoffValue,
        MAX_HANDOFF_BYTES, Message, PageOutcome, PutHandoff, Renew, ShardCursor, ShardReached, Templates,
    },
};

const GROUP: &str = "xflow-forwarder.default";
const EPOCH: u64 = 77;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(since_boot: Duration) -> BootTime {
    BootTime::ZERO + since_boot
}

fn peer(number: u64) -> Peer {
    Peer::new(&number.to_be_bytes()).unwrap()
}

fn shard(index: u8) -> Shard {
    Shard::new(index).unwrap()
}

fn entry(index: u8, key: &str, value: &[u8], at_ns: u64) -> HandoffEntry {
    let (key, value) = (HandoffKey::new(key.as_bytes()).unwrap(), HandoffValue::new(value).unwrap());
    HandoffEntry { shard: shard(index), key, value, at_ns }
}

/// The state of a machine without its counters, which are its last field.
fn state(machine: &impl std::fmt::Debug, counters: &str) -> String {
    let text = format!("{machine:?}");
    let (state, _) = text.rsplit_once(counters).expect("counters");
    state.to_owned()
}

/// A store beside its coordinator. Members exist only as messages.
struct Proxy {
    coordinator: Coordinator,
    store: HandoffStore,
    now: BootTime,
    renewals: u64,
    numbers: u64,
}

impl Proxy {
    fn new(settings: HandoffStoreSettings) -> Proxy {
        let coordinator = Coordinator::new(CoordinatorSettings::default(), EPOCH, BootTime::ZERO);
        Proxy {
            coordinator,
            store: HandoffStore::new(settings, EPOCH, BootTime::ZERO),
            now: BootTime::ZERO,
            renewals: 0,
            numbers: 0,
        }
    }

    /// The member has a lease from now on.
    fn renew(&mut self, group: &str, incarnation: u64) {
        self.say(group, incarnation, false);
    }

    fn say(&mut self, group: &str, incarnation: u64, leaving: bool) {
        self.renewals += 1;
        let renew = Renew {
            group: name(group),
            kind: Kind::Xflow,
            incarnation,
            label: name("m"),
            renewal: self.renewals,
            lowest_protocol: 1,
            highest_protocol: 1,
            leaving,
            coordinator: 0,
            holdings: Vec::new(),
            commits: Vec::new(),
            single_active: false,
            coverage: Vec::new(),
            age_ns: 0,
            destinations_digest: 0,
            doubts: Vec::new(),
            former_lease_age_ns: 0,
        };
        self.coordinator.on_message(self.now, &peer(incarnation), &Message::from(renew).encode());
    }

    fn pass(&mut self, duration: Duration) {
        self.now += duration;
        self.coordinator.on_tick(self.now);
        self.store.on_tick(self.now, &self.coordinator);
        while self.coordinator.poll_output().is_some() {}
        self.store.check();
    }

    fn tell(&mut self, incarnation: u64, message: impl Into<Message>) {
        self.store.on_message(self.now, &peer(incarnation), &message.into().encode(), &self.coordinator);
        self.store.check();
    }

    fn put(&mut self, group: &str, incarnation: u64, entries: Vec<HandoffEntry>) {
        self.numbers += 1;
        self.tell(incarnation, PutHandoff { group: name(group), incarnation, number: self.numbers, entries });
    }

    fn request(&mut self, group: &str, incarnation: u64, coordinator: u64, cursors: &[(u8, u64)]) {
        let shards = cursors.iter().map(|&(index, after)| ShardCursor { shard: shard(index), after }).collect();
        self.numbers += 1;
        let request = self.numbers;
        self.tell(incarnation, GetHandoff { group: name(group), incarnation, coordinator, request, shards });
    }

    fn outputs(&mut self) -> Vec<Message> {
        let next = || {
            let (_, frame) = self.store.poll_output()?;
            assert!(frame.len() <= MAX_HANDOFF_BYTES);
            Some(Message::decode(&frame).unwrap())
        };
        std::iter::from_fn(next).collect()
    }

    fn answers(&mut self) -> Vec<HandoffEntries> {
        let answer = |message| match message {
            Message::HandoffEntries(answer) => Some(answer),
            _ => None,
        };
        self.outputs().into_iter().filter_map(answer).collect()
    }

    /// Requests a shard until it is complete. Returns its entries and the number of answers.
    fn read(&mut self, group: &str, incarnation: u64, index: u8) -> (Vec<HandoffEntry>, usize) {
        let (mut entries, mut after) = (Vec::new(), 0);
        for answers in 1.. {
            self.request(group, incarnation, EPOCH, &[(index, after)]);
            self.pass(10 * MILLISECOND);
            let answer = self.answers().pop().unwrap();
            entries.extend(answer.entries);
            after = answer.reached[0].up_to;
            if answer.reached[0].is_whole {
                return (entries, answers);
            }
        }
        unreachable!()
    }
}

#[test]
fn newest_entry_of_a_key_stays_and_of_equals_the_first() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![entry(3, "a", b"old", 10), entry(3, "b", b"only", 5), entry(4, "a", b"elsewhere", 1)]);
    proxy.put(GROUP, 1, vec![entry(3, "a", b"older", 9), entry(3, "b", b"equal", 5)]);
    proxy.put(GROUP, 1, vec![entry(3, "a", b"new", 11)]);
    assert_eq!(proxy.read(GROUP, 1, 3).0, [entry(3, "b", b"only", 5), entry(3, "a", b"new", 11)]);
    proxy.put(GROUP, 1, vec![entry(3, "b", b"", 6)]);
    assert_eq!(
        proxy.read(GROUP, 1, 3).0,
        [entry(3, "a", b"new", 11), entry(3, "b", b"", 6)],
        "a deletion is an entry too"
    );
    proxy.put(GROUP, 1, vec![entry(3, "b", b"late", 5)]);
    assert_eq!(proxy.read(GROUP, 1, 3).0.len(), 2, "a deleted entry does not come back");
    assert_eq!(proxy.store.view().groups[0].entries, 3);
}

#[test]
fn writes_during_a_transfer_are_neither_lost_nor_duplicated() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![entry(3, "m", b"1", 1), entry(3, "z", b"1", 1)]);
    proxy.request(GROUP, 1, EPOCH, &[(3, 0), (5, 0)]);
    proxy.pass(MILLISECOND);
    let answer = proxy.answers().pop().unwrap();
    let reached = |index| answer.reached.iter().find(|reached| reached.shard == shard(index)).unwrap();
    assert!(answer.entries.len() == 2 && reached(3).is_whole && reached(5).is_whole);
    // Before and after the received entries, by key.
    proxy.put(GROUP, 1, vec![entry(3, "a", b"2", 2), entry(3, "m", b"2", 2)]);
    let cursors = [(3, reached(3).up_to), (5, reached(5).up_to)];
    proxy.request(GROUP, 1, EPOCH, &cursors);
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().pop().unwrap().entries, [entry(3, "a", b"2", 2), entry(3, "m", b"2", 2)]);
    // Versions of another coordinator mean nothing.
    proxy.request(GROUP, 1, EPOCH + 1, &cursors);
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().pop().unwrap().entries.len(), 3);
}

#[test]
fn group_over_its_budget_loses_only_its_own_oldest_entries() {
    let settings = HandoffStoreSettings { bytes: 100_000, bytes_per_group: 60_000, ..HandoffStoreSettings::default() };
    let mut proxy = Proxy::new(settings);
    ["small", "one", "other"].iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
    proxy.put("small", 1, vec![entry(0, "k", &[1; 1000], 1)]);
    for at in 0..100 {
        proxy.put("one", 2, vec![entry(0, &format!("{at}"), &[2; 1000], 100 + at)]);
    }
    let of = |proxy: &Proxy, group: &str| {
        proxy.store.view().groups.into_iter().find(|view| view.name.as_str() == group).unwrap()
    };
    let one = of(&proxy, "one");
    assert_eq!((one.entries, one.evicted), (47, 53), "{} bytes", one.bytes);
    let (kept, _) = proxy.read("one", 2, 0);
    assert_eq!(kept.iter().map(|entry| entry.at_ns).min(), Some(153), "the oldest are evicted first");
    // The shared budget: the largest group is evicted from.
    for at in 0..100 {
        proxy.put("other", 3, vec![entry(0, &format!("{at}"), &[3; 1000], 1000 + at)]);
        proxy.pass(10 * MILLISECOND);
    }
    let (small, one, other) = (of(&proxy, "small"), of(&proxy, "one"), of(&proxy, "other"));
    assert_eq!((small.entries, small.evicted), (1, 0));
    assert!(one.entries.abs_diff(other.entries) <= 1 && proxy.store.view().bytes > 98_000, "{one:?} {other:?}");
    assert_eq!(proxy.store.view().evicted, one.evicted + other.evicted);
}

#[test]
fn entries_of_an_empty_group_live_as_long_as_its_positions() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    let keep = HandoffStoreSettings::default().keep;
    assert_eq!(keep, CoordinatorSettings::default().keep_positions);
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![entry(3, "a", b"1", 1)]);
    proxy.say(GROUP, 1, true);
    proxy.pass(2 * SECOND);
    assert!(!proxy.coordinator.has_members(&name(GROUP)));
    proxy.pass(keep - 10 * SECOND);
    assert_eq!(proxy.store.view().groups.len(), 1);
    proxy.renew(GROUP, 2);
    assert_eq!(proxy.read(GROUP, 2, 3).0.len(), 1, "the next member gets it");
    proxy.say(GROUP, 2, true);
    // It was granted shards, so the coordinator waits until its lease expires.
    proxy.pass(5 * SECOND);
    assert!(!proxy.coordinator.has_members(&name(GROUP)));
    proxy.pass(keep - 10 * SECOND);
    assert_eq!(proxy.store.view().groups.len(), 1, "counted from when the last member left");
    proxy.pass(20 * SECOND);
    assert_eq!((proxy.store.view().groups.len(), proxy.store.view().bytes), (0, 0));
}

#[test]
fn large_shard_comes_in_small_answers_few_per_tick() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    (1..=20).for_each(|incarnation| proxy.renew(GROUP, incarnation));
    for at in 0..128 {
        proxy.put(GROUP, 1, vec![entry(9, &format!("{at}"), &[7; 8 << 10], at)]);
    }
    proxy.pass(MILLISECOND);
    let _ = proxy.outputs();
    (1..=20).for_each(|incarnation| proxy.request(GROUP, incarnation, EPOCH, &[(9, 0)]));
    let mut answered = Vec::new();
    for _ in 0..10 {
        assert!(answered.len() == 20 || proxy.store.next_deadline() <= proxy.now);
        proxy.pass(MILLISECOND);
        let answers = proxy.answers();
        let bytes: usize =
            answers.iter().flat_map(|answer| &answer.entries).map(|entry| entry.value.as_bytes().len()).sum();
        assert!(bytes <= 256 << 10, "{bytes} bytes per tick");
        answered.extend(answers.into_iter().map(|answer| answer.incarnation));
    }
    assert_eq!(answered, (1..=20).collect::<Vec<u64>>(), "in order");
    assert!(proxy.store.next_deadline() > proxy.now);
    // Repeated requests of a member have one turn.
    (0..50).for_each(|_| proxy.request(GROUP, 1, EPOCH, &[(9, 0)]));
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().len(), 1);
    let (entries, answers) = proxy.read(GROUP, 2, 9);
    assert!(entries.len() == 128 && answers >= 17, "{} entries in {answers} answers", entries.len());
}

#[test]
fn peers_without_a_lease_change_nothing() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.renew("another", 2);
    proxy.put(GROUP, 1, vec![entry(3, "a", b"1", 1)]);
    proxy.pass(MILLISECOND);
    let before = state(&proxy.store, "rejections");
    let entries = |incarnation| {
        let entries = vec![entry(3, "a", b"2", 2)];
        Message::from(PutHandoff { group: name(GROUP), incarnation, number: 9, entries }).encode()
    };
    let want = |incarnation| {
        let shards = vec![ShardCursor { shard: shard(3), after: 0 }];
        Message::from(GetHandoff { group: name(GROUP), incarnation, coordinator: EPOCH, request: 9, shards }).encode()
    };
    // A stranger, a stranger in a member's name, a member of another group.
    for (from, incarnation) in [(8, 8), (8, 1), (2, 2), (2, 1)] {
        for frame in [entries(incarnation), want(incarnation)] {
            proxy.store.on_message(proxy.now, &peer(from), &frame, &proxy.coordinator);
        }
    }
    assert_eq!((state(&proxy.store, "rejections"), proxy.store.rejections().foreign), (before.clone(), 8));
    // A message for the other side, a large one, a malformed one.
    let kept = HandoffStored { group: name(GROUP), incarnation: 1, coordinator: EPOCH, number: 1 };
    let large =
        PutHandoff { group: name(GROUP), incarnation: 1, number: 9, entries: vec![entry(3, "a", &[0; 8 << 10], 3); 9] };
    for frame in [Message::from(kept).encode(), Message::from(large).encode(), vec![0x93, 1, 10, 0]] {
        proxy.store.on_message(proxy.now, &peer(1), &frame, &proxy.coordinator);
    }
    assert_eq!((state(&proxy.store, "rejections"), proxy.store.rejections().malformed), (before, 3));
    // A member whose lease has expired.
    proxy.now += LEASE + LEASE_MARGIN;
    let before = state(&proxy.store, "rejections");
    proxy.store.on_message(proxy.now, &peer(1), &entries(1), &proxy.coordinator);
    assert_eq!((state(&proxy.store, "rejections"), proxy.store.rejections().foreign), (before, 9));
}

#[test]
fn member_over_its_rate_is_rejected_and_others_are_not() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.renew(GROUP, 2);
    (0..1000).for_each(|at| proxy.put(GROUP, 1, vec![entry(0, "k", b"v", at)]));
    assert_eq!(proxy.store.rejections().over_rate, 800);
    proxy.put(GROUP, 2, vec![entry(1, "k", b"v", 1)]);
    proxy.pass(SECOND);
    (0..1000).for_each(|at| proxy.put(GROUP, 1, vec![entry(0, "k", b"v", at)]));
    assert_eq!(proxy.store.rejections().over_rate, 1600);
    assert_eq!(proxy.store.view().groups[0].entries, 2);
}

#[test]
fn handoff_messages_are_recognised_by_their_numbers() {
    use crate::wire::is_handoff;
    let kept = HandoffStored { group: name(GROUP), incarnation: 1, coordinator: EPOCH, number: 1 };
    assert!(is_handoff(&Message::from(kept).encode()));
    assert!(is_handoff(&[0x93, 1, 10]) && is_handoff(&[0x93, 1, 15]));
    assert!(!is_handoff(&[0x93, 1, 9]) && !is_handoff(&[0x93, 1, 16]) && !is_handoff(&[0x93, 2, 10]));
    assert!(!is_handoff(b"") && !is_handoff(&[0x93, 1]) && !is_handoff(b"probe"));
}

fn keeper() -> HandoffKeeper {
    let mut keeper = HandoffKeeper::new(HandoffKeeperSettings::new(name(GROUP)), 1);
    follow(&mut keeper, BootTime::ZERO, EPOCH, &[]);
    keeper
}

fn follow(keeper: &mut HandoffKeeper, now: BootTime, coordinator: u64, shards: &[(u8, ShardPhase, u64)]) {
    let status = |&(shard, state, generation): &(u8, ShardPhase, u64)| ShardStatus { shard, generation, state };
    keeper.follow(now, coordinator, true, shards.iter().map(status));
}

fn sent(keeper: &mut HandoffKeeper) -> Vec<Message> {
    let next = || {
        let frame = keeper.poll_output()?;
        assert!(frame.len() <= MAX_HANDOFF_BYTES);
        Some(Message::decode(&frame).unwrap())
    };
    std::iter::from_fn(next).collect()
}

fn acknowledge(keeper: &mut HandoffKeeper, now: BootTime, coordinator: u64, number: u64) {
    let kept = HandoffStored { group: name(GROUP), incarnation: 1, coordinator, number };
    keeper.on_message(now, &Message::from(kept).encode());
}

fn answer(request: u64, reached: &[(u8, u64, bool)], entries: Vec<HandoffEntry>) -> Vec<u8> {
    let reached = reached.iter().map(|&(index, up_to, is_whole)| ShardReached { shard: shard(index), up_to, is_whole });
    let reached = reached.collect();
    let answer = HandoffEntries { group: name(GROUP), incarnation: 1, coordinator: EPOCH, request, reached, entries };
    Message::from(answer).encode()
}

#[test]
fn entry_is_sent_until_stored_and_a_newer_value_after_it() {
    let mut keeper = keeper();
    assert!(keeper.put(shard(3), b"k", b"one", 1) && keeper.put(shard(3), b"k", b"two", 2));
    assert!(keeper.put(shard(3), b"k", b"older", 1));
    keeper.on_tick(BootTime::ZERO);
    let [Message::PutHandoff(first)] = &sent(&mut keeper)[..] else { panic!("one message") };
    assert_eq!(first.entries, [entry(3, "k", b"two", 2)], "only the newest value");
    keeper.on_tick(at(SECOND - Duration::from_nanos(1)));
    assert_eq!(sent(&mut keeper), []);
    keeper.on_tick(at(SECOND));
    let [Message::PutHandoff(second)] = &sent(&mut keeper)[..] else { panic!("the same again") };
    assert_eq!((&second.entries, second.number), (&first.entries, first.number + 1));
    assert!(keeper.put(shard(3), b"k", b"three", 3));
    acknowledge(&mut keeper, at(SECOND), EPOCH, second.number);
    assert_eq!((keeper.pending(), keeper.counters().stored), (1, 0));
    assert!(keeper.next_deadline() <= at(SECOND + 20 * MILLISECOND));
    keeper.on_tick(at(SECOND + 20 * MILLISECOND));
    let [Message::PutHandoff(third)] = &sent(&mut keeper)[..] else { panic!("the newer one") };
    assert_eq!(third.entries, [entry(3, "k", b"three", 3)]);
    acknowledge(&mut keeper, at(SECOND), EPOCH, third.number);
    acknowledge(&mut keeper, at(SECOND), EPOCH, third.number);
    assert_eq!((keeper.pending(), keeper.counters().stored, keeper.next_deadline()), (0, 1, BootTime::NEVER));
}

#[test]
fn pending_entries_are_limited_and_sent_in_small_messages() {
    let mut settings = HandoffKeeperSettings::new(name(GROUP));
    settings.pending_bytes = 4 << 20;
    let mut keeper = HandoffKeeper::new(settings, 1);
    follow(&mut keeper, BootTime::ZERO, EPOCH, &[]);
    let taken = (0..1000_u64).filter(|number| keeper.put(shard(0), &number.to_be_bytes(), &[1; 8 << 10], 1)).count();
    assert!((500..512).contains(&taken) && keeper.counters().no_room == 1000 - taken as u64, "{taken}");
    assert!(!keeper.put(shard(0), b"", b"", 1) && !keeper.put(shard(0), &[0; 65], b"", 1));
    assert!(!keeper.put(shard(0), b"k", &[0; (8 << 10) + 1], 1));
    keeper.on_tick(BootTime::ZERO);
    let [Message::PutHandoff(probe)] = &sent(&mut keeper)[..] else { panic!("one message until it has answered") };
    assert_eq!(probe.entries.len(), 7);
    acknowledge(&mut keeper, BootTime::ZERO, EPOCH, probe.number);
    // Without acknowledgements at most four messages are in flight.
    let mut numbers = Vec::new();
    for millisecond in 1..900 {
        keeper.on_tick(at(millisecond * MILLISECOND));
        numbers.extend(sent(&mut keeper).into_iter().map(|message| match message {
            Message::PutHandoff(entries) => (millisecond, entries.number),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(numbers.iter().map(|&(at, _)| at).collect::<Vec<_>>(), [20, 40, 60, 80]);
    // When all are acknowledged at once: 50 per second.
    numbers.iter().for_each(|&(_, number)| acknowledge(&mut keeper, BootTime::ZERO, EPOCH, number));
    let mut messages = 0;
    for millisecond in 900..1900 {
        keeper.on_tick(at(millisecond * MILLISECOND));
        for message in sent(&mut keeper) {
            let Message::PutHandoff(entries) = message else { panic!() };
            messages += 1;
            acknowledge(&mut keeper, BootTime::ZERO, EPOCH, entries.number);
        }
    }
    assert_eq!(messages, 50);
}

#[test]
fn coordinator_without_handoff_is_probed_with_growing_pauses() {
    // An older coordinator counts each of these as malformed.
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), EPOCH, BootTime::ZERO);
    let mut keeper = keeper();
    let owned: Vec<_> = (0..SHARDS as u8).map(|index| (index, ShardPhase::Owned, 1)).collect();
    follow(&mut keeper, BootTime::ZERO, EPOCH, &owned);
    assert!(keeper.put(shard(0), b"k", b"v", 1));
    let mut tried_at = Vec::new();
    for tenth in 0..6000 {
        let now = at(tenth * 100 * MILLISECOND);
        if now >= keeper.next_deadline() {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            tried_at.push(tenth / 10);
            coordinator.on_message(now, &peer(1), &frame);
        }
    }
    assert_eq!(tried_at, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]);
    assert_eq!((coordinator.rejections().malformed, coordinator.poll_output()), (tried_at.len() as u64, None));
    assert!((0..SHARDS as u8).all(|index| !keeper.is_complete(shard(index))) && keeper.incomplete() == SHARDS);
    assert!(keeper.pending() == 1 && !keeper.is_answered());
    // The next coordinator is tried at once.
    follow(&mut keeper, at(600 * SECOND), EPOCH + 1, &owned);
    keeper.on_tick(at(600 * SECOND));
    assert_eq!(sent(&mut keeper).len(), 1);
}

#[test]
fn shard_is_complete_once_everything_is_received_and_taken() {
    let mut keeper = keeper();
    follow(&mut keeper, BootTime::ZERO, EPOCH, &[(3, ShardPhase::Preparing, 0)]);
    keeper.on_tick(BootTime::ZERO);
    let [Message::GetHandoff(want)] = &sent(&mut keeper)[..] else { panic!("a request while it prepares") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 0 }]);
    keeper.on_message(BootTime::ZERO, &answer(want.request, &[(3, 5, false)], vec![entry(3, "a", b"1", 1)]));
    keeper.on_tick(at(10 * MILLISECOND));
    let [Message::GetHandoff(want)] = &sent(&mut keeper)[..] else { panic!("the next request") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 5 }]);
    keeper.on_message(BootTime::ZERO, &answer(want.request, &[(3, 7, true)], vec![entry(3, "b", b"1", 1)]));
    assert!(!keeper.is_complete(shard(3)), "two entries are not taken");
    assert_eq!(std::iter::from_fn(|| keeper.take()).count(), 2);
    assert!(keeper.is_complete(shard(3)));
    // Answers to requests from before it owned do not count.
    follow(&mut keeper, at(SECOND), EPOCH, &[(3, ShardPhase::Owned, 9)]);
    assert!(!keeper.is_complete(shard(3)));
    keeper.on_message(at(SECOND), &answer(want.request, &[(3, 7, true)], Vec::new()));
    assert!(!keeper.is_complete(shard(3)));
    keeper.on_tick(at(SECOND));
    let [Message::GetHandoff(want)] = &sent(&mut keeper)[..] else { panic!("another request") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 7 }]);
    keeper.on_message(at(SECOND), &answer(want.request, &[(3, 8, true)], Vec::new()));
    assert!(keeper.is_complete(shard(3)));
    // And later requests for late entries.
    let mut open_request = Vec::new();
    for second in 2..60 {
        let now = at(second * SECOND);
        keeper.on_tick(now);
        for message in sent(&mut keeper) {
            let Message::GetHandoff(want) = message else { panic!() };
            open_request.push(second);
            keeper.on_message(now, &answer(want.request, &[(3, 8, true)], Vec::new()));
        }
    }
    assert_eq!(open_request, [2, 5, 17]);
    assert!(keeper.is_complete(shard(3)) && keeper.next_deadline() == BootTime::NEVER);
    follow(&mut keeper, at(60 * SECOND), EPOCH, &[(3, ShardPhase::Released, 9)]);
    assert!(!keeper.is_complete(shard(3)));
}

#[test]
fn new_coordinator_gets_owned_shards_and_unstored_entries_again() {
    let mut keeper = keeper();
    let owned = [(3, ShardPhase::Owned, 1), (4, ShardPhase::Preparing, 0), (5, ShardPhase::Releasing, 2)];
    follow(&mut keeper, BootTime::ZERO, EPOCH, &owned);
    assert_eq!(keeper.next_shard_to_replay(), None, "the first coordinator is not a new one");
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    acknowledge(&mut keeper, BootTime::ZERO, EPOCH, 0);
    keeper.on_tick(BootTime::ZERO);
    assert_eq!(sent(&mut keeper).len(), 2);
    // Its lease has expired: it owns nothing any more, but it still has the entries.
    follow(&mut keeper, at(9 * SECOND), EPOCH + 1, &[(3, ShardPhase::Released, 1)]);
    assert_eq!([(); 3].map(|()| keeper.next_shard_to_replay()), [Some(shard(3)), Some(shard(5)), None]);
    acknowledge(&mut keeper, at(9 * SECOND), EPOCH, 1);
    assert_eq!((keeper.pending(), keeper.counters().rejected), (1, 1), "the old coordinator's message is rejected");
    keeper.on_tick(at(9 * SECOND));
    let [Message::PutHandoff(entries)] = &sent(&mut keeper)[..] else { panic!("the entry again") };
    acknowledge(&mut keeper, at(9 * SECOND), EPOCH + 1, entries.number);
    assert_eq!(keeper.pending(), 0);
}

#[test]
fn nothing_is_sent_without_a_lease() {
    let mut keeper = keeper();
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    keeper.follow(BootTime::ZERO, EPOCH, false, []);
    keeper.on_tick(BootTime::ZERO);
    assert_eq!((sent(&mut keeper).len(), keeper.next_deadline()), (0, BootTime::NEVER));
}

#[test]
fn unrequested_answers_change_nothing() {
    let mut keeper = keeper();
    follow(&mut keeper, BootTime::ZERO, EPOCH, &[(3, ShardPhase::Owned, 1)]);
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    acknowledge(&mut keeper, BootTime::ZERO, EPOCH, 0);
    keeper.on_tick(BootTime::ZERO);
    let request = match &sent(&mut keeper)[..] {
        [Message::GetHandoff(want), Message::PutHandoff(_)] => want.request,
        other => panic!("{other:?}"),
    };
    let before = state(&keeper, "counters");
    let mut frames = vec![
        answer(request + 1, &[(3, 5, true)], Vec::new()),
        answer(request, &[(4, 5, true)], Vec::new()),
        answer(request, &[(3, 5, true)], vec![entry(4, "a", b"1", 1)]),
        answer(request, &[], vec![entry(3, "a", b"1", 1)]),
        Message::from(GetHandoff { group: name(GROUP), incarnation: 1, coordinator: EPOCH, request, shards: vec![] })
            .encode(),
        vec![0x93, 1, 13, 0],
    ];
    for (group, incarnation, coordinator) in [("g", 1, EPOCH), (GROUP, 2, EPOCH), (GROUP, 1, EPOCH + 1)] {
        let group = name(group);
        frames
            .push(Message::from(HandoffStored { group: group.clone(), incarnation, coordinator, number: 1 }).encode());
        let answer = HandoffEntries { group, incarnation, coordinator, request, reached: vec![], entries: vec![] };
        frames.push(Message::from(answer).encode());
    }
    for frame in &frames {
        keeper.on_message(BootTime::ZERO, frame);
    }
    assert_eq!((state(&keeper, "counters"), keeper.counters().rejected), (before, frames.len() as u64));
    keeper.on_message(BootTime::ZERO, &answer(request, &[(3, 5, true)], Vec::new()));
    assert!(keeper.is_complete(shard(3)));
}

fn any_handoff_entry() -> impl Strategy<Value = HandoffEntry> {
    (0..3_u8, 0..6_u8, 0..3000_usize, 0..50_u64)
        .prop_map(|(index, key, length, at_ns)| entry(index, &format!("{key}"), &vec![key; length], at_ns))
}

proptest! {
    #[test]
    fn stored_entries_are_the_newest_and_a_reader_gets_them_all(
        puts in proptest::collection::vec((1..4_u64, proptest::collection::vec(any_handoff_entry(), 1..6)), 1..60),
    ) {
        let settings = HandoffStoreSettings { bytes: 20_000, bytes_per_group: 10_000, ..HandoffStoreSettings::default() };
        let mut proxy = Proxy::new(settings);
        let groups = ["a", "b", "c"];
        groups.iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
        let mut newest = std::collections::BTreeMap::new();
        let (mut read, mut after) = (std::collections::BTreeMap::new(), [0; 3]);
        for (incarnation, entries) in puts {
            let group = groups[incarnation as usize - 1];
            for entry in &entries {
                let key = (incarnation, entry.shard, entry.key.clone());
                let at = newest.entry(key).or_insert(entry.at_ns);
                *at = entry.at_ns.max(*at);
            }
            proxy.put(group, incarnation, entries);
            // A reader follows the first group.
            proxy.request("a", 1, EPOCH, &[(0, after[0]), (1, after[1]), (2, after[2])]);
            proxy.pass(100 * MILLISECOND);
            groups.iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
            let answer = proxy.answers().pop().unwrap();
            for reached in &answer.reached {
                prop_assert!(reached.is_whole && reached.up_to >= after[reached.shard.index()]);
                after[reached.shard.index()] = reached.up_to;
            }
            for entry in answer.entries {
                let at = read.entry((entry.shard, entry.key)).or_insert(entry.at_ns);
                *at = entry.at_ns.max(*at);
            }
        }
        for index in 0..3 {
            for entry in proxy.read("a", 1, index).0 {
                // An evicted entry may have been put again with an older value.
                let known = read.get(&(entry.shard, entry.key.clone())).copied();
                prop_assert!(known.is_some_and(|known| known >= entry.at_ns));
                prop_assert!(known <= newest.get(&(1, entry.shard, entry.key)).copied());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_change_neither_machine(bytes in proptest::collection::vec(any::<u8>(), 0..300), number in 10..14_u8) {
        let mut proxy = Proxy::new(HandoffStoreSettings::default());
        proxy.renew(GROUP, 1);
        proxy.put(GROUP, 1, vec![entry(3, "a", b"1", 1)]);
        let mut keeper = keeper();
        let (store, kept) = (state(&proxy.store, "rejections"), state(&keeper, "counters"));
        for frame in [bytes.clone(), [&[0x97, 1, number][..], &bytes].concat()] {
            proxy.store.on_message(proxy.now, &peer(1), &frame, &proxy.coordinator);
            keeper.on_message(BootTime::ZERO, &frame);
        }
        prop_assert_eq!(state(&proxy.store, "rejections"), store);
        prop_assert_eq!(state(&keeper, "counters"), kept);
    }
}

/// Passes messages between a reader and the store until the reader has a result.
fn read_templates(
    proxy: &mut Proxy,
    reader: &mut TemplateReader,
    mut each_page: impl FnMut(&mut Proxy),
) -> TemplatesRead {
    loop {
        reader.on_tick(proxy.now);
        if let Some(result) = reader.result() {
            return result;
        }
        while let Some(frame) = reader.poll_output() {
            proxy.store.on_message(proxy.now, &peer(99), &frame, &proxy.coordinator);
        }
        proxy.pass(10 * MILLISECOND);
        while let Some((to, frame)) = proxy.store.poll_output() {
            if to == peer(99) {
                reader.on_message(proxy.now, &frame);
                each_page(proxy);
            }
        }
    }
}

fn reader(proxy: &Proxy) -> TemplateReader {
    TemplateReader::new(Kind::Xflow, proxy.now)
}

fn get_templates(request: u64) -> GetTemplates {
    GetTemplates { kind: Kind::Xflow, request, coordinator: 0, group: None, shard: shard(0), after: 0 }
}

#[test]
fn reader_gets_every_entry_although_some_change_meanwhile() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    for index in 0..SHARDS as u8 {
        let entries = (0..20).map(|key| entry(index, &format!("k{key}"), &[key; 2_000], 1)).collect::<Vec<_>>();
        entries.chunks(10).for_each(|entries| {
            proxy.pass(20 * MILLISECOND);
            proxy.renew(GROUP, 1);
            proxy.put(GROUP, 1, entries.to_vec());
        });
    }
    proxy.outputs();
    let mut reader = reader(&proxy);
    let mut at = 1;
    let result = read_templates(&mut proxy, &mut reader, |proxy| {
        at += 1;
        proxy.renew(GROUP, 1);
        proxy.put(GROUP, 1, vec![entry((at * 7 % 64) as u8, "k3", b"changed", at)]);
    });
    assert_eq!(result, TemplatesRead::Complete);
    let entries: Vec<HandoffEntry> = reader.into_entries().collect();
    assert_eq!(entries.len(), 20 * SHARDS);
    assert!(at > 30, "one page per answer: {at}");
}

#[test]
fn reader_of_a_new_coordinator_waits_until_the_groups_are_known() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    let mut reader = reader(&proxy);
    assert_eq!(read_templates(&mut proxy, &mut reader, |_| {}), TemplatesRead::NoGroup);
    assert!(proxy.coordinator.grace_period_over(proxy.now));
    // A group that keeps nothing.
    proxy.renew(GROUP, 1);
    let mut reader = self::reader(&proxy);
    assert_eq!(read_templates(&mut proxy, &mut reader, |_| {}), TemplatesRead::Complete);
    assert_eq!(reader.into_entries().count(), 0);
}

#[test]
fn reader_begins_again_at_another_coordinator_or_group() {
    let fill = |proxy: &mut Proxy, group: &str, incarnation, value: &[u8]| {
        proxy.renew(group, incarnation);
        let entries = (0..100).map(|key| entry(2, &format!("k{key}"), value, 1)).collect();
        proxy.put(group, incarnation, entries);
        proxy.outputs();
    };
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    (0..30).for_each(|number| fill(&mut proxy, GROUP, number, &[b'a'; 500]));
    let large = (0..200).map(|key| entry(3, &format!("k{key}"), &[b'a'; 300], 1)).collect();
    proxy.put(GROUP, 1, large);
    proxy.outputs();
    let mut reader = reader(&proxy);
    let mut pages = 0;
    let result = read_templates(&mut proxy, &mut reader, |proxy| {
        pages += 1;
        if pages == 1 {
            let now = proxy.now;
            *proxy = Proxy::new(HandoffStoreSettings::default());
            proxy.now = now;
            proxy.store = HandoffStore::new(HandoffStoreSettings::default(), EPOCH + 1, now);
            fill(proxy, "xflow-forwarder.other", 7, b"b");
        }
    });
    assert_eq!((result, pages), (TemplatesRead::Complete, 2));
    let entries: Vec<HandoffEntry> = reader.into_entries().collect();
    assert_eq!(entries.len(), 100);
    assert!(entries.iter().all(|entry| entry.value.as_bytes() == b"b"));
}

#[test]
fn reader_without_an_answer_gives_up() {
    let start = BootTime::ZERO;
    let mut reader = TemplateReader::new(Kind::Xflow, start);
    let mut now = start;
    let mut requests = 0;
    while reader.result().is_none() {
        reader.on_tick(now);
        requests += usize::from(reader.poll_output().is_some());
        now = now.max(reader.next_deadline().min(now + SECOND));
    }
    assert_eq!((reader.result(), requests), (Some(TemplatesRead::Unanswered), 4));
    // One that is always asked to wait.
    let mut reader = TemplateReader::new(Kind::Xflow, start);
    now = start;
    while reader.result().is_none() {
        reader.on_tick(now);
        if let Some(frame) = reader.poll_output() {
            let Ok(Message::GetTemplates(get)) = Message::decode(&frame) else { panic!("{frame:?}") };
            let wait = Templates {
                kind: get.kind,
                request: get.request,
                coordinator: 1,
                outcome: PageOutcome::Wait,
                group: None,
                shard: get.shard,
                after: get.after,
                entries: Vec::new(),
            };
            reader.on_message(now, &Message::from(wait).encode());
        }
        now = reader.next_deadline().min(now + SECOND);
    }
    assert_eq!(reader.result(), Some(TemplatesRead::Late));
}

#[test]
fn reader_that_requests_all_the_time_slows_only_itself() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.pass(LEASE);
    proxy.renew(GROUP, 1);
    for index in 0..40 {
        proxy.put(GROUP, 1, (0..7).map(|key| entry(index, &format!("k{key}"), &[1; 8_000], 1)).collect());
    }
    proxy.outputs();
    let mut honest = reader(&proxy);
    let (mut pages, mut hostile) = (0_u32, 0_u32);
    let began = proxy.now;
    let mut request = 0;
    while honest.result().is_none() {
        honest.on_tick(proxy.now);
        while let Some(frame) = honest.poll_output() {
            proxy.store.on_message(proxy.now, &peer(99), &frame, &proxy.coordinator);
        }
        for _ in 0..1_000 {
            request += 1;
            proxy.tell(66, get_templates(request));
        }
        proxy.pass(10 * MILLISECOND);
        proxy.renew(GROUP, 1);
        // The members are served as before.
        proxy.request(GROUP, 1, EPOCH, &[(3, 0)]);
        let next = || proxy.store.poll_output();
        for (to, frame) in std::iter::from_fn(next).collect::<Vec<_>>() {
            if to == peer(99) {
                pages += 1;
                honest.on_message(proxy.now, &frame);
            } else {
                hostile += u32::from(to == peer(66));
            }
        }
    }
    assert_eq!(honest.result(), Some(TemplatesRead::Complete));
    assert_eq!(honest.into_entries().count(), 280);
    assert!(hostile <= pages + 1, "{hostile} pages for the hostile reader, {pages} for the other");
    let elapsed = proxy.now - began;
    assert!(elapsed <= 30 * MILLISECOND * pages, "{elapsed:?} for {pages} pages");
    assert!(proxy.store.rejections().reader_requests > u64::from(pages) * 900);
}

#[test]
fn readers_beyond_the_limit_are_asked_to_wait() {
    let mut proxy = Proxy::new(HandoffStoreSettings::default());
    proxy.renew(GROUP, 1);
    for reader in 0..100 {
        proxy.tell(1_000 + reader, get_templates(1));
    }
    let waits = proxy.outputs();
    assert_eq!(waits.len(), 36);
    let is_wait = |message: &Message| matches!(message, Message::Templates(page) if page.outcome == PageOutcome::Wait);
    assert!(waits.iter().all(is_wait));
    (0..64).for_each(|_| proxy.pass(10 * MILLISECOND));
    assert_eq!(proxy.outputs().len(), 64);
    assert_eq!(proxy.store.next_deadline().min(proxy.now), proxy.now, "nothing else is due");
}
