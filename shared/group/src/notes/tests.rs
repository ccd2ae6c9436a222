//! Bounds, order, and those who mean no good.

use proptest::prelude::*;
use sekiwake_record::{Kind, Name, SHARDS, Shard};

use super::*;
use crate::{
    Coordinator, CoordinatorSettings, HoldState, LEASE, LEASE_MARGIN, MILLISECOND, Peer, SECOND, ShardStatus,
    wire::{
        HeldNotes, MAX_NOTES_BYTES, Message, Note, NoteKey, NoteValue, Notes, NotesKept, Renew, ShardCursor,
        ShardReached, WantNotes,
    },
};

const GROUP: &str = "xflow-forwarder.default";
const EPOCH: u64 = 77;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn peer(number: u64) -> Peer {
    Peer::new(&number.to_be_bytes()).unwrap()
}

fn shard(index: u8) -> Shard {
    Shard::new(index).unwrap()
}

fn note(index: u8, key: &str, value: &[u8], at_ns: u64) -> Note {
    let (key, value) = (NoteKey::new(key.as_bytes()).unwrap(), NoteValue::new(value).unwrap());
    Note { shard: shard(index), key, value, at_ns }
}

/// All of a machine but its counters, which are the last of its fields.
fn state(machine: &impl std::fmt::Debug, counters: &str) -> String {
    let text = format!("{machine:?}");
    let (state, _) = text.rsplit_once(counters).expect("counters");
    state.to_owned()
}

/// A store, the coordinator that it is beside, and members that are only said to be there.
struct Proxy {
    coordinator: Coordinator,
    store: NoteStore,
    now: u64,
    renewals: u64,
    numbers: u64,
}

impl Proxy {
    fn new(settings: NoteStoreSettings) -> Proxy {
        let coordinator = Coordinator::new(CoordinatorSettings::default(), EPOCH, 0);
        Proxy { coordinator, store: NoteStore::new(settings, EPOCH, 0), now: 0, renewals: 0, numbers: 0 }
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
            one_works: false,
        };
        self.coordinator.on_message(self.now, &peer(incarnation), &Message::from(renew).encode());
    }

    fn pass(&mut self, duration: u64) {
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

    fn put(&mut self, group: &str, incarnation: u64, notes: Vec<Note>) {
        self.numbers += 1;
        self.tell(incarnation, Notes { group: name(group), incarnation, number: self.numbers, notes });
    }

    fn want(&mut self, group: &str, incarnation: u64, coordinator: u64, cursors: &[(u8, u64)]) {
        let shards = cursors.iter().map(|&(index, after)| ShardCursor { shard: shard(index), after }).collect();
        self.numbers += 1;
        let request = self.numbers;
        self.tell(incarnation, WantNotes { group: name(group), incarnation, coordinator, request, shards });
    }

    fn outputs(&mut self) -> Vec<Message> {
        let next = || {
            let (_, frame) = self.store.poll_output()?;
            assert!(frame.len() <= MAX_NOTES_BYTES);
            Some(Message::decode(&frame).unwrap())
        };
        std::iter::from_fn(next).collect()
    }

    fn answers(&mut self) -> Vec<HeldNotes> {
        let answer = |message| match message {
            Message::HeldNotes(held) => Some(held),
            _ => None,
        };
        self.outputs().into_iter().filter_map(answer).collect()
    }

    /// All of a shard, asked for until there is no more, and how many answers that took.
    fn read(&mut self, group: &str, incarnation: u64, index: u8) -> (Vec<Note>, usize) {
        let (mut notes, mut after) = (Vec::new(), 0);
        for answers in 1.. {
            self.want(group, incarnation, EPOCH, &[(index, after)]);
            self.pass(10 * MILLISECOND);
            let held = self.answers().pop().unwrap();
            notes.extend(held.notes);
            after = held.reached[0].up_to;
            if held.reached[0].is_whole {
                return (notes, answers);
            }
        }
        unreachable!()
    }
}

