//! The writer and the maintenance on a real file system.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sekiwake_archive::{FileState, LineFormat, Lines, Part, PartName, walk};
use sekiwake_record::{Kind, Name, WallTime};
use sekiwake_storer::{
    Disk, Load, Locked, Maintenance, MaintenanceSettings, Owner, RealDisk, Round, StoreError, Template, Writer,
    WriterSettings,
};
use sekiwake_sys::clock::wall_now_ns;
use tempfile::TempDir;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const START: WallTime = WallTime::from_nanos(1_795_615_200_000_000_000);

pub(crate) fn member(name: &str) -> Name {
    Name::new(name).unwrap()
}

pub(crate) fn writer(dir: &Path, name: &str, rotate_bytes: u64) -> Writer<RealDisk> {
    let settings = WriterSettings { rotate_bytes, max_open: 16, ..WriterSettings::new(member(name), LineFormat::Text) };
    Writer::open(RealDisk::open(dir).unwrap(), settings).unwrap().0
}

fn maintenance(dir: &Path, change: impl FnOnce(&mut MaintenanceSettings)) -> Maintenance<RealDisk> {
    let mut options = MaintenanceSettings {
        member: member("m"),
        kind: Kind::Syslog,
        is_stored: true,
        compress: None,
        keep: None,
        max_bytes: None,
    };
    change(&mut options);
    Maintenance::new(RealDisk::open(dir).unwrap(), options)
}

/// One round of maintenance now.
pub(crate) fn maintain(
    dir: &Path,
    change: impl FnOnce(&mut MaintenanceSettings),
    is_over: bool,
) -> (Round, Option<StoreError>) {
    maintenance(dir, change).round(WallTime::from_nanos(wall_now_ns()), &|| is_over)
}

/// A directory in which one message has been stored.
struct Stored {
    dir: TempDir,
    writer: Writer<RealDisk>,
}

fn stored(template: &str) -> Stored {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load(template);
    put(&mut load, START, 1, 100);
    writer.store(START, &mut load).unwrap();
    Stored { dir, writer }
}

/// Adds a message of this size.
pub(crate) fn put(load: &mut Load, at: WallTime, source: u32, bytes: usize) {
    let source = std::net::Ipv4Addr::from(0xc612_0000 + source).into();
    let text = format!("<13>{}", "x".repeat(bytes));
    let line = format!("2026-11-25T14:00:00.000000000Z {source}:514 203.0.113.1:514 user.notice rfc3164 {text}\n");
    load.buffer(at, source).extend_from_slice(line.as_bytes());
}

pub(crate) fn load(template: &str) -> Load {
    Load::new(Template::parse(template).unwrap(), member("m"), 3600)
}

pub(crate) fn files(dir: &Path) -> Vec<(PartName, PathBuf)> {
    let mut found = Vec::new();
    walk(dir, &mut |path, entry| found.extend(PartName::parse(path).map(|name| (name, entry.path())))).unwrap();
    found.sort();
    found
}

pub(crate) fn lines(path: &Path) -> u64 {
    let mut lines = Lines::open(path).unwrap();
    let mut count = 0;
    while lines.next_line().unwrap().is_some() {
        count += 1;
    }
    count
}

fn lock(disk: &RealDisk) -> fs::File {
    match disk.lock(&Owner { member: member("m"), kind: Kind::Syslog }).unwrap() {
        Locked::Taken(lock) => lock,
        other => panic!("{other:?}"),
    }
}

fn set_age(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn thousands_of_files_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{date}/{source}");
    for _ in 0..3 {
        (0..3000).for_each(|source| put(&mut load, START, source, 100));
        writer.store(START, &mut load).unwrap();
        load.clear();
        assert!(writer.open_files() <= 16);
    }
    assert_eq!(writer.open_parts(), 3000);
    let files = files(dir.path());
    assert_eq!(files.len(), 3000);
    assert!(files.iter().all(|(_, path)| lines(path) == 3));
    writer.close_due(START + HOUR * 3);
    assert_eq!(writer.open_parts(), 0);
    assert!(files.iter().all(|(name, _)| name.state == FileState::Open));
    let files = self::files(dir.path());
    assert!(files.iter().all(|(name, path)| {
        name.state == FileState::Closed && fs::metadata(path).unwrap().permissions().readonly()
    }));
}

