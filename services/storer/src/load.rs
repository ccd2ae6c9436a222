//! A load: the lines or packets of one commit interval, grouped by file, which are written
//! together.

use std::{collections::HashMap, net::IpAddr};

use sekiwake_archive::{OpenGroup, Period};
use sekiwake_record::{Kind, Name, Record, WallTime};

use crate::{encode::RecordEncoder, template::Template};

/// The most files in one load.
const MAX_ENTRIES: usize = 32_768;

/// The largest buffer that is reused for the next load, bytes.
const MAX_SPARE_BYTES: usize = 32 << 20;

/// Lines grouped by file.
#[derive(Debug)]
pub struct Load {
    kind: Kind,
    template: Template,
    member: Name,
    period_seconds: u32,
    entries: Vec<Entry>,
    index: HashMap<FileKey, usize>,
    /// The entry of the last lookup, where the template has no source.
    last: Option<LastEntry>,
    /// The buffer that was returned last: the caller may have appended to it.
    lent: Lent,
    spare: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct FileKey {
    /// Start of the period, seconds since 1970.
    start: u64,
    /// Where the template has a source.
    source: Option<IpAddr>,
}

#[derive(Debug)]
struct LastEntry {
    period: Period,
    index: usize,
}

/// The state when a buffer was returned last.
#[derive(Debug, Default)]
struct Lent {
    /// The entry that the buffer belongs to.
    index: usize,
    /// Its length then.
    length: usize,
    /// Bytes of all entries then.
    total: usize,
}

/// The lines or packets for one file.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// The only source, where the template has one.
    pub(crate) source: Option<IpAddr>,
    pub(crate) period: Period,
    pub(crate) lines: Vec<u8>,
    /// The packets at their end that have no seal yet.
    group: OpenGroup,
    pub(crate) state: State,
}

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not written.
    Unwritten,
    /// Written, but possibly not durable.
    Written,
    /// Fsynced.
    Durable,
}

impl Load {
    /// An empty load for files of syslog of this template, each for this many seconds of capture
    /// time.
    pub fn new(template: Template, member: Name, period_seconds: u32) -> Load {
        Load {
            kind: Kind::Syslog,
            template,
            member,
            period_seconds,
            entries: Vec::new(),
            index: HashMap::new(),
            last: None,
            lent: Lent::default(),
            spare: Vec::new(),
        }
    }

    /// The same for another kind.
    #[must_use]
    pub fn of_kind(self, kind: Kind) -> Load {
        Load { kind, ..self }
    }

    /// Adds a record.
    #[inline]
    pub fn put(&mut self, encoder: &mut RecordEncoder, record: &Record<'_>, publisher: &str) {
        let Entry { lines, group, .. } = self.entry(WallTime::from_nanos(record.captured_at_ns), record.source);
        encoder.encode(record, publisher, lines, group);
    }

    /// Completes what was added. A load has to be complete when it is written.
    pub fn seal(&mut self, encoder: &RecordEncoder) {
        self.entries.iter_mut().for_each(|entry| encoder.seal(&mut entry.lines, &mut entry.group));
        let total = self.entries.iter().map(|entry| entry.lines.len()).sum();
        let length = self.entries.first().map_or(0, |entry| entry.lines.len());
        self.lent = Lent { index: 0, length, total };
    }

    /// The buffer for the line of a record with this capture time and source.
    #[inline]
    pub fn buffer(&mut self, captured_at: WallTime, source: IpAddr) -> &mut Vec<u8> {
        &mut self.entry(captured_at, source).lines
    }

    #[inline]
    fn entry(&mut self, captured_at: WallTime, source: IpAddr) -> &mut Entry {
        let index = match &self.last {
            Some(last) if last.period.contains(captured_at) => last.index,
            _ => self.find(captured_at, source),
        };
        self.lent = Lent { index, length: self.entries[index].lines.len(), total: self.bytes() };
        &mut self.entries[index]
    }

    fn find(&mut self, captured_at: WallTime, source: IpAddr) -> usize {
        let period = Period::of(captured_at, self.period_seconds);
        let has_source = self.template.has_source();
        let key = FileKey { start: period.start, source: has_source.then(|| source.to_canonical()) };
        let index = match self.index.get(&key) {
            Some(&index) => index,
            None => {
                let path = self.template.path(period, source, self.kind, self.member.as_str());
                let lines = std::mem::take(&mut self.spare);
                let group = OpenGroup::default();
                self.entries.push(Entry { path, source: key.source, period, lines, group, state: State::Unwritten });
                self.index.insert(key, self.entries.len() - 1);
                self.entries.len() - 1
            }
        };
        self.last = (!has_source).then_some(LastEntry { period, index });
        index
    }

    /// Bytes of all lines.
    pub fn bytes(&self) -> usize {
        // Not summed over the entries, because there may be thousands and this is called per batch.
        let Lent { index, length, total } = self.lent;
        total + self.entries.get(index).map_or(0, |entry| entry.lines.len().saturating_sub(length))
    }

    /// Whether it has the most files that a load may have.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    /// Empties it for reuse.
    pub fn clear(&mut self) {
        let largest = self.entries.drain(..).map(|entry| entry.lines).max_by_key(Vec::capacity).unwrap_or_default();
        if largest.capacity() > self.spare.capacity() && largest.capacity() <= MAX_SPARE_BYTES {
            self.spare = largest;
        }
        self.spare.clear();
        self.lent = Lent::default();
        self.index.clear();
        self.index.shrink_to(1024);
        self.entries.shrink_to(1024);
        self.last = None;
    }

    /// Marks everything as unwritten, because the directory has been replaced.
    pub fn mark_unwritten(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.state = State::Unwritten);
    }

    pub(crate) fn entries(&mut self) -> &mut [Entry] {
        &mut self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_grouped_by_file() {
        let load = |template| Load::new(Template::parse(template).unwrap(), Name::new("m").unwrap(), 60);
        let one: IpAddr = "198.51.100.1".parse().unwrap();
        let other: IpAddr = "198.51.100.2".parse().unwrap();
        let minute = 60_000_000_000;
        for (template, files) in [("{kind}", 2), ("{source}", 4)] {
            let mut load = load(template);
            for (at, source) in [(0, one), (minute - 1, other), (minute, one), (minute, other), (5, one)] {
                load.buffer(WallTime::from_nanos(at), source).push(b'x');
            }
            assert_eq!((load.bytes(), load.entries().len()), (5, files));
            let paths: Vec<(String, u64)> =
                load.entries().iter().map(|entry| (entry.path.clone(), entry.period.start)).collect();
            assert!(paths.contains(&(if files == 2 { "syslog" } else { "198.51.100.2" }.to_owned(), 60)), "{paths:?}");
            load.clear();
            assert_eq!((load.bytes(), load.entries().len()), (0, 0));
        }
    }
}
