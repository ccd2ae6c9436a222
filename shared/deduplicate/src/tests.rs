use std::{collections::BTreeSet, net::Ipv4Addr};

use proptest::prelude::*;
use sekiwake_record::{Flags, Format, Name, Origin, Vlans};

use super::*;

const SECOND: u64 = 1_000_000_000;
const DURATION: u64 = 2 * SECOND;
/// The capture clocks are not near zero.
const START: u64 = 1_000 * SECOND;

/// A generator of numbers, so that a seed is a whole test.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// A record as a member receives it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    arrival: u64,
    view: usize,
    captured: u64,
    /// Which of the texts, and the identification: equal datagrams have both in common.
    text: (u8, u16),
    /// The datagram.
    number: usize,
}

/// What a device sent and views have seen.
struct Traffic {
    sent: Vec<(u8, u16)>,
    seen: Vec<Seen>,
    skews: Vec<i64>,
    views: usize,
    is_complete: bool,
}

/// A device repeats one to three texts, with or without identification, and two or three views see
/// them: with loss, late starts, an outage, other clocks, and repairs that come late.
fn traffic(seed: u64) -> Traffic {
    let numbers = &mut Numbers(seed);
    let period = numbers.one_of(&[SECOND / 1_000, SECOND / 20, SECOND / 2, SECOND, 3 * SECOND]);
    let (texts, is_identified) = (numbers.one_of(&[1, 1, 3]), numbers.below(3) == 0);
    let mut now = START + SECOND;
    let mut sent = Vec::new();
    for number in 0..(20 * SECOND / period).min(400) {
        now += match numbers.below(3) {
            0 => period / 10 + numbers.below(2 * period),
            _ => period,
        };
        sent.push((now, (numbers.below(texts) as u8, if is_identified { number as u16 + 1 } else { 0 })));
    }
    let views = numbers.one_of(&[2, 2, 3]);
    let losses_are_possible = numbers.below(2) == 0;
    let mut is_complete = true;
    let (mut seen, mut skews) = (Vec::new(), Vec::new());
    for view in 0..views {
        let (mut loss, mut start, mut down) = (0, 0, (0, 0));
        if losses_are_possible {
            loss = numbers.one_of(&[0, 0, 10, 100, 500]);
            start = numbers.one_of(&[START, START, START + 5 * SECOND]);
            down.0 = START + (5 + numbers.below(10)) * SECOND;
            down.1 = down.0 + numbers.one_of(&[0, 0, 0, 6]) * SECOND;
        }
        let most = DURATION * 9 / 10 / if views == 2 { 1 } else { 2 };
        let skew = if view == 0 { 0 } else { numbers.below(2 * most) as i64 - most as i64 };
        skews.push(skew);
        let mut latest = 0;
        for (number, &(at, text)) in sent.iter().enumerate() {
            let is_lost = at < start || (down.0..down.1).contains(&at) || numbers.below(1_000) < loss;
            is_complete &= !is_lost;
            // Order holds within a view, also after a repair.
            let longest = if numbers.below(100) == 0 { SECOND * 3 / 2 } else { SECOND / 50 };
            let delay = numbers.below(longest);
            if !is_lost {
                latest = (at + delay).max(latest);
                seen.push(Seen { arrival: latest, view, captured: at.saturating_add_signed(skew), text, number });
            }
        }
    }
    seen.sort_by_key(|seen| (seen.arrival, seen.captured));
    Traffic { sent: sent.into_iter().map(|(_, text)| text).collect(), seen, skews, views, is_complete }
}

/// What the model remembers of a delivered datagram.
struct Remembered {
    text: (u8, u16),
    captured: u64,
    views: BTreeSet<usize>,
}

/// The rule without any bound: which records are delivered.
fn model(seen: &[Seen]) -> Vec<bool> {
    let mut remembered: Vec<Remembered> = Vec::new();
    let decide = |seen: &Seen| {
        let fits = |known: &&mut Remembered| {
            known.text == seen.text
                && !known.views.contains(&seen.view)
                && known.captured.abs_diff(seen.captured) <= DURATION
        };
        if let Some(known) = remembered.iter_mut().find(fits) {
            known.views.insert(seen.view);
            return false;
        }
        let views = BTreeSet::from([seen.view]);
        remembered.push(Remembered { text: seen.text, captured: seen.captured, views });
        true
    };
    seen.iter().map(decide).collect()
}

