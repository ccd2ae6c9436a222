//! The books: what every service counted, and whether they close.

use std::fmt;

use anyhow::ensure;
use sekiwake_record::Kind;

use crate::{Samples, Services};

/// What the services counted.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Of capture.
    pub capture: Samples,
    /// Of the proxy.
    pub proxy: Samples,
    /// Of the forwarders, by kind; empty samples where a kind has none.
    pub forwarders: [Samples; 3],
    /// Of the storer; empty samples where there is none.
    pub storer: Samples,
    /// Of the anomaly detector.
    pub detector: Samples,
}

/// One kind's way through the system: datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Put into batches by capture.
    pub captured: u64,
    /// Given to the bus.
    pub published: u64,
    /// Passed on by the proxy.
    pub relayed: u64,
    /// Received by the forwarder.
    pub received: u64,
    /// Sent, summed over destinations.
    pub sent: u64,
    /// Not sent, summed over destinations and reasons.
    pub dropped: u64,
    /// Lost for good, by stream and reason, on the way to the forwarder.
    pub lost: u64,
}

/// The binary of the forwarder of each kind.
pub const FORWARDERS: [(Kind, &str); 3] = [
    (Kind::Syslog, "sekiwake-syslog-forwarder"),
    (Kind::Xflow, "sekiwake-xflow-forwarder"),
    (Kind::SnmpTrap, "sekiwake-trap-forwarder"),
];

impl Ledger {
    /// Asks all services.
    ///
    /// # Errors
    /// One does not answer.
    pub fn read(services: &Services<'_>) -> anyhow::Result<Ledger> {
        // Replicas of a service are one in the books.
        let ask = |name: &str| -> anyhow::Result<Samples> {
            let mut sum = Samples::default();
            for service in services.0.iter().filter(|service| service.name == name) {
                sum.add(&service.metrics()?);
            }
            Ok(sum)
        };
        Ok(Ledger {
            capture: ask("sekiwake-capture")?,
            proxy: ask("sekiwake-proxy")?,
            forwarders: [ask(FORWARDERS[0].1)?, ask(FORWARDERS[1].1)?, ask(FORWARDERS[2].1)?],
            storer: ask("sekiwake-storer")?,
            detector: ask("sekiwake-anomaly-detector")?,
        })
    }

    /// The way of one kind.
    pub fn flow(&self, kind: Kind) -> Flow {
        let label = format!("kind=\"{kind}\"");
        let labels = [label.as_str()];
        let forwarder = &self.forwarders[kind.index()];
        Flow {
            captured: self.capture.count("sekiwake_capture_claimed_datagrams_total", &labels),
            published: self.capture.count("sekiwake_bus_published_records_total", &labels),
            relayed: self.proxy.count("sekiwake_relay_passed_records_total", &labels),
            received: forwarder.count("sekiwake_bus_received_records_total", &labels),
            sent: forwarder.count("sekiwake_forward_sent_datagrams_total", &[]),
            dropped: forwarder.count("sekiwake_forward_dropped_datagrams_total", &[]),
            lost: forwarder.count("sekiwake_bus_lost_records_total", &labels),
        }
    }

