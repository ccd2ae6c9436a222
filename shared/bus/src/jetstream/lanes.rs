//! Batches on their way to the servers: per subject at most one message that is not acknowledged,
//! and the batches that wait behind it, which become the next message together.
//!
//! ```text
//! batches ─▶ waiting, by topic ─▶ in flight, one message per topic ─▶ acknowledged
//!            bounded per kind      sent again until it is acknowledged
//! ```
//!
//! **Invariant:** records are numbered when their message is made, so that what is dropped for lack
//! of room leaves no gap. **Invariant:** a message is sent again as it was first sent, so that the
//! servers recognise it, and nothing of its topic overtakes it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sekiwake_record::{ClosedBatch, Header, Kind, MAX_BATCH_RECORDS, Outbound, Topic};

use super::{keys::Put, state::Position};

/// A message's body is closed before it exceeds this size, bytes.
pub(crate) const MAX_BODY_BYTES: usize = 256 << 10;
/// How long an acknowledgement may take before the message is sent again.
pub(crate) const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(2);
/// The pause after an answer that the message is not stored.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The same after an answer that waiting does not help with.
pub(crate) const REFUSED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory cost of a batch or message beside its bytes.
const ENTRY_BYTES: usize = 128;
/// msgpack array16, see [`sekiwake_record::BatchBuilder`].
const ARRAY16: usize = 3;

/// All topics.
#[derive(Debug)]
pub(crate) struct Lanes {
    name: String,
    epoch: u64,
    lanes: Vec<Lane>,
    /// Topics with waiting batches and no message in flight.
    ready: VecDeque<Topic>,
    /// Bytes of what waits and of what is in flight, by kind.
    bytes: [usize; Kind::ALL.len()],
    limits: [usize; Kind::ALL.len()],
    records: u64,
    in_flight: usize,
    /// No message is to be sent again before this time.
    due_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<ClosedBatch>,
    in_flight: Option<Message>,
    /// The number of the next message, by which its acknowledgement is recognised.
    next_message: u64,
    next_sequence: u64,
    acknowledged: Position,
}

/// A message that is not acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Its number in its topic.
    pub(crate) number: u64,
    /// `Nats-Msg-Id`.
    pub(crate) id: String,
    /// Header and body.
    pub(crate) payload: Bytes,
    pub(crate) first_sequence: u64,
    pub(crate) records: u32,
    pub(crate) body_bytes: usize,
    /// When it was made.
    pub(crate) made_at: Instant,
    first_captured_at_ns: u64,
    send_at: Instant,
    cost: usize,
}

/// A message that has been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Its sequence number in the stream.
    pub(crate) stream_sequence: u64,
    pub(crate) records: u32,
    pub(crate) body_bytes: usize,
    pub(crate) took: Duration,
}

impl Lanes {
    pub(crate) fn new(name: &str, epoch: u64, limits: [usize; Kind::ALL.len()]) -> Lanes {
        Lanes {
            name: name.to_owned(),
            epoch,
            lanes: (0..Topic::COUNT).map(|_| Lane::default()).collect(),
            ready: VecDeque::new(),
            bytes: [0; Kind::ALL.len()],
            limits,
            records: 0,
            in_flight: 0,
            due_at: None,
        }
    }

    /// Whether everything is acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Records that are not acknowledged.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Bytes that are not acknowledged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// The same of a kind.
    pub(crate) fn bytes_of(&self, kind: Kind) -> usize {
        self.bytes[kind.index()]
    }

