//! Real flow collectors that have never seen a template pass, or have forgotten it, decode all the same.
//!
//! ```text
//!  exporters, made by hand:      ┌─▶ a sink that is there from the beginning
//!  templates once, then data ──▶ Sekiwake ─▶ nfcapd, nfacctd: come later, or again
//!                         └────▶ nfcapd, fed directly: comes later as well, and decodes nothing
//! ```

mod exporter;
mod gaps;
mod late;
mod layouts;
mod replicas;

use std::{collections::BTreeMap, fs, path::PathBuf};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{
    Ledger, Services, collector,
    collectors::{Collector, Nfacctd, Nfcapd, Recipe, Record, installed_or_skipped},
};
use tempfile::TempDir;

use self::exporter::{BASE_BYTES, BASE_PORT, Exporter, LAYOUT, OTHER_LAYOUT, Version};
use super::*;

/// Where flows are sent to and forwarded to.
const PORT: u16 = 2055;

/// A destinations file, and the destinations that are in it.
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

    /// Adds destinations, and waits until the forwarder that reads this file has them.
    fn add(&mut self, forwarder: &Service<'_>, uris: &[String]) {
        let before = outcomes(forwarder, "applied");
        self.uris.extend_from_slice(uris);
        replace(&self.path, &self.uris.join("\n"));
        wait_for("the new destinations", LONG, || outcomes(forwarder, "applied") > before).unwrap();
    }
}

fn uri(number: u8, options: &str) -> String {
    format!("udp://{}:{PORT}{options}", collector(number))
}

/// The spine and one forwarder with these destinations.
fn start<'a>(site: &'a TestSite, file: &DestinationsFile) -> Services<'a> {
    site.start(&[CAPTURE, PROXY, XFLOW], &[file.setting()])
}

/// Captured datagrams that a forwarder has sent to a destination: templates of our own are not among them.
fn forwarded(forwarder: &Service<'_>, number: u8) -> u64 {
    let label = format!("destination=\"{}", uri(number, ""));
    forwarder.metrics().map_or(0, |samples| samples.count("sekiwake_forward_sent_datagrams_total", &[&label]))
}

fn wait_until_forwarded(forwarder: &Service<'_>, number: u8, count: u64) {
    wait_for(&format!("{count} to collector {number}"), LONG, || forwarded(forwarder, number) >= count)
        .unwrap_or_else(|late| panic!("{late}: {}", forwarder.process.stderr().join("\n")));
}

/// Stops everything once nothing is under way, and checks that nothing was lost. (The books of a destination that came later do not
/// close: it has not been given what came before.)
fn finish(services: Services<'_>) {
    let held = |samples: &sekiwake_tests::Samples| samples.count("sekiwake_forward_queue_records", &[]);
    services.get(XFLOW).wait_for_metrics("the end", LONG, |samples| held(samples) == 0).unwrap();
    let losses = Ledger::read(&services).unwrap().losses();
    services.stop().unwrap();
    assert_eq!(losses, Vec::<String>::new());
}

/// What a collector has decoded of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Decoded {
    /// Who exported it, as the collector says.
    exporter: String,
    port: u64,
    bytes: u64,
    packets: u64,
}

/// How flows are read from what a collector has written.
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

/// What a collector has decoded by its end, in order.
fn decoded_by<R: Flows>(collector: Collector<'_, R>) -> Vec<Decoded> {
    let mut flows: Vec<Decoded> = collector.finish().unwrap().iter().map(R::decoded).collect();
    flows.sort();
    flows
}

/// What is to be decoded of flows with these numbers.
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

/// A site where spoofed datagrams arrive, if the collectors are there.
fn flow_site(test: &str) -> Option<TestSite> {
    let site = installed_or_skipped(test, &["nfcapd", "nfdump", "nfacctd"]).then(|| site(test)).flatten()?;
    let_foreign_sources_in(&site);
    Some(site)
}

/// How many of each exporter, for messages.
fn summary(flows: &[Decoded]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    flows.iter().for_each(|flow| *counts.entry(flow.exporter.as_str()).or_default() += 1);
    counts
}
