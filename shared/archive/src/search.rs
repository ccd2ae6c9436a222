//! Searches stored files by kind, time, source, priority, format and text.
//!
//! ```text
//! files in range ─▶ blocks with their earliest and latest time ─ earliest first ─▶ matching lines, sorted ─▶ output
//! ```
//! What is called a line here is one datagram as it is stored: a line, or a packet.
//! The order is exact: by capture time, then by file, then by place in the file. Matches before the
//! earliest time of all remaining blocks are output. Memory is bounded: when matches exceed the
//! limit, the latest of them are dropped and a horizon marks the first one dropped. Once the
//! matches before the horizon are output, the blocks that reach beyond it are read again. Files are
//! written nearly in order, so one pass is usually enough.
//!
//! Newest first is the same with all three parts of a [`Rank`] reversed. If the number of messages
//! is limited, too, plain files are read from their ends, without knowing the times of what was not
//! read yet. These are taken to be no later than those in the [`RECENT_BLOCKS`] read last and in
//! samples of the rest, because a file is written nearly in order of time.

mod block;
mod packets;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use sekiwake_record::{Kind, WallTime};

use crate::{FileFormat, FileState, Found, Order, Origin, PartName, Query, Unread, pcapng, walk};
use block::{Block, Sample, blocks_of, from_end, read_block};

/// The limit on matching lines that wait for output, bytes.
const DEFAULT_BYTES: usize = 64 << 20;

/// Memory of a line besides its bytes.
const LINE_OVERHEAD: usize = 96;

/// How many blocks of a file that is read from its end bound the times of the blocks before them:
/// as much as one commit writes.
const RECENT_BLOCKS: usize = 16;

/// Is called with what was found.
type Visit<'v> = dyn FnMut(&Found<'_>) -> ControlFlow<()> + 'v;

/// The outcome of a search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchSummary {
    /// Lines output.
    pub matched: u64,
    /// Lines examined; lines read twice count twice.
    pub lines: u64,
    /// Files opened.
    pub files_opened: u64,
    /// Corrupt lines encountered, and lines in corrupt compressed frames.
    pub corrupt: u64,
    /// Files and folders that could not be read; the first hundred.
    pub failed: Vec<Unreadable>,
    /// Whether all matches were output: neither the caller nor the limit ended the search.
    pub is_complete: bool,
}

/// A file or folder that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its path below the directory.
    pub path: String,
    /// Why.
    pub error: String,
}

/// A line's position in the output order. Each part is reversed if the newest line is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Capture time, nanoseconds since 1970-01-01T00:00:00Z.
    time: u64,
    /// Index of the file.
    file: usize,
    /// Offset in the plain file.
    offset: u64,
}

/// What is read: of which directories, and what of them.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Directories of stores.
    pub dirs: Vec<PathBuf>,
    /// Which datagrams.
    pub query: Query,
    /// Whether templates are wanted, too.
    pub templates: Templates,
}

/// Templates of files of flows, besides those in the datagrams that are selected. They come when a
/// file is opened, as [`Origin::Template`] and [`Origin::Earlier`], are not counted as matches, and
/// are in no order with other files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Templates {
    /// None.
    #[default]
    None,
    /// Those that were known at the start of a file.
    OfStart,
    /// Those, and all datagrams of the file that were captured before the selection begins and may
    /// hold some: as many as a file has.
    All,
}

impl Selection {
    /// Without templates.
    pub fn new(dir: &Path, query: &Query) -> Selection {
        Selection { dirs: vec![dir.to_owned()], query: query.clone(), templates: Templates::None }
    }
}

/// A file in the range of a search.
struct Candidate {
    /// The index of its directory.
    dir: usize,
    name: PartName,
    /// Its blocks, once it has been opened.
    blocks: Option<Vec<Block>>,
    /// For a file that is read from its end.
    samples: Vec<Sample>,
    /// The latest times of the blocks read last from its end.
    recent: VecDeque<WallTime>,
}

/// A file or block to be read, ordered by the rank of its first line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    time: u64,
    file: usize,
    /// `None`: the file has to be opened first.
    block: Option<usize>,
}

/// Calls `visit` for every syslog message below `dir` that matches the query, as a JSON line with
/// its line feed, and for datagrams of other kinds if the query names them. The order is that of
/// the query. `is_wanted` is called periodically; once it returns false the search ends.
///
/// # Errors
/// The directory cannot be read. Failures of single files are in the summary.
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
    let mut line = Vec::new();
    read_within(max_bytes, &Selection::new(dir, query), is_wanted, &mut |found| {
        line.clear();
        found.write_json(&mut line);
        visit(&line)
    })
}

