//! Little memory, long outages, overload: what is lost is counted, and nobody else pays for it.

use super::*;

use std::{fs::File, io::BufWriter, io::Write, path::Path};

use sekiwake_testkit::process::Signal;
use sekiwake_tests::{FIRST_DEVICE, Services};

fn lost(members: &Members<'_>) -> u64 {
    members.sum("sekiwake_bus_lost_records_total")
}

#[test]
fn with_little_memory_and_a_long_outage_the_loss_is_counted_exactly_and_service_recovers() {
    let test = "with_little_memory_and_a_long_outage_the_loss_is_counted_exactly_and_service_recovers";
    let Some(site) = site(test) else { return };
    site.switch_ipv6_off_on_the_wire();
    let sink = patient_sink(&site, 0);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "16MiB")]);
    let mut members = Members::new(&site);
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(1));
    // A graceful end first, so that where the group stands is known to the record.
    members.members.remove(0).stop().unwrap();
    let before = sink.received();
    let back_at = Instant::now() + Duration::from_secs(5);
    wait_for("the end of the outage", LONG, || Instant::now() >= back_at).unwrap();
    members.start("default", 0, 1);
    members.wait_for_shares(&[64]);
    flow_for(&sink, Duration::from_secs(2));
    let sent = load.end();
    settle(&sink, sent);
    let (counted, said) = (lost(&members), members.said());
    let by_reason = members.members[0].metrics().unwrap().nonzero("sekiwake_bus_lost_records_total", &[]);
    members.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(sink, sent);
    println!("{sent} sent, {before} before the outage, {missing} missing, {by_reason:?}");
    assert!(missing > 50_000, "the memory was not little: {missing} missing");
    assert_eq!((missing, doubled), (counted, 0), "{said}");
    assert!(said.contains("records are lost for this group"), "{said}");
}

#[test]
fn a_mad_source_evicts_nothing_of_other_kinds() {
    let Some(site) = site("a_mad_source_evicts_nothing_of_other_kinds") else { return };
    site.switch_ipv6_off_on_the_wire();
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
    let _ = traps.wait_for(sent, PATIENCE);
    let lost = forwarder.metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
    let retained = spine.get(CAPTURE).metrics().unwrap().count("sekiwake_bus_retained_bytes", &["kind=\"syslog\""]);
    forwarder.stop().unwrap();
    spine.stop().unwrap();
    let report = traps.finish();
    assert!(retained <= 8 << 20, "{retained}");
    assert_eq!((report.received, report.sequence.missing, lost), (sent, 0, 0));
}

#[test]
fn a_subscriber_that_cannot_keep_up_harms_neither_the_other_nor_the_proxy_nor_capture() {
    let test = "a_subscriber_that_cannot_keep_up_harms_neither_the_other_nor_the_proxy_nor_capture";
    let Some(site) = site(test) else { return };
    site.switch_ipv6_off_on_the_wire();
    let (good_sink, bad_sink) = (patient_sink(&site, 0), patient_sink(&site, 1));
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "64MiB")]);
    let (mut good, mut bad) = (Members::new(&site), Members::new(&site));
    bad.started = 50;
    good.start("default", 0, 1);
    bad.start("overloaded", 1, 1);
    good.wait_for_shares(&[64]);
    bad.wait_for_shares(&[64]);
    let load = Load::start(&site);
    // It runs for a thirtieth of the time, and stands still for longer than its queues hold.
    for _ in 0..6 {
        for (signal, time) in [(Signal::STOP, 1_450), (Signal::CONT, 50)] {
            bad.members[0].process.signal(signal).unwrap();
            let until = Instant::now() + Duration::from_millis(time);
            wait_for("the next turn", LONG, || Instant::now() >= until).unwrap();
        }
    }
    let memory = spine.get(PROXY).process.resident_bytes().unwrap();
    let sent = load.end();
    settle(&good_sink, sent);
    settle(&bad_sink, sent);
    let (lost_by_good, lost_by_bad) = (lost(&good), lost(&bad));
    let requests = bad.sum("sekiwake_group_repair_requests_total");
    let capture = spine.get(CAPTURE).metrics().unwrap();
    let ring = capture.count("sekiwake_capture_dropped_packets_total", &["reason=\"kernel\""]);
    let dropped_by_bad = bad.sum("sekiwake_forward_dropped_datagrams_total");
    good.stop();
    bad.stop();
    spine.stop().unwrap();
    let (missing, doubled) = judge(good_sink, sent);
    let (missing_by_bad, _) = judge(bad_sink, sent);
    println!(
        "{sent} sent; the overloaded one: {missing_by_bad} missing, {lost_by_bad} counted, {dropped_by_bad} dropped, \
         {requests} requests; the proxy: {} MiB",
        memory >> 20
    );
    assert_eq!((missing, doubled, lost_by_good, ring), (0, 0, 0, 0));
    assert_eq!(missing_by_bad, lost_by_bad + dropped_by_bad, "what it could not take is counted");
    // One request a stream at a time: at most one for each round trip, and back-off between.
    assert!((1..2_000).contains(&requests), "{requests} requests");
    assert!(memory < 400 << 20, "the proxy holds {memory} bytes");
}

