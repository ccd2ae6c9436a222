//! The log: appending, syncing, committing, and deleting segments.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use crate::{
    directory::Directory,
    error::{LogError, cannot, is_lost},
    format::{ENTRY_OVERHEAD, HEADER_BYTES, MAX_ENTRY_BYTES, header, push_entry},
    position::Position,
    reader::{Entry, Reader},
    recovery::{Recovered, recover},
    resync::find_next,
    window::Step,
};

/// Appended entries are written at this size, unless they are flushed before.
const BUFFER_BYTES: usize = 256 << 10;

/// The smallest segment: a log of smaller files would consist of overhead.
const MIN_SEGMENT_BYTES: u64 = 4 << 10;

/// The directory and the limits of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory. If it is missing it is created, accessible to its owner only.
    pub dir: PathBuf,
    /// The largest size of a segment, at least 4 KiB. It also limits the size of an entry. Segments
    /// are deleted as a whole, and opening scans one: the lesser of 16 MiB and an eighth of
    /// `max_bytes` is a good size.
    pub segment_bytes: u64,
    /// The largest size of all segments together, at least two segments.
    pub max_bytes: u64,
}

impl Settings {
    fn check(&self) -> Result<(), LogError> {
        let Settings { segment_bytes, max_bytes, .. } = self;
        if *segment_bytes < MIN_SEGMENT_BYTES {
            let message =
                format!("segments of {segment_bytes} bytes are too small, expected at least {MIN_SEGMENT_BYTES}");
            return Err(LogError::Settings(message));
        }
        if *max_bytes / 2 < *segment_bytes {
            let message = format!("a log of {max_bytes} bytes is too small for two segments of {segment_bytes}");
            return Err(LogError::Settings(message));
        }
        Ok(())
    }

    fn longest_entry(&self) -> usize {
        let room = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) - HEADER_BYTES - ENTRY_OVERHEAD;
        room.min(MAX_ENTRY_BYTES)
    }
}

/// A segment's file, without the entries that are still in the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// The sequence number of its first entry.
    pub(crate) first: u64,
    /// The sequence number after its last entry; for all but the last segment, the first of the
    /// next.
    pub(crate) end: u64,
    /// The length of the file.
    pub(crate) bytes: u64,
}

/// An append-only log with one writer.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    directory: Directory,
    position: Position,
    /// Oldest first. The last one is the active one, if `active` is set.
    segments: VecDeque<Segment>,
    /// The bytes of the files of `segments`.
    flushed_bytes: u64,
    active: Option<Active>,
    /// The entries of the active segment that are not written yet. Empty without an active segment.
    buffer: Vec<u8>,
    next: u64,
    committed: u64,
    evicted: u64,
    /// A file was created since the directory was synced.
    directory_changed: bool,
}

/// The end of a log whose entries are all flushed, from which [`Log::withdraw`] removes later ones.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    next: u64,
    /// The last segment and the length of its file, if there is one.
    end: Option<(u64, u64)>,
}

/// The segment to which entries are appended.
#[derive(Debug)]
struct Active {
    file: File,
    synced: bool,
}

impl Log {
    /// Opens or creates the log in a directory, and repairs it after a crash.
    ///
    /// # Errors
    /// When the settings are contradictory, another log uses the directory, a file has an
    /// unsupported format version (no segment is changed then), or I/O fails.
    pub fn open(settings: Settings) -> Result<(Log, Recovered), LogError> {
        settings.check()?;
        let directory = Directory::open(&settings.dir)?;
        let position = Position::open(directory.path())?;
        let mut recovered = Recovered { position_lost: position.is_lost(), ..Recovered::default() };
        let found = recover(&directory, &mut recovered)?;
        let end = found.segments.back().map_or(0, |last| last.end);
        let mut log = Log {
            next: end.max(position.next()).max(position.committed()),
            committed: position.committed(),
            flushed_bytes: found.segments.iter().map(|segment| segment.bytes).sum(),
            segments: found.segments,
            active: found.active.map(|file| Active { file, synced: true }),
            buffer: Vec::new(),
            evicted: 0,
            // It is unknown whether the names were synced.
            directory_changed: true,
            settings,
            directory,
            position,
        };
        if found.last_is_empty {
            log.remove_newest()?;
        }
        // Synced entries behind the last segment are gone. A reader counts them as corrupt, unless
        // there is no segment to read.
        match log.segments.back_mut() {
            Some(last) => last.end = log.next,
            None => recovered.vanished = log.next - log.committed.min(log.next),
        }
        // A new segment starts after a jump of the sequence, or when all entries are committed.
        if log.next > end || log.committed >= end {
            log.active = None;
        }
        log.remove_committed()?;
        if log.bytes() > log.settings.max_bytes {
            log.active = log.active.take().filter(|_| log.flushed_end_bytes() <= log.settings.max_bytes);
            log.evict_for(0)?;
        }
        recovered.evicted = std::mem::take(&mut log.evicted);
        recovered.entries = log.entries();
        recovered.bytes = log.bytes();
        recovered.segments = log.segments.len();
        Ok((log, recovered))
    }

