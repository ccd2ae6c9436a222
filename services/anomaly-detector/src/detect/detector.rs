//! Counts intervals of capture time, closes them when they are complete, and judges them.
//!
//! ```text
//!  closed: late from now on │ open, at most max_open                 │ ahead: not counted
//! ──────────────────────────┼──────────┬──────────┬─────────┬────────┼───────────▶ interval
//!                          next                  wall     wall + 1
//! ```

use std::collections::VecDeque;

use sekiwake_identify::syslog::Priority;
use sekiwake_record::{Batch, SHARDS, Shard};
use serde::Serialize;

use super::{
    bands::{BandSettings, Bands, Verdict},
    event::{Event, EventState},
    notes::{MAX_NOTE_BYTES, StateNote, decode, encode},
    series::{Key, SEVERITIES, Series},
    sources::{Source, Sources},
    tally::{Counts, Tally},
};

/// Ends of alarms of forgotten sources that wait to be told; beyond that the oldest are dropped and counted.
const MAX_FORGOTTEN: usize = 1000;

/// How often it is looked for silent sources.
const SILENCE_EVERY_NS: u64 = 1_000_000_000;

const CLOCK_KEY: &[u8] = b"N";
const TALLY_KEY: &[u8] = b"C";

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
    /// Whether the total is judged.
    pub total: bool,
    /// Whether each severity is judged.
    pub severities: bool,
    /// Whether each source is judged.
    pub sources: bool,
    /// Sources that are known at most.
    pub max_sources: usize,
    /// A source is reported that is silent for so many times its usual pause.
    pub silent_after: Option<f64>,
}

/// The time, as the caller's clocks show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_REALTIME, nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_ns: u64,
    /// CLOCK_BOOTTIME, nanoseconds: it runs evenly.
    pub boot_ns: u64,
}

/// One closed interval, or several in a row that nobody knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Closed {
    /// Begin, nanoseconds since 1970-01-01T00:00:00Z.
    pub start_ns: u64,
    /// End.
    pub end_ns: u64,
    /// The total and the severities; none when the interval is unknown.
    pub series: Vec<Judged>,
    /// The sources together.
    pub sources: SourcesJudged,
}

/// What is thought of one series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// `total`, `severity/err`.
    pub series: String,
    /// Messages.
    pub count: u64,
    /// The bands, unless it warms up.
    pub bands: Option<Bands>,
    /// The verdict.
    pub verdict: Verdict,
}

/// How the sources were judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SourcesJudged {
    /// Sources that are known.
    pub known: usize,
    /// Those whose alarm is on.
    pub firing: usize,
    /// Those that had to make room since the start.
    pub evicted: u64,
}

/// What was not counted, messages; for the last two, events and notes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Of an interval that was closed.
    pub late: u64,
    /// Of an interval beyond the next.
    pub ahead: u64,
    /// Counted for an interval that then could not be judged.
    pub unknown: u64,
    /// Events that nobody was there to take.
    pub events: u64,
    /// Notes that are none.
    pub notes: u64,
}

/// The state machine.
#[derive(Debug, Clone)]
pub struct Detector {
    settings: Settings,
    tallies: Vec<Tally>,
    /// The next interval to close.
    next: u64,
    /// Counting began in this interval: it is not whole.
    begun: Option<u64>,
    last: Now,
    silence_looked_at: u64,
    total: Series,
    severities: [Series; SEVERITIES],
    sources: Sources,
    forgotten: VecDeque<Event>,
    is_clock_dirty: bool,
    losses: Losses,
}

impl Detector {
    /// Begins to count at `now`: the interval of `now` is not whole and stays unknown, unless what is restored has its begin.
    pub fn new(settings: Settings, now: Now) -> Detector {
        let settings =
            Settings { interval_ns: settings.interval_ns.max(1), max_open: settings.max_open.max(1), ..settings };
        let begun = now.wall_ns / settings.interval_ns;
        Detector {
            tallies: vec![Tally::default(); SHARDS],
            next: begun,
            begun: Some(begun),
            last: now,
            silence_looked_at: now.wall_ns,
            total: Series::default(),
            severities: Default::default(),
            sources: Sources::default(),
            forgotten: VecDeque::new(),
            is_clock_dirty: true,
            losses: Losses::default(),
            settings,
        }
    }