/// Calls `visit` for everything that is selected, in the order of the query. `is_wanted` is called
/// periodically; once it returns false the reading ends. Memory is bounded.
///
/// # Errors
/// A directory cannot be read. Failures of single files are in the summary.
pub fn read(
    selection: &Selection,
    is_wanted: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(&Found<'_>) -> ControlFlow<()>,
) -> io::Result<SearchSummary> {
    read_within(DEFAULT_BYTES, selection, is_wanted, visit)
}

fn read_within(
    max_bytes: usize,
    selection: &Selection,
    is_wanted: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(&Found<'_>) -> ControlFlow<()>,
) -> io::Result<SearchSummary> {
    let mut all = Vec::new();
    let mut failed = Vec::new();
    for (index, dir) in selection.dirs.iter().enumerate() {
        let (candidates, unread) = candidates(index, dir, &selection.query)?;
        all.extend(candidates);
        let unread =
            unread.into_iter().map(|Unread { folder, error }| Unreadable { path: folder, error: error.to_string() });
        failed.extend(unread);
    }
    let mut search = Search {
        dirs: &selection.dirs,
        query: &selection.query,
        templates: selection.templates,
        max_bytes,
        candidates: all,
        kept: BTreeMap::new(),
        kept_bytes: 0,
        horizon: None,
        last_output: None,
        summary: SearchSummary { failed, ..SearchSummary::default() },
    };
    while search.pass(is_wanted, visit).is_continue() {
        if search.horizon.take().is_none() {
            search.summary.is_complete = true;
            break;
        }
    }
    Ok(search.summary)
}

/// Files that overlap the range, ordered by name, each in its last state.
fn candidates(index: usize, dir: &Path, query: &Query) -> io::Result<(Vec<Candidate>, Vec<Unread>)> {
    let mut names = Vec::new();
    let is_wanted = |name: &PartName| {
        query.has_kind(name.format.kind()) && name.period.start_time() < query.to && name.period.end_time() > query.from
    };
    let unread = walk(dir, &mut |path, _| {
        names.extend(PartName::parse(path).filter(is_wanted));
    })?;
    // The last state sorts last, so that in reverse order `dedup_by` removes the others.
    names.sort();
    names.reverse();
    names.dedup_by(|earlier, last| earlier.in_state(last.state) == *last);
    names.reverse();
    let candidate = |name| Candidate {
        dir: index,
        name,
        blocks: None,
        samples: Vec::new(),
        recent: VecDeque::with_capacity(RECENT_BLOCKS),
    };
    Ok((names.into_iter().map(candidate).collect(), unread))
}

struct Search<'a> {
    dirs: &'a [PathBuf],
    query: &'a Query,
    templates: Templates,
    max_bytes: usize,
    candidates: Vec<Candidate>,
    /// Matches that wait for output.
    kept: BTreeMap<Rank, Vec<u8>>,
    kept_bytes: usize,
    /// Matches from here on were dropped in this pass.
    horizon: Option<Rank>,
    /// The line output last.
    last_output: Option<Rank>,
    summary: SearchSummary,
}

impl Search<'_> {
    /// Reads once every block that may have matches after the line output last.
    fn pass(&mut self, is_wanted: &dyn Fn() -> bool, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let mut due: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
        for (file, candidate) in self.candidates.iter().enumerate() {
            match &candidate.blocks {
                Some(blocks) => due.extend(self.due(file, blocks)),
                None => {
                    let period = candidate.name.period;
                    let time = self.first_time(period.start_time(), period.end_time());
                    due.push(Reverse(Due { time, file, block: None }));
                }
            }
        }
        while let Some(Reverse(next)) = due.pop() {
            if self.horizon.is_some_and(|horizon| next.time > horizon.time) {
                break;
            }
            self.output_before(next.time, visit)?;
            if !is_wanted() {
                return ControlFlow::Break(());
            }
            match next.block.map(|block| self.read(next.file, block)) {
                Some(Ok(None)) => {}
                Some(Ok(Some(before))) => {
                    due.extend(self.due_block(next.file, before));
                }
                // The file has been closed or compressed in the meantime: its blocks differ, but
                // every line has the same rank.
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                    due.retain(|Reverse(due)| due.file != next.file);
                    self.open(next.file, visit)?;
                    due.extend(self.due(next.file, self.candidates[next.file].blocks.as_deref().unwrap_or_default()));
                }
                Some(Err(_)) => {}
                None => {
                    self.open(next.file, visit)?;
                    due.extend(self.due(next.file, self.candidates[next.file].blocks.as_deref().unwrap_or_default()));
                }
            }
        }
        self.output_before(u64::MAX, visit)?;
        // Lines at u64::MAX itself.
        while let Some((rank, line)) = self.kept.pop_first() {
            self.output(rank, line, visit)?;
        }
        ControlFlow::Continue(())
    }

    /// The rank's time of the first line in a range of times.
    fn first_time(&self, earliest: WallTime, latest: WallTime) -> u64 {
        match self.query.order {
            Order::Oldest => earliest.as_nanos(),
            Order::Newest => !latest.as_nanos(),
        }
    }

    fn rank(&self, captured_at: WallTime, file: usize, offset: u64) -> Rank {
        let time = captured_at.as_nanos();
        match self.query.order {
            Order::Oldest => Rank { time, file, offset },
            Order::Newest => Rank { time: !time, file: !file, offset: !offset },
        }
    }

    fn due<'b>(&'b self, file: usize, blocks: &'b [Block]) -> impl Iterator<Item = Reverse<Due>> + 'b {
        (0..blocks.len()).filter_map(move |index| self.due_block(file, index))
    }

    /// A block, if it may have lines that are wanted.
    fn due_block(&self, file: usize, index: usize) -> Option<Reverse<Due>> {
        let &Block { earliest, latest, .. } = self.candidates[file].blocks.as_ref()?.get(index)?;
        let last_time = match self.query.order {
            Order::Oldest => latest.as_nanos(),
            Order::Newest => !earliest.as_nanos(),
        };
        let is_in_range = latest >= self.query.from
            && earliest < self.query.to
            && self.last_output.is_none_or(|rank| last_time >= rank.time);
        let time = self.first_time(earliest, latest);
        is_in_range.then_some(Reverse(Due { time, file, block: Some(index) }))
    }

    /// Reads the list of a file's blocks.
    fn open(&mut self, file: usize, visit: &mut Visit<'_>) -> ControlFlow<()> {
        self.summary.files_opened += 1;
        let candidate = &mut self.candidates[file];
        let is_from_end = self.query.order == Order::Newest
            && self.query.limit.is_some()
            && matches!(candidate.name.format, FileFormat::Lines(_));
        loop {
            let state = candidate.name.state;
            let opened = match is_from_end && state != FileState::Compressed {
                true => from_end(&self.dirs[candidate.dir], &candidate.name),
                false => blocks_of(&self.dirs[candidate.dir], &candidate.name).map(|blocks| (blocks, Vec::new())),
            };
            match opened {
                Ok((blocks, samples)) => {
                    candidate.blocks = Some(blocks);
                    candidate.samples = samples;
                    candidate.recent.clear();
                    return self.visit_templates(file, visit);
                }
                // It has been closed or compressed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && state < FileState::Compressed => {
                    let next = if state == FileState::Open { FileState::Closed } else { FileState::Compressed };
                    candidate.name.state = next;
                }
                Err(error) => {
                    candidate.blocks = Some(Vec::new());
                    self.fail(file, &error);
                    return ControlFlow::Continue(());
                }
            }
        }
    }

    /// Gives the templates at the start of a file of flows. In later passes it is open already.
    fn visit_templates(&mut self, file: usize, visit: &mut Visit<'_>) -> ControlFlow<()> {
        let Candidate { dir, name, blocks, .. } = &self.candidates[file];
        let format = name.format;
        if self.templates == Templates::None || format.kind() != Kind::Xflow {
            return ControlFlow::Continue(());
        }
        let mut flow = ControlFlow::Continue(());
        for block in blocks.iter().flatten() {
            let is_earlier = self.templates == Templates::All && block.earliest < self.query.from;
            let mut is_start = false;
            let read = read_block(&self.dirs[*dir], name, block, &mut |(_, packet)| {
                let Some(packet) = packet.filter(|_| flow.is_continue()) else { return };
                let origin = if pcapng::is_template(packet) { Origin::Template } else { Origin::Earlier };
                is_start |= origin == Origin::Template;
                let found = Found::new(origin, format, packet);
                let is_before = || found.captured_at().is_some_and(|at| at < self.query.from);
                if origin == Origin::Template || is_earlier && is_before() {
                    flow = visit(&found);
                }
            });
            // Reading it as data fails, too, and reports it.
            if read.is_err() || flow.is_break() || !is_start && !is_earlier {
                break;
            }
        }
        flow
    }

    fn fail(&mut self, file: usize, error: &io::Error) {
        if self.summary.failed.len() < 100 {
            let path = self.candidates[file].name.to_string();
            self.summary.failed.push(Unreadable { path, error: error.to_string() });
        }
    }

    /// Keeps the matches of a block. Returns the block before it, if it is read from its end.
    fn read(&mut self, file: usize, index: usize) -> io::Result<Option<usize>> {
        let candidate = &self.candidates[file];
        let (name, block) = match &candidate.blocks {
            Some(blocks) => (candidate.name.clone(), blocks[index]),
            None => return Ok(None),
        };
        let result = read_block(&self.dirs[candidate.dir], &name, &block, &mut |(offset, line)| match line {
            Some(line) => self.examine(file, name.format, offset, line),
            None => self.summary.corrupt += 1,
        });
        if let Err(error) = &result
            && (name.state == FileState::Compressed || error.kind() != io::ErrorKind::NotFound)
        {
            self.fail(file, error);
        }
        let Some((read, before)) = result? else { return Ok(None) };
        let candidate = &mut self.candidates[file];
        let Some(blocks) = &mut candidate.blocks else { return Ok(None) };
        blocks[index] = read;
        let Some(mut before) = before else { return Ok(None) };
        if candidate.recent.len() == RECENT_BLOCKS {
            candidate.recent.pop_front();
        }
        // Of a block without a time nothing is known.
        candidate.recent.push_back(if read.latest >= read.earliest { read.latest } else { block.latest });
        let samples = candidate.samples.iter().filter(|sample| sample.offset < before.end());
        let latest = candidate.recent.iter().copied().chain(samples.map(|sample| sample.captured_at)).max();
        before.latest = latest.unwrap_or(before.latest);
        blocks.push(before);
        Ok(Some(blocks.len() - 1))
    }

    fn examine(&mut self, file: usize, format: FileFormat, offset: u64, line: &[u8]) {
        self.summary.lines += 1;
        let found = Found::new(Origin::Selected, format, line);
        if matches!(format, FileFormat::Pcapng(_)) && pcapng::is_template(line) {
            return;
        }
        let Some(captured_at) = found.captured_at() else {
            self.summary.corrupt += 1;
            return;
        };
        let rank = self.rank(captured_at, file, offset);
        let is_wanted = self.query.is_in_range(captured_at)
            && self.last_output.is_none_or(|last| rank > last)
            && self.horizon.is_none_or(|horizon| rank < horizon);
        if !is_wanted {
            return;
        }
        let Some(message) = found.message() else {
            self.summary.corrupt += 1;
            return;
        };
        if !self.query.matches(&message) {
            return;
        }
        let shown = line.to_vec();
        self.kept_bytes += shown.capacity() + LINE_OVERHEAD;
        if let Some(replaced) = self.kept.insert(rank, shown) {
            self.kept_bytes -= replaced.capacity() + LINE_OVERHEAD;
        }
        let left = self.query.limit.map_or(u64::MAX, |limit| limit - self.summary.matched);
        while self.kept.len() > 1 && (self.kept_bytes > self.max_bytes || self.kept.len() as u64 > left) {
            let Some((last, line)) = self.kept.pop_last() else { return };
            self.kept_bytes -= line.capacity() + LINE_OVERHEAD;
            self.horizon = Some(last);
        }
    }

    /// Outputs the matches before a rank's time.
    fn output_before(&mut self, time: u64, visit: &mut Visit<'_>) -> ControlFlow<()> {
        while let Some(first) = self.kept.first_entry().filter(|first| first.key().time < time) {
            let (rank, line) = first.remove_entry();
            self.output(rank, line, visit)?;
        }
        ControlFlow::Continue(())
    }

    fn output(&mut self, rank: Rank, line: Vec<u8>, visit: &mut Visit<'_>) -> ControlFlow<()> {
        self.kept_bytes -= line.capacity() + LINE_OVERHEAD;
        let file = if self.query.order == Order::Newest { !rank.file } else { rank.file };
        visit(&Found::new(Origin::Selected, self.candidates[file].name.format, &line))?;
        self.last_output = Some(rank);
        self.summary.matched += 1;
        if self.query.limit == Some(self.summary.matched) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