fn record(payload: &[u8], ip_id: Option<u32>) -> Record<'_> {
    Record {
        captured_at_ns: 0,
        source: Ipv4Addr::new(198, 51, 100, 7).into(),
        source_port: 40_000,
        destination: Ipv4Addr::new(203, 0, 113, 1).into(),
        destination_port: 514,
        format: Format::Rfc3164,
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 64,
        origin: Some(Origin { ip_id, interface: 0 }),
    }
}

fn shard() -> Shard {
    Shard::new(5).unwrap()
}

fn stream(view: usize) -> Stream {
    Stream::new(&Name::new(&format!("tap-{view}")).unwrap(), 1)
}

/// A member with this state.
struct Member {
    state: Deduplicator,
    delivery: u32,
}

impl Member {
    fn new(max_bytes: usize) -> Member {
        let duration = Duration::from_nanos(DURATION);
        // Numbers of deliveries wrap.
        Member {
            state: Deduplicator::new(DeduplicateSettings { duration, max_bytes, seed: 3 }),
            delivery: u32::MAX - 100,
        }
    }

    fn take(&mut self, seen: &Seen) -> bool {
        let now = BootTime::from_nanos(seen.arrival);
        self.delivery = self.delivery.wrapping_add(1);
        let view = self.state.view(now, &stream(seen.view), 0).unwrap();
        let key = self.state.key(&record(&[seen.text.0], Some(seen.text.1.into()))).unwrap();
        let (captured_at_ns, delivery) = (seen.captured, self.delivery);
        let verdict =
            self.state.observe(key, Sighting { view, shard: shard(), captured_at_ns, delivery, is_past: false });
        self.state.expire(now);
        verdict == Verdict::Deliver
    }

    fn announce(&mut self, now: u64, view: usize, clock: u64, is_behind: bool) {
        let behind = if is_behind { 1 << shard().index() } else { 0 };
        let progress = StreamProgress { stream: stream(view), ended: false, clock_ns: Some(clock), behind };
        self.state.announced(BootTime::from_nanos(now), &progress);
        self.state.expire(BootTime::from_nanos(now));
    }

    /// Takes everything, with an announcement per second and view.
    fn run(&mut self, traffic: &Traffic) -> Vec<bool> {
        let mut announced = START;
        let mut delivered = Vec::new();
        for (index, seen) in traffic.seen.iter().enumerate() {
            while announced <= seen.arrival {
                for view in 0..traffic.views {
                    let skew = traffic.skews[view];
                    let is_behind = traffic.seen[index..]
                        .iter()
                        .take_while(|later| later.arrival < announced + 2 * SECOND)
                        .any(|later| later.view == view && later.captured.saturating_add_signed(-skew) <= announced);
                    self.announce(announced, view, announced.saturating_add_signed(skew), is_behind);
                }
                announced += SECOND;
            }
            delivered.push(self.take(seen));
        }
        delivered
    }
}

fn count(of: (u8, u16), all: impl Iterator<Item = (u8, u16)>) -> usize {
    all.filter(|text| *text == of).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounded_state_decides_as_the_model_does(seed: u64) {
        let traffic = traffic(seed);
        let mut member = Member::new(64 << 20);
        prop_assert_eq!(member.run(&traffic), model(&traffic.seen));
        prop_assert_eq!(member.state.counters(), Counters { apart: member.state.counters().apart, ..Counters::default() });
    }

    #[test]
    fn never_fewer_than_the_best_view_and_never_more_than_sent(seed: u64) {
        let traffic = traffic(seed);
        let delivered = Member::new(64 << 20).run(&traffic);
        for text in BTreeSet::from_iter(traffic.sent.iter().copied()) {
            let of_view = |view| count(text, traffic.seen.iter().filter(|seen| seen.view == view).map(|seen| seen.text));
            let best = (0..traffic.views).map(of_view).max().unwrap_or(0);
            let arrived = traffic.seen.iter().zip(&delivered).filter(|(_, delivered)| **delivered);
            let arrived = count(text, arrived.map(|(seen, _)| seen.text));
            let sent = count(text, traffic.sent.iter().copied());
            prop_assert!(best <= arrived && arrived <= sent, "best view {}, arrived {}, sent {}", best, arrived, sent);
            prop_assert!(!traffic.is_complete || arrived == sent, "complete: arrived {}, sent {}", arrived, sent);
        }
    }

    #[test]
    fn identified_datagrams_arrive_once_if_any_view_has_seen_them(seed: u64) {
        let traffic = traffic(seed);
        prop_assume!(traffic.sent[0].1 != 0);
        let delivered = Member::new(64 << 20).run(&traffic);
        let mut arrived: Vec<usize> =
            traffic.seen.iter().zip(&delivered).filter(|(_, delivered)| **delivered).map(|(seen, _)| seen.number).collect();
        arrived.sort_unstable();
        let seen = BTreeSet::from_iter(traffic.seen.iter().map(|seen| seen.number));
        prop_assert_eq!(arrived, Vec::from_iter(seen));
    }

    #[test]
    fn without_memory_more_arrive_but_never_fewer(seed: u64) {
        let traffic = traffic(seed);
        let mut member = Member::new(0);
        let delivered = member.run(&traffic);
        prop_assert!(member.state.len() <= 1_024);
        let expected = model(&traffic.seen);
        let arrived = |of: &[bool]| of.iter().filter(|delivered| **delivered).count();
        prop_assert!(arrived(&delivered) >= arrived(&expected));
        prop_assert!(member.state.counters().evicted > 0 || delivered == expected);
    }
}

