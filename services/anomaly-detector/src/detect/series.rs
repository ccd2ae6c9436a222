//! One series of counts: its window, and its alarms.

use std::{fmt, net::IpAddr};

use sekiwake_identify::syslog::severity_keyword;
use sekiwake_record::{Shard, canonical_octets};
use serde::{Deserialize, Serialize};

use super::{
    alarm::{Alarm, Change},
    bands::{BandSettings, Bands, Verdict, Window},
    event::{Event, EventKind, EventState},
};

/// Severities, and one for messages without a PRI.
pub(super) const SEVERITIES: usize = 9;

/// Changes of one series that wait to be told; of more than these only the newest matter.
const MAX_PENDING: usize = 8;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// All messages.
    Total,
    /// Those of a severity, 0 to 7; 8: those without a PRI.
    Severity(u8),
    /// Those from a source.
    Source(IpAddr),
}

/// The state of one series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub(super) window: Window,
    /// Of too many, and of too few messages.
    pub(super) alarms: [Alarm; 2],
    /// Changes that have not been told.
    pub(super) pending: Vec<Event>,
    /// What the last judged interval was judged against, and its verdict: for those who want to see.
    #[serde(skip)]
    pub(super) last: Option<(u64, Option<Bands>, Verdict)>,
    /// There is something in it that has not been noted.
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

const KINDS: [EventKind; 2] = [EventKind::High, EventKind::Low];

impl Series {
    /// Judges a complete interval, and takes it in: its number, counted in intervals since 1970-01-01T00:00:00Z, their length in nanoseconds,
    /// and the messages in it.
    pub fn judge(
        &mut self,
        key: Key,
        (bands, consecutive): (&BandSettings, u32),
        (interval, interval_ns): (u64, u64),
        count: u64,
    ) -> (Option<Bands>, Verdict) {
        let (found, mut verdict) = self.window.judge(bands, count);
        // An average that gets used to silence does not end it.
        if count == 0 && self.alarms[1].since().is_some() && found.is_some() {
            verdict = Verdict::Low;
        }
        let span = (interval.saturating_mul(interval_ns), (interval + 1).saturating_mul(interval_ns));
        let told = self.pending.len();
        for (alarm, kind) in self.alarms.iter_mut().zip(KINDS) {
            let before = alarm.since();
            let Some(change) = alarm.take(kind, verdict, interval, consecutive) else { continue };
            let state = if change == Change::Fired { EventState::Firing } else { EventState::Resolved };
            let since_ns = before.or(alarm.since()).unwrap_or(interval).saturating_mul(interval_ns);
            let event = Event { count, bands: found, ..Event::new(key, kind, state, since_ns, span) };
            // What is over is told before what begins.
            let at = if change == Change::Fired { self.pending.len() } else { told };
            self.pending.insert(at, event);
        }
        // Of too many the oldest are told by the newer ones.
        let surplus = self.pending.len().saturating_sub(MAX_PENDING);
        self.pending.drain(..surplus);
        self.window.push(bands, count);
        self.last = Some((count, found, verdict));
        self.is_dirty = true;
        (found, verdict)
    }

    /// The alarms that are on, with the begins of the intervals with which they began, as changes that could be told.
    pub(super) fn firing(&self, key: Key, interval_ns: u64) -> impl Iterator<Item = Event> {
        let (count, bands) = self.last.map_or((0, None), |(count, bands, _)| (count, bands));
        let alarms = self.alarms.iter().zip(KINDS);
        alarms.filter_map(move |(alarm, kind)| {
            let since_ns = alarm.since()?.saturating_mul(interval_ns);
            let event = Event::new(key, kind, EventState::Firing, since_ns, (since_ns, since_ns + interval_ns));
            Some(Event { count, bands, ..event })
        })
    }

    /// Whether an alarm is on.
    pub fn is_firing(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.since().is_some())
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Count, bands and verdict of the interval that was judged last.
    pub fn last(&self) -> Option<(u64, Option<Bands>, Verdict)> {
        self.last
    }

    /// Whether it may be what it says, of one that was read.
    pub(super) fn is_sound(&self, bands: &BandSettings) -> bool {
        self.window.counts().len() <= bands.window.max(1) && self.pending.len() <= MAX_PENDING
    }
}

impl Key {
    /// The source, if it is one.
    pub fn source(self) -> Option<IpAddr> {
        match self {
            Key::Source(source) => Some(source),
            Key::Total | Key::Severity(_) => None,
        }
    }

    /// The shard that its note belongs to.
    pub(super) fn shard(self) -> Shard {
        match self {
            Key::Source(source) => Shard::of(source),
            // All shards have one owner.
            Key::Total | Key::Severity(_) => Shard::all().next().unwrap_or_else(|| Shard::of(IpAddr::from([0; 16]))),
        }
    }

    /// As it stands in the key of a note: a letter, and what it needs.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        match self {
            Key::Total => vec![b'T'],
            Key::Severity(severity) => vec![b'V', severity],
            Key::Source(source) => [&[b'S'][..], &canonical_octets(source)].concat(),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Key> {
        match bytes {
            [b'T'] => Some(Key::Total),
            [b'V', severity] => (usize::from(*severity) < SEVERITIES).then_some(Key::Severity(*severity)),
            [b'S', octets @ ..] => {
                let octets: [u8; 16] = octets.try_into().ok()?;
                Some(Key::Source(IpAddr::from(octets).to_canonical()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Total => f.write_str("total"),
            Key::Severity(severity) => write!(f, "severity/{}", severity_keyword(*severity).unwrap_or("none")),
            Key::Source(source) => write!(f, "source/{source}"),
        }
    }
}
