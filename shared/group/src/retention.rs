//! A publisher's recent batches, in memory, for repairs.
//!
//! ```text
//! per topic:  batches by sequence number   ◀── repairs look up here
//!             [ committed by every live group | not yet ] next
//! per kind:   order of publication, bytes  ◀── over the budget, the oldest batch is evicted
//! ```
//!
//! **Invariant:** a batch evicts only batches of its own kind. **Invariant:** the batches of a
//! topic have no gaps.

use std::collections::VecDeque;

use sekiwake_record::{Kind, Topic};

use crate::BootTime;

/// Memory of a batch beside its body, bytes.
const ENTRY_BYTES: usize = 104;

/// The recent batches of one stream. The writer of the stream stores them, and the control thread
/// answers repairs from them. They share it under a lock that both hold only briefly.
#[derive(Debug)]
pub struct Retention<B> {
    topics: Vec<Ring<B>>,
    kinds: [Budget; Kind::ALL.len()],
}

/// The batches of one topic.
#[derive(Debug)]
struct Ring<B> {
    /// Oldest first.
    batches: VecDeque<Retained<B>>,
    /// By batch: the latest capture time of it and all batches before, nanoseconds since 1970. It
    /// never falls, although clocks may be set back.
    captured_until_ns: VecDeque<u64>,
    /// The next sequence number.
    next: u64,
    /// The sequence number below which every live group has committed.
    committed: u64,
    /// How many batches at the front are below it.
    committed_batches: usize,
}

/// The memory of one kind.
#[derive(Debug)]
struct Budget {
    limit: usize,
    bytes: usize,
    /// Bytes of batches that are not committed.
    uncommitted_bytes: usize,
    /// The topic of each batch, oldest first.
    order: VecDeque<Topic>,
}

/// A batch that can be retransmitted.
#[derive(Debug, Clone)]
pub struct Retained<B> {
    /// The sequence number of its first record.
    pub first_sequence: u64,
    /// How many records it has.
    pub count: u32,
    /// Capture time of its earliest record, nanoseconds since 1970.
    pub first_captured_at_ns: u64,
    /// Capture time of its latest record, nanoseconds since 1970.
    pub last_captured_at_ns: u64,
    /// When it was published.
    pub published_at: BootTime,
    /// The body frame.
    pub body: B,
}

impl<B> Retained<B> {
    fn next_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }
}

impl<B: AsRef<[u8]>> Retention<B> {
    /// An empty one. `limits` are bytes per kind, in the order of [`Kind::ALL`].
    pub fn new(limits: [usize; Kind::ALL.len()]) -> Retention<B> {
        let ring = || Ring {
            batches: VecDeque::new(),
            captured_until_ns: VecDeque::new(),
            next: 0,
            committed: 0,
            committed_batches: 0,
        };
        Retention {
            topics: (0..Topic::COUNT).map(|_| ring()).collect(),
            kinds: limits.map(|limit| Budget { limit, bytes: 0, uncommitted_bytes: 0, order: VecDeque::new() }),
        }
    }

    /// Stores a batch that has just got its sequence numbers, which continue its topic without a
    /// gap. The newest batch stays even if it is larger than the budget.
    pub fn store(&mut self, topic: Topic, batch: Retained<B>) {
        let bytes = cost(&batch);
        let ring = &mut self.topics[topic.index()];
        ring.next = batch.next_sequence();
        let captured_until_ns = ring.captured_until_ns.back().copied().unwrap_or(0);
        ring.captured_until_ns.push_back(captured_until_ns.max(batch.last_captured_at_ns));
        ring.batches.push_back(batch);
        let budget = &mut self.kinds[topic.kind.index()];
        budget.order.push_back(topic);
        budget.bytes += bytes;
        budget.uncommitted_bytes += bytes;
        while budget.bytes > budget.limit
            && budget.order.len() > 1
            && let Some(oldest) = budget.order.pop_front()
        {
            let ring = &mut self.topics[oldest.index()];
            let Some(evicted) = ring.batches.pop_front() else { continue };
            ring.captured_until_ns.pop_front();
            budget.bytes -= cost(&evicted);
            // Committed batches are always at the front, so this one is committed if any is.
            if ring.committed_batches > 0 {
                ring.committed_batches -= 1;
            } else {
                budget.uncommitted_bytes -= cost(&evicted);
            }
        }
    }

