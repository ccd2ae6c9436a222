//! Blocks: parts of stored files that can be read independently.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use sekiwake_record::WallTime;

use super::packets;
use crate::{
    FileFormat, FileState, LineFormat, PartName, captured_at_of,
    compress::{Row, read_all, read_frame, read_table},
    lines::take_line,
};

/// The approximate size of a block of a plain file, bytes.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;

/// How many places of a file are sampled before it is read from its end.
const SAMPLES: u64 = 64;

/// The bytes read at each of them.
const SAMPLE_BYTES: usize = 4 << 10;

/// The bytes read first at the end of a file.
const TAIL_BYTES: u64 = 64 << 10;

/// A range of whole lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Range of capture times.
    pub(super) earliest: WallTime,
    pub(super) latest: WallTime,
    /// The offset of its first line in the plain file, also if the file is compressed.
    pub(super) offset: u64,
    /// The key of a file of packets.
    pub(super) key: Option<u64>,
    pub(super) place: Place,
}

/// A capture time that is somewhere in a plain file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) offset: u64,
    pub(super) captured_at: WallTime,
}

/// A line of a block: its offset in the plain file, and its bytes without the line feed; `None` if
/// it is too long, or in a damaged frame.
pub(super) type BlockLine<'a> = (u64, Option<&'a [u8]>);

#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A range of a plain file.
    Plain { bytes: u64 },
    /// Everything before an offset of a plain file, to be read from its end.
    Before { end: u64 },
    /// A frame of a compressed file.
    Frame { offset: u64, row: Row },
    /// A whole compressed file, which has no table.
    Whole,
}

/// The blocks of a file.
pub(super) fn blocks_of(dir: &Path, name: &PartName) -> io::Result<Vec<Block>> {
    let mut file = File::open(dir.join(name.to_string()))?;
    let FileFormat::Lines(format) = name.format else { return packets::blocks_of(file, name) };
    if name.state != FileState::Compressed {
        return plain_blocks(BufReader::with_capacity(1 << 18, file), format);
    }
    let Some(rows) = read_table(&mut file)? else {
        let earliest = name.period.start_time();
        let latest = name.period.end_time();
        return Ok(vec![Block { earliest, latest, offset: 0, key: None, place: Place::Whole }]);
    };
    Ok(rows_as_blocks(rows, None))
}

/// The blocks of a compressed file.
pub(super) fn rows_as_blocks(rows: Vec<Row>, key: Option<u64>) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(rows.len());
    let mut frame_at = 0;
    let mut offset = 0;
    for row in rows {
        let place = Place::Frame { offset: frame_at, row };
        blocks.push(Block { earliest: row.earliest, latest: row.latest, offset, key, place });
        frame_at += u64::from(row.compressed_bytes);
        offset += u64::from(row.plain_bytes);
    }
    blocks
}

/// A plain file as one block that is read from its end, up to its last line feed, and the times at
/// some places of it.
pub(super) fn from_end(dir: &Path, name: &PartName) -> io::Result<(Vec<Block>, Vec<Sample>)> {
    let FileFormat::Lines(format) = name.format else { return Ok((blocks_of(dir, name)?, Vec::new())) };
    let file = File::open(dir.join(name.to_string()))?;
    let mut end = file.metadata()?.len();
    let mut chunk = Vec::new();
    let mut length = TAIL_BYTES;
    let mut last = None;
    while end > 0 {
        let start = end.saturating_sub(length);
        read_range(&file, start, end, &mut chunk)?;
        if let Some(at) = memchr::memrchr(b'\n', &chunk) {
            end = start + at as u64 + 1;
            let lines = chunk[..at].split(|&byte| byte == b'\n');
            last = lines.filter_map(|line| captured_at_of(format, line)).max();
            break;
        }
        end = start;
        length = BLOCK_BYTES;
    }
    if end == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut samples = Vec::new();
    let step = end / SAMPLES;
    for number in (1..SAMPLES).filter(|_| step >= BLOCK_BYTES / 16) {
        let offset = number * step;
        read_range(&file, offset, (offset + SAMPLE_BYTES as u64).min(end), &mut chunk)?;
        let lines = chunk.split(|&byte| byte == b'\n').skip(1);
        let latest = lines.filter_map(|line| captured_at_of(format, line)).max();
        samples.extend(latest.map(|captured_at| Sample { offset, captured_at }));
    }
    // The end of an open file is always read, because its messages are the newest. A closed one
    // need not be, if its samples are older than the messages found.
    let latest = match last.filter(|_| name.state == FileState::Closed && !samples.is_empty()) {
        Some(last) => samples.iter().map(|sample| sample.captured_at).fold(last, WallTime::max),
        None => name.period.end_time(),
    };
    let place = Place::Before { end };
    Ok((vec![Block { earliest: name.period.start_time(), latest, offset: 0, key: None, place }], samples))
}

