//! A full disk: a small tmpfs in a mount namespace, which ends with the process.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use sekiwake_segments::Reader;
use sekiwake_testkit::skip::REQUIRE_VARIABLE;

use crate::{copy, disk_use, fill, open, read_all};

const DIR_VARIABLE: &str = "TEST_SEKIWAKE_SEGMENTS_FULL_DIR";
const LONGEST: usize = 2000;

#[test]
fn full_disk_is_a_temporary_error() {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).stdin(Stdio::null());
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=512k tmpfs \"$1\"";
    let allowed = unshare(mount).arg(dir.path()).output();
    if !allowed.as_ref().is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
        assert!(!required, "the test of a full disk cannot mount: {allowed:?}");
        eprintln!("SKIPPED: full_disk_is_a_temporary_error: cannot mount: {allowed:?}");
        return;
    }
    let test = "exec \"$2\" --exact disk_full::fills_the_disk --ignored --nocapture";
    let status = unshare(&format!("{mount} && {test}"))
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(DIR_VARIABLE, dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "the log was on the tmpfs");
}

#[test]
#[ignore = "the process that the test above starts, in its mount namespace"]
fn fills_the_disk() {
    let Some(disk) = std::env::var_os(DIR_VARIABLE).map(PathBuf::from) else { return };
    let dir = disk.join("log");
    let beside = tempfile::tempdir().unwrap();
    // The bound exceeds the disk. With segments of 64 KiB both writing and creating files fails.
    let (mut log, _) = open(&dir, 64 << 10, 8 << 20);
    let mut failures = 0;
    let mut reader = Reader::new(0);
    let mut read = Vec::new();
    for round in 0..20_u64 {
        // Another file fills the disk, with a different size each time.
        fs::write(disk.join("other"), vec![1; 10_000 * usize::try_from(round).unwrap()]).unwrap();
        let error = loop {
            let sequence = log.next_sequence();
            let result = log.append(&crate::payload(sequence, LONGEST));
            let result = result.and_then(|_| if sequence % 7 == round % 7 { log.sync() } else { Ok(()) });
            if let Err(error) = result {
                break error;
            }
        };
        assert!(error.is_storage_full(), "{error}");
        failures += 1;
        // Appending still fails, memory is bounded, and the files are valid.
        let next = log.next_sequence();
        let entries = (0..1000).filter(|_| log.append(&vec![0; LONGEST]).is_ok()).count();
        assert!(entries < 200, "{entries} more entries are in memory");
        assert_eq!(log.next_sequence(), next + entries as u64);
        let killed = tempfile::tempdir_in(&beside).unwrap();
        copy(&dir, killed.path());
        let (copied, recovered) = open(killed.path(), 64 << 10, 8 << 20);
        assert_eq!((recovered.corrupt_segments, recovered.torn_bytes), (0, 0));
        assert!(copied.next_sequence() <= log.next_sequence());
        drop(copied);
        // Room again.
        fs::remove_file(disk.join("other")).unwrap();
        while let Some(entry) = log.read(&mut reader).unwrap() {
            read.push(entry.sequence);
        }
        log.commit(reader.position()).unwrap();
        log.sync().unwrap();
        fill(&mut log, 1, LONGEST);
        log.sync().unwrap();
    }
    while let Some(entry) = log.read(&mut reader).unwrap() {
        read.push(entry.sequence);
    }
    assert_eq!(read, (0..log.next_sequence()).collect::<Vec<_>>(), "no appended entry is lost");
    assert_eq!((reader.take_missed(), reader.take_corrupt(), log.take_evicted()), (0, 0, 0));
    assert_eq!(log.bytes(), disk_use(&dir));
    let next = log.next_sequence();
    drop(log);
    let (mut log, recovered) = open(&dir, 64 << 10, 8 << 20);
    assert_eq!((log.next_sequence(), recovered.torn_bytes), (next, 0));
    fill(&mut log, 10, LONGEST);
    log.sync().unwrap();
    assert_eq!(read_all(&log, &mut Reader::new(next), LONGEST), (next..next + 10).collect::<Vec<_>>());
    println!("{failures} times full, {next} entries");
}
