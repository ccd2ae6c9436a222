//! A member of a group that delivers once what several captures have seen. The same for every bus:
//! it is a member around another member.
//!
//! ```text
//! inner member ─▶ of a shard that is new? ─ no ──────────────────▶ Deduplicator ─▶ without duplicates
//!                          │ yes                                        ▲
//!                          ▼                                            │
//!                   held, while its past is read ─ records handled by ──┘
//!                                                  former owners
//! ```
//!
//! The position moves past a duplicate only when the delivered copy is handled: the ack token of
//! its batch waits for that of the copy.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_deduplicate::{DeduplicateSettings, Deduplicator, Sighting, StreamProgress, Verdict};
use sekiwake_group::Stream;
use sekiwake_record::{Kind, SHARDS, Shard, Topic};
use sekiwake_runtime::{RateLimited, StatusResponder};
use serde_json::json;
use tracing::{debug, info, warn};

use super::ack_token::Handling;
use crate::{
    BusError, Delivery, GroupDelivery, GroupSource, HandoffEntry, HandoffState, RegisteredDestination, Source,
    boot_now, metrics::DeduplicateMetrics,
};

/// What is read of the past before the oldest record to deliver, beside the duration: views may
/// reach the bus with different delays.
const PAST_MARGIN: Duration = Duration::from_secs(1);
/// How long reading the past may take.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// Shards that are granted together have their first records within this time.
const GATHER: Duration = Duration::from_millis(50);
/// The longest wait while the past is read.
const READ_POLL: Duration = Duration::from_millis(2);
/// The most batches of the past that are taken before live ones have their turn.
const READ_BURST: usize = 64;
/// The most bytes that wait for the past of their shards: beyond that nothing more is received.
const MAX_HELD_BYTES: usize = 32 << 20;
/// The most batches that may contain duplicates only before the caller has its turn.
const BURST: usize = 64;
/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(200);

/// How a group delivers once what several captures have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deduplicate {
    /// The largest difference between the capture times of one datagram.
    pub duration: Duration,
    /// The most memory for what is remembered, bytes.
    pub max_bytes: usize,
}

/// Reads the topics that begin with one of these prefixes, from what was captured at this time,
/// nanoseconds since 1970, up to now at least.
pub(crate) type ReadPast = Box<dyn Fn(&[String], u64) -> Result<Box<dyn Source>, BusError> + Send>;

/// See the head of the module.
pub(crate) struct DeduplicatingSource {
    inner: Box<dyn GroupSource>,
    settings: Deduplicate,
    kind: Kind,
    state: Deduplicator,
    /// How the deliveries are handled that occurrences name, in order.
    handlings: VecDeque<Arc<Handling>>,
    /// The number of the first.
    base: u32,
    /// By shard: the generation that was delivered last.
    generations: [Option<u64>; SHARDS],
    /// Shards whose past is not read yet, one bit each.
    unread: u64,
    unread_since: Instant,
    reading: Option<Reading>,
    read_past: ReadPast,
    /// Batches of the unread shards.
    held: Held,
    /// Batches of shards whose past has just been read.
    ready: VecDeque<GroupDelivery>,
    is_full: bool,
    metrics: DeduplicateMetrics,
    metered_at: Option<Instant>,
    apart: u64,
    apart_log: RateLimited,
    status: Option<StatusResponder>,
}

/// The past of some shards, while it is read.
struct Reading {
    source: Box<dyn Source>,
    /// One bit each.
    shards: u64,
    began_at: Instant,
    records: u64,
}

/// Batches that wait.
#[derive(Default)]
struct Held {
    deliveries: VecDeque<GroupDelivery>,
    bytes: usize,
    /// The first record of each stream and shard that waits.
    firsts: HashMap<(Stream, usize), u64>,
    oldest_ns: Option<u64>,
}

