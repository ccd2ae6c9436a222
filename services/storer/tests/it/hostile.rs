//! What other people do to the directory, and what clocks do.

use std::{collections::BTreeSet, fs, path::Path};

use sekiwake_store::LineFormat;
use sekiwake_storer::{Disk, RealDisk, StoreError, Writer, WriterSettings};

use crate::real::{HOUR, START, files, keeping, lines, load, member, now_ns, put, writer};

fn stored_lines(dir: &Path) -> u64 {
    files(dir).iter().map(|(_, path)| lines(path)).sum()
}

#[test]
fn files_that_are_deleted_are_missed_however_many_are_written_at_once() {
    for sources in [3, 100, 1000] {
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
        assert_eq!(stored_lines(dir.path()), u64::from(sources), "what came later is not in files without a name");
    }
}

#[test]
fn a_lock_file_that_is_lost_leads_to_no_name_that_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = BTreeSet::new();
    for round in 1..=4 {
        let mut writer = writer(dir.path(), "m", 1 << 30);
        let mut load = load("{date}/{kind}");
        put(&mut load, START, 1, 100);
        writer.store(START, &mut load).unwrap();
        let (_, error) = keeping(dir.path(), |settings| settings.compress = Some(3)).round(now_ns(), &|| false);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(stored_lines(dir.path()), round);
        writer.close_all();
        let (round_kept, _) = keeping(dir.path(), |settings| settings.compress = Some(3)).round(now_ns(), &|| false);
        assert_eq!(round_kept.packed, 1);
        assert_eq!(stored_lines(dir.path()), round);
        names.extend(files(dir.path()).into_iter().map(|(name, _)| name.part));
        assert_eq!(names.len() as u64, round);
        drop(writer);
        fs::remove_file(dir.path().join(".sekiwake-storer.m.lock")).unwrap();
    }
}

#[test]
fn a_directory_in_the_place_of_the_old_one_is_noticed() {
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
    // Its lock is in the old one: here it may be one of two.
    assert!(matches!(writer.store(START, &mut load), Err(StoreError::Replaced)));
    assert!(matches!(writer.store(START, &mut load), Err(StoreError::Replaced)));
    assert_eq!(stored_lines(&dir), 0);
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let mut writer = Writer::open(RealDisk::open(&dir).unwrap(), settings).unwrap().0;
    load.begin_again();
    writer.store(START, &mut load).unwrap();
    assert_eq!(stored_lines(&dir), 1);
}

#[test]
fn every_directory_above_a_new_file_is_to_be_synced_whoever_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for name in ["a/b/one", "a/b/other", "a/c/d/one"] {
        let (_, changed) = disk.create(name).unwrap();
        let expected: BTreeSet<String> =
            Path::new(name).ancestors().skip(1).map(|folder| folder.to_str().unwrap().to_owned()).collect();
        assert_eq!(changed, expected, "{name}");
    }
}

#[test]
fn a_clock_that_was_years_ahead_leaves_no_file_open_for_years() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{kind}");
    let ahead = START + 30_000 * HOUR;
    put(&mut load, ahead, 1, 100);
    put(&mut load, START, 1, 100);
    writer.store(ahead, &mut load).unwrap();
    assert_eq!(writer.open_parts(), 2);
    // The clock is set right. What came at a wrong time came at the latest now.
    writer.tend(START);
    assert_eq!(writer.open_parts(), 2);
    writer.tend(START + HOUR / 2);
    assert_eq!(writer.open_parts(), 1, "the file of the future");
    writer.tend(START + HOUR + HOUR / 2);
    assert_eq!(writer.open_parts(), 0);
}
