//! Real collectors at the end of the pipeline, and real exporters, loggers and agents at its beginning.
//!
//! ```text
//!  devices ───┬──▶ old collector (on the host)        what it writes when it is fed directly
//!             └─ capture ─▶ proxy ─▶ forwarder ──▶ new collector        must be the same
//! ```
//! Both are the same daemon with the same configuration, and hear the same traffic at the same time.

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

/// How the pipeline forwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The options of the destination's URI, with the question mark.
    options: &'static str,
    /// Whether a collector then sees the devices' addresses, so that they must be equal too.
    keeps_addresses: bool,
}

/// A collector sees the forwarder's address.
pub(super) const PLAIN: Way = Way { options: "", keeps_addresses: false };

/// In the name of the devices.
pub(super) const SPOOFED: Way = Way { options: "?spoof=true", keeps_addresses: true };

impl Way {
    /// The address that trace `number` of an exporter is replayed from. To a collector that does not see addresses all exporters are
    /// one, and their templates and sampling rates of one number are the same: so they are one to the old collector too, which
    /// has the address that the kernel gives to softflowd.
    fn exporter(self, number: usize) -> IpAddr {
        let device = Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::try_from(number % 16).unwrap());
        if self.keeps_addresses { device.into() } else { DEVICES_OWN.into() }
    }
}

/// What the kernel takes as source in the devices' namespace where a program does not choose.
const DEVICES_OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

/// Datagrams between two looks at how far they have got. What a socket's receive buffer of the default size holds of large ones.
const RUN: usize = 64;
/// Bytes between two looks.
const RUN_BYTES: usize = 32 << 10;

/// A pair of collectors and the pipeline between them.
pub(super) struct Trial<'a, R: Recipe> {
    site: &'a TestSite,
    services: Services<'a>,
    old: Collector<'a, R>,
    new: Collector<'a, R>,
    kind: Kind,
    port: u16,
}

/// What both wrote, in the order of their writing.
pub(super) struct Written {
    old: Vec<Record>,
    new: Vec<Record>,
    way: Way,
}

/// A site, if everything is there that the test needs.
pub(super) fn site_with(test: &str, programs: &[&str]) -> Option<TestSite> {
    installed_or_skipped(test, programs).then(|| site(test)).flatten()
}

impl<'a, R: Recipe> Trial<'a, R> {
    /// Starts two collectors and what lies between them.
    pub(super) fn start(site: &'a TestSite, kind: Kind, port: u16, way: Way) -> Trial<'a, R> {
        let (_, forwarder) = FORWARDERS[kind.index()];
        let variable = ["SEKIWAKE_SYSLOG_DESTINATIONS", "SEKIWAKE_XFLOW_DESTINATIONS", "SEKIWAKE_TRAP_DESTINATIONS"];
        let to = format!("udp://{}:{port}{}", collector(0), way.options);
        let old = Collector::start(&site.host, at(HOST, port)).unwrap();
        let new = Collector::start(&site.collectors, at(collector(0), port)).unwrap();
        let services = site.start(&[CAPTURE, PROXY, forwarder], &[(variable[kind.index()], &to)]);
        Trial { site, services, old, new, kind, port }
    }

    /// Where the devices send to.
    pub(super) fn address(&self) -> SocketAddr {
        at(HOST, self.port)
    }

    /// Sends payloads from one device's socket, no faster than the slowest takes them.
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

    /// Waits until everything that the devices have sent is forwarded, and both collectors have read what has reached them.
    fn wait_until_through(&self) {
        let sent = self.site.devices.enter(sent_datagrams).unwrap().unwrap();
        let label = format!("kind=\"{}\"", self.kind);
        let forwarder = self.services.get(FORWARDERS[self.kind.index()].1);
        let captured = || {
            let samples = self.services.get(CAPTURE).metrics().unwrap();
            samples.count("sekiwake_capture_claimed_datagrams_total", &[&label])
        };
        wait_for("capture", LONG, || captured() >= sent).unwrap_or_else(|late| panic!("{late}: {sent} were sent"));
        let gone = || {
            let samples = forwarder.metrics().unwrap();
            samples.count("sekiwake_forward_sent_datagrams_total", &[])
                + samples.count("sekiwake_forward_dropped_datagrams_total", &[])
        };
        wait_for("forwarding", LONG, || gone() >= sent).unwrap_or_else(|late| panic!("{late}: {sent} were sent"));
        for end in [&self.old, &self.new] {
            wait_for("reading", LONG, || end.socket().unwrap().queued_bytes == 0).unwrap();
        }
    }

    /// Waits, for a while, until both have written so many records: for daemons that do so as they go.
    pub(super) fn wait_for_records(&self, count: usize) {
        self.wait_for_both(|records| records.len() >= count);
    }

    /// The same until a record with this text is the last one, where it is not known how many there will be.
    pub(super) fn wait_for_last(&self, text: &str) {
        self.wait_for_both(|records| records.last().is_some_and(|record| record.content.contains(text)));
    }

    fn wait_for_both(&self, condition: impl Fn(&[Record]) -> bool) {
        for end in [&self.old, &self.new] {
            // What is missing shows in the comparison.
            let _ = wait_for("writing", LONG, || condition(&end.records().unwrap()));
        }
    }

    /// Stops everything, and gives what was written once the books are closed and nothing was lost.
    pub(super) fn finish(self, way: Way) -> Written {
        self.wait_until_through();
        let Trial { services, old, new, .. } = self;
        let ledger: Ledger = closed_books(&services);
        services.stop().unwrap();
        let (old, new) = (old.finish().unwrap(), new.finish().unwrap());
        assert_eq!(ledger.losses(), Vec::<String>::new());
        Written { old, new, way }
    }
}

impl Written {
    /// Checks that both wrote the same in whatever order, and at least `least` records. Gives them.
    pub(super) fn assert_same(&self, least: usize) -> Vec<Record> {
        let comparable = |records: &[Record]| {
            let mut records = records.to_vec();
            if !self.way.keeps_addresses {
                records.iter_mut().for_each(|record| record.source.clear());
            }
            records.sort();
            records
        };
        let (old, new) = (comparable(&self.old), comparable(&self.new));
        println!("{} records at the old collector, {} at the new one", old.len(), new.len());
        let difference = (0..old.len().max(new.len())).find(|&index| old.get(index) != new.get(index));
        if let Some(index) = difference {
            let (old_one, new_one) = (old.get(index), new.get(index));
            panic!("{} and {} records; number {index}: {old_one:#?} and {new_one:#?}", old.len(), new.len());
        }
        assert!(old.len() >= least, "the collectors wrote {} records, expected {least} at least", old.len());
        old
    }
}

/// A time that a tool may take before it gives up by itself, for its own settings.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
