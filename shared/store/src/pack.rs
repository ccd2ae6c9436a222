//! Closed files, compressed: independent zstd frames of whole lines, and a table of what is where.
//!
//! ```text
//! frame, frame, ...         each at most 1 MiB of lines, with its length and checksum
//! skippable frame           0x184D2A5B | length u32          RFC 8878 §3.1.2: zstd's own tools pass over it
//!   row, row, ...           packed bytes u32 | plain bytes u32 | lines u32 | earliest u64 | latest captured_at u64
//!   end                     rows u32 | XXH3 of the rows u64 | "skwtable"
//! ```
//! Numbers are little-endian. A file without the table, or with a wrong one, is read from front to back: whatever `zstd` wrote can be.

use std::{
    fs::File,
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
};

use xxhash_rust::xxh3::xxh3_64;
use zstd::bulk::{Compressor, Decompressor};

use crate::{LineFormat, captured_at_of};

/// The most plain bytes of a frame, where no single line is longer.
const FRAME_BYTES: usize = 1 << 20;

/// Pieces of what has no line feed: nothing that the storer wrote, and yet not to be lost.
const MAX_PIECE_BYTES: usize = FRAME_BYTES;

const SKIPPABLE_MAGIC: u32 = 0x184d_2a5b;
const TABLE_MAGIC: &[u8; 8] = b"skwtable";
const ROW_BYTES: usize = 28;
const END_BYTES: usize = 20;

/// More rows than this are no table of ours: 4 TiB.
const MAX_ROWS: u32 = 1 << 22;

/// What packing made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackSummary {
    /// Lines.
    pub lines: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// Bytes that were written.
    pub packed_bytes: u64,
}

/// A frame, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) packed_bytes: u32,
    pub(crate) plain_bytes: u32,
    pub(crate) lines: u32,
    /// Capture times of the lines in it, nanoseconds since 1970-01-01T00:00:00Z; everything where a line has none.
    pub(crate) earliest_ns: u64,
    pub(crate) latest_ns: u64,
}

/// Compresses a file of lines. Every byte of it is kept.
///
/// # Errors
/// Reading or writing failed, or zstd knows no such level.
pub fn pack(mut plain: impl BufRead, format: LineFormat, level: i32, mut out: impl Write) -> io::Result<PackSummary> {
    let mut compressor = Compressor::new(level)?;
    compressor.include_checksum(true)?;
    let (mut rows, mut summary) = (Vec::new(), PackSummary::default());
    let (mut frame, mut line, mut row) = (Vec::new(), Vec::new(), empty_row());
    loop {
        line.clear();
        plain.by_ref().take(MAX_PIECE_BYTES as u64).read_until(b'\n', &mut line)?;
        if !frame.is_empty() && (line.is_empty() || frame.len() + line.len() > FRAME_BYTES) {
            let packed = compressor.compress(&frame)?;
            out.write_all(&packed)?;
            row.packed_bytes = length(packed.len())?;
            row.plain_bytes = length(frame.len())?;
            summary.packed_bytes += packed.len() as u64;
            rows.push(std::mem::replace(&mut row, empty_row()));
            frame.clear();
        }
        if line.is_empty() {
            break;
        }
        frame.extend_from_slice(&line);
        let at = captured_at_of(format, &line);
        row.lines += 1;
        row.earliest_ns = row.earliest_ns.min(at.unwrap_or(0));
        row.latest_ns = row.latest_ns.max(at.unwrap_or(u64::MAX));
        summary.lines += 1;
        summary.plain_bytes += line.len() as u64;
    }
    let table = table(&rows)?;
    out.write_all(&table)?;
    out.flush()?;
    summary.packed_bytes += table.len() as u64;
    Ok(summary)
}

fn empty_row() -> Row {
    Row { packed_bytes: 0, plain_bytes: 0, lines: 0, earliest_ns: u64::MAX, latest_ns: 0 }
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::other("a frame of over 4 GiB"))
}

fn table(rows: &[Row]) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(rows.len() * ROW_BYTES + END_BYTES);
    for row in rows {
        for number in [row.packed_bytes, row.plain_bytes, row.lines] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(&row.earliest_ns.to_le_bytes());
        body.extend_from_slice(&row.latest_ns.to_le_bytes());
    }
    let checksum = xxh3_64(&body);
    body.extend_from_slice(&length(rows.len())?.to_le_bytes());
    body.extend_from_slice(&checksum.to_le_bytes());
    body.extend_from_slice(TABLE_MAGIC);
    Ok([&SKIPPABLE_MAGIC.to_le_bytes()[..], &length(body.len())?.to_le_bytes(), &body].concat())
}

/// The table of a packed file; `None` where there is none to be believed.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read_table(file: &mut File) -> io::Result<Option<Vec<Row>>> {
    let size = file.seek(SeekFrom::End(0))?;
    let Some(end_at) = size.checked_sub(END_BYTES as u64) else { return Ok(None) };
    let mut end = [0; END_BYTES];
    file.seek(SeekFrom::Start(end_at))?;
    file.read_exact(&mut end)?;
    let count = number(&end[..4]);
    if end[12..] != *TABLE_MAGIC || count > MAX_ROWS {
        return Ok(None);
    }
    let rows_bytes = count as usize * ROW_BYTES;
    let Some(rows_at) = end_at.checked_sub(rows_bytes as u64).filter(|&at| at >= 8) else { return Ok(None) };
    let mut body = vec![0; rows_bytes];
    file.seek(SeekFrom::Start(rows_at))?;
    file.read_exact(&mut body)?;
    if xxh3_64(&body).to_le_bytes() != end[4..12] {
        return Ok(None);
    }
    let rows: Vec<Row> = body.chunks_exact(ROW_BYTES).map(row).collect();
    let frames: u64 = rows.iter().map(|row| u64::from(row.packed_bytes)).sum();
    // What is not in the table would be missed.
    Ok((frames == rows_at - 8).then_some(rows))
}

