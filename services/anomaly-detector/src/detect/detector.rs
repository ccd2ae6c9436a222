//! Counts messages per interval of capture time, closes complete intervals and evaluates them.
//!
//! ```text
//!  closed: late             │ open, at most max_open                 │ ahead: not counted
//! ──────────────────────────┼──────────┬──────────┬─────────┬────────┼───────────▶ interval
//!                          next                  wall     wall + 1
//! ```

mod state;

use std::{collections::VecDeque, time::Duration};

use sekiwake_identify::syslog::Priority;
use sekiwake_record::{Batch, SHARDS, Shard, WallTime};

use super::{
    bands::{BandSettings, Bands, Verdict},
    event::{Event, EventKind, EventName, EventState, Span},
    key::{Key, SEVERITIES},
    series::{Criteria, FiringAlarm, Interval, Series},
    sources::{Source, Sources},
    tally::{Counts, Tally},
};

/// The most undelivered events of evicted sources; beyond that the oldest are dropped and counted.
const MAX_EVICTED_EVENTS: usize = 1000;

/// How often sources are checked for silence.
const SILENCE_EVERY: Duration = Duration::from_secs(1);

/// What is counted, and how it is evaluated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Length of an interval; not 0.
    pub interval: Duration,
    /// How long an interval stays open after its end.
    pub grace: Duration,
    /// The most intervals that stay open for missing records.
    pub max_open: u64,
    /// Window and bands.
    pub bands: BandSettings,
    /// Intervals in a row that raise or resolve an alarm.
    pub consecutive: u32,
    /// Intervals in a row on the same side after which an alarm is notified.
    pub notify_consecutive: u32,
    /// How long an alarm fires until its level is the usual one.
    pub forget: Duration,
    /// Whether the total is evaluated.
    pub total: bool,
    /// Whether each severity is evaluated.
    pub severities: bool,
    /// Whether each source is evaluated.
    pub sources: bool,
    /// The most sources tracked.
    pub max_sources: usize,
    /// A source is reported when it is silent for this many times its usual pause.
    pub silent_after: Option<f64>,
}

impl Settings {
    /// How counts are evaluated.
    pub fn criteria(&self) -> Criteria {
        Criteria {
            bands: self.bands,
            consecutive: self.consecutive,
            notify_consecutive: self.notify_consecutive,
            forget_intervals: (nanos(self.forget) / nanos(self.interval)).max(1),
        }
    }

    /// The number of the interval that contains a time.
    pub(crate) fn interval_of(&self, at: WallTime) -> u64 {
        at.as_nanos() / nanos(self.interval)
    }
}

/// The time of the caller's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall clock, which may be set.
    pub wall: WallTime,
    /// Time since boot (CLOCK_BOOTTIME), which is never set.
    pub boot: Duration,
}

/// A closed interval, or several consecutive unknown ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// Its start.
    pub start: WallTime,
    /// Its end.
    pub end: WallTime,
    /// The total and the severities; empty if the interval is unknown.
    pub series: Vec<SeriesResult>,
    /// All sources together.
    pub sources: SourceTotals,
}

/// The result of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesResult {
    /// `total`, `severity/err`.
    pub series: String,
    /// Messages.
    pub count: u64,
    /// The bands, unless the series is warming up.
    pub bands: Option<Bands>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Totals of all sources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceTotals {
    /// Sources tracked.
    pub tracked: usize,
    /// Sources with a firing alarm.
    pub firing: usize,
    /// Sources evicted since the start.
    pub evicted: u64,
}

/// Messages that were not counted, and dropped events and entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Messages of an interval that had been closed.
    pub late: u64,
    /// Messages of an interval after the next one.
    pub ahead: u64,
    /// Messages counted in an interval that then could not be evaluated.
    pub unknown: u64,
    /// Events dropped because too many waited for delivery.
    pub events: u64,
    /// Invalid state entries.
    pub handoff_entries: u64,
}

