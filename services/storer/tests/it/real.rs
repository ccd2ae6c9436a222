//! On a real file system.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sekiwake_record::Name;
use sekiwake_store::{LineFormat, Lines, PartName, walk};
use sekiwake_storer::{Disk, Keeping, KeepingSettings, Load, RealDisk, StoreError, Template, Writer, WriterSettings};

pub(crate) const HOUR: u64 = 3600 * 1_000_000_000;
pub(crate) const START: u64 = 1_795_615_200_000_000_000;

pub(crate) fn member(name: &str) -> Name {
    Name::new(name).unwrap()
}

pub(crate) fn writer(dir: &Path, name: &str, rotate_bytes: u64) -> Writer<RealDisk> {
    let settings = WriterSettings { rotate_bytes, max_open: 16, ..WriterSettings::new(member(name), LineFormat::Text) };
    Writer::open(RealDisk::open(dir).unwrap(), settings).unwrap().0
}

pub(crate) fn keeping(dir: &Path, settings: impl FnOnce(&mut KeepingSettings)) -> Keeping<RealDisk> {
    let mut chosen = KeepingSettings { member: member("m"), compress: None, keep: None, max_bytes: None };
    settings(&mut chosen);
    Keeping::new(RealDisk::open(dir).unwrap(), chosen)
}

/// Adds a message of this size.
pub(crate) fn put(load: &mut Load, at: u64, source: u32, bytes: usize) {
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
    let (mut lines, mut count) = (Lines::open(path).unwrap(), 0);
    while lines.next_line().unwrap().is_some() {
        count += 1;
    }
    count
}

fn set_age(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

pub(crate) fn now_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[test]
fn thousands_of_sources_have_files_of_their_own_with_few_descriptors() {
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
    writer.tend(START + 3 * HOUR);
    assert_eq!(writer.open_parts(), 0);
    assert!(files.iter().all(|(_, path)| fs::metadata(path).unwrap().permissions().readonly()));
}

#[test]
fn a_directory_that_is_deleted_costs_what_was_in_it_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{date}/{kind}");
    put(&mut load, START, 1, 100);
    writer.store(START, &mut load).unwrap();
    load.clear();
    fs::remove_dir_all(dir.path().join("2026-11-25")).unwrap();
    put(&mut load, START, 1, 100);
    put(&mut load, START, 2, 100);
    // The file has no name any more, which shows when it is synced; the next try makes another one.
    let refused = writer.store(START, &mut load).unwrap_err().to_string();
    assert!(refused.contains("sync"), "{refused}");
    writer.store(START, &mut load).unwrap();
    let files = files(dir.path());
    assert_eq!(files.iter().map(|(_, path)| lines(path)).collect::<Vec<_>>(), [2]);
}

#[test]
fn two_of_one_name_do_not_write_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let first = writer(dir.path(), "m", 1 << 30);
    let settings = WriterSettings::new(member("m"), LineFormat::Text);
    let second = Writer::open(RealDisk::open(dir.path()).unwrap(), settings.clone());
    assert!(matches!(second, Err(StoreError::Twin(_))));
    drop(first);
    assert!(Writer::open(RealDisk::open(dir.path()).unwrap(), settings).is_ok());
}

#[test]
fn the_oldest_closed_files_go_first_and_nothing_else() {
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
    // The one with the highest number is the oldest, and the last is still open.
    for (index, (_, path)) in all.iter().enumerate() {
        set_age(path, Duration::from_secs(3600 * (index as u64 + 1)));
    }
    let strangers = ["notes.txt", "2026-11-25/.x.tmp", "2026-11-25/syslog@x@m@1-1.log"];
    for stranger in strangers {
        fs::write(dir.path().join(stranger), [b'x'; 5000]).unwrap();
    }
    let size: u64 = all.iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum();
    let (round, error) = keeping(dir.path(), |settings| settings.max_bytes = Some(size - 1)).round(now_ns(), &|| false);
    assert!(error.is_none());
    assert_eq!((round.deleted_by_size.0, round.files.0), (1, 4));
    assert!(all[4].1.exists(), "an open file stays, however old it is");
    assert!(!all[3].1.exists());
    let (round, _) = keeping(dir.path(), |settings| settings.keep = Some(Duration::from_secs(3600 * 5 / 2)))
        .round(now_ns(), &|| false);
    assert_eq!((round.deleted_by_age.0, round.files.0), (1, 3));
    assert!(!all[2].1.exists() && all[1].1.exists());
    drop(writer);
    assert!(strangers.iter().all(|stranger| dir.path().join(stranger).exists()));
}

