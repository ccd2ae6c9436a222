//! Lists, repairs and their budget.

use sekiwake_record::{Name, Shard};

use super::*;
use crate::{
    Peer,
    time::SECOND,
    wire::{Destination, Transport},
};

fn at(nanos: u64) -> BootTime {
    BootTime::from_nanos(nanos)
}

fn topic() -> Topic {
    Topic { kind: Kind::Syslog, shard: Shard::new(0).unwrap() }
}

/// A publisher with this many batches of 10 records in 1,000 bytes.
fn publisher(repair_bytes_per_second: u64, batches: u64) -> (PublisherControl, Retention<Vec<u8>>) {
    let stream = Stream::new(&Name::new("tap").unwrap(), 5);
    let mut retention = Retention::new([64 << 20; Kind::ALL.len()]);
    for n in 0..batches {
        let batch = Retained {
            first_sequence: n * 10,
            count: 10,
            first_captured_at_ns: 0,
            last_captured_at_ns: 0,
            published_at: BootTime::ZERO,
            body: vec![0; 1000],
        };
        retention.store(topic(), batch);
    }
    (PublisherControl::new(PublisherControlSettings { stream, repair_bytes_per_second }, at(0)), retention)
}

fn notice(list_version: u64, complete: bool, ports: &[u16]) -> Notice {
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    Notice {
        stream: Stream::new(&Name::new("tap").unwrap(), 5),
        coordinator: 9,
        number: 1,
        complete,
        list_version,
        has_list: true,
        destinations: ports.iter().map(|&port| Destination::new(address, port, Transport::Udp)).collect(),
        live_kinds: 0,
        commits: Vec::new(),
        groups: Vec::new(),
        counted: Vec::new(),
    }
}

fn repair(requester: u8, max_bytes: u64, to: u64) -> Vec<u8> {
    let repair = Repair {
        requester: Peer::new(&[requester]).unwrap(),
        request: 1,
        stream: Stream::new(&Name::new("tap").unwrap(), 5),
        max_bytes,
        ranges: vec![Range { topic: topic(), from: Number(0), to: Number(to) }],
        locate: Vec::new(),
        max_age_ns: 0,
        group: None,
    };
    Message::from(repair).encode()
}

fn outputs(control: &mut PublisherControl) -> Vec<Message> {
    std::iter::from_fn(|| control.poll_output()).map(|frame| Message::decode(&frame).unwrap()).collect()
}

/// The version that the newest advertisement acknowledges, if there is one.
fn acknowledged(control: &mut PublisherControl, now: BootTime, retention: &Retention<Vec<u8>>) -> Option<u64> {
    control.on_tick(now, retention);
    outputs(control).into_iter().rev().find_map(|message| match message {
        Message::Advertise(advertise) => Some(advertise.list_version),
        _ => None,
    })
}

#[test]
fn list_is_acknowledged_as_soon_as_it_is_applied() {
    let (mut control, mut retention) = publisher(1 << 20, 1);
    assert_eq!((acknowledged(&mut control, at(0), &retention), control.list().number), (Some(0), 0));
    control.on_message(at(10), &Message::from(notice(3, true, &[514])).encode(), &mut retention);
    assert_eq!((control.list().number, control.list().destinations.len()), (1, 1));
    assert_eq!(acknowledged(&mut control, at(0) + SECOND, &retention), Some(0));
    assert!(!control.may_publish());
    control.applied(at(10) + SECOND, 1);
    assert_eq!(control.next_deadline(), at(10) + SECOND);
    assert_eq!(acknowledged(&mut control, at(10) + SECOND, &retention), Some(3));
    assert!(control.may_publish());
}

#[test]
fn each_of_two_lists_is_acknowledged_when_applied() {
    let (mut control, mut retention) = publisher(1 << 20, 1);
    for (version, port) in [(3, 1), (4, 2)] {
        control.on_message(at(10), &Message::from(notice(version, true, &[port])).encode(), &mut retention);
    }
    control.applied(at(20), 1);
    assert_eq!(acknowledged(&mut control, at(20), &retention), Some(3));
    control.applied(at(30), 99);
    assert_eq!(acknowledged(&mut control, at(30), &retention), Some(4));
}