fn row(bytes: &[u8]) -> Row {
    let wide = |at: usize| u64::from(number(&bytes[at..at + 4])) | u64::from(number(&bytes[at + 4..at + 8])) << 32;
    Row {
        packed_bytes: number(&bytes[..4]),
        plain_bytes: number(&bytes[4..8]),
        lines: number(&bytes[8..12]),
        earliest_ns: wide(12),
        latest_ns: wide(20),
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// One frame of a packed file, decompressed; `None` where it is not what the table says.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read_frame(file: &mut File, offset: u64, row: &Row) -> io::Result<Option<Vec<u8>>> {
    // Larger ones are not ours: what a table claims must not decide how much memory is taken.
    if row.plain_bytes as usize > FRAME_BYTES.max(MAX_PIECE_BYTES) || row.packed_bytes as usize > 2 * FRAME_BYTES {
        return Ok(None);
    }
    let mut packed = vec![0; row.packed_bytes as usize];
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(&mut packed) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let plain = Decompressor::new()?.decompress(&packed, row.plain_bytes as usize).ok();
    Ok(plain.filter(|plain| plain.len() == row.plain_bytes as usize))
}

/// A packed file from front to back, with bounded memory.
///
/// # Errors
/// There is no memory for it.
pub(crate) fn read_all(file: impl Read) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::new(file)?;
    // 32 MiB: what zstd's own levels take, but for `--long` and `--ultra`.
    decoder.window_log_max(25)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn line(at: u64, text: &str) -> String {
        let second = at / 1_000_000_000;
        format!(
            "2026-01-02T03:04:{second:02}.{:09}Z 198.51.100.7:514 203.0.113.1:514 - unknown {text}\n",
            at % 1_000_000_000
        )
    }

    fn packed(plain: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let summary = pack(plain.as_bytes(), LineFormat::Text, 3, &mut out).unwrap();
        assert_eq!((summary.plain_bytes, summary.packed_bytes), (plain.len() as u64, out.len() as u64));
        out
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        read_all(Cursor::new(bytes))?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn a_packed_file_is_read_by_frames_and_as_a_whole() {
        let plain: String = (0..30_000).map(|number| line(number * 1_000_000, &format!("message {number}"))).collect();
        let bytes = packed(&plain);
        assert!(bytes.len() < plain.len() / 3);
        assert_eq!(unpacked(&bytes).unwrap(), plain.as_bytes());
        let mut file = file(&bytes);
        let rows = read_table(&mut file).unwrap().unwrap();
        assert!(rows.len() >= 2);
        let (mut offset, mut all) = (0, Vec::new());
        for row in &rows {
            let frame = read_frame(&mut file, offset, row).unwrap().unwrap();
            assert!(frame.len() <= FRAME_BYTES && frame.ends_with(b"\n"));
            assert_eq!(frame.iter().filter(|&&byte| byte == b'\n').count(), row.lines as usize);
            assert_eq!(captured_at_of(LineFormat::Text, &frame), Some(row.earliest_ns));
            offset += u64::from(row.packed_bytes);
            all.extend(frame);
        }
        assert_eq!(all, plain.as_bytes());
    }

    #[test]
    fn zstds_own_tool_reads_it() {
        let plain = line(1, "for all");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log.zst");
        std::fs::write(&path, packed(&plain)).unwrap();
        match std::process::Command::new("zstdcat").arg(&path).output() {
            Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout), plain),
            Err(error) => eprintln!("SKIPPED: zstds_own_tool_reads_it: zstdcat: {error}"),
        }
    }

    #[test]
    fn whatever_is_in_a_file_is_kept() {
        for plain in [
            "".to_owned(),
            "\n\n".to_owned(),
            "no line feed".to_owned(),
            "x".repeat(5 << 20),
            format!("{}\n", "y".repeat(3 << 20)),
        ] {
            assert_eq!(unpacked(&packed(&plain)).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn a_table_that_was_changed_or_cut_is_not_believed() {
        let plain: String = (0..50).map(|number| line(number, "x")).collect();
        let bytes = packed(&plain);
        let rows_at = bytes.len() - END_BYTES - ROW_BYTES;
        for at in rows_at..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(read_table(&mut file(&changed)).unwrap(), None, "{at}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(read_table(&mut file(&bytes[..cut])).unwrap(), None, "{cut}");
        }
        // A frame that was changed is found by its checksum.
        let mut changed = bytes.clone();
        changed[rows_at - 20] ^= 1;
        let mut changed = file(&changed);
        let rows = read_table(&mut changed).unwrap().unwrap();
        assert_eq!(read_frame(&mut changed, 0, &rows[0]).unwrap(), None);
    }

    #[test]
    fn a_frame_that_claims_too_much_takes_no_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let row = Row { packed_bytes: bomb.len() as u32, plain_bytes: 1 << 20, lines: 1, earliest_ns: 0, latest_ns: 0 };
        assert_eq!(read_frame(&mut file(&bomb), 0, &row).unwrap(), None);
        let row = Row { plain_bytes: 64 << 20, ..row };
        assert_eq!(read_frame(&mut file(&bomb), 0, &row).unwrap(), None);
    }
}
