//! Single machines: limits, and parties that do not answer.

use std::time::Duration;

use sekiwake_record::{Kind, Name, Topic};

use super::*;
use crate::{
    BootTime, Coordinator, CoordinatorSettings, Peer, Retained, Retention, Stream,
    time::{MILLISECOND, SECOND},
    wire::{
        Advertise, Frame, GetRecent, GetStreams, Message, Number, Range, Recent, RecentBatch, RecentEnd, RecentOutcome,
        Streams,
    },
};

fn stream() -> Stream {
    Stream::new(&Name::new("wire").unwrap(), 7)
}

fn topic() -> Topic {
    Topic::all().next().unwrap()
}

fn peer(number: u8) -> Peer {
    Peer::new(&[number]).unwrap()
}

const PUBLISHER: u8 = 200;

fn get(request: u64, stream: Stream, to: u64) -> GetRecent {
    GetRecent {
        requester: Peer::default(),
        request,
        stream,
        max_bytes: u64::MAX,
        ranges: vec![Range { topic: topic(), from: Number(0), to: Number(to) }],
        locate: Vec::new(),
        since_ns: 0,
    }
}

/// A coordinator that knows one publisher, and a desk beside it.
struct Proxy {
    now: BootTime,
    coordinator: Coordinator,
    desk: RecentDesk,
    advertisements: u64,
}

impl Proxy {
    fn new() -> Proxy {
        let now = BootTime::ZERO + SECOND;
        let coordinator = Coordinator::new(CoordinatorSettings::default(), 9, now);
        let mut proxy = Proxy { now, coordinator, desk: RecentDesk::new(9, now), advertisements: 0 };
        proxy.advertise();
        proxy
    }

    fn settled() -> Proxy {
        let mut proxy = Proxy::new();
        (0..4).for_each(|_| proxy.pass(SECOND));
        proxy
    }

    fn advertise(&mut self) {
        self.advertisements += 1;
        let advertise = Advertise {
            stream: stream(),
            number: self.advertisements,
            ended: false,
            wants_commits: false,
            coordinator: 0,
            list_version: 0,
            extents: Vec::new(),
            groups: Vec::new(),
            former_age_ns: 0,
            left_alone: Vec::new(),
        };
        self.coordinator.on_message(self.now, &peer(PUBLISHER), &Message::from(advertise).encode());
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.advertise();
    }

    fn send(&mut self, from: u8, message: impl Into<Message>) {
        self.desk.on_message(self.now, &peer(from), &message.into().encode());
    }

    /// What the desk sends now.
    fn outputs(&mut self) -> Vec<(Peer, Message)> {
        if self.now >= self.desk.next_deadline() {
            self.desk.on_tick(self.now, &self.coordinator);
        }
        self.desk.check();
        std::iter::from_fn(|| self.desk.poll_output())
            .map(|(peer, frame)| (peer, Message::decode(&frame).unwrap()))
            .collect()
    }

    fn end(&mut self, reader: u8, request: u64) {
        let end = RecentEnd {
            requester: peer(reader),
            request,
            stream: stream(),
            outcome: RecentOutcome::Complete,
            retained: Vec::new(),
            located: Vec::new(),
        };
        self.send(PUBLISHER, end);
    }
}

fn outcome(outputs: &[(Peer, Message)]) -> Option<RecentOutcome> {
    match outputs {
        [(_, Message::RecentEnd(end))] => Some(end.outcome),
        _ => None,
    }
}

