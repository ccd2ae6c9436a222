//! A reader's side of recent records: requests them, and puts them in order with live ones.
//!
//! ```text
//! stream   Locating: where do records of that time begin? ─▶ Fetching: what is missing below the live records ─▶ Live
//! topic    [ delivered ▸ cursor ) … missing … [ held live batches )       a live batch at the cursor is delivered at once
//! ```
//!
//! The shell subscribes first. A topic's live batches are held until everything before them has
//! been delivered, so that each record is delivered once and a source's records are in order. A
//! stream is live when nothing is missing and two announcements have confirmed that. Where
//! something goes wrong, its held batches are delivered, and [`Missing`] says what is not.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sekiwake_record::{Header, Kind, Topic};

use crate::{
    BootTime, MAX_NUMBER, Stream,
    mutants::Mutants,
    wire::{
        GetRecent, GetStreams, MAX_STREAMS, Message, Number, Range, Recent, RecentBatch, RecentEnd, RecentOutcome,
        Streams,
    },
};

/// Maximum bytes of answers that one request asks for.
const REQUEST_BYTES: u64 = 512 << 10;
/// The most streams with open requests.
const MAX_OPEN: usize = 4;
/// How long to wait for an answer about the streams before it is requested again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long to wait for the first answer. The connection may have to be made first.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// How long a request may be without an answer. The proxy says earlier that a publisher is silent;
/// this is for a proxy that restarts, and for one whose readers have to take turns.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The pause before a request that the proxy had no time for is repeated.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a stream may be unknown to the proxy. It may have begun a moment ago.
const UNKNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How long to wait for announcements of a stream from which nothing is missing.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
/// The announcements after which a stream is live: at the time of the first one, the subscriptions
/// to its topics may not have been in effect.
const ANNOUNCEMENTS: u32 = 2;
/// Requests to a stream that may fail in a row.
const MAX_FAILURES: u32 = 2;
/// How long a reader takes in all.
const ALL_WITHIN: Duration = Duration::from_secs(60);

/// Settings of a [`RecentReader`].
#[derive(Clone, Debug)]
pub struct RecentReaderSettings {
    /// The topics to which the shell subscribes.
    pub topics: Vec<Topic>,
    /// The capture time of the oldest records, nanoseconds since 1970.
    pub since_ns: u64,
    /// Maximum bytes of live batches that wait for records before them.
    pub max_held_bytes: usize,
    pub(crate) mutants: Mutants,
}

impl RecentReaderSettings {
    /// Records of these topics, captured at `since_ns` or later (nanoseconds since 1970), while at
    /// most `max_held_bytes` of live batches wait for them.
    pub fn new(topics: Vec<Topic>, since_ns: u64, max_held_bytes: usize) -> RecentReaderSettings {
        RecentReaderSettings { topics, since_ns, max_held_bytes, mutants: Mutants::default() }
    }
}

/// What is not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The stream whose recent records are missing; `None` for all streams.
    pub stream: Option<Stream>,
    /// Why.
    pub part: MissingPart,
}

/// Why recent records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingPart {
    /// The proxy does not answer: it is of a version that does not know the request, or there is no
    /// connection.
    NoAnswer,
    /// The publisher does not answer: it is of a version that does not know the request, or hangs.
    Silent,
    /// The proxy knows no live publisher of the stream.
    Gone,
    /// Not everything arrived in time.
    Late,
    /// More live records arrived meanwhile than may be held.
    NoRoom,
}

/// Something to deliver.
#[derive(Debug, PartialEq, Eq)]
pub enum RecentDelivery<B> {
    /// A live batch, without its first `skip` records.
    Live {
        /// As it was given to [`RecentReader::on_live`].
        batch: B,
        /// Records that were delivered before.
        skip: u32,
    },
    /// A retransmitted batch, without its first `skip` records. Its body is not checked.
    Retransmitted {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// The sequence number of the first record of the body.
        first_sequence: u64,
        /// The number of records of the body.
        count: u32,
        /// Records that were delivered before.
        skip: u32,
        /// The body frame.
        body: Vec<u8>,
    },
}