impl DeduplicatingSource {
    pub(crate) fn new(
        inner: Box<dyn GroupSource>,
        kind: Kind,
        settings: Deduplicate,
        seed: u64,
        read_past: ReadPast,
        metrics: DeduplicateMetrics,
        status: Option<StatusResponder>,
    ) -> DeduplicatingSource {
        let Deduplicate { duration, max_bytes } = settings;
        DeduplicatingSource {
            inner,
            settings,
            kind,
            state: Deduplicator::new(DeduplicateSettings { duration, max_bytes, seed }),
            handlings: VecDeque::new(),
            base: 0,
            generations: [None; SHARDS],
            unread: 0,
            unread_since: Instant::now(),
            reading: None,
            read_past,
            held: Held::default(),
            ready: VecDeque::new(),
            is_full: false,
            metrics,
            metered_at: None,
            apart: 0,
            apart_log: RateLimited::default(),
            status,
        }
    }

    /// Takes a batch of the inner member. Returns it if there is something to act on.
    fn take(&mut self, delivery: GroupDelivery) -> Option<GroupDelivery> {
        let (shard, generation) = delivery.ack_token.key();
        if self.generations[shard.index()] != Some(generation) {
            self.acquire(shard, generation);
        }
        if self.unread >> shard.index() & 1 == 1 {
            self.held.push(delivery);
            return None;
        }
        self.deduplicate(delivery)
    }

    /// The shard is new: another member may have had it.
    fn acquire(&mut self, shard: Shard, generation: u64) {
        let bit = 1 << shard.index();
        self.generations[shard.index()] = Some(generation);
        self.state.forget_shards(bit);
        for older in self.held.take(bit).into_iter().chain(self.ready.extract(shard)) {
            // The next owner receives it again.
            older.ack_token.abandon();
        }
        if self.unread == 0 {
            self.unread_since = Instant::now();
        }
        self.unread |= bit;
        if let Some(reading) = &mut self.reading {
            reading.shards &= !bit;
        }
        self.state.keep_shards(self.unread);
    }

    /// Removes the duplicates from a batch. Returns it if something is left.
    fn deduplicate(&mut self, mut delivery: GroupDelivery) -> Option<GroupDelivery> {
        let now = boot_now();
        let number = self.base.wrapping_add(self.handlings.len() as u32);
        self.handlings.push_back(delivery.ack_token.handling());
        let shard = delivery.topic.shard;
        let GroupDelivery { stream, batch, ack_token, .. } = &mut delivery;
        let (state, handlings, base) = (&mut self.state, &self.handlings, self.base);
        let (mut view, mut waits_for) = (None, number);
        let mut not_compared = 0;
        let advance = batch.retain(|record| {
            let Some(key) = state.key(record) else {
                not_compared += 1;
                return true;
            };
            let interface = record.origin.map_or(0, |origin| origin.interface);
            let view = match view {
                Some((of, view)) if of == interface => view,
                _ => {
                    let Some(new) = state.view(now, stream, interface) else { return true };
                    view = Some((interface, new));
                    new
                }
            };
            let captured_at_ns = record.captured_at_ns;
            let sighting = Sighting { view, shard, captured_at_ns, delivery: number, is_past: false };
            let Verdict::Duplicate(of) = state.observe(key, sighting) else { return true };
            if of != waits_for && of != number {
                waits_for = of;
                // What is no longer here was read from the past, which others have handled.
                if let Some(handling) = handlings.get(of.wrapping_sub(base) as usize) {
                    ack_token.wait_for(handling);
                }
            }
            false
        });
        delivery.first_sequence += advance;
        self.metrics.not_compared.inc_by(not_compared);
        self.state.expire(now);
        self.trim();
        if delivery.batch.is_empty() { None } else { Some(delivery) }
    }

    /// Forgets how deliveries were handled that no occurrence names.
    fn trim(&mut self) {
        let next = self.base.wrapping_add(self.handlings.len() as u32);
        let oldest = self.state.oldest_delivery().unwrap_or(next);
        // An occurrence of the past has the number of a delivery before it.
        let unused = (oldest.wrapping_sub(self.base) as usize).min(self.handlings.len());
        if oldest.wrapping_sub(self.base) < u32::MAX / 2 {
            self.handlings.drain(..unused);
            self.base = self.base.wrapping_add(unused as u32);
        }
    }

