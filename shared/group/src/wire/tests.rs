//! Every message of the version before positions were ranges, byte by byte, and messages of this
//! version as that one reads them. The bytes were written by that version, except those of the
//! messages for readers, which it does not know.

use sekiwake_record::{Kind, Name, Shard, Topic};

use super::*;
use crate::{Peer, Stream};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn tap() -> Stream {
    Stream::new(&name("tap"), 5)
}

fn topic(shard: u8) -> Topic {
    Topic { kind: Kind::Syslog, shard: Shard::new(shard).unwrap() }
}

fn position(shard: u8, sequence: u64) -> Position {
    Position { topic: topic(shard), sequence: Number(sequence) }
}

fn covered() -> Vec<Covered> {
    let ranges = [0, 40, 300, 400].map(Number).to_vec();
    vec![Covered { topic: topic(2), ranges, presenter: Some(name("m")) }]
}

fn groups() -> Vec<GroupCoverage> {
    vec![GroupCoverage { group: name("g"), age_ns: 70, covered: covered() }]
}

fn doubts() -> Vec<Doubt> {
    let ends = vec![StreamPositions { stream: tap(), positions: vec![position(2, 350)] }];
    let doubt = |member, label| Doubt {
        member,
        label,
        age_ns: 90,
        is_unknowable: member == 0,
        topics: vec![topic(2), topic(3)],
        ends: ends.clone(),
    };
    vec![doubt(8, Some(name("former"))), doubt(0, None)]
}

fn destination(address: &str, port: u16, transport: Transport) -> Destination {
    Destination::new(address.parse().unwrap(), port, transport)
}

fn entry() -> HandoffEntry {
    let (key, value) = (HandoffKey::new(b"k").unwrap(), HandoffValue::new(b"v").unwrap());
    HandoffEntry { shard: topic(2).shard, key, value, at_ns: 70 }
}

/// A message with or without what this version has appended.
struct Version {
    appends: bool,
}