#[test]
fn the_newest_of_a_key_holds_and_of_equals_the_first() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![note(3, "a", b"old", 10), note(3, "b", b"only", 5), note(4, "a", b"elsewhere", 1)]);
    proxy.put(GROUP, 1, vec![note(3, "a", b"older", 9), note(3, "b", b"equal", 5)]);
    proxy.put(GROUP, 1, vec![note(3, "a", b"new", 11)]);
    assert_eq!(proxy.read(GROUP, 1, 3).0, [note(3, "b", b"only", 5), note(3, "a", b"new", 11)]);
    proxy.put(GROUP, 1, vec![note(3, "b", b"", 6)]);
    assert_eq!(proxy.read(GROUP, 1, 3).0, [note(3, "a", b"new", 11), note(3, "b", b"", 6)], "deleted, and said so");
    proxy.put(GROUP, 1, vec![note(3, "b", b"late", 5)]);
    assert_eq!(proxy.read(GROUP, 1, 3).0.len(), 2, "what is deleted does not come back");
    assert_eq!(proxy.store.view().groups[0].notes, 3);
}

#[test]
fn what_is_put_between_two_answers_is_not_missed_and_nothing_comes_twice() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![note(3, "m", b"1", 1), note(3, "z", b"1", 1)]);
    proxy.want(GROUP, 1, EPOCH, &[(3, 0), (5, 0)]);
    proxy.pass(MILLISECOND);
    let held = proxy.answers().pop().unwrap();
    let reached = |index| held.reached.iter().find(|reached| reached.shard == shard(index)).unwrap();
    assert!(held.notes.len() == 2 && reached(3).is_whole && reached(5).is_whole);
    // Before and behind what was had, by key.
    proxy.put(GROUP, 1, vec![note(3, "a", b"2", 2), note(3, "m", b"2", 2)]);
    let cursors = [(3, reached(3).up_to), (5, reached(5).up_to)];
    proxy.want(GROUP, 1, EPOCH, &cursors);
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().pop().unwrap().notes, [note(3, "a", b"2", 2), note(3, "m", b"2", 2)]);
    // Another coordinator's versions say nothing.
    proxy.want(GROUP, 1, EPOCH + 1, &cursors);
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().pop().unwrap().notes.len(), 3);
}

#[test]
fn a_group_over_its_budget_loses_its_oldest_and_others_lose_nothing() {
    let settings = NoteStoreSettings { bytes: 100_000, bytes_per_group: 60_000, ..NoteStoreSettings::default() };
    let mut proxy = Proxy::new(settings);
    ["small", "one", "other"].iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
    proxy.put("small", 1, vec![note(0, "k", &[1; 1000], 1)]);
    for at in 0..100 {
        proxy.put("one", 2, vec![note(0, &format!("{at}"), &[2; 1000], 100 + at)]);
    }
    let of = |proxy: &Proxy, group: &str| {
        proxy.store.view().groups.into_iter().find(|view| view.name.as_str() == group).unwrap()
    };
    let one = of(&proxy, "one");
    assert_eq!((one.notes, one.evicted), (47, 53), "{} bytes", one.bytes);
    let (kept, _) = proxy.read("one", 2, 0);
    assert_eq!(kept.iter().map(|note| note.at_ns).min(), Some(153), "the oldest went first");
    // The shared budget: who has most gives way.
    for at in 0..100 {
        proxy.put("other", 3, vec![note(0, &format!("{at}"), &[3; 1000], 1000 + at)]);
        proxy.pass(10 * MILLISECOND);
    }
    let (small, one, other) = (of(&proxy, "small"), of(&proxy, "one"), of(&proxy, "other"));
    assert_eq!((small.notes, small.evicted), (1, 0));
    assert!(one.notes.abs_diff(other.notes) <= 1 && proxy.store.view().bytes > 98_000, "{one:?} {other:?}");
    assert_eq!(proxy.store.view().evicted, one.evicted + other.evicted);
}

#[test]
fn notes_of_a_group_without_members_live_as_long_as_its_positions() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    let keep = NoteStoreSettings::default().keep;
    assert_eq!(keep, CoordinatorSettings::default().keep_positions);
    proxy.renew(GROUP, 1);
    proxy.put(GROUP, 1, vec![note(3, "a", b"1", 1)]);
    proxy.say(GROUP, 1, true);
    proxy.pass(2 * SECOND);
    assert!(!proxy.coordinator.has_members(&name(GROUP)));
    proxy.pass(keep - 10 * SECOND);
    assert_eq!(proxy.store.view().groups.len(), 1);
    proxy.renew(GROUP, 2);
    assert_eq!(proxy.read(GROUP, 2, 3).0.len(), 1, "the next member has it");
    proxy.say(GROUP, 2, true);
    // It has been granted shards: the coordinator waits for its lease to end.
    proxy.pass(5 * SECOND);
    assert!(!proxy.coordinator.has_members(&name(GROUP)));
    proxy.pass(keep - 10 * SECOND);
    assert_eq!(proxy.store.view().groups.len(), 1, "it counts from when the last one left");
    proxy.pass(20 * SECOND);
    assert_eq!((proxy.store.view().groups.len(), proxy.store.view().bytes), (0, 0));
}