    /// Messages that are not acknowledged.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When the oldest message that is not acknowledged was made.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.in_flight.as_ref().map(|message| message.made_at)).min()
    }

    /// The capture time of the oldest record that is not acknowledged, nanoseconds since 1970.
    pub(crate) fn oldest_captured_at_ns(&self) -> Option<u64> {
        let oldest = self.lanes.iter().filter_map(|lane| match &lane.in_flight {
            Some(message) => Some(message.first_captured_at_ns),
            None => lane.waiting.front().map(|batch| batch.first_captured_at_ns),
        });
        oldest.min()
    }

    /// Appends a batch, or returns it if there is no room for its kind.
    pub(crate) fn push(&mut self, outbound: Outbound) -> Result<(), Outbound> {
        let Outbound { topic, mut batch } = outbound;
        let kind = topic.kind.index();
        let cost = batch.body.len() + ENTRY_BYTES;
        if self.bytes[kind] + cost > self.limits[kind] {
            return Err(Outbound { topic, batch });
        }
        self.bytes[kind] += cost;
        self.records += u64::from(batch.count);
        let lane = &mut self.lanes[topic.index()];
        if lane.in_flight.is_some() {
            // It may be kept for long.
            batch.body.shrink_to_fit();
        } else if lane.waiting.is_empty() {
            self.ready.push_back(topic);
        }
        lane.waiting.push_back(batch);
        Ok(())
    }

    /// Makes the next message of a topic that has none in flight, to be sent at once. `recycle`
    /// gets the buffers of its batches.
    pub(crate) fn next_message(&mut self, now: Instant, mut recycle: impl FnMut(Vec<u8>)) -> Option<(Topic, &Message)> {
        let topic = self.ready.pop_front()?;
        let lane = &mut self.lanes[topic.index()];
        let mut count = 0;
        let mut body_bytes = ARRAY16;
        let mut batches = 0;
        for batch in &lane.waiting {
            let more = batch.body.len().saturating_sub(ARRAY16);
            let is_full = body_bytes + more > MAX_BODY_BYTES || (count + batch.count) as usize > MAX_BATCH_RECORDS;
            if batches > 0 && is_full {
                break;
            }
            body_bytes += more;
            count += batch.count;
            batches += 1;
        }
        let taken: Vec<ClosedBatch> = lane.waiting.drain(..batches).collect();
        let header = Header {
            stream_name: &self.name,
            stream_epoch: self.epoch,
            first_sequence: lane.next_sequence,
            count,
            first_captured_at_ns: taken.iter().map(|batch| batch.first_captured_at_ns).min().unwrap_or(0),
            last_captured_at_ns: taken.iter().map(|batch| batch.last_captured_at_ns).max().unwrap_or(0),
        };
        let mut payload = Vec::with_capacity(body_bytes + 160);
        header.encode(&mut payload);
        payload.push(0xdc);
        payload.extend_from_slice(&(count as u16).to_be_bytes());
        let mut cost_before = 0;
        for batch in taken {
            payload.extend_from_slice(batch.body.get(ARRAY16..).unwrap_or_default());
            cost_before += batch.body.len() + ENTRY_BYTES;
            recycle(batch.body);
        }
        let cost = payload.len() + ENTRY_BYTES;
        let bytes = &mut self.bytes[topic.kind.index()];
        *bytes = *bytes - cost_before + cost;
        let message = Message {
            number: lane.next_message,
            id: format!("{}.{:016x}.{topic}.{}", self.name, self.epoch, lane.next_sequence),
            payload: payload.into(),
            first_sequence: lane.next_sequence,
            records: count,
            body_bytes,
            made_at: now,
            first_captured_at_ns: header.first_captured_at_ns,
            send_at: now + ACKNOWLEDGE_WITHIN,
            cost,
        };
        self.due_at = earlier(self.due_at, message.send_at);
        lane.next_sequence += u64::from(count);
        lane.next_message += 1;
        self.in_flight += 1;
        Some((topic, lane.in_flight.insert(message)))
    }

    /// The messages to be sent again by now. They are not due again before the time that an
    /// acknowledgement may take.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(Topic, Message)> {
        if self.due_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.due_at = None;
        let mut due = Vec::new();
        for (topic, lane) in Topic::all().zip(&mut self.lanes) {
            let Some(message) = &mut lane.in_flight else { continue };
            if message.send_at <= now {
                message.send_at = now + ACKNOWLEDGE_WITHIN;
                due.push((topic, message.clone()));
            }
            self.due_at = earlier(self.due_at, message.send_at);
        }
        due
    }

    /// Everything in flight is to be sent again: what was sent on another connection may be lost.
    pub(crate) fn send_all_again(&mut self, now: Instant) {
        for message in self.lanes.iter_mut().filter_map(|lane| lane.in_flight.as_mut()) {
            message.send_at = now;
            self.due_at = Some(now);
        }
    }

    /// Takes the answer to a message. An answer to an earlier message of the topic says nothing.
    pub(crate) fn answered(&mut self, topic: Topic, number: u64, put: Put, now: Instant) -> Option<Acknowledged> {
        let lane = &mut self.lanes[topic.index()];
        let message = lane.in_flight.as_mut().filter(|message| message.number == number)?;
        let stream_sequence = match put {
            Put::Stored(sequence) => sequence,
            Put::Unknown | Put::Conflict => {
                message.send_at = message.send_at.min(now + RETRY_AFTER);
                self.due_at = earlier(self.due_at, message.send_at);
                return None;
            }
            Put::Refused => {
                message.send_at = now + REFUSED_RETRY_AFTER;
                self.due_at = earlier(self.due_at, message.send_at);
                return None;
            }
        };
        let message = lane.in_flight.take()?;
        lane.acknowledged = Position { next_sequence: lane.next_sequence, stream_sequence };
        if !lane.waiting.is_empty() {
            self.ready.push_back(topic);
        }
        self.bytes[topic.kind.index()] -= message.cost;
        self.records -= u64::from(message.records);
        self.in_flight -= 1;
        let took = now.saturating_duration_since(message.made_at);
        Some(Acknowledged { stream_sequence, records: message.records, body_bytes: message.body_bytes, took })
    }

    /// Up to where each topic is acknowledged; topics without records are left out.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (Topic, Position)> {
        let positions = Topic::all().zip(&self.lanes).map(|(topic, lane)| (topic, lane.acknowledged));
        positions.filter(|(_, position)| position.next_sequence > 0)
    }

    /// The next record of each topic with a message that is not acknowledged.
    pub(crate) fn sent(&self) -> impl Iterator<Item = (Topic, u64)> {
        let lanes = Topic::all().zip(&self.lanes).filter(|(_, lane)| lane.in_flight.is_some());
        lanes.map(|(topic, lane)| (topic, lane.next_sequence))
    }

    /// Gives up: the records by topic, those that were never sent and those that were sent and not
    /// acknowledged.
    pub(crate) fn give_up(self) -> Vec<(Topic, u64, u64)> {
        let left = Topic::all().zip(self.lanes).map(|(topic, lane)| {
            let waiting: u64 = lane.waiting.iter().map(|batch| u64::from(batch.count)).sum();
            let sent = lane.in_flight.map_or(0, |message| u64::from(message.records));
            (topic, waiting, sent)
        });
        left.filter(|(_, waiting, sent)| waiting + sent > 0).collect()
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Batch, BatchBuilder, Flags, Format, Record, Vlans};

    use super::*;

    fn batch(sources: std::ops::Range<u16>) -> ClosedBatch {
        let mut builder = BatchBuilder::new(Vec::new());
        for source_port in sources {
            builder.push(&Record {
                captured_at_ns: u64::from(source_port),
                source: "198.51.100.1".parse().unwrap(),
                source_port,
                destination: "198.51.100.2".parse().unwrap(),
                destination_port: 514,
                format: Format::Unknown,
                flags: Flags::default(),
                payload: &[b'x'; 1000],
                vlans: Vlans::new(),
                dscp_ttl: 0,
                origin: None,
            });
        }
        builder.close().unwrap()
    }

    fn topic() -> Topic {
        Topic::all().nth(5).unwrap()
    }

    fn push(lanes: &mut Lanes, sources: std::ops::Range<u16>) -> Result<(), Outbound> {
        lanes.push(Outbound { topic: topic(), batch: batch(sources) })
    }

    fn ports(message: &Message) -> Vec<u16> {
        let (header, rest) = Header::split(&message.payload).unwrap();
        let header = Header::decode(header).unwrap();
        assert_eq!((header.first_sequence, header.count), (message.first_sequence, message.records));
        let batch = Batch::decode(rest, header.count).unwrap();
        batch.records().map(|record| record.source_port).collect()
    }

    #[test]
    fn one_message_is_in_flight_and_the_next_has_all_that_waited() {
        let now = Instant::now();
        let mut lanes = Lanes::new("tap", 7, [1 << 20; 3]);
        push(&mut lanes, 0..2).unwrap();
        let (_, message) = lanes.next_message(now, drop).unwrap();
        assert_eq!((ports(message), message.id.clone()), (vec![0, 1], "tap.0000000000000007.syslog/05.0".to_owned()));
        push(&mut lanes, 2..3).unwrap();
        push(&mut lanes, 3..5).unwrap();
        assert!(lanes.next_message(now, drop).is_none(), "one per topic");
        assert_eq!((lanes.positions().count(), lanes.sent().collect::<Vec<_>>()), (0, vec![(topic(), 2)]));
        assert_eq!(lanes.oldest_captured_at_ns(), Some(0));
        assert_eq!(lanes.answered(topic(), 1, Put::Stored(9), now), None, "another message");
        let acknowledged = lanes.answered(topic(), 0, Put::Stored(9), now).unwrap();
        assert_eq!(acknowledged.records, 2);
        let position = Position { next_sequence: 2, stream_sequence: 9 };
        assert_eq!(lanes.positions().collect::<Vec<_>>(), [(topic(), position)]);
        assert_eq!(lanes.oldest_captured_at_ns(), Some(2));
        assert_eq!(lanes.sent().count(), 0);
        let (_, message) = lanes.next_message(now, drop).unwrap();
        assert_eq!((ports(message), message.first_sequence), (vec![2, 3, 4], 2));
        assert!(lanes.answered(topic(), 1, Put::Stored(10), now).is_some());
        assert!(lanes.is_empty() && lanes.bytes() == 0 && lanes.in_flight() == 0);
        assert_eq!(lanes.oldest_captured_at_ns(), None);
    }

    #[test]
    fn message_is_sent_again_as_it_was() {
        let start = Instant::now();
        let mut lanes = Lanes::new("tap", 7, [1 << 20; 3]);
        push(&mut lanes, 0..1).unwrap();
        let first = lanes.next_message(start, drop).unwrap().1.clone();
        push(&mut lanes, 1..2).unwrap();
        assert!(lanes.due(start + RETRY_AFTER).is_empty());
        assert_eq!(lanes.answered(topic(), 0, Put::Unknown, start), None);
        let again = lanes.due(start + RETRY_AFTER);
        assert_eq!((&again[0].1.payload, &again[0].1.id), (&first.payload, &first.id));
        assert!(lanes.due(start + RETRY_AFTER).is_empty());
        assert_eq!(lanes.due(start + RETRY_AFTER + ACKNOWLEDGE_WITHIN).len(), 1);
        lanes.send_all_again(start);
        assert_eq!(lanes.due(start).len(), 1);
        assert_eq!(lanes.give_up(), [(topic(), 1, 1)]);
    }

    #[test]
    fn memory_and_messages_are_bounded() {
        let now = Instant::now();
        let mut lanes = Lanes::new("tap", 7, [800_000; 3]);
        let mut accepted = 0;
        while push(&mut lanes, 0..15).is_ok() {
            accepted += 1;
        }
        assert!(lanes.bytes() <= 800_000 && accepted > 40, "{accepted}");
        let mut seen = 0;
        for number in 0.. {
            let Some((_, message)) = lanes.next_message(now, drop) else { break };
            assert!(message.body_bytes <= MAX_BODY_BYTES && message.payload.len() <= MAX_BODY_BYTES + 200);
            seen += message.records;
            lanes.answered(topic(), number, Put::Stored(1), now).unwrap();
        }
        assert_eq!((seen, lanes.bytes()), (accepted * 15, 0));
    }
}
