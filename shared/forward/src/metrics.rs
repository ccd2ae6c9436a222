//! The names of the engine's metrics, and the counters of one destination, resolved once.
//!
//! For each destination, whenever its worker is idle; `spool_datagrams` is 0 without a spool, and a spool may hold something from
//! before the start:
//!
//! ```text
//! received_records_total{kind} + spool_datagrams at the start
//!   == sent_datagrams_total + sum of dropped_datagrams_total{reason} + sum of skipped_records_total{reason}
//!      + handed_over_datagrams_total + queue_records + spool_datagrams
//! ```
//! What is replayed is among what is sent. Of the spool alone:
//!
//! ```text
//! spooled_datagrams_total + spool_datagrams at the start
//!   == replayed_datagrams_total + dropped_datagrams_total{reason="spool_full"|"spool_corrupt"} + spool_datagrams
//! ```
//! After the disk has refused something, a datagram may be in the spool and be sent or dropped as well.

use prometheus::{Histogram, IntCounter, IntGauge, local::LocalHistogram};
use sekiwake_record::Kind;
use sekiwake_runtime::{LossReason, Losses, Scope};

use crate::{filter::Mismatch, health::Standing, spoof::Fallback};

/// Metric names.
pub mod names {
    /// Records given to the engine, each once, however many destinations there are.
    pub const RECEIVED_RECORDS: &str = "sekiwake_forward_received_records_total";
    /// Datagrams that the kernel took; over TCP, those whose last byte the destination's TCP has acknowledged.
    pub const SENT_DATAGRAMS: &str = "sekiwake_forward_sent_datagrams_total";
    /// Bytes of their payloads.
    pub const SENT_BYTES: &str = "sekiwake_forward_sent_bytes_total";
    /// Datagrams that were not sent, by reason.
    pub const DROPPED_DATAGRAMS: &str = "sekiwake_forward_dropped_datagrams_total";
    /// Datagrams that were left to the group's other members, who are given them again.
    pub const HANDED_OVER_DATAGRAMS: &str = "sekiwake_forward_handed_over_datagrams_total";
    /// Records that wait for a destination, those being sent among them.
    pub const QUEUE_RECORDS: &str = "sekiwake_forward_queue_records";
    /// Bytes of memory that they hold, as the bound of the queue counts them.
    pub const QUEUE_BYTES: &str = "sekiwake_forward_queue_bytes";
    /// 1 when datagrams leave and nobody refuses them, 0 when they are refused or cannot leave, NaN when it is not known. Over TCP,
    /// 0 without a connection, or when for 2 s nothing has been taken although something waits.
    pub const UP: &str = "sekiwake_forward_up";
    /// Errors of sending, by kind. Most cost no datagram: what is lost is in the drops.
    pub const ERRORS: &str = "sekiwake_forward_errors_total";
    /// From the capture's kernel stamp to just after the (first) send. What is replayed from a spool is not in it.
    pub const LATENCY_SECONDS: &str = "sekiwake_forward_latency_seconds";
    /// Look-ups of the destination's name that failed; the last good answer stays in use.
    pub const RESOLVE_FAILURES: &str = "sekiwake_forward_resolve_failures_total";
    /// Records that were not meant for a destination, by reason: they count as received, and are no loss.
    pub const SKIPPED_RECORDS: &str = "sekiwake_forward_skipped_records_total";
    /// Records that no destination wanted.
    pub const UNMATCHED_RECORDS: &str = "sekiwake_forward_unmatched_records_total";
    /// Datagrams with templates that were sent from what is kept. They are in no other count.
    pub const TEMPLATES_SENT: &str = "sekiwake_forward_templates_sent_total";
    /// Times that the file of destinations was read again because it had changed or a SIGHUP came, by outcome: `applied`, `refused`.
    pub const RELOADS: &str = "sekiwake_forward_reloads_total";
    /// 1 while what the file of destinations says is in use, 0 while it is refused and older destinations are.
    pub const FILE_IN_USE: &str = "sekiwake_forward_destinations_file_in_use";
    /// Datagrams that left with an address of this host although `spoof` is set, by reason: `family`, `address`, `inform`.
    pub const SPOOF_FALLBACKS: &str = "sekiwake_forward_spoof_fallbacks_total";
    /// Sockets of single devices that are open, because the device sends much.
    pub const SPOOF_SOCKETS: &str = "sekiwake_forward_spoof_sockets";
    /// 1 when a check of the way to a destination found nothing, 0 when it found what will bite; the log says what.
    pub const PREFLIGHT_OK: &str = "sekiwake_preflight_ok";
    /// Exporters that are known: sources with their observation domains.
    pub const EXPORTERS: &str = "sekiwake_exporters";
    /// What exporters counted, by their sequence numbers, and did not come: lost before it came here, less what came late. Flows of
    /// NetFlow v5, datagrams of NetFlow v9 and sFlow, data records of IPFIX. What the bus lost on the way is in it as well, and in
    /// `sekiwake_bus_lost_records_total`.
    pub const EXPORTER_MISSING: &str = "sekiwake_exporter_missing_total";
    /// What came late, or twice, in the same units.
    pub const EXPORTER_LATE: &str = "sekiwake_exporter_late_total";
    /// Gaps in the sequences of exporters.
    pub const EXPORTER_GAPS: &str = "sekiwake_exporter_gaps_total";
    /// Sequences that began anew: an exporter that was restarted.
    pub const EXPORTER_RESTARTS: &str = "sekiwake_exporter_restarts_total";
    /// Flow datagrams whose header, sets or templates cannot be read. They are forwarded all the same.
    pub const EXPORTER_MALFORMED: &str = "sekiwake_exporter_malformed_datagrams_total";
    /// Bytes of memory that the templates of all exporters take.
    pub const TEMPLATE_BYTES: &str = "sekiwake_exporter_template_bytes";
    /// Templates that made room for others, or were too large to be kept.
    pub const TEMPLATES_EVICTED: &str = "sekiwake_exporter_templates_evicted_total";
    /// Times that kernel or device refused segmentation, which then is off for the destination.
    pub const SEGMENTATION_REFUSED: &str = "sekiwake_forward_segmentation_refused_total";
    /// Connections that came to be, the TLS handshake included.
    pub const CONNECTIONS: &str = "sekiwake_forward_connections_total";
    /// Datagrams that were given to a connection again because it or the one before broke.
    pub const REPEATED_DATAGRAMS: &str = "sekiwake_forward_repeated_datagrams_total";
    /// Datagrams that were put into the spool.
    pub const SPOOLED_DATAGRAMS: &str = "sekiwake_forward_spooled_datagrams_total";
    /// Datagrams from the spool that the destination's TCP has acknowledged.
    pub const REPLAYED_DATAGRAMS: &str = "sekiwake_forward_replayed_datagrams_total";
    /// Datagrams in the spool that are still to be sent.
    pub const SPOOL_DATAGRAMS: &str = "sekiwake_forward_spool_datagrams";
    /// Bytes that the spool takes on disk.
    pub const SPOOL_BYTES: &str = "sekiwake_forward_spool_bytes";
    /// Times that the disk refused to take or give something of the spool.
    pub const SPOOL_ERRORS: &str = "sekiwake_forward_spool_errors_total";
}