    /// Takes what publishers have announced.
    fn follow(&mut self) {
        let now = boot_now();
        while let Some(mut progress) = self.inner.next_progress() {
            // What is held has not been compared.
            progress.behind |= self.unread;
            self.state.announced(now, &progress);
        }
        self.state.expire(now);
        self.trim();
        self.report();
    }

    /// Goes on reading the past of new shards.
    fn read(&mut self) -> Result<(), BusError> {
        if self.unread == 0 {
            return Ok(());
        }
        let now = Instant::now();
        let Some(mut reading) = self.reading.take() else {
            if now.duration_since(self.unread_since) >= GATHER
                && let Some(oldest_ns) = self.held.oldest_ns
            {
                self.reading = Some(self.begin(oldest_ns, now)?);
            }
            return Ok(());
        };
        for _ in 0..READ_BURST {
            let Some(delivery) = reading.source.receive(Duration::ZERO)? else { break };
            self.remember(&mut reading, &delivery);
        }
        let mut is_missing = false;
        while let Some(missing) = reading.source.next_missing() {
            debug!(?missing, "past records missing");
            is_missing = true;
        }
        let took = now.duration_since(reading.began_at);
        let is_late = took >= READ_WITHIN;
        if !is_late && !reading.source.is_live() {
            self.reading = Some(reading);
            return Ok(());
        }
        self.metrics.past_seconds.set(took.as_secs_f64());
        if is_late || is_missing {
            self.metrics.past_incomplete.inc();
            warn!(
                shards = reading.shards.count_ones(),
                "past records incomplete, what a former owner of these shards delivered may be delivered twice"
            );
        }
        info!(
            shards = reading.shards.count_ones(),
            records = reading.records,
            milliseconds = took.as_millis() as u64,
            "past records read"
        );
        self.unread &= !reading.shards;
        self.unread_since = now;
        self.state.keep_shards(self.unread);
        self.ready.extend(self.held.take(reading.shards));
        Ok(())
    }

    fn begin(&self, oldest_ns: u64, now: Instant) -> Result<Reading, BusError> {
        let before = self.settings.duration + PAST_MARGIN;
        let since_ns = oldest_ns.saturating_sub(before.as_nanos() as u64);
        let is_unread = |topic: &Topic| topic.kind == self.kind && self.unread >> topic.shard.index() & 1 == 1;
        let prefixes: Vec<String> = Topic::all().filter(is_unread).map(|topic| topic.as_str().to_owned()).collect();
        let source = (self.read_past)(&prefixes, since_ns)?;
        Ok(Reading { source, shards: self.unread, began_at: now, records: 0 })
    }

    /// Remembers the records that former owners have handled.
    fn remember(&mut self, reading: &mut Reading, past: &Delivery) {
        let Delivery { topic, stream_name, stream_epoch, first_sequence, batch, .. } = past;
        let shard = topic.shard;
        if reading.shards >> shard.index() & 1 == 0 || batch.is_empty() {
            return;
        }
        let stream = Stream { name: Arc::clone(stream_name), epoch: *stream_epoch };
        let sequence = |index| first_sequence + batch.offset(index);
        let held_from = self.held.firsts.get(&(stream.clone(), shard.index())).copied().unwrap_or(u64::MAX);
        let to = sequence(batch.len() - 1) + 1;
        let is_past = to <= held_from && self.inner.is_covered(&stream, shard, *first_sequence, to);
        let now = boot_now();
        for (index, record) in batch.records().enumerate() {
            let at = sequence(index);
            if !is_past && (at >= held_from || !self.inner.is_covered(&stream, shard, at, at + 1)) {
                continue;
            }
            let interface = record.origin.map_or(0, |origin| origin.interface);
            let (Some(key), Some(view)) = (self.state.key(&record), self.state.view(now, &stream, interface)) else {
                continue;
            };
            let captured_at_ns = record.captured_at_ns;
            // Before all deliveries that are compared with it.
            let delivery = self.base.wrapping_sub(1);
            self.state.observe(key, Sighting { view, shard, captured_at_ns, delivery, is_past: true });
            reading.records += 1;
        }
    }

