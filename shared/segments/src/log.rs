//! The log: appending, syncing, committing, and what is deleted when.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use crate::{
    directory::Directory,
    error::{LogError, cannot, is_lost},
    format::{ENTRY_OVERHEAD, HEADER_BYTES, MAX_ENTRY_BYTES, header, push_entry},
    position::Position,
    reader::{Entry, Reader},
    recovery::{Recovered, recover},
    window::Step,
};

/// Appended entries are written when they come to this much, unless they are flushed before.
const BUFFER_BYTES: usize = 256 << 10;

/// No segment is smaller: a log of tiny files would be all names.
const MIN_SEGMENT_BYTES: u64 = 4 << 10;

/// Where a log is, and how large it may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The directory. It is made, for its owner only, when it is not there.
    pub dir: PathBuf,
    /// The largest size of a segment, at least 4 KiB. It bounds an entry as well. What is deleted is deleted by whole
    /// segments, and opening scans one: 16 MiB or an eighth of `max_bytes`, whichever is less, is a good size.
    pub segment_bytes: u64,
    /// The largest size of all segments together, at least that of two.
    pub max_bytes: u64,
}

impl Settings {
    fn check(&self) -> Result<(), LogError> {
        let Settings { segment_bytes, max_bytes, .. } = self;
        if *segment_bytes < MIN_SEGMENT_BYTES {
            let message = format!("segments of {segment_bytes} bytes are too small: at least {MIN_SEGMENT_BYTES}");
            return Err(LogError::Settings(message));
        }
        if *max_bytes / 2 < *segment_bytes {
            let message = format!("{max_bytes} bytes do not hold two segments of {segment_bytes}");
            return Err(LogError::Settings(message));
        }
        Ok(())
    }

    fn longest_entry(&self) -> usize {
        let room = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX) - HEADER_BYTES - ENTRY_OVERHEAD;
        room.min(MAX_ENTRY_BYTES)
    }
}

/// What is known of a segment's file. What is only in the buffer does not count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Sequence number of its first entry.
    pub(crate) first: u64,
    /// The one after its last entry; for one that is not the last segment, the first of the next segment.
    pub(crate) end: u64,
    /// Length of the file.
    pub(crate) bytes: u64,
}

/// An append-only log with one writer.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    directory: Directory,
    position: Position,
    /// Oldest first. The last one is the active one, if there is an active one.
    segments: VecDeque<Segment>,
    /// What the files of `segments` hold.
    flushed_bytes: u64,
    active: Option<Active>,
    /// What the active segment's file does not hold yet. Empty when there is no active segment.
    buffer: Vec<u8>,
    next: u64,
    committed: u64,
    evicted: u64,
    /// A file was made since the directory was synced.
    directory_changed: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Active {
    file: File,
    synced: bool,
}

impl Log {
    /// Opens the log in a directory, or makes a new one, and makes whole what a crash left.
    ///
    /// # Errors
    /// When the settings contradict themselves, another log has the directory, a file has a format version that is not
    /// known (no segment is changed then), or the disk refuses.
    pub fn open(settings: Settings) -> Result<(Log, Recovered), LogError> {
        settings.check()?;
        let directory = Directory::open(&settings.dir)?;
        let (position, position_lost) = Position::open(directory.path())?;
        let mut recovered = Recovered { position_lost, ..Recovered::default() };
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
            // Nobody knows whether the names were synced.
            directory_changed: true,
            settings,
            directory,
            position,
        };
        if found.last_is_empty {
            log.remove_newest()?;
        }
        // Where the numbers do not follow on, or all is committed, a new segment begins.
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

    /// Appends an entry and gives its sequence number. It is in memory until the buffer of 256 KiB is full, or
    /// [`flush`](Log::flush) or [`sync`](Log::sync) is called.
    ///
    /// # Errors
    /// When it is too large, or the disk refuses to take what is in the buffer, or a new segment. The entry is not
    /// appended then; all before it are kept, and a later call may succeed.
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

    /// Writes what is in the buffer, in one piece, without waiting for the disk. Readers see it from now on, and it
    /// survives the end of the process, but not that of the machine.
    ///
    /// # Errors
    /// When the disk refuses. What is in the buffer stays there, and is written by the next call that succeeds.
    pub fn flush(&mut self) -> Result<(), LogError> {
        let (Some(active), Some(segment)) = (&mut self.active, self.segments.back_mut()) else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(error) = active.file.write_all_at(&self.buffer, segment.bytes) {
            // A part may have been written: a full disk has it back. If this fails too, the next write goes over it.
            let _ = active.file.set_len(segment.bytes);
            return Err(cannot("write to", &self.directory.segment(segment.first))(error));
        }
        active.synced = false;
        segment.bytes += self.buffer.len() as u64;
        self.flushed_bytes += self.buffer.len() as u64;
        segment.end = self.next;
        self.buffer.clear();
        // What one large entry took is not kept for ever.
        self.buffer.shrink_to(BUFFER_BYTES);
        Ok(())
    }

