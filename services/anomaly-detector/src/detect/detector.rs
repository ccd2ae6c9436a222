//! Counts intervals of capture time, closes them when they are complete, and judges them.
//!
//! ```text
//!  closed, late from now on │ open, at most max_open                 │ ahead: not counted
//! ──────────────────────────┼──────────┬──────────┬─────────┬────────┼───────────▶ interval
//!                          next                  wall     wall + 1
//! ```

use std::collections::{BTreeMap, VecDeque};

use sekiwake_identify::syslog::Priority;
use sekiwake_record::{Batch, SHARDS, Shard};
use serde::Serialize;

use super::alarm::{Alarm, Change, Kind};
use super::bands::{BandSettings, Bands, Verdict, Window};
use super::positions::Positions;

/// Total, eight severities, and messages without a PRI.
const SERIES: usize = 10;

/// Events that wait to be acknowledged; beyond that the oldest is dropped and counted.
const MAX_EVENTS: usize = 1_000;

/// What is counted and how it is judged.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Length of an interval, nanoseconds; not 0.
    pub interval_ns: u64,
    /// How long after its end an interval stays open, nanoseconds.
    pub grace_ns: u64,
    /// Intervals that wait for the bus, at most.
    pub max_open: u64,
    /// Window and bands.
    pub bands: BandSettings,
    /// Intervals in a row that make an alarm or a recovery.
    pub consecutive: u32,
    /// Whether each severity is judged, besides the total.
    pub severities: bool,
}

/// The time, as the caller's clocks show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub wall_ns: u64,
    /// CLOCK_BOOTTIME, nanoseconds: it runs evenly.
    pub boot_ns: u64,
}

/// One closed interval, or several in a row that nobody knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Closed {
    /// Begin, nanoseconds since 1970.
    pub start_ns: u64,
    /// End, nanoseconds since 1970.
    pub end_ns: u64,
    /// Each series; none when the interval is unknown.
    pub series: Vec<Judged>,
}

/// What is thought of one series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// `total`, `severity/0` to `severity/7`, `severity/none`.
    pub series: &'static str,
    /// Messages.
    pub count: u64,
    /// The bands, unless it warms up.
    pub bands: Option<Bands>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether an alarm begins or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is on.
    Firing,
    /// It is over.
    Resolved,
}

/// Something that somebody must be told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// The same for an alarm and its recovery: series, kind, begin.
    pub id: String,
    /// Which band.
    pub kind: Kind,
    /// Begin or end.
    pub state: State,
    /// Which series.
    pub series: &'static str,
    /// Begin of the interval that changed it, nanoseconds since 1970.
    pub start_ns: u64,
    /// Begin of the interval with which the alarm began.
    pub since_ns: u64,
    /// Messages in the interval.
    pub count: u64,
    /// The bands at that time.
    pub bands: Option<Bands>,
}

/// What was not counted, in messages (events for the last).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Of an interval that is closed.
    pub late: u64,
    /// Of an interval beyond the next.
    pub ahead: u64,
    /// Events that nobody acknowledged in time.
    pub events: u64,
}

#[derive(Debug, Clone, Default)]
struct Series {
    window: Window,
    alarms: [Alarm; 2],
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: Settings,
    positions: Vec<Positions>,
    open: BTreeMap<u64, [u64; SERIES]>,
    next: u64,
    /// Counting began in this interval: it is not whole.
    begun: u64,
    last: Now,
    series: Vec<Series>,
    events: VecDeque<Event>,
    losses: Losses,
}

impl Detector {
    /// Begins to count at `now`; the interval of `now` is not whole and stays unknown.
    pub fn new(settings: Settings, now: Now) -> Detector {
        let settings = Settings { interval_ns: settings.interval_ns.max(1), ..settings };
        let begun = now.wall_ns / settings.interval_ns;
        let series = vec![Series::default(); if settings.severities { SERIES } else { 1 }];
        Detector {
            positions: vec![Positions::default(); SHARDS],
            open: BTreeMap::new(),
            next: begun,
            begun,
            last: now,
            series,
            events: VecDeque::new(),
            losses: Losses::default(),
            settings,
        }
    }

    /// Counts each record once, however often it comes.
    #[allow(clippy::too_many_arguments)] // the fields of a batch's header, as they come
    pub fn take(
        &mut self,
        shard: Shard,
        stream_name: &str,
        stream_epoch: u64,
        first_sequence: u64,
        first_captured_ns: u64,
        last_captured_ns: u64,
        batch: &Batch<impl AsRef<[u8]>>,
    ) {
        let skip = self.positions[shard.index()].take(stream_name, stream_epoch, first_sequence, batch.len());
        let first = first_captured_ns / self.settings.interval_ns;
        if !self.settings.severities && first == last_captured_ns / self.settings.interval_ns {
            return self.add(first, None, (batch.len() - skip) as u64);
        }
        for record in batch.records().skip(skip) {
            let series = self.settings.severities.then(|| {
                Priority::of(record.payload).map_or(SERIES - 1, |priority| usize::from(priority.severity()) + 1)
            });
            self.add(record.captured_at_ns / self.settings.interval_ns, series, 1);
        }
    }

