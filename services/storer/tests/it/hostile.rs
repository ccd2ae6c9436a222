//! Interference by other programs, and wrong clocks.

use std::{collections::BTreeSet, fs, path::Path};

use sekiwake_archive::{LineFormat, Lines};
use sekiwake_storer::{Created, Disk, RealDisk, StoreError, Writer, WriterSettings};

use crate::{
    real::{HOUR, START, files, lines, load, maintain, member, put, writer},
    simulated::SimulatedDisk,
};

fn stored_lines(dir: &Path) -> u64 {
    files(dir).iter().map(|(_, path)| lines(path)).sum()
}

#[test]
fn deleted_files_are_detected_for_any_number_of_files() {
    for sources in [1, 3, 100, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let settings = WriterSettings { max_open: 512, ..WriterSettings::new(member("m"), LineFormat::Text) };
        let mut writer = Writer::open(RealDisk::open(dir.path()).unwrap(), settings).unwrap().0;
        let mut load = load("{date}/{source}");
        (0..sources).for_each(|source| put(&mut load, START, source, 100));
        writer.store(START, &mut load).unwrap();
        load.clear();
        fs::remove_dir_all(dir.path().join("2026-11-25")).unwrap();
        (0..sources).for_each(|source| put(&mut load, START, source, 100));
        while writer.store(START, &mut load).is_err() {}
        assert_eq!(
            stored_lines(dir.path()),
            u64::from(sources),
            "records after the deletion are in files that have a name"
        );
    }
}

#[test]
fn truncated_file_costs_only_its_own_messages() {
    for sources in [1, 3, 100] {
        for left in [0, 1, 10, 60] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = writer(dir.path(), "m", 1 << 30);
            let mut load = load("{source}");
            let mut store = |writer: &mut Writer<RealDisk>| {
                load.clear();
                (0..sources).for_each(|source| put(&mut load, START, source, 100));
                while writer.store(START, &mut load).is_err() {}
            };
            store(&mut writer);
            for (_, path) in files(dir.path()) {
                fs::OpenOptions::new().write(true).open(path).unwrap().set_len(left).unwrap();
            }
            (0..3).for_each(|_| store(&mut writer));
            let mut good = 0;
            for (_, path) in files(dir.path()) {
                let bytes = fs::read(&path).unwrap();
                assert!(!bytes.contains(&0), "a hole in {path:?}");
                let mut lines = Lines::open(&path).unwrap();
                while let Some((_, message)) = lines.next_line().unwrap() {
                    good += u32::from(message.is_some());
                }
            }
            assert_eq!(good, 3 * sources, "{sources} files truncated to {left} bytes");
        }
    }
}

#[test]
fn damaged_line_costs_no_other_message_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{kind}");
    (0..1000).for_each(|source| put(&mut load, START, source, 100));
    first.store(START, &mut load).unwrap();
    drop(first);
    let (_, path) = files(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let damaged = bytes.len() / 10;
    bytes[damaged] ^= 0x80;
    fs::write(&path, &bytes).unwrap();
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let (_, recovered) = Writer::open(RealDisk::open(dir.path()).unwrap(), settings).unwrap();
    assert_eq!((recovered.files, recovered.truncated_bytes, recovered.damaged_lines), (1, 0, 1));
    assert_eq!(stored_lines(dir.path()), 1000);
}

#[test]
fn storer_with_few_descriptors_uses_fewer() {
    for limit in [2, 5, 16] {
        let disk = SimulatedDisk::new(1);
        disk.set_max_files(limit);
        let settings = WriterSettings::new(member("m"), LineFormat::Text);
        let mut writer = Writer::open(disk.clone(), settings).unwrap().0;
        let mut load = load("{source}");
        for _ in 0..3 {
            load.clear();
            (0..50).for_each(|source| put(&mut load, START, source, 100));
            writer.store(START, &mut load).unwrap();
        }
        assert!(disk.most_open() <= limit);
        let mut numbers: Vec<u32> = disk.listing().into_iter().map(|(found, _)| found.name.part.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=50).collect::<Vec<_>>(), "attempts use up no numbers");
    }
    // With none at all, nothing is stored, and nothing is used up.
    let disk = SimulatedDisk::new(1);
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let mut writer = Writer::open(disk.clone(), settings).unwrap().0;
    let mut load = load("{source}");
    put(&mut load, START, 1, 100);
    disk.set_max_files(0);
    (0..10).for_each(|_| assert!(writer.store(START, &mut load).is_err()));
    disk.set_max_files(10);
    writer.store(START, &mut load).unwrap();
    assert_eq!(disk.listing().remove(0).0.name.part.number, 1);
}

#[test]
fn lost_lock_file_causes_no_reused_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = BTreeSet::new();
    for round in 1..=4 {
        let mut writer = writer(dir.path(), "m", 1 << 30);
        let mut load = load("{date}/{kind}");
        put(&mut load, START, 1, 100);
        writer.store(START, &mut load).unwrap();
        let (_, error) = maintain(dir.path(), |settings| settings.compress = Some(3), false);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(stored_lines(dir.path()), round);
        writer.close_all();
        let (outcome, _) = maintain(dir.path(), |settings| settings.compress = Some(3), false);
        assert_eq!(outcome.compressed, 1);
        assert_eq!(stored_lines(dir.path()), round);
        names.extend(files(dir.path()).into_iter().map(|(name, _)| name.part));
        assert_eq!(names.len() as u64, round);
        drop(writer);
        fs::remove_file(dir.path().join(".sekiwake-storer.m.lock")).unwrap();
    }
}

#[test]
fn replaced_directory_is_detected() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    let mut writer = writer(&dir, "m", 1 << 30);
    let mut load = load("{kind}");
    put(&mut load, START, 1, 100);
    writer.store(START, &mut load).unwrap();
    load.clear();
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::create_dir(&dir).unwrap();
    put(&mut load, START, 1, 100);
    // The lock is in the old directory, so the new one may have another writer.
    assert!(matches!(writer.store(START, &mut load), Err(StoreError::Replaced)));
    assert!(matches!(writer.store(START, &mut load), Err(StoreError::Replaced)));
    assert_eq!(stored_lines(&dir), 0);
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let mut writer = Writer::open(RealDisk::open(&dir).unwrap(), settings).unwrap().0;
    load.mark_unwritten();
    writer.store(START, &mut load).unwrap();
    assert_eq!(stored_lines(&dir), 1);
}

#[test]
fn every_directory_above_a_new_file_must_be_synced() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for name in ["a/b/one", "a/b/other", "a/c/d/one"] {
        let Created { directories, .. } = disk.create(name).unwrap();
        let expected: BTreeSet<String> =
            Path::new(name).ancestors().skip(1).map(|folder| folder.to_str().unwrap().to_owned()).collect();
        assert_eq!(directories, expected, "{name}");
    }
}

#[test]
fn file_from_a_clock_years_ahead_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{kind}");
    let ahead = START + HOUR * 30_000;
    put(&mut load, ahead, 1, 100);
    put(&mut load, START, 1, 100);
    writer.store(ahead, &mut load).unwrap();
    assert_eq!(writer.open_parts(), 2);
    // The clock is corrected: no file was written to later than now.
    writer.close_due(START);
    assert_eq!(writer.open_parts(), 2);
    writer.close_due(START + HOUR / 2);
    assert_eq!(writer.open_parts(), 1, "the file dated in the future is closed");
    writer.close_due(START + HOUR + HOUR / 2);
    assert_eq!(writer.open_parts(), 0);
}
