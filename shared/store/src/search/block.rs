//! Pieces of stored files that can be read by themselves.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    LineFormat, MAX_LINE_BYTES, PartName, captured_at_of,
    pack::{Row, read_all, read_frame, read_table},
};

/// About so many bytes of a plain file are a block.
const BLOCK_BYTES: u64 = 1 << 20;

/// A piece of whole lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Capture times of the lines in it, nanoseconds since 1970-01-01T00:00:00Z.
    pub(super) earliest_ns: u64,
    pub(super) latest_ns: u64,
    /// The number of its first line in the file, the same whether the file is compressed or not.
    pub(super) first_line: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Of a plain file.
    Plain { offset: u64, bytes: u64 },
    /// A frame of a compressed one.
    Frame { offset: u64, row: Row },
    /// A compressed file without a table.
    Whole,
}

/// What is in a file.
pub(super) fn blocks_of(dir: &Path, name: &PartName) -> io::Result<Vec<Block>> {
    let mut file = File::open(dir.join(name.to_string()))?;
    if !name.packed {
        return plain_blocks(BufReader::with_capacity(1 << 18, file), name.format);
    }
    let Some(rows) = read_table(&mut file)? else {
        let (earliest_ns, latest_ns) = (name.period.start_ns(), name.period.end_ns());
        return Ok(vec![Block { earliest_ns, latest_ns, first_line: 0, place: Place::Whole }]);
    };
    let (mut blocks, mut offset, mut first_line) = (Vec::with_capacity(rows.len()), 0, 0);
    for row in rows {
        let place = Place::Frame { offset, row };
        blocks.push(Block { earliest_ns: row.earliest_ns, latest_ns: row.latest_ns, first_line, place });
        offset += u64::from(row.packed_bytes);
        first_line += u64::from(row.lines);
    }
    Ok(blocks)
}

/// The blocks of a plain file, which may be being written: up to its last line feed.
fn plain_blocks(mut reader: impl BufRead, format: LineFormat) -> io::Result<Vec<Block>> {
    let (mut blocks, mut line): (Vec<Block>, _) = (Vec::new(), Vec::new());
    let (mut offset, mut number, mut is_open) = (0, 0, false);
    loop {
        line.clear();
        let taken = take_line(&mut reader, &mut line)?;
        if taken == 0 || !line.ends_with(b"\n") && taken <= line.len() as u64 {
            return Ok(blocks);
        }
        if !is_open {
            let place = Place::Plain { offset, bytes: 0 };
            blocks.push(Block { earliest_ns: u64::MAX, latest_ns: 0, first_line: number, place });
        }
        if let Some(Block { earliest_ns, latest_ns, place: Place::Plain { bytes, .. }, .. }) = blocks.last_mut() {
            *bytes += taken;
            // A line without a time is no message, and is counted when its block is read.
            if let Some(at) = captured_at_of(format, &line) {
                *earliest_ns = at.min(*earliest_ns);
                *latest_ns = at.max(*latest_ns);
            }
            is_open = *bytes < BLOCK_BYTES;
        }
        offset += taken;
        number += 1;
    }
}

/// Shows `each` the lines of a block without their line feeds; `None` for what is too long, or cannot be decompressed.
pub(super) fn read_block(
    dir: &Path,
    name: &PartName,
    block: &Block,
    each: &mut dyn FnMut(Option<&[u8]>),
) -> io::Result<()> {
    let mut file = File::open(dir.join(name.to_string()))?;
    match block.place {
        Place::Plain { offset, bytes } => {
            file.seek(SeekFrom::Start(offset))?;
            lines(BufReader::with_capacity(1 << 18, file.take(bytes)), each)
        }
        Place::Frame { offset, row } => match read_frame(&mut file, offset, &row)? {
            Some(plain) => lines(&plain[..], each),
            None => {
                each(None);
                Ok(())
            }
        },
        Place::Whole => {
            let reader = BufReader::with_capacity(1 << 18, read_all(file)?);
            lines(reader, each).or_else(|error| match error.kind() {
                // What follows cannot be had; what came is what there is.
                io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    each(None);
                    Ok(())
                }
                _ => Err(error),
            })
        }
    }
}

fn lines(mut reader: impl BufRead, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let taken = take_line(&mut reader, &mut line)?;
        if taken == 0 {
            return Ok(());
        }
        let is_whole = taken == line.len() as u64;
        match line.strip_suffix(b"\n").filter(|_| is_whole) {
            Some(line) => each(Some(line)),
            None => each(None),
        }
    }
}

/// Reads up to a line feed, keeps as much as a line may have, and says how many bytes it was.
fn take_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let limit = MAX_LINE_BYTES as u64 + 1;
    let mut taken = Read::take(&mut *reader, limit).read_until(b'\n', line)? as u64;
    if taken < limit || line.ends_with(b"\n") {
        return Ok(taken);
    }
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(taken);
        }
        let end = memchr::memchr(b'\n', buffer);
        let length = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(length);
        taken += length as u64;
        if end.is_some() {
            return Ok(taken);
        }
    }
}
