//! Losses of a group's member, gathered so that one loss is one line per stream: it is noticed
//! topic by topic, and request by request.
//!
//! ```text
//! quiet ── lost ─▶ gathering ── no loss for a second, or ten seconds have passed ─▶ one line, quiet
//! ```
//! The line says when the lost records were captured: after the newest record delivered before
//! them, and before the first one delivered after them. A member that has delivered nothing of a
//! topic before cannot know the former. No clock: the caller passes the time.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sekiwake_group::{Stream, wire::MAX_STREAMS};
use sekiwake_record::{SHARDS, Topic};
use tracing::warn;

/// A loss is over when nothing was lost for so long.
const QUIET: Duration = Duration::from_secs(1);
/// A loss that goes on is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The losses that have not been logged. What is left is logged when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct LossLog {
    /// The stream that was used last is the first.
    streams: Vec<StreamLosses>,
}

#[derive(Debug)]
struct StreamLosses {
    stream: Stream,
    /// By shard.
    delivered: Box<[Delivered; SHARDS]>,
    /// Records lost since the start.
    total: u64,
    loss: Option<Loss>,
}

/// The newest delivery of a topic.
#[derive(Clone, Copy, Debug, Default)]
struct Delivered {
    /// The sequence number after its last record; 0 if nothing was delivered.
    next: u64,
    captured_at_ns: u64,
}

/// A loss that is being gathered.
#[derive(Debug)]
struct Loss {
    began_at: Instant,
    newest_at: Instant,
    by_reason: BTreeMap<&'static str, u64>,
    /// One bit each.
    topics: u64,
    /// The topics of which nothing was delivered since.
    awaited: u64,
    /// `None` if it is unknown for one of the topics.
    captured_after_ns: Option<u64>,
    captured_before_ns: u64,
    /// The time of day of the newest loss: all of its records were captured before.
    noticed_at_ns: u64,
}

/// Records that were lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) topic: Topic,
    /// The first record.
    pub(crate) from: u64,
    /// The record after the last.
    pub(crate) to: u64,
    pub(crate) reason: &'static str,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LossLine {
    stream: Stream,
    records: u64,
    total: u64,
    by_reason: BTreeMap<&'static str, u64>,
    topics: u32,
    captured_after_ns: Option<u64>,
    captured_before_ns: u64,
}

impl LossLog {
    /// A batch is delivered, up to the record before `next`.
    pub(crate) fn delivered(
        &mut self,
        stream: &Stream,
        topic: Topic,
        next: u64,
        first_captured_at_ns: u64,
        last_captured_at_ns: u64,
    ) {
        let known = self.stream(stream);
        let delivered = &mut known.delivered[topic.shard.index()];
        if next > delivered.next {
            *delivered = Delivered { next, captured_at_ns: last_captured_at_ns };
        }
        let bit = 1 << topic.shard.index();
        if let Some(loss) = known.loss.as_mut().filter(|loss| loss.awaited & bit != 0) {
            loss.awaited &= !bit;
            loss.captured_before_ns = loss.captured_before_ns.max(first_captured_at_ns);
        }
    }

    /// Records are lost. `wall_ns` is the time of day.
    pub(crate) fn lost(&mut self, stream: &Stream, lost: Lost, now: Instant, wall_ns: u64) {
        let Lost { topic, from, to, reason } = lost;
        let known = self.stream(stream);
        let records = to - from;
        known.total += records;
        let delivered = known.delivered[topic.shard.index()];
        let loss = known.loss.get_or_insert_with(|| Loss {
            began_at: now,
            newest_at: now,
            by_reason: BTreeMap::new(),
            topics: 0,
            awaited: 0,
            captured_after_ns: Some(u64::MAX),
            captured_before_ns: 0,
            noticed_at_ns: wall_ns,
        });
        loss.newest_at = now;
        loss.noticed_at_ns = wall_ns;
        *loss.by_reason.entry(reason).or_default() += records;
        let bit = 1 << topic.shard.index();
        loss.topics |= bit;
        let is_behind = from < delivered.next;
        if is_behind {
            // A gap that was left behind: what was delivered before it is no longer known.
            loss.captured_before_ns = loss.captured_before_ns.max(delivered.captured_at_ns);
        } else {
            loss.awaited |= bit;
        }
        let captured_after = (!is_behind && delivered.next > 0).then_some(delivered.captured_at_ns);
        loss.captured_after_ns = loss.captured_after_ns.zip(captured_after).map(|(one, other)| one.min(other));
    }

    /// Logs the losses that are over, or have gone on for long.
    pub(crate) fn report(&mut self, now: Instant) {
        self.due(now).iter().for_each(LossLine::log);
    }

    /// The lines that are due, which count as logged afterwards.
    fn due(&mut self, now: Instant) -> Vec<LossLine> {
        let is_due = |loss: &Loss| {
            now.saturating_duration_since(loss.newest_at) >= QUIET
                || now.saturating_duration_since(loss.began_at) >= LOG_EVERY
        };
        self.streams
            .iter_mut()
            .filter(|known| known.loss.as_ref().is_some_and(is_due))
            .filter_map(StreamLosses::take)
            .collect()
    }

    fn stream(&mut self, stream: &Stream) -> &mut StreamLosses {
        let index = match self.streams.iter().position(|known| known.stream == *stream) {
            Some(index) => index,
            None => {
                if self.streams.len() >= MAX_STREAMS
                    && let Some(line) = self.streams.pop().as_mut().and_then(StreamLosses::take)
                {
                    line.log();
                }
                self.streams.push(StreamLosses {
                    stream: stream.clone(),
                    delivered: Box::new([Delivered::default(); SHARDS]),
                    total: 0,
                    loss: None,
                });
                self.streams.len() - 1
            }
        };
        self.streams[..=index].rotate_right(1);
        &mut self.streams[0]
    }
}