    fn is_held_full(&self) -> bool {
        self.held.bytes >= MAX_HELD_BYTES
    }

    fn report(&mut self) {
        let now = Instant::now();
        let Deduplicate { duration, max_bytes } = self.settings;
        if let Some(status) = &self.status {
            status.answer(|| {
                let views = self.state.views().map(|(stream, interface, counters)| {
                    json!({
                        "stream": stream.to_string(),
                        "interface": interface,
                        "live": counters.is_live,
                        "duplicates": counters.duplicates,
                        "only_here": counters.only,
                    })
                });
                let counters = self.state.counters();
                json!({
                    "duration_seconds": duration.as_secs_f64(),
                    "entries": self.state.len(),
                    "bytes": self.state.memory_bytes(),
                    "max_bytes": max_bytes,
                    "evicted": counters.evicted,
                    "late": counters.late,
                    "apart": counters.apart,
                    "newest_apart_seconds": self.state.newest_apart().as_secs_f64(),
                    "without_view": counters.without_view,
                    "shards_reading_the_past": self.unread.count_ones(),
                    "views": views.collect::<Vec<_>>(),
                })
            });
        }
        if self.metered_at.is_some_and(|at| now.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(now);
        self.metrics.set(&self.state);
        let counters = self.state.counters();
        if counters.apart > self.apart
            && let Some(suppressed) = self.apart_log.allow(now)
        {
            warn!(
                records = counters.apart - self.apart,
                difference_ms = self.state.newest_apart().as_millis() as u64,
                duration_ms = duration.as_millis() as u64,
                suppressed,
                "clocks of captures further apart than SEKIWAKE_DEDUPLICATE, datagrams are delivered twice"
            );
            self.apart = counters.apart;
        }
    }
}

impl Held {
    fn push(&mut self, delivery: GroupDelivery) {
        self.bytes += delivery.batch.memory_bytes();
        let first = self.firsts.entry((delivery.stream.clone(), delivery.topic.shard.index())).or_insert(u64::MAX);
        *first = delivery.first_sequence.min(*first);
        self.oldest_ns = Some(
            self.oldest_ns.map_or(delivery.first_captured_at_ns, |oldest| oldest.min(delivery.first_captured_at_ns)),
        );
        self.deliveries.push_back(delivery);
    }

    /// Takes the batches of these shards, in order.
    fn take(&mut self, shards: u64) -> Vec<GroupDelivery> {
        let is_taken = |delivery: &GroupDelivery| shards >> delivery.topic.shard.index() & 1 == 1;
        let (taken, left) = std::mem::take(&mut self.deliveries).into_iter().partition::<Vec<_>, _>(is_taken);
        *self = Held::default();
        left.into_iter().for_each(|delivery| self.push(delivery));
        taken
    }
}

/// Removes what belongs to a shard.
trait Extract {
    fn extract(&mut self, shard: Shard) -> Vec<GroupDelivery>;
}

impl Extract for VecDeque<GroupDelivery> {
    fn extract(&mut self, shard: Shard) -> Vec<GroupDelivery> {
        let is_of_shard = |delivery: &GroupDelivery| delivery.topic.shard == shard;
        let (of_shard, others) = std::mem::take(self).into_iter().partition::<Vec<_>, _>(is_of_shard);
        self.extend(others);
        of_shard
    }
}

impl HandoffState for DeduplicatingSource {
    fn put_handoff_entry(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.inner.put_handoff_entry(shard, key, value, at_ns)
    }

    fn pending_handoff(&self) -> usize {
        self.inner.pending_handoff()
    }