    /// Appends an entry and returns its sequence number. It stays in memory until the buffer of 256
    /// KiB is full, or until [`flush`](Log::flush) or [`sync`](Log::sync) is called.
    ///
    /// # Errors
    /// When it is too large, or the buffer cannot be written, or a segment cannot be created. Then
    /// the entry is not appended, the previous ones are kept, and a later call may succeed.
    pub fn append(&mut self, entry: &[u8]) -> Result<u64, LogError> {
        let limit = self.settings.longest_entry();
        if entry.len() > limit {
            return Err(LogError::TooLarge { bytes: entry.len(), limit });
        }
        let needed = ENTRY_OVERHEAD + entry.len();
        if self.active.is_some() && self.active_bytes() + needed as u64 > self.settings.segment_bytes {
            self.seal()?;
        }
        if self.active.is_some() {
            self.evict_for(needed)?;
        } else {
            self.evict_for(HEADER_BYTES + needed)?;
            self.begin_segment()?;
        }
        if self.buffer.len() + needed > BUFFER_BYTES {
            self.flush()?;
        }
        let sequence = self.next;
        push_entry(&mut self.buffer, sequence, entry);
        self.next += 1;
        Ok(sequence)
    }

    /// Writes the buffer in one piece, without syncing it. The entries can be read from now on, and
    /// survive a crash of the process, but not of the machine.
    ///
    /// # Errors
    /// When writing fails. The buffer is kept for the next call.
    pub fn flush(&mut self) -> Result<(), LogError> {
        let (Some(active), Some(segment)) = (&mut self.active, self.segments.back_mut()) else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = active.file.write_all_at(&self.buffer, segment.bytes) {
            // A part may have been written: release its disk space. If this also fails, the next
            // write overwrites it.
            let _ = active.file.set_len(segment.bytes);
            return Err(cannot("write to", &self.directory.segment(segment.first))(error));
        }
        active.synced = false;
        segment.bytes += self.buffer.len() as u64;
        self.flushed_bytes += self.buffer.len() as u64;
        segment.end = self.next;
        self.buffer.clear();
        // Release the memory of a large entry.
        self.buffer.shrink_to(BUFFER_BYTES);
        Ok(())
    }

