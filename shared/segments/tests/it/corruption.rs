//! Torn ends and damaged bytes, in every position.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sekiwake_segments::{LogError, Reader};

use crate::{copy, fill, open, read_all, segments, try_open};

const LONGEST: usize = 60;
const HEADER: u64 = 32;

struct Original {
    dir: tempfile::TempDir,
    next: u64,
    /// First sequence number, file name, and the end of each entry.
    segments: Vec<(u64, PathBuf, Vec<u64>)>,
}

/// A log of three segments; the last one is short.
fn original() -> Original {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    while segments(dir.path()).len() < 3 {
        fill(&mut log, 1, LONGEST);
    }
    fill(&mut log, 12, LONGEST);
    let next = log.next_sequence();
    drop(log);
    let found = segments(dir.path());
    let first = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let firsts: Vec<u64> = found.iter().map(|(path, _)| first(path)).chain([next]).collect();
    let ends = |from: u64, to: u64| {
        let lengths = (from..to).map(|sequence| 12 + crate::payload(sequence, LONGEST).len() as u64);
        lengths
            .scan(HEADER, |end, length| {
                Some({
                    *end += length;
                    *end
                })
            })
            .collect::<Vec<u64>>()
    };
    let segments = found.iter().zip(firsts.windows(2)).map(|((path, bytes), range)| {
        let ends = ends(range[0], range[1]);
        assert_eq!(ends.last(), Some(bytes));
        (range[0], PathBuf::from(path.file_name().unwrap()), ends)
    });
    Original { segments: segments.collect(), dir, next }
}

fn damaged_copy(original: &Original, damage: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(original.dir.path(), dir.path());
    damage(dir.path());
    dir
}

/// Appends to the recovered log, reopens it, and reads all entries.
fn continues(dir: &Path, oldest: u64, expected: &[u64]) {
    let (mut log, _) = open(dir, 4096, 1 << 20);
    let next = log.next_sequence();
    fill(&mut log, 3, LONGEST);
    drop(log);
    let (log, recovered) = open(dir, 4096, 1 << 20);
    assert_eq!(recovered.torn_bytes, 0);
    let expected: Vec<u64> = expected.iter().copied().chain(next..next + 3).collect();
    assert_eq!(read_all(&log, &mut Reader::new(oldest), LONGEST), expected);
}

#[test]
fn truncated_last_segment_keeps_its_complete_entries() {
    let original = original();
    let (first, name, ends) = original.segments.last().unwrap();
    for cut in 0..*ends.last().unwrap() {
        let dir = damaged_copy(&original, |dir| {
            OpenOptions::new().write(true).open(dir.join(name)).unwrap().set_len(cut).unwrap();
        });
        let whole = ends.iter().filter(|&&end| end <= cut).count() as u64;
        let (log, recovered) = open(dir.path(), 4096, 1 << 20);
        let expected: Vec<u64> = (0..first + whole).collect();
        assert_eq!(read_all(&log, &mut Reader::new(0), LONGEST), expected, "cut at {cut}");
        assert_eq!((log.next_sequence(), recovered.entries), (first + whole, first + whole));
        let good = if whole == 0 { HEADER } else { ends[usize::try_from(whole).unwrap() - 1] };
        assert_eq!(recovered.torn_bytes, cut.saturating_sub(good), "cut at {cut}");
        assert_eq!(recovered.corrupt_segments, 0);
        drop(log);
        continues(dir.path(), 0, &expected);
    }
}

#[test]
fn damaged_byte_of_the_last_segment_costs_one_entry() {
    let original = original();
    let (first, name, ends) = original.segments.last().unwrap();
    for at in 0..*ends.last().unwrap() {
        let dir = damaged_copy(&original, |dir| flip(&dir.join(name), at));
        if (8..12).contains(&at) {
            let before = fs::read(dir.path().join(name)).unwrap();
            let rejected = try_open(dir.path(), 4096, 1 << 20).unwrap_err();
            assert!(matches!(rejected, LogError::UnknownVersion { known: 1, .. }), "{rejected}");
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), before, "the file is unchanged");
            continue;
        }
        let in_header = at < HEADER;
        let damaged = first + ends.iter().filter(|&&end| end <= at).count() as u64;
        let (log, recovered) = open(dir.path(), 4096, 1 << 20);
        let expected: Vec<u64> = (0..original.next).filter(|&entry| in_header || entry != damaged).collect();
        let mut reader = Reader::new(0);
        assert_eq!(read_all(&log, &mut reader, LONGEST), expected, "damaged at {at}");
        // Without an entry behind it, it cannot be distinguished from an unfinished write.
        let is_end = !in_header && damaged + 1 == original.next;
        assert_eq!(recovered.torn_bytes > 0, is_end, "damaged at {at}");
        assert_eq!(reader.take_corrupt(), u64::from(!in_header && !is_end), "damaged at {at}");
        assert_eq!(recovered.corrupt_segments, usize::from(in_header));
        drop(log);
        continues(dir.path(), 0, &expected);
    }
}

