//! Blocks of files of packets.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use sekiwake_record::WallTime;

use super::block::{BLOCK_BYTES, Block, BlockLine, Place, rows_as_blocks};
use crate::{
    FileState, GroupReader, Item, PartName,
    compress::{Row, read_all, read_frame, read_table},
    pcapng::{MAX_SEALED, SEAL_BYTES, Seal, VOTING_BYTES, key_of, packets},
};

/// A group in a plain file.
struct GroupAt {
    start: u64,
    earliest: WallTime,
    latest: WallTime,
}

/// The blocks of a file.
pub(super) fn blocks_of(mut file: File, name: &PartName) -> io::Result<Vec<Block>> {
    let whole = Block {
        earliest: name.period.start_time(),
        latest: name.period.end_time(),
        offset: 0,
        key: None,
        place: Place::Whole,
    };
    if name.state == FileState::Compressed {
        let Some(rows) = read_table(&mut file)? else { return Ok(vec![whole]) };
        let key = frames_key(&mut file, &rows)?;
        return Ok(rows_as_blocks(rows, key));
    }
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(VOTING_BYTES as u64).read_to_end(&mut start)?;
    let key = key_of(&start, name.state);
    plain_blocks(&file, name, key, whole)
}

/// The key in the first frames.
fn frames_key(file: &mut File, rows: &[Row]) -> io::Result<Option<u64>> {
    let mut start = Vec::new();
    let mut offset = 0;
    for row in rows {
        if start.len() >= VOTING_BYTES {
            break;
        }
        start.extend(read_frame(file, offset, row)?.unwrap_or_default());
        offset += u64::from(row.compressed_bytes);
        if let Some(key) = crate::pcapng::head_key(&start) {
            return Ok(Some(key));
        }
    }
    Ok(key_of(&start, FileState::Compressed))
}

/// The blocks of a plain file. Each seal says where its group begins, so that the way from the end
/// to the start needs the seals only; where it ends, because of damage, the file is read.
fn plain_blocks(file: &File, name: &PartName, key: Option<u64>, whole: Block) -> io::Result<Vec<Block>> {
    let bytes = file.metadata()?.len();
    let mut groups = Vec::new();
    let mut end = last_group(file, bytes, key)?;
    let tail = end;
    let mut seal_bytes = [0; SEAL_BYTES];
    while let Some(at) = end.checked_sub(SEAL_BYTES as u64) {
        file.read_exact_at(&mut seal_bytes, at)?;
        let seal = Seal::read(&seal_bytes).filter(|seal| Some(seal.key) == key);
        let Some((seal, start)) = seal.and_then(|seal| Some((seal, at.checked_sub(seal.covered as u64)?))) else {
            break;
        };
        groups.push(GroupAt { start, earliest: seal.earliest, latest: seal.latest });
        end = start;
    }
    let mut blocks = Blocks { key, all: Vec::new() };
    if end > 0 {
        let mut reader = GroupReader::with_key(PartOf { file, at: 0, end }, key, 0);
        while let Some(item) = reader.next_item()? {
            match item {
                Item::Group { offset, bytes } => {
                    let seal = Seal::read(&bytes[bytes.len() - SEAL_BYTES..]);
                    let times = seal.map_or([WallTime::MAX, WallTime::EPOCH], |seal| [seal.earliest, seal.latest]);
                    blocks.add(offset, times, bytes.len() as u64);
                }
                Item::Damaged { offset, bytes } => {
                    blocks.add(offset, [whole.earliest, whole.latest], bytes.len() as u64);
                }
            }
        }
    }
    let mut ends = groups.iter().map(|group| group.start).chain([tail]).collect::<Vec<_>>();
    ends.sort_unstable();
    for (group, end) in groups.iter().rev().zip(&ends[1..]) {
        blocks.add(group.start, [group.earliest, group.latest], end - group.start);
    }
    // What follows the last group of a file that is written to is not complete yet.
    if tail < bytes && name.state != FileState::Open {
        blocks.add(tail, [whole.earliest, whole.latest], bytes - tail);
    }
    Ok(blocks.all)
}

/// Where the last intact group ends that is near the end of the file; 0 if there is none.
fn last_group(file: &File, bytes: u64, key: Option<u64>) -> io::Result<u64> {
    let mut last = 0;
    // A group that is not complete yet, and one before.
    let start = bytes.saturating_sub(4 * MAX_SEALED as u64);
    let mut reader = GroupReader::with_key(PartOf { file, at: start, end: bytes }, key, start);
    while let Some(item) = reader.next_item()? {
        if let Item::Group { offset, bytes } = item {
            last = offset + bytes.len() as u64;
        }
    }
    Ok(last)
}

struct Blocks {
    key: Option<u64>,
    all: Vec<Block>,
}

impl Blocks {
    fn add(&mut self, offset: u64, [earliest, latest]: [WallTime; 2], length: u64) {
        if let Some(Block { place: Place::Plain { bytes }, earliest: first, latest: last, .. }) = self.all.last_mut()
            && *bytes + length <= BLOCK_BYTES
        {
            *bytes += length;
            *first = (*first).min(earliest);
            *last = (*last).max(latest);
            return;
        }
        self.all.push(Block { earliest, latest, offset, key: self.key, place: Place::Plain { bytes: length } });
    }
}

/// A part of a file.
struct PartOf<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for PartOf<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Calls `each` with the packets of a block, and once per damaged place with `None`.
pub(super) fn read_block(mut file: File, block: &Block, each: &mut dyn FnMut(BlockLine<'_>)) -> io::Result<()> {
    match block.place {
        Place::Plain { bytes } => {
            let part = PartOf { file: &file, at: block.offset, end: block.offset + bytes };
            groups(GroupReader::with_key(part, block.key, block.offset), each)
        }
        Place::Frame { offset, row } => match read_frame(&mut file, offset, &row)? {
            Some(plain) => groups(GroupReader::with_key(&plain[..], block.key, block.offset), each),
            None => {
                (0..row.lines.clamp(1, row.plain_bytes.max(1))).for_each(|_| each((block.offset, None)));
                Ok(())
            }
        },
        Place::Whole => groups(GroupReader::new(read_all(BufReader::with_capacity(1 << 18, file))?)?, each),
        Place::Before { .. } => Ok(()),
    }
}

fn groups(mut reader: GroupReader<impl Read>, each: &mut dyn FnMut(BlockLine<'_>)) -> io::Result<()> {
    let mut is_damaged = false;
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Group { offset, bytes } => {
                is_damaged = false;
                for (at, packet) in packets(bytes) {
                    each((offset + at as u64, Some(packet)));
                }
            }
            Item::Damaged { offset, .. } => {
                if !std::mem::replace(&mut is_damaged, true) {
                    each((offset, None));
                }
            }
        }
    }
    Ok(())
}
