//! The log on a real file system: against a reference, damaged, killed, and on a full disk.

#![expect(clippy::unwrap_used, reason = "a test that cannot have what it needs fails")]

mod corruption;
mod disk_full;
mod kill;
mod life;
mod model;
mod throughput;

use std::{fs, path::Path};

use sekiwake_segments::{Log, LogError, Reader, Recovered, Settings};

fn try_open(dir: &Path, segment_bytes: u64, max_bytes: u64) -> Result<(Log, Recovered), LogError> {
    Log::open(Settings { dir: dir.to_owned(), segment_bytes, max_bytes })
}

fn open(dir: &Path, segment_bytes: u64, max_bytes: u64) -> (Log, Recovered) {
    try_open(dir, segment_bytes, max_bytes).unwrap()
}

/// The only payload that entry `sequence` can have, of a length between 0 and `longest`.
fn payload(sequence: u64, longest: usize) -> Vec<u8> {
    let mut state = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let length = usize::try_from(step()).unwrap() % (longest + 1);
    (0..length).map(|_| step().to_le_bytes()[3]).collect()
}

/// Appends `count` entries, each with the payload that is its own.
fn fill(log: &mut Log, count: u64, longest: usize) {
    for _ in 0..count {
        let sequence = log.next_sequence();
        assert_eq!(log.append(&payload(sequence, longest)).unwrap(), sequence);
    }
}

/// The sequence numbers that can be read; every payload is compared.
fn read_all(log: &Log, reader: &mut Reader, longest: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    while let Some(entry) = log.read(reader).unwrap() {
        assert_eq!(entry.payload, payload(entry.sequence, longest), "entry {}", entry.sequence);
        sequences.push(entry.sequence);
    }
    sequences
}

/// The segments in a directory, oldest first, with their sizes.
fn segments(dir: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    let segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "segment"));
    let mut segments: Vec<_> = segments.map(|file| (file.path(), file.metadata().unwrap().len())).collect();
    segments.sort();
    segments
}

fn disk_use(dir: &Path) -> u64 {
    segments(dir).iter().map(|(_, bytes)| bytes).sum()
}

/// What a kill -9 leaves: the files as they are now, without the lock.
fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
