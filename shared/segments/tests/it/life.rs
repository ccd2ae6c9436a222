//! The life cycle of a log.

use std::fs;

use sekiwake_segments::{LogError, Reader};

use crate::{disk_use, fill, open, read_all, segments, try_open};

#[test]
fn flushed_entries_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    let mut reader = Reader::new(0);
    fill(&mut log, 3, 100);
    assert_eq!(read_all(&log, &mut reader, 100), Vec::<u64>::new());
    log.flush().unwrap();
    assert_eq!(read_all(&log, &mut reader, 100), [0, 1, 2]);
    fill(&mut log, 500, 100);
    log.flush().unwrap();
    assert_eq!(read_all(&log, &mut reader, 100), (3..503).collect::<Vec<_>>());
    assert!(segments(dir.path()).len() > 3);
    assert_eq!(read_all(&log, &mut Reader::new(250), 100), (250..503).collect::<Vec<_>>());
    assert_eq!((reader.take_missed(), reader.take_corrupt()), (0, 0));
}

#[test]
fn second_log_in_the_directory_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path(), 4096, 1 << 20);
    let rejected = try_open(dir.path(), 4096, 1 << 20).unwrap_err();
    assert!(matches!(rejected, LogError::Locked(_)), "{rejected}");
    assert!(rejected.to_string().contains("in use"));
    drop(log);
    open(dir.path(), 4096, 1 << 20);
}

#[test]
fn numbers_continue_after_all_segments_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    fill(&mut log, 300, 100);
    log.commit(300).unwrap();
    assert_eq!(segments(dir.path()).len(), 1, "only the active segment is left");
    assert_eq!((log.entries(), log.oldest_sequence()), (0, 300));
    drop(log);
    for _ in 0..3 {
        let (log, recovered) = open(dir.path(), 4096, 1 << 20);
        assert_eq!(segments(dir.path()), [], "all segments are deleted when all entries are committed");
        assert_eq!((recovered.entries, recovered.bytes, log.bytes()), (0, 0, 0));
        assert_eq!((log.next_sequence(), log.oldest_sequence(), log.committed()), (300, 300, 300));
    }
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    assert_eq!(log.append(b"next").unwrap(), 300);
}

#[test]
fn repeated_opening_leaves_no_empty_segments() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let (mut log, recovered) = open(dir.path(), 4096, 1 << 20);
        assert_eq!(recovered.entries, round / 2);
        if round % 2 == 1 {
            fill(&mut log, 1, 100);
        }
    }
    assert_eq!(segments(dir.path()).len(), 1);
}

#[test]
fn oldest_segment_is_evicted_at_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 4096, 16 << 10);
    let mut slow = Reader::new(0);
    fill(&mut log, 10, 200);
    log.flush().unwrap();
    assert_eq!(log.read(&mut slow).unwrap().map(|entry| entry.sequence), Some(0));
    log.commit(5).unwrap();
    let mut evicted = 0;
    for _ in 0..2000 {
        fill(&mut log, 1, 200);
        log.flush().unwrap();
        assert!(disk_use(dir.path()) <= 16 << 10);
        assert_eq!(log.bytes(), disk_use(dir.path()));
        evicted += log.take_evicted();
    }
    assert_eq!(log.take_evicted(), 0);
    assert!(
        log.bytes() > (16 << 10) - 4096 - 212,
        "only as much as necessary is evicted: {} bytes are left",
        log.bytes()
    );
    assert_eq!(5 + evicted + log.entries(), 2010);
    let rest: Vec<u64> = (log.oldest_sequence()..2010).collect();
    assert_eq!(read_all(&log, &mut slow, 200), rest);
    assert_eq!(slow.take_missed(), evicted, "the reader has missed all evicted entries");
    assert_eq!(slow.take_corrupt(), 0);
}

#[test]
fn lowered_bound_is_applied_when_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 64 << 10, 1 << 20);
    fill(&mut log, 5000, 200);
    drop(log);
    assert!(disk_use(dir.path()) > 400 << 10);
    let (log, recovered) = open(dir.path(), 16 << 10, 100 << 10);
    assert!(disk_use(dir.path()) <= 100 << 10);
    assert!(recovered.evicted > 0);
    assert_eq!(recovered.entries + recovered.evicted, 5000);
    drop(log);
    let (log, recovered) = open(dir.path(), 4 << 10, 8 << 10);
    assert_eq!((recovered.segments, disk_use(dir.path()), log.next_sequence()), (0, 0, 5000));
    drop(log);
    let (mut log, _) = open(dir.path(), 4 << 10, 8 << 10);
    assert_eq!(log.next_sequence(), 5000, "numbers are kept without any segment");
    fill(&mut log, 1, 200);
    drop(log);
    assert_eq!(open(dir.path(), 4 << 10, 8 << 10).1.entries, 1);
}

