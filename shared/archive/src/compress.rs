//! Compressed files: independent zstd frames of whole lines or groups of packets, and a table of
//! frames.
//!
//! ```text
//! frame, frame, ...         each at most 1 MiB, with its length and checksum
//! skippable frame           0x184D2A5B | length u32          RFC 8878 §3.1.2: zstd's own tools skip it
//!   row, row, ...           compressed bytes u32 | plain bytes u32 | lines u32 | earliest u64 | latest captured_at u64
//!   end                     rows u32 | XXH3 of the rows u64 | "skwtable"
//! ```
//! Numbers are little-endian. A file without a valid table is read from start to end, as any file
//! that `zstd` wrote.
//!
//! Not one of the crates for seekable zstd, because their tables have no capture times, by which a
//! search skips frames.

use std::{
    fs::File,
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
};

use sekiwake_record::WallTime;
use xxhash_rust::xxh3::xxh3_64;
use zstd::bulk::{Compressor, Decompressor};

use crate::{
    FileFormat, GroupReader, Item, LineFormat, captured_at_of,
    pcapng::{SEAL_BYTES, Seal},
};

/// The most uncompressed bytes per frame. Longer lines are split; the storer writes none, but
/// nothing may be lost.
const FRAME_BYTES: usize = 1 << 20;

const SKIPPABLE_MAGIC: u32 = 0x184d_2a5b;
const TABLE_MAGIC: &[u8; 8] = b"skwtable";
const ROW_BYTES: usize = 28;
const END_BYTES: usize = 20;

/// The most rows of a valid table: 4 TiB of lines.
const MAX_ROWS: u32 = 1 << 22;

/// A frame in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) compressed_bytes: u32,
    pub(crate) plain_bytes: u32,
    pub(crate) lines: u32,
    /// Range of capture times; all times if a line has none.
    pub(crate) earliest: WallTime,
    pub(crate) latest: WallTime,
}

/// Compresses a file, without losing a byte.
///
/// # Errors
/// Reading or writing failed, or the level is invalid.
pub fn compress(
    mut plain: impl BufRead,
    format: impl Into<FileFormat>,
    level: i32,
    mut out: impl Write,
) -> io::Result<()> {
    let mut frames = FrameWriter::new(level, &mut out)?;
    match format.into() {
        FileFormat::Lines(format) => compress_lines(&mut plain, format, &mut frames)?,
        FileFormat::Pcapng(_) => compress_packets(&mut plain, &mut frames)?,
    }
    let rows = frames.finish()?;
    out.write_all(&table(&rows)?)?;
    out.flush()
}

/// Writes frames, each of what was added since the last one.
struct FrameWriter<W> {
    compressor: Compressor<'static>,
    out: W,
    plain: Vec<u8>,
    row: Row,
    rows: Vec<Row>,
}

impl<W: Write> FrameWriter<W> {
    fn new(level: i32, out: W) -> io::Result<FrameWriter<W>> {
        let mut compressor = Compressor::new(level)?;
        compressor.include_checksum(true)?;
        Ok(FrameWriter { compressor, out, plain: Vec::new(), row: empty_row(), rows: Vec::new() })
    }

    /// Adds bytes that are to be in one frame.
    fn add(&mut self, bytes: &[u8], lines: u32, [earliest, latest]: [WallTime; 2]) -> io::Result<()> {
        if self.plain.len() + bytes.len() > FRAME_BYTES {
            self.end_frame()?;
        }
        self.plain.extend_from_slice(bytes);
        self.row.lines = self.row.lines.saturating_add(lines);
        self.row.earliest = self.row.earliest.min(earliest);
        self.row.latest = self.row.latest.max(latest);
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let compressed = self.compressor.compress(&self.plain)?;
        self.out.write_all(&compressed)?;
        self.row.compressed_bytes = length(compressed.len())?;
        self.row.plain_bytes = length(self.plain.len())?;
        self.rows.push(std::mem::replace(&mut self.row, empty_row()));
        self.plain.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Vec<Row>> {
        self.end_frame()?;
        Ok(self.rows)
    }
}

fn compress_lines(
    plain: &mut impl BufRead,
    format: LineFormat,
    frames: &mut FrameWriter<impl Write>,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        Read::take(&mut *plain, FRAME_BYTES as u64).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let at = captured_at_of(format, &line);
        frames.add(&line, 1, [at.unwrap_or(WallTime::EPOCH), at.unwrap_or(WallTime::MAX)])?;
    }
}