    /// Counts the records of a batch, each once, however often it comes: `first_sequence` is that of the batch's first record in its stream and
    /// shard; the capture times, nanoseconds since 1970-01-01T00:00:00Z, are those of the batch's header.
    pub fn take(
        &mut self,
        shard: Shard,
        (stream_name, stream_epoch): (&str, u64),
        first_sequence: u64,
        (first_captured_ns, last_captured_ns): (u64, u64),
        batch: &Batch<impl AsRef<[u8]>>,
    ) {
        let tally = &mut self.tallies[shard.index()];
        tally.is_dirty = true;
        let skip = tally.positions.take(stream_name, stream_epoch, first_sequence, batch.len());
        let length = self.settings.interval_ns;
        let first = first_captured_ns / length;
        let knows_sources = self.knows_sources();
        if !self.settings.severities && !knows_sources && first == last_captured_ns / length {
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
                if knows_sources {
                    let count = counts.sources.entry(source).or_default();
                    *count = count.saturating_add(1);
                }
            }
            if knows_sources {
                let known = self.sources.get(source, self.settings.max_sources, self.last.wall_ns, length);
                if let Some(resolved) = known.heard(source, record.captured_at_ns) {
                    known.series.pending.push(resolved);
                }
            }
        }
        self.take_forgotten();
    }

    /// Where messages of an interval are counted; `None`, and they are a loss, where they are not.
    fn counts(&mut self, shard: Shard, interval: u64, count: u64) -> Option<&mut Counts> {
        if interval < self.next {
            self.losses.late += count;
            return None;
        }
        if interval > self.last.wall_ns / self.settings.interval_ns + 1 {
            self.losses.ahead += count;
            return None;
        }
        Some(self.tallies[shard.index()].open.entry(interval).or_default())
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
            self.losses.unknown += self.tallies.iter_mut().map(|tally| tally.forget(|_| true)).sum::<u64>();
            (self.next, self.begun, self.is_clock_dirty) = (wall, Some(wall), true);
            // Nobody has been silent for as long as the clock says.
            self.sources.known.values_mut().for_each(|source| source.seen_ns = now.wall_ns);
            return;
        }
        let over = (now.wall_ns.saturating_sub(self.settings.grace_ns) / length).max(self.next);
        self.pass_over(over.saturating_sub(self.settings.max_open), out);
        while is_complete && self.next < over {
            if self.begun == Some(self.next) {
                self.pass_over(self.next + 1, out);
            } else {
                self.close(out);
            }
        }
        if is_complete {
            self.look_for_silence(now.wall_ns);
        }
    }

    /// What lies before this time is not known: the detector was not there for all of it.
    pub fn skip_to(&mut self, wall_ns: u64, out: &mut Vec<Closed>) {
        self.pass_over(wall_ns / self.settings.interval_ns, out);
    }

    /// Everything before `end` is unknown: one entry, whatever its length.
    fn pass_over(&mut self, end: u64, out: &mut Vec<Closed>) {
        if end <= self.next {
            return;
        }
        let length = self.settings.interval_ns;
        let (start_ns, end_ns) = (self.next.saturating_mul(length), end.saturating_mul(length));
        out.push(Closed { start_ns, end_ns, series: Vec::new(), sources: self.sources_judged() });
        let forgotten: u64 = self.tallies.iter_mut().map(|tally| tally.forget(|interval| interval < end)).sum();
        self.losses.unknown += forgotten;
        (self.next, self.is_clock_dirty) = (end, true);
    }

    fn close(&mut self, out: &mut Vec<Closed>) {
        let (interval, length) = (self.next, self.settings.interval_ns);
        let mut sum = Counts::default();
        let mut unknown_shards = [false; SHARDS];
        for (tally, is_unknown) in self.tallies.iter_mut().zip(&mut unknown_shards) {
            *is_unknown = tally.is_cut;
            let Some(counts) = tally.open.remove(&interval) else { continue };
            tally.is_dirty = true;
            // What was cut off a note is missed in the intervals that were open then, and in no other.
            tally.is_cut &= !tally.open.is_empty();
            sum.total += counts.total;
            sum.severities.iter_mut().zip(counts.severities).for_each(|(sum, count)| *sum += count);
            sum.sources.extend(counts.sources);
        }
        let judging = (&self.settings.bands, self.settings.consecutive);
        let mut judged = Vec::new();
        let mut judge = |series: &mut Series, key: Key, count: u64| {
            let (bands, verdict) = series.judge(key, judging, (interval, length), count);
            judged.push(Judged { series: key.to_string(), count, bands, verdict });
        };
        if self.settings.total {
            judge(&mut self.total, Key::Total, sum.total);
        }
        if self.settings.severities {
            for ((index, series), count) in (0..).zip(&mut self.severities).zip(sum.severities) {
                judge(series, Key::Severity(index), count);
            }
        }
        if self.settings.sources {
            for (source, known) in &mut self.sources.known {
                if unknown_shards[Shard::of(*source).index()] {
                    continue;
                }
                let count = sum.sources.get(source).copied().unwrap_or(0);
                known.series.judge(Key::Source(*source), judging, (interval, length), u64::from(count));
            }
        }
        (self.next, self.is_clock_dirty) = (interval + 1, true);
        let (start_ns, end_ns) = (interval.saturating_mul(length), (interval + 1).saturating_mul(length));
        out.push(Closed { start_ns, end_ns, series: judged, sources: self.sources_judged() });
    }

    fn look_for_silence(&mut self, now_ns: u64) {
        let Some(factor) = self.settings.silent_after else { return };
        if now_ns.saturating_sub(self.silence_looked_at) < SILENCE_EVERY_NS {
            return;
        }
        self.silence_looked_at = now_ns;
        // What was captured within the grace may be on its way.
        let until_ns = now_ns.saturating_sub(self.settings.grace_ns);
        for (source, known) in &mut self.sources.known {
            if let Some(silent) = known.falls_silent(*source, factor, self.settings.interval_ns, until_ns) {
                known.series.pending.push(silent);
            }
        }
    }

    fn knows_sources(&self) -> bool {
        self.settings.sources || self.settings.silent_after.is_some()
    }

    fn take_forgotten(&mut self) {
        self.forgotten.extend(self.sources.forgotten.drain(..));
        let surplus = self.forgotten.len().saturating_sub(MAX_FORGOTTEN);
        self.forgotten.drain(..surplus);
        self.losses.events += surplus as u64;
    }

    fn sources_judged(&self) -> SourcesJudged {
        let is_firing = |source: &&Source| source.series.is_firing() || source.silent_since.is_some();
        let firing = self.sources.known.values().filter(is_firing).count();
        SourcesJudged { known: self.sources.known.len(), firing, evicted: self.sources.evicted }
    }

    /// All series, those that are asked for.
    pub fn series(&self) -> impl Iterator<Item = (Key, &Series)> {
        let total = self.settings.total.then_some((Key::Total, &self.total));
        let severities = self.severities.iter().enumerate().take(if self.settings.severities { SEVERITIES } else { 0 });
        let severities = severities.map(|(index, series)| (Key::Severity(index as u8), series));
        let sources = self.sources.known.iter().map(|(source, known)| (Key::Source(*source), &known.series));
        total.into_iter().chain(severities).chain(sources)
    }

    /// What has not been acknowledged, in no order but that of each series.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.series().flat_map(|(_, series)| &series.pending).chain(&self.forgotten)
    }

    /// Forgets a change that has been told.
    pub fn acknowledge(&mut self, id: &str, state: EventState) {
        let is_told = |event: &Event| event.id == id && event.state == state;
        self.forgotten.retain(|event| !is_told(event));
        let sources = self.sources.known.values_mut().map(|source| &mut source.series);
        for series in [&mut self.total].into_iter().chain(&mut self.severities).chain(sources) {
            let before = series.pending.len();
            series.pending.retain(|event| !is_told(event));
            series.is_dirty |= series.pending.len() < before;
        }
    }

    /// Alarms that are on, as their begins could be told.
    pub fn firing(&self) -> impl Iterator<Item = Event> {
        let length = self.settings.interval_ns;
        let of_series = self.series().flat_map(move |(key, series)| series.firing(key, length));
        let silent = self.sources.known.iter().filter_map(|(source, known)| {
            let since_ns = known.silent_since?;
            let kind = super::EventKind::SilentSource;
            let event =
                Event::new(Key::Source(*source), kind, EventState::Firing, since_ns, (since_ns, self.last.wall_ns));
            Some(Event { usual_pause_seconds: known.usual_pause().map(|pause| pause as f64 / 1000.0), ..event })
        });
        of_series.chain(silent)
    }

    /// What was not counted.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The begin of the next interval to be judged, nanoseconds since 1970-01-01T00:00:00Z.
    pub fn next_ns(&self) -> u64 {
        self.next.saturating_mul(self.settings.interval_ns)
    }

    /// What has changed since the last call, as notes.
    pub fn take_changed(&mut self) -> Vec<StateNote> {
        let notes = self.collect(|is_dirty| is_dirty, |_| true);
        self.is_clock_dirty = false;
        self.sources.gone.clear();
        let sources = self.sources.known.values_mut().map(|source| &mut source.series);
        let series = [&mut self.total].into_iter().chain(&mut self.severities).chain(sources);
        series.for_each(|series| series.is_dirty = false);
        self.tallies.iter_mut().for_each(|tally| tally.is_dirty = false);
        notes
    }

    /// Everything, as notes. What has changed is still to be taken.
    pub fn all_notes(&self) -> Vec<StateNote> {
        self.collect(|_| true, |_| true)
    }

    /// The same of one shard.
    pub fn notes_of(&self, shard: Shard) -> Vec<StateNote> {
        self.collect(|_| true, |of| of == shard)
    }

    /// In this order: of what comes first alone an interval is missed at worst, and never judged by a part of its messages.
    fn collect(&self, is_wanted: impl Fn(bool) -> bool, is_asked: impl Fn(Shard) -> bool) -> Vec<StateNote> {
        let mut notes = Vec::new();
        let of_all = Key::Total.shard();
        if is_wanted(self.is_clock_dirty) && is_asked(of_all) {
            let value = encode(&(self.next, self.begun));
            notes.push(StateNote { shard: of_all, key: CLOCK_KEY.to_vec(), value });
        }
        let gone = self.sources.gone.iter().filter(|source| !self.sources.known.contains_key(source));
        for source in gone.filter(|source| is_asked(Shard::of(**source))) {
            let key = Key::Source(*source).to_bytes();
            notes.push(StateNote { shard: Shard::of(*source), key, value: Vec::new() });
        }
        let severities = (0..).map(Key::Severity).zip(&self.severities);
        for (key, series) in [(Key::Total, &self.total)].into_iter().chain(severities).filter(|_| is_asked(of_all)) {
            if is_wanted(series.is_dirty) && (series.is_dirty || *series != Series::default()) {
                notes.push(StateNote { shard: of_all, key: key.to_bytes(), value: encode(series) });
            }
        }
        for (source, known) in &self.sources.known {
            let shard = Shard::of(*source);
            if is_wanted(known.series.is_dirty) && is_asked(shard) {
                notes.push(StateNote { shard, key: Key::Source(*source).to_bytes(), value: encode(known) });
            }
        }
        for (tally, shard) in self.tallies.iter().zip(Shard::all()).filter(|(_, shard)| is_asked(*shard)) {
            if is_wanted(tally.is_dirty) && (tally.is_dirty || *tally != Tally::default()) {
                notes.push(StateNote { shard, key: TALLY_KEY.to_vec(), value: tally_note(tally) });
            }
        }
        notes
    }

    /// Takes in what another detector has noted, before anything is counted. `is_whole`: nothing that it had not counted has been missed
    /// since, as when a group's next member takes over; of a file nobody knows that.
    pub fn restore(&mut self, note: &StateNote, is_whole: bool) {
        if self.try_restore(note, is_whole).is_none() {
            self.losses.notes += 1;
        }
    }

    fn try_restore(&mut self, note: &StateNote, is_whole: bool) -> Option<()> {
        let StateNote { shard, key, value } = note;
        match key.as_slice() {
            CLOCK_KEY => {
                let (next, begun): (u64, Option<u64>) = decode(value)?;
                // A later one than ours comes from a clock that was ahead.
                if is_whole && next <= self.last.wall_ns / self.settings.interval_ns {
                    (self.next, self.begun) = (next, begun);
                }
            }
            TALLY_KEY => {
                let tally: Tally = decode(value)?;
                if !tally.positions.is_sound() || tally.open.len() as u64 > self.settings.max_open + 2 {
                    return None;
                }
                if is_whole {
                    self.tallies[shard.index()] = tally;
                }
            }
            bytes => match Key::from_bytes(bytes)? {
                Key::Source(source) if value.is_empty() => drop(self.sources.known.remove(&source)),
                Key::Source(source) => {
                    let mut known: Source = decode(value)?;
                    let is_sound = known.is_sound() && known.series.is_sound(&self.settings.bands);
                    if !is_sound
                        || !self.sources.known.contains_key(&source)
                            && self.sources.known.len() >= self.settings.max_sources
                    {
                        return None;
                    }
                    // Whoever took the note may have heard it since.
                    if known.silent_since.is_none() {
                        known.seen_ns = self.last.wall_ns;
                    }
                    self.sources.known.insert(source, known);
                }
                key => {
                    let series: Series = decode(value)?;
                    if !series.is_sound(&self.settings.bands) {
                        return None;
                    }
                    match key {
                        Key::Severity(index) => self.severities[usize::from(index)] = series,
                        _ => self.total = series,
                    }
                }
            },
        }
        Some(())
    }

    /// To be called when everything has been restored: counts of intervals that were closed are dropped, and sources that have only been
    /// heard since are known.
    pub fn restored(&mut self) {
        let (next, now_ns) = (self.next, self.last.wall_ns);
        let (max, length, knows_sources) = (self.settings.max_sources, self.settings.interval_ns, self.knows_sources());
        for tally in &mut self.tallies {
            tally.open.retain(|interval, _| *interval >= next);
            let heard = tally.open.values().flat_map(|counts| counts.sources.keys());
            for source in heard.filter(|_| knows_sources) {
                let known = self.sources.get(*source, max, now_ns, length);
                known.seen_ns = known.seen_ns.max(now_ns);
            }
        }
    }
}

/// A tally as it fits a note: without its sources where there are too many.
fn tally_note(tally: &Tally) -> Vec<u8> {
    let value = encode(tally);
    if value.len() <= MAX_NOTE_BYTES {
        return value;
    }
    let mut cut = Tally { is_cut: true, ..tally.clone() };
    cut.open.values_mut().for_each(|counts| counts.sources.clear());
    encode(&cut)
}
