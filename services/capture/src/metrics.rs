//! The counters of a capture. The hot path adds to plain integers; the differences are added to the
//! metrics, which are resolved once, on each tick.

use prometheus::{IntCounter, IntGauge};
use sekiwake_record::{Format, Kind};
use sekiwake_runtime::Metrics;
use serde_json::{Map, Value, json};

use crate::{
    decode::{Counters, DropReason},
    pipeline::{Pipeline, Tally},
};

/// Metric names.
pub mod names {
    /// Packets read, after the kernel filter.
    pub const PACKETS: &str = "sekiwake_capture_packets_total";
    /// Captured bytes of the packets read.
    pub const BYTES: &str = "sekiwake_capture_bytes_total";
    /// Packets dropped, by reason; `kernel` and `interface` before they could be read.
    pub const DROPPED_PACKETS: &str = "sekiwake_capture_dropped_packets_total";
    /// Fragments reassembled, except the one that completed each datagram.
    pub const REASSEMBLED_FRAGMENTS: &str = "sekiwake_capture_reassembled_fragments_total";
    /// Fragments waiting for the rest of their datagram.
    pub const PENDING_FRAGMENTS: &str = "sekiwake_capture_pending_fragments";
    /// UDP datagrams decoded.
    pub const DATAGRAMS: &str = "sekiwake_capture_datagrams_total";
    /// Datagrams added to batches, by kind and format.
    pub const CLAIMED_DATAGRAMS: &str = "sekiwake_capture_claimed_datagrams_total";
    /// Datagrams not published, by reason.
    pub const UNCLAIMED_DATAGRAMS: &str = "sekiwake_capture_unclaimed_datagrams_total";
    /// Whether the interface is being captured.
    pub const UP: &str = "sekiwake_capture_up";
    /// Whether the kernel filters the packets of the interface.
    pub const KERNEL_FILTER: &str = "sekiwake_capture_kernel_filter";
    /// Attempts to reopen an interface.
    pub const REOPENED: &str = "sekiwake_capture_reopened_total";
    /// Datagrams and fragments forgotten before their copies could be captured.
    pub const EVICTED_OCCURRENCES: &str = "sekiwake_capture_evicted_occurrences_total";
    /// Configured ports, by whether capture has bound them.
    pub const BIND_PORTS: &str = "sekiwake_capture_bind_ports";
}

/// The counters of one capture thread.
pub(crate) struct Meter {
    packets: Delta,
    bytes: Delta,
    datagrams: Delta,
    fragments_reassembled: Delta,
    fragments_pending: IntGauge,
    dropped: [Delta; DropReason::COUNT],
    claimed: Vec<Vec<Delta>>,
    unclaimed_offload: Delta,
    other_port: Delta,
    own_destination: Delta,
    duplicate: Delta,
    evicted: Delta,
    kernel: IntCounter,
    interface: IntCounter,
    kernel_before: KernelDrops,
    pending_before: u64,
}