/// Frames of whole groups, and of what is damaged.
fn compress_packets(plain: &mut impl Read, frames: &mut FrameWriter<impl Write>) -> io::Result<()> {
    let mut groups = GroupReader::new(plain)?;
    while let Some(item) = groups.next_item()? {
        match item {
            Item::Group { bytes, .. } => {
                let seal = bytes.last_chunk().and_then(|seal: &[u8; SEAL_BYTES]| Seal::read(seal));
                let Some(seal) = seal else { return Err(io::Error::other("a group without a seal")) };
                frames.add(bytes, seal.packets, [seal.earliest, seal.latest])?;
            }
            Item::Damaged { bytes, .. } => {
                for bytes in bytes.chunks(FRAME_BYTES) {
                    frames.add(bytes, 0, [WallTime::EPOCH, WallTime::MAX])?;
                }
            }
        }
    }
    Ok(())
}

fn empty_row() -> Row {
    Row { compressed_bytes: 0, plain_bytes: 0, lines: 0, earliest: WallTime::MAX, latest: WallTime::EPOCH }
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::other("frame larger than 4 GiB"))
}

fn table(rows: &[Row]) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(rows.len() * ROW_BYTES + END_BYTES);
    for row in rows {
        for number in [row.compressed_bytes, row.plain_bytes, row.lines] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        for time in [row.earliest, row.latest] {
            body.extend_from_slice(&time.as_nanos().to_le_bytes());
        }
    }
    let checksum = xxh3_64(&body);
    body.extend_from_slice(&length(rows.len())?.to_le_bytes());
    body.extend_from_slice(&checksum.to_le_bytes());
    body.extend_from_slice(TABLE_MAGIC);
    Ok([&SKIPPABLE_MAGIC.to_le_bytes()[..], &length(body.len())?.to_le_bytes(), &body].concat())
}

/// The table of a compressed file; `None` if there is no valid one.
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
    let frames: u64 = rows.iter().map(|row| u64::from(row.compressed_bytes)).sum();
    // A search would miss frames that the table omits.
    Ok((frames == rows_at - 8).then_some(rows))
}

fn row(bytes: &[u8]) -> Row {
    let half = |at: usize| u64::from(number(&bytes[at..at + 4]));
    let time = |at: usize| WallTime::from_nanos(half(at) | half(at + 4) << 32);
    Row {
        compressed_bytes: number(&bytes[..4]),
        plain_bytes: number(&bytes[4..8]),
        lines: number(&bytes[8..12]),
        earliest: time(12),
        latest: time(20),
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// One frame of a compressed file, decompressed; `None` if it differs from its row.
pub(crate) fn read_frame(file: &mut File, offset: u64, row: &Row) -> io::Result<Option<Vec<u8>>> {
    // Valid frames are not larger, and a forged table must not decide how much memory is allocated.
    if row.plain_bytes as usize > FRAME_BYTES || row.compressed_bytes as usize > 2 * FRAME_BYTES {
        return Ok(None);
    }
    let mut compressed = vec![0; row.compressed_bytes as usize];
    file.seek(SeekFrom::Start(offset))?;
    match file.read_exact(&mut compressed) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let plain = Decompressor::new()?.decompress(&compressed, row.plain_bytes as usize).ok();
    Ok(plain.filter(|plain| plain.len() == row.plain_bytes as usize))
}

/// A compressed file from start to end, with bounded memory. A damaged frame costs only itself: a
/// line feed takes the place of its rest, and reading goes on with the next frame.
pub(crate) fn read_all<'a>(file: impl BufRead + 'a) -> io::Result<impl Read + 'a> {
    Ok(Frames { frame: Some(decoder(Counted::new(Box::new(file)))?), damaged: 0 })
}