/// Why a datagram was not sent to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The destination's queue had no room.
    QueueFull,
    /// It had waited too long.
    Expired,
    /// It had waited too long for the destination's name to have an address.
    Unresolved,
    /// It had waited too long for a route to the destination.
    Unreachable,
    /// Longer than what the destination's IP version can carry.
    TooBig,
    /// The kernel refused it for good: a packet filter, for one.
    Refused,
    /// There were more than the destination's `rate` lets through.
    Rate,
    /// The service was told to stop and its time was up.
    Shutdown,
    /// It had waited too long for a connection.
    Disconnected,
    /// It had waited too long for a connected destination that did not read.
    Stalled,
    /// It has no bytes, and octet counting has no frame for that.
    Empty,
    /// The spool had reached its bound, and this was the oldest in it.
    SpoolFull,
    /// The disk gave back something else than it was given, or nothing.
    SpoolCorrupt,
}

impl LossReason for DropReason {
    const ALL: &'static [DropReason] = &[
        DropReason::QueueFull,
        DropReason::Expired,
        DropReason::Unresolved,
        DropReason::Unreachable,
        DropReason::TooBig,
        DropReason::Refused,
        DropReason::Rate,
        DropReason::Shutdown,
        DropReason::Disconnected,
        DropReason::Stalled,
        DropReason::Empty,
        DropReason::SpoolFull,
        DropReason::SpoolCorrupt,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::Expired => "expired",
            DropReason::Unresolved => "unresolved",
            DropReason::Unreachable => "unreachable",
            DropReason::TooBig => "too_big",
            DropReason::Refused => "refused",
            DropReason::Rate => "rate",
            DropReason::Shutdown => "shutdown",
            DropReason::Disconnected => "disconnected",
            DropReason::Stalled => "stalled",
            DropReason::Empty => "empty",
            DropReason::SpoolFull => "spool_full",
            DropReason::SpoolCorrupt => "spool_corrupt",
        }
    }
}

