//! The log on a real file system: against a model, damaged, killed, and on a full disk.

#![expect(clippy::unwrap_used, reason = "a test without its preconditions fails")]

mod corruption;
mod disk_full;
mod kill;
mod life;
mod model;
mod throughput;

use std::{fs, path::Path};

use sekiwake_segments::{Log, LogError, Reader, Recovered, Settings};
use sekiwake_testkit::random::Random;

fn try_open(dir: &Path, segment_bytes: u64, max_bytes: u64) -> Result<(Log, Recovered), LogError> {
    Log::open(Settings { dir: dir.to_owned(), segment_bytes, max_bytes })
}

fn open(dir: &Path, segment_bytes: u64, max_bytes: u64) -> (Log, Recovered) {
    try_open(dir, segment_bytes, max_bytes).unwrap()
}

/// The only payload that entry `sequence` can have, of a length between 0 and `longest`.
fn payload(sequence: u64, longest: usize) -> Vec<u8> {
    let mut random = Random::new(sequence);
    let length = random.below(longest as u64 + 1) as usize;
    random.bytes(length)
}

/// Appends `count` entries, each with its own payload.
fn fill(log: &mut Log, count: u64, longest: usize) {
    for _ in 0..count {
        let sequence = log.next_sequence();
        assert_eq!(log.append(&payload(sequence, longest)).unwrap(), sequence);
    }
}

/// Reads all entries, compares their payloads, and returns their sequence numbers.
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

/// Copies the files as kill -9 would leave them, without the lock.
fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
