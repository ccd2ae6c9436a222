//! The names of the engine's metrics, and the counters of one destination, resolved once.
//!
//! The loss ledger of one destination holds whenever its worker is idle. `spool_datagrams` is 0
//! without a spool, and a spool may contain datagrams from before the start:
//!
//! ```text
//! received_records_total{kind} + spool_datagrams at the start
//!   == sent_datagrams_total
//!      + sum of dropped_datagrams_total{reason} + sum of skipped_records_total{reason}
//!      + handed_over_datagrams_total + queue_records + spool_datagrams
//! ```
//! Replayed datagrams are among the sent ones. The ledger of the spool:
//!
//! ```text
//! spooled_datagrams_total + spool_datagrams at the start
//!   == replayed_datagrams_total
//!      + dropped_datagrams_total{reason="spool_full"|"spool_corrupt"} + spool_datagrams
//! ```
//! After a disk error, a datagram may be in the spool and be counted as sent or dropped as well.

use prometheus::{Histogram, IntCounter, IntGauge, local::LocalHistogram};
use sekiwake_record::Kind;
use sekiwake_runtime::{LossReason, Losses, Scope};

use crate::status::EndpointStatus;

/// Metric names.
pub mod names {
    /// Records received by the engine, each counted once for all destinations.
    pub const RECEIVED_RECORDS: &str = "sekiwake_forward_received_records_total";
    /// Datagrams that the kernel accepted; over TCP, those whose last byte the destination's TCP
    /// has acknowledged; over OTLP and Kafka, those that the other side has acknowledged.
    pub const SENT_DATAGRAMS: &str = "sekiwake_forward_sent_datagrams_total";
    /// Bytes of their payloads.
    pub const SENT_BYTES: &str = "sekiwake_forward_sent_bytes_total";
    /// Datagrams dropped, by reason.
    pub const DROPPED_DATAGRAMS: &str = "sekiwake_forward_dropped_datagrams_total";
    /// Datagrams left to the group's other members, which receive them again.
    pub const HANDED_OVER_DATAGRAMS: &str = "sekiwake_forward_handed_over_datagrams_total";
    /// Records queued for a destination, in-flight ones included.
    pub const QUEUE_RECORDS: &str = "sekiwake_forward_queue_records";
    /// Bytes of memory held by queued records, as the bound of the queue counts them.
    pub const QUEUE_BYTES: &str = "sekiwake_forward_queue_bytes";
    /// 1 when datagrams leave without ICMP errors, 0 when there are errors or datagrams cannot
    /// leave, NaN when the state is unknown. Over TCP, 0 without a connection, or when the peer has
    /// read nothing for 2 s although something waits.
    pub const UP: &str = "sekiwake_forward_up";
    /// Send errors, by kind. Most cost no datagram: losses are counted as drops.
    pub const ERRORS: &str = "sekiwake_forward_errors_total";
    /// Seconds from the kernel's capture timestamp to just after the first send. Datagrams replayed
    /// from a spool are not included.
    pub const LATENCY_SECONDS: &str = "sekiwake_forward_latency_seconds";
    /// Look-ups of the destination's name that failed; the last good answer stays in use.
    pub const RESOLVE_FAILURES: &str = "sekiwake_forward_resolve_failures_total";
    /// Records filtered out by a destination, by reason: they count as received, and are not a
    /// loss.
    pub const SKIPPED_RECORDS: &str = "sekiwake_forward_skipped_records_total";
    /// Records that no destination wanted.
    pub const UNMATCHED_RECORDS: &str = "sekiwake_forward_unmatched_records_total";
    /// Template datagrams synthesised from kept templates and sent. No other metric counts them.
    pub const TEMPLATES_SENT: &str = "sekiwake_forward_templates_sent_total";
    /// Reloads of the destinations file after a change or a SIGHUP, by outcome: `applied`,
    /// `rejected`.
    pub const RELOADS: &str = "sekiwake_forward_reloads_total";
    /// 1 while the contents of the destinations file are in use, 0 while they are rejected and
    /// older destinations are in use.
    pub const FILE_IN_USE: &str = "sekiwake_forward_destinations_file_in_use";
    /// Datagrams sent with an address of this host although `spoof` is set, by reason: `family`,
    /// `address`, `inform`.
    pub const SPOOF_FALLBACKS: &str = "sekiwake_forward_spoof_fallbacks_total";
    /// Open sockets of single devices that send in long runs.
    pub const SPOOF_SOCKETS: &str = "sekiwake_forward_spoof_sockets";
    /// 1 when a check of the path to a destination passed, 0 when it failed; the log says why.
    pub const PREFLIGHT_OK: &str = "sekiwake_preflight_ok";
    /// Exporters tracked: addresses with their ports and observation domains.
    pub const EXPORTERS: &str = "sekiwake_exporters";
    /// Units missing in the sequences of exporters: flows of NetFlow v5, datagrams of NetFlow v9
    /// and sFlow, data records of IPFIX. They are counted when as many datagrams have followed in
    /// order, 256 at most. Late ones are in it, so subtract [`EXPORTER_LATE`]. Losses of the bus
    /// are in it as well, and in `sekiwake_bus_lost_records_total`.
    pub const EXPORTER_MISSING: &str = "sekiwake_exporter_missing_total";
    /// Units received late or twice.
    pub const EXPORTER_LATE: &str = "sekiwake_exporter_late_total";
    /// Gaps in the sequences of exporters.
    pub const EXPORTER_GAPS: &str = "sekiwake_exporter_gaps_total";
    /// Sequences restarted by their exporters.
    pub const EXPORTER_RESTARTS: &str = "sekiwake_exporter_restarts_total";
    /// Datagrams of exporters whose sequence numbers do not show their losses: processes that share
    /// an address, port and domain, or an exporter that counts in another unit than its protocol
    /// says. They are in no other count of sequences.
    pub const EXPORTER_UNCOUNTABLE: &str = "sekiwake_exporter_uncountable_datagrams_total";
    /// Flow datagrams with an undecodable header, set or template. They are forwarded nevertheless.
    pub const EXPORTER_MALFORMED: &str = "sekiwake_exporter_malformed_datagrams_total";
    /// Bytes of memory held by the templates of all exporters.
    pub const TEMPLATE_BYTES: &str = "sekiwake_exporter_template_bytes";
    /// Templates evicted to make room, or too large to be kept.
    pub const TEMPLATES_EVICTED: &str = "sekiwake_exporter_templates_evicted_total";
    /// Rejections of segmentation offload by kernel or device, each of which switches it off for
    /// the destination.
    pub const GSO_REJECTED: &str = "sekiwake_forward_gso_rejected_total";
    /// Connections established, TLS handshake included.
    pub const CONNECTIONS: &str = "sekiwake_forward_connections_total";
    /// Datagrams retransmitted because a connection broke.
    pub const RETRANSMITTED_DATAGRAMS: &str = "sekiwake_forward_retransmitted_datagrams_total";
    /// Datagrams written to the spool.
    pub const SPOOLED_DATAGRAMS: &str = "sekiwake_forward_spooled_datagrams_total";
    /// Datagrams sent from the spool and acknowledged by the destination.
    pub const REPLAYED_DATAGRAMS: &str = "sekiwake_forward_replayed_datagrams_total";
    /// Datagrams in the spool.
    pub const SPOOL_DATAGRAMS: &str = "sekiwake_forward_spool_datagrams";
    /// Bytes of the spool on disk.
    pub const SPOOL_BYTES: &str = "sekiwake_forward_spool_bytes";
    /// Spools on disk that no destination uses, as of the start or the last reload: of removed
    /// destinations, or of another group that no running process belongs to.
    pub const ORPHANED_SPOOLS: &str = "sekiwake_forward_orphaned_spools";
    /// Failed reads and writes of the spool.
    pub const SPOOL_ERRORS: &str = "sekiwake_forward_spool_errors_total";
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The destination's queue was full.
    QueueFull,
    /// Waited too long.
    Expired,
    /// Waited too long for the destination's name to resolve.
    Unresolved,
    /// Waited too long for a route to the destination.
    Unreachable,
    /// Longer than the destination's IP version can carry.
    TooBig,
    /// Not sent by the kernel, because of a packet filter for example.
    Refused,
    /// Above the destination's `rate`.
    Rate,
    /// Not sent at the drain deadline.
    Shutdown,
    /// Waited too long for a connection.
    Disconnected,
    /// Waited too long for a connected destination that does not read.
    Stalled,
    /// The destination ended several connections at it, or answered that it never accepts it.
    Rejected,
    /// Empty: octet counting has no frame for it.
    Empty,
    /// Oldest in a full spool.
    SpoolFull,
    /// The disk returned other data than was written, or none.
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
        DropReason::Rejected,
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
            DropReason::Rejected => "rejected",
            DropReason::Empty => "empty",
            DropReason::SpoolFull => "spool_full",
            DropReason::SpoolCorrupt => "spool_corrupt",
        }
    }
}