#[test]
fn a_large_shard_comes_in_small_answers_and_a_turn_gives_few_of_them() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    (1..=20).for_each(|incarnation| proxy.renew(GROUP, incarnation));
    for at in 0..128 {
        proxy.put(GROUP, 1, vec![note(9, &format!("{at}"), &[7; 8 << 10], at)]);
    }
    proxy.pass(MILLISECOND);
    let _ = proxy.outputs();
    (1..=20).for_each(|incarnation| proxy.want(GROUP, incarnation, EPOCH, &[(9, 0)]));
    let mut answered = Vec::new();
    for _ in 0..10 {
        assert!(answered.len() == 20 || proxy.store.next_deadline() <= proxy.now);
        proxy.pass(MILLISECOND);
        let answers = proxy.answers();
        let bytes: usize = answers.iter().flat_map(|held| &held.notes).map(|note| note.value.as_bytes().len()).sum();
        assert!(bytes <= 256 << 10, "{bytes} bytes in a turn");
        answered.extend(answers.into_iter().map(|held| held.incarnation));
    }
    assert_eq!(answered, (1..=20).collect::<Vec<u64>>(), "in their order");
    assert!(proxy.store.next_deadline() > proxy.now);
    // Who asks again and again has one turn.
    (0..50).for_each(|_| proxy.want(GROUP, 1, EPOCH, &[(9, 0)]));
    proxy.pass(MILLISECOND);
    assert_eq!(proxy.answers().len(), 1);
    let (notes, answers) = proxy.read(GROUP, 2, 9);
    assert!(notes.len() == 128 && answers >= 17, "{} notes in {answers} answers", notes.len());
}

#[test]
fn whoever_is_no_member_with_a_lease_changes_nothing() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.renew("another", 2);
    proxy.put(GROUP, 1, vec![note(3, "a", b"1", 1)]);
    proxy.pass(MILLISECOND);
    let before = state(&proxy.store, "refusals");
    let notes = |incarnation| {
        let notes = vec![note(3, "a", b"2", 2)];
        Message::from(Notes { group: name(GROUP), incarnation, number: 9, notes }).encode()
    };
    let want = |incarnation| {
        let shards = vec![ShardCursor { shard: shard(3), after: 0 }];
        Message::from(WantNotes { group: name(GROUP), incarnation, coordinator: EPOCH, request: 9, shards }).encode()
    };
    // A stranger, a stranger in a member's name, a member of another group.
    for (from, incarnation) in [(8, 8), (8, 1), (2, 2), (2, 1)] {
        for frame in [notes(incarnation), want(incarnation)] {
            proxy.store.on_message(proxy.now, &peer(from), &frame, &proxy.coordinator);
        }
    }
    assert_eq!((state(&proxy.store, "refusals"), proxy.store.refusals().foreign), (before.clone(), 8));
    // A message for the other side, one that is too large, one that is none.
    let kept = NotesKept { group: name(GROUP), incarnation: 1, coordinator: EPOCH, number: 1 };
    let large = Notes { group: name(GROUP), incarnation: 1, number: 9, notes: vec![note(3, "a", &[0; 8 << 10], 3); 9] };
    for frame in [Message::from(kept).encode(), Message::from(large).encode(), vec![0x93, 1, 10, 0]] {
        proxy.store.on_message(proxy.now, &peer(1), &frame, &proxy.coordinator);
    }
    assert_eq!((state(&proxy.store, "refusals"), proxy.store.refusals().malformed), (before, 3));
    // A member whose lease has run out.
    proxy.now += LEASE + LEASE_MARGIN;
    let before = state(&proxy.store, "refusals");
    proxy.store.on_message(proxy.now, &peer(1), &notes(1), &proxy.coordinator);
    assert_eq!((state(&proxy.store, "refusals"), proxy.store.refusals().foreign), (before, 9));
}

