//! Kills (-9) a process that appends, syncs and commits in a loop.

use std::{
    io::{BufRead, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use sekiwake_segments::Reader;

use crate::{fill, open, read_all};

const DIR_VARIABLE: &str = "TEST_SEKIWAKE_SEGMENTS_KILL_DIR";
const LONGEST: usize = 300;
const SEGMENT: u64 = 64 << 10;
const MAX: u64 = 1 << 30;

#[test]
fn synced_entries_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut synced = 0;
    let mut committed = 0;
    let mut torn = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::appends_until_it_is_killed", "--ignored", "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reports = thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            let reports = lines.filter_map(|line| {
                let (synced, committed) = line.strip_prefix("synced ")?.split_once(' ')?;
                Some((synced.parse::<u64>().ok()?, committed.parse::<u64>().ok()?))
            });
            reports.last()
        });
        // Not a wait for a condition: the moment of the kill varies by round.
        thread::sleep(Duration::from_millis(60 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some((reported, done)) = reports.join().unwrap() {
            assert!(reported >= synced);
            (synced, committed) = (reported, done);
        }
        let (log, recovered) = open(dir.path(), SEGMENT, MAX);
        torn += recovered.torn_bytes;
        assert!(log.next_sequence() >= synced, "{} < {synced}", log.next_sequence());
        assert!(log.committed() >= committed, "a written position survives a kill: {} < {committed}", log.committed());
        assert_eq!(recovered.corrupt_segments, 0);
        let oldest = log.oldest_sequence();
        assert_eq!(oldest, log.committed());
        let expected: Vec<u64> = (oldest..log.next_sequence()).collect();
        assert_eq!(read_all(&log, &mut Reader::new(oldest), LONGEST), expected);
    }
    println!("{synced} entries synced, {committed} committed, {torn} torn bytes in 12 kills");
    assert!(synced > 0, "the child never synced");
}

#[test]
#[ignore = "the process that the test above kills"]
fn appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let (mut log, _) = open(&PathBuf::from(dir), SEGMENT, MAX);
    let mut out = std::io::stdout();
    loop {
        let count = log.next_sequence() % 97 + 1;
        fill(&mut log, count, LONGEST);
        log.sync().unwrap();
        let done = log.next_sequence() - (log.next_sequence() - log.committed()) / 2;
        log.commit(done).unwrap();
        writeln!(out, "synced {} {}", log.next_sequence(), log.committed()).unwrap();
    }
}
