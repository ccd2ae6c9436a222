//! What is to be written together: the lines of one commit interval, by file.

use std::{collections::HashMap, net::IpAddr};

use sekiwake_record::{Kind, Name};
use sekiwake_store::Period;

use crate::template::Template;

/// So many files are enough for one load.
const MAX_ENTRIES: usize = 32_768;

/// The largest buffer that is kept for the next load, bytes.
const MAX_SPARE_BYTES: usize = 32 << 20;

/// Lines for one file each.
#[derive(Debug)]
pub struct Load {
    template: Template,
    member: Name,
    period_seconds: u32,
    entries: Vec<Entry>,
    /// By the begin of the period, and by source where the template asks for it.
    index: HashMap<(u64, Option<IpAddr>), usize>,
    /// The entry that was asked for last, and for what capture times it is, where the source does not matter.
    last: Option<(Period, usize)>,
    /// The entry that was given out last, and how long it was then.
    given: (usize, usize),
    /// The bytes of all entries then.
    bytes: usize,
    spare: Vec<u8>,
}

/// The lines for one file.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) period: Period,
    pub(crate) lines: Vec<u8>,
    pub(crate) state: State,
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing of it is in a file.
    Fresh,
    /// It has been written, and the disk need not have it.
    Written,
    /// The disk has it.
    Done,
}

impl Load {
    /// An empty load for files of this template, each for so many seconds of capture time.
    pub fn new(template: Template, member: Name, period_seconds: u32) -> Load {
        let (entries, index) = (Vec::new(), HashMap::new());
        Load {
            template,
            member,
            period_seconds,
            entries,
            index,
            last: None,
            given: (0, 0),
            bytes: 0,
            spare: Vec::new(),
        }
    }

    /// Where the line of a record goes that was captured then from this source.
    #[inline]
    pub fn buffer(&mut self, captured_at_ns: u64, source: IpAddr) -> &mut Vec<u8> {
        let index = match self.last {
            Some((period, index)) if (period.start_ns()..period.end_ns()).contains(&captured_at_ns) => index,
            _ => self.find(captured_at_ns, source),
        };
        self.bytes = self.bytes();
        self.given = (index, self.entries[index].lines.len());
        &mut self.entries[index].lines
    }

    fn find(&mut self, captured_at_ns: u64, source: IpAddr) -> usize {
        let period = Period::of(captured_at_ns, self.period_seconds);
        let has_source = self.template.has_source();
        let key = (period.start, has_source.then(|| source.to_canonical()));
        let index = match self.index.get(&key) {
            Some(&index) => index,
            None => {
                let path = self.template.path(period, source, Kind::Syslog, self.member.as_str());
                let lines = std::mem::take(&mut self.spare);
                self.entries.push(Entry { path, period, lines, state: State::Fresh });
                self.index.insert(key, self.entries.len() - 1);
                self.entries.len() - 1
            }
        };
        self.last = (!has_source).then_some((period, index));
        index
    }

    /// Bytes of all lines.
    pub fn bytes(&self) -> usize {
        // Not added up over the entries: there may be thousands, and this is asked with every batch.
        let (index, before) = self.given;
        self.bytes + self.entries.get(index).map_or(0, |entry| entry.lines.len().saturating_sub(before))
    }

    /// Whether it is for so many files that no more should be added.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    /// Empties it for the next round.
    pub fn clear(&mut self) {
        let largest = self.entries.drain(..).map(|entry| entry.lines).max_by_key(Vec::capacity).unwrap_or_default();
        if largest.capacity() > self.spare.capacity() && largest.capacity() <= MAX_SPARE_BYTES {
            self.spare = largest;
        }
        self.spare.clear();
        (self.given, self.bytes) = ((0, 0), 0);
        self.index.clear();
        self.index.shrink_to(1024);
        self.entries.shrink_to(1024);
        self.last = None;
    }

    /// Nothing of it is anywhere: the directory is another one.
    pub fn begin_again(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.state = State::Fresh);
    }

    pub(crate) fn entries(&mut self) -> &mut [Entry] {
        &mut self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_gathered_by_file() {
        let load = |template| Load::new(Template::parse(template).unwrap(), Name::new("m").unwrap(), 60);
        let (one, other): (IpAddr, IpAddr) = ("198.51.100.1".parse().unwrap(), "198.51.100.2".parse().unwrap());
        let minute = 60_000_000_000;
        for (template, files) in [("{kind}", 2), ("{source}", 4)] {
            let mut load = load(template);
            for (at, source) in [(0, one), (minute - 1, other), (minute, one), (minute, other), (5, one)] {
                load.buffer(at, source).push(b'x');
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