    fn handoff_complete(&self, shard: Shard) -> bool {
        self.inner.handoff_complete(shard)
    }

    fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
        self.inner.take_handoff_entry()
    }

    fn shard_to_present(&mut self) -> Option<Shard> {
        self.inner.shard_to_present()
    }
}

impl GroupSource for DeduplicatingSource {
    fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
        if let Some(delivery) = self.try_receive()? {
            return Ok(Some(delivery));
        }
        let timeout = if self.unread == 0 { timeout } else { timeout.min(READ_POLL) };
        if self.is_held_full() {
            self.inner.poll_control(timeout)?;
            return Ok(None);
        }
        let received = self.inner.receive(timeout)?;
        let delivery = received.and_then(|delivery| self.take(delivery));
        self.follow();
        Ok(delivery)
    }

    fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
        self.read()?;
        for _ in 0..BURST {
            if let Some(delivery) = self.ready.pop_front() {
                match self.deduplicate(delivery) {
                    Some(delivery) => return Ok(Some(delivery)),
                    None => continue,
                }
            }
            if self.is_held_full() {
                return Ok(None);
            }
            let Some(delivery) = self.inner.try_receive()? else { break };
            if let Some(delivery) = self.take(delivery) {
                return Ok(Some(delivery));
            }
        }
        self.follow();
        Ok(None)
    }

    fn has_outstanding(&self) -> bool {
        self.inner.has_outstanding()
    }

    fn poll_control(&mut self, timeout: Duration) -> Result<(), BusError> {
        self.read()?;
        self.inner.poll_control(timeout)?;
        self.follow();
        Ok(())
    }

    fn set_is_full(&mut self, is_full: bool) {
        self.is_full = is_full;
        let is_held_full = self.is_held_full();
        self.inner.set_is_full(is_full || is_held_full);
    }

    fn set_destinations(&mut self, destinations: Vec<RegisteredDestination>) {
        self.inner.set_destinations(destinations);
    }

    fn set_destinations_digest(&mut self, digest: u64) {
        // Members with another setting are reported like those with other destinations.
        let setting = (self.settings.duration.as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.inner.set_destinations_digest(digest ^ setting);
    }

    fn may_use_destinations(&self) -> bool {
        self.inner.may_use_destinations()
    }

    fn is_caught_up(&self) -> bool {
        self.inner.is_caught_up()
    }

    fn has_received_all(&self) -> bool {
        self.held.deliveries.is_empty() && self.ready.is_empty() && self.inner.has_received_all()
    }

    fn owns_all(&self) -> bool {
        self.inner.owns_all()
    }

    fn owns_any(&self) -> bool {
        self.inner.owns_any()
    }

    fn leave(&mut self) {
        self.inner.leave();
    }

    fn has_left(&self) -> bool {
        self.inner.has_left()
    }

    fn has_lease(&self) -> bool {
        self.inner.has_lease()
    }

    fn can_release(&self) -> bool {
        self.inner.can_release()
    }

    fn next_progress(&mut self) -> Option<StreamProgress> {
        None
    }

    fn is_covered(&self, stream: &Stream, shard: Shard, from: u64, to: u64) -> bool {
        self.inner.is_covered(stream, shard, from, to)
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_group::{Member, MemberSettings};
    use sekiwake_record::{Batch, BatchBuilder, Name, Origin, Record};
    use sekiwake_runtime::Metrics;
    use sekiwake_testkit::fixtures;

    use super::*;
    use crate::{
        MissingRecent,
        group::{Acks, Completion},
    };

    /// Records of streams, each in a batch that is given.
    struct Inner {
        acks: Acks,
        queue: VecDeque<GroupDelivery>,
        /// Records of the first stream below this number were handled by a former owner.
        covered: u64,
        generation: u64,
    }

    impl Inner {
        fn push(&mut self, tap: &str, first_sequence: u64, numbers: &[u32]) {
            let stream = Stream::new(&Name::new(tap).unwrap(), 1);
            let topic = topic();
            let completion =
                Completion { stream: stream.clone(), shard: topic.shard, generation: self.generation, first_sequence };
            self.queue.push_back(GroupDelivery {
                topic,
                stream,
                first_sequence,
                first_captured_at_ns: at(numbers[0]),
                last_captured_at_ns: at(numbers[numbers.len() - 1]),
                batch: batch(numbers),
                ack_token: self.acks.token(completion),
            });
        }
    }

    fn topic() -> Topic {
        Topic::all().find(|topic| topic.kind == Kind::Syslog).unwrap()
    }

    /// The capture time of a datagram.
    fn at(number: u32) -> u64 {
        1_700_000_000_000_000_000 + u64::from(number) * 1_000
    }

    /// The datagrams with these identifications.
    fn batch(numbers: &[u32]) -> Batch<crate::Frame> {
        let mut builder = BatchBuilder::new(Vec::new());
        for number in numbers {
            let origin = Some(Origin { ip_id: Some(*number), interface: 0 });
            builder.push(&Record { captured_at_ns: at(*number), origin, ..fixtures::record(b"text") });
        }
        builder.into_batch().unwrap()
    }

    fn numbers(delivery: &GroupDelivery) -> Vec<u32> {
        delivery.batch.records().filter_map(|record| record.origin?.ip_id).collect()
    }

    impl HandoffState for Inner {
        fn put_handoff_entry(&mut self, _shard: Shard, _key: &[u8], _value: &[u8], _at_ns: u64) -> bool {
            false
        }

        fn pending_handoff(&self) -> usize {
            0
        }

        fn handoff_complete(&self, _shard: Shard) -> bool {
            false
        }

        fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
            None
        }

        fn shard_to_present(&mut self) -> Option<Shard> {
            None
        }
    }

    impl GroupSource for Inner {
        fn receive(&mut self, _timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
            self.try_receive()
        }

        fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
            Ok(self.queue.pop_front())
        }

        fn has_outstanding(&self) -> bool {
            self.acks.has_outstanding()
        }

        fn poll_control(&mut self, _timeout: Duration) -> Result<(), BusError> {
            Ok(())
        }

        fn set_is_full(&mut self, _is_full: bool) {}

        fn set_destinations(&mut self, _destinations: Vec<RegisteredDestination>) {}

        fn set_destinations_digest(&mut self, _digest: u64) {}

        fn may_use_destinations(&self) -> bool {
            true
        }

        fn is_caught_up(&self) -> bool {
            true
        }

        fn has_received_all(&self) -> bool {
            self.queue.is_empty()
        }

        fn owns_all(&self) -> bool {
            true
        }

        fn owns_any(&self) -> bool {
            true
        }

        fn leave(&mut self) {}

        fn has_left(&self) -> bool {
            false
        }

        fn has_lease(&self) -> bool {
            true
        }

        fn can_release(&self) -> bool {
            true
        }

        fn is_covered(&self, stream: &Stream, _shard: Shard, _from: u64, to: u64) -> bool {
            *stream.name == *"tap-a" && to <= self.covered
        }
    }

    /// What a capture has retained: one batch of `tap-a`.
    struct Past(Option<Vec<u32>>);

    impl Source for Past {
        fn receive(&mut self, _timeout: Duration) -> Result<Option<Delivery>, BusError> {
            Ok(self.0.take().map(|numbers| Delivery {
                topic: topic(),
                stream_name: Arc::from("tap-a"),
                stream_epoch: 1,
                first_sequence: 0,
                batch: batch(&numbers),
                is_retransmitted: true,
            }))
        }

        fn next_missing(&mut self) -> Option<MissingRecent> {
            None
        }

        fn is_live(&self) -> bool {
            self.0.is_none()
        }

        fn since_ns(&self) -> u64 {
            0
        }
    }

    /// A member for which the captures retain these datagrams, of which a former owner has handled
    /// `covered`. The queue is filled by `fill`.
    fn member(past: &'static [u32], covered: u64, fill: impl FnOnce(&mut Inner)) -> (DeduplicatingSource, Acks) {
        let name = |text| Name::new(text).unwrap();
        let permit = Member::<()>::new(MemberSettings::new(name("g.default"), Kind::Syslog, name("m")), 1, boot_now());
        let acks = Acks::new(permit.permit());
        let mut inner = Inner { acks: acks.shared(), queue: VecDeque::new(), covered, generation: 1 };
        fill(&mut inner);
        let settings = Deduplicate { duration: Duration::from_millis(200), max_bytes: 1 << 20 };
        let read_past: ReadPast = Box::new(move |_, _| Ok(Box::new(Past((!past.is_empty()).then(|| past.to_vec())))));
        let metrics = DeduplicateMetrics::new(&Metrics::new("test"));
        let source = DeduplicatingSource::new(Box::new(inner), Kind::Syslog, settings, 1, read_past, metrics, None);
        (source, acks)
    }

    fn next(source: &mut DeduplicatingSource) -> Option<GroupDelivery> {
        // The first records wait until those of other shards may have arrived.
        let end = Instant::now() + 4 * GATHER;
        while Instant::now() < end {
            if let Some(delivery) = source.receive(Duration::ZERO).unwrap() {
                return Some(delivery);
            }
        }
        None
    }

    fn taken(acks: &mut Acks) -> Vec<(String, u64)> {
        acks.take().map(|completion| (completion.stream.name.to_string(), completion.first_sequence)).collect()
    }

    #[test]
    fn second_copies_are_removed_and_acknowledged_after_the_first() {
        let (mut source, mut acks) = member(&[], 0, |inner| {
            inner.push("tap-a", 0, &[1, 2, 3]);
            inner.push("tap-b", 0, &[1, 2, 3]);
            inner.push("tap-b", 3, &[4, 5]);
            inner.push("tap-a", 3, &[4, 5, 6]);
        });
        let first = next(&mut source).unwrap();
        assert_eq!(numbers(&first), [1, 2, 3]);
        let second = next(&mut source).unwrap();
        assert_eq!((numbers(&second), second.first_sequence), (vec![4, 5], 3));
        let third = next(&mut source).unwrap();
        assert_eq!((numbers(&third), third.first_sequence), (vec![6], 5), "without the copies before it");
        drop(third);
        assert_eq!(taken(&mut acks), [], "the disk of the first copies is stuck");
        drop(first);
        assert_eq!(taken(&mut acks), [("tap-a".to_owned(), 0), ("tap-b".to_owned(), 0)]);
        drop(second);
        assert_eq!(taken(&mut acks), [("tap-b".to_owned(), 3), ("tap-a".to_owned(), 3)]);
    }

    #[test]
    fn copies_of_what_a_former_owner_handled_are_removed() {
        // Of what the capture retains, three were handled; the fourth is still to be delivered.
        let (mut source, mut acks) = member(&[1, 2, 3, 4], 3, |inner| {
            inner.push("tap-b", 7, &[2, 3, 4]);
            inner.push("tap-a", 3, &[4, 5]);
        });
        let first = next(&mut source).unwrap();
        assert_eq!((numbers(&first), first.first_sequence), (vec![4], 9));
        let second = next(&mut source).unwrap();
        assert_eq!((numbers(&second), second.first_sequence), (vec![5], 4));
        drop((first, second));
        assert_eq!(taken(&mut acks).len(), 2);
    }

    #[test]
    fn earlier_generation_that_waits_is_left_to_the_next_owner() {
        let (mut source, mut acks) = member(&[], 0, |inner| {
            inner.push("tap-a", 0, &[1]);
            inner.generation = 2;
            inner.push("tap-a", 0, &[1]);
        });
        let delivered = next(&mut source).unwrap();
        assert_eq!(delivered.ack_token.key().1, 2);
        drop(delivered);
        assert!(next(&mut source).is_none());
        assert_eq!(taken(&mut acks).len(), 1);
    }
}
