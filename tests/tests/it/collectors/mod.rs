//! Real collectors behind the pipeline, and real exporters, loggers and agents in front of it.
//!
//! ```text
//!  devices ───┬──▶ old collector (on the host)        its records when fed directly
//!             └─ capture ─▶ proxy ─▶ forwarder ──▶ new collector        must be the same records
//! ```
//! Both are the same daemon with the same configuration, and receive the same traffic at the same
//! time.

pub(crate) mod corpus;
mod flows;
mod syslog;
mod traps;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, ExitStatus},
    time::Duration,
};

use sekiwake_record::Kind;
use sekiwake_testkit::{process::Process, wait::wait_for};
use sekiwake_tests::{
    FIRST_DEVICE, FORWARDERS, HOST, Ledger, Services, collector,
    collectors::{Collector, Recipe, Record, installed_or_skipped, sent_datagrams},
};

use crate::support::*;

/// The pipeline's way of forwarding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The options of the destination's URI, with their question mark.
    options: &'static str,
    /// Whether a collector sees the devices' addresses, so that these are compared too.
    keeps_addresses: bool,
}

/// Collectors see the forwarder's address.
pub(super) const PLAIN: Way = Way { options: "", keeps_addresses: false };

/// Collectors see the devices' addresses.
pub(super) const SPOOFED: Way = Way { options: "?spoof=true", keeps_addresses: true };

impl Way {
    /// The source address for trace `number`. Without spoofing, the new collector sees all
    /// exporters as one, with one set of templates and sampling rates. So the old collector must
    /// see them as one too: with the address that the kernel gives to softflowd.
    fn exporter(self, number: usize) -> IpAddr {
        let device = Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::try_from(number % 16).unwrap());
        if self.keeps_addresses { device.into() } else { DEFAULT_SOURCE.into() }
    }
}

/// The default source address in the devices' namespace.
const DEFAULT_SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

/// Datagrams sent before waiting for them: as many large ones as fit into a receive buffer of the
/// default size.
const RUN: usize = 64;
/// Bytes sent before waiting for them.
const RUN_BYTES: usize = 32 << 10;

/// An old collector, a new one, and the pipeline to it.
pub(super) struct Trial<'a, R: Recipe> {
    site: &'a TestSite,
    services: Services<'a>,
    old: Collector<'a, R>,
    new: Collector<'a, R>,
    kind: Kind,
    port: u16,
}

/// The records of both collectors, in order.
pub(super) struct Written {
    old: Vec<Record>,
    new: Vec<Record>,
    way: Way,
}

/// A site, or `None` when a requirement of the test is missing.
pub(super) fn site_with(programs: &[&str]) -> Option<TestSite> {
    installed_or_skipped(programs).then(site).flatten()
}

