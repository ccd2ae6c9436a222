//! Searching stored files by time, source, severity and text.
//!
//! ```text
//! files in range ─▶ blocks with their earliest and latest time ─ by the earliest ─▶ lines that match, ordered ─▶ out
//! ```
//! The order is exact: by capture time, then by file, then by place in the file. What lies before the earliest time of all blocks that are
//! still to come is given out. Memory is bounded: where what matches would take more, the latest of it is forgotten, a horizon remembers
//! where, and after what is before it has been given out the blocks that reach beyond it are read once more. Files are written
//! nearly in order, so that one pass is the rule.

mod block;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use crate::{LineEncoder, LineFormat, Message, PartName, Query, Unread, captured_at_of, walk};
use block::{Block, blocks_of, read_block};

/// What matching lines may take that wait to be given out, bytes.
const DEFAULT_BYTES: usize = 64 << 20;

/// What a line takes beside its bytes.
const LINE_OVERHEAD: usize = 96;

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchSummary {
    /// Lines that were given out.
    pub matched: u64,
    /// Lines that were looked at; those that were read twice count twice.
    pub lines: u64,
    /// Files that were opened.
    pub files_opened: u64,
    /// Lines and compressed frames that are none, as far as they were met.
    pub corrupt: u64,
    /// Files and folders that could not be read, with the reason; the first hundred.
    pub failed: Vec<(String, String)>,
    /// Whether everything was given out that matches: nobody stopped it, and no limit did.
    pub is_complete: bool,
}

/// Where a line stands in the order of all.
type Key = (u64, usize, u64);

/// A file in the range of a search.
struct Candidate {
    name: PartName,
    /// What is in it, once it has been opened.
    blocks: Option<Vec<Block>>,
}

/// Something that is to be looked into, by its earliest time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    earliest_ns: u64,
    file: usize,
    /// `None`: the file itself, to be opened.
    block: Option<usize>,
}

