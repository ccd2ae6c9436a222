//! The detector's state entries: what it leaves to the next owner, and restores.

use std::{net::IpAddr, time::Duration};

use sekiwake_record::Shard;
use serde::Serialize;

use super::{Detector, Settings, nanos};
use crate::detect::{
    event::{Event, EventState, Reason},
    handoff::{MAX_HANDOFF_ENTRY_BYTES, StateEntry, decode, encode},
    key::Key,
    series::{FiringAlarm, Series},
    sources::Source,
    tally::Tally,
};

const CLOCK_KEY: &[u8] = b"N";
const TALLY_KEY: &[u8] = b"C";
const INTERVAL_KEY: &[u8] = b"I";

/// The value of the state entry `N`.
#[derive(Serialize, serde::Deserialize)]
struct ClockState {
    next: u64,
    started_in: Option<u64>,
}

impl Detector {
    /// The state entries that have changed since the last call.
    pub fn take_changed(&mut self) -> Vec<StateEntry> {
        let entries = self.state(|is_dirty| is_dirty, |_| true);
        self.is_clock_dirty = false;
        self.has_stored_interval = true;
        self.sources.deleted.clear();
        let sources = self.sources.tracked.values_mut().map(|source| &mut source.series);
        let series = [&mut self.total].into_iter().chain(&mut self.severities).chain(sources);
        series.for_each(|series| series.is_dirty = false);
        self.tallies.iter_mut().for_each(|tally| tally.is_dirty = false);
        entries
    }

    /// All state entries. Changed entries stay marked as changed.
    pub fn all_entries(&self) -> Vec<StateEntry> {
        self.state(|_| true, |_| true)
    }

    /// All state entries of one shard. Changed entries stay marked as changed.
    pub fn shard_entries(&self, wanted: Shard) -> Vec<StateEntry> {
        self.state(|_| true, |shard| shard == wanted)
    }

    /// The order matters: if only the first entries are delivered, at worst an interval is skipped.
    /// No interval is ever evaluated with part of its messages. The length of an interval is last:
    /// until it is delivered, entries that replace those of another length are discarded with them.
    fn state(&self, is_wanted: impl Fn(bool) -> bool, is_wanted_shard: impl Fn(Shard) -> bool) -> Vec<StateEntry> {
        let mut entries = Vec::new();
        let common = Key::Total.shard();
        if is_wanted(self.is_clock_dirty) && is_wanted_shard(common) {
            let value = encode(&ClockState { next: self.next, started_in: self.started_in });
            entries.push(StateEntry { shard: common, key: CLOCK_KEY.to_vec(), value });
        }
        let deleted = self.sources.deleted.iter().filter(|source| !self.sources.tracked.contains_key(source));
        for source in deleted.filter(|source| is_wanted_shard(Shard::of(**source))) {
            let key = Key::Source(*source).to_bytes();
            entries.push(StateEntry { shard: Shard::of(*source), key, value: Vec::new() });
        }
        let severities = (0..).map(Key::Severity).zip(&self.severities);
        let common_series = [(Key::Total, &self.total)].into_iter().chain(severities);
        for (key, series) in common_series.filter(|_| is_wanted_shard(common)) {
            if is_wanted(series.is_dirty) && (series.is_dirty || *series != Series::default()) {
                entries.push(StateEntry { shard: common, key: key.to_bytes(), value: encode(series) });
            }
        }
        for (source, known) in &self.sources.tracked {
            let shard = Shard::of(*source);
            if is_wanted(known.series.is_dirty) && is_wanted_shard(shard) {
                entries.push(StateEntry { shard, key: Key::Source(*source).to_bytes(), value: encode(known) });
            }
        }
        for (tally, shard) in self.tallies.iter().zip(Shard::all()).filter(|(_, shard)| is_wanted_shard(*shard)) {
            if is_wanted(tally.is_dirty) && (tally.is_dirty || *tally != Tally::default()) {
                entries.push(StateEntry { shard, key: TALLY_KEY.to_vec(), value: encode_tally(tally) });
            }
        }
        if is_wanted(!self.has_stored_interval) && is_wanted_shard(common) {
            let value = encode(&nanos(self.settings.interval));
            entries.push(StateEntry { shard: common, key: INTERVAL_KEY.to_vec(), value });
        }
        entries
    }

    /// Restores the state of another detector, before anything is counted. `is_complete`: all
    /// records that it has not counted will be received, as when the group's next member takes
    /// over. This is unknown for a state file.
    ///
    /// Counts of intervals of another length do not fit. Then only the ends of its alarms are taken
    /// over, and the length is returned.
    pub fn restore_all(&mut self, entries: &[StateEntry], is_complete: bool) -> Option<Duration> {
        // Earlier releases do not store the length.
        let interval = stored_interval(entries).unwrap_or(self.settings.interval);
        if nanos(interval) == nanos(self.settings.interval) {
            entries.iter().for_each(|entry| self.restore(entry, is_complete));
            self.finish_restore();
            return None;
        }
        let settings = Settings { interval, total: true, severities: true, ..self.settings.clone() };
        let mut before = Detector::new(settings, self.last);
        entries.iter().for_each(|entry| before.restore(entry, is_complete));
        before.finish_restore();
        self.discard(&before);
        // Also those that the limits of this detector reject: they would be restored later.
        self.sources.deleted = entries.iter().filter_map(stored_source).collect();
        Some(interval)
    }