    /// Writes the buffer and syncs it to disk: afterwards all entries survive a crash.
    ///
    /// # Errors
    /// When writing or syncing fails. After a failed sync it is unknown which writes since the last
    /// success are durable: the entries since then stay readable, are not synced again, and the
    /// next entry starts a new segment.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.sync_active()?;
        if self.directory_changed {
            self.directory.sync()?;
            self.directory_changed = false;
        }
        // For counting what vanishes; without it nothing is lost.
        let _ = self.position.write(self.committed, self.flushed_end().max(self.committed));
        Ok(())
    }

    /// Marks the end, so that a group of entries can be withdrawn when one of them, or its sync,
    /// fails.
    ///
    /// # Errors
    /// As [`flush`](Log::flush).
    pub fn mark(&mut self) -> Result<Mark, LogError> {
        self.flush()?;
        Ok(Mark { next: self.next, end: self.segments.back().map(|last| (last.first, last.bytes)) })
    }

    /// Removes the entries that were appended since the mark and not synced, also those that are
    /// written: they are not read, now or later, and their numbers are used again.
    ///
    /// # Errors
    /// When a file cannot be deleted or truncated. The entries that remain may be read.
    pub fn withdraw(&mut self, mark: Mark) -> Result<(), LogError> {
        self.buffer.clear();
        let appended = std::mem::replace(&mut self.next, mark.next);
        let withdrawn = self.withdraw_files(mark);
        if withdrawn.is_err() {
            self.active = None;
            self.next = self.segments.back().map_or(mark.next, |last| last.end.max(mark.next)).min(appended);
        }
        withdrawn
    }

    fn withdraw_files(&mut self, mark: Mark) -> Result<(), LogError> {
        while self.segments.back().is_some_and(|last| last.first >= mark.next) {
            self.active = None;
            self.remove_newest()?;
        }
        let Some(last) = self.segments.back_mut() else { return Ok(()) };
        // A segment that was evicted since then is gone with its entries.
        let Some((_, bytes)) = mark.end.filter(|&(first, _)| first == last.first) else { return Ok(()) };
        if last.bytes > bytes {
            let path = self.directory.segment(last.first);
            match OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(bytes)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot("truncate", &path)(error)),
                _ => {}
            }
            self.flushed_bytes -= last.bytes - bytes;
            last.bytes = bytes;
        }
        last.end = mark.next;
        Ok(())
    }

    /// The sequence number of the next entry.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The sequence number of the oldest uncommitted entry, or of the next entry if all are
    /// committed.
    pub fn oldest_sequence(&self) -> u64 {
        self.segments.front().map_or(self.next, |oldest| oldest.first).max(self.committed)
    }

    /// The bytes of all segments and of the buffer. Committed entries count until their segment is
    /// deleted.
    pub fn bytes(&self) -> u64 {
        self.flushed_bytes + self.buffer.len() as u64
    }

    /// The number of uncommitted entries, including those that turn out to be corrupt.
    pub fn entries(&self) -> u64 {
        self.next - self.oldest_sequence()
    }

    /// Commits all entries below `sequence`. Segments of which all entries are committed are
    /// deleted, except the active one. The position is written by each call and synced only before
    /// a deletion: after a crash of the machine an older one may be valid.
    ///
    /// # Errors
    /// When `sequence` is above that of the next entry, or writing or deleting fails. The position
    /// is kept nevertheless, and the next call completes the work.
    pub fn commit(&mut self, sequence: u64) -> Result<(), LogError> {
        if sequence > self.next {
            return Err(LogError::BeyondEnd { sequence, next: self.next });
        }
        self.committed = self.committed.max(sequence);
        self.position.write(self.committed, self.flushed_end().max(self.committed))?;
        self.remove_committed()
    }

    /// The committed position: the sequence number after the last committed entry.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The uncommitted entries that were deleted because the log had reached its bound, since the
    /// last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// The next entry for `reader`, or `None` after the last flushed entry. Deleted and corrupt
    /// entries are skipped and counted in the reader; reading goes on with the next whole entry.
    ///
    /// # Errors
    /// When a file cannot be opened or read for a temporary reason. A bad sector is not an error
    /// but a corrupt entry.
    pub fn read<'r>(&self, reader: &'r mut Reader) -> Result<Option<Entry<'r>>, LogError> {
        let payload = loop {
            let oldest = self.segments.front().map_or(self.next, |segment| segment.first);
            if reader.next < oldest {
                reader.missed += oldest.saturating_sub(reader.next.max(self.committed));
                reader.next = oldest;
            }
            let behind = self.segments.partition_point(|segment| segment.first <= reader.next);
            let Some(index) = behind.checked_sub(1) else { return Ok(None) };
            let segment = self.segments[index];
            if reader.next >= segment.end {
                return Ok(None);
            }
            if reader.segment != Some(segment.first) {
                reader.segment = Some(segment.first);
                reader.at = segment.first;
                reader.window.jump(HEADER_BYTES as u64);
            }
            let read_at = |buffer: &mut [u8], offset: u64| self.read_segment(index, buffer, offset);
            let step = match reader.window.step(reader.at, segment.bytes, read_at) {
                Ok(step) => step,
                Err(error) if is_lost(&error) => Step::Bad,
                Err(error) => return Err(cannot("read", &self.directory.segment(segment.first))(error)),
            };
            if let Step::Entry(payload) = step {
                reader.at += 1;
                if reader.at > reader.next {
                    reader.next = reader.at;
                    break payload;
                }
                continue;
            }
            let read_at = |buffer: &mut [u8], offset: u64| self.read_segment(index, buffer, offset);
            let found = find_next(reader.window.offset(), reader.at, segment.end, segment.bytes, read_at);
            match found.map_err(cannot("read", &self.directory.segment(segment.first)))? {
                Some(found) => {
                    reader.corrupt += found.sequence.saturating_sub(reader.next);
                    reader.next = reader.next.max(found.sequence);
                    reader.at = found.sequence;
                    reader.window.jump(found.offset);
                }
                None => {
                    reader.corrupt += segment.end - reader.next;
                    reader.next = segment.end;
                    reader.at = segment.end;
                    reader.window.jump(segment.bytes);
                }
            }
        };
        Ok(Some(Entry { sequence: reader.next - 1, payload: reader.window.payload(payload) }))
    }

    fn read_segment(&self, index: usize, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.active {
            Some(active) if index + 1 == self.segments.len() => active.file.read_at(buffer, offset),
            // Opened for each piece, because an open file would keep its disk space after deletion.
            _ => File::open(self.directory.segment(self.segments[index].first))?.read_at(buffer, offset),
        }
    }

    /// The size of the active segment, including the buffer.
    fn active_bytes(&self) -> u64 {
        self.flushed_end_bytes() + self.buffer.len() as u64
    }

    fn flushed_end_bytes(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.bytes)
    }

    /// The sequence number after the last flushed entry.
    fn flushed_end(&self) -> u64 {
        self.segments.back().map_or(self.next, |segment| segment.end)
    }

    /// Ends the active segment. It is synced, because only the last segment is repaired after a
    /// crash.
    fn seal(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.sync_active()?;
        self.active = None;
        Ok(())
    }

    fn sync_active(&mut self) -> Result<(), LogError> {
        let (Some(active), Some(segment)) = (&mut self.active, self.segments.back()) else { return Ok(()) };
        if active.synced {
            return Ok(());
        }
        // The data of a deleted file is lost when the process ends.
        let synced = active.file.sync_data().and_then(|()| active.file.metadata());
        let synced = synced.and_then(|found| match found.nlink() {
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "the file was deleted")),
            _ => Ok(()),
        });
        if let Err(error) = synced {
            // The kernel drops pages that it could not write, and a second sync would succeed.
            self.active = None;
            return Err(cannot("sync", &self.directory.segment(segment.first))(error));
        }
        active.synced = true;
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        let first = self.next;
        if let Some(last) = self.segments.back_mut() {
            last.end = first;
        }
        let path = self.directory.segment(first);
        let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.restore_directory()?;
                create()
            }
            result => result,
        };
        let file = file.map_err(cannot("create", &path))?;
        self.segments.push_back(Segment { first, end: first, bytes: 0 });
        self.active = Some(Active { file, synced: true });
        self.buffer.extend_from_slice(&header(first));
        self.directory_changed = true;
        Ok(())
    }

    /// Makes the directory again after it was removed. The entries that were in it are read as
    /// corrupt.
    fn restore_directory(&mut self) -> Result<(), LogError> {
        self.directory = Directory::open(&self.settings.dir)?;
        self.position = Position::open(self.directory.path())?;
        self.position.write(self.committed, self.next)
    }

    /// Deletes the oldest segments until there is room for `needed` more bytes within the bound.
    fn evict_for(&mut self, needed: usize) -> Result<(), LogError> {
        while self.bytes() + needed as u64 > self.settings.max_bytes && self.has_sealed() {
            let Some(&oldest) = self.segments.front() else { break };
            self.remove_oldest()?;
            self.evicted += oldest.end.saturating_sub(oldest.first.max(self.committed));
        }
        Ok(())
    }

    /// Deletes the segments of which all entries are committed.
    fn remove_committed(&mut self) -> Result<(), LogError> {
        while self.has_sealed() && self.segments.front().is_some_and(|oldest| oldest.end <= self.committed) {
            // Otherwise an older position could reappear after a crash, with entries that were
            // deleted.
            self.position.sync()?;
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Whether there is a segment besides the active one.
    fn has_sealed(&self) -> bool {
        self.segments.len() > usize::from(self.active.is_some())
    }

    fn remove_oldest(&mut self) -> Result<(), LogError> {
        let Some(&oldest) = self.segments.front() else { return Ok(()) };
        self.delete(oldest)?;
        self.segments.pop_front();
        Ok(())
    }

    fn remove_newest(&mut self) -> Result<(), LogError> {
        let Some(&newest) = self.segments.back() else { return Ok(()) };
        self.delete(newest)?;
        self.segments.pop_back();
        Ok(())
    }

    fn delete(&mut self, segment: Segment) -> Result<(), LogError> {
        if self.segments.len() == 1 {
            // The next sequence number will not be in any file name.
            self.position.write(self.committed, self.next)?;
            self.position.sync()?;
            self.directory.sync()?;
        }
        let path = self.directory.segment(segment.first);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot("delete", &path)(error)),
            _ => {}
        }
        self.flushed_bytes -= segment.bytes;
        Ok(())
    }
}

impl Drop for Log {
    /// Writes the buffer. To detect errors call [`Log::sync`] before.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}