    /// The next sequence number of a topic.
    pub fn next_sequence(&self, topic: Topic) -> u64 {
        self.topics[topic.index()].next
    }

    /// The oldest retained record of a topic; its next sequence number if none is retained.
    pub fn oldest_sequence(&self, topic: Topic) -> u64 {
        let ring = &self.topics[topic.index()];
        ring.batches.front().map_or(ring.next, |batch| batch.first_sequence)
    }

    /// The batch that contains this record.
    pub fn batch(&self, topic: Topic, sequence: u64) -> Option<&Retained<B>> {
        let batches = &self.topics[topic.index()].batches;
        let index = batches.partition_point(|batch| batch.next_sequence() <= sequence);
        batches.get(index).filter(|batch| batch.first_sequence <= sequence)
    }

    /// The oldest retained record that was published at `since` or later; the next sequence number
    /// if no record is.
    pub fn first_since(&self, topic: Topic, since: BootTime) -> u64 {
        let ring = &self.topics[topic.index()];
        let index = ring.batches.partition_point(|batch| batch.published_at < since);
        ring.batches.get(index).map_or(ring.next, |batch| batch.first_sequence)
    }

    /// A retained record before which no retained one was captured at `since_ns` or later,
    /// nanoseconds since 1970; the next sequence number if none was.
    pub fn first_captured_since(&self, topic: Topic, since_ns: u64) -> u64 {
        let ring = &self.topics[topic.index()];
        let index = ring.captured_until_ns.partition_point(|&until_ns| until_ns < since_ns);
        ring.batches.get(index).map_or(ring.next, |batch| batch.first_sequence)
    }

    /// The retained batches of a topic, newest first.
    pub fn batches(&self, topic: Topic) -> impl Iterator<Item = &Retained<B>> {
        self.topics[topic.index()].batches.iter().rev()
    }

    /// When the oldest retained batch of a kind was published.
    pub fn oldest_published_at(&self, kind: Kind) -> Option<BootTime> {
        let topic = self.kinds[kind.index()].order.front()?;
        self.topics[topic.index()].batches.front().map(|batch| batch.published_at)
    }

    /// Memory of the batches of a kind, bytes.
    pub fn bytes(&self, kind: Kind) -> usize {
        self.kinds[kind.index()].bytes
    }

    /// Bytes of a kind that some live group has not committed.
    pub fn uncommitted_bytes(&self, kind: Kind) -> usize {
        self.kinds[kind.index()].uncommitted_bytes
    }

    /// Records that some live group has not committed.
    pub fn uncommitted_records(&self) -> u64 {
        self.topics.iter().map(|ring| ring.next - ring.committed).sum()
    }

    /// Counts everything of a kind as committed, because no live group works on it.
    pub(crate) fn commit_all(&mut self, kind: Kind) {
        for topic in Topic::all().filter(|topic| topic.kind == kind) {
            self.commit(topic, self.next_sequence(topic));
        }
    }

    /// Every live group has committed `sequence`.
    pub(crate) fn commit(&mut self, topic: Topic, sequence: u64) {
        let ring = &mut self.topics[topic.index()];
        ring.committed = ring.committed.max(sequence.min(ring.next));
        while let Some(batch) = ring.batches.get(ring.committed_batches)
            && batch.next_sequence() <= ring.committed
        {
            ring.committed_batches += 1;
            self.kinds[topic.kind.index()].uncommitted_bytes -= cost(batch);
        }
    }

    /// Whether some live group has not committed everything of a kind.
    pub(crate) fn has_uncommitted(&self, kind: Kind) -> bool {
        Topic::all().filter(|topic| topic.kind == kind).any(|topic| {
            let ring = &self.topics[topic.index()];
            ring.committed < ring.next
        })
    }

