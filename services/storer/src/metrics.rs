//! The storer's metrics. When no record is in flight:
//!
//! ```text
//! bus_received_records_total == store_written_records_total + store_handed_over_records_total + store_unsynced_records
//! ```

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};
use sekiwake_runtime::Metrics;

/// Metric names.
pub mod names {
    /// Records written and fsynced.
    pub const WRITTEN_RECORDS: &str = "sekiwake_store_written_records_total";
    /// Bytes of their lines or packets.
    pub const WRITTEN_BYTES: &str = "sekiwake_store_written_bytes_total";
    /// Records received and not fsynced yet.
    pub const UNSYNCED_RECORDS: &str = "sekiwake_store_unsynced_records";
    /// Records not written at a stop, and left to the group.
    pub const HANDED_OVER_RECORDS: &str = "sekiwake_store_handed_over_records_total";
    /// Time from first write to completed fsync, per commit.
    pub const COMMIT_SECONDS: &str = "sekiwake_store_commit_seconds";
    /// Commits failed. They are retried, so nothing is lost.
    pub const FAILED_COMMITS: &str = "sekiwake_store_failed_commits_total";
    /// 1 while writes succeed, 0 while they fail.
    pub const UP: &str = "sekiwake_store_up";
    /// Time of the last successful commit, seconds since 1970; 0 before the first one.
    pub const LAST_COMMIT: &str = "sekiwake_store_last_commit_timestamp_seconds";
    /// Files open for writing.
    pub const OPEN_PARTS: &str = "sekiwake_store_open_parts";
    /// File descriptors open for writing.
    pub const OPEN_FILES: &str = "sekiwake_store_open_files";
    /// Stored files maintained by this storer.
    pub const FILES: &str = "sekiwake_store_files";
    /// Bytes of these files.
    pub const BYTES: &str = "sekiwake_store_bytes";
    /// Start of the earliest period of which files are stored, seconds since 1970; 0 if none are.
    pub const OLDEST: &str = "sekiwake_store_oldest_timestamp_seconds";
    /// Bytes available on the file system.
    pub const FREE_BYTES: &str = "sekiwake_store_free_bytes";
    /// Files recovered after a crash.
    pub const RECOVERED_FILES: &str = "sekiwake_store_recovered_files_total";
    /// Bytes after the last complete line or group of packets, truncated during recovery.
    pub const TRUNCATED_BYTES: &str = "sekiwake_store_truncated_bytes_total";
    /// Damaged lines or places before the last complete one of recovered files, left in place.
    pub const DAMAGED_LINES: &str = "sekiwake_store_damaged_lines_total";
    /// Files compressed.
    pub const COMPRESSED_FILES: &str = "sekiwake_store_compressed_files_total";
    /// Failures to compress or delete files, per attempt.
    pub const FAILED_MAINTENANCE: &str = "sekiwake_store_failed_maintenance_total";
    /// Files deleted by retention, by reason: `age`, `size`.
    pub const DELETED_FILES: &str = "sekiwake_store_deleted_files_total";
    /// Bytes of these files.
    pub const DELETED_BYTES: &str = "sekiwake_store_deleted_bytes_total";
    /// Searches started on the admin port.
    pub const SEARCHES: &str = "sekiwake_store_searches_total";
}

const COMMIT_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// The storer's metrics, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) written_records: IntCounter,
    pub(crate) written_bytes: IntCounter,
    pub(crate) unsynced_records: IntGauge,
    pub(crate) handed_over_records: IntCounter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) failed_commits: IntCounter,
    pub(crate) up: IntGauge,
    pub(crate) last_commit: Gauge,
    pub(crate) open_parts: IntGauge,
    pub(crate) open_files: IntGauge,
    pub(crate) files: IntGauge,
    pub(crate) bytes: IntGauge,
    pub(crate) oldest: Gauge,
    pub(crate) free_bytes: IntGauge,
    pub(crate) recovered_files: IntCounter,
    pub(crate) truncated_bytes: IntCounter,
    pub(crate) damaged_lines: IntCounter,
    pub(crate) compressed_files: IntCounter,
    pub(crate) failed_maintenance: IntCounter,
    pub(crate) deleted_by_age: Deleted,
    pub(crate) deleted_by_size: Deleted,
    pub(crate) searches: IntCounter,
}

/// Counters of files deleted for one reason.
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
            let files = "Stored files deleted by retention, by reason.";
            let bytes = "Bytes of stored files deleted by retention, by reason.";
            Deleted {
                files: metrics.counter(names::DELETED_FILES, files, &[("reason", reason)]),
                bytes: metrics.counter(names::DELETED_BYTES, bytes, &[("reason", reason)]),
            }
        };
        StoreMetrics {
            written_records: counter(names::WRITTEN_RECORDS, "Records written and fsynced."),
            written_bytes: counter(
                names::WRITTEN_BYTES,
                "Bytes of lines or packets written and fsynced, before compression.",
            ),
            unsynced_records: gauge(names::UNSYNCED_RECORDS, "Records received and not fsynced yet."),
            handed_over_records: counter(
                names::HANDED_OVER_RECORDS,
                "Records not written at a stop, and left to the group.",
            ),
            commit_seconds: metrics.histogram(
                names::COMMIT_SECONDS,
                "Time from first write to completed fsync, seconds.",
                &COMMIT_BUCKETS,
                &[],
            ),
            failed_commits: counter(names::FAILED_COMMITS, "Commits failed and retried."),
            up: gauge(names::UP, "1 while writes succeed, 0 while they fail."),
            last_commit: metrics.float_gauge(
                names::LAST_COMMIT,
                "Time of the last successful commit, seconds since 1970.",
                &[],
            ),
            open_parts: gauge(names::OPEN_PARTS, "Stored files not yet closed, with or without a file descriptor."),
            open_files: gauge(names::OPEN_FILES, "File descriptors open for writing."),
            files: gauge(names::FILES, "Stored files maintained by this storer."),
            bytes: gauge(names::BYTES, "Bytes of stored files maintained by this storer."),
            oldest: metrics.float_gauge(
                names::OLDEST,
                "Start of the earliest period of which files are stored, seconds since 1970, 0 if none are.",
                &[],
            ),
            free_bytes: gauge(names::FREE_BYTES, "Bytes available on the file system."),
            recovered_files: counter(names::RECOVERED_FILES, "Files recovered after a crash."),
            truncated_bytes: counter(
                names::TRUNCATED_BYTES,
                "Bytes after the last complete line or group of packets, truncated during recovery.",
            ),
            damaged_lines: counter(
                names::DAMAGED_LINES,
                "Damaged lines or places before the last complete one of recovered files, left in place.",
            ),
            compressed_files: counter(names::COMPRESSED_FILES, "Files compressed."),
            failed_maintenance: counter(names::FAILED_MAINTENANCE, "Failures to compress or delete files."),
            deleted_by_age: deleted("age"),
            deleted_by_size: deleted("size"),
            searches: counter(names::SEARCHES, "Searches started on the admin port."),
        }
    }
}