impl<'a, R: Recipe> Trial<'a, R> {
    /// Starts both collectors and the pipeline.
    pub(super) fn start(site: &'a TestSite, kind: Kind, port: u16, way: Way) -> Trial<'a, R> {
        let (_, forwarder) = FORWARDERS[kind.index()];
        let variable = ["SEKIWAKE_SYSLOG_DESTINATIONS", "SEKIWAKE_XFLOW_DESTINATIONS", "SEKIWAKE_TRAP_DESTINATIONS"];
        let to = format!("udp://{}:{port}{}", collector(0), way.options);
        let old = Collector::start(&site.host, at(HOST, port)).unwrap();
        let new = Collector::start(&site.collectors, at(collector(0), port)).unwrap();
        let services = site.start(&[CAPTURE, PROXY, forwarder], &[(variable[kind.index()], &to)]);
        Trial { site, services, old, new, kind, port }
    }

    /// The address to which the devices send.
    pub(super) fn address(&self) -> SocketAddr {
        at(HOST, self.port)
    }

    /// Sends payloads from one device's socket, at the speed of the slowest receiver.
    pub(super) fn send(&self, from: IpAddr, payloads: &[Vec<u8>]) {
        let socket = self.site.devices.udp_socket(at(from, 0)).unwrap();
        let mut bytes = 0;
        for (number, payload) in payloads.iter().enumerate() {
            assert_eq!(socket.send_to(payload, self.address()).unwrap(), payload.len());
            bytes += payload.len();
            if bytes > RUN_BYTES || number % RUN == RUN - 1 {
                self.wait_until_through();
                bytes = 0;
            }
        }
        self.wait_until_through();
    }

    /// Runs a tool in the devices' namespace to its end.
    pub(super) fn run(&self, command: &Command) -> ExitStatus {
        let mut process = Process::spawn(self.site.devices.exec(command)).unwrap();
        let status = process.wait(LONG).unwrap();
        if !status.success() {
            println!("{command:?}: {status} {}", process.stderr().join("\n"));
        }
        self.wait_until_through();
        status
    }

    /// Waits until all datagrams from the devices are forwarded, and both collectors have read
    /// their sockets.
    fn wait_until_through(&self) {
        let sent = self.site.devices.enter(sent_datagrams).unwrap().unwrap();
        let label = format!("kind=\"{}\"", self.kind);
        let forwarder = self.services.get(FORWARDERS[self.kind.index()].1);
        let captured = || {
            let samples = self.services.get(CAPTURE).metrics().unwrap();
            samples.count("sekiwake_capture_claimed_datagrams_total", &[&label])
        };
        wait_for("capture", LONG, || captured() >= sent).unwrap_or_else(|late| panic!("{late}: {sent} were sent"));
        let handled = || {
            let samples = forwarder.metrics().unwrap();
            samples.count("sekiwake_forward_sent_datagrams_total", &[])
                + samples.count("sekiwake_forward_dropped_datagrams_total", &[])
        };
        wait_for("forwarding", LONG, || handled() >= sent).unwrap_or_else(|late| panic!("{late}: {sent} were sent"));
        for end in [&self.old, &self.new] {
            wait_for("reading", LONG, || end.socket().unwrap().queued_bytes == 0).unwrap();
        }
    }

    /// Waits until both have written `count` records, for daemons that write continuously.
    pub(super) fn wait_for_records(&self, count: usize) {
        self.wait_for_both(|records| records.len() >= count);
    }

    /// Waits until the last record of both contains this text, where their number is not known.
    pub(super) fn wait_for_last(&self, text: &str) {
        self.wait_for_both(|records| records.last().is_some_and(|record| record.content.contains(text)));
    }

    fn wait_for_both(&self, condition: impl Fn(&[Record]) -> bool) {
        for end in [&self.old, &self.new] {
            // The comparison reports missing records.
            let _ = wait_for("writing", LONG, || condition(&end.records().unwrap()));
        }
    }

    /// Stops everything, checks that nothing was lost, and returns the records.
    pub(super) fn finish(self, way: Way) -> Written {
        self.wait_until_through();
        let Trial { services, old, new, .. } = self;
        let ledger: Ledger = balanced_ledger(&services);
        services.stop().unwrap();
        let old = old.finish().unwrap();
        let new = new.finish().unwrap();
        assert_eq!(ledger.losses(), Vec::<String>::new());
        Written { old, new, way }
    }
}

impl Written {
    /// Checks that both wrote the same records in any order, and at least `least`. Returns them.
    pub(super) fn assert_same(&self, least: usize) -> Vec<Record> {
        let comparable = |records: &[Record]| {
            let mut records = records.to_vec();
            if !self.way.keeps_addresses {
                records.iter_mut().for_each(|record| record.source.clear());
            }
            records.sort();
            records
        };
        let old = comparable(&self.old);
        let new = comparable(&self.new);
        println!("{} records at the old collector, {} at the new one", old.len(), new.len());
        let difference = (0..old.len().max(new.len())).find(|&index| old.get(index) != new.get(index));
        if let Some(index) = difference {
            let old_one = old.get(index);
            let new_one = new.get(index);
            panic!("{} and {} records; number {index}: {old_one:#?} and {new_one:#?}", old.len(), new.len());
        }
        assert!(old.len() >= least, "the collectors wrote {} records, expected {least} at least", old.len());
        old
    }
}

/// The time-out for tools that have one.
pub(super) const TOOL_TIMEOUT: Duration = Duration::from_secs(60);
