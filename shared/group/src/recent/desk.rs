//! The coordinator's side of requests for recent records: who may ask a publisher, and when.
//!
//! ```text
//! GetStreams, GetRecent ─▶ one per reader and stream waits ─ readers in turn ─▶ is the budget positive, and are fewer
//!                                                                  than 4 requests to the stream open? ─▶ publisher
//! reader ◀─ unchanged ── was it requested, within the bytes requested? ◀─ Recent, RecentEnd ── publisher
//!        ◀─ Silent ── no answer for 2 s
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    BootTime, Coordinator, Peer, Stream,
    publisher::budget::RepairBudget,
    wire::{GetRecent, GetStreams, Message, RecentAnswer, RecentEnd, RecentOutcome, Streams},
};

/// Maximum bytes per second that publishers send to all readers together.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// Maximum bytes of answers to one request.
const MAX_REQUEST_BYTES: u64 = 512 << 10;
/// What a request costs at least, so that all readers together have 512 per second.
const LEAST_COST: u64 = 64 << 10;
/// What an answer may exceed its request by: a batch of one large record, and the messages'
/// envelopes.
const ANSWER_MARGIN: u64 = 256 << 10;
/// The most readers that wait or have open requests.
const MAX_READERS: usize = 64;
/// The most requests of one reader that wait, and that are open.
const MAX_REQUESTS: usize = 8;
/// The most open requests to one stream.
const MAX_OPEN_PER_STREAM: usize = 4;
/// How long a publisher may be silent before a request counts as not answered.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Rejected messages, by reason. A rejection changes nothing for other parties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentRejections {
    /// Malformed or too large messages, and messages that are not for a coordinator.
    pub malformed: u64,
    /// Answers that were not requested, or not from the stream's publisher.
    pub foreign: u64,
    /// Requests of readers that a newer request of the same reader has replaced, or for which there
    /// was no room.
    pub reader_requests: u64,
}

impl RecentRejections {
    /// The counts with their label values in metrics.
    pub fn by_reason(&self) -> [(&'static str, u64); 3] {
        [("malformed", self.malformed), ("foreign", self.foreign), ("reader_requests", self.reader_requests)]
    }
}

/// Stands beside the coordinator, which knows the streams. Its methods are those of a
/// [`HandoffStore`](crate::HandoffStore).
#[derive(Debug)]
pub struct RecentDesk {
    epoch: u64,
    /// Those with requests.
    readers: BTreeMap<Peer, Reader>,
    /// Those with waiting requests. The first one is next.
    turns: VecDeque<Peer>,
    budget: RepairBudget,
    /// When a waiting request may be passed on: never while all wait for open ones.
    pass_at: BootTime,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    rejections: RecentRejections,
}

#[derive(Debug, Default)]
struct Reader {
    waiting: VecDeque<Request>,
    open: Vec<Open>,
}

#[derive(Debug)]
enum Request {
    Streams(u64),
    Recent(GetRecent),
}

impl Request {
    fn stream(&self) -> Option<&Stream> {
        match self {
            Request::Streams(_) => None,
            Request::Recent(get) => Some(&get.stream),
        }
    }
}

/// A request that was passed on.
#[derive(Debug)]
struct Open {
    stream: Stream,
    request: u64,
    publisher: Peer,
    /// When it was passed on, or answered last.
    heard_at: BootTime,
    /// What it may cost, and has cost.
    reserved: u64,
    used: u64,
}

impl RecentDesk {
    /// A desk without requests. `epoch` is the coordinator's.
    pub fn new(epoch: u64, now: BootTime) -> RecentDesk {
        RecentDesk {
            epoch,
            readers: BTreeMap::new(),
            turns: VecDeque::new(),
            budget: RepairBudget::new(BYTES_PER_SECOND, now),
            pass_at: BootTime::NEVER,
            outputs: VecDeque::new(),
            rejections: RecentRejections::default(),
        }
    }

