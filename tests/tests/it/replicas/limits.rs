//! Little memory, long outages, overload: losses are counted, and others are not affected.

use std::{
    cell::Cell,
    fs::File,
    io::{BufWriter, Write},
    net::Ipv4Addr,
    path::Path,
};

use sekiwake_testkit::{packets::Datagram, process::Signal, sink::Numbered};
use sekiwake_tests::FIRST_DEVICE;

use super::*;

/// Fills the queues of a subscriber that is paused for a moment.
const FULL_LOAD: &str = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 50000";

fn lost(members: &Members<'_>) -> u64 {
    members.sum("sekiwake_bus_lost_records_total")
}

#[test]
fn loss_after_a_long_outage_with_little_memory_is_exact() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let sink = large_sink(&site, 0);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "8MiB")]);
    let mut members = Members::new(&site);
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    // A graceful stop, so that the committed position is exact to the record.
    members.stop_first();
    let before = sink.received();
    pause_for(Duration::from_secs(5));
    let started = Instant::now();
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    flow_for(&sink, Duration::from_secs(2));
    let sent = load.stop();
    settle_with_losses(&sink, sent, || lost(&members));
    let counted = lost(&members);
    let lines = || -> Vec<String> {
        let log = members.log();
        log.lines().filter(|line| line.contains("records lost for this group")).map(str::to_owned).collect()
    };
    let logged = || lines().iter().map(|line| reports::number(line, "records")).sum::<u64>();
    wait_for("the losses in the log", LONG, || logged() == counted)
        .unwrap_or_else(|late| panic!("{late}: {} of {counted}", logged()));
    let (lines, log, seconds) = (lines(), members.log(), started.elapsed().as_secs());
    let by_reason = members.members[0].metrics().unwrap().nonzero("sekiwake_bus_lost_records_total", &[]);
    members.stop();
    spine.stop().unwrap();
    let Completeness { missing, duplicates } = completeness(sink, sent);
    println!("{sent} sent, {before} before the outage, {missing} missing, {by_reason:?}");
    assert!(missing > 2 * RATE, "too few are missing for this test: {missing}");
    assert_eq!((missing, duplicates), (counted, 0), "{log}");
    assert_eq!(lines.last().map(|line| reports::number(line, "total")), Some(counted), "{log}");
    assert!(lines.iter().all(|line| line.contains("captured_before=\"20")), "{log}");
    // All topics together, and not more often than every second while it goes on.
    assert!(lines.len() as u64 <= 2 + seconds, "{seconds} s: {log}");
}

#[test]
fn flood_of_one_kind_evicts_no_other_kind() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let traps = site.sink(&[at(collector(0), 162)], numbered());
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "8MiB")]);
    let sent = site.send(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --protocol snmp2c-trap --rate 2000 --count 500"
    ));
    let flood = site.send(&format!("--to {MIRRORED} --from {FIRST_DEVICE} --size 1000 --rate 20000 --count 40000"));
    let claimed = || {
        let metrics = spine.get(CAPTURE).metrics().unwrap();
        metrics.count("sekiwake_capture_claimed_datagrams_total", &[])
    };
    wait_for("all to be captured", LONG, || claimed() == sent + flood).unwrap();
    let destination = format!("udp://{}:162", collector(0));
    let mut forwarder = site.start_one(TRAP, &[("SEKIWAKE_TRAP_DESTINATIONS", &destination)]);
    let _ = traps.wait_for(sent, LONG);
    let lost = forwarder.metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
    let retained = spine.get(CAPTURE).metrics().unwrap().count("sekiwake_bus_retained_bytes", &["kind=\"syslog\""]);
    forwarder.stop().unwrap();
    spine.stop().unwrap();
    let report = traps.finish();
    assert!(retained <= 8 << 20, "{retained}");
    assert_eq!((report.received, report.sequence.missing, lost), (sent, 0, 0));
}