/// A batch's place in its stream, and the capture times of its header.
#[derive(Debug, Clone, Copy)]
pub struct BatchInfo<'a> {
    /// The shard of all its records.
    pub shard: Shard,
    /// The publisher's name.
    pub stream_name: &'a str,
    /// The publisher's epoch.
    pub stream_epoch: u64,
    /// The sequence number of the first record in its stream and shard.
    pub first_sequence: u64,
    /// The earliest capture time.
    pub first_captured_at: WallTime,
    /// The latest capture time.
    pub last_captured_at: WallTime,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: Settings,
    tallies: Vec<Tally>,
    /// The next interval to close.
    next: u64,
    /// The interval in which counting started, which is incomplete.
    started_in: Option<u64>,
    last: Now,
    silence_checked_at: WallTime,
    total: Series,
    severities: [Series; SEVERITIES],
    sources: Sources,
    /// Undelivered events of evicted sources.
    evicted_events: VecDeque<Event>,
    /// Those for log and bus.
    evicted_announcements: VecDeque<Event>,
    is_clock_dirty: bool,
    /// Whether the state entries include the length of an interval.
    has_stored_interval: bool,
    losses: Losses,
}

impl Detector {
    /// Starts to count at `now`. The interval of `now` is incomplete and stays unknown, unless the
    /// restored state includes its start.
    pub fn new(settings: Settings, now: Now) -> Detector {
        let settings = Settings { max_open: settings.max_open.max(1), ..settings };
        let started_in = settings.interval_of(now.wall);
        Detector {
            tallies: vec![Tally::default(); SHARDS],
            next: started_in,
            started_in: Some(started_in),
            last: now,
            silence_checked_at: now.wall,
            total: Series::default(),
            severities: Default::default(),
            sources: Sources::default(),
            evicted_events: VecDeque::new(),
            evicted_announcements: VecDeque::new(),
            is_clock_dirty: true,
            has_stored_interval: false,
            losses: Losses::default(),
            settings,
        }
    }

    /// Counts the records of a batch, each once, even if the batch is received several times.
    pub fn count(&mut self, info: BatchInfo<'_>, batch: &Batch<impl AsRef<[u8]>>) {
        let BatchInfo { shard, stream_name, stream_epoch, first_sequence, .. } = info;
        let tally = &mut self.tallies[shard.index()];
        tally.is_dirty = true;
        // Records may have been removed from the batch.
        let length = batch.len().checked_sub(1).map_or(0, |last| batch.offset(last) as usize + 1);
        let counted = tally.positions.advance(stream_name, stream_epoch, first_sequence, length) as u64;
        let skip = (0..batch.len()).take_while(|&index| batch.offset(index) < counted).count();
        let length = nanos(self.settings.interval);
        let first = info.first_captured_at.as_nanos() / length;
        let tracks_sources = self.tracks_sources();
        // If only the total is counted and all records are in one interval, none needs to be read.
        if !self.settings.severities && !tracks_sources && first == info.last_captured_at.as_nanos() / length {
            let count = (batch.len() - skip) as u64;
            if let Some(counts) = self.counts(shard, first, count) {
                counts.total += count;
            }
            return;
        }
        for record in batch.records().skip(skip) {
            let severity =
                Priority::of(record.payload).map_or(SEVERITIES - 1, |priority| usize::from(priority.severity()));
            let source = record.source.to_canonical();
            if let Some(counts) = self.counts(shard, record.captured_at_ns / length, 1) {
                counts.total += 1;
                counts.severities[severity] += 1;
                if tracks_sources {
                    let count = counts.sources.entry(source).or_default();
                    *count = count.saturating_add(1);
                }
            }
            if tracks_sources {
                let Settings { max_sources, interval, .. } = self.settings;
                let known = self.sources.get(source, max_sources, self.last.wall, interval);
                if let Some(resolved) = known.observe(source, WallTime::from_nanos(record.captured_at_ns)) {
                    known.series.report(resolved);
                }
            }
        }
        self.collect_evicted_events();
    }

    /// The counts of an open interval; `None` for any other, where `count` is added to the losses.
    fn counts(&mut self, shard: Shard, interval: u64, count: u64) -> Option<&mut Counts> {
        if interval < self.next {
            self.losses.late += count;
            return None;
        }
        if interval > self.settings.interval_of(self.last.wall) + 1 {
            self.losses.ahead += count;
            return None;
        }
        Some(self.tallies[shard.index()].open.entry(interval).or_default())
    }