#[test]
fn two_writers_of_one_name_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let first = writer(dir.path(), "m", 1 << 30);
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let second = Writer::open(RealDisk::open(dir.path()).unwrap(), settings.clone());
    assert!(matches!(second, Err(StoreError::NameInUse(_))));
    drop(first);
    assert!(Writer::open(RealDisk::open(dir.path()).unwrap(), settings).is_ok());
}

#[test]
fn retention_deletes_the_oldest_closed_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1000);
    let mut load = load("{date}/{kind}");
    for _ in 0..5 {
        put(&mut load, START, 1, 800);
        writer.store(START, &mut load).unwrap();
        load.clear();
    }
    let all = files(dir.path());
    assert_eq!(all.len(), 5);
    // The file with the highest number gets the greatest age, and is still open.
    for (index, (_, path)) in all.iter().enumerate() {
        set_age(path, Duration::from_secs(3600 * (index as u64 + 1)));
    }
    let strangers = ["readme.txt", "2026-11-25/.x.tmp", "2026-11-25/syslog@x@m@1-1.log"];
    for stranger in strangers {
        fs::write(dir.path().join(stranger), [b'x'; 5000]).unwrap();
    }
    let size: u64 = all.iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum();
    let (round, error) = maintain(dir.path(), |settings| settings.max_bytes = Some(size - 1), false);
    assert!(error.is_none());
    assert_eq!((round.deleted_by_size.totals.files, round.remaining.files), (1, 4));
    assert!(all[4].1.exists(), "an open file is kept at any age");
    assert!(!all[3].1.exists());
    assert_eq!(round.deleted_by_size.paths, [all[3].0.to_string()]);
    let (round, _) = maintain(dir.path(), |settings| settings.keep = Some(Duration::from_secs(3600 * 5 / 2)), false);
    assert_eq!((round.deleted_by_age.totals.files, round.remaining.files), (1, 3));
    assert!(!all[2].1.exists() && all[1].1.exists());
    drop(writer);
    assert!(strangers.iter().all(|stranger| dir.path().join(stranger).exists()));
}

#[test]
fn compression_keeps_age_and_lines() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 100_000);
    let mut load = load("{date}/{kind}");
    (0..2000).for_each(|source| put(&mut load, START, source % 7, 200));
    writer.store(START, &mut load).unwrap();
    writer.close_all();
    let plain = files(dir.path()).remove(0).1;
    set_age(&plain, Duration::from_secs(7200));
    let modified = fs::metadata(&plain).unwrap().modified().unwrap();
    // An interrupted round leaves nothing behind.
    let (round, _) = maintain(dir.path(), |settings| settings.compress = Some(3), true);
    assert_eq!((round.compressed, files(dir.path()).len()), (0, 1));
    let (round, error) = maintain(dir.path(), |settings| settings.compress = Some(3), false);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(round.compressed, 1);
    let (name, path) = files(dir.path()).remove(0);
    assert!(name.state == FileState::Compressed && !plain.exists());
    assert_eq!(lines(&path), 2000);
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.permissions().readonly());
    assert_eq!((metadata.modified().unwrap(), metadata.len()), (modified, round.remaining.bytes));
}

#[test]
fn files_of_stopped_members_are_maintained_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut stopped = writer(dir.path(), "stopped", 1 << 30);
    let running = writer(dir.path(), "running", 1 << 30);
    let mut load = Load::new(Template::default(), member("stopped"), 3600);
    put(&mut load, START, 1, 100);
    stopped.store(START, &mut load).unwrap();
    let path = files(dir.path()).remove(0).1;
    let round = |name: &str| {
        let change = |settings: &mut MaintenanceSettings| {
            settings.member = member(name);
            settings.compress = Some(3);
        };
        maintain(dir.path(), change, false).0
    };
    assert_eq!(round("running").remaining.files, 0, "files of a running member are its own");
    drop(stopped);
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"2026-11-25T14:00:00.0");
    fs::write(&path, &torn).unwrap();
    let done = round("running");
    assert_eq!(
        (done.recovered.files, done.recovered.truncated_bytes, done.compressed, done.remaining.files),
        (1, 21, 1, 1)
    );
    assert_eq!(lines(&files(dir.path()).remove(0).1), 1);
    drop(running);
}