#[test]
fn files_keep_their_age_and_their_lines_when_they_are_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), "m", 100_000);
    let mut load = load("{date}/{kind}");
    (0..2000).for_each(|source| put(&mut load, START, source % 7, 200));
    writer.store(START, &mut load).unwrap();
    writer.close_all();
    let plain = files(dir.path()).remove(0).1;
    set_age(&plain, Duration::from_secs(7200));
    let modified = fs::metadata(&plain).unwrap().modified().unwrap();
    // A round that is told to stop leaves nothing behind.
    let (round, _) = keeping(dir.path(), |settings| settings.compress = Some(3)).round(now_ns(), &|| true);
    assert_eq!((round.packed, files(dir.path()).len()), (0, 1));
    let (round, error) = keeping(dir.path(), |settings| settings.compress = Some(3)).round(now_ns(), &|| false);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(round.packed, 1);
    let (name, path) = files(dir.path()).remove(0);
    assert!(name.packed && !plain.exists());
    assert_eq!(lines(&path), 2000);
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.permissions().readonly());
    assert_eq!((metadata.modified().unwrap(), metadata.len()), (modified, round.files.1));
}

#[test]
fn what_a_member_left_that_is_no_more_is_kept_by_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (mut gone, alive) = (writer(dir.path(), "gone", 1 << 30), writer(dir.path(), "alive", 1 << 30));
    let mut load = Load::new(Template::default(), member("gone"), 3600);
    put(&mut load, START, 1, 100);
    gone.store(START, &mut load).unwrap();
    let path = files(dir.path()).remove(0).1;
    let round = |name: &str| {
        keeping(dir.path(), |settings| (settings.member, settings.compress) = (member(name), Some(3)))
            .round(now_ns(), &|| false)
            .0
    };
    assert_eq!(round("alive").files.0, 0, "it is alive, and its files are its own");
    drop(gone);
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"2026-11-25T14:00:00.0");
    fs::write(&path, &torn).unwrap();
    let done = round("alive");
    assert_eq!((done.recovered.files, done.recovered.cut_bytes, done.packed, done.files.0), (1, 21, 1, 1));
    assert_eq!(lines(&files(dir.path()).remove(0).1), 1);
    drop(alive);
}

#[test]
fn runs_are_counted_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let lock = disk.lock(&member("m")).unwrap().unwrap();
    assert_eq!([1, 2, 3], [(); 3].map(|()| disk.next_run(&lock, 0).unwrap()));
    drop(lock);
    let lock = disk.lock(&member("m")).unwrap().unwrap();
    assert_eq!(disk.next_run(&lock, 0).unwrap(), 4);
    assert_eq!(disk.next_run(&lock, 9).unwrap(), 10, "what is seen on the disk counts, too");
    assert!(disk.next_run(&lock, u32::MAX).is_err());
}

/// `cargo test --release -p sekiwake-storer --test it -- --ignored --nocapture writing`
#[test]
#[ignore = "a measurement"]
fn writing_takes_so_long() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut writer = writer(dir.path(), "m", 1 << 30);
    let mut load = load("{date}/{kind}");
    while load.bytes() < 16 << 20 {
        put(&mut load, START, 1, 300);
    }
    let bytes = load.bytes();
    let started = std::time::Instant::now();
    for _ in 0..10 {
        load.begin_again();
        writer.store(START, &mut load).unwrap();
    }
    let rate = 10.0 * bytes as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.0} MB/s, with a sync each {} MiB", bytes >> 20);
}