/// Writes a savefile of so many syslog datagrams, numbered as the sender numbers its own.
fn write_savefile(path: &Path, count: u64) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    // pcap: magic of nanoseconds, version 2.4, snapshot length, LINKTYPE_IPV4.
    out.write_all(&0xa1b2_3c4d_u32.to_le_bytes()).unwrap();
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    out.write_all(&262_144_u32.to_le_bytes()).unwrap();
    out.write_all(&228_u32.to_le_bytes()).unwrap();
    for number in 0..count {
        let source = u32::from(FIRST_DEVICE) + (number % 64) as u32;
        let payload = format!("<13>1 - host{} app - - - number {number:010} {}", number % 64, "x".repeat(140));
        let datagram = sekiwake_testkit::packets::Datagram::new(
            &format!("{}:514", std::net::Ipv4Addr::from(source)),
            "203.0.113.7:514",
            payload.into_bytes(),
        );
        let packet = datagram.packet();
        // A millisecond apart: in real time it would take half an hour and more.
        let at = number * 1_000_000;
        for field in [at / 1_000_000_000, at % 1_000_000_000, packet.len() as u64, packet.len() as u64] {
            out.write_all(&(field as u32).to_le_bytes()).unwrap();
        }
        out.write_all(&packet).unwrap();
    }
    out.flush().unwrap();
}

#[test]
fn a_savefile_larger_than_all_memory_is_forwarded_completely_and_faster_than_real_time() {
    let test = "a_savefile_larger_than_all_memory_is_forwarded_completely_and_faster_than_real_time";
    let Some(site) = site(test) else { return };
    const COUNT: u64 = 2_000_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pcap");
    write_savefile(&path, COUNT);
    let number = |payload: &[u8]| {
        let text = std::str::from_utf8(payload).ok()?;
        let sequence: u64 = text.split("number ").nth(1)?.get(..10)?.parse().ok()?;
        Some(sekiwake_testkit::sink::Numbered { stream: sequence % 64, sequence: sequence / 64, step: 1 })
    };
    let options = sekiwake_testkit::sink::Options { receive_buffer_bytes: 512 << 20, ..Default::default() };
    let sink = site.sink(&[at(collector(0), 514)], options.sequence(number));
    let proxy = Services::start(&site.host, &[PROXY], &[]).unwrap();
    let mut members = Members::new(&site);
    members.start("default", 0, 2);
    members.wait_for_shares(&[32, 32]);
    let started = Instant::now();
    let environment = [("SEKIWAKE_CAPTURE_FILE", path.to_str().unwrap()), ("SEKIWAKE_RETAIN", "64MiB")];
    let mut capture = Service::start(&site.host, CAPTURE, &environment).unwrap();
    let peak = std::cell::Cell::new(0);
    let ended = || {
        peak.set(peak.get().max(capture.process.resident_bytes().unwrap_or(0)));
        false
    };
    let _ = wait_for("a look at its memory", Duration::from_secs(3), ended);
    let status = capture.process.wait(Duration::from_secs(100)).unwrap();
    let took = started.elapsed();
    let said = capture.process.stderr().join("\n");
    let _ = sink.wait_for(COUNT, LONG);
    let dropped = members.sum("sekiwake_forward_dropped_datagrams_total");
    members.stop();
    proxy.stop().unwrap();
    let report = sink.finish();
    println!("{COUNT} datagrams in {took:?}, capture at {} MiB", peak.get() >> 20);
    assert!(status.success(), "{said}");
    assert_eq!(
        (report.received, report.sequence.missing, report.sequence.doubled, dropped),
        (COUNT, 0, 0, 0),
        "{said}"
    );
    assert_eq!(report.dropped, Some(0));
    assert!(took < Duration::from_secs(COUNT / 1_000 / 10), "{took:?}");
    assert!(peak.get() < 200 << 20, "{} bytes", peak.get());
}