/// The most damaged places of a file that are skipped.
const MAX_DAMAGED: usize = 1000;

/// zstd's magic number, as it stands in a file (RFC 8878 §3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether a file that begins with these bytes is compressed. Without frames it consists of the
/// table alone.
pub(crate) fn is_compressed(head: &[u8]) -> bool {
    head.starts_with(&ZSTD_MAGIC) || head.starts_with(&SKIPPABLE_MAGIC.to_le_bytes())
}

type FrameDecoder<'a> = zstd::stream::read::Decoder<'static, Counted<'a>>;

fn decoder(reader: Counted<'_>) -> io::Result<FrameDecoder<'_>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?.single_frame();
    // 32 MiB: enough for all of zstd's levels except `--long` and `--ultra`.
    decoder.window_log_max(25)?;
    Ok(decoder)
}

/// See [`read_all`].
struct Frames<'a> {
    /// `None` at the end.
    frame: Option<FrameDecoder<'a>>,
    damaged: usize,
}

impl Read for Frames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(mut frame) = self.frame.take() else { return Ok(0) };
            match frame.read(buffer) {
                Ok(0) => {
                    let mut reader = frame.finish();
                    if reader.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    reader.consumed = 0;
                    self.frame = Some(decoder(reader)?);
                }
                Ok(length) => {
                    self.frame = Some(frame);
                    return Ok(length);
                }
                // Reading the file has failed, rather than decompressing it.
                Err(error) if error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted => {
                    self.frame = Some(frame);
                    return Err(error);
                }
                Err(_) => {
                    self.damaged += 1;
                    let mut reader = frame.finish();
                    if reader.consumed == 0 && !reader.fill_buf()?.is_empty() {
                        reader.consume(1);
                    }
                    if self.damaged < MAX_DAMAGED
                        && let Some(next) = reader.at_next_frame()?
                    {
                        self.frame = Some(decoder(next)?);
                    }
                    buffer[0] = b'\n';
                    return Ok(1);
                }
            }
        }
    }
}

/// Counts the bytes consumed of a frame.
struct Counted<'a> {
    inner: Box<dyn BufRead + 'a>,
    consumed: u64,
}

impl<'a> Counted<'a> {
    fn new(inner: Box<dyn BufRead + 'a>) -> Counted<'a> {
        Counted { inner, consumed: 0 }
    }

    /// Skips everything before the next frame; `None` at the end of the file.
    fn at_next_frame(mut self) -> io::Result<Option<Counted<'a>>> {
        let mut matched = 0;
        while matched < ZSTD_MAGIC.len() {
            let Some(&byte) = self.inner.fill_buf()?.first() else { return Ok(None) };
            self.inner.consume(1);
            // The first byte of the magic number is in it only once.
            matched = if byte == ZSTD_MAGIC[matched] { matched + 1 } else { usize::from(byte == ZSTD_MAGIC[0]) };
        }
        Ok(Some(Counted::new(Box::new(io::Cursor::new(ZSTD_MAGIC).chain(self.inner)))))
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.consumed += length as u64;
        Ok(length)
    }
}

