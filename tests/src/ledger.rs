//! The loss ledger: the counters of every service, and whether received == sent + dropped + queued.

use std::fmt;

use anyhow::ensure;
use sekiwake_record::Kind;

use crate::{Samples, Services};

/// The metrics of all services.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Capture.
    pub capture: Samples,
    /// Proxy.
    pub proxy: Samples,
    /// Forwarders by kind; empty where a kind has none.
    pub forwarders: [Samples; 3],
    /// Storer; empty without one.
    pub storer: Samples,
    /// Anomaly detector; empty without one.
    pub detector: Samples,
}

/// Datagrams of one kind, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Batched by capture.
    pub captured: u64,
    /// Published on the bus.
    pub published: u64,
    /// Relayed by the proxy.
    pub relayed: u64,
    /// Received by the forwarders.
    pub received: u64,
    /// Sent, summed over destinations.
    pub sent: u64,
    /// Dropped, summed over destinations and reasons.
    pub dropped: u64,
    /// Lost for good between publisher and forwarder.
    pub lost: u64,
}

/// The forwarder's binary of each kind.
pub const FORWARDERS: [(Kind, &str); 3] = [
    (Kind::Syslog, "sekiwake-syslog-forwarder"),
    (Kind::Xflow, "sekiwake-xflow-forwarder"),
    (Kind::SnmpTrap, "sekiwake-trap-forwarder"),
];

impl Ledger {
    /// Reads the metrics of all services.
    pub fn read(services: &Services<'_>) -> anyhow::Result<Ledger> {
        // Replicas of a service are added up.
        let read = |name: &str| -> anyhow::Result<Samples> {
            let mut sum = Samples::default();
            for service in services.0.iter().filter(|service| service.name == name) {
                sum.add(&service.metrics()?);
            }
            Ok(sum)
        };
        Ok(Ledger {
            capture: read("sekiwake-capture")?,
            proxy: read("sekiwake-proxy")?,
            forwarders: [read(FORWARDERS[0].1)?, read(FORWARDERS[1].1)?, read(FORWARDERS[2].1)?],
            storer: read("sekiwake-storer")?,
            detector: read("sekiwake-anomaly-detector")?,
        })
    }

    /// The stages of one kind.
    pub fn flow(&self, kind: Kind) -> Flow {
        let label = format!("kind=\"{kind}\"");
        let labels = [label.as_str()];
        let forwarder = &self.forwarders[kind.index()];
        Flow {
            captured: self.capture.count("sekiwake_capture_claimed_datagrams_total", &labels),
            published: self.capture.count("sekiwake_bus_published_records_total", &labels),
            relayed: self.proxy.count("sekiwake_relay_sent_records_total", &labels),
            received: forwarder.count("sekiwake_bus_received_records_total", &labels),
            sent: forwarder.count("sekiwake_forward_sent_datagrams_total", &[]),
            dropped: forwarder.count("sekiwake_forward_dropped_datagrams_total", &[]),
            lost: forwarder.count("sekiwake_bus_lost_records_total", &labels),
        }
    }