impl Version {
    /// Every message, with its bytes in the version before.
    fn messages(&self) -> [(Message, &'static str); 25] {
        let address = destination("198.51.100.7", 514, Transport::Udp).address;
        [
            (
                Message::from(Renew {
                    group: name("g"),
                    kind: Kind::Syslog,
                    incarnation: 7,
                    label: name("m"),
                    renewal: 3,
                    lowest_protocol: 1,
                    highest_protocol: 1,
                    leaving: false,
                    coordinator: 9,
                    holdings: vec![Holding { shard: topic(2).shard, generation: Number(4), phase: Phase::Owned }],
                    commits: vec![StreamPositions { stream: tap(), positions: vec![position(2, 300)] }],
                    single_active: true,
                    coverage: self.said(|| vec![StreamCoverage { stream: tap(), covered: covered() }]),
                    age_ns: self.said(|| 70),
                    destinations_digest: self.said(|| 80),
                    doubts: self.said(doubts),
                    former_lease_age_ns: self.said(|| 60),
                }),
                "9e0101a1670007a16d030101c2099193020401919292a374617005919202cd012cc3",
            ),
            (
                Message::from(Repair {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    max_bytes: 1000,
                    ranges: vec![Range { topic: topic(2), from: Number(10), to: Number(20) }],
                    locate: vec![topic(3)],
                    max_age_ns: 500,
                    group: self.said(|| Some(name("g"))),
                }),
                "990103c4000892a374617005cd03e89193020a149103cd01f4",
            ),
            (
                Message::from(Advertise {
                    stream: tap(),
                    number: 6,
                    ended: false,
                    wants_commits: true,
                    coordinator: 9,
                    list_version: 2,
                    extents: vec![Extent { topic: topic(2), oldest: Number(10), next: Number(300) }],
                    groups: self.said(groups),
                    former_age_ns: self.said(|| 60),
                    left_alone: self.said(|| vec![LeftAlone { address, port: 514, datagrams: 90 }]),
                }),
                "99010492a37461700506c2c309029193020acd012c",
            ),
            (
                Message::from(Done {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    outcome: Outcome::Gone,
                    retained: vec![position(2, 10)],
                    located: vec![position(3, 40)],
                    covered: self.said(covered),
                }),
                "980106c4000892a374617005039192020a91920328",
            ),
            (
                Message::from(Grant {
                    group: name("g"),
                    incarnation: 7,
                    coordinator: 9,
                    number: 5,
                    renewal: 3,
                    protocol: 1,
                    registration: 2,
                    assignments: vec![Assignment { shard: topic(2).shard, generation: Number(4), role: Role::Release }],
                    starts: vec![StreamStarts {
                        stream: tap(),
                        starts: vec![Start { topic: topic(2), sequence: Number(300), next: Number(310) }],
                    }],
                    known_registration: 2,
                    coverage: self.said(|| vec![StreamCoverage { stream: tap(), covered: covered() }]),
                    age_ns: self.said(|| 70),
                    differing: self.said(|| vec![name("other")]),
                    doubts: self.said(doubts),
                }),
                "9c0107a1670709050301029193020402919292a374617005919302cd012ccd013602",
            ),
            (
                Message::from(Notice {
                    stream: tap(),
                    coordinator: 9,
                    number: 6,
                    complete: true,
                    list_version: 2,
                    has_list: true,
                    destinations: vec![destination("198.51.100.7", 514, Transport::Udp)],
                    live_kinds: 1,
                    commits: vec![position(2, 300)],
                    groups: self.said(groups),
                    counted: self.said(|| vec![destination("198.51.100.7", 514, Transport::Udp)]),
                }),
                "9b010992a3746170050906c302c39193c41000000000000000000000ffffc6336407cd02020001919202cd012c",
            ),
            (
                Message::from(Register {
                    group: name("g"),
                    incarnation: 7,
                    registration: 2,
                    destinations: vec![
                        destination("198.51.100.7", 514, Transport::Udp),
                        destination("2001:db8::7", 6514, Transport::Tcp),
                    ],
                }),
                "960102a16707029293c41000000000000000000000ffffc6336407cd02020093c41020010db8000000000000000000000007cd197201",
            ),
            (
                Message::from(Repaired {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    topic: topic(2),
                    header: Frame(vec![0x91, 1]),
                    body: Frame(vec![0x90]),
                }),
                "980105c4000892a37461700502c4029101c40190",
            ),
            (
                Message::from(Rejected { group: name("g"), incarnation: 7, reason: RejectionReason::Full }),
                "950108a1670702",
            ),
            (
                Message::from(PutHandoff { group: name("g"), incarnation: 7, number: 3, entries: vec![entry()] }),
                "96010aa1670703919402c4016bc4017646",
            ),
            (
                Message::from(GetHandoff {
                    group: name("g"),
                    incarnation: 7,
                    coordinator: 9,
                    request: 4,
                    shards: vec![ShardCursor { shard: topic(2).shard, after: 6 }],
                }),
                "97010ba16707090491920206",
            ),
            (
                Message::from(HandoffStored { group: name("g"), incarnation: 7, coordinator: 9, number: 3 }),
                "96010ca167070903",
            ),
            (
                Message::from(HandoffEntries {
                    group: name("g"),
                    incarnation: 7,
                    coordinator: 9,
                    request: 4,
                    reached: vec![ShardReached { shard: topic(2).shard, up_to: 6, is_whole: true }],
                    entries: vec![entry()],
                }),
                "98010da16707090491930206c3919402c4016bc4017646",
            ),
            (
                Message::from(GetTemplates {
                    kind: Kind::Xflow,
                    request: 4,
                    coordinator: 9,
                    group: Some(name("g")),
                    shard: topic(2).shard,
                    after: 6,
                }),
                "98010e010409a1670206",
            ),
            (
                Message::from(Templates {
                    kind: Kind::Xflow,
                    request: 4,
                    coordinator: 9,
                    outcome: PageOutcome::More,
                    group: None,
                    shard: topic(2).shard,
                    after: 6,
                    entries: vec![entry()],
                }),
                "9a010f01040900a00206919402c4016bc4017646",
            ),
            (
                Message::from(OfferStatus {
                    service: name("s"),
                    group: Some(name("g")),
                    member: name("m"),
                    incarnation: 7,
                }),
                "960110a173a167a16d07",
            ),
            (Message::from(StatusWanted { coordinator: 9, is_wanted: true }), "94011109c3"),
            (
                Message::from(Status {
                    incarnation: 7,
                    parts: vec![StatusPart { part: name("p"), text: StatusText(b"{}".to_vec()) }],
                }),
                "940112079192a170c4027b7d",
            ),
            (Message::from(GetStreams { request: 4 }), "93011304"),
            (
                Message::from(Streams { request: 4, coordinator: 9, is_complete: true, streams: vec![tap()] }),
                "9601140409c39192a374617005",
            ),
            (
                Message::from(GetRecent {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    max_bytes: 1000,
                    ranges: vec![Range { topic: topic(2), from: Number(10), to: Number(20) }],
                    locate: vec![topic(3)],
                    since_ns: 500,
                }),
                "990115c4000892a374617005cd03e89193020a149103cd01f4",
            ),
            (
                Message::from(Recent {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    batches: vec![RecentBatch {
                        topic: topic(2),
                        from: Number(10),
                        header: Frame(vec![0x91, 1]),
                        body: Frame(vec![0x90]),
                    }],
                }),
                "960116c4000892a3746170059194020ac4029101c40190",
            ),
            (
                Message::from(RecentEnd {
                    requester: Peer::default(),
                    request: 8,
                    stream: tap(),
                    outcome: RecentOutcome::More,
                    retained: vec![position(2, 10)],
                    located: vec![Range { topic: topic(3), from: Number(10), to: Number(20) }],
                }),
                "980117c4000892a374617005019192020a9193030a14",
            ),
            (
                Message::from(RegisterClient {
                    client: name("r"),
                    incarnation: 7,
                    number: 3,
                    leaving: true,
                    destinations: vec![destination("198.51.100.7", 514, Transport::Udp)],
                }),
                "970118a1720703c39193c41000000000000000000000ffffc6336407cd020200",
            ),
            (
                Message::from(ClientRegistered {
                    incarnation: 7,
                    coordinator: 9,
                    number: 3,
                    outcome: ClientOutcome::Acknowledged,
                }),
                "96011907090301",
            ),
        ]
    }

    fn said<T: Default>(&self, appended: impl FnOnce() -> T) -> T {
        if self.appends { appended() } else { T::default() }
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What follows the head of the array.
fn elements(frame: &[u8]) -> &[u8] {
    if frame[0] == 0xdc { &frame[3..] } else { &frame[1..] }
}

#[test]
fn messages_of_the_version_before_are_read() {
    for (message, hex) in (Version { appends: false }).messages() {
        assert_eq!(Message::decode(&bytes(hex)).as_ref(), Ok(&message));
    }
}

#[test]
fn version_before_reads_messages_of_this_one() {
    for (message, hex) in (Version { appends: true }).messages() {
        let frame = message.encode();
        assert_eq!(Message::decode(&frame).as_ref(), Ok(&message));
        // It reads the elements that it knows and skips the rest.
        let before = bytes(hex);
        let known = elements(&before);
        assert_eq!(&elements(&frame)[..known.len()], known, "{message:?}");
    }
}