    /// Closes intervals that are over. `is_complete`: every record captured until now was counted.
    pub fn advance(&mut self, now: Now, is_complete: bool, out: &mut Vec<Closed>) {
        let wall = self.settings.interval_of(now.wall);
        let expected = self.last.wall + now.boot.saturating_sub(self.last.boot);
        self.last = now;
        if now.wall.abs_diff(expected) > self.settings.interval {
            // The clock was changed: open intervals are incomplete, and skipped ones never existed.
            self.mark_unknown(wall, out);
            self.losses.unknown += self.tallies.iter_mut().map(|tally| tally.drop_intervals(|_| true)).sum::<u64>();
            self.next = wall;
            self.started_in = Some(wall);
            self.is_clock_dirty = true;
            // A jump of the clock does not count as silence.
            self.sources.tracked.values_mut().for_each(|source| source.last_seen = now.wall);
            return;
        }
        let over = self.settings.interval_of(now.wall - self.settings.grace).max(self.next);
        // Bounds the wait for missing records.
        self.mark_unknown(over.saturating_sub(self.settings.max_open), out);
        while is_complete && self.next < over {
            if self.started_in == Some(self.next) {
                self.mark_unknown(self.next + 1, out);
            } else {
                self.close(out);
            }
        }
        if is_complete {
            self.check_silence(now.wall);
        }
    }

    /// Marks everything before this time as unknown, because the detector was not running.
    pub fn skip_to(&mut self, time: WallTime, out: &mut Vec<Closed>) {
        self.mark_unknown(self.settings.interval_of(time), out);
    }

    /// Marks everything before `end` as unknown, in one entry.
    fn mark_unknown(&mut self, end: u64, out: &mut Vec<Closed>) {
        if end <= self.next {
            return;
        }
        let start = self.interval(self.next).start();
        let after = self.interval(end).start();
        out.push(Closed { start, end: after, series: Vec::new(), sources: self.source_totals() });
        let dropped: u64 = self.tallies.iter_mut().map(|tally| tally.drop_intervals(|interval| interval < end)).sum();
        self.losses.unknown += dropped;
        self.next = end;
        self.is_clock_dirty = true;
    }

    fn close(&mut self, out: &mut Vec<Closed>) {
        let interval = self.interval(self.next);
        let mut sum = Counts::default();
        let mut unknown_shards = [false; SHARDS];
        for (tally, is_unknown) in self.tallies.iter_mut().zip(&mut unknown_shards) {
            *is_unknown = tally.is_truncated;
            let Some(counts) = tally.open.remove(&interval.number) else { continue };
            tally.is_dirty = true;
            // A truncated entry lacks sources only in the intervals that were open then.
            tally.is_truncated &= !tally.open.is_empty();
            sum.total += counts.total;
            sum.severities.iter_mut().zip(counts.severities).for_each(|(sum, count)| *sum += count);
            sum.sources.extend(counts.sources);
        }
        let criteria = self.settings.criteria();
        let mut results = Vec::new();
        let mut evaluate = |series: &mut Series, key: Key, count: u64| {
            let evaluation = series.evaluate(key, &criteria, interval, count);
            let bands = evaluation.bands;
            let verdict = evaluation.verdict;
            results.push(SeriesResult { series: key.to_string(), count, bands, verdict });
        };
        if self.settings.total {
            evaluate(&mut self.total, Key::Total, sum.total);
        }
        if self.settings.severities {
            for ((index, series), count) in (0..).zip(&mut self.severities).zip(sum.severities) {
                evaluate(series, Key::Severity(index), count);
            }
        }
        if self.settings.sources {
            for (source, known) in &mut self.sources.tracked {
                if unknown_shards[Shard::of(*source).index()] {
                    continue;
                }
                let count = sum.sources.get(source).copied().unwrap_or(0);
                known.series.evaluate(Key::Source(*source), &criteria, interval, u64::from(count));
            }
        }
        self.next += 1;
        self.is_clock_dirty = true;
        let Span { start, end } = interval.span();
        out.push(Closed { start, end, series: results, sources: self.source_totals() });
    }

    fn interval(&self, number: u64) -> Interval {
        Interval { number, length: self.settings.interval }
    }

    fn check_silence(&mut self, now: WallTime) {
        let Some(factor) = self.settings.silent_after else { return };
        if now - self.silence_checked_at < SILENCE_EVERY {
            return;
        }
        self.silence_checked_at = now;
        // Messages captured within the grace period may still arrive.
        let until = now - self.settings.grace;
        for (source, known) in &mut self.sources.tracked {
            if let Some(silent) = known.check_silence(*source, factor, self.settings.interval, until) {
                known.series.report(silent);
            }
        }
    }