/// Gives `visit` every message below `dir` that the query is for, as a JSON line with its line feed, oldest first. `is_wanted` is asked now
/// and then: once it says no, the search ends.
///
/// # Errors
/// The directory cannot be read. What is wrong with single files is in the summary.
pub fn search(
    dir: &Path,
    query: &Query,
    is_wanted: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<SearchSummary> {
    search_within(DEFAULT_BYTES, dir, query, is_wanted, visit)
}

pub(crate) fn search_within(
    max_bytes: usize,
    dir: &Path,
    query: &Query,
    is_wanted: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<SearchSummary> {
    let (candidates, unread) = candidates(dir, query)?;
    let unread = unread.into_iter().map(|(folder, error)| (folder, error.to_string()));
    let mut search = Search {
        dir: dir.to_owned(),
        query,
        max_bytes,
        candidates,
        kept: BTreeMap::new(),
        kept_bytes: 0,
        horizon: None,
        given: None,
        summary: SearchSummary { failed: unread.collect(), ..SearchSummary::default() },
    };
    while search.pass(is_wanted, visit).is_continue() {
        if search.horizon.take().is_none() {
            search.summary.is_complete = true;
            break;
        }
    }
    Ok(search.summary)
}

/// Files that may have something in the range, in the order of their names. Of a plain and a compressed one the latter is whole.
fn candidates(dir: &Path, query: &Query) -> io::Result<(Vec<Candidate>, Vec<Unread>)> {
    let mut names = Vec::new();
    let unread = walk(dir, &mut |path, _| {
        let name = PartName::parse(path);
        names.extend(name.filter(|name| name.period.start_ns() < query.to_ns && name.period.end_ns() > query.from_ns));
    })?;
    // A compressed one stands behind its plain one.
    names.sort();
    names.reverse();
    names.dedup_by(|plain, packed| PartName { packed: true, ..plain.clone() } == *packed);
    names.reverse();
    Ok((names.into_iter().map(|name| Candidate { name, blocks: None }).collect(), unread))
}

struct Search<'a> {
    dir: PathBuf,
    query: &'a Query,
    max_bytes: usize,
    candidates: Vec<Candidate>,
    /// What matches and waits to be given out.
    kept: BTreeMap<Key, Vec<u8>>,
    kept_bytes: usize,
    /// What is here and behind was not kept in this pass.
    horizon: Option<Key>,
    /// What was given out last.
    given: Option<Key>,
    summary: SearchSummary,
}

impl Search<'_> {
    /// Looks into everything once that may have something behind what was given out.
    fn pass(
        &mut self,
        is_wanted: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut due: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        for (file, candidate) in self.candidates.iter().enumerate() {
            match &candidate.blocks {
                Some(blocks) => due.extend(self.due(file, blocks)),
                None => due.push(Reverse(Due { earliest_ns: candidate.name.period.start_ns(), file, block: None })),
            }
        }
        while let Some(Reverse(next)) = due.pop() {
            if self.horizon.is_some_and(|horizon| next.earliest_ns > horizon.0) {
                break;
            }
            self.give_out(next.earliest_ns, visit)?;
            if !is_wanted() {
                return ControlFlow::Break(());
            }
            match next.block {
                None => {
                    self.open(next.file);
                    let blocks = self.candidates[next.file].blocks.as_deref().unwrap_or_default();
                    due.extend(self.due(next.file, blocks));
                }
                Some(block) => {
                    // It has been compressed meanwhile: the same lines in other blocks, each with the key that it had.
                    if self.read(next.file, block).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                        && !self.candidates[next.file].name.packed
                    {
                        self.open(next.file);
                        let blocks = self.candidates[next.file].blocks.as_deref().unwrap_or_default();
                        due.retain(|Reverse(due)| due.file != next.file);
                        due.extend(self.due(next.file, blocks));
                    }
                }
            }
        }
        self.give_out(u64::MAX, visit)?;
        // The last one.
        while let Some((key, line)) = self.kept.pop_first() {
            self.give(key, line, visit)?;
        }
        ControlFlow::Continue(())
    }

    fn due<'b>(&'b self, file: usize, blocks: &'b [Block]) -> impl Iterator<Item = Reverse<Due>> + 'b {
        let from_ns = self.query.from_ns.max(self.given.map_or(0, |given| given.0));
        let is_in_range = move |block: &Block| block.latest_ns >= from_ns && block.earliest_ns < self.query.to_ns;
        let blocks = blocks.iter().enumerate().filter(move |(_, block)| is_in_range(block));
        blocks.map(move |(index, block)| Reverse(Due { earliest_ns: block.earliest_ns, file, block: Some(index) }))
    }

    /// Finds out what is in a file.
    fn open(&mut self, file: usize) {
        self.summary.files_opened += 1;
        let candidate = &mut self.candidates[file];
        let mut blocks = blocks_of(&self.dir, &candidate.name);
        if !candidate.name.packed && blocks.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            candidate.name.packed = true;
            blocks = blocks_of(&self.dir, &candidate.name);
        }
        match blocks {
            Ok(blocks) => candidate.blocks = Some(blocks),
            Err(error) => {
                candidate.blocks = Some(Vec::new());
                self.fail(file, &error);
            }
        }
    }

    fn fail(&mut self, file: usize, error: &io::Error) {
        if self.summary.failed.len() < 100 {
            self.summary.failed.push((self.candidates[file].name.to_string(), error.to_string()));
        }
    }

    /// Keeps what matches in a block.
    fn read(&mut self, file: usize, index: usize) -> io::Result<()> {
        let candidate = &self.candidates[file];
        let (name, block) = match &candidate.blocks {
            Some(blocks) => (candidate.name.clone(), blocks[index]),
            None => return Ok(()),
        };
        let dir = self.dir.clone();
        let mut number = block.first_line;
        let result = read_block(&dir, &name, &block, &mut |line| {
            match line {
                Some(line) => self.look(file, name.format, number, line),
                None => self.summary.corrupt += 1,
            }
            number += 1;
        });
        if let Err(error) = &result
            && (name.packed || error.kind() != io::ErrorKind::NotFound)
        {
            self.fail(file, error);
        }
        result
    }

    fn look(&mut self, file: usize, format: LineFormat, number: u64, line: &[u8]) {
        self.summary.lines += 1;
        let Some(captured_at_ns) = captured_at_of(format, line) else {
            self.summary.corrupt += 1;
            return;
        };
        let key = (captured_at_ns, file, number);
        let is_wanted = self.query.is_in_range(captured_at_ns)
            && self.given.is_none_or(|given| key > given)
            && self.horizon.is_none_or(|horizon| key < horizon);
        if !is_wanted {
            return;
        }
        let Some(message) = Message::parse(format, line) else {
            self.summary.corrupt += 1;
            return;
        };
        if !self.query.matches(&message) {
            return;
        }
        let mut shown = Vec::with_capacity(line.len() + 1);
        match format {
            LineFormat::Json => {
                shown.extend_from_slice(line);
                shown.push(b'\n');
            }
            LineFormat::Text => LineEncoder::new(LineFormat::Json).encode(&message.record(), &mut shown),
        }
        self.kept_bytes += shown.capacity() + LINE_OVERHEAD;
        if let Some(twice) = self.kept.insert(key, shown) {
            self.kept_bytes -= twice.capacity() + LINE_OVERHEAD;
        }
        let left = self.query.limit.map_or(u64::MAX, |limit| limit - self.summary.matched);
        while self.kept.len() > 1 && (self.kept_bytes > self.max_bytes || self.kept.len() as u64 > left) {
            let Some((latest, line)) = self.kept.pop_last() else { return };
            self.kept_bytes -= line.capacity() + LINE_OVERHEAD;
            self.horizon = Some(latest);
        }
    }

    /// Gives out what is before a time.
    fn give_out(&mut self, before_ns: u64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
        while let Some(first) = self.kept.first_entry().filter(|first| first.key().0 < before_ns) {
            let (key, line) = first.remove_entry();
            self.give(key, line, visit)?;
        }
        ControlFlow::Continue(())
    }

    fn give(&mut self, key: Key, line: Vec<u8>, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> ControlFlow<()> {
        self.kept_bytes -= line.capacity() + LINE_OVERHEAD;
        visit(&line)?;
        self.given = Some(key);
        self.summary.matched += 1;
        if self.query.limit == Some(self.summary.matched) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