#[test]
fn a_member_that_says_too_much_is_refused_and_another_is_not() {
    let mut proxy = Proxy::new(NoteStoreSettings::default());
    proxy.renew(GROUP, 1);
    proxy.renew(GROUP, 2);
    (0..1000).for_each(|at| proxy.put(GROUP, 1, vec![note(0, "k", b"v", at)]));
    assert_eq!(proxy.store.refusals().notes, 800);
    proxy.put(GROUP, 2, vec![note(1, "k", b"v", 1)]);
    proxy.pass(SECOND);
    (0..1000).for_each(|at| proxy.put(GROUP, 1, vec![note(0, "k", b"v", at)]));
    assert_eq!(proxy.store.refusals().notes, 1600);
    assert_eq!(proxy.store.view().groups[0].notes, 2);
}

#[test]
fn messages_about_notes_are_told_by_their_numbers() {
    use crate::wire::is_about_notes;
    let kept = NotesKept { group: name(GROUP), incarnation: 1, coordinator: EPOCH, number: 1 };
    assert!(is_about_notes(&Message::from(kept).encode()));
    assert!(is_about_notes(&[0x93, 1, 10]) && is_about_notes(&[0x93, 1, 13]));
    assert!(!is_about_notes(&[0x93, 1, 9]) && !is_about_notes(&[0x93, 1, 14]) && !is_about_notes(&[0x93, 2, 10]));
    assert!(!is_about_notes(b"") && !is_about_notes(&[0x93, 1]) && !is_about_notes(b"hello"));
}

fn keeper() -> NoteKeeper {
    let mut keeper = NoteKeeper::new(NoteKeeperSettings::new(name(GROUP)), 1);
    follow(&mut keeper, 0, EPOCH, &[]);
    keeper
}

fn follow(keeper: &mut NoteKeeper, now: u64, coordinator: u64, shards: &[(u8, HoldState, u64)]) {
    let status = |&(shard, state, generation): &(u8, HoldState, u64)| ShardStatus { shard, generation, state };
    keeper.follow(now, coordinator, true, shards.iter().map(status));
}

fn sent(keeper: &mut NoteKeeper) -> Vec<Message> {
    let next = || {
        let frame = keeper.poll_output()?;
        assert!(frame.len() <= MAX_NOTES_BYTES);
        Some(Message::decode(&frame).unwrap())
    };
    std::iter::from_fn(next).collect()
}

fn acknowledge(keeper: &mut NoteKeeper, now: u64, coordinator: u64, number: u64) {
    let kept = NotesKept { group: name(GROUP), incarnation: 1, coordinator, number };
    keeper.on_message(now, &Message::from(kept).encode());
}

fn answer(request: u64, reached: &[(u8, u64, bool)], notes: Vec<Note>) -> Vec<u8> {
    let reached = reached.iter().map(|&(index, up_to, is_whole)| ShardReached { shard: shard(index), up_to, is_whole });
    let reached = reached.collect();
    let held = HeldNotes { group: name(GROUP), incarnation: 1, coordinator: EPOCH, request, reached, notes };
    Message::from(held).encode()
}

#[test]
fn a_note_is_sent_until_it_is_acknowledged_and_a_newer_one_is_not_forgotten_with_it() {
    let mut keeper = keeper();
    assert!(keeper.put(shard(3), b"k", b"one", 1) && keeper.put(shard(3), b"k", b"two", 2));
    assert!(keeper.put(shard(3), b"k", b"older", 1));
    keeper.on_tick(0);
    let [Message::Notes(first)] = &sent(&mut keeper)[..] else { panic!("one message") };
    assert_eq!(first.notes, [note(3, "k", b"two", 2)], "the newest of them");
    keeper.on_tick(SECOND - 1);
    assert_eq!(sent(&mut keeper), []);
    keeper.on_tick(SECOND);
    let [Message::Notes(second)] = &sent(&mut keeper)[..] else { panic!("the same again") };
    assert_eq!((&second.notes, second.number), (&first.notes, first.number + 1));
    assert!(keeper.put(shard(3), b"k", b"three", 3));
    acknowledge(&mut keeper, SECOND, EPOCH, second.number);
    assert_eq!((keeper.waiting(), keeper.counters().kept), (1, 0));
    assert!(keeper.next_deadline() <= SECOND + 20 * MILLISECOND);
    keeper.on_tick(SECOND + 20 * MILLISECOND);
    let [Message::Notes(third)] = &sent(&mut keeper)[..] else { panic!("the newer one") };
    assert_eq!(third.notes, [note(3, "k", b"three", 3)]);
    acknowledge(&mut keeper, SECOND, EPOCH, third.number);
    acknowledge(&mut keeper, SECOND, EPOCH, third.number);
    assert_eq!((keeper.waiting(), keeper.counters().kept, keeper.next_deadline()), (0, 1, u64::MAX));
}