/// The machine of a reader. `B` is a live batch.
#[derive(Debug)]
pub struct RecentReader<B> {
    settings: RecentReaderSettings,
    list: List,
    give_up_at: BootTime,
    /// The phase of a new stream: none is asked any longer once the reader has given up.
    first_phase: Phase,
    /// Counts requests of any type.
    requests: u64,
    streams: BTreeMap<Stream, Reading<B>>,
    held_bytes: usize,
    outputs: VecDeque<Vec<u8>>,
    deliveries: VecDeque<RecentDelivery<B>>,
    missing: VecDeque<Missing>,
    lost: [u64; Kind::ALL.len()],
}

/// The request for all streams.
#[derive(Debug)]
struct List {
    request: u64,
    ask_at: BootTime,
    first_answer_by: BootTime,
    is_answered: bool,
    is_complete: bool,
}

#[derive(Debug)]
struct Reading<B> {
    phase: Phase,
    open: Option<Open>,
    /// When another request may be made; never while there is nothing to request.
    ask_at: BootTime,
    failures: u32,
    unknown_since: Option<BootTime>,
    announcements: u32,
    /// When it is live without announcements, if nothing is missing.
    settle_by: BootTime,
    /// By topic.
    topics: Vec<Progress<B>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Locating,
    Fetching,
    Live,
}

#[derive(Debug)]
struct Open {
    request: u64,
    /// When it was made, or answered last.
    heard_at: BootTime,
    has_progress: bool,
}

/// A topic of a stream.
#[derive(Debug)]
struct Progress<B> {
    /// The next record to deliver; `None` before it is located.
    cursor: Option<u64>,
    /// The next sequence number, as far as live batches and announcements say it: everything below
    /// has arrived live, or will not.
    known_next: u64,
    /// What the publisher had when it was asked.
    located_next: u64,
    held: VecDeque<Held<B>>,
}

#[derive(Debug)]
struct Held<B> {
    first: u64,
    next: u64,
    bytes: usize,
    batch: B,
}

impl<B> Progress<B> {
    /// The records to be requested, if any are missing.
    fn missing(&self) -> Option<(u64, u64)> {
        let from = self.cursor?;
        let to = self.held.front().map_or(self.known_next.max(self.located_next), |held| held.first);
        (from < to).then_some((from, to))
    }

    fn is_up_to_date(&self) -> bool {
        self.held.is_empty() && self.cursor.is_some_and(|cursor| cursor >= self.known_next)
    }

    /// Delivers a live batch, as far as it was not delivered before.
    fn deliver(&mut self, held: Held<B>, deliveries: &mut VecDeque<RecentDelivery<B>>) {
        let Held { first, next, batch, .. } = held;
        let cursor = self.cursor.unwrap_or(first);
        if cursor < next {
            self.cursor = Some(next);
            let skip = u32::try_from(cursor.saturating_sub(first)).unwrap_or(u32::MAX);
            deliveries.push_back(RecentDelivery::Live { batch, skip });
        }
    }
}

impl<B> Reading<B> {
    fn new(phase: Phase, now: BootTime) -> Reading<B> {
        let progress = || Progress { cursor: None, known_next: 0, located_next: 0, held: VecDeque::new() };
        Reading {
            phase,
            open: None,
            ask_at: now,
            failures: 0,
            unknown_since: None,
            announcements: 0,
            settle_by: BootTime::NEVER,
            topics: (0..Topic::COUNT).map(|_| progress()).collect(),
        }
    }

    /// There may be something new to request.
    fn wake(&mut self, now: BootTime) {
        if self.ask_at == BootTime::NEVER {
            self.ask_at = now;
        }
    }
}