    /// Whether a publisher that reads a file may publish the next batch of a kind: it would not
    /// evict one that a live group has not committed.
    pub fn may_read_ahead(&self, kind: Kind, next_bytes: usize) -> bool {
        let budget = &self.kinds[kind.index()];
        budget.uncommitted_bytes == 0 || budget.uncommitted_bytes + next_bytes + ENTRY_BYTES <= budget.limit
    }
}

fn cost<B: AsRef<[u8]>>(batch: &Retained<B>) -> usize {
    batch.body.as_ref().len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::parse(name.as_bytes()).unwrap()
    }

    fn batch(first_sequence: u64, published_at: u64) -> Retained<Vec<u8>> {
        let body = vec![0; 896];
        let published_at = BootTime::from_nanos(published_at);
        Retained { first_sequence, count: 10, first_captured_at_ns: 0, last_captured_at_ns: 0, published_at, body }
    }

    #[test]
    fn flood_of_one_kind_evicts_nothing_of_the_others() {
        let mut retention = Retention::new([3000, 3000, 3000]);
        retention.store(topic("snmptrap/00"), batch(0, 0));
        (0..100).for_each(|n| retention.store(topic("xflow/01"), batch(n * 10, n)));
        assert_eq!(retention.oldest_sequence(topic("snmptrap/00")), 0);
        assert_eq!(retention.oldest_sequence(topic("xflow/01")), 970, "three batches of a thousand bytes each");
        assert!(retention.bytes(Kind::Xflow) <= 3000);
    }

    #[test]
    fn retained_record_is_found_and_evicted_one_is_not() {
        let mut retention = Retention::new([3000, 3000, 3000]);
        (0..5).for_each(|n| retention.store(topic("syslog/2a"), batch(n * 10, n * 100)));
        assert!(retention.batch(topic("syslog/2a"), 19).is_none());
        assert_eq!(retention.batch(topic("syslog/2a"), 29).unwrap().first_sequence, 20);
        assert!(retention.batch(topic("syslog/2a"), 50).is_none());
        assert_eq!(retention.first_since(topic("syslog/2a"), BootTime::from_nanos(250)), 30);
        assert_eq!(retention.first_since(topic("syslog/2a"), BootTime::from_nanos(1000)), 50);
        let newest_first: Vec<u64> = retention.batches(topic("syslog/2a")).map(|batch| batch.first_sequence).collect();
        assert_eq!(newest_first, [40, 30, 20]);
    }

    #[test]
    fn capture_time_is_found_although_a_clock_was_set_back() {
        let mut retention = Retention::new([3000, 3000, 3000]);
        let syslog = topic("syslog/2a");
        for (n, captured_at_ns) in [(0, 900), (1, 100), (2, 300), (3, 200), (4, 400)] {
            let batch = Retained { last_captured_at_ns: captured_at_ns, ..batch(n * 10, n) };
            retention.store(syslog, batch);
        }
        let found = [0, 250, 350, 400, 401].map(|since_ns| retention.first_captured_since(syslog, since_ns));
        assert_eq!(found, [20, 20, 20, 20, 20], "the clock was at 900 once");
        (5..8).for_each(|n| retention.store(syslog, Retained { last_captured_at_ns: n * 200, ..batch(n * 10, n) }));
        let found = [0, 1_000, 1_001, 1_400, 1_401].map(|since_ns| retention.first_captured_since(syslog, since_ns));
        assert_eq!(found, [50, 50, 60, 70, 80]);
    }

    #[test]
    fn file_is_read_no_further_ahead_than_the_budget() {
        let mut retention = Retention::new([3000, 3000, 3000]);
        let syslog = topic("syslog/00");
        (0..3).for_each(|n| retention.store(syslog, batch(n * 10, 0)));
        assert!(!retention.may_read_ahead(Kind::Syslog, 896));
        retention.commit(syslog, 15);
        assert!(retention.may_read_ahead(Kind::Syslog, 896), "the first batch is committed");
        assert!(retention.may_read_ahead(Kind::Xflow, 1 << 30), "one batch is always allowed");
    }
}