#[test]
fn damaged_byte_costs_one_entry() {
    let original = original();
    let (first, name, ends) = &original.segments[1];
    for at in (0..*ends.last().unwrap()).filter(|at| !(8..12).contains(at)) {
        let dir = damaged_copy(&original, |dir| flip(&dir.join(name), at));
        let (log, recovered) = open(dir.path(), 4096, 1 << 20);
        assert_eq!(recovered.corrupt_segments, usize::from(at < HEADER));
        assert_eq!(log.next_sequence(), original.next);
        let damaged = first + ends.iter().filter(|&&end| end <= at).count() as u64;
        let expected: Vec<u64> = (0..original.next).filter(|&entry| at < HEADER || entry != damaged).collect();
        let mut reader = Reader::new(0);
        assert_eq!(read_all(&log, &mut reader, LONGEST), expected, "damaged at {at}");
        assert_eq!((reader.take_corrupt(), reader.take_missed()), (u64::from(at >= HEADER), 0), "damaged at {at}");
    }
}

#[test]
fn short_or_missing_middle_segment_is_counted() {
    let original = original();
    let (first, name, ends) = &original.segments[1];
    let next_segment = original.segments[2].0;
    for cut in (0..*ends.last().unwrap()).step_by(7) {
        let dir = damaged_copy(&original, |dir| {
            OpenOptions::new().write(true).open(dir.join(name)).unwrap().set_len(cut).unwrap();
        });
        let (log, _) = open(dir.path(), 4096, 1 << 20);
        let good = first + ends.iter().filter(|&&end| end <= cut).count() as u64;
        let mut reader = Reader::new(0);
        let expected: Vec<u64> = (0..good).chain(next_segment..original.next).collect();
        assert_eq!(read_all(&log, &mut reader, LONGEST), expected, "cut at {cut}");
        assert_eq!(reader.take_corrupt(), next_segment - good);
    }
    let dir = damaged_copy(&original, |dir| fs::remove_file(dir.join(name)).unwrap());
    let (log, _) = open(dir.path(), 4096, 1 << 20);
    let mut reader = Reader::new(0);
    let expected: Vec<u64> = (0..*first).chain(next_segment..original.next).collect();
    assert_eq!(read_all(&log, &mut reader, LONGEST), expected);
    assert_eq!(reader.take_corrupt(), next_segment - first);
}

#[test]
fn damage_and_deletion_during_reading_are_counted() {
    let original = original();
    let dir = damaged_copy(&original, |_| {});
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    let mut reader = Reader::new(0);
    log.read(&mut reader).unwrap();
    let (first, name, _) = &original.segments[1];
    fs::remove_file(dir.path().join(name)).unwrap();
    let (last, name, ends) = &original.segments[2];
    flip(&dir.path().join(name), ends[3] + 2);
    let expected: Vec<u64> = (1..*first).chain(*last..last + 4).chain(last + 5..original.next).collect();
    assert_eq!(read_all(&log, &mut reader, LONGEST), expected);
    assert_eq!(reader.take_corrupt(), (last - first) + 1);
    // The reader continues with entries appended to the damaged segment.
    fill(&mut log, 2, LONGEST);
    log.flush().unwrap();
    assert_eq!(read_all(&log, &mut reader, LONGEST), [original.next, original.next + 1]);
    assert_eq!(reader.take_corrupt(), 0);
}

#[test]
fn zeros_and_noise_after_the_end_are_truncated() {
    let original = original();
    let (_, name, ends) = original.segments.last().unwrap();
    let end = *ends.last().unwrap();
    for tail in [vec![0; 5000], vec![0xff; 5000], vec![1; 11], crate::payload(1, 4000), 4000_u32.to_le_bytes().to_vec()]
    {
        let dir = damaged_copy(&original, |dir| {
            let file = OpenOptions::new().write(true).open(dir.join(name)).unwrap();
            file.write_all_at(&tail, end).unwrap();
        });
        let (log, recovered) = open(dir.path(), 4096, 1 << 20);
        assert_eq!(recovered.torn_bytes, tail.len() as u64);
        assert_eq!(log.next_sequence(), original.next);
        drop(log);
        continues(dir.path(), 0, &(0..original.next).collect::<Vec<_>>());
    }
}

