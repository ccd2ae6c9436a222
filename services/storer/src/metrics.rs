//! The names of the storer's metrics. When nothing is under way:
//!
//! ```text
//! bus_received_records_total == store_written_records_total + store_handed_over_records_total + store_held_records
//! ```

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};
use sekiwake_runtime::Metrics;

/// Metric names.
pub mod names {
    /// Messages that are on the disk.
    pub const WRITTEN_RECORDS: &str = "sekiwake_store_written_records_total";
    /// Bytes of their lines.
    pub const WRITTEN_BYTES: &str = "sekiwake_store_written_bytes_total";
    /// Messages that were received and are not on the disk yet.
    pub const HELD_RECORDS: &str = "sekiwake_store_held_records";
    /// Messages that could not be written before the storer had to end, and are left to the group.
    pub const HANDED_OVER_RECORDS: &str = "sekiwake_store_handed_over_records_total";
    /// From the begin of writing until the disk has it, once a commit.
    pub const COMMIT_SECONDS: &str = "sekiwake_store_commit_seconds";
    /// Commits that the disk refused. They are tried again; nothing is lost by it.
    pub const FAILED_COMMITS: &str = "sekiwake_store_failed_commits_total";
    /// 1 while the disk takes what is written, 0 while it refuses.
    pub const UP: &str = "sekiwake_store_up";
    /// When the last commit succeeded, seconds since 1970; 0 before the first one.
    pub const LAST_COMMIT: &str = "sekiwake_store_last_commit_timestamp_seconds";
    /// Files that are written to.
    pub const OPEN_PARTS: &str = "sekiwake_store_open_parts";
    /// Descriptors of files that are open for it.
    pub const OPEN_FILES: &str = "sekiwake_store_open_files";
    /// Stored files that this storer answers for.
    pub const FILES: &str = "sekiwake_store_files";
    /// What they take, bytes.
    pub const BYTES: &str = "sekiwake_store_bytes";
    /// What the file system has left, bytes.
    pub const FREE_BYTES: &str = "sekiwake_store_free_bytes";
    /// Files that a crash had left open and that were made whole at a start.
    pub const RECOVERED_FILES: &str = "sekiwake_store_recovered_files_total";
    /// Bytes behind the last whole line that were cut off there.
    pub const CUT_BYTES: &str = "sekiwake_store_cut_bytes_total";
    /// Files that were compressed.
    pub const PACKED_FILES: &str = "sekiwake_store_packed_files_total";
    /// Files that could not be compressed, or deleted, each time it was tried.
    pub const FAILED_KEEPING: &str = "sekiwake_store_failed_keeping_total";
    /// Files that were deleted, by reason: `age`, `size`.
    pub const DELETED_FILES: &str = "sekiwake_store_deleted_files_total";
    /// Bytes of them.
    pub const DELETED_BYTES: &str = "sekiwake_store_deleted_bytes_total";
    /// Searches on the admin port.
    pub const SEARCHES: &str = "sekiwake_store_searches_total";
}

const COMMIT_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// The storer's metrics, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) written_records: IntCounter,
    pub(crate) written_bytes: IntCounter,
    pub(crate) held_records: IntGauge,
    pub(crate) handed_over_records: IntCounter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) failed_commits: IntCounter,
    pub(crate) up: IntGauge,
    pub(crate) last_commit: Gauge,
    pub(crate) open_parts: IntGauge,
    pub(crate) open_files: IntGauge,
    pub(crate) files: IntGauge,
    pub(crate) bytes: IntGauge,
    pub(crate) free_bytes: IntGauge,
    pub(crate) recovered_files: IntCounter,
    pub(crate) cut_bytes: IntCounter,
    pub(crate) packed_files: IntCounter,
    pub(crate) failed_keeping: IntCounter,
    pub(crate) deleted_by_age: Deleted,
    pub(crate) deleted_by_size: Deleted,
    pub(crate) searches: IntCounter,
}

/// What was deleted for one reason.
#[derive(Clone, Debug)]
pub(crate) struct Deleted {
    pub(crate) files: IntCounter,
    pub(crate) bytes: IntCounter,
}

impl StoreMetrics {
    pub(crate) fn new(metrics: &Metrics) -> StoreMetrics {
        let counter = |name, help| metrics.counter(name, help, &[]);
        let gauge = |name, help| metrics.gauge(name, help, &[]);
        let deleted = |reason| {
            let files = "Stored files that were deleted, by reason.";
            let bytes = "Bytes of stored files that were deleted, by reason.";
            Deleted {
                files: metrics.counter(names::DELETED_FILES, files, &[("reason", reason)]),
                bytes: metrics.counter(names::DELETED_BYTES, bytes, &[("reason", reason)]),
            }
        };
        StoreMetrics {
            written_records: counter(names::WRITTEN_RECORDS, "Messages that are on the disk."),
            written_bytes: counter(names::WRITTEN_BYTES, "Bytes of the lines of messages that are on the disk."),
            held_records: gauge(names::HELD_RECORDS, "Messages that were received and are not on the disk yet."),
            handed_over_records: counter(
                names::HANDED_OVER_RECORDS,
                "Messages that could not be written before the end, and are left to the group.",
            ),
            commit_seconds: metrics.histogram(
                names::COMMIT_SECONDS,
                "From the begin of writing until the disk has it.",
                &COMMIT_BUCKETS,
                &[],
            ),
            failed_commits: counter(names::FAILED_COMMITS, "Commits that the disk refused, and that are tried again."),
            up: gauge(names::UP, "1 while the disk takes what is written, 0 while it refuses."),
            last_commit: metrics.float_gauge(
                names::LAST_COMMIT,
                "When the last commit succeeded, seconds since 1970.",
                &[],
            ),
            open_parts: gauge(names::OPEN_PARTS, "Files that are written to."),
            open_files: gauge(names::OPEN_FILES, "Descriptors of files that are open for writing."),
            files: gauge(names::FILES, "Stored files that this storer answers for."),
            bytes: gauge(names::BYTES, "Bytes of stored files that this storer answers for."),
            free_bytes: gauge(names::FREE_BYTES, "Bytes that the file system has left."),
            recovered_files: counter(
                names::RECOVERED_FILES,
                "Files that a crash had left open and that were made whole.",
            ),
            cut_bytes: counter(names::CUT_BYTES, "Bytes behind the last whole line that were cut off after a crash."),
            packed_files: counter(names::PACKED_FILES, "Files that were compressed."),
            failed_keeping: counter(names::FAILED_KEEPING, "Failures to compress or delete closed files."),
            deleted_by_age: deleted("age"),
            deleted_by_size: deleted("size"),
            searches: counter(names::SEARCHES, "Searches on the admin port."),
        }
    }
}
