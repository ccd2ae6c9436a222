//! Starting in any order, stopping with everything delivered, and restarts under load.

use std::time::Duration;

use sekiwake_testkit::{process::Signal, wait::wait_for};
use sekiwake_tests::{MIRRORED, Samples, Service, Services, collector};

use crate::support::*;

/// As fast as the sender can, with a run long enough that a signal comes in the middle of the work.
const BURST: &str = "--from 198.19.0.0/16 --sources 16 --size 200 --rate 0 --count 50000";

#[test]
fn services_may_come_up_in_any_order() {
    let Some(site) = site("services_may_come_up_in_any_order") else { return };
    let [capture, proxy, forwarder] = SYSLOG_WAY;
    for order in [
        [capture, proxy, forwarder],
        [capture, forwarder, proxy],
        [proxy, capture, forwarder],
        [proxy, forwarder, capture],
        [forwarder, capture, proxy],
        [forwarder, proxy, capture],
    ] {
        let sink = site.sink(&[at(collector(0), 514)], numbered());
        let mut services = Services(Vec::new());
        for name in order {
            let service = site.start_one(name, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
            wait_for("an answer of the admin server", LONG, || service.is_alive()).unwrap();
            services.add(service);
        }
        services.wait_until_datagrams_flow().unwrap();
        let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --rate 5000 --count 1000"));
        let _ = sink.wait_for(sent, LONG);
        let ledger = closed_books(&services);
        for name in SYSLOG_WAY {
            services.take(name).stop().unwrap();
        }
        assert_eq!(sink.finish().received, sent, "{order:?}: {:?}", ledger.losses());
    }
}

/// Sends a burst, stops `stopped` as soon as the sender has ended, and checks that everything arrives.
fn check_burst_before_stop(test: &str, names: &[&str], stopped: &[&str]) {
    let Some(site) = site(test) else { return };
    site.switch_ipv6_off_on_the_wire();
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
    println!("{test}: {at_the_signal} of {sent} had arrived before the signal");
    let said: Vec<String> = stopping.iter().flat_map(|service| service.process.stderr()).collect();
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(
        report.received,
        on_the_wire,
        "{at_the_signal} had arrived before the signal; sent {sent}; {}",
        said.join("\n")
    );
    assert_eq!((report.sequence.missing, report.sequence.doubled), (sent - on_the_wire, 0));
}

#[test]
fn a_capture_that_is_told_to_stop_delivers_what_it_captured() {
    check_burst_before_stop("a_capture_that_is_told_to_stop_delivers_what_it_captured", &SYSLOG_WAY, &[CAPTURE]);
}

#[test]
fn a_pipeline_that_is_told_to_stop_all_at_once_delivers_what_it_captured() {
    let test = "a_pipeline_that_is_told_to_stop_all_at_once_delivers_what_it_captured";
    check_burst_before_stop(test, &SYSLOG_WAY, &SYSLOG_WAY);
}

#[test]
fn an_all_in_one_that_is_told_to_stop_delivers_what_it_captured() {
    check_burst_before_stop(
        "an_all_in_one_that_is_told_to_stop_delivers_what_it_captured",
        &["sekiwake"],
        &["sekiwake"],
    );
}

#[test]
fn a_capture_whose_proxy_is_gone_ends_well_within_its_drain_time() {
    let Some(site) = site("a_capture_whose_proxy_is_gone_ends_well_within_its_drain_time") else { return };
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", syslog_to(0)), ("SEKIWAKE_DRAIN", "2s".to_owned())];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut services = site.start(&SYSLOG_WAY, &environment);
    services.take(PROXY).stop().unwrap();
    let mut capture = services.take(CAPTURE);
    capture.stop().unwrap();
    let said = capture.process.stderr().join("\n");
    assert!(!said.contains("not drained in time"), "{said}");
    services.stop().unwrap();
}

const STEADY: &str = "--from 198.19.0.0/16 --sources 16 --size 100-1400 --rate 5000 --count 25000";

fn claimed(samples: &Samples) -> u64 {
    samples.count("sekiwake_capture_claimed_datagrams_total", &[])
}

/// Restarts the proxy under load, and checks that flow resumes by itself and what was lost has been counted. Gives the loss.
fn restart_proxy(test: &str, signal: Signal) -> Option<u64> {
    let site = site(test)?;
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let environment = [("SEKIWAKE_SYSLOG_DESTINATIONS", syslog_to(0))];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut services = site.start(&SYSLOG_WAY, &environment);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {STEADY}"));
    sink.wait_for(5_000, LONG).unwrap();
    let mut old = services.take(PROXY);
    old.process.signal(signal).unwrap();
    let status = old.process.wait(LONG).unwrap();
    assert_eq!(status.success(), signal == Signal::TERM, "{}", old.process.stderr().join("\n"));
    services.add(site.start_one(PROXY, &environment));
    services.wait_until_datagrams_flow().unwrap();
    let sent = sent_by(&mut sender);
    // The last of each source shows that flow has resumed.
    wait_for("the count of what was lost", LONG, || {
        let lost = services.get(SYSLOG).metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
        sink.received() + lost == sent
    })
    .unwrap_or_else(|late| panic!("{late}: {} of {sent} arrived; {:?}", sink.received(), books(&services)));
    let captured = claimed(&services.get(CAPTURE).metrics().unwrap());
    let flow = books(&services);
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(captured, sent, "the wire goes on meanwhile");
    assert_eq!(report.sequence.doubled, 0);
    assert_eq!(report.sequence.missing, sent - report.received, "the last of every source is there: {flow}");
    assert_eq!(report.sequence.out_of_order, 0);
    println!("{test}: {sent} sent, {} lost: {flow}", sent - report.received);
    Some(sent - report.received)
}

fn books(services: &Services<'_>) -> String {
    let ledger = sekiwake_tests::Ledger::read(services).unwrap();
    format!("{}; {:?}", ledger.flow(sekiwake_record::Kind::Syslog), ledger.losses())
}

#[test]
fn a_proxy_restarted_in_order_under_load_loses_nothing() {
    let lost = restart_proxy("a_proxy_restarted_in_order_under_load_loses_nothing", Signal::TERM);
    assert_eq!(lost.unwrap_or(0), 0);
}

#[test]
fn after_the_kill_of_a_proxy_under_load_flow_resumes_and_the_loss_is_counted() {
    let test = "after_the_kill_of_a_proxy_under_load_flow_resumes_and_the_loss_is_counted";
    restart_proxy(test, Signal::KILL);
}

#[test]
fn a_forwarder_restarted_under_load_delivers_what_it_received_and_takes_up_again() {
    let test = "a_forwarder_restarted_under_load_delivers_what_it_received_and_takes_up_again";
    let Some(site) = site(test) else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let to = syslog_to(0);
    let mut services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &to)]);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {STEADY}"));
    sink.wait_for(5_000, LONG).unwrap();
    services.take(SYSLOG).stop().unwrap();
    let of_the_old = sink.received();
    services.add(site.start_one(SYSLOG, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &to)]));
    services.wait_until_datagrams_flow().unwrap();
    let sent = sent_by(&mut sender);
    let capture = services.get(CAPTURE);
    capture.wait_for_metrics("all to be captured", LONG, |samples| claimed(samples) == sent).unwrap();
    sink.wait_for_silence(Duration::from_millis(300), LONG).unwrap();
    let ledger = closed_books(&services);
    services.stop().unwrap();
    let report = sink.finish();
    let flow = ledger.flow(sekiwake_record::Kind::Syslog);
    let unpublished = ledger.capture.count("sekiwake_bus_unpublished_records_total", &[]);
    // On the way to a forwarder that had gone: published, and received by neither.
    let between = flow.published - of_the_old - flow.received;
    println!("{test}: {sent} sent, {unpublished} without a subscriber, {between} on the way; {flow}");
    assert_eq!(flow.sent, flow.received, "the new one delivers what it receives");
    assert_eq!(report.received, of_the_old + flow.received);
    assert_eq!(report.received + unpublished + between, sent);
    assert_eq!(report.sequence.doubled, 0);
    assert_eq!(report.sequence.missing, sent - report.received, "the last of every source is there");
}
