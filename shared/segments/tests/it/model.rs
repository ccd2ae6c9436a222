//! Random use, compared with a model in memory.

use proptest::prelude::*;
use sekiwake_segments::{Log, Reader};

use crate::{copy, disk_use, open, payload, read_all, segments};

const SEGMENT: u64 = 4096;
const MAX: u64 = 20_000;

#[derive(Clone, Debug)]
enum Action {
    Append {
        count: u16,
    },
    Flush,
    Sync,
    /// Up to this part of the entries, in 255ths.
    Commit(u8),
    Read {
        count: u16,
    },
    Seek(u8),
    Reopen,
    /// Opens a copy as kill -9 would leave it.
    Kill,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (1..40_u16).prop_map(|count| Action::Append { count }),
        3 => Just(Action::Flush),
        2 => Just(Action::Sync),
        3 => any::<u8>().prop_map(Action::Commit),
        6 => (1..80_u16).prop_map(|count| Action::Read { count }),
        1 => any::<u8>().prop_map(Action::Seek),
        1 => Just(Action::Reopen),
        2 => Just(Action::Kill),
    ]
}

/// The expected state. The payload of an entry follows from its number.
#[derive(Default)]
struct Model {
    next: u64,
    /// All entries below this are certainly in the files.
    flushed: u64,
    committed: u64,
    oldest: u64,
}

impl Model {
    fn check(&self, log: &Log) {
        assert_eq!(log.next_sequence(), self.next);
        assert_eq!(log.committed(), self.committed);
        assert_eq!(log.oldest_sequence(), self.oldest);
        assert_eq!(log.entries(), self.next - self.oldest);
    }

    fn at(&self, part: u8) -> u64 {
        self.oldest + (self.next - self.oldest) * u64::from(part) / 255
    }
}

/// A directory in memory: thousands of syncs would be slow on a disk, and add nothing here.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn log_behaves_like_its_model(actions in prop::collection::vec(action(), 1..80), longest in 0..900_usize) {
        let dir = in_memory();
        let (mut log, _) = open(dir.path(), SEGMENT, MAX);
        let mut model = Model::default();
        let mut reader = Reader::new(0);
        for action in actions {
            match action {
                Action::Append { count } => for _ in 0..count {
                    let before = log.bytes();
                    prop_assert_eq!(log.append(&payload(model.next, longest)).unwrap(), model.next);
                    model.next += 1;
                    let evicted = log.take_evicted();
                    prop_assert!(evicted == 0 || before + SEGMENT > MAX - SEGMENT, "evicted at {} bytes", before);
                    // Committed entries of an evicted segment are not counted: the oldest
                    // uncommitted entry advances by the others.
                    model.oldest += evicted;
                },
                Action::Flush => {
                    log.flush().unwrap();
                    model.flushed = model.next;
                }
                Action::Sync => {
                    log.sync().unwrap();
                    model.flushed = model.next;
                }
                Action::Commit(part) => {
                    model.committed = model.committed.max(model.at(part));
                    model.oldest = model.oldest.max(model.committed);
                    log.commit(model.committed).unwrap();
                }
                Action::Read { count } => for _ in 0..count {
                    let wanted = reader.position();
                    let Some(entry) = log.read(&mut reader).unwrap() else {
                        prop_assert!(reader.position() >= model.flushed);
                        break;
                    };
                    prop_assert_eq!(entry.payload, payload(entry.sequence, longest));
                    let sequence = entry.sequence;
                    let missed = reader.take_missed();
                    if sequence != wanted {
                        prop_assert!(wanted < model.oldest);
                        prop_assert_eq!(missed, sequence.saturating_sub(wanted.max(model.committed)));
                    } else {
                        prop_assert_eq!(missed, 0);
                    }
                },
                Action::Seek(part) => reader = Reader::new(model.at(part)),
                Action::Reopen => {
                    drop(log);
                    let (reopened, recovered) = open(dir.path(), SEGMENT, MAX);
                    log = reopened;
                    model.flushed = model.next;
                    prop_assert_eq!(recovered.entries, model.next - model.oldest);
                    prop_assert_eq!((recovered.torn_bytes, recovered.corrupt_segments, recovered.evicted), (0, 0, 0));
                    reader = Reader::new(reader.position());
                }
                Action::Kill => {
                    let beside = in_memory();
                    copy(dir.path(), beside.path());
                    let (copied, recovered) = open(beside.path(), SEGMENT, MAX);
                    prop_assert_eq!((recovered.torn_bytes, recovered.corrupt_segments), (0, 0));
                    prop_assert_eq!(copied.committed(), model.committed);
                    let oldest = copied.oldest_sequence();
                    let next = copied.next_sequence();
                    prop_assert_eq!(oldest, model.oldest.min(next));
                    prop_assert!((model.flushed..=model.next).contains(&next));
                    let expected: Vec<u64> = (oldest..next).collect();
                    prop_assert_eq!(read_all(&copied, &mut Reader::new(oldest), longest), expected);
                }
            }
            model.check(&log);
            prop_assert_eq!(reader.take_corrupt(), 0);
            prop_assert!(log.bytes() <= MAX);
            prop_assert!(disk_use(dir.path()) <= log.bytes());
            let files = segments(dir.path());
            prop_assert!(files.iter().rev().skip(1).all(|(_, bytes)| *bytes > 32), "empty segments: {files:?}");
        }
        log.flush().unwrap();
        let expected: Vec<u64> = (model.oldest..model.next).collect();
        prop_assert_eq!(read_all(&log, &mut Reader::new(model.oldest), longest), expected);
    }
}
