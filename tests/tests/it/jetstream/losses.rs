//! What is lost on JetStream is counted to the datagram: received and counted is what was sent.

use std::time::Duration;

use sekiwake_testkit::{process::Signal, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service};
use sekiwake_traffic::sink::Sink;

use super::server::{BUS, NatsServer, pause_until};
use crate::{
    replicas::{Completeness, Load, Members, completeness, flow_for, large_sink, settle_with_losses},
    support::*,
};

const LOST: &str = "sekiwake_bus_lost_records_total";
/// The smallest stream that can be set.
const SMALL: (&str, &str) = ("SEKIWAKE_BUS_MAX_BYTES", "1MiB");

/// A new group is owed nothing that is older than itself.
const FROM_NOW: (&str, &str) = ("SEKIWAKE_GROUP_START", "0s");

/// The records of a capture that are stored, and those that are not.
fn published(capture: &Service<'_>) -> (u64, u64) {
    let metrics = capture.metrics().unwrap();
    let stored = metrics.count("sekiwake_bus_published_records_total", &[]);
    (stored, metrics.count("sekiwake_bus_unpublished_records_total", &[]))
}

fn wait_until_stored(capture: &Service<'_>, sent: u64) {
    wait_for("all records stored", LONG, || published(capture) == (sent, 0))
        .unwrap_or_else(|late| panic!("{late}: {:?} of {sent}", published(capture)));
}

#[test]
fn jetstream_evicted_records_are_counted_exactly() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let server = NatsServer::start(&site.host, "");
    let sink = large_sink(&site, 0);
    let mut members = Members::with(&site, &[BUS, SMALL]);
    members.start("default", 0, 1);
    members.wait_until_even();
    let capture = site.start_one(CAPTURE, &[BUS, SMALL]);
    pause_until("a ready capture", || capture.is_ready());
    let send = |from: &str, options: &str| site.send(&format!("--to {MIRRORED} --from {from} {options}"));
    let mut sent = send("198.19.1.0/24", "--sources 16 --size 200 --rate 5000 --count 1000");
    wait_for("all of it", LONG, || sink.received() == sent).unwrap();

    // Without a member: first what is silent afterwards, then what evicts it from the stream.
    members.stop_first();
    sent += send("198.19.2.0/24", "--sources 16 --size 200 --rate 5000 --count 1000");
    sent += send("198.19.3.0/24", "--sources 2 --size 1000 --rate 10000 --count 5000");
    wait_until_stored(&capture, sent);
    members.start("default", 0, 1);
    settle_with_losses(&sink, sent, || members.sum(LOST));
    let evicted = members.sum(LOST);
    assert_eq!((sink.received() + evicted, members.lost("not_retained")), (sent, evicted), "{}", members.log());
    assert!(evicted > 1000, "{evicted} evicted");

    // Everything is evicted, as after max_age, and nothing is stored after it.
    members.stop_first();
    let purged = send("198.19.4.0/24", "--sources 16 --size 200 --rate 5000 --count 1000");
    sent += purged;
    wait_until_stored(&capture, sent);
    server.request("STREAM.PURGE.SEKIWAKE_SYSLOG");
    members.start("default", 0, 1);
    wait_for("the lost records", LONG, || members.sum(LOST) >= purged).unwrap();
    assert_eq!(members.lost("not_retained"), purged, "{}", members.log());
    members.stop();
    let missing = evicted + purged;
    assert_eq!(completeness(sink, sent), Completeness { missing, duplicates: 0 });
}