#[test]
fn last_segment_of_noise_is_kept_until_it_is_the_oldest() {
    let original = original();
    let (first, name, _) = original.segments.last().unwrap();
    let noise = vec![0x5a; 3000];
    let dir = damaged_copy(&original, |dir| fs::write(dir.join(name), &noise).unwrap());
    let (mut log, recovered) = open(dir.path(), 4096, 1 << 20);
    assert_eq!((recovered.corrupt_segments, recovered.torn_bytes), (1, 0));
    fill(&mut log, 2, LONGEST);
    log.flush().unwrap();
    let mut reader = Reader::new(0);
    let expected: Vec<u64> = (0..*first).chain(first + 1..first + 3).collect();
    assert_eq!(read_all(&log, &mut reader, LONGEST), expected);
    assert_eq!(reader.take_corrupt(), 1);
    assert_eq!(fs::read(dir.path().join(name)).unwrap(), noise);
    log.commit(log.next_sequence()).unwrap();
    assert!(!dir.path().join(name).exists());
}

#[test]
fn position_ahead_of_the_files_is_kept() {
    let original = original();
    let dir = damaged_copy(&original, |_| {});
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    log.commit(original.next).unwrap();
    drop(log);
    // After a power cut that lost unsynced entries, the position is ahead of the segment.
    let (_, name, ends) = original.segments.last().unwrap();
    OpenOptions::new().write(true).open(dir.path().join(name)).unwrap().set_len(ends[2]).unwrap();
    let (mut log, recovered) = open(dir.path(), 4096, 1 << 20);
    assert_eq!((recovered.entries, log.next_sequence()), (0, original.next));
    fill(&mut log, 1, LONGEST);
    drop(log);
    fs::write(dir.path().join("position"), vec![0x33; 8192]).unwrap();
    let (log, recovered) = open(dir.path(), 4096, 1 << 20);
    assert!(recovered.position_lost);
    assert_eq!(read_all(&log, &mut Reader::new(0), LONGEST), [original.next]);
}

#[test]
fn numbers_lost_in_a_power_cut_are_not_reused() {
    let original = original();
    let (first, name, ends) = original.segments.last().unwrap();
    let dir = damaged_copy(&original, |_| {});
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    log.commit(1).unwrap();
    drop(log);
    OpenOptions::new().write(true).open(dir.path().join(name)).unwrap().set_len(ends[2]).unwrap();
    for committed in [2, 3] {
        let (mut log, _) = open(dir.path(), 4096, 1 << 20);
        assert_eq!(log.next_sequence(), original.next);
        log.commit(committed).unwrap();
    }
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    fill(&mut log, 1, LONGEST);
    log.flush().unwrap();
    let mut reader = Reader::new(log.committed());
    let expected: Vec<u64> = (3..first + 3).chain([original.next]).collect();
    assert_eq!(read_all(&log, &mut reader, LONGEST), expected);
    assert_eq!(reader.take_corrupt(), original.next - (first + 3));
}

#[test]
fn synced_entries_that_vanish_are_counted() {
    let original = original();
    let sync = |dir: &Path| {
        let (mut log, _) = open(dir, 4096, 1 << 20);
        fill(&mut log, 3, LONGEST);
        log.sync().unwrap();
        log.next_sequence()
    };
    let (first, name, ends) = original.segments.last().unwrap();
    let dir = damaged_copy(&original, |_| {});
    let next = sync(dir.path());
    OpenOptions::new().write(true).open(dir.path().join(name)).unwrap().set_len(ends[2]).unwrap();
    let (log, recovered) = open(dir.path(), 4096, 1 << 20);
    let mut reader = Reader::new(0);
    assert_eq!(read_all(&log, &mut reader, LONGEST), (0..first + 3).collect::<Vec<_>>());
    assert_eq!((log.entries(), reader.take_corrupt(), recovered.vanished), (next, next - first - 3, 0));
    drop(log);

    let dir = damaged_copy(&original, |_| {});
    let next = sync(dir.path());
    for (_, name, _) in &original.segments {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let (log, recovered) = open(dir.path(), 4096, 1 << 20);
    assert_eq!((log.entries(), recovered.vanished), (0, next));
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}
