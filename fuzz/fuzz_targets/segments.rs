//! Any bytes as a segment: what is found in it is what a log would have written, byte for byte, and a log opens with it.
//!
//! ```text
//! input  first sequence number 1 | kind 1, odd  | the segment, as it is
//!        ignored 1               | kind 1, even | place 1 | change 1 | entries, each as length 1 | payload
//! ```
//!
//! Checksums cannot be guessed, so with an even kind a log writes the entries first, and one byte of its segment is changed.

#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use sekiwake_segments::{Log, Reader, Settings, scan};

fuzz_target!(|input: &[u8]| {
    let [first, kind, rest @ ..] = input else { return };
    let first = u64::from(*first);
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = parent.join(format!("sekiwake-fuzz-segments-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory for the log");
    let segment = if kind % 2 == 0 { written(&dir, rest) } else { Some((first, rest.to_vec())) };
    if let Some((first, bytes)) = segment {
        check(&dir, first, &bytes);
    }
    let _ = fs::remove_dir_all(&dir);
});

/// A segment that a log wrote, with one byte of it changed.
fn written(dir: &Path, input: &[u8]) -> Option<(u64, Vec<u8>)> {
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
    Some((0, bytes))
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
        // Refused: the file is left as it was.
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
    assert!(log.read(&mut reader).expect("a file that can be read").is_none());
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
