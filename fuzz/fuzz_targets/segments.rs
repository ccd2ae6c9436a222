//! Segment files: the entries found in any bytes are those of a log that wrote the same bytes, and
//! a log opens with them, and with what follows a damaged place.
//!
//! ```text
//! input  first sequence number 1 | kind 1, odd  | the segment
//!        ignored 1               | kind 1, even | place 1 | change 1 | entries
//! entry  length 1 | payload
//! ```
//!
//! Random bytes never have valid checksums. With an even kind a log therefore writes the entries,
//! and one byte of its segment is changed.

#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use sekiwake_segments::{Log, Reader, Settings, scan};

fuzz_target!(|input: &[u8]| {
    let [first, kind, rest @ ..] = input else { return };
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = parent.join(format!("sekiwake-fuzz-segments-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory for the log");
    if kind % 2 == 1 {
        check(&dir, u64::from(*first), rest);
    } else if let Some(bytes) = written(&dir, rest) {
        check(&dir, 0, &bytes);
    }
    let _ = fs::remove_dir_all(&dir);
});

/// The bytes of a segment from a log, with one byte changed. Its first sequence number is 0.
fn written(dir: &Path, input: &[u8]) -> Option<Vec<u8>> {
    let [at, change, entries @ ..] = input else { return None };
    let mut rest = entries;
    let (mut log, _) = Log::open(settings(dir)).expect("an empty directory opens");
    while let [length, payload @ ..] = rest {
        let (entry, behind) = payload.split_at(usize::from(*length).min(payload.len()));
        log.append(entry).expect("room");
        rest = behind;
    }
    drop(log);
    let mut bytes = fs::read(path(dir, 0)).ok()?;
    let at = usize::from(*at) * bytes.len() / 256;
    bytes[at] ^= change;
    Some(bytes)
}

fn check(dir: &Path, first: u64, bytes: &[u8]) {
    let mut entries = Vec::new();
    let found = scan(bytes, first, |sequence, payload| entries.push((sequence, payload.to_vec())));
    assert_eq!(found.entries, entries.len() as u64);
    let length: usize = entries.iter().map(|(_, payload)| 12 + payload.len()).sum();
    assert_eq!(found.good_bytes, 32 + length as u64);
    assert!(entries.is_empty() || found.good_bytes <= bytes.len() as u64);

    fs::write(path(dir, first), bytes).expect("the segment");
    let Ok((mut log, recovered)) = Log::open(settings(dir)) else {
        // Rejected: the file is unchanged.
        assert_eq!(fs::read(path(dir, first)).expect("the segment"), bytes);
        return;
    };
    assert!(log.next_sequence() >= first + found.entries || found.entries == 0);
    assert!(recovered.evicted == 0);
    let mut reader = Reader::new(first);
    for (sequence, payload) in &entries {
        let entry = log.read(&mut reader).expect("a file that can be read").expect("an entry");
        assert_eq!((entry.sequence, entry.payload), (*sequence, &payload[..]));
    }
    // Behind a damaged place further entries may follow, in order.
    let mut next = first + found.entries;
    while let Some(entry) = log.read(&mut reader).expect("a file that can be read") {
        assert!((next..log.next_sequence()).contains(&entry.sequence), "{} after {next}", entry.sequence);
        next = entry.sequence + 1;
    }
    let appended = log.append(b"more").expect("room");
    log.flush().expect("room");
    let entry = log.read(&mut reader).expect("a file that can be read").expect("the entry");
    assert_eq!((entry.sequence, entry.payload), (appended, &b"more"[..]));
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.segment"))
}

fn settings(dir: &Path) -> Settings {
    Settings { dir: dir.to_owned(), segment_bytes: 1 << 20, max_bytes: 4 << 20 }
}