impl<B> RecentReader<B> {
    /// A reader that has just subscribed.
    pub fn new(settings: RecentReaderSettings, now: BootTime) -> RecentReader<B> {
        RecentReader {
            settings,
            list: List {
                request: 0,
                ask_at: now,
                first_answer_by: now + FIRST_ANSWER_WITHIN,
                is_answered: false,
                is_complete: false,
            },
            give_up_at: now + ALL_WITHIN,
            first_phase: Phase::Locating,
            requests: 0,
            streams: BTreeMap::new(),
            held_bytes: 0,
            outputs: VecDeque::new(),
            deliveries: VecDeque::new(),
            missing: VecDeque::new(),
            lost: [0; Kind::ALL.len()],
        }
    }

    /// Takes a live batch of `count` records and `bytes` bytes. The batches of a topic ascend and
    /// do not overlap.
    pub fn on_live(&mut self, now: BootTime, place: (&Stream, Topic), first: u64, count: u32, bytes: usize, batch: B) {
        let (stream, topic) = place;
        let held = Held { first, next: first.saturating_add(u64::from(count)), bytes, batch };
        let Some(reading) = reading(&mut self.streams, self.first_phase, now, stream) else {
            // There are too many streams to know more of this one.
            self.deliveries.push_back(RecentDelivery::Live { batch: held.batch, skip: 0 });
            return;
        };
        let progress = &mut reading.topics[topic.index()];
        progress.known_next = progress.known_next.max(held.next);
        if reading.phase == Phase::Live {
            self.lost[topic.kind.index()] += progress.cursor.map_or(0, |cursor| first.saturating_sub(cursor));
            progress.cursor = progress.cursor.map(|cursor| cursor.max(first));
        } else if progress.cursor.is_none_or(|cursor| cursor < first) && !self.settings.mutants.holds_nothing() {
            self.held_bytes += bytes;
            progress.held.push_back(held);
            reading.wake(now);
            if self.held_bytes > self.settings.max_held_bytes {
                self.make_room();
            }
            return;
        }
        progress.deliver(held, &mut self.deliveries);
    }

    /// Takes an announcement: the next sequence number of each topic that has records.
    pub fn on_announced(
        &mut self,
        now: BootTime,
        stream: &Stream,
        next: impl IntoIterator<Item = (Topic, u64)>,
        is_ended: bool,
    ) {
        let Some(reading) = reading(&mut self.streams, self.first_phase, now, stream) else { return };
        reading.announcements = reading.announcements.saturating_add(1);
        for (topic, next) in next {
            let is_selected = self.settings.topics.contains(&topic);
            let progress = &mut reading.topics[topic.index()];
            progress.known_next = progress.known_next.max(next);
            if reading.phase == Phase::Live && is_selected {
                self.lost[topic.kind.index()] += progress.cursor.map_or(0, |cursor| next.saturating_sub(cursor));
                progress.cursor = Some(progress.cursor.unwrap_or(next).max(next));
            }
        }
        reading.wake(now);
        if is_ended {
            // Nobody answers for it any longer.
            match reading.phase {
                Phase::Locating => self.give_up(stream, MissingPart::Gone),
                Phase::Fetching | Phase::Live => self.go_live(stream),
            }
        }
    }