    fn add(&mut self, interval: u64, series: Option<usize>, count: u64) {
        if count == 0 {
            return;
        }
        if interval < self.next {
            self.losses.late += count;
            return;
        }
        if interval > self.last.wall_ns / self.settings.interval_ns + 1 {
            self.losses.ahead += count;
            return;
        }
        let counts = self.open.entry(interval).or_default();
        counts[0] += count;
        if let Some(series) = series {
            counts[series] += count;
        }
    }

    /// Closes what is over. `is_complete`: all that was captured until now has been taken.
    pub fn advance(&mut self, now: Now, is_complete: bool, out: &mut Vec<Closed>) {
        let length = self.settings.interval_ns;
        let wall = now.wall_ns / length;
        let expected = self.last.wall_ns.saturating_add(now.boot_ns.saturating_sub(self.last.boot_ns));
        self.last = now;
        if now.wall_ns.abs_diff(expected) > length {
            // The clock was set: what is open is not whole, and what was skipped never was.
            self.pass_over(wall, out);
            self.open.clear();
            (self.next, self.begun) = (wall, wall);
            return;
        }
        let over = (now.wall_ns.saturating_sub(self.settings.grace_ns) / length).max(self.next);
        self.pass_over(over.saturating_sub(self.settings.max_open), out);
        while is_complete && self.next < over {
            if self.next == self.begun {
                self.pass_over(self.next + 1, out);
            } else {
                self.close(out);
            }
        }
    }

    /// Everything before `end` is unknown: one entry, whatever its length.
    fn pass_over(&mut self, end: u64, out: &mut Vec<Closed>) {
        if end <= self.next {
            return;
        }
        let length = self.settings.interval_ns;
        out.push(Closed { start_ns: self.next * length, end_ns: end.saturating_mul(length), series: Vec::new() });
        self.open = self.open.split_off(&end);
        self.next = end;
    }

    fn close(&mut self, out: &mut Vec<Closed>) {
        let (interval, length) = (self.next, self.settings.interval_ns);
        let counts = self.open.remove(&interval).unwrap_or_default();
        let mut judged = Vec::with_capacity(self.series.len());
        for (index, (series, count)) in self.series.iter_mut().zip(counts).enumerate() {
            let (bands, verdict) = series.window.judge(&self.settings.bands, count);
            for (alarm, kind) in series.alarms.iter_mut().zip([Kind::High, Kind::Low]) {
                let before = alarm.since();
                let Some(change) = alarm.take(kind, verdict, interval, self.settings.consecutive) else { continue };
                let since_ns = before.unwrap_or(interval) * length;
                let kind_name = if kind == Kind::High { "high" } else { "low" };
                if self.events.len() >= MAX_EVENTS {
                    self.events.pop_front();
                    self.losses.events += 1;
                }
                self.events.push_back(Event {
                    id: format!("{}/{kind_name}/{since_ns}", name(index)),
                    kind,
                    state: if change == Change::Fired { State::Firing } else { State::Resolved },
                    series: name(index),
                    start_ns: interval * length,
                    since_ns,
                    count,
                    bands,
                });
            }
            series.window.push(&self.settings.bands, count);
            judged.push(Judged { series: name(index), count, bands, verdict });
        }
        self.next = interval + 1;
        out.push(Closed { start_ns: interval * length, end_ns: (interval + 1) * length, series: judged });
    }

    /// What nobody has acknowledged yet, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// Alarms that are on: series, band, begin of the interval with which they began in nanoseconds since 1970.
    pub fn firing(&self) -> impl Iterator<Item = (&'static str, Kind, u64)> + '_ {
        let length = self.settings.interval_ns;
        self.series.iter().enumerate().flat_map(move |(index, series)| {
            series.alarms.iter().zip([Kind::High, Kind::Low]).filter_map(move |(alarm, kind)| {
                alarm.since().map(|since| (name(index), kind, since.saturating_mul(length)))
            })
        })
    }

    /// Forgets an event that has been told.
    pub fn acknowledge(&mut self, id: &str, state: State) {
        self.events.retain(|event| event.id != id || event.state != state);
    }

    /// What was not counted.
    pub fn losses(&self) -> Losses {
        self.losses
    }
}

fn name(index: usize) -> &'static str {
    const NAMES: [&str; SERIES] = [
        "total",
        "severity/0",
        "severity/1",
        "severity/2",
        "severity/3",
        "severity/4",
        "severity/5",
        "severity/6",
        "severity/7",
        "severity/none",
    ];
    NAMES[index]
}

#[cfg(test)]
#[path = "detector_tests.rs"]
mod tests;