#[test]
fn unchanged_list_is_applied_and_incomplete_one_only_adds() {
    let (mut control, mut retention) = publisher(1 << 20, 1);
    control.on_message(at(10), &Message::from(notice(1, false, &[])).encode(), &mut retention);
    control.applied(at(10), 1);
    assert!(control.list().number == 1 && !control.may_publish(), "empty and incomplete");
    control.on_message(at(20), &Message::from(notice(2, true, &[])).encode(), &mut retention);
    assert!(control.list().number == 1 && control.may_publish());
    control.on_message(at(30), &Message::from(notice(3, true, &[1, 2])).encode(), &mut retention);
    let other = Notice { coordinator: 10, ..notice(1, false, &[3]) };
    control.on_message(at(40), &Message::from(other).encode(), &mut retention);
    assert_eq!(control.list().destinations.len(), 3);
    control.applied(at(50), 3);
    assert_eq!(acknowledged(&mut control, at(50), &retention), Some(1), "of the current coordinator");
}

#[test]
fn answers_wait_for_the_socket_and_advertisements_overtake() {
    let (mut control, mut retention) = publisher(1 << 30, 1000);
    control.on_tick(at(0), &retention);
    outputs(&mut control);
    control.on_message(at(10), &repair(1, 4 << 20, 10_000), &mut retention);
    (10..20).for_each(|nanos| control.on_tick(at(nanos), &retention));
    assert!(control.next_deadline() >= at(0) + SECOND, "nothing to do until the socket takes some");
    control.on_tick(at(0) + SECOND, &retention);
    let answers = outputs(&mut control);
    assert_eq!(answers.len(), 1 + MAX_QUEUED);
    assert!(matches!(answers[0], Message::Advertise(_)));
    assert!(control.next_deadline() <= at(0) + SECOND);
    let mut retransmitted = MAX_QUEUED;
    for nanos in 0..100 {
        control.on_tick(at(nanos) + SECOND, &retention);
        retransmitted += outputs(&mut control).iter().filter(|message| matches!(message, Message::Repaired(_))).count();
    }
    assert_eq!(retransmitted, 1000);
}

#[test]
fn flood_of_requests_leaves_few_messages() {
    let (mut control, mut retention) = publisher(1 << 30, 1000);
    for requester in 0..200 {
        (0..50).for_each(|_| control.on_message(at(0), &repair(requester, 4 << 20, 10_000), &mut retention));
    }
    control.on_tick(at(0), &retention);
    assert!(control.jobs.len() <= MAX_JOBS && control.outputs.len() <= 2 * MAX_QUEUED);
}

#[test]
fn small_budget_is_kept_and_used() {
    for rate in [1, 100, 999, 12_345] {
        let (mut control, mut retention) = publisher(rate, 100);
        control.on_message(at(0), &repair(1, 4 << 20, 1000), &mut retention);
        let mut now = at(0);
        let mut wakes = 0;
        while now < at(0) + 3000 * SECOND && control.retransmitted_bytes() < 100_000 {
            control.on_tick(now, &retention);
            outputs(&mut control);
            now = control.next_deadline().max(now);
            wakes += 1;
        }
        // A debt of one batch, and the initial burst of a tenth of a second.
        let seconds = (now - at(0)).as_secs();
        let most = rate * (seconds + 1) + 1000 + rate / 10 + 1;
        let least = (rate * seconds).min(100_000).saturating_sub(1000);
        assert!((least..=most).contains(&control.retransmitted_bytes()), "{rate}: {}", control.retransmitted_bytes());
        assert!(wakes < 7000, "{rate}: {wakes}");
    }
}

#[test]
fn request_smaller_than_a_batch_gets_one() {
    let (mut control, mut retention) = publisher(1 << 20, 3);
    control.on_message(at(0), &repair(1, 10, 30), &mut retention);
    control.on_tick(at(0), &retention);
    let answers = outputs(&mut control);
    assert!(matches!(&answers[1], Message::Repaired(_)));
    assert!(matches!(&answers[2], Message::Done(done) if done.outcome == Outcome::More));
}
