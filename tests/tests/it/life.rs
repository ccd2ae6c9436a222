//! Start in any order, stop with everything delivered, and restarts under load.

use std::time::Duration;

use sekiwake_record::Kind;
use sekiwake_testkit::{process::Signal, wait::wait_for};
use sekiwake_tests::{Ledger, MIRRORED, Samples, Service, Services, collector};

use crate::support::*;

/// At full speed, and long enough that a signal arrives in the middle.
const BURST: &str = "--from 198.19.0.0/16 --sources 16 --size 200 --rate 0 --count 50000";

#[test]
fn services_start_in_any_order() {
    let Some(site) = site() else { return };
    for order in ORDERS {
        let sink = site.sink(&[at(collector(0), 514)], numbered());
        let mut services = site.start_in_order(order, &syslog_to(0));
        let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --rate 5000 --count 1000"));
        let _ = sink.wait_for(sent, LONG);
        let ledger = balanced_ledger(&services);
        for name in SYSLOG_PATH {
            services.take(name).stop().unwrap();
        }
        assert_eq!(sink.finish().received, sent, "{order:?}: {:?}", ledger.losses());
    }
}

/// Sends a burst, stops `stopped` as soon as the sender has ended, and checks that everything
/// arrives.
fn check_burst_before_stop(names: &[&str], stopped: &[&str]) {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let mut services = site.start(names, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let dropped_before = site.dropped_by_wire().unwrap();
    let sent = site.send(&format!("--to {MIRRORED} {BURST}"));
    let mut stopping: Vec<Service<'_>> = stopped.iter().map(|name| services.take(name)).collect();
    for service in &stopping {
        service.process.terminate().unwrap();
    }
    let at_the_signal = sink.received();
    for service in &mut stopping {
        service.wait_for_end().unwrap();
    }
    let on_the_wire = sent - (site.dropped_by_wire().unwrap() - dropped_before);
    let _ = sink.wait_for(on_the_wire, LONG);
    println!("{at_the_signal} of {sent} arrived before the signal");
    let log: Vec<String> = stopping.iter().flat_map(|service| service.process.stderr()).collect();
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(
        report.received,
        on_the_wire,
        "{at_the_signal} arrived before the signal; sent {sent}; {}",
        log.join("\n")
    );
    assert_eq!((report.sequence.missing, report.sequence.duplicates), (sent - on_the_wire, 0));
}

#[test]
fn stopped_capture_delivers_what_it_captured() {
    check_burst_before_stop(&SYSLOG_PATH, &[CAPTURE]);
}

#[test]
fn pipeline_stopped_at_once_delivers_what_it_captured() {
    check_burst_before_stop(&SYSLOG_PATH, &SYSLOG_PATH);
}

#[test]
fn stopped_all_in_one_delivers_what_it_captured() {
    check_burst_before_stop(&["sekiwake"], &["sekiwake"]);
}

#[test]
fn capture_without_its_proxy_drains_before_the_deadline() {
    let Some(site) = site() else { return };
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", syslog_to(0)), ("SEKIWAKE_DRAIN", "10s".to_owned())];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut services = site.start(&SYSLOG_PATH, &environment);
    services.take(PROXY).stop().unwrap();
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --rate 1000 --count 500"));
    let mut capture = services.take(CAPTURE);
    capture.wait_for_metrics("all to be captured", LONG, |samples| claimed(samples) == sent).unwrap();
    capture.stop().unwrap();
    let log = capture.process.stderr().join("\n");
    assert!(!log.contains("drain deadline exceeded, exiting anyway"), "{log}");
    // All are accounted for in its last line.
    let end = capture.process.wait_for_line(LONG, |line| line.contains("stream ended")).unwrap();
    let field = |name: &str| -> u64 {
        let value = end.split(&format!(" {name}=")).nth(1).and_then(|rest| rest.split(' ').next());
        value.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no {name}: {end}"))
    };
    assert_eq!((field("offered"), field("unpublished") + field("uncommitted")), (sent, sent), "{log}");
    services.stop().unwrap();
}

const STEADY: &str = "--from 198.19.0.0/16 --sources 16 --size 100-1400 --rate 5000 --count 25000";

fn claimed(samples: &Samples) -> u64 {
    samples.count("sekiwake_capture_claimed_datagrams_total", &[])
}

/// Restarts the proxy under load, and checks that traffic resumes by itself and the loss is
/// counted. Returns the loss.
fn restart_proxy(signal: Signal) -> Option<u64> {
    let site = site()?;
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", syslog_to(0))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut services = site.start(&SYSLOG_PATH, &environment);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {STEADY}"));
    sink.wait_for(5_000, LONG).unwrap();
    let mut old = services.take(PROXY);
    old.process.signal(signal).unwrap();
    let status = old.process.wait(LONG).unwrap();
    assert_eq!(status.success(), signal == Signal::TERM, "{}", old.process.stderr().join("\n"));
    services.add(site.start_one(PROXY, &environment));
    services.wait_until_datagrams_flow().unwrap();
    let sent = sent_by(&mut sender);
    // The last datagram of each source shows that traffic has resumed.
    wait_for("the loss to be counted", LONG, || {
        let lost = services.get(SYSLOG).metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
        sink.received() + lost == sent
    })
    .unwrap_or_else(|late| panic!("{late}: {} of {sent} arrived; {:?}", sink.received(), ledger_line(&services)));
    let captured = claimed(&services.get(CAPTURE).metrics().unwrap());
    let flow = ledger_line(&services);
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(captured, sent, "capture continues without a proxy");
    assert_eq!(report.sequence.duplicates, 0);
    assert_eq!(report.sequence.missing, sent - report.received, "the last datagram of every source arrived: {flow}");
    assert_eq!(report.sequence.out_of_order, 0);
    println!("{sent} sent, {} lost: {flow}", sent - report.received);
    Some(sent - report.received)
}