/// Why a record was not for a destination: the value of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SkipReason {
    Source,
    Format,
    Facility,
    Severity,
    /// Another member of the pool has its source.
    Pool,
}

impl SkipReason {
    pub(crate) const NAMES: [&str; 5] = ["source", "format", "facility", "severity", "pool"];
}

impl From<Mismatch> for SkipReason {
    fn from(mismatch: Mismatch) -> SkipReason {
        match mismatch {
            Mismatch::Source => SkipReason::Source,
            Mismatch::Format => SkipReason::Format,
            Mismatch::Facility => SkipReason::Facility,
            Mismatch::Severity => SkipReason::Severity,
        }
    }
}

/// What sending ran into: the value of the label `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    ConnectionRefused,
    HostUnreachable,
    NetworkUnreachable,
    MessageTooLong,
    NoBufferSpace,
    PermissionDenied,
    Other,
    TimedOut,
    Closed,
    Tls,
}

impl ErrorKind {
    const NAMES: [&str; 10] = [
        "connection_refused",
        "host_unreachable",
        "network_unreachable",
        "message_too_long",
        "no_buffer_space",
        "permission_denied",
        "other",
        "timed_out",
        "closed",
        "tls",
    ];
}

/// 0.1 ms to 8.5 s, each bucket half as wide again as the one before: fine enough to read a median and a 99th percentile.
fn latency_buckets() -> Vec<f64> {
    (0..29).map(|exponent| 1e-4 * 1.5f64.powi(exponent)).collect()
}

/// The count of what no destination wanted.
pub(crate) fn unmatched(scope: &Scope, kind: Kind) -> IntCounter {
    let help = "Records that no destination wanted.";
    scope.metrics().counter(names::UNMATCHED_RECORDS, help, &[("kind", kind.as_str())])
}

/// The count of what the engine receives.
pub(crate) fn received(scope: &Scope, kind: Kind) -> IntCounter {
    let help = "Records given to the forwarding engine.";
    scope.metrics().counter(names::RECEIVED_RECORDS, help, &[("kind", kind.as_str())])
}

/// The metrics of one destination.
#[derive(Clone)]
pub(crate) struct DestinationMetrics {
    pub(crate) sent_datagrams: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    pub(crate) dropped: Losses<DropReason>,
    pub(crate) handed_over: IntCounter,
    pub(crate) queue_records: IntGauge,
    pub(crate) queue_bytes: IntGauge,
    pub(crate) standing: Standing,
    pub(crate) skipped: [IntCounter; SkipReason::NAMES.len()],
    pub(crate) templates_sent: IntCounter,
    pub(crate) spoof_fallbacks: [IntCounter; Fallback::ALL.len()],
    pub(crate) spoof_sockets: IntGauge,
    pub(crate) resolve_failures: IntCounter,
    pub(crate) segmentation_refused: IntCounter,
    errors: [IntCounter; ErrorKind::NAMES.len()],
    latency: Histogram,
}