    /// Takes a message for which [`is_recent`](crate::wire::is_recent) holds.
    pub fn on_message(&mut self, now: BootTime, peer: &Peer, frame: &[u8]) {
        match RecentAnswer::peek(frame) {
            Ok(None) => {}
            Ok(Some(answer)) => return self.on_answer(now, peer, &answer, frame),
            Err(_) => return self.rejections.malformed += 1,
        }
        match Message::decode(frame) {
            Ok(Message::GetStreams(GetStreams { request })) => self.on_request(peer, Request::Streams(request)),
            Ok(Message::GetRecent(get)) => self.on_request(peer, Request::Recent(get)),
            _ => self.rejections.malformed += 1,
        }
    }

    /// Passes on the requests whose turn it is, and ends those that no publisher answers.
    pub fn on_tick(&mut self, now: BootTime, coordinator: &Coordinator) {
        self.budget.refill(now);
        self.end_silent(now);
        self.pass_at = BootTime::NEVER;
        // Readers that have to wait for open requests keep their turns.
        let mut blocked = VecDeque::new();
        while let Some(peer) = self.turns.pop_front() {
            if !self.budget.has_room() {
                self.turns.push_front(peer);
                self.pass_at = self.budget.next_room();
                break;
            }
            let Some(request) = self.next_request(&peer) else {
                blocked.push_back(peer);
                continue;
            };
            self.pass_on(now, &peer, request, coordinator);
            match self.readers.get(&peer) {
                Some(reader) if !reader.waiting.is_empty() => self.turns.push_back(peer),
                Some(reader) if reader.open.is_empty() => drop(self.readers.remove(&peer)),
                _ => {}
            }
        }
        blocked.append(&mut self.turns);
        self.turns = blocked;
    }

    /// When [`RecentDesk::on_tick`] has something to do. It may change with every message.
    pub fn next_deadline(&self) -> BootTime {
        let open = self.readers.values().flat_map(|reader| &reader.open);
        open.fold(self.pass_at, |deadline, open| deadline.min(open.heard_at + SILENT_AFTER))
    }

    /// The next message, and its receiver.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// Rejected messages.
    pub fn rejections(&self) -> RecentRejections {
        self.rejections
    }

    /// Checks the bounds, for the fuzz target.
    pub(crate) fn check(&self) {
        assert!(self.readers.len() <= MAX_READERS, "bounded number of readers");
        for (peer, reader) in &self.readers {
            assert!(reader.waiting.len() <= MAX_REQUESTS && reader.open.len() <= MAX_REQUESTS, "bounded requests");
            assert!(!(reader.waiting.is_empty() && reader.open.is_empty()), "only readers with requests are kept");
            let turns = self.turns.iter().filter(|turn| *turn == peer).count();
            assert_eq!(turns, usize::from(!reader.waiting.is_empty()), "a reader has one turn");
        }
        assert!(self.turns.iter().all(|peer| self.readers.contains_key(peer)));
    }

    fn on_request(&mut self, peer: &Peer, request: Request) {
        let is_known = self.readers.contains_key(peer);
        if !is_known && self.readers.len() >= MAX_READERS {
            self.rejections.reader_requests += 1;
            return self.refuse(peer, request, RecentOutcome::Wait);
        }
        let reader = self.readers.entry(peer.clone()).or_default();
        let same = reader.waiting.iter_mut().find(|waiting| waiting.stream() == request.stream());
        if let Some(same) = same {
            *same = request;
            self.rejections.reader_requests += 1;
            return;
        }
        if reader.waiting.len() >= MAX_REQUESTS {
            self.rejections.reader_requests += 1;
            return;
        }
        if reader.waiting.is_empty() {
            self.turns.push_back(peer.clone());
        }
        reader.waiting.push_back(request);
        self.pass_at = BootTime::ZERO;
    }

    /// Takes a reader's next request that need not wait for an open one.
    fn next_request(&mut self, peer: &Peer) -> Option<Request> {
        let reader = self.readers.get(peer)?;
        let is_free = |request: &Request| {
            let Some(stream) = request.stream() else { return true };
            let of_stream = |open: &&Open| open.stream == *stream;
            let all = self.readers.values().flat_map(|reader| &reader.open);
            reader.open.len() < MAX_REQUESTS
                && !reader.open.iter().any(|open| open.stream == *stream)
                && all.filter(of_stream).count() < MAX_OPEN_PER_STREAM
        };
        let index = reader.waiting.iter().position(is_free)?;
        self.readers.get_mut(peer)?.waiting.remove(index)
    }