    /// Ends the alarms of a state that is not continued, with their ids and times, and replaces its
    /// entries.
    fn discard(&mut self, before: &Detector) {
        let now = self.last.wall;
        self.evicted_events.extend(before.events().cloned());
        for FiringAlarm { event, is_notified } in before.alarms() {
            let reason = Some(Reason::Reset);
            let event = Event { state: EventState::Resolved, reason, start: now, end: now, ..event };
            self.evicted_announcements.push_back(event.clone());
            self.evicted_events.extend(is_notified.then_some(event));
        }
        self.limit_evicted_events();
        for series in [&mut self.total].into_iter().chain(&mut self.severities) {
            series.is_dirty = true;
        }
        self.tallies.iter_mut().for_each(|tally| tally.is_dirty = true);
    }

    /// Restores a state entry of a detector with the same interval.
    pub(in crate::detect) fn restore(&mut self, entry: &StateEntry, is_complete: bool) {
        if self.try_restore(entry, is_complete).is_none() {
            self.losses.handoff_entries += 1;
        }
    }

    fn try_restore(&mut self, entry: &StateEntry, is_complete: bool) -> Option<()> {
        let StateEntry { shard, key, value } = entry;
        match key.as_slice() {
            INTERVAL_KEY => drop(decode::<u64>(value)?),
            CLOCK_KEY => {
                let ClockState { next, started_in } = decode(value)?;
                // An interval later than ours comes from a clock that was ahead.
                if is_complete && next <= self.settings.interval_of(self.last.wall) {
                    self.next = next;
                    self.started_in = started_in;
                }
            }
            TALLY_KEY => {
                let tally: Tally = decode(value)?;
                if !tally.positions.is_valid() || tally.open.len() as u64 > self.settings.max_open + 2 {
                    return None;
                }
                if is_complete {
                    self.tallies[shard.index()] = tally;
                }
            }
            bytes => match Key::from_bytes(bytes)? {
                Key::Source(source) if value.is_empty() => drop(self.sources.tracked.remove(&source)),
                Key::Source(source) => {
                    let mut known: Source = decode(value)?;
                    let is_valid = known.is_valid() && known.series.is_valid(&self.settings.bands);
                    if !is_valid
                        || !self.sources.tracked.contains_key(&source)
                            && self.sources.tracked.len() >= self.settings.max_sources
                    {
                        return None;
                    }
                    // The previous owner may have received messages after it wrote the entry.
                    if known.silent_since.is_none() {
                        known.last_seen = self.last.wall;
                    }
                    self.sources.tracked.insert(source, known);
                }
                key => {
                    let series: Series = decode(value)?;
                    if !series.is_valid(&self.settings.bands) {
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

    /// To be called when everything has been restored: drops counts of closed intervals, and tracks
    /// sources of which only counts were restored.
    pub(in crate::detect) fn finish_restore(&mut self) {
        let next = self.next;
        let now = self.last.wall;
        let Settings { max_sources, interval, .. } = self.settings;
        let tracks_sources = self.tracks_sources();
        for tally in &mut self.tallies {
            tally.open.retain(|interval, _| *interval >= next);
            let counted = tally.open.values().flat_map(|counts| counts.sources.keys());
            for source in counted.filter(|_| tracks_sources) {
                let known = self.sources.get(*source, max_sources, now, interval);
                known.last_seen = known.last_seen.max(now);
            }
        }
    }
}

/// The source that a state entry is about, unless it was deleted.
fn stored_source(entry: &StateEntry) -> Option<IpAddr> {
    Key::from_bytes(&entry.key).filter(|_| !entry.value.is_empty())?.source()
}

/// The length of an interval that state entries were counted with.
fn stored_interval(entries: &[StateEntry]) -> Option<Duration> {
    let entry = entries.iter().rev().find(|entry| entry.key == INTERVAL_KEY)?;
    decode::<u64>(&entry.value).map(Duration::from_nanos)
}

/// Encodes a tally within the size limit of an entry, if necessary without its sources.
fn encode_tally(tally: &Tally) -> Vec<u8> {
    let value = encode(tally);
    if value.len() <= MAX_HANDOFF_ENTRY_BYTES {
        return value;
    }
    let mut truncated = Tally { is_truncated: true, ..tally.clone() };
    truncated.open.values_mut().for_each(|counts| counts.sources.clear());
    encode(&truncated)
}