#[test]
fn what_waits_is_bounded_and_sent_little_by_little() {
    let mut settings = NoteKeeperSettings::new(name(GROUP));
    settings.waiting_bytes = 4 << 20;
    let mut keeper = NoteKeeper::new(settings, 1);
    follow(&mut keeper, 0, EPOCH, &[]);
    let taken = (0..1000_u64).filter(|number| keeper.put(shard(0), &number.to_be_bytes(), &[1; 8 << 10], 1)).count();
    assert!((500..512).contains(&taken) && keeper.counters().no_room == 1000 - taken as u64, "{taken}");
    assert!(!keeper.put(shard(0), b"", b"", 1) && !keeper.put(shard(0), &[0; 65], b"", 1));
    assert!(!keeper.put(shard(0), b"k", &[0; (8 << 10) + 1], 1));
    keeper.on_tick(0);
    let [Message::Notes(hello)] = &sent(&mut keeper)[..] else { panic!("one message until it has answered") };
    assert_eq!(hello.notes.len(), 7);
    acknowledge(&mut keeper, 0, EPOCH, hello.number);
    // Nobody acknowledges: no more than four are on their way.
    let mut numbers = Vec::new();
    for millisecond in 1..900 {
        keeper.on_tick(millisecond * MILLISECOND);
        numbers.extend(sent(&mut keeper).into_iter().map(|message| match message {
            Message::Notes(notes) => (millisecond, notes.number),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(numbers.iter().map(|&(at, _)| at).collect::<Vec<_>>(), [20, 40, 60, 80]);
    // Somebody acknowledges all at once: 50 in a second.
    numbers.iter().for_each(|&(_, number)| acknowledge(&mut keeper, 0, EPOCH, number));
    let mut messages = 0;
    for millisecond in 900..1900 {
        keeper.on_tick(millisecond * MILLISECOND);
        for message in sent(&mut keeper) {
            let Message::Notes(notes) = message else { panic!() };
            messages += 1;
            acknowledge(&mut keeper, 0, EPOCH, notes.number);
        }
    }
    assert_eq!(messages, 50);
}

#[test]
fn a_coordinator_that_does_not_know_of_notes_is_asked_ever_more_rarely() {
    // One of the version before takes each of these for a message that is none.
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), EPOCH, 0);
    let mut keeper = keeper();
    let owned: Vec<_> = (0..SHARDS as u8).map(|index| (index, HoldState::Owned, 1)).collect();
    follow(&mut keeper, 0, EPOCH, &owned);
    assert!(keeper.put(shard(0), b"k", b"v", 1));
    let mut at = Vec::new();
    for tenth in 0..6000 {
        let now = tenth * 100 * MILLISECOND;
        if now >= keeper.next_deadline() {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            at.push(tenth / 10);
            coordinator.on_message(now, &peer(1), &frame);
        }
    }
    assert_eq!(at, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363, 423, 483, 543]);
    assert_eq!((coordinator.refusals().malformed, coordinator.poll_output()), (at.len() as u64, None));
    assert!((0..SHARDS as u8).all(|index| !keeper.is_complete(shard(index))) && keeper.incomplete() == SHARDS);
    assert!(keeper.waiting() == 1 && !keeper.is_answered());
    // The next one does, and is told at once.
    follow(&mut keeper, 600 * SECOND, EPOCH + 1, &owned);
    keeper.on_tick(600 * SECOND);
    assert_eq!(sent(&mut keeper).len(), 1);
}

#[test]
fn a_shard_is_complete_when_all_has_come_since_it_is_owned_and_is_taken() {
    let mut keeper = keeper();
    follow(&mut keeper, 0, EPOCH, &[(3, HoldState::Preparing, 0)]);
    keeper.on_tick(0);
    let [Message::WantNotes(want)] = &sent(&mut keeper)[..] else { panic!("it asks when it prepares") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 0 }]);
    keeper.on_message(0, &answer(want.request, &[(3, 5, false)], vec![note(3, "a", b"1", 1)]));
    keeper.on_tick(10 * MILLISECOND);
    let [Message::WantNotes(want)] = &sent(&mut keeper)[..] else { panic!("and goes on") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 5 }]);
    keeper.on_message(0, &answer(want.request, &[(3, 7, true)], vec![note(3, "b", b"1", 1)]));
    assert!(!keeper.is_complete(shard(3)), "two notes have not been taken");
    assert_eq!(std::iter::from_fn(|| keeper.take()).count(), 2);
    assert!(keeper.is_complete(shard(3)));
    // What was asked before it owned does not count.
    follow(&mut keeper, SECOND, EPOCH, &[(3, HoldState::Owned, 9)]);
    assert!(!keeper.is_complete(shard(3)));
    keeper.on_message(SECOND, &answer(want.request, &[(3, 7, true)], Vec::new()));
    assert!(!keeper.is_complete(shard(3)));
    keeper.on_tick(SECOND);
    let [Message::WantNotes(want)] = &sent(&mut keeper)[..] else { panic!("it asks again") };
    assert_eq!(want.shards, [ShardCursor { shard: shard(3), after: 7 }]);
    keeper.on_message(SECOND, &answer(want.request, &[(3, 8, true)], Vec::new()));
    assert!(keeper.is_complete(shard(3)));
    // And now and then for what was late.
    let mut asked = Vec::new();
    for second in 2..60 {
        let now = second * SECOND;
        keeper.on_tick(now);
        for message in sent(&mut keeper) {
            let Message::WantNotes(want) = message else { panic!() };
            asked.push(second);
            keeper.on_message(now, &answer(want.request, &[(3, 8, true)], Vec::new()));
        }
    }
    assert_eq!(asked, [2, 5, 17]);
    assert!(keeper.is_complete(shard(3)) && keeper.next_deadline() == u64::MAX);
    follow(&mut keeper, 60 * SECOND, EPOCH, &[(3, HoldState::Released, 9)]);
    assert!(!keeper.is_complete(shard(3)));
}