    fn tracks_sources(&self) -> bool {
        self.settings.sources || self.settings.silent_after.is_some()
    }

    fn collect_evicted_events(&mut self) {
        for FiringAlarm { event, is_notified } in self.sources.resolved.drain(..) {
            self.evicted_announcements.push_back(event.clone());
            self.evicted_events.extend(is_notified.then_some(event));
        }
        self.limit_evicted_events();
    }

    fn limit_evicted_events(&mut self) {
        for events in [&mut self.evicted_events, &mut self.evicted_announcements] {
            let surplus = events.len().saturating_sub(MAX_EVICTED_EVENTS);
            events.drain(..surplus);
            self.losses.events += surplus as u64;
        }
    }

    fn source_totals(&self) -> SourceTotals {
        let is_firing = |source: &&Source| source.series.firing_alarm().is_some() || source.silent_since.is_some();
        let firing = self.sources.tracked.values().filter(is_firing).count();
        SourceTotals { tracked: self.sources.tracked.len(), firing, evicted: self.sources.evicted }
    }

    /// All series that are evaluated.
    pub fn series(&self) -> impl Iterator<Item = (Key, &Series)> {
        let total = self.settings.total.then_some((Key::Total, &self.total));
        let severities = self.severities.iter().enumerate().take(if self.settings.severities { SEVERITIES } else { 0 });
        let severities = severities.map(|(index, series)| (Key::Severity(index as u8), series));
        let sources = self.sources.tracked.iter().map(|(source, known)| (Key::Source(*source), &known.series));
        total.into_iter().chain(severities).chain(sources)
    }

    /// Events for log and bus since the last call, in order within each series.
    pub fn take_announcements(&mut self) -> Vec<Event> {
        let sources = self.sources.tracked.values_mut().map(|source| &mut source.series);
        let series = [&mut self.total].into_iter().chain(&mut self.severities).chain(sources);
        let mut announcements: Vec<Event> = series.flat_map(Series::take_announcements).collect();
        announcements.extend(self.evicted_announcements.drain(..));
        announcements
    }

    /// Events for the notifiers that have not been acknowledged, in order within each series.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.series().flat_map(|(_, series)| &series.pending).chain(&self.evicted_events)
    }

    /// Removes an event that has been delivered.
    pub fn acknowledge(&mut self, name: &EventName) {
        let is_delivered = |event: &Event| event.id == name.id && event.state == name.state;
        self.evicted_events.retain(|event| !is_delivered(event));
        let sources = self.sources.tracked.values_mut().map(|source| &mut source.series);
        for series in [&mut self.total].into_iter().chain(&mut self.severities).chain(sources) {
            let before = series.pending.len();
            series.pending.retain(|event| !is_delivered(event));
            series.is_dirty |= series.pending.len() < before;
        }
    }

    /// Firing alarms as events.
    pub fn firing(&self) -> impl Iterator<Item = Event> {
        self.alarms().map(|alarm| alarm.event)
    }

    /// Firing alarms that are notified, as events.
    pub fn notified(&self) -> impl Iterator<Item = Event> {
        self.alarms().filter(|alarm| alarm.is_notified).map(|alarm| alarm.event)
    }

    fn alarms(&self) -> impl Iterator<Item = FiringAlarm> {
        let length = self.settings.interval;
        let alarms = self.series().flat_map(move |(key, series)| series.firing(key, length));
        let silent = self.sources.tracked.iter().filter_map(|(source, known)| {
            let since = known.silent_since?;
            let kind = EventKind::SilentSource;
            let span = Span { start: since, end: self.last.wall };
            let event = Event::new(Key::Source(*source), kind, EventState::Firing, since, span);
            let usual_pause_seconds = known.usual_pause().map(|pause| pause.as_secs_f64());
            Some(FiringAlarm { event: Event { usual_pause_seconds, ..event }, is_notified: true })
        });
        alarms.chain(silent)
    }

    /// Messages not counted, and dropped events and entries.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The start of the next interval to be evaluated.
    pub fn next_start(&self) -> WallTime {
        self.interval(self.next).start()
    }
}

/// At least 1, because intervals are counted in it.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}