#[test]
fn desk_says_who_does_not_answer() {
    let unknown = Stream::new(&Name::new("other").unwrap(), 1);
    let mut proxy = Proxy::new();
    proxy.send(1, get(1, unknown.clone(), 10));
    assert_eq!(outcome(&proxy.outputs()), Some(RecentOutcome::Wait), "in the grace period");
    proxy.send(1, GetStreams { request: 2 });
    let outputs = proxy.outputs();
    assert!(matches!(&outputs[..], [(_, Message::Streams(Streams { is_complete: false, .. }))]), "{outputs:?}");
    let mut proxy = Proxy::settled();
    proxy.send(1, get(1, unknown, 10));
    assert_eq!(outcome(&proxy.outputs()), Some(RecentOutcome::Gone));
    proxy.send(1, GetStreams { request: 2 });
    let streams = Streams { request: 2, coordinator: 9, is_complete: true, streams: vec![stream()] };
    assert_eq!(proxy.outputs(), [(peer(1), Message::from(streams))]);
    proxy.send(1, get(3, stream(), 10));
    let passed = GetRecent { requester: peer(1), max_bytes: 512 << 10, ..get(3, stream(), 10) };
    assert_eq!(proxy.outputs(), [(peer(PUBLISHER), Message::from(passed))]);
    proxy.pass(SECOND);
    assert_eq!(proxy.outputs(), []);
    proxy.pass(SECOND);
    assert_eq!(outcome(&proxy.outputs()), Some(RecentOutcome::Silent));
    // It comes too late now.
    proxy.end(1, 3);
    assert_eq!((proxy.outputs(), proxy.desk.rejections().foreign), (Vec::new(), 1));
}