/// Reads a range of a file, or what is left of it.
fn read_range(file: &File, start: u64, end: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    let mut file = file;
    file.seek(SeekFrom::Start(start))?;
    file.take(end - start).read_to_end(bytes)?;
    Ok(())
}

/// The blocks of a plain file up to its last line feed, because it may still be written to.
fn plain_blocks(mut reader: impl BufRead, format: LineFormat) -> io::Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut line = Vec::new();
    let mut offset = 0;
    let mut is_open = false;
    loop {
        line.clear();
        let taken = take_line(&mut reader, &mut line)?;
        // A last line without its line feed may be incomplete. One that exceeds the longest valid
        // line was not kept whole, and is counted as corrupt when its block is read.
        if taken == 0 || !line.ends_with(b"\n") && taken <= line.len() as u64 {
            return Ok(blocks);
        }
        if !is_open {
            let place = Place::Plain { bytes: 0 };
            blocks.push(Block { earliest: WallTime::MAX, latest: WallTime::EPOCH, offset, key: None, place });
        }
        if let Some(Block { earliest, latest, place: Place::Plain { bytes }, .. }) = blocks.last_mut() {
            *bytes += taken;
            // A line without a time is corrupt, and is counted when its block is read.
            if let Some(at) = captured_at_of(format, &line) {
                *earliest = at.min(*earliest);
                *latest = at.max(*latest);
            }
            is_open = *bytes < BLOCK_BYTES;
        }
        offset += taken;
    }
}

/// Calls `each` with the lines of a block. Of a block that is read from its end, reads the last
/// lines, and returns these and the ones before as two blocks; the times of the latter are unknown.
pub(super) fn read_block(
    dir: &Path,
    name: &PartName,
    block: &Block,
    each: &mut dyn FnMut(BlockLine<'_>),
) -> io::Result<Option<(Block, Option<Block>)>> {
    let mut file = File::open(dir.join(name.to_string()))?;
    let FileFormat::Lines(format) = name.format else { return packets::read_block(file, block, each).map(|()| None) };
    let offset = block.offset;
    match block.place {
        Place::Plain { bytes } => {
            file.seek(SeekFrom::Start(offset))?;
            lines(BufReader::with_capacity(1 << 18, file.take(bytes)), offset, each)?;
        }
        Place::Before { end } => return read_last(&file, format, block, end, each).map(Some),
        Place::Frame { offset: frame_at, row } => match read_frame(&mut file, frame_at, &row)? {
            Some(plain) => lines(&plain[..], offset, each)?,
            None => (0..row.lines.min(row.plain_bytes)).for_each(|_| each((offset, None))),
        },
        Place::Whole => {
            let reader = read_all(BufReader::with_capacity(1 << 18, file))?;
            lines(BufReader::with_capacity(1 << 18, reader), offset, each)?;
        }
    }
    Ok(None)
}

/// Reads the last lines before an offset.
fn read_last(
    file: &File,
    format: LineFormat,
    block: &Block,
    end: u64,
    each: &mut dyn FnMut(BlockLine<'_>),
) -> io::Result<(Block, Option<Block>)> {
    let mut chunk = Vec::new();
    let start = end.saturating_sub(BLOCK_BYTES);
    // From the byte before, because a line may start exactly at this place.
    let from = start.saturating_sub(1);
    read_range(file, from, end, &mut chunk)?;
    // Without a line feed all of it belongs to a line that is longer than any valid one.
    let first = match start {
        0 => 0,
        _ => {
            memchr::memchr(b'\n', &chunk[..chunk.len().saturating_sub(1)]).map_or((start - from) as usize, |at| at + 1)
        }
    };
    let offset = from + first as u64;
    let mut earliest = WallTime::MAX;
    let mut latest = WallTime::EPOCH;
    lines(&chunk[first.min(chunk.len())..], offset, &mut |(at, line)| {
        if let Some(captured_at) = line.and_then(|line| captured_at_of(format, line)) {
            earliest = earliest.min(captured_at);
            latest = latest.max(captured_at);
        }
        each((at, line));
    })?;
    let read = Block { earliest, latest, offset, key: None, place: Place::Plain { bytes: end - offset } };
    let before = Block { latest: block.latest, place: Place::Before { end: offset }, ..*block };
    Ok((read, (offset > 0).then_some(before)))
}

impl Block {
    /// Where a block that is read from its end ends.
    pub(super) fn end(&self) -> u64 {
        match self.place {
            Place::Before { end } => end,
            Place::Plain { bytes } => self.offset + bytes,
            Place::Frame { .. } | Place::Whole => u64::MAX,
        }
    }
}

fn lines(mut reader: impl BufRead, mut offset: u64, each: &mut dyn FnMut(BlockLine<'_>)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let taken = take_line(&mut reader, &mut line)?;
        if taken == 0 {
            return Ok(());
        }
        let is_whole = taken == line.len() as u64;
        each((offset, line.strip_suffix(b"\n").filter(|_| is_whole)));
        offset += taken;
    }
}
