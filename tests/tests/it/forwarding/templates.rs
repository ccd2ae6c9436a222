//! Real flow collectors decode flows although they have missed or lost the templates.
//!
//! ```text
//!  synthetic exporters:          ┌─▶ a sink from the start
//!  templates once, then data ──▶ Sekiwake ─▶ nfcapd, nfacctd: added later, or restarted
//!                         └────▶ nfcapd, fed directly: added later too, and decodes nothing
//! ```

mod exporter;
mod gaps;
mod late;
mod layouts;
mod readers;
mod replicas;
mod sequences;

use std::{collections::BTreeMap, fs, path::PathBuf};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{
    Ledger, Samples, Services, collector,
    collectors::{Collector, Nfacctd, Nfcapd, Ra, Recipe, Record, installed_or_skipped},
};
use tempfile::TempDir;

use self::exporter::{BASE_BYTES, BASE_PORT, Exporter, LAYOUT, OTHER_LAYOUT, Version};
use super::*;

/// The port of devices and collectors.
const PORT: u16 = 2055;

/// A destinations file and its destinations.
struct DestinationsFile {
    _folder: TempDir,
    path: PathBuf,
    uris: Vec<String>,
}

impl DestinationsFile {
    fn new(uris: &[String]) -> DestinationsFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("destinations");
        fs::write(&path, uris.join("\n")).unwrap();
        DestinationsFile { _folder: folder, path, uris: uris.to_vec() }
    }

    fn setting(&self) -> (&'static str, &str) {
        ("SEKIWAKE_XFLOW_DESTINATIONS_FILE", self.path.to_str().unwrap())
    }

    /// Adds destinations, and waits until the forwarder has applied them.
    fn add(&mut self, forwarder: &Service<'_>, uris: &[String]) {
        let before = reloads(forwarder, "applied");
        self.uris.extend_from_slice(uris);
        replace(&self.path, &self.uris.join("\n"));
        wait_for("the new destinations", LONG, || reloads(forwarder, "applied") > before).unwrap();
    }
}

fn uri(number: u8, options: &str) -> String {
    format!("udp://{}:{PORT}{options}", collector(number))
}

/// Starts capture, proxy and one forwarder with these destinations.
fn start<'a>(site: &'a TestSite, file: &DestinationsFile) -> Services<'a> {
    site.start(&[CAPTURE, PROXY, XFLOW], &[file.setting()])
}

/// Captured datagrams that a forwarder has sent to a destination, without synthesised templates.
fn forwarded(forwarder: &Service<'_>, number: u8) -> u64 {
    let label = format!("destination=\"{}", uri(number, ""));
    forwarder.metrics().map_or(0, |samples| samples.count("sekiwake_forward_sent_datagrams_total", &[&label]))
}

fn wait_until_forwarded(forwarder: &Service<'_>, number: u8, count: u64) {
    wait_for(&format!("{count} to collector {number}"), LONG, || forwarded(forwarder, number) >= count)
        .unwrap_or_else(|late| panic!("{late}: {}", forwarder.process.stderr().join("\n")));
}

/// Stops everything once the queues are empty, and checks that nothing was lost. (The ledger does
/// not balance for a destination that was added later, because it did not get earlier records.)
fn finish(services: Services<'_>) {
    let queued = |samples: &Samples| samples.count("sekiwake_forward_queue_records", &[]);
    services.get(XFLOW).wait_for_metrics("empty queues", LONG, |samples| queued(samples) == 0).unwrap();
    let losses = Ledger::read(&services).unwrap().losses();
    services.stop().unwrap();
    assert_eq!(losses, Vec::<String>::new());
}

/// A flow, as decoded by a collector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Decoded {
    /// The exporter, as the collector reports it.
    exporter: String,
    port: u64,
    bytes: u64,
    packets: u64,
}

/// Parses a collector's records as flows.
trait Flows: Recipe {
    fn decoded(record: &Record) -> Decoded;
}

fn number(flow: &serde_json::Value, name: &str) -> u64 {
    flow[name].as_u64().unwrap_or(0)
}

impl Flows for Nfcapd {
    fn decoded(record: &Record) -> Decoded {
        let flow: serde_json::Value = serde_json::from_str(&record.content).unwrap();
        let [port, bytes, packets] = ["src_port", "in_bytes", "in_packets"].map(|name| number(&flow, name));
        Decoded { exporter: record.source.clone(), port, bytes, packets }
    }
}

impl Flows for Nfacctd {
    fn decoded(record: &Record) -> Decoded {
        let (flow, counts) = record.content.split_once(" packets ").unwrap();
        let (packets, bytes) = counts.split_once(" bytes ").unwrap();
        let flow: serde_json::Value = serde_json::from_str(flow).unwrap();
        let [packets, bytes] = [packets, bytes].map(|count| count.parse().unwrap());
        Decoded { exporter: record.source.clone(), port: number(&flow, "port_src"), bytes, packets }
    }
}

impl Flows for Ra {
    fn decoded(record: &Record) -> Decoded {
        // Address, source port, destination port, bytes, packets.
        let columns: Vec<u64> = record.content.split(',').skip(1).map(|column| column.parse().unwrap()).collect();
        Decoded { exporter: String::new(), port: columns[0], bytes: columns[2], packets: columns[3] }
    }
}

/// All flows that a collector has decoded, sorted.
fn decoded_by<R: Flows>(collector: Collector<'_, R>) -> Vec<Decoded> {
    let mut flows: Vec<Decoded> = collector.finish().unwrap().iter().map(R::decoded).collect();
    flows.sort();
    flows
}

/// The expected flows with these numbers.
fn expected(exporter: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<Decoded> {
    let flow = |number| Decoded {
        exporter: exporter.to_owned(),
        port: BASE_PORT + number,
        bytes: BASE_BYTES + number,
        packets: exporter::PACKETS,
    };
    numbers.into_iter().map(flow).collect()
}

fn sorted(mut flows: Vec<Decoded>) -> Vec<Decoded> {
    flows.sort();
    flows
}

/// A site where spoofed datagrams arrive, or `None` without the collectors.
fn flow_site() -> Option<TestSite> {
    flow_site_on(Bus::ZeroMq)
}

/// The same with this bus.
fn flow_site_on(bus: Bus) -> Option<TestSite> {
    let is_installed = installed_or_skipped(&["nfcapd", "nfdump", "nfacctd", "ra"]);
    let site = is_installed.then(|| site_on(bus)).flatten()?;
    disable_reverse_path_filter(&site);
    Some(site)
}

/// Number of flows by exporter, for messages.
fn summary(flows: &[Decoded]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    flows.iter().for_each(|flow| *counts.entry(flow.exporter.as_str()).or_default() += 1);
    counts
}