/// Why a destination does not get a record: the value of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SkipReason {
    Source,
    Format,
    Facility,
    Severity,
    /// Its source belongs to another member of the pool.
    Pool,
}

impl SkipReason {
    pub(crate) const NAMES: [&str; 5] = ["source", "format", "facility", "severity", "pool"];
}

/// Why a datagram was sent with an address of this host although `spoof` is set: the value of the
/// label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// Source and destination are of different IP versions.
    Family,
    /// The address cannot be a source there: unspecified, multicast, broadcast, or of a scope that
    /// ends at this host or link.
    Address,
    /// An SNMPv3 inform, because the agent must not get a second answer.
    Inform,
}

impl Fallback {
    /// All reasons, in the order of [`Fallback::index`].
    pub(crate) const ALL: [Fallback; 3] = [Fallback::Family, Fallback::Address, Fallback::Inform];

    /// Its place among [`Fallback::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fallback::Family => "family",
            Fallback::Address => "address",
            Fallback::Inform => "inform",
        }
    }
}

/// The kind of a send error: the value of the label `error`.
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
    /// The other side has answered that it does not accept something.
    Answer,
}

impl ErrorKind {
    const NAMES: [&str; 11] = [
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
        "answer",
    ];
}

/// 0.1 ms to 8.5 s, each bound one and a half times the one before: fine enough to read a median
/// and a 99th percentile.
fn latency_buckets() -> Vec<f64> {
    (0..29).map(|exponent| 1e-4 * 1.5f64.powi(exponent)).collect()
}