    /// Writes what is in the buffer and waits until the disk has it: when this succeeds, all entries survive a crash.
    ///
    /// # Errors
    /// When the disk refuses. If it was the waiting that failed, nobody knows what of the segment is on the disk; the
    /// entries since the last sync stay readable, are not synced again, and the next entry begins a new segment.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.sync_active()?;
        if self.directory_changed {
            self.directory.sync()?;
            self.directory_changed = false;
        }
        Ok(())
    }

    /// The sequence number that the next entry gets.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The sequence number of the oldest entry that is there and not committed; that of the next entry when there is none.
    #[must_use]
    pub fn oldest_sequence(&self) -> u64 {
        self.segments.front().map_or(self.next, |oldest| oldest.first).max(self.committed)
    }

    /// What all segments take, with what is in the buffer. Committed entries count until their segment is deleted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.flushed_bytes + self.buffer.len() as u64
    }

    /// Entries that are not committed. Those that reading will find corrupt are among them.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.next - self.oldest_sequence()
    }

    /// Everything below `sequence` is done with: segments that hold nothing else are deleted, except the one that is
    /// appended to. The position is written at each call and synced only before a deletion: after a crash of the
    /// machine an older one may count.
    ///
    /// # Errors
    /// When `sequence` is above that of the next entry, or the disk refuses. The position counts all the same, and the
    /// next call does what this one could not.
    pub fn commit(&mut self, sequence: u64) -> Result<(), LogError> {
        if sequence > self.next {
            return Err(LogError::BeyondEnd { sequence, next: self.next });
        }
        self.committed = self.committed.max(sequence);
        self.position.write(self.committed, self.flushed_end().max(self.committed))?;
        self.remove_committed()
    }

    /// The sequence number of the first entry that is not committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Entries that were deleted before they were committed, because the log had reached its bound; since the last call.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// The entry that is next for `reader`, or none when it has had all that was flushed. Entries that are gone or
    /// corrupt are passed over and counted in the reader: of a segment that holds a corrupt entry, what follows it is lost.
    ///
    /// # Errors
    /// When a file cannot be opened or read for a reason that may pass. A bad sector is no error but a corrupt entry.
    pub fn read<'r>(&self, reader: &'r mut Reader) -> Result<Option<Entry<'r>>, LogError> {
        let payload = loop {
            let oldest = self.segments.front().map_or(self.next, |segment| segment.first);
            if reader.next < oldest {
                reader.gone += oldest.saturating_sub(reader.next.max(self.committed));
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
            } else {
                reader.corrupt += segment.end - reader.next;
                reader.next = segment.end;
                reader.at = segment.end;
                reader.window.jump(segment.bytes);
            }
        };
        Ok(Some(Entry { sequence: reader.next - 1, payload: reader.window.payload(payload) }))
    }

    fn read_segment(&self, index: usize, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.active {
            Some(active) if index + 1 == self.segments.len() => active.file.read_at(buffer, offset),
            // Opened for each large piece: a file that stays open would keep its room on the disk when it is deleted.
            _ => File::open(self.directory.segment(self.segments[index].first))?.read_at(buffer, offset),
        }
    }

    /// Where the active segment ends, once the buffer is written.
    fn active_bytes(&self) -> u64 {
        self.flushed_end_bytes() + self.buffer.len() as u64
    }

    fn flushed_end_bytes(&self) -> u64 {
        self.segments.back().map_or(0, |segment| segment.bytes)
    }

    /// The sequence number after the last entry that is in a file.
    fn flushed_end(&self) -> u64 {
        self.segments.back().map_or(self.next, |segment| segment.end)
    }

    /// Ends the active segment. It is synced, for only the last segment is looked at after a crash.
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
        if let Err(error) = active.file.sync_data() {
            // The kernel forgets what it could not write, and a second call would claim success.
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
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(cannot("make", &path))?;
        self.segments.push_back(Segment { first, end: first, bytes: 0 });
        self.active = Some(Active { file, synced: true });
        self.buffer.extend_from_slice(&header(first));
        self.directory_changed = true;
        Ok(())
    }

    /// Deletes the oldest segments until `needed` more bytes are within the bound.
    fn evict_for(&mut self, needed: usize) -> Result<(), LogError> {
        while self.bytes() + needed as u64 > self.settings.max_bytes && self.has_sealed() {
            let Some(&oldest) = self.segments.front() else { break };
            self.remove_oldest()?;
            self.evicted += oldest.end.saturating_sub(oldest.first.max(self.committed));
        }
        Ok(())
    }

    /// Deletes the segments in which all is committed.
    fn remove_committed(&mut self) -> Result<(), LogError> {
        while self.has_sealed() && self.segments.front().is_some_and(|oldest| oldest.end <= self.committed) {
            // Else a crash could bring back an older position, and entries that are gone would be waited for.
            self.position.sync()?;
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Whether there is a segment that is not appended to.
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
            // No file's name will say where the numbers go on.
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
    /// What is in the buffer is written. Whoever wants to know whether that worked calls [`Log::sync`] before.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}