/// A group and a capture that has announced records of 16 sources before the group began.
fn with_group_after_capture(check: impl FnOnce(&TestSite, &NatsServer<'_>, Sink, Members<'_>, &mut Service<'_>)) {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let server = NatsServer::start(&site.host, "");
    let sink = large_sink(&site, 0);
    let mut capture = site.start_one(CAPTURE, &[BUS, SMALL]);
    pause_until("a ready capture", || capture.is_ready());
    send_from(&site, 1);
    wait_until_stored(&capture, 1000);
    check(&site, &server, sink, Members::with(&site, &[BUS, SMALL, FROM_NOW]), &mut capture);
}

/// Sends 1000 datagrams of 16 sources.
fn send_from(site: &TestSite, network: u8) {
    let from = format!("--from 198.19.{network}.0/24 --sources 16");
    site.send(&format!("--to {MIRRORED} {from} --size 200 --rate 5000 --count 1000"));
}

#[test]
fn jetstream_new_group_counts_evicted_records_of_shards_it_never_read() {
    with_group_after_capture(|site, _server, sink, mut members, capture| {
        members.start("default", 0, 1);
        members.wait_until_even();
        members.stop_first();
        assert_eq!(sink.received(), 0, "the group began after them");
        // Shards with and without records from before the group, of which all records are evicted.
        send_from(site, 1);
        send_from(site, 2);
        let flood = format!("--to {MIRRORED} --from 198.19.3.0/24 --sources 2 --size 1000 --rate 10000 --count 5000");
        let sent = 2000 + site.send(&flood);
        wait_until_stored(capture, 1000 + sent);
        members.start("default", 0, 1);
        settle_with_losses(&sink, sent, || members.sum(LOST));
        let evicted = members.sum(LOST);
        assert_eq!((sink.received() + evicted, members.lost("not_retained")), (sent, evicted), "{}", members.log());
        assert!(evicted > 2000, "{evicted} evicted");
        members.stop();
        assert_eq!(completeness(sink, sent), Completeness { missing: evicted, duplicates: 0 });
    });
}

#[test]
fn jetstream_records_of_a_capture_unheard_when_the_group_began_are_unknown() {
    with_group_after_capture(|site, server, sink, mut members, capture| {
        // It announces nothing while the group begins.
        capture.process.signal(Signal::STOP).unwrap();
        members.start("default", 0, 1);
        members.wait_until_even();
        members.stop_first();
        capture.process.signal(Signal::CONT).unwrap();
        send_from(site, 1);
        send_from(site, 2);
        wait_until_stored(capture, 3000);
        server.request("STREAM.PURGE.SEKIWAKE_SYSLOG");
        members.start("default", 0, 1);
        wait_for("the lost records", LONG, || members.sum(LOST) >= 2000).unwrap_or_else(|late| {
            panic!("{late}: {} {}", members.sum(LOST), members.log());
        });
        // Those from before the group too, if the capture had not announced them yet.
        let lost = members.sum(LOST);
        assert_eq!(members.lost("unknown"), lost, "{}", members.log());
        assert!((2000..=3000).contains(&lost), "{lost} lost");
        // From then on it is known where the group is.
        send_from(site, 2);
        wait_for("new records", LONG, || sink.received() == 1000).unwrap();
        assert_eq!(members.sum(LOST), lost, "{}", members.log());
        members.stop();
        assert_eq!(completeness(sink, 3000), Completeness { missing: 2000, duplicates: 0 });
    });
}

#[test]
fn jetstream_deleted_stream_is_created_again_and_its_records_are_counted() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let server = NatsServer::start(&site.host, "");
    let sink = large_sink(&site, 0);
    let capture = site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_RETAIN", "512MiB")]);
    // One member, so that no other one declares it gone while it is suspended.
    let mut members = Members::with(&site, &[BUS]);
    members.start("default", 0, 1);
    members.wait_until_even();
    pause_until("a ready capture", || capture.is_ready());
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));

    // Stored, and not yet read.
    members.pause_first();
    let before = published(&capture).0;
    wait_for("unread records", LONG, || published(&capture).0 > before + 10_000).unwrap();
    server.request("STREAM.DELETE.SEKIWAKE_SYSLOG");
    members.resume_first();
    flow_for(&sink, Duration::from_secs(1));
    wait_for("lost records", LONG, || members.sum(LOST) > 0).unwrap();

    // Under load, and with two members.
    members.start("default", 0, 1);
    members.wait_until_even();
    server.request("STREAM.DELETE.SEKIWAKE_SYSLOG");
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.stop();
    settle_with_losses(&sink, sent, || members.sum(LOST));
    let (lost, gone) = (members.sum(LOST), members.lost("stream_gone"));
    let log = members.log();
    members.stop();
    println!("{sent} sent, {lost} lost, {gone} with the stream");
    assert_eq!(completeness(sink, sent), Completeness { missing: lost, duplicates: 0 }, "{log}");
    assert_eq!((gone, published(&capture).1), (lost, 0), "{log}");
}