/// A view shows what another one has delivered before this member owned the shard.
#[test]
fn past_of_a_shard_is_remembered_and_not_counted() {
    let mut member = Member::new(1 << 20);
    let mut seen = Seen { arrival: START, view: 0, captured: START, text: (1, 0), number: 0 };
    let now = BootTime::from_nanos(START);
    let view = member.state.view(now, &stream(0), 0).unwrap();
    let key = member.state.key(&record(&[1], Some(0))).unwrap();
    let sighting = Sighting { view, shard: shard(), captured_at_ns: START, delivery: 9, is_past: true };
    assert_eq!(member.state.observe(key, sighting), Verdict::Deliver);
    seen.view = 1;
    assert!(!member.take(&seen));
    // The shard has moved, and back.
    member.state.forget_shards(1 << shard().index());
    assert!(member.take(&seen) && member.state.len() == 1);
}

#[test]
fn long_chain_of_equal_datagrams_is_exact_and_quick() {
    let mut member = Member::new(64 << 20);
    let text = (1, 0);
    let mut arrived = 0;
    // The second view is 0.9 s behind: 90,000 datagrams.
    for number in 0..300_000_u64 {
        let at = START + number * 10_000;
        arrived += usize::from(member.take(&Seen { arrival: at, view: 0, captured: at, text, number: 0 }));
        if let Some(behind) = number.checked_sub(90_000) {
            let captured = START + behind * 10_000;
            arrived += usize::from(member.take(&Seen { arrival: at, view: 1, captured, text, number: 0 }));
        }
    }
    assert_eq!(arrived, 300_000);
    assert!(member.state.len() < 300_000, "what both have passed is forgotten");
}

#[test]
fn idle_view_keeps_nothing() {
    let mut member = Member::new(64 << 20);
    for second in 0..20 {
        let now = START + second * SECOND;
        member.announce(now, 0, now, false);
        member.announce(now, 1, now, false);
        for part in 0..100 {
            let at = now + part * SECOND / 100;
            let text = (0, (second * 100 + part) as u16 + 1);
            assert!(member.take(&Seen { arrival: at, view: 0, captured: at, text, number: 0 }));
        }
        assert!(member.state.len() <= 500, "two seconds, and the announcement's age and margin");
    }
    let only = member.state.views().map(|(_, _, counters)| counters.only).sum::<u64>();
    assert!((1_500..=2_000).contains(&only), "{only} that one view has shown");
    assert_eq!(member.state.counters(), Counters::default());
}

#[test]
fn silent_connection_ends_no_view() {
    let mut member = Member::new(64 << 20);
    let seen = |arrival, view, captured, number: u16| Seen { arrival, view, captured, text: (0, number), number: 0 };
    for (view, is_delivered) in [(0, true), (1, false)] {
        assert_eq!(member.take(&seen(START, view, START, 1)), is_delivered);
    }
    // The proxy was unavailable for a minute; each view then sends what it has kept.
    let after = START + 60 * SECOND;
    for (view, is_delivered) in [(0, true), (1, false)] {
        for number in 2..1_000 {
            let captured = START + u64::from(number) * SECOND / 20;
            assert_eq!(member.take(&seen(after, view, captured, number)), is_delivered, "{number}");
        }
    }
}

#[test]
fn clocks_too_far_apart_are_noticed() {
    let mut member = Member::new(1 << 20);
    let text = (0, 7);
    assert!(member.take(&Seen { arrival: START, view: 0, captured: START, text, number: 0 }));
    assert!(member.take(&Seen { arrival: START, view: 1, captured: START - DURATION - 5, text, number: 0 }));
    assert_eq!(member.state.counters().apart, 1);
    assert_eq!(member.state.newest_apart(), Duration::from_nanos(DURATION + 5));
    // A device may repeat what has no identification.
    let text = (0, 0);
    assert!(member.take(&Seen { arrival: START, view: 0, captured: START, text, number: 0 }));
    assert!(member.take(&Seen { arrival: START, view: 1, captured: START + 2 * DURATION, text, number: 0 }));
    assert_eq!(member.state.counters().apart, 1);
}