impl BufRead for Counted<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.consumed += length as u64;
        self.inner.consume(length);
    }
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

    fn compressed(plain: &str) -> Vec<u8> {
        let mut out = Vec::new();
        compress(plain.as_bytes(), LineFormat::Text, 3, &mut out).unwrap();
        out
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn decompressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        read_all(Cursor::new(bytes))?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn compressed_file_reads_by_frame_and_as_a_whole() {
        let plain: String = (0..30_000).map(|number| line(number * 1_000_000, &format!("message {number}"))).collect();
        let bytes = compressed(&plain);
        assert!(bytes.len() < plain.len() / 3);
        assert_eq!(decompressed(&bytes).unwrap(), plain.as_bytes());
        let mut file = file(&bytes);
        let rows = read_table(&mut file).unwrap().unwrap();
        assert!(rows.len() >= 2);
        let mut offset = 0;
        let mut all = Vec::new();
        for row in &rows {
            let frame = read_frame(&mut file, offset, row).unwrap().unwrap();
            assert!(frame.len() <= FRAME_BYTES && frame.ends_with(b"\n"));
            assert_eq!(frame.iter().filter(|&&byte| byte == b'\n').count(), row.lines as usize);
            assert_eq!(captured_at_of(LineFormat::Text, &frame), Some(row.earliest));
            offset += u64::from(row.compressed_bytes);
            all.extend(frame);
        }
        assert_eq!(all, plain.as_bytes());
    }

    #[test]
    fn zstdcat_reads_compressed_file() {
        let plain = line(1, "for all");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log.zst");
        std::fs::write(&path, compressed(&plain)).unwrap();
        match std::process::Command::new("zstdcat").arg(&path).output() {
            Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout), plain),
            Err(error) => eprintln!("SKIPPED: zstdcat_reads_compressed_file: zstdcat: {error}"),
        }
    }

    #[test]
    fn compression_keeps_every_byte() {
        for plain in [
            "".to_owned(),
            "\n\n".to_owned(),
            "no line feed".to_owned(),
            "x".repeat(5 << 20),
            format!("{}\n", "y".repeat(3 << 20)),
        ] {
            assert_eq!(decompressed(&compressed(&plain)).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn changed_or_truncated_table_is_rejected() {
        let plain: String = (0..50).map(|number| line(number, "x")).collect();
        let bytes = compressed(&plain);
        let rows_at = bytes.len() - END_BYTES - ROW_BYTES;
        for at in rows_at..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(read_table(&mut file(&changed)).unwrap(), None, "{at}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(read_table(&mut file(&bytes[..cut])).unwrap(), None, "{cut}");
        }
        // The checksum detects a changed frame.
        let mut changed = bytes.clone();
        changed[rows_at - 20] ^= 1;
        let mut changed = file(&changed);
        let rows = read_table(&mut changed).unwrap().unwrap();
        assert_eq!(read_frame(&mut changed, 0, &rows[0]).unwrap(), None);
    }

    #[test]
    fn damaged_frame_without_a_table_costs_only_itself() {
        let plain: String = (0..30_000).map(|number| line(number, "x")).collect();
        let whole = compressed(&plain);
        let rows = read_table(&mut file(&whole)).unwrap().unwrap();
        assert!(rows.len() > 2, "{}", rows.len());
        let read = |bytes: &[u8]| {
            let mut read = Vec::new();
            read_all(bytes).unwrap().read_to_end(&mut read).unwrap();
            read
        };
        assert_eq!(read(&whole), plain.as_bytes());
        let second = rows[0].compressed_bytes as usize;
        for at in [0, 3, 5, 30, second - 2, second, second + 2, second + 7, second + 1000] {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            let read = read(&changed);
            let lost = usize::from(at >= second);
            let kept: usize =
                (0..rows.len()).filter(|row| *row != lost).map(|row| rows[row].plain_bytes as usize).sum();
            assert!(read.len() >= kept, "{at}: {} of {kept}", read.len());
            let last = rows[0].plain_bytes as usize + rows[1].plain_bytes as usize;
            assert!(read.ends_with(&plain.as_bytes()[last..]), "{at}");
        }
    }

    #[test]
    fn forged_frame_size_allocates_no_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        let row = Row { compressed_bytes: bomb.len() as u32, plain_bytes: 1 << 20, lines: 1, ..empty_row() };
        assert_eq!(read_frame(&mut file(&bomb), 0, &row).unwrap(), None);
        let row = Row { plain_bytes: 64 << 20, ..row };
        assert_eq!(read_frame(&mut file(&bomb), 0, &row).unwrap(), None);
    }
}