/// The counters of an interface by name, for `/status`.
#[derive(Clone)]
pub(crate) struct InterfaceCounters {
    packets: IntCounter,
    bytes: IntCounter,
    datagrams: IntCounter,
    /// By kind, then by format.
    claimed: Vec<(&'static str, NamedCounters)>,
    dropped: NamedCounters,
    unclaimed: NamedCounters,
    evicted: IntCounter,
}

type NamedCounters = Vec<(&'static str, IntCounter)>;

/// The counts that are not 0.
fn shown(counters: &[(&'static str, IntCounter)]) -> Map<String, Value> {
    let counts = counters.iter().map(|(name, counter)| (*name, counter.get()));
    counts.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count.into())).collect()
}

impl InterfaceCounters {
    /// The counts. Those of formats and reasons that are 0 are left out.
    pub(crate) fn to_json(&self) -> Value {
        let claimed = self.claimed.iter().map(|(kind, counters)| ((*kind).to_owned(), Value::Object(shown(counters))));
        json!({
            "packets": self.packets.get(),
            "bytes": self.bytes.get(),
            "datagrams": self.datagrams.get(),
            "published": claimed.collect::<Map<String, Value>>(),
            "not_published": shown(&self.unclaimed),
            "dropped_packets": shown(&self.dropped),
            "evicted_occurrences": self.evicted.get(),
        })
    }
}

/// A counter that follows a running total.
struct Delta {
    counter: IntCounter,
    total: u64,
}

/// Drops that libpcap reports: 32-bit totals that wrap.
#[derive(Clone, Copy, Default)]
struct KernelDrops {
    kernel: u32,
    interface: u32,
}

impl Delta {
    fn follow(&mut self, total: u64) {
        if total != self.total {
            self.counter.inc_by(total - self.total);
            self.total = total;
        }
    }
}

impl Meter {
    pub(crate) fn new(metrics: &Metrics, interface: &str) -> Meter {
        let label = ("interface", interface);
        let counter = |name, help, more: &[(&str, &str)]| {
            let labels: Vec<(&str, &str)> = std::iter::once(label).chain(more.iter().copied()).collect();
            metrics.counter(name, help, &labels)
        };
        let delta = |name, help, more: &[(&str, &str)]| Delta { counter: counter(name, help, more), total: 0 };
        let dropped = "Packets dropped, by reason.";
        let unclaimed = "Datagrams not published, by reason.";
        Meter {
            packets: delta(names::PACKETS, "Packets read.", &[]),
            bytes: delta(names::BYTES, "Captured bytes of the packets read.", &[]),
            datagrams: delta(names::DATAGRAMS, "UDP datagrams decoded.", &[]),
            fragments_reassembled: delta(
                names::REASSEMBLED_FRAGMENTS,
                "Fragments reassembled, except the one that completed each datagram.",
                &[],
            ),
            fragments_pending: metrics.gauge(
                names::PENDING_FRAGMENTS,
                "Fragments waiting for the rest of their datagram.",
                &[label],
            ),
            dropped: DropReason::ALL
                .map(|reason| delta(names::DROPPED_PACKETS, dropped, &[("reason", reason.as_str())])),
            unclaimed_offload: delta(names::DROPPED_PACKETS, dropped, &[("reason", "unclaimed_offload")]),
            claimed: Kind::ALL
                .iter()
                .map(|kind| {
                    let one = |format: &Format| {
                        let labels = [("kind", kind.as_str()), ("format", format.as_str())];
                        delta(names::CLAIMED_DATAGRAMS, "Datagrams added to batches.", &labels)
                    };
                    Format::ALL.iter().map(one).collect()
                })
                .collect(),
            other_port: delta(names::UNCLAIMED_DATAGRAMS, unclaimed, &[("reason", "other_port")]),
            own_destination: delta(names::UNCLAIMED_DATAGRAMS, unclaimed, &[("reason", "own_destination")]),
            duplicate: delta(names::UNCLAIMED_DATAGRAMS, unclaimed, &[("reason", "duplicate")]),
            evicted: delta(
                names::EVICTED_OCCURRENCES,
                "Datagrams and fragments forgotten before their copies could be captured.",
                &[],
            ),
            kernel: counter(names::DROPPED_PACKETS, dropped, &[("reason", "kernel")]),
            interface: counter(names::DROPPED_PACKETS, dropped, &[("reason", "interface")]),
            kernel_before: KernelDrops::default(),
            pending_before: 0,
        }
    }

    /// The counters, which all threads of the interface share.
    pub(crate) fn counters(&self) -> InterfaceCounters {
        let of = |delta: &Delta| delta.counter.clone();
        let by_format = |deltas: &Vec<Delta>| -> NamedCounters {
            Format::ALL.iter().zip(deltas).map(|(format, delta)| (format.as_str(), of(delta))).collect()
        };
        let claimed = Kind::ALL.iter().zip(&self.claimed).map(|(kind, deltas)| (kind.as_str(), by_format(deltas)));
        let dropped = DropReason::ALL.iter().zip(&self.dropped);
        let dropped = dropped.map(|(reason, delta)| (reason.as_str(), of(delta)));
        let before_reading = [("kernel", self.kernel.clone()), ("interface", self.interface.clone())];
        InterfaceCounters {
            packets: of(&self.packets),
            bytes: of(&self.bytes),
            datagrams: of(&self.datagrams),
            claimed: claimed.collect(),
            dropped: before_reading
                .into_iter()
                .chain(dropped)
                .chain([("unclaimed_offload", of(&self.unclaimed_offload))])
                .collect(),
            unclaimed: vec![
                ("other_port", of(&self.other_port)),
                ("own_destination", of(&self.own_destination)),
                ("duplicate", of(&self.duplicate)),
            ],
            evicted: of(&self.evicted),
        }
    }

    /// Adds the differences since the last call.
    pub(crate) fn follow(&mut self, pipeline: &Pipeline) {
        let Counters { packets, bytes, datagrams, fragments_pending, fragments_reassembled, dropped, .. } =
            pipeline.counters();
        self.packets.follow(*packets);
        self.bytes.follow(*bytes);
        self.datagrams.follow(*datagrams);
        self.fragments_reassembled.follow(*fragments_reassembled);
        // Several threads may share the gauge, so each adds its own difference.
        self.fragments_pending.add(fragments_pending.wrapping_sub(self.pending_before) as i64);
        self.pending_before = *fragments_pending;
        for (delta, (reason, total)) in self.dropped.iter_mut().zip(dropped.iter()) {
            let is_offload = reason == DropReason::Offload;
            delta.follow(if is_offload { pipeline.lost_to_offload() } else { total });
        }
        let Tally { claimed, unclaimed_offload, other_port, own_destination, duplicate, .. } = pipeline.tally();
        self.unclaimed_offload.follow(*unclaimed_offload);
        for (deltas, totals) in self.claimed.iter_mut().zip(claimed) {
            deltas.iter_mut().zip(totals).for_each(|(delta, total)| delta.follow(*total));
        }
        self.other_port.follow(*other_port);
        self.own_destination.follow(*own_destination);
        self.duplicate.follow(*duplicate);
        self.evicted.follow(pipeline.evicted());
    }

    /// Starts over with libpcap's totals: a new handle counts from 0.
    pub(crate) fn reopened(&mut self) {
        self.kernel_before = KernelDrops::default();
    }

    /// Adds the packets dropped before they could be read. Returns how many the kernel dropped
    /// since the last call.
    pub(crate) fn follow_kernel(&mut self, statistics: pcap::Stat) -> u32 {
        let kernel = statistics.dropped.wrapping_sub(self.kernel_before.kernel);
        let interface = statistics.if_dropped.wrapping_sub(self.kernel_before.interface);
        self.kernel.inc_by(kernel.into());
        self.interface.inc_by(interface.into());
        self.kernel_before = KernelDrops { kernel: statistics.dropped, interface: statistics.if_dropped };
        kernel
    }
}