fn ledger_line(services: &Services<'_>) -> String {
    let ledger = Ledger::read(services).unwrap();
    format!("{}; {:?}", ledger.flow(Kind::Syslog), ledger.losses())
}

#[test]
fn proxy_restarted_gracefully_under_load_loses_nothing() {
    let lost = restart_proxy(Signal::TERM);
    assert_eq!(lost.unwrap_or(0), 0);
}

#[test]
fn loss_after_a_killed_proxy_is_counted() {
    restart_proxy(Signal::KILL);
}

#[test]
fn forwarder_restarted_under_load_delivers_what_it_received() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let to = syslog_to(0);
    let mut services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &to)]);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {STEADY}"));
    sink.wait_for(5_000, LONG).unwrap();
    services.take(SYSLOG).stop().unwrap();
    let by_the_first = sink.received();
    services.add(site.start_one(SYSLOG, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &to)]));
    services.wait_until_datagrams_flow().unwrap();
    let sent = sent_by(&mut sender);
    let capture = services.get(CAPTURE);
    capture.wait_for_metrics("all to be captured", LONG, |samples| claimed(samples) == sent).unwrap();
    sink.wait_for_silence(Duration::from_millis(300), LONG).unwrap();
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    let report = sink.finish();
    let flow = ledger.flow(Kind::Syslog);
    let unpublished = ledger.capture.count("sekiwake_bus_unpublished_records_total", &[]);
    // Published while no forwarder ran, and received by neither.
    let in_flight = flow.published - by_the_first - flow.received;
    println!("{sent} sent, {unpublished} without a subscriber, {in_flight} in flight; {flow}");
    assert_eq!(flow.sent, flow.received, "the second forwarder delivers what it receives");
    assert_eq!(report.received, by_the_first + flow.received);
    assert_eq!(report.received + unpublished + in_flight, sent);
    assert_eq!(report.sequence.duplicates, 0);
    assert_eq!(report.sequence.missing, sent - report.received, "the last datagram of every source arrived");
}