impl Drop for LossLog {
    fn drop(&mut self) {
        self.streams.iter_mut().filter_map(StreamLosses::take).for_each(|line| line.log());
    }
}

impl StreamLosses {
    /// The line about the gathered loss, if there is one.
    fn take(&mut self) -> Option<LossLine> {
        let loss = self.loss.take()?;
        let is_complete = loss.awaited == 0;
        Some(LossLine {
            stream: self.stream.clone(),
            records: loss.by_reason.values().sum(),
            total: self.total,
            by_reason: loss.by_reason,
            topics: loss.topics.count_ones(),
            captured_after_ns: loss.captured_after_ns,
            captured_before_ns: if is_complete { loss.captured_before_ns } else { loss.noticed_at_ns },
        })
    }
}

impl LossLine {
    fn log(&self) {
        let LossLine { stream, records, total, topics, captured_after_ns, captured_before_ns, .. } = self;
        warn!(
            %stream,
            records,
            total,
            reason = %Reasons(&self.by_reason),
            topics,
            captured_after = captured_after_ns.map(time),
            captured_before = time(*captured_before_ns),
            "records lost for this group"
        );
    }
}

/// `not_retained`, or `not_retained 20, unknown 3`.
struct Reasons<'a>(&'a BTreeMap<&'static str, u64>);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, records)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            match self.0.len() {
                1 => write!(f, "{reason}")?,
                _ => write!(f, "{separator}{reason} {records}")?,
            }
        }
        Ok(())
    }
}

/// RFC 3339 with milliseconds.
fn time(ns: u64) -> String {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    let timestamp = Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::MAX);
    format!("{timestamp:.3}")
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Kind, Name, Shard};

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const WALL_NS: u64 = 1000 * SECOND_NS;

    fn stream(name: &str) -> Stream {
        Stream::new(&Name::new(name).unwrap(), 5)
    }

    fn topic(shard: u8) -> Topic {
        Topic { kind: Kind::Syslog, shard: Shard::new(shard).unwrap() }
    }

    fn lost(shard: u8, from: u64, to: u64) -> Lost {
        Lost { topic: topic(shard), from, to, reason: "not_retained" }
    }

    /// A batch of records up to `next`, captured within the second that begins here.
    fn deliver(log: &mut LossLog, shard: u8, next: u64, second: u64) {
        log.delivered(&stream("tap"), topic(shard), next, second * SECOND_NS, (second + 1) * SECOND_NS - 1);
    }

    #[test]
    fn loss_of_many_topics_is_one_line_with_total_and_time_span() {
        let start = Instant::now();
        let mut log = LossLog::default();
        for shard in 0..64 {
            deliver(&mut log, shard, 100, 10 + u64::from(shard % 3));
        }
        for shard in 0..64 {
            log.lost(&stream("tap"), lost(shard, 100, 300), start, WALL_NS);
            deliver(&mut log, shard, 400, 50 + u64::from(shard % 3));
        }
        // A second request gives up some more.
        let later = start + Duration::from_millis(900);
        log.lost(&stream("tap"), Lost { reason: "stream_gone", ..lost(3, 400, 410) }, later, WALL_NS);
        deliver(&mut log, 3, 420, 70);
        assert_eq!(log.due(start + QUIET), []);
        let expected = LossLine {
            stream: stream("tap"),
            records: 12_810,
            total: 12_810,
            by_reason: [("not_retained", 12_800), ("stream_gone", 10)].into(),
            topics: 64,
            captured_after_ns: Some(11 * SECOND_NS - 1),
            captured_before_ns: 70 * SECOND_NS,
        };
        assert_eq!(Reasons(&expected.by_reason).to_string(), "not_retained 12800, stream_gone 10");
        assert_eq!(log.due(later + QUIET), [expected]);
        assert_eq!(log.due(later + 10 * QUIET), [], "no loss is logged twice");
        log.lost(&stream("tap"), lost(0, 400, 405), later + 20 * QUIET, WALL_NS);
        assert_eq!(log.due(later + 21 * QUIET)[0].total, 12_815);
    }

    #[test]
    fn time_span_is_as_long_as_what_is_known() {
        let start = Instant::now();
        let mut log = LossLog::default();
        // A new owner has delivered nothing before, and nothing follows.
        log.lost(&stream("tap"), lost(0, 0, 10), start, WALL_NS);
        let line = log.due(start + QUIET).remove(0);
        assert_eq!((line.captured_after_ns, line.captured_before_ns), (None, WALL_NS));
        // A gap that was left behind is given up.
        deliver(&mut log, 1, 100, 10);
        log.lost(&stream("tap"), lost(1, 40, 50), start, WALL_NS);
        let line = log.due(start + QUIET).remove(0);
        assert_eq!((line.captured_after_ns, line.captured_before_ns), (None, 11 * SECOND_NS - 1));
        assert_eq!(Reasons(&line.by_reason).to_string(), "not_retained");
        assert_eq!(time(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn loss_that_goes_on_is_logged_every_ten_seconds() {
        let start = Instant::now();
        let mut log = LossLog::default();
        let mut lines = Vec::new();
        for step in 0..30_u32 {
            let now = start + step * QUIET / 2;
            log.lost(&stream("tap"), lost(0, u64::from(step), u64::from(step) + 1), now, WALL_NS);
            lines.extend(log.due(now));
        }
        assert_eq!(lines.iter().map(|line| line.records).collect::<Vec<_>>(), [21]);
        for other in 0..2 * MAX_STREAMS {
            log.lost(&stream(&format!("tap{other}")), lost(0, 0, 1), start, WALL_NS);
        }
        assert_eq!(log.streams.len(), MAX_STREAMS);
    }
}