#[test]
fn another_coordinator_is_to_be_given_what_was_owned_when_it_came_and_what_it_did_not_acknowledge() {
    let mut keeper = keeper();
    let held = [(3, HoldState::Owned, 1), (4, HoldState::Preparing, 0), (5, HoldState::Releasing, 2)];
    follow(&mut keeper, 0, EPOCH, &held);
    assert_eq!(keeper.next_to_present(), None, "the first one is no other one");
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    acknowledge(&mut keeper, 0, EPOCH, 0);
    keeper.on_tick(0);
    assert_eq!(sent(&mut keeper).len(), 2);
    // Its lease had run out: it has nothing any more, but it knows.
    follow(&mut keeper, 9 * SECOND, EPOCH + 1, &[(3, HoldState::Released, 1)]);
    assert_eq!([(); 3].map(|()| keeper.next_to_present()), [Some(shard(3)), Some(shard(5)), None]);
    acknowledge(&mut keeper, 9 * SECOND, EPOCH, 1);
    assert_eq!((keeper.waiting(), keeper.counters().refused), (1, 1), "the old one's word is worth nothing");
    keeper.on_tick(9 * SECOND);
    let [Message::Notes(notes)] = &sent(&mut keeper)[..] else { panic!("the note again") };
    acknowledge(&mut keeper, 9 * SECOND, EPOCH + 1, notes.number);
    assert_eq!(keeper.waiting(), 0);
}

#[test]
fn without_a_lease_nothing_is_said() {
    let mut keeper = keeper();
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    keeper.follow(0, EPOCH, false, []);
    keeper.on_tick(0);
    assert_eq!((sent(&mut keeper).len(), keeper.next_deadline()), (0, u64::MAX));
}

