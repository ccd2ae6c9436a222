//! A publisher's answers to readers that request recent records.

use std::collections::VecDeque;

use sekiwake_record::Header;

use crate::{
    BootTime, Retention, Stream,
    publisher::budget::RepairBudget,
    wire::{
        Frame, GetRecent, MAX_RECENT_BATCHES, Message, Number, Position, Range, Recent, RecentBatch, RecentEnd,
        RecentOutcome,
    },
};

/// Maximum bytes per second for all readers: half of what repairs may take.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// Maximum bytes of batches in one message, unless it is a single larger one.
const MAX_ANSWER_BYTES: u64 = 32 << 10;
/// Maximum bytes of batches that answer one request.
const MAX_REQUEST_BYTES: u64 = 1 << 20;
/// What a batch takes in a message beside its body.
const BATCH_OVERHEAD: u64 = 160;
/// Maximum number of requests in progress. The coordinator passes on fewer.
const MAX_JOBS: usize = 16;
/// Maximum number of answers per tick, which holds the lock of the retention.
const MAX_ANSWERS: usize = 4;
/// Answers that may wait for the socket. No more are made until it has taken some.
const MAX_QUEUED: usize = 8;

/// Answers readers from what is retained. Repairs of groups have another machine and another
/// budget, and the shell sends them first.
#[derive(Debug)]
pub struct RecentAnswers {
    stream: Stream,
    jobs: VecDeque<Job>,
    budget: RepairBudget,
    outputs: VecDeque<Vec<u8>>,
    rejected: u64,
    retransmitted_bytes: u64,
}

/// A request that is being answered.
#[derive(Debug)]
struct Job {
    /// Its ranges are what is left.
    get: GetRecent,
    bytes_left: u64,
    has_sent: bool,
    /// The range of the next batch.
    turn: usize,
    /// The oldest retained records, of topics for which older ones were requested.
    retained: Vec<Position>,
    located: Vec<Range>,
}

impl RecentAnswers {
    /// Answers for a stream.
    pub fn new(stream: Stream, now: BootTime) -> RecentAnswers {
        RecentAnswers {
            stream,
            jobs: VecDeque::new(),
            budget: RepairBudget::new(BYTES_PER_SECOND, now),
            outputs: VecDeque::new(),
            rejected: 0,
            retransmitted_bytes: 0,
        }
    }

    /// Takes a message of the coordinator.
    pub fn on_message<B: AsRef<[u8]>>(&mut self, frame: &[u8], retention: &Retention<B>) {
        match Message::decode(frame) {
            Ok(Message::GetRecent(get)) if get.stream == self.stream => self.on_get(get, retention),
            _ => self.rejected += 1,
        }
    }

    fn on_get<B: AsRef<[u8]>>(&mut self, get: GetRecent, retention: &Retention<B>) {
        // A new request of a reader replaces its old one.
        self.jobs.retain(|job| job.get.requester != get.requester);
        if self.jobs.len() >= MAX_JOBS {
            self.rejected += 1;
            return;
        }
        let located = get.locate.iter().map(|&topic| {
            let from = retention.first_captured_since(topic, get.since_ns);
            Range { topic, from: Number(from), to: Number(retention.next_sequence(topic)) }
        });
        let located = located.collect();
        let bytes_left = get.max_bytes.min(MAX_REQUEST_BYTES);
        self.jobs.push_back(Job { get, bytes_left, has_sent: false, turn: 0, retained: Vec::new(), located });
    }

    /// Makes answers, as far as the budget allows.
    pub fn on_tick<B: AsRef<[u8]>>(&mut self, now: BootTime, retention: &Retention<B>) {
        self.budget.refill(now);
        for _ in 0..MAX_ANSWERS {
            if !self.budget.has_room() || self.outputs.len() >= MAX_QUEUED {
                break;
            }
            let Some(job) = self.jobs.pop_front() else { break };
            self.answer(job, retention);
        }
    }

    /// When [`RecentAnswers::on_tick`] has something to do. While too many answers are queued,
    /// polling them makes it earlier.
    pub fn next_deadline(&self) -> BootTime {
        match self.jobs.is_empty() || self.outputs.len() >= MAX_QUEUED {
            true => BootTime::NEVER,
            false => self.budget.next_room(),
        }
    }

    /// The next message for the coordinator. Poll only while the socket takes more.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    /// Messages rejected.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Bytes of bodies retransmitted to readers.
    pub fn retransmitted_bytes(&self) -> u64 {
        self.retransmitted_bytes
    }

    /// Makes one message for a request. Its topics take turns, so that they advance together and
    /// none is evicted while another one is sent.
    fn answer<B: AsRef<[u8]>>(&mut self, mut job: Job, retention: &Retention<B>) {
        let mut batches = Vec::new();
        let mut room = MAX_ANSWER_BYTES;
        let outcome = loop {
            let Some(range) = job.get.ranges.get_mut(job.turn) else {
                // All ranges had a turn.
                if job.get.ranges.is_empty() {
                    break Some(RecentOutcome::Complete);
                }
                job.turn = 0;
                continue;
            };
            let oldest = retention.oldest_sequence(range.topic);
            if range.from.0 < oldest && !job.retained.iter().any(|known| known.topic == range.topic) {
                job.retained.push(Position { topic: range.topic, sequence: Number(oldest) });
            }
            let start = range.from.0.max(oldest);
            let batch = if start < range.to.0 { retention.batch(range.topic, start) } else { None };
            let Some(batch) = batch else {
                job.get.ranges.swap_remove(job.turn);
                continue;
            };
            let bytes = batch.body.as_ref().len() as u64 + BATCH_OVERHEAD;
            // At least one batch is sent, or a request with a small budget would be repeated
            // forever.
            if bytes > job.bytes_left && job.has_sent {
                break Some(RecentOutcome::More);
            }
            if (bytes > room && !batches.is_empty()) || batches.len() >= MAX_RECENT_BATCHES {
                break None;
            }
            room = room.saturating_sub(bytes);
            job.bytes_left = job.bytes_left.saturating_sub(bytes);
            job.has_sent = true;
            self.budget.spend(bytes);
            self.retransmitted_bytes += batch.body.as_ref().len() as u64;
            let mut header = Vec::with_capacity(64);
            let Stream { name, epoch } = &self.stream;
            Header {
                stream_name: name,
                stream_epoch: *epoch,
                first_sequence: batch.first_sequence,
                count: batch.count,
                first_captured_at_ns: batch.first_captured_at_ns,
                last_captured_at_ns: batch.last_captured_at_ns,
            }
            .encode(&mut header);
            let body = Frame(batch.body.as_ref().to_vec());
            batches.push(RecentBatch { topic: range.topic, from: range.from, header: Frame(header), body });
            range.from = Number(batch.first_sequence + u64::from(batch.count));
            job.turn += 1;
        };
        let GetRecent { requester, request, stream, .. } = &job.get;
        let (requester, request, stream) = (requester.clone(), *request, stream.clone());
        if !batches.is_empty() {
            let recent = Recent { requester: requester.clone(), request, stream: stream.clone(), batches };
            self.outputs.push_back(Message::from(recent).encode());
        }
        match outcome {
            None => self.jobs.push_back(job),
            Some(outcome) => {
                let Job { retained, located, .. } = job;
                let end = RecentEnd { requester, request, stream, outcome, retained, located };
                self.outputs.push_back(Message::from(end).encode());
            }
        }
    }
}