impl DestinationMetrics {
    pub(crate) fn new(scope: &Scope, label: &str) -> DestinationMetrics {
        let labels = [("destination", label)];
        let metrics = scope.metrics();
        let counter = |name, help| metrics.counter(name, help, &labels);
        let error = |error| {
            let labels = [("destination", label), ("error", error)];
            metrics.counter(names::ERRORS, "Errors of sending.", &labels)
        };
        let skipped = |reason| {
            let labels = [("destination", label), ("reason", reason)];
            metrics.counter(names::SKIPPED_RECORDS, "Records that were not for this destination.", &labels)
        };
        let fallback = |reason: Fallback| {
            let labels = [("destination", label), ("reason", reason.name())];
            metrics.counter(names::SPOOF_FALLBACKS, "Datagrams that left with our own address all the same.", &labels)
        };
        let latency = "Seconds from the capture's kernel stamp to just after the send.";
        let dropped = "Datagrams that were not sent.";
        DestinationMetrics {
            sent_datagrams: counter(names::SENT_DATAGRAMS, "Datagrams that the kernel took."),
            sent_bytes: counter(names::SENT_BYTES, "Bytes of payload that the kernel took."),
            dropped: scope.losses(names::DROPPED_DATAGRAMS, dropped, format!("forward to {label}"), &labels),
            handed_over: counter(names::HANDED_OVER_DATAGRAMS, "Datagrams left to other members of the group."),
            queue_records: metrics.gauge(names::QUEUE_RECORDS, "Records that wait to be sent.", &labels),
            queue_bytes: metrics.gauge(names::QUEUE_BYTES, "Bytes of memory that they hold.", &labels),
            standing: Standing::new(metrics.float_gauge(
                names::UP,
                "Whether the destination takes datagrams; NaN: not known.",
                &labels,
            )),
            skipped: SkipReason::NAMES.map(skipped),
            spoof_fallbacks: Fallback::ALL.map(fallback),
            spoof_sockets: metrics.gauge(names::SPOOF_SOCKETS, "Sockets of single devices.", &labels),
            templates_sent: counter(names::TEMPLATES_SENT, "Template datagrams of our own."),
            resolve_failures: counter(names::RESOLVE_FAILURES, "Failed look-ups of the destination's name."),
            segmentation_refused: counter(names::SEGMENTATION_REFUSED, "Times that segmentation offload was refused."),
            errors: ErrorKind::NAMES.map(error),
            latency: metrics.histogram(names::LATENCY_SECONDS, latency, &latency_buckets(), &labels),
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].inc();
    }

    pub(crate) fn latency(&self) -> LocalHistogram {
        self.latency.local()
    }
}

/// What stream destinations have besides.
pub(crate) struct StreamMetrics {
    pub(crate) connections: IntCounter,
    pub(crate) repeated: IntCounter,
}

impl StreamMetrics {
    pub(crate) fn new(scope: &Scope, label: &str) -> StreamMetrics {
        let counter = |name, help| scope.metrics().counter(name, help, &[("destination", label)]);
        StreamMetrics {
            connections: counter(names::CONNECTIONS, "Connections that came to be."),
            repeated: counter(names::REPEATED_DATAGRAMS, "Datagrams given to a connection again."),
        }
    }
}

/// What destinations with a spool have besides.
#[derive(Clone)]
pub(crate) struct SpoolMetrics {
    pub(crate) spooled: IntCounter,
    pub(crate) replayed: IntCounter,
    pub(crate) datagrams: IntGauge,
    pub(crate) bytes: IntGauge,
    pub(crate) errors: IntCounter,
}

impl SpoolMetrics {
    pub(crate) fn new(scope: &Scope, label: &str) -> SpoolMetrics {
        let (metrics, labels) = (scope.metrics(), [("destination", label)]);
        let counter = |name, help| metrics.counter(name, help, &labels);
        SpoolMetrics {
            spooled: counter(names::SPOOLED_DATAGRAMS, "Datagrams put into the spool."),
            replayed: counter(names::REPLAYED_DATAGRAMS, "Datagrams sent from the spool."),
            datagrams: metrics.gauge(names::SPOOL_DATAGRAMS, "Datagrams in the spool.", &labels),
            bytes: metrics.gauge(names::SPOOL_BYTES, "Bytes that the spool takes on disk.", &labels),
            errors: counter(names::SPOOL_ERRORS, "Times that the disk refused something of the spool."),
        }
    }
}