/// The number of spools that no destination uses.
pub(crate) fn orphaned_spools(scope: &Scope, kind: Kind) -> IntGauge {
    let help = "Spools on disk that no destination uses, whose contents will not be sent.";
    scope.metrics().gauge(names::ORPHANED_SPOOLS, help, &[("kind", kind.as_str())])
}

/// The counter of records that no destination wanted.
pub(crate) fn unmatched(scope: &Scope, kind: Kind) -> IntCounter {
    let help = "Records that no destination wanted.";
    scope.metrics().counter(names::UNMATCHED_RECORDS, help, &[("kind", kind.as_str())])
}

/// The counter of records received by the engine.
pub(crate) fn received(scope: &Scope, kind: Kind) -> IntCounter {
    let help = "Records received by the forwarding engine.";
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
    pub(crate) status: EndpointStatus,
    pub(crate) skipped: [IntCounter; SkipReason::NAMES.len()],
    pub(crate) templates_sent: IntCounter,
    pub(crate) spoof_fallbacks: [IntCounter; Fallback::ALL.len()],
    pub(crate) spoof_sockets: IntGauge,
    pub(crate) resolve_failures: IntCounter,
    pub(crate) gso_rejected: IntCounter,
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
            metrics.counter(names::ERRORS, "Send errors, by kind.", &labels)
        };
        let skipped = |reason| {
            let labels = [("destination", label), ("reason", reason)];
            metrics.counter(
                names::SKIPPED_RECORDS,
                "Records filtered out by the destination, or sent to another pool member.",
                &labels,
            )
        };
        let fallback = |reason: Fallback| {
            let labels = [("destination", label), ("reason", reason.name())];
            metrics.counter(
                names::SPOOF_FALLBACKS,
                "Datagrams sent with the forwarder's own address because they cannot be spoofed.",
                &labels,
            )
        };
        let latency = "Seconds from the kernel's capture timestamp to the send.";
        let dropped = "Datagrams dropped.";
        DestinationMetrics {
            sent_datagrams: counter(names::SENT_DATAGRAMS, "Datagrams sent."),
            sent_bytes: counter(names::SENT_BYTES, "Payload bytes sent."),
            dropped: scope.losses(names::DROPPED_DATAGRAMS, dropped, format!("forward to {label}"), &labels),
            handed_over: counter(names::HANDED_OVER_DATAGRAMS, "Datagrams left to other members of the group."),
            queue_records: metrics.gauge(names::QUEUE_RECORDS, "Records queued, in-flight ones included.", &labels),
            queue_bytes: metrics.gauge(names::QUEUE_BYTES, "Bytes held by queued datagrams.", &labels),
            status: EndpointStatus::new(metrics.float_gauge(
                names::UP,
                "Whether the destination is up; NaN if unknown.",
                &labels,
            )),
            skipped: SkipReason::NAMES.map(skipped),
            spoof_fallbacks: Fallback::ALL.map(fallback),
            spoof_sockets: metrics.gauge(names::SPOOF_SOCKETS, "Open per-device spoofing sockets.", &labels),
            templates_sent: counter(names::TEMPLATES_SENT, "Synthesised template datagrams sent."),
            resolve_failures: counter(names::RESOLVE_FAILURES, "Failed look-ups of the destination's name."),
            gso_rejected: counter(names::GSO_REJECTED, "Times segmentation offload was rejected and switched off."),
            errors: ErrorKind::NAMES.map(error),
            latency: metrics.histogram(names::LATENCY_SECONDS, latency, &latency_buckets(), &labels),
        }
    }

    /// The same counters with a status of its own, for a worker that replaces another.
    pub(crate) fn for_another_worker(mut self) -> DestinationMetrics {
        self.status = self.status.fresh();
        self
    }

    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].inc();
    }

    pub(crate) fn latency(&self) -> LocalHistogram {
        self.latency.local()
    }
}