#[test]
fn flood_of_one_reader_leaves_turns_to_the_others() {
    let mut proxy = Proxy::settled();
    for request in 0..1_000 {
        proxy.send(1, get(request, stream(), 10));
    }
    proxy.send(2, get(1, stream(), 10));
    let passed: Vec<Peer> = proxy
        .outputs()
        .into_iter()
        .map(|(_, message)| match message {
            Message::GetRecent(get) => get.requester,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((passed, proxy.desk.rejections().reader_requests), (vec![peer(1), peer(2)], 999));
    // One request to a stream at a time.
    proxy.send(1, get(2_000, stream(), 10));
    assert_eq!(proxy.outputs(), []);
    proxy.end(1, 999);
    let outputs = proxy.outputs();
    assert!(matches!(&outputs[..], [(_, Message::RecentEnd(_)), (_, Message::GetRecent(_))]), "{outputs:?}");
    // Four requests to a stream, and 64 readers.
    for reader in 3..=64 {
        proxy.send(reader, get(1, stream(), 10));
    }
    assert_eq!(proxy.outputs().len(), 2);
    proxy.send(65, get(1, stream(), 10));
    assert_eq!(outcome(&proxy.outputs()), Some(RecentOutcome::Wait));
    // Answers beyond the request are not passed on, nor those of another peer.
    let rejected = proxy.desk.rejections().foreign;
    let body = Frame(vec![0; 900 << 10]);
    let batch = RecentBatch { topic: topic(), from: Number(0), header: Frame(Vec::new()), body };
    let recent = Recent { requester: peer(2), request: 1, stream: stream(), batches: vec![batch] };
    proxy.send(PUBLISHER, recent.clone());
    proxy.send(7, recent);
    assert_eq!((proxy.outputs(), proxy.desk.rejections().foreign), (Vec::new(), rejected + 2));
}

#[test]
fn requests_of_all_readers_share_one_budget() {
    let mut proxy = Proxy::settled();
    let mut passed = 0;
    let mut request = 0;
    for _ in 0..1_000 {
        proxy.pass(MILLISECOND);
        for reader in 1..=3 {
            request += 1;
            proxy.send(reader, get(request, stream(), 10));
        }
        for (_, message) in proxy.outputs() {
            let Message::GetRecent(get) = message else { continue };
            passed += 1;
            // The answer is as large as it may be.
            let body = Frame(vec![0; get.max_bytes as usize]);
            let batch = RecentBatch { topic: topic(), from: Number(0), header: Frame(Vec::new()), body };
            let GetRecent { requester, request, stream, .. } = get;
            let recent = Recent { requester: requester.clone(), request, stream, batches: vec![batch] };
            proxy.send(PUBLISHER, recent);
            proxy.end(requester.as_bytes()[0], request);
        }
    }
    // A second of 32 MiB in requests of 512 KiB, and what may be sent in one burst.
    assert!((64..=64 + 8).contains(&passed), "{passed}");
}

#[test]
fn publisher_answers_within_its_budget_and_says_what_is_not_retained() {
    let now = BootTime::ZERO + SECOND;
    let mut retention = Retention::new([1 << 20; Kind::ALL.len()]);
    for batch in 0..200_u64 {
        let body = vec![0; 10_000];
        let (first_sequence, at_ns) = (batch * 10, batch * 100);
        retention.store(
            topic(),
            Retained {
                first_sequence,
                count: 10,
                first_captured_at_ns: at_ns,
                last_captured_at_ns: at_ns,
                published_at: now,
                body,
            },
        );
    }
    let oldest = retention.oldest_sequence(topic());
    assert!(oldest > 0);
    let mut answers = RecentAnswers::new(stream(), now);
    let wanted = GetRecent { max_bytes: 500_000, locate: vec![topic()], since_ns: 15_000, ..get(5, stream(), 2_000) };
    answers.on_message(&Message::from(wanted).encode(), &retention);
    let mut next = None;
    let end = loop {
        answers.on_tick(now, &retention);
        match Message::decode(&answers.poll_output().unwrap()).unwrap() {
            Message::Recent(recent) => {
                for batch in recent.batches {
                    let header = sekiwake_record::Header::decode(&batch.header.0).unwrap();
                    let expected = next.unwrap_or((0, oldest));
                    assert_eq!((batch.from.0, header.first_sequence), expected);
                    next = Some((header.next_sequence(), header.next_sequence()));
                }
            }
            Message::RecentEnd(end) => break end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((end.outcome, end.retained.len()), (RecentOutcome::More, 1));
    assert_eq!(
        (end.retained[0].sequence.0, &end.located[..]),
        (oldest, &[Range { topic: topic(), from: Number(1_500), to: Number(2_000) }][..])
    );
    // A flood of requests is answered at 32 MiB/s.
    let mut bytes = 0;
    let mut clock = now;
    for request in 10..10_010_u64 {
        clock += Duration::from_micros(100);
        answers.on_message(&Message::from(get(request, stream(), 2_000)).encode(), &retention);
        answers.on_tick(clock, &retention);
        bytes += std::iter::from_fn(|| answers.poll_output()).map(|frame| frame.len() as u64).sum::<u64>();
    }
    assert!(bytes < (32 << 20) + (4 << 20), "{bytes}");
}

/// A live batch of ten records, which is its first sequence number.
fn live(reader: &mut RecentReader<u64>, now: BootTime, first: u64) {
    reader.on_live(now, (&stream(), topic()), first, 10, 100, first);
}

fn delivered(reader: &mut RecentReader<u64>) -> Vec<u64> {
    std::iter::from_fn(|| reader.poll_delivery())
        .map(|delivery| match delivery {
            RecentDelivery::Live { batch, skip } => batch + u64::from(skip),
            RecentDelivery::Retransmitted { first_sequence, .. } => first_sequence,
        })
        .collect()
}

#[test]
fn reader_goes_on_live_without_an_answer() {
    let now = BootTime::ZERO + SECOND;
    let settings = RecentReaderSettings::new(vec![topic()], 0, 350);
    let mut reader = RecentReader::new(settings.clone(), now);
    live(&mut reader, now, 100);
    assert_eq!(delivered(&mut reader), []);
    let late = now + 4 * SECOND;
    assert!(reader.next_deadline() <= late);
    reader.on_tick(late);
    assert_eq!(delivered(&mut reader), [100]);
    assert_eq!(reader.poll_missing(), Some(Missing { stream: None, part: MissingPart::NoAnswer }));
    assert!(reader.is_over());
    // A stream that begins later is live at once.
    let other = Stream::new(&Name::new("other").unwrap(), 1);
    reader.on_live(late, (&other, topic()), 0, 10, 100, 7);
    assert_eq!(delivered(&mut reader), [7]);
    assert!(reader.is_over());
    assert_eq!(reader.take_lost(), [0; 3]);
    // Nor does it hold more than it may.
    let mut reader = RecentReader::new(settings, now);
    (0..3).for_each(|batch| live(&mut reader, now, batch * 10));
    assert_eq!((delivered(&mut reader), reader.poll_missing()), (Vec::new(), None));
    live(&mut reader, now, 30);
    assert_eq!(delivered(&mut reader), [0, 10, 20, 30]);
    assert_eq!(reader.poll_missing(), Some(Missing { stream: Some(stream()), part: MissingPart::NoRoom }));
}

#[test]
fn record_that_arrives_twice_is_delivered_once() {
    let now = BootTime::ZERO + SECOND;
    let settings = RecentReaderSettings::new(vec![topic()], 0, 1_000);
    let mut reader = RecentReader::new(settings, now);
    let mut requests = Vec::new();
    let mut answer = |reader: &mut RecentReader<u64>, message: Message| {
        reader.on_message(now, &message.encode());
        reader.on_tick(now);
        let frames = std::iter::from_fn(|| reader.poll_output());
        requests.extend(frames.map(|frame| Message::decode(&frame).unwrap()));
        requests.pop()
    };
    let streams = Streams { request: 1, coordinator: 9, is_complete: true, streams: vec![stream()] };
    reader.on_tick(now);
    let Some(Message::GetRecent(locate)) = answer(&mut reader, streams.into()) else { panic!("no request") };
    assert_eq!((locate.locate, locate.ranges, locate.max_bytes), (vec![topic()], Vec::new(), 0));
    live(&mut reader, now, 20);
    let end = |request: u64, located: Vec<Range>| RecentEnd {
        requester: Peer::default(),
        request,
        stream: stream(),
        outcome: RecentOutcome::Complete,
        retained: Vec::new(),
        located,
    };
    let located = vec![Range { topic: topic(), from: Number(5), to: Number(35) }];
    let Some(Message::GetRecent(fetch)) = answer(&mut reader, end(locate.request, located).into()) else {
        panic!("no request")
    };
    assert_eq!(fetch.ranges, [Range { topic: topic(), from: Number(5), to: Number(20) }]);
    let mut header = Vec::new();
    sekiwake_record::Header {
        stream_name: "wire",
        stream_epoch: 7,
        first_sequence: 0,
        count: 25,
        first_captured_at_ns: 0,
        last_captured_at_ns: 0,
    }
    .encode(&mut header);
    let batch = RecentBatch { topic: topic(), from: Number(5), header: Frame(header), body: Frame(Vec::new()) };
    let recent =
        Recent { requester: Peer::default(), request: fetch.request, stream: stream(), batches: vec![batch; 2] };
    reader.on_message(now, &Message::from(recent).encode());
    let first = reader.poll_delivery();
    assert!(matches!(first, Some(RecentDelivery::Retransmitted { first_sequence: 0, skip: 5, count: 25, .. })));
    assert_eq!(reader.poll_delivery(), Some(RecentDelivery::Live { batch: 20, skip: 5 }));
    live(&mut reader, now, 30);
    assert_eq!(delivered(&mut reader), [30]);
    // What was published meanwhile is missing until it arrives.
    let Some(Message::GetRecent(_)) = answer(&mut reader, end(fetch.request, Vec::new()).into()) else {
        // Nothing is missing, and the stream is live after two announcements.
        for _ in 0..2 {
            assert!(!reader.is_over());
            reader.on_announced(now, &stream(), [(topic(), 40)], false);
            reader.on_tick(now);
        }
        assert!(reader.is_over());
        live(&mut reader, now, 45);
        assert_eq!((delivered(&mut reader), reader.take_lost()[topic().kind.index()]), (vec![45], 5));
        return;
    };
    panic!("nothing is missing");
}