    fn pass_on(&mut self, now: BootTime, peer: &Peer, request: Request, coordinator: &Coordinator) {
        let get = match request {
            Request::Streams(request) => {
                self.budget.spend(LEAST_COST);
                let is_complete = coordinator.grace_period_over(now);
                let streams = coordinator.live_streams(now);
                return self.send(peer, Streams { request, coordinator: self.epoch, is_complete, streams });
            }
            Request::Recent(get) => get,
        };
        let Some(publisher) = coordinator.live_publisher(now, &get.stream) else {
            self.budget.spend(LEAST_COST);
            let is_known = coordinator.grace_period_over(now);
            let outcome = if is_known { RecentOutcome::Gone } else { RecentOutcome::Wait };
            return self.refuse(peer, Request::Recent(get), outcome);
        };
        let max_bytes = get.max_bytes.min(MAX_REQUEST_BYTES);
        let reserved = max_bytes.max(LEAST_COST);
        self.budget.spend(reserved);
        if let Some(reader) = self.readers.get_mut(peer) {
            let (stream, request) = (get.stream.clone(), get.request);
            let publisher = publisher.clone();
            reader.open.push(Open { stream, request, publisher, heard_at: now, reserved, used: 0 });
        }
        self.send(&publisher, GetRecent { requester: peer.clone(), max_bytes, ..get });
    }

    fn on_answer(&mut self, now: BootTime, peer: &Peer, answer: &RecentAnswer, frame: &[u8]) {
        let Some(reader) = self.readers.get_mut(&answer.requester) else {
            return self.rejections.foreign += 1;
        };
        let is_asked =
            |open: &Open| open.stream == answer.stream && open.request == answer.request && open.publisher == *peer;
        let Some(index) = reader.open.iter().position(is_asked) else { return self.rejections.foreign += 1 };
        let open = &mut reader.open[index];
        open.used += frame.len() as u64;
        if open.used > open.reserved + ANSWER_MARGIN {
            return self.rejections.foreign += 1;
        }
        open.heard_at = now;
        if answer.is_end {
            let open = reader.open.swap_remove(index);
            self.close(&answer.requester, &open);
        }
        self.outputs.push_back((answer.requester.clone(), frame.to_vec()));
    }

    fn end_silent(&mut self, now: BootTime) {
        let mut silent = Vec::new();
        for (peer, reader) in &mut self.readers {
            let ended = reader.open.extract_if(.., |open| now >= open.heard_at + SILENT_AFTER);
            silent.extend(ended.map(|open| (peer.clone(), open)));
        }
        for (peer, open) in silent {
            self.close(&peer, &open);
            let Open { stream, request, .. } = open;
            self.end(&peer, request, stream, RecentOutcome::Silent);
        }
    }

    /// After a request has ended and was removed.
    fn close(&mut self, peer: &Peer, open: &Open) {
        self.budget.refund(open.reserved.saturating_sub(open.used.max(LEAST_COST)));
        if self.readers.get(peer).is_some_and(|reader| reader.open.is_empty() && reader.waiting.is_empty()) {
            self.readers.remove(peer);
        }
        if !self.turns.is_empty() {
            self.pass_at = BootTime::ZERO;
        }
    }

    fn refuse(&mut self, peer: &Peer, request: Request, outcome: RecentOutcome) {
        match request {
            Request::Streams(request) => {
                self.send(peer, Streams { request, coordinator: self.epoch, is_complete: false, streams: Vec::new() });
            }
            Request::Recent(get) => self.end(peer, get.request, get.stream, outcome),
        }
    }

    fn end(&mut self, peer: &Peer, request: u64, stream: Stream, outcome: RecentOutcome) {
        let (retained, located) = (Vec::new(), Vec::new());
        self.send(peer, RecentEnd { requester: peer.clone(), request, stream, outcome, retained, located });
    }

    fn send(&mut self, peer: &Peer, message: impl Into<Message>) {
        self.outputs.push_back((peer.clone(), message.into().encode()));
    }
}