#[test]
fn answers_that_were_not_asked_for_change_nothing() {
    let mut keeper = keeper();
    follow(&mut keeper, 0, EPOCH, &[(3, HoldState::Owned, 1)]);
    assert!(keeper.put(shard(3), b"k", b"v", 1));
    acknowledge(&mut keeper, 0, EPOCH, 0);
    keeper.on_tick(0);
    let request = match &sent(&mut keeper)[..] {
        [Message::WantNotes(want), Message::Notes(_)] => want.request,
        other => panic!("{other:?}"),
    };
    let before = state(&keeper, "counters");
    let mut frames = vec![
        answer(request + 1, &[(3, 5, true)], Vec::new()),
        answer(request, &[(4, 5, true)], Vec::new()),
        answer(request, &[(3, 5, true)], vec![note(4, "a", b"1", 1)]),
        answer(request, &[], vec![note(3, "a", b"1", 1)]),
        Message::from(WantNotes { group: name(GROUP), incarnation: 1, coordinator: EPOCH, request, shards: vec![] })
            .encode(),
        vec![0x93, 1, 13, 0],
    ];
    for (group, incarnation, coordinator) in [("g", 1, EPOCH), (GROUP, 2, EPOCH), (GROUP, 1, EPOCH + 1)] {
        let group = name(group);
        frames.push(Message::from(NotesKept { group: group.clone(), incarnation, coordinator, number: 1 }).encode());
        let held = HeldNotes { group, incarnation, coordinator, request, reached: vec![], notes: vec![] };
        frames.push(Message::from(held).encode());
    }
    for frame in &frames {
        keeper.on_message(0, frame);
    }
    assert_eq!((state(&keeper, "counters"), keeper.counters().refused), (before, frames.len() as u64));
    keeper.on_message(0, &answer(request, &[(3, 5, true)], Vec::new()));
    assert!(keeper.is_complete(shard(3)));
}

fn any_note() -> impl Strategy<Value = Note> {
    (0..3_u8, 0..6_u8, 0..3000_usize, 0..50_u64)
        .prop_map(|(index, key, length, at_ns)| note(index, &format!("{key}"), &vec![key; length], at_ns))
}

proptest! {
    #[test]
    fn within_small_budgets_whatever_is_held_is_the_newest_and_a_reader_that_follows_has_it(
        puts in proptest::collection::vec((1..4_u64, proptest::collection::vec(any_note(), 1..6)), 1..60),
    ) {
        let settings = NoteStoreSettings { bytes: 20_000, bytes_per_group: 10_000, ..NoteStoreSettings::default() };
        let mut proxy = Proxy::new(settings);
        let groups = ["a", "b", "c"];
        groups.iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
        let mut newest = std::collections::BTreeMap::new();
        let (mut read, mut after) = (std::collections::BTreeMap::new(), [0; 3]);
        for (incarnation, notes) in puts {
            let group = groups[incarnation as usize - 1];
            for note in &notes {
                let key = (incarnation, note.shard, note.key.clone());
                let at = newest.entry(key).or_insert(note.at_ns);
                *at = note.at_ns.max(*at);
            }
            proxy.put(group, incarnation, notes);
            // The first group is followed.
            proxy.want("a", 1, EPOCH, &[(0, after[0]), (1, after[1]), (2, after[2])]);
            proxy.pass(100 * MILLISECOND);
            groups.iter().zip(1..).for_each(|(group, incarnation)| proxy.renew(group, incarnation));
            let held = proxy.answers().pop().unwrap();
            for reached in &held.reached {
                prop_assert!(reached.is_whole && reached.up_to >= after[reached.shard.index()]);
                after[reached.shard.index()] = reached.up_to;
            }
            for note in held.notes {
                let at = read.entry((note.shard, note.key)).or_insert(note.at_ns);
                *at = note.at_ns.max(*at);
            }
        }
        for index in 0..3 {
            for note in proxy.read("a", 1, index).0 {
                // What had to make room may have come again, older.
                let known = read.get(&(note.shard, note.key.clone())).copied();
                prop_assert!(known.is_some_and(|known| known >= note.at_ns));
                prop_assert!(known <= newest.get(&(1, note.shard, note.key)).copied());
            }
        }
    }

    #[test]
    fn any_bytes_leave_both_machines_as_they_were(bytes in proptest::collection::vec(any::<u8>(), 0..300), number in 10..14_u8) {
        let mut proxy = Proxy::new(NoteStoreSettings::default());
        proxy.renew(GROUP, 1);
        proxy.put(GROUP, 1, vec![note(3, "a", b"1", 1)]);
        let mut keeper = keeper();
        let (store, kept) = (state(&proxy.store, "refusals"), state(&keeper, "counters"));
        for frame in [bytes.clone(), [&[0x97, 1, number][..], &bytes].concat()] {
            proxy.store.on_message(proxy.now, &peer(1), &frame, &proxy.coordinator);
            keeper.on_message(0, &frame);
        }
        prop_assert_eq!(state(&proxy.store, "refusals"), store);
        prop_assert_eq!(state(&keeper, "counters"), kept);
    }
}