    /// Checks that every service's counters close, once traffic has ended.
    ///
    /// # Errors
    /// The first sum that does not come out, with its numbers.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_capture()?;
        Ledger::check_storer(&self.storer)?;
        let count = |name: &str| self.detector.count(name, &[]);
        let (received, counted) =
            (count("sekiwake_bus_received_records_total"), count("sekiwake_anomaly_counted_records_total"));
        ensure!(received == counted, "anomaly-detector: received {received}, counted {counted}");
        for (kind, name) in FORWARDERS {
            let flow = self.flow(kind);
            let label = format!("kind=\"{kind}\"");
            let refused = self.proxy.count("sekiwake_relay_received_records_total", &[&label]);
            ensure!(refused == flow.relayed, "proxy, {kind}: received {refused}, passed on {}", flow.relayed);
            let forwarder = &self.forwarders[kind.index()];
            for destination in destinations(forwarder) {
                let labels = [destination.as_str()];
                let sent = forwarder.count("sekiwake_forward_sent_datagrams_total", &labels);
                let dropped = forwarder.count("sekiwake_forward_dropped_datagrams_total", &labels);
                let handed_over = forwarder.count("sekiwake_forward_handed_over_datagrams_total", &labels);
                let skipped = forwarder.count("sekiwake_forward_skipped_records_total", &labels);
                let held = forwarder.count("sekiwake_forward_queue_records", &labels)
                    + forwarder.count("sekiwake_forward_spool_datagrams", &labels);
                ensure!(
                    flow.received == sent + dropped + skipped + handed_over + held,
                    "{name}, {destination}: received {}, sent {sent}, dropped {dropped}, not for it {skipped}, handed over {handed_over}, held {held}",
                    flow.received
                );
            }
        }
        Ok(())
    }

    /// Checks the storer's counters.
    ///
    /// # Errors
    /// As [`Ledger::check`].
    pub fn check_storer(storer: &Samples) -> anyhow::Result<()> {
        let count = |name: &str| storer.count(name, &[]);
        let (received, written) =
            (count("sekiwake_bus_received_records_total"), count("sekiwake_store_written_records_total"));
        let (handed_over, held) =
            (count("sekiwake_store_handed_over_records_total"), count("sekiwake_store_held_records"));
        ensure!(
            received == written + handed_over + held,
            "storer: received {received}, written {written}, handed over {handed_over}, held {held}"
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
        let fragments = count("sekiwake_capture_joined_fragments_total") + count("sekiwake_capture_held_fragments");
        // What kernel and interface dropped was never read, and is no part of the packets.
        let dropped = count("sekiwake_capture_dropped_packets_total") - reason("kernel") - reason("interface");
        ensure!(
            packets == datagrams + fragments + dropped,
            "capture: {packets} packets, {datagrams} datagrams, {fragments} fragments, {dropped} dropped"
        );
        let claimed = count("sekiwake_capture_claimed_datagrams_total");
        let unclaimed = count("sekiwake_capture_unclaimed_datagrams_total");
        ensure!(datagrams == claimed + unclaimed, "capture: {datagrams} datagrams, {claimed} claimed, {unclaimed} not");
        let published = count("sekiwake_bus_published_records_total");
        let unpublished = count("sekiwake_bus_unpublished_records_total");
        let waiting = count("sekiwake_bus_waiting_records");
        ensure!(
            claimed == published + unpublished + waiting,
            "capture: {claimed} claimed, {published} published, {unpublished} not, {waiting} waiting"
        );
        Ok(())
    }

    /// What groups have lost for good, by stream, kind and reason; empty when nothing is.
    pub fn lost_for_good(&self) -> Vec<String> {
        let subscribers = self.forwarders.iter().chain([&self.storer, &self.detector]);
        let lost = subscribers.flat_map(|samples| samples.nonzero("sekiwake_bus_lost_records_total", &[]));
        lost.map(|(text, value)| format!("{} {value}", text.trim_start_matches("sekiwake_bus_lost_records_total")))
            .collect()
    }

    /// Everything that was lost or dropped anywhere, with where and why; empty when nothing was.
    pub fn losses(&self) -> Vec<String> {
        let names = [
            "sekiwake_capture_dropped_packets_total",
            "sekiwake_capture_unclaimed_datagrams_total",
            "sekiwake_bus_unpublished_records_total",
            "sekiwake_relay_refused_messages_total",
            "sekiwake_bus_lost_records_total",
            "sekiwake_bus_malformed_messages_total",
            "sekiwake_forward_dropped_datagrams_total",
        ];
        let services = [&self.capture, &self.proxy, &self.storer, &self.detector].into_iter().chain(&self.forwarders);
        let all = services.flat_map(|samples| names.iter().flat_map(|name| samples.nonzero(name, &[])));
        // Neighbour discovery and the like: no datagrams, and nothing to lose. What nobody had subscribed to is kept for those who
        // come, and what is our own is not to be captured.
        let harmless = ["not_udp", "not_ip", "no_subscriber", "own_destination"];
        let lost =
            all.filter(|(text, _)| !harmless.iter().any(|reason| text.contains(&format!("reason=\"{reason}\""))));
        lost.map(|(text, value)| format!("{text} {value}")).collect()
    }
}

/// The destination labels of a forwarder, as they stand in its samples.
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