    /// Checks that every service's counters balance, once traffic has ended.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_capture()?;
        Ledger::check_storer(&self.storer)?;
        let count = |name: &str| self.detector.count(name, &[]);
        let received = count("sekiwake_bus_received_records_total");
        let counted = count("sekiwake_anomaly_counted_records_total");
        ensure!(received == counted, "anomaly-detector: received {received}, counted {counted}");
        for (kind, name) in FORWARDERS {
            let flow = self.flow(kind);
            let label = format!("kind=\"{kind}\"");
            let received = self.proxy.count("sekiwake_relay_received_records_total", &[&label]);
            ensure!(received == flow.relayed, "proxy, {kind}: received {received}, relayed {}", flow.relayed);
            let forwarder = &self.forwarders[kind.index()];
            for destination in destinations(forwarder) {
                let labels = [destination.as_str()];
                let sent = forwarder.count("sekiwake_forward_sent_datagrams_total", &labels);
                let dropped = forwarder.count("sekiwake_forward_dropped_datagrams_total", &labels);
                let handed_over = forwarder.count("sekiwake_forward_handed_over_datagrams_total", &labels);
                let skipped = forwarder.count("sekiwake_forward_skipped_records_total", &labels);
                let queued = forwarder.count("sekiwake_forward_queue_records", &labels)
                    + forwarder.count("sekiwake_forward_spool_datagrams", &labels);
                ensure!(
                    flow.received == sent + dropped + skipped + handed_over + queued,
                    "{name}, {destination}: received {}, sent {sent}, dropped {dropped}, skipped {skipped}, handed over {handed_over}, queued {queued}",
                    flow.received
                );
            }
        }
        Ok(())
    }

    /// Checks the storer's counters.
    pub fn check_storer(storer: &Samples) -> anyhow::Result<()> {
        let count = |name: &str| storer.count(name, &[]);
        let received = count("sekiwake_bus_received_records_total");
        let written = count("sekiwake_store_written_records_total");
        let handed_over = count("sekiwake_store_handed_over_records_total");
        let unsynced = count("sekiwake_store_unsynced_records");
        ensure!(
            received == written + handed_over + unsynced,
            "storer: received {received}, written {written}, handed over {handed_over}, unsynced {unsynced}"
        );
        Ok(())
    }

    fn check_capture(&self) -> anyhow::Result<()> {
        let count = |name: &str| self.capture.count(name, &[]);
        let reason = |reason: &str| {
            let label = format!("reason=\"{reason}\"");
            self.capture.count("sekiwake_capture_dropped_packets_total", &[&label])
        };
        let packets = count("sekiwake_capture_packets_total");
        let datagrams = count("sekiwake_capture_datagrams_total");
        let fragments =
            count("sekiwake_capture_reassembled_fragments_total") + count("sekiwake_capture_pending_fragments");
        // Packets dropped by kernel and interface were never read, so they are not among the
        // packets.
        let dropped = count("sekiwake_capture_dropped_packets_total") - reason("kernel") - reason("interface");
        ensure!(
            packets == datagrams + fragments + dropped,
            "capture: {packets} packets, {datagrams} datagrams, {fragments} fragments, {dropped} dropped"
        );
        let claimed = count("sekiwake_capture_claimed_datagrams_total");
        let unclaimed = count("sekiwake_capture_unclaimed_datagrams_total");
        ensure!(
            datagrams == claimed + unclaimed,
            "capture: {datagrams} datagrams, {claimed} claimed, {unclaimed} unclaimed"
        );
        let published = count("sekiwake_bus_published_records_total");
        let unpublished = count("sekiwake_bus_unpublished_records_total");
        let waiting = count("sekiwake_bus_waiting_records");
        ensure!(
            claimed == published + unpublished + waiting,
            "capture: {claimed} claimed, {published} published, {unpublished} unpublished, {waiting} waiting"
        );
        Ok(())
    }

    /// Records lost for good by groups, by stream, kind and reason.
    pub fn lost_for_good(&self) -> Vec<String> {
        let subscribers = self.forwarders.iter().chain([&self.storer, &self.detector]);
        let lost = subscribers.flat_map(|samples| samples.nonzero("sekiwake_bus_lost_records_total", &[]));
        lost.map(|(text, value)| format!("{} {value}", text.trim_start_matches("sekiwake_bus_lost_records_total")))
            .collect()
    }

    /// All losses and drops of all services, with place and reason.
    pub fn losses(&self) -> Vec<String> {
        let names = [
            "sekiwake_capture_dropped_packets_total",
            "sekiwake_capture_unclaimed_datagrams_total",
            "sekiwake_bus_unpublished_records_total",
            "sekiwake_relay_rejected_messages_total",
            "sekiwake_bus_lost_records_total",
            "sekiwake_bus_malformed_messages_total",
            "sekiwake_forward_dropped_datagrams_total",
        ];
        let services = [&self.capture, &self.proxy, &self.storer, &self.detector].into_iter().chain(&self.forwarders);
        let all = services.flat_map(|samples| names.iter().flat_map(|name| samples.nonzero(name, &[])));
        // Neighbour discovery and other non-datagrams are no loss. Records without a subscriber are
        // retained for later subscribers, and own datagrams are not captured.
        let harmless = ["not_udp", "not_ip", "no_subscriber", "own_destination"];
        let is_harmless = |text: &str| harmless.iter().any(|reason| text.contains(&format!("reason=\"{reason}\"")));
        let lost = all.filter(|(text, _)| !is_harmless(text));
        lost.map(|(text, value)| format!("{text} {value}")).collect()
    }
}

/// The destination labels of a forwarder's samples.
fn destinations(forwarder: &Samples) -> Vec<String> {
    let mut labels: Vec<String> = forwarder
        .names("sekiwake_forward_sent_datagrams_total")
        .filter_map(|text| {
            text.split("destination=\"").nth(1)?.split('"').next().map(|name| format!("destination=\"{name}\""))
        })
        .collect();
    labels.dedup();
    labels
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow { captured, published, relayed, received, sent, dropped, lost } = self;
        write!(
            f,
            "captured {captured}, published {published}, relayed {relayed}, received {received}, sent {sent}, dropped {dropped}, lost {lost}"
        )
    }
}
