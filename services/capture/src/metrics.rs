//! What a capture counts, resolved once; the hot path adds to plain integers, and the differences come here now and then.

use prometheus::IntCounter;
use sekiwake_record::{Format, Kind};
use sekiwake_runtime::Metrics;

use crate::{
    decode::{Counters, DropReason},
    pipeline::{Pipeline, Tally},
};

/// Metric names.
pub mod names {
    /// Packets that the kernel filter let through and that were read.
    pub const PACKETS: &str = "sekiwake_capture_packets_total";
    /// Their captured bytes.
    pub const BYTES: &str = "sekiwake_capture_bytes_total";
    /// Packets that became no datagram, by reason; `kernel` and `interface` were never read.
    pub const DROPPED_PACKETS: &str = "sekiwake_capture_dropped_packets_total";
    /// Fragments that a later packet completed to a datagram.
    pub const JOINED_FRAGMENTS: &str = "sekiwake_capture_joined_fragments_total";
    /// Fragments that wait for the rest of their datagram.
    pub const HELD_FRAGMENTS: &str = "sekiwake_capture_held_fragments";
    /// Datagrams that were found in packets.
    pub const DATAGRAMS: &str = "sekiwake_capture_datagrams_total";
    /// Datagrams that were put into batches, by kind and format.
    pub const CLAIMED_DATAGRAMS: &str = "sekiwake_capture_claimed_datagrams_total";
    /// Datagrams that were not, by reason.
    pub const UNCLAIMED_DATAGRAMS: &str = "sekiwake_capture_unclaimed_datagrams_total";
    /// Whether the interface is being captured.
    pub const UP: &str = "sekiwake_capture_up";
    /// Times that an interface was opened again.
    pub const REOPENED: &str = "sekiwake_capture_reopened_total";
}

/// The counters of one capture thread.
pub(crate) struct Meter {
    packets: Delta,
    bytes: Delta,
    datagrams: Delta,
    joined: Delta,
    held: prometheus::IntGauge,
    dropped: [Delta; DropReason::COUNT],
    claimed: Vec<Vec<Delta>>,
    other_port: Delta,
    own_destination: Delta,
    kernel: IntCounter,
    interface: IntCounter,
    seen: KernelDrops,
    held_before: u64,
}

/// A counter that follows a running total.
struct Delta {
    counter: IntCounter,
    total: u64,
}

/// What libpcap reports: totals of 32 bits that wrap.
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
        let dropped = "Packets that became no datagram.";
        let unclaimed = "Datagrams that were found and not published.";
        Meter {
            packets: delta(names::PACKETS, "Packets read.", &[]),
            bytes: delta(names::BYTES, "Captured bytes of the packets read.", &[]),
            datagrams: delta(names::DATAGRAMS, "UDP datagrams found in packets.", &[]),
            joined: delta(names::JOINED_FRAGMENTS, "Fragments that a later packet completed to a datagram.", &[]),
            held: metrics.gauge(names::HELD_FRAGMENTS, "Fragments that wait for the rest of their datagram.", &[label]),
            dropped: DropReason::ALL
                .map(|reason| delta(names::DROPPED_PACKETS, dropped, &[("reason", reason.as_str())])),
            claimed: Kind::ALL
                .iter()
                .map(|kind| {
                    let one = |format: &Format| {
                        let labels = [("kind", kind.as_str()), ("format", format.as_str())];
                        delta(names::CLAIMED_DATAGRAMS, "Datagrams that were put into batches.", &labels)
                    };
                    Format::ALL.iter().map(one).collect()
                })
                .collect(),
            other_port: delta(names::UNCLAIMED_DATAGRAMS, unclaimed, &[("reason", "other_port")]),
            own_destination: delta(names::UNCLAIMED_DATAGRAMS, unclaimed, &[("reason", "own_destination")]),
            kernel: counter(names::DROPPED_PACKETS, dropped, &[("reason", "kernel")]),
            interface: counter(names::DROPPED_PACKETS, dropped, &[("reason", "interface")]),
            seen: KernelDrops::default(),
            held_before: 0,
        }
    }

    /// Adds what has happened since the last call.
    pub(crate) fn follow(&mut self, pipeline: &Pipeline) {
        let Counters { packets, bytes, datagrams, fragments_held, fragments_joined, dropped, .. } = pipeline.counters();
        self.packets.follow(*packets);
        self.bytes.follow(*bytes);
        self.datagrams.follow(*datagrams);
        self.joined.follow(*fragments_joined);
        // Several threads may share the gauge, so each adds its own difference.
        self.held.add(fragments_held.wrapping_sub(self.held_before) as i64);
        self.held_before = *fragments_held;
        for (delta, (_, total)) in self.dropped.iter_mut().zip(dropped.iter()) {
            delta.follow(total);
        }
        let Tally { claimed, other_port, own_destination, .. } = pipeline.tally();
        for (deltas, totals) in self.claimed.iter_mut().zip(claimed) {
            deltas.iter_mut().zip(totals).for_each(|(delta, total)| delta.follow(*total));
        }
        self.other_port.follow(*other_port);
        self.own_destination.follow(*own_destination);
    }

    /// A new handle counts from 0 again.
    pub(crate) fn reopened(&mut self) {
        self.seen = KernelDrops::default();
    }

    /// Adds what libpcap says was lost before it could be read. Gives the packets that the kernel dropped since last time.
    pub(crate) fn follow_kernel(&mut self, statistics: pcap::Stat) -> u32 {
        let kernel = statistics.dropped.wrapping_sub(self.seen.kernel);
        let interface = statistics.if_dropped.wrapping_sub(self.seen.interface);
        self.kernel.inc_by(kernel.into());
        self.interface.inc_by(interface.into());
        self.seen = KernelDrops { kernel: statistics.dropped, interface: statistics.if_dropped };
        kernel
    }
}