/// Further metrics of stream destinations.
pub(crate) struct StreamMetrics {
    pub(crate) connections: IntCounter,
    pub(crate) retransmitted: IntCounter,
}

impl StreamMetrics {
    pub(crate) fn new(scope: &Scope, label: &str) -> StreamMetrics {
        let counter = |name, help| scope.metrics().counter(name, help, &[("destination", label)]);
        StreamMetrics {
            connections: counter(names::CONNECTIONS, "Connections established."),
            retransmitted: counter(names::RETRANSMITTED_DATAGRAMS, "Datagrams retransmitted on a new connection."),
        }
    }
}

/// Further metrics of destinations with a spool.
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
        let metrics = scope.metrics();
        let labels = [("destination", label)];
        let counter = |name, help| metrics.counter(name, help, &labels);
        SpoolMetrics {
            spooled: counter(names::SPOOLED_DATAGRAMS, "Datagrams written to the spool."),
            replayed: counter(names::REPLAYED_DATAGRAMS, "Datagrams sent from the spool."),
            datagrams: metrics.gauge(names::SPOOL_DATAGRAMS, "Datagrams in the spool.", &labels),
            bytes: metrics.gauge(names::SPOOL_BYTES, "Bytes of the spool on disk.", &labels),
            errors: counter(names::SPOOL_ERRORS, "Failed reads and writes of the spool."),
        }
    }
}