    /// Takes a message of the coordinator. Others than the answers to open requests are ignored.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        match Message::decode(frame) {
            Ok(Message::Streams(streams)) => self.on_streams(now, streams),
            Ok(Message::Recent(recent)) => self.on_recent(now, recent),
            Ok(Message::RecentEnd(end)) => self.on_end(now, end),
            _ => {}
        }
    }

    fn on_streams(&mut self, now: BootTime, streams: Streams) {
        let List { request, is_complete, .. } = self.list;
        if is_complete || streams.request != request {
            return;
        }
        self.list.is_answered = true;
        self.list.is_complete = streams.is_complete;
        self.list.ask_at = now + PAUSE;
        for stream in &streams.streams {
            reading(&mut self.streams, self.first_phase, now, stream);
        }
    }

    fn on_recent(&mut self, now: BootTime, recent: Recent) {
        let Recent { request, stream, batches, .. } = recent;
        let Some(reading) = self.streams.get_mut(&stream) else { return };
        let Some(open) = reading.open.as_mut().filter(|open| open.request == request) else { return };
        open.heard_at = now;
        for batch in batches {
            self.on_batch(&stream, batch);
        }
    }

    fn on_batch(&mut self, stream: &Stream, batch: RecentBatch) {
        let RecentBatch { topic, from, header, body } = batch;
        let Ok(header) = Header::decode(&header.0) else { return };
        let (first, next) = (header.first_sequence, header.next_sequence());
        if header.stream_name != &*stream.name || header.stream_epoch != stream.epoch || next > MAX_NUMBER {
            return;
        }
        let Some(reading) = self.streams.get_mut(stream) else { return };
        let progress = &mut reading.topics[topic.index()];
        // Behind a message that was lost, everything is requested again.
        let Some(cursor) = progress.cursor.filter(|&cursor| from.0 <= cursor && cursor < next) else { return };
        let Some((_, to)) = progress.missing().filter(|&(_, to)| first < to) else { return };
        self.lost[topic.kind.index()] += first.saturating_sub(cursor).min(to - cursor);
        let skip = u32::try_from(cursor.saturating_sub(first)).unwrap_or(u32::MAX);
        progress.cursor = Some(next);
        if let Some(open) = &mut reading.open {
            open.has_progress = true;
        }
        let (stream, count) = (stream.clone(), header.count);
        let first_sequence = first;
        self.deliveries.push_back(RecentDelivery::Retransmitted {
            stream: stream.clone(),
            topic,
            first_sequence,
            count,
            skip,
            body: body.0,
        });
        self.release(&stream, topic);
    }

    /// Delivers held batches up to the next gap.
    fn release(&mut self, stream: &Stream, topic: Topic) {
        let Some(reading) = self.streams.get_mut(stream) else { return };
        let progress = &mut reading.topics[topic.index()];
        while let Some(cursor) = progress.cursor
            && let Some(held) = progress.held.pop_front_if(|held| held.first <= cursor)
        {
            self.held_bytes -= held.bytes;
            progress.deliver(held, &mut self.deliveries);
        }
    }

    fn on_end(&mut self, now: BootTime, end: RecentEnd) {
        let RecentEnd { request, stream, outcome, retained, located, .. } = end;
        let Some(reading) = self.streams.get_mut(&stream) else { return };
        let Some(open) = reading.open.take_if(|open| open.request == request) else { return };
        reading.ask_at = now;
        match outcome {
            RecentOutcome::Complete | RecentOutcome::More => {}
            RecentOutcome::Wait => return reading.ask_at = now + PAUSE,
            RecentOutcome::Gone => {
                let since = *reading.unknown_since.get_or_insert(now);
                reading.ask_at = now + PAUSE;
                if now >= since + UNKNOWN_WITHIN {
                    self.give_up(&stream, MissingPart::Gone);
                }
                return;
            }
            RecentOutcome::Silent => return self.failed(now, &stream),
        }
        let mut has_progress = open.has_progress;
        if self.settings.mutants.believes_the_end() && outcome == RecentOutcome::Complete {
            for progress in &mut reading.topics {
                progress.cursor = progress.missing().map(|(_, to)| to).or(progress.cursor);
            }
        }
        for position in retained {
            let progress = &mut reading.topics[position.topic.index()];
            let Some((from, to)) = progress.missing() else { continue };
            let oldest = position.sequence.0.min(to);
            if from < oldest {
                self.lost[position.topic.kind.index()] += oldest - from;
                progress.cursor = Some(oldest);
                has_progress = true;
            }
        }
        if reading.phase == Phase::Locating {
            for Range { topic, from, to } in located {
                let progress = &mut reading.topics[topic.index()];
                progress.cursor.get_or_insert(from.0);
                progress.located_next = to.0;
            }
            let mut topics = self.settings.topics.iter();
            if topics.all(|topic| reading.topics[topic.index()].cursor.is_some()) {
                reading.phase = Phase::Fetching;
                reading.settle_by = now + SETTLE_WITHIN;
                has_progress = true;
            }
        }
        reading.unknown_since = None;
        if has_progress {
            reading.failures = 0;
        } else {
            self.failed(now, &stream);
        }
        for index in 0..self.settings.topics.len() {
            self.release(&stream, self.settings.topics[index]);
        }
    }

    /// Performs the actions that are due.
    pub fn on_tick(&mut self, now: BootTime) {
        if !self.list.is_answered && now >= self.list.first_answer_by {
            self.list.is_answered = true;
            self.list.is_complete = true;
            self.first_phase = Phase::Live;
            self.missing.push_back(Missing { stream: None, part: MissingPart::NoAnswer });
            let streams: Vec<Stream> = self.streams.keys().cloned().collect();
            return streams.iter().for_each(|stream| self.go_live(stream));
        }
        if now >= self.give_up_at {
            self.list.is_complete = true;
            self.first_phase = Phase::Live;
            let late = self.streams.iter().filter(|(_, reading)| reading.phase != Phase::Live);
            let late: Vec<Stream> = late.map(|(stream, _)| stream.clone()).collect();
            return late.iter().for_each(|stream| self.give_up(stream, MissingPart::Late));
        }
        if !self.list.is_complete && now >= self.list.ask_at {
            self.requests += 1;
            self.list.request = self.requests;
            self.list.ask_at = now + RETRY_AFTER;
            self.outputs.push_back(Message::from(GetStreams { request: self.requests }).encode());
        }
        if !self.list.is_answered {
            return;
        }
        let unanswered = self
            .streams
            .iter()
            .filter(|(_, reading)| reading.open.as_ref().is_some_and(|open| now >= open.heard_at + ANSWER_WITHIN));
        let unanswered: Vec<Stream> = unanswered.map(|(stream, _)| stream.clone()).collect();
        unanswered.iter().for_each(|stream| self.failed(now, stream));
        let mut open = self.streams.values().filter(|reading| reading.open.is_some()).count();
        for (stream, reading) in &mut self.streams {
            if reading.phase == Phase::Live || reading.open.is_some() {
                continue;
            }
            let (ranges, locate) = match reading.phase {
                Phase::Locating => (Vec::new(), self.settings.topics.clone()),
                _ => (ranges(reading, &self.settings.topics), Vec::new()),
            };
            if ranges.is_empty() && locate.is_empty() {
                let is_confirmed = reading.announcements >= ANNOUNCEMENTS || now >= reading.settle_by;
                let mut topics = self.settings.topics.iter();
                if is_confirmed && topics.all(|topic| reading.topics[topic.index()].is_up_to_date()) {
                    reading.phase = Phase::Live;
                }
                reading.ask_at = BootTime::NEVER;
            } else if now >= reading.ask_at && open < MAX_OPEN {
                open += 1;
                self.requests += 1;
                reading.open = Some(Open { request: self.requests, heard_at: now, has_progress: false });
                let max_bytes = if locate.is_empty() { REQUEST_BYTES } else { 0 };
                let get = GetRecent {
                    requester: crate::Peer::default(),
                    request: self.requests,
                    stream: stream.clone(),
                    max_bytes,
                    ranges,
                    locate,
                    since_ns: self.settings.since_ns,
                };
                self.outputs.push_back(Message::from(get).encode());
            }
        }
    }

    /// When [`RecentReader::on_tick`] has something to do. It may change with every other call.
    pub fn next_deadline(&self) -> BootTime {
        if self.is_over() {
            return BootTime::NEVER;
        }
        let mut deadline = self.give_up_at;
        if !self.list.is_answered {
            deadline = deadline.min(self.list.first_answer_by);
        }
        if !self.list.is_complete {
            deadline = deadline.min(self.list.ask_at);
        }
        if !self.list.is_answered {
            return deadline;
        }
        let open = self.streams.values().filter(|reading| reading.open.is_some()).count();
        for reading in self.streams.values().filter(|reading| reading.phase != Phase::Live) {
            deadline = deadline.min(match &reading.open {
                Some(open) => open.heard_at + ANSWER_WITHIN,
                None if open >= MAX_OPEN => BootTime::NEVER,
                None if reading.ask_at == BootTime::NEVER => reading.settle_by,
                None => reading.ask_at,
            });
        }
        deadline
    }

    /// The next message to the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    /// The next batch to deliver.
    pub fn poll_delivery(&mut self) -> Option<RecentDelivery<B>> {
        self.deliveries.pop_front()
    }

    /// The next thing that is missing.
    pub fn poll_missing(&mut self) -> Option<Missing> {
        self.missing.pop_front()
    }

    /// Records that were published and will not be delivered, by kind, since the last call: gaps
    /// between live records, and what a publisher no longer retained when it was requested.
    pub fn take_lost(&mut self) -> [u64; Kind::ALL.len()] {
        std::mem::take(&mut self.lost)
    }

    /// Whether all streams are live. What follows is delivered as it arrives.
    pub fn is_over(&self) -> bool {
        self.list.is_complete
            && self.deliveries.is_empty()
            && self.missing.is_empty()
            && self.streams.values().all(|reading| reading.phase == Phase::Live)
    }

    /// Counts a failed request.
    fn failed(&mut self, now: BootTime, stream: &Stream) {
        let Some(reading) = self.streams.get_mut(stream) else { return };
        reading.open = None;
        reading.failures += 1;
        reading.ask_at = now;
        if reading.failures >= MAX_FAILURES {
            self.give_up(stream, MissingPart::Silent);
        }
    }

    fn give_up(&mut self, stream: &Stream, part: MissingPart) {
        self.missing.push_back(Missing { stream: Some(stream.clone()), part });
        self.go_live(stream);
    }

    /// Gives up the stream of which most is held.
    fn make_room(&mut self) {
        let held = |reading: &Reading<B>| -> usize {
            reading.topics.iter().flat_map(|progress| &progress.held).map(|held| held.bytes).sum()
        };
        let most = self.streams.iter().max_by_key(|(_, reading)| held(reading));
        if let Some(stream) = most.map(|(stream, _)| stream.clone()) {
            self.give_up(&stream, MissingPart::NoRoom);
        }
    }

    /// Delivers what is held, and counts what is missing as lost if it was located.
    fn go_live(&mut self, stream: &Stream) {
        let Some(reading) = self.streams.get_mut(stream) else { return };
        reading.phase = Phase::Live;
        reading.open = None;
        for topic in Topic::all() {
            let progress = &mut reading.topics[topic.index()];
            while let Some(held) = progress.held.pop_front() {
                self.held_bytes -= held.bytes;
                if let Some(cursor) = progress.cursor {
                    self.lost[topic.kind.index()] += held.first.saturating_sub(cursor);
                    progress.cursor = Some(cursor.max(held.first));
                }
                progress.deliver(held, &mut self.deliveries);
            }
            // What was announced and not received.
            if let Some(cursor) = progress.cursor {
                self.lost[topic.kind.index()] += progress.known_next.saturating_sub(cursor);
                progress.cursor = Some(cursor.max(progress.known_next));
            }
        }
    }
}

/// A stream, which is added if it is new and there is room.
fn reading<'a, B>(
    streams: &'a mut BTreeMap<Stream, Reading<B>>,
    phase: Phase,
    now: BootTime,
    stream: &Stream,
) -> Option<&'a mut Reading<B>> {
    // Not `entry`, which would need a clone of the stream for every live batch.
    if !streams.contains_key(stream) {
        if streams.len() >= MAX_STREAMS {
            return None;
        }
        streams.insert(stream.clone(), Reading::new(phase, now));
    }
    streams.get_mut(stream)
}

/// The missing records of a stream, as far as one request can list them.
fn ranges<B>(reading: &Reading<B>, topics: &[Topic]) -> Vec<Range> {
    let missing = topics.iter().filter_map(|&topic| Some((topic, reading.topics[topic.index()].missing()?)));
    missing.map(|(topic, (from, to))| Range { topic, from: Number(from), to: Number(to) }).collect()
}
