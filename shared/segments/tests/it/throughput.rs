//! Throughput. Prints figures and asserts none: `cargo test --release -p sekiwake-segments --
//! --ignored --nocapture throughput`.

use std::time::{Duration, Instant};

use sekiwake_segments::Reader;

use crate::open;

const ENTRY_BYTES: usize = 200;
const RUN: Duration = Duration::from_secs(3);

#[test]
#[ignore = "prints figures"]
fn throughput_of_entries_of_200_bytes() {
    measure("sync every 64 KiB", |since_sync, _| since_sync >= 64 << 10);
    measure("sync every 10 ms", |_, last_sync| last_sync.elapsed() >= Duration::from_millis(10));
    measure("synced at the end of a segment only", |_, _| false);
}

fn measure(name: &str, due: impl Fn(usize, Instant) -> bool) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut log, _) = open(dir.path(), 16 << 20, 2 << 30);
    let entry = [b'x'; ENTRY_BYTES];
    let begin = Instant::now();
    let mut since_sync = 0;
    let mut last_sync = begin;
    let mut syncs = 0;
    while log.next_sequence() % 64 != 0 || begin.elapsed() < RUN {
        log.append(&entry).unwrap();
        since_sync += ENTRY_BYTES;
        if log.next_sequence() % 64 == 0 && due(since_sync, last_sync) {
            log.sync().unwrap();
            (since_sync, last_sync, syncs) = (0, Instant::now(), syncs + 1);
        }
    }
    log.sync().unwrap();
    print(&format!("append, {name} ({syncs} syncs)"), log.next_sequence(), begin.elapsed());

    let begin = Instant::now();
    let oldest = log.oldest_sequence();
    let mut reader = Reader::new(oldest);
    let mut count = 0_u64;
    while let Some(entry) = log.read(&mut reader).unwrap() {
        assert_eq!(entry.payload.len(), ENTRY_BYTES);
        count += 1;
    }
    print("read", count, begin.elapsed());

    let begin = Instant::now();
    let mut commits = 0_u64;
    for sequence in (oldest..log.next_sequence()).step_by(300) {
        log.commit(sequence).unwrap();
        commits += 1;
    }
    println!("commit every 300 entries: {:.1} µs each", begin.elapsed().as_secs_f64() * 1e6 / commits as f64);
    drop(log);
    let begin = Instant::now();
    open(dir.path(), 16 << 20, 2 << 30);
    println!("open: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
}

fn print(name: &str, entries: u64, time: Duration) {
    let rate = entries as f64 / time.as_secs_f64();
    println!("{name}: {rate:.0} entries/s, {:.1} MB/s", rate * ENTRY_BYTES as f64 / 1e6);
}