#[test]
fn slow_subscriber_does_not_affect_others() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let good_sink = large_sink(&site, 0);
    let slow_sink = large_sink(&site, 1);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "64MiB")]);
    let mut good = Members::new(&site);
    let mut slow = Members::of_second_group(&site);
    good.start("default", 0, 1);
    slow.start("overloaded", 1, 1);
    good.wait_for_shares(&[64]);
    slow.wait_for_shares(&[64]);
    let load = Load::with(&site, FULL_LOAD);
    // The slow one runs for a thirtieth of the time, and is paused for longer than its queues last.
    for _ in 0..6 {
        for (signal, time) in [(Signal::STOP, 1_450), (Signal::CONT, 50)] {
            slow.members[0].process.signal(signal).unwrap();
            pause_for(Duration::from_millis(time));
        }
    }
    let memory = spine.get(PROXY).process.resident_bytes().unwrap();
    let sent = load.stop();
    settle(&good_sink, sent);
    settle_with_losses(&slow_sink, sent, || lost(&slow) + slow.sum("sekiwake_forward_dropped_datagrams_total"));
    let lost_by_good = lost(&good);
    let lost_by_slow = lost(&slow);
    let requests = slow.sum("sekiwake_group_repair_requests_total");
    let capture = spine.get(CAPTURE).metrics().unwrap();
    let ring = capture.count("sekiwake_capture_dropped_packets_total", &["reason=\"kernel\""]);
    let dropped_by_slow = slow.sum("sekiwake_forward_dropped_datagrams_total");
    good.stop();
    slow.stop();
    spine.stop().unwrap();
    let complete = completeness(good_sink, sent);
    let missing_by_slow = completeness(slow_sink, sent).missing;
    println!(
        "{sent} sent; the slow subscriber: {missing_by_slow} missing, {lost_by_slow} counted, {dropped_by_slow} dropped, \
         {requests} requests; the proxy: {} MiB",
        memory >> 20
    );
    assert_eq!((complete, lost_by_good, ring), (COMPLETE, 0, 0));
    assert_eq!(missing_by_slow, lost_by_slow + dropped_by_slow, "every loss of the slow subscriber is counted");
    // One request per stream at a time: at most one per round trip, with back-off.
    assert!((1..2_000).contains(&requests), "{requests} requests");
    assert!(memory < 400 << 20, "the proxy uses {memory} bytes");
}

/// Writes a savefile of `count` numbered syslog datagrams. Not with the testkit's builder, which
/// would keep all of it in memory.
fn write_savefile(path: &Path, count: u64) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    // pcap header: magic of nanoseconds, version 2.4, snapshot length, LINKTYPE_IPV4.
    out.write_all(&0xa1b2_3c4d_u32.to_le_bytes()).unwrap();
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    out.write_all(&262_144_u32.to_le_bytes()).unwrap();
    out.write_all(&228_u32.to_le_bytes()).unwrap();
    for number in 0..count {
        let source = u32::from(FIRST_DEVICE) + (number % 64) as u32;
        let payload = format!("<13>1 - host{} app - - - number {number:010} {}", number % 64, "x".repeat(140));
        let datagram =
            Datagram::new(&format!("{}:514", Ipv4Addr::from(source)), "203.0.113.7:514", payload.into_bytes());
        let packet = datagram.packet();
        // One millisecond apart.
        let at = number * 1_000_000;
        for field in [at / 1_000_000_000, at % 1_000_000_000, packet.len() as u64, packet.len() as u64] {
            out.write_all(&(field as u32).to_le_bytes()).unwrap();
        }
        out.write_all(&packet).unwrap();
    }
    out.flush().unwrap();
}

#[test]
fn savefile_larger_than_memory_is_forwarded_completely() {
    let Some(site) = site() else { return };
    const COUNT: u64 = 2_000_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pcap");
    write_savefile(&path, COUNT);
    let number = |payload: &[u8]| {
        let text = std::str::from_utf8(payload).ok()?;
        let sequence: u64 = text.split("number ").nth(1)?.get(..10)?.parse().ok()?;
        Some(Numbered { stream: sequence % 64, sequence: sequence / 64, step: 1 })
    };
    let options = Options { receive_buffer_bytes: 512 << 20, ..Default::default() };
    let sink = site.sink(&[at(collector(0), 514)], options.sequence(number));
    let proxy = Services::start(&site.host, &[PROXY], &[]).unwrap();
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let environment = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap()), ("SEKIWAKE_RETAIN", "64MiB")];
    let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
    let peak = Cell::new(0);
    let sample = || {
        peak.set(peak.get().max(capture.process.resident_bytes().unwrap_or(0)));
        false
    };
    let _ = wait_for("samples of its memory", Duration::from_secs(3), sample);
    let status = capture.process.wait(Duration::from_secs(200)).unwrap();
    let log = capture.process.stderr().join("\n");
    let _ = sink.wait_for(COUNT, LONG);
    let dropped = members.sum("sekiwake_forward_dropped_datagrams_total");
    members.stop();
    proxy.stop().unwrap();
    let report = sink.finish();
    println!("capture used {} MiB", peak.get() >> 20);
    assert!(status.success(), "{log}");
    assert_eq!(
        (report.received, report.sequence.missing, report.sequence.duplicates, dropped),
        (COUNT, 0, 0, 0),
        "{log}"
    );
    assert_eq!(report.dropped, Some(0));
    assert!(peak.get() < 200 << 20, "{} bytes", peak.get());
}