#[test]
fn views_beyond_the_limit_replace_those_that_have_ended() {
    let mut member = Member::new(1 << 20);
    let now = BootTime::from_nanos(START);
    for view in 0..64 {
        assert!(member.state.view(now, &stream(view), 0).is_some());
    }
    assert!(member.state.view(now, &stream(64), 0).is_none());
    assert_eq!(member.state.counters().without_view, 1);
    let text = (0, 7);
    assert!(member.take(&Seen { arrival: START, view: 3, captured: START, text, number: 0 }));
    let ended = StreamProgress { stream: stream(3), ended: true, clock_ns: None, behind: 0 };
    member.state.announced(now, &ended);
    assert!(
        member.take(&Seen { arrival: START, view: 64, captured: START, text, number: 0 }),
        "the new view showed nothing"
    );
    assert_eq!(member.state.views().count(), 64);
}

#[test]
fn key_has_what_copies_have_in_common() {
    let state = Member::new(0).state;
    let one = record(b"text", Some(7));
    let key = state.key(&one);
    let routed = Record { dscp_ttl: 63, vlans: Vlans::from_iter([5]), captured_at_ns: 9, ..one.clone() };
    let tunnelled =
        Record { flags: Flags::DECAPSULATED, origin: Some(Origin { ip_id: Some(7), interface: 4 }), ..one.clone() };
    assert!(key.is_some() && state.key(&routed) == key && state.key(&tunnelled) == key);
    let others = [
        Record { source_port: 1, ..one.clone() },
        Record { destination_port: 1, ..one.clone() },
        Record { source: Ipv4Addr::LOCALHOST.into(), ..one.clone() },
        Record { destination: Ipv4Addr::LOCALHOST.into(), ..one.clone() },
        record(b"text", Some(8)),
        record(b"text", None),
        record(b"texts", Some(7)),
    ];
    assert!(others.iter().all(|other| state.key(other) != key));
    assert_eq!(state.key(&Record { origin: None, ..one }), None, "an earlier version does not say enough");
}

/// Two captures of 200,000 datagrams per second from 10,000 sources. Prints what a record costs:
/// `cargo test --release -p sekiwake-deduplicate cost -- --nocapture`.
#[test]
fn memory_is_bounded_and_cost_small_at_200000_per_second() {
    const RATE: u64 = 200_000;
    const BATCH: u64 = 100;
    let settings = DeduplicateSettings { duration: Duration::from_millis(200), max_bytes: 64 << 20, seed: 3 };
    let mut state = Deduplicator::new(settings);
    let seconds = if cfg!(debug_assertions) { 1 } else { 10 };
    let mut payload = [b'x'; 200];
    let (mut delivered, mut most, mut delivery) = (0, 0, 0);
    let began_at = std::time::Instant::now();
    for batch in 0..seconds * RATE / BATCH {
        for view in 0..2 {
            delivery += 1;
            let now = START + batch * BATCH * SECOND / RATE;
            let time = BootTime::from_nanos(now);
            let of_view = stream(view);
            for number in batch * BATCH..(batch + 1) * BATCH {
                payload[..8].copy_from_slice(&number.to_be_bytes());
                let source = Ipv4Addr::from_bits(0xc612_0000 + (number % 10_000) as u32).into();
                let record = Record { source, ..record(&payload, Some(number as u32 & 0xffff)) };
                let key = state.key(&record).unwrap();
                let view = state.view(time, &of_view, 0).unwrap();
                let shard = Shard::of(source);
                let captured_at_ns = START + number * SECOND / RATE;
                let sighting = Sighting { view, shard, captured_at_ns, delivery, is_past: false };
                delivered += u64::from(state.observe(key, sighting) == Verdict::Deliver);
            }
            state.expire(time);
            most = state.memory_bytes().max(most);
        }
    }
    let records = 2 * seconds * RATE;
    let cost = began_at.elapsed().as_nanos() as u64 / records;
    println!("{cost} ns per record, {} KiB at most, {} entries", most >> 10, state.len());
    assert_eq!((delivered, state.counters()), (records / 2, Counters::default()));
    assert!(most <= 16 << 20, "{most} bytes");
}