#[test]
fn entry_can_fill_a_segment_but_not_exceed_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20, 4 << 20);
    let limit = (1 << 20) - 44;
    let rejected = log.append(&vec![7; limit + 1]).unwrap_err();
    assert!(matches!(rejected, LogError::TooLarge { bytes, limit: 1_048_532 } if bytes == limit + 1), "{rejected}");
    for length in [limit, 0, limit, limit - 1, 1, limit] {
        log.append(&vec![7; length]).unwrap();
    }
    log.flush().unwrap();
    assert!(segments(dir.path()).iter().all(|(_, bytes)| *bytes <= 1 << 20));
    let mut reader = Reader::new(log.oldest_sequence());
    let mut lengths = Vec::new();
    while let Some(entry) = log.read(&mut reader).unwrap() {
        assert!(entry.payload.iter().all(|&byte| byte == 7));
        lengths.push(entry.payload.len());
    }
    assert_eq!(lengths, [0, limit, limit - 1, 1, limit][5 - lengths.len()..]);
    assert_eq!(log.take_evicted() + log.entries(), 6);
    assert!(lengths.len() >= 4);
}

#[test]
fn contradictory_settings_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    for (segment_bytes, max_bytes) in [(4095, 1 << 20), (4096, 8191), (0, 0)] {
        let rejected = try_open(dir.path(), segment_bytes, max_bytes).unwrap_err();
        assert!(matches!(rejected, LogError::Settings(_)), "{rejected}");
    }
}

#[test]
fn commit_beyond_the_end_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 4096, 1 << 20);
    fill(&mut log, 3, 10);
    assert!(matches!(log.commit(4), Err(LogError::BeyondEnd { sequence: 4, next: 3 })));
    log.commit(2).unwrap();
    log.commit(1).unwrap();
    assert_eq!(log.committed(), 2, "a position never decreases");
}

#[test]
fn other_files_are_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("17.segment"), "mine").unwrap();
    let (mut log, recovered) = open(dir.path(), 4096, 1 << 20);
    assert_eq!((recovered.segments, log.next_sequence()), (0, 0));
    fill(&mut log, 100, 100);
    log.commit(100).unwrap();
    assert_eq!(fs::read(dir.path().join("17.segment")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("notes.txt")).unwrap(), b"mine");
}

#[test]
fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(&dir.path().join("deep/er"), 4096, 1 << 20);
    fill(&mut log, 1, 100);
    log.commit(1).unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join("deep/er").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    for name in ["lock", "position", "00000000000000000000.segment"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
}

#[test]
fn removed_directory_is_made_again_and_its_entries_are_counted() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("spool");
    let (mut log, _) = open(&dir, 4096, 1 << 20);
    let mut reader = Reader::new(0);
    for round in 0..3 {
        fill(&mut log, 100, 200);
        log.sync().unwrap();
        let before = log.next_sequence();
        fs::remove_dir_all(&dir).unwrap();
        let mark = log.mark().unwrap();
        fill(&mut log, 1, 200);
        assert!(log.sync().is_err(), "the file is deleted");
        log.withdraw(mark).unwrap();
        assert_eq!(log.next_sequence(), before);
        fill(&mut log, 3, 200);
        log.sync().unwrap();
        let read = read_all(&log, &mut reader, 200);
        assert_eq!((read, reader.take_corrupt()), ((before..before + 3).collect(), 100), "round {round}");
        log.commit(log.next_sequence()).unwrap();
    }
    let next = log.next_sequence();
    drop(log);
    assert_eq!(open(&dir, 4096, 1 << 20).0.next_sequence(), next);
}

#[test]
fn withdrawn_entries_are_never_read() {
    for (before, withdrawn) in [(0, 1), (0, 500), (5, 1), (5, 10_000), (300, 40)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), 64 << 10, 8 << 20);
        fill(&mut log, before, 500);
        let mark = log.mark().unwrap();
        let bytes = log.bytes();
        for flush in [false, true] {
            for _ in 0..withdrawn {
                log.append(b"withdrawn").unwrap();
            }
            if flush {
                log.flush().unwrap();
            }
            log.withdraw(mark).unwrap();
            assert_eq!((log.next_sequence(), log.entries(), log.bytes()), (before, before, bytes));
        }
        fill(&mut log, 20, 500);
        log.sync().unwrap();
        let expected: Vec<u64> = (0..before + 20).collect();
        assert_eq!(read_all(&log, &mut Reader::new(0), 500), expected);
        drop(log);
        let (log, recovered) = open(dir.path(), 64 << 10, 8 << 20);
        assert_eq!((recovered.entries, recovered.vanished, recovered.torn_bytes), (before + 20, 0, 0));
        assert_eq!(read_all(&log, &mut Reader::new(0), 500), expected, "{before}, {withdrawn}");
    }
}