#[test]
fn files_of_older_releases_are_recognised_by_their_modes() {
    let Stored { dir, mut writer } = stored("{kind}");
    writer.close_all();
    drop(writer);
    let (name, closed) = files(dir.path()).remove(0);
    let whole = fs::read(&closed).unwrap();
    // As an older release leaves it after a crash: torn, and only its mode says that it was open.
    let left_open = PartName { part: Part { run: 1, number: 2 }, ..name.clone() };
    let path = dir.path().join(left_open.to_string());
    fs::write(&path, [&whole[..], b"2026-11"].concat()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    // A closed one, with the same end, would not be touched.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(&closed, [&whole[..], b"2026-11"].concat()).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o440)).unwrap();
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let (_writer, recovered) = Writer::open(RealDisk::open(dir.path()).unwrap(), settings).unwrap();
    assert_eq!((recovered.files, recovered.truncated_bytes), (1, 7));
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert!(fs::metadata(&path).unwrap().permissions().readonly());
    assert_eq!(fs::read(&closed).unwrap().len(), whole.len() + 7);
    let probes = fs::read_dir(dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("modes"));
    assert_eq!(probes.count(), 0);
}

#[test]
fn open_file_has_the_mode_that_older_releases_judge_by() {
    let Stored { dir, mut writer } = stored("{date}/{kind}");
    let (name, path) = files(dir.path()).remove(0);
    assert_eq!(name.state, FileState::Open);
    assert!(path.to_str().unwrap().ends_with("2026-11-25/syslog.open@20261125T140000Z-3600s@m@1-1.log"), "{path:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    writer.close_all();
    let (name, path) = files(dir.path()).remove(0);
    assert_eq!(name.state, FileState::Closed);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o440);
}

#[test]
fn file_that_cannot_be_closed_is_reported_and_retried() {
    let Stored { dir, mut writer } = stored("{kind}");
    let (name, _) = files(dir.path()).remove(0);
    let in_the_way = dir.path().join(name.in_state(FileState::Closed).to_string());
    fs::create_dir(&in_the_way).unwrap();
    for _ in 0..3 {
        writer.close_due(START + HOUR * 3);
        assert!(writer.close_error().is_some());
        assert_eq!(writer.closed(), 0);
    }
    fs::remove_dir(&in_the_way).unwrap();
    writer.close_due(START + HOUR * 3);
    assert!(writer.close_error().is_none());
    assert_eq!((writer.closed(), files(dir.path()).remove(0).0.state), (1, FileState::Closed));
}

#[test]
fn file_that_cannot_be_deleted_is_a_failure_of_retention() {
    let Stored { dir, mut writer } = stored("{kind}");
    writer.close_all();
    let (round, _) = maintain(dir.path(), |settings| settings.max_bytes = Some(1), false);
    assert_eq!((round.retention_failed, files(dir.path()).len()), (false, 0));
    // A folder cannot be removed as a file, nor listed as one: fail at the listing.
    let missing = tempfile::tempdir().unwrap();
    let unlistable = maintenance(missing.path(), |settings| settings.max_bytes = Some(1));
    drop(missing);
    let (round, error) = unlistable.round(START, &|| false);
    assert!(round.retention_failed && error.is_some());
}

#[test]
fn run_numbers_grow_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let first = lock(&disk);
    assert_eq!([1, 2, 3], [(); 3].map(|()| disk.next_run(&first, 0).unwrap()));
    drop(first);
    let lock = lock(&disk);
    assert_eq!(disk.next_run(&lock, 0).unwrap(), 4);
    assert_eq!(disk.next_run(&lock, 9).unwrap(), 10, "runs seen in file names count, too");
    assert!(disk.next_run(&lock, u32::MAX).is_err());
}

/// `cargo test --release -p sekiwake-storer --test it -- --ignored --nocapture measure_writing`
#[test]
#[ignore = "a measurement"]
fn measure_writing() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{date}/{kind}");
    while load.bytes() < 16 << 20 {
        put(&mut load, START, 1, 300);
    }
    let bytes = load.bytes();
    let started = std::time::Instant::now();
    for _ in 0..10 {
        load.mark_unwritten();
        writer.store(START, &mut load).unwrap();
    }
    let rate = 10.0 * bytes as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.0} MB/s, with one sync per {} MiB", bytes >> 20);
}
