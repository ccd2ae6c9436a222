//! How much of the data collectors decode that come late or again, and how many sequence errors
//! they count because of templates sent ahead. The table in docs/forwarding.md is printed by
//! `table`.
//!
//! A datagram of templates repeats the number of the datagram before it, so that a collector which
//! has received that one counts one error (NetFlow v9). What is sent before the collector is there
//! costs nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use sekiwake_tests::MIRRORED;

use super::*;

/// The pause between two flows of an exporter.
const PACE: Duration = Duration::from_millis(20);

/// How long the collector is away, and how long it is observed once it is served.
const WHILE: Duration = Duration::from_secs(2);

/// The exporters. Each has a source id of its own, so that a collector tells them apart by that
/// where it does not see their addresses.
const EXPORTERS: u32 = 3;

/// How the collector misses the templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    StartedLate,
    Restarted,
}

/// What a collector made of the flows that were sent since it was there.
#[derive(Debug)]
struct Outcome {
    sent: u64,
    decoded: u64,
    /// Datagrams of templates since then.
    templates: u64,
    errors: Option<u64>,
}

/// Exporters that send templates once, or after every so many rounds, and a flow per round.
struct Traffic {
    exporters: Vec<Exporter>,
    repeats_every: Option<u64>,
    rounds: u64,
}

impl Traffic {
    fn new(site: &TestSite, repeats_every: Option<u64>) -> Traffic {
        let exporter = |number| {
            let mut exporter = Exporter::new(site, number, Version::NetFlow9, at(MIRRORED, PORT));
            exporter.domain = number;
            exporter
        };
        Traffic { exporters: (1..=EXPORTERS).map(exporter).collect(), repeats_every, rounds: 0 }
    }

    /// Sends a flow of each exporter, and what is due before it.
    fn round(&mut self) {
        let has_templates = match self.repeats_every {
            Some(every) => self.rounds.is_multiple_of(every),
            None => self.rounds == 0,
        };
        for (exporter, number) in self.exporters.iter_mut().zip(self.rounds * u64::from(EXPORTERS)..) {
            if has_templates {
                exporter.template(256, &LAYOUT);
            }
            exporter.flow(256, &LAYOUT, number);
        }
        self.rounds += 1;
        thread::sleep(PACE);
    }

    fn run(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.round();
        }
    }

    /// Flows sent so far: the number of the next one.
    fn flows(&self) -> u64 {
        self.rounds * u64::from(EXPORTERS)
    }

    /// Datagrams sent so far.
    fn datagrams(&self) -> u64 {
        self.exporters.iter().map(|exporter| exporter.sent).sum()
    }
}

/// Runs the exporters while a collector comes late or again, until it counts as up or, where that
/// is not known, until it has been sent templates; or for `observed`.
fn measure<R: Flows>(
    options: &str,
    absence: Absence,
    repeats_every: Option<u64>,
    observed: Option<Duration>,
) -> Option<Outcome> {
    let site = flow_site()?;
    let place = at(collector(1), PORT);
    let earlier = (absence == Absence::Restarted).then(|| Collector::<R>::start(&site.collectors, place).unwrap());
    let file = DestinationsFile::new(&[uri(1, options)]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    let templates_sent = || forwarder.metrics().unwrap().count("sekiwake_forward_templates_sent_total", &[]);
    let is_up = || forwarder.metrics().unwrap().sum("sekiwake_forward_up", &[]) == 1.0;
    let mut traffic = Traffic::new(&site, repeats_every);
    traffic.run(WHILE);
    if let Some(earlier) = earlier {
        earlier.finish().unwrap();
        traffic.run(WHILE);
    }
    let templates_before = templates_sent();
    let collector = Collector::<R>::start(&site.collectors, place).unwrap();
    let first = traffic.flows();
    match observed {
        Some(time) => traffic.run(time),
        None => wait_for("the collector to be served", 2 * LONG, || {
            traffic.round();
            templates_sent() > templates_before && (options.contains("spoof") || is_up())
        })
        .unwrap(),
    }
    let served = traffic.flows();
    traffic.run(WHILE);
    wait_until_forwarded(forwarder, 1, traffic.datagrams());
    let templates = templates_sent() - templates_before;
    services.stop().unwrap();
    let (records, errors) = collector.finish_with_errors().unwrap();
    let mut decoded: Vec<u64> = records.iter().map(|record| R::decoded(record).port - BASE_PORT).collect();
    decoded.retain(|number| *number >= first);
    decoded.sort_unstable();
    let of_last = decoded.iter().filter(|number| **number >= served).count() as u64;
    assert_eq!(of_last, traffic.flows() - served, "all flows are decoded once it has the templates");
    Some(Outcome { sent: traffic.flows() - first, decoded: decoded.len() as u64, templates, errors })
}

fn check<R: Flows>(options: &str, absence: Absence) {
    let Some(outcome) = measure::<R>(options, absence, None, None) else { return };
    println!("{outcome:?}");
    assert!(outcome.errors.is_none_or(|errors| errors <= outcome.templates), "{outcome:?}");
}

#[test]
fn late_nfcapd_counts_at_most_one_error_per_template_datagram() {
    check::<Nfcapd>("", Absence::StartedLate);
}

#[test]
fn restarted_nfacctd_counts_at_most_one_error_per_template_datagram() {
    check::<Nfacctd>("", Absence::Restarted);
}

#[test]
fn late_ra_decodes_spoofed_exporters() {
    check::<Ra>("?spoof=true&template_refresh=2s", Absence::StartedLate);
}

#[test]
#[ignore = "a measurement: prints the table in docs/forwarding.md"]
fn table() {
    fn row<R: Flows>(options: &str, absence: Absence, repeats_every: Option<u64>) {
        let observed = repeats_every.map(|_| Duration::from_secs(65));
        let Some(Outcome { sent, decoded, templates, errors }) =
            measure::<R>(options, absence, repeats_every, observed)
        else {
            return;
        };
        let errors = errors.map_or("–".to_owned(), |errors| errors.to_string());
        let program = R::PROGRAM;
        println!(
            "| {program} | {absence:?} | {options} | {repeats_every:?} | {decoded} of {sent} | {templates} | {errors} |"
        );
    }
    for absence in [Absence::StartedLate, Absence::Restarted] {
        for options in ["", "?spoof=true"] {
            row::<Nfcapd>(options, absence, None);
            row::<Nfacctd>(options, absence, None);
            row::<Ra>(options, absence, None);
        }
    }
    // Templates about every ten seconds.
    row::<Nfcapd>("?spoof=true", Absence::StartedLate, Some(500));
    row::<Nfacctd>("?spoof=true", Absence::StartedLate, Some(500));
}
