//! The devices' addresses and ports at the collector, through the whole pipeline; and what must not come of it.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use sekiwake_testkit::{
    process::Process,
    sink::{Datagram, Options, Report},
    wait::wait_for,
};
use sekiwake_tests::{
    FIRST_DEVICE, FIRST_DEVICE_V6, MIRRORED, MIRRORED_V6, WIRE, binary, collector, collector_v6, collectors::program,
};
use socket2::SockRef;

use super::*;

/// Devices of each IP version.
const DEVICES: u16 = 64;

fn v4(number: u16) -> SocketAddr {
    // Every eighth one sends from the port of its protocol, as many devices do.
    let port = if number.is_multiple_of(8) { 514 } else { 10_000 + 501 * number };
    at(std::net::Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::from(number)), port)
}

fn v6(number: u16) -> SocketAddr {
    let port = if number.is_multiple_of(8) { 162 } else { 20_000 + 503 * number };
    at(std::net::Ipv6Addr::from(u128::from(FIRST_DEVICE_V6) + u128::from(number)), port)
}

/// The destinations of most tests here: each of a pair of one IP version spoofed and not.
fn destinations(options: &str) -> String {
    let [first, second] = [0, 1].map(collector);
    let [first_v6, second_v6] = [0, 1].map(collector_v6);
    format!(
        "udp://{first}:514?spoof=true{options} udp://{second}:514 \
         udp://[{first_v6}]:514?spoof=true{options} udp://[{second_v6}]:514"
    )
}

/// Sinks for them, in their order.
fn sinks(site: &TestSite, options: &Options) -> [sekiwake_testkit::sink::Sink; 4] {
    let addresses = [at(collector(0), 514), at(collector(1), 514), at(collector_v6(0), 514), at(collector_v6(1), 514)];
    addresses.map(|address| site.sink(&[address], options.clone()))
}

/// Who sent what, in the order of each source, as it came.
fn by_source(report: &Report) -> BTreeMap<SocketAddr, Vec<&[u8]>> {
    let mut found: BTreeMap<SocketAddr, Vec<&[u8]>> = BTreeMap::new();
    for Datagram { source, payload, .. } in &report.payloads {
        found.entry(*source).or_default().push(payload);
    }
    found
}

#[test]
fn addresses_and_ports_of_devices_arrive_where_that_is_asked_for_and_the_forwarders_elsewhere() {
    let test = "addresses_and_ports_of_devices_arrive_where_that_is_asked_for_and_the_forwarders_elsewhere";
    let Some(site) = site(test) else { return };
    let_foreign_sources_in(&site);
    let sinks = sinks(&site, &Options::counts().payloads());
    let services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations(""))]);
    let mut sent: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
    for number in 0..DEVICES {
        for (device, to) in [(v4(number), at(MIRRORED, 514)), (v6(number), at(MIRRORED_V6, 514))] {
            // Runs of one size and single ones: they leave on different ways.
            let sizes = [300, 300, 300, 300, 300, 1, 1_400, 2_000 + usize::from(number)];
            let seed = |index: usize| u64::from(device.port()) << 8 | index as u64;
            let payloads: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(index, size)| noise(seed(index), *size)).collect();
            site.send_payloads(device, to, &payloads);
            sent.insert(device, payloads);
        }
    }
    for (device, to) in [(v4(1), at(MIRRORED, 514)), (v6(1), at(MIRRORED_V6, 514))] {
        let large = [noise(1, 65_000), noise(2, 65_000)];
        site.send_payloads(device, to, &large);
        sent.get_mut(&device).unwrap().extend(large);
    }
    let count: u64 = sent.values().map(|payloads| payloads.len() as u64).sum();
    for sink in &sinks {
        // What is missing shows in the comparison.
        let _ = sink.wait_for(count, LONG);
    }
    let ledger = closed_books(&services);
    services.stop().unwrap();
    let reports = sinks.map(|sink| sink.finish());
    assert_eq!(ledger.losses(), Vec::<String>::new());
    for (report, is_v6, spoofed) in
        [(&reports[0], false, true), (&reports[1], false, false), (&reports[2], true, true), (&reports[3], true, false)]
    {
        assert_eq!((report.received, report.dropped), (count, Some(0)));
        let found = by_source(report);
        // A device of the other IP version cannot be spoofed.
        let (mut kept, mut others) = (0, Vec::new());
        for (device, payloads) in &sent {
            if spoofed && device.is_ipv6() == is_v6 {
                assert!(found.get(device).is_some_and(|came| came == payloads), "of {device} comes something else");
                kept += 1;
            } else {
                others.extend(payloads.iter().cloned());
            }
        }
        assert_eq!(kept, if spoofed { DEVICES } else { 0 });
        let own = if is_v6 { "2001:db8:51::1" } else { "198.51.100.1" };
        let from_us = report.payloads.iter().filter(|datagram| !sent.contains_key(&datagram.source));
        let from_us: Vec<&Datagram> = from_us.collect();
        assert!(from_us.iter().all(|datagram| datagram.source.ip().to_string() == own));
        assert_same_set(own, from_us.iter().map(|datagram| datagram.payload.clone()).collect(), others);
    }
    let fallbacks = ledger.forwarders[0].count("sekiwake_forward_spoof_fallbacks_total", &["reason=\"family\""]);
    assert_eq!(fallbacks, count, "half at each of the two that are spoofed");
    assert_eq!(ledger.forwarders[0].count("sekiwake_forward_spoof_fallbacks_total", &[]), count);
}

#[test]
fn what_is_forwarded_past_a_capture_of_both_interfaces_arrives_once() {
    let Some(site) = site("what_is_forwarded_past_a_capture_of_both_interfaces_arrives_once") else { return };
    let_foreign_sources_in(&site);
    let sinks = sinks(&site, &numbered());
    let both = format!("{WIRE},out0");
    let settings = [("SEKIWAKE_SYSLOG_DESTINATIONS", &*destinations("")), ("SEKIWAKE_CAPTURE_INTERFACES", &both)];
    let services = site.start(&SYSLOG_WAY, &settings);
    // Long enough for what goes round to come round, and in fragments too.
    let load = "--sources 16 --size 100-3000 --rate 1000 --count 3000";
    let mut sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 {load}"));
    sent += site.send(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 {load}"));
    for sink in &sinks {
        let _ = sink.wait_for(sent, LONG);
        sink.wait_for_silence(Duration::from_secs(1), LONG).unwrap();
    }
    let ledger = closed_books(&services);
    services.stop().unwrap();
    for sink in sinks {
        let report = sink.finish();
        assert_eq!(report.received, sent, "{:?}", ledger.losses());
    }
    let capture = &ledger.capture;
    assert_eq!(capture.count("sekiwake_capture_claimed_datagrams_total", &[]), sent);
    // It was there to be captured: what the four were sent, but for runs that crossed the link as one frame.
    let own = capture.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"own_destination\""]);
    assert!(own > sent, "{own} of {sent} forwarded to four");
}

/// One BER element (X.690 §8.1) with a length in the long form where it takes one.
fn ber(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let head = if length < 128 { vec![tag, length as u8] } else { vec![tag, 0x82, (length >> 8) as u8, length as u8] };
    [head, contents.to_vec()].concat()
}

/// A notification PDU (RFC 3416 §3): request id, no error, sysUpTime.0, snmpTrapOID.0 = linkUp, sysName.0.
fn pdu(tag: u8, request: u8, text: &[u8]) -> Vec<u8> {
    let binding = |object: &[u8], value: Vec<u8>| ber(0x30, &[ber(6, object), value].concat());
    let bindings = [
        binding(&[0x2b, 6, 1, 2, 1, 1, 3, 0], ber(0x43, &[1])),
        binding(&[0x2b, 6, 1, 6, 3, 1, 1, 4, 1, 0], ber(6, &[0x2b, 6, 1, 6, 3, 1, 1, 5, 4])),
        binding(&[0x2b, 6, 1, 2, 1, 1, 5, 0], ber(4, text)),
    ];
    ber(tag, &[ber(2, &[request]), ber(2, &[0]), ber(2, &[0]), ber(0x30, &bindings.concat())].concat())
}

const INFORM: u8 = 0xa6;
const TRAP2: u8 = 0xa7;

/// A community message of version 2c (RFC 1901 §3).
fn v2c(tag: u8, request: u8, text: &[u8]) -> Vec<u8> {
    ber(0x30, &[ber(2, &[1]), ber(4, b"public"), pdu(tag, request, text)].concat())
}

/// A message of version 3 without security (RFC 3412 §6): `flags` has the reportable bit, 4, in informs.
fn v3(tag: u8, flags: u8, request: u8, text: &[u8]) -> Vec<u8> {
    let engine = [0x80, 0, 0x7e, 0xd9, 5, 1, 2, 3];
    let header = [ber(2, &[request]), ber(2, &[0x40, 0]), ber(4, &[flags]), ber(2, &[3])].concat();
    let security = [ber(4, &engine), ber(2, &[1]), ber(2, &[1]), ber(4, b"nobody"), ber(4, b""), ber(4, b"")].concat();
    let scoped = [ber(4, &engine), ber(4, b""), pdu(tag, request, text)].concat();
    let parts = [ber(2, &[3]), ber(0x30, &header), ber(4, &ber(0x30, &security)), ber(0x30, &scoped)];
    ber(0x30, &parts.concat())
}

#[test]
fn informs_arrive_so_that_nobody_answers_the_device() {
    let Some(site) = site("informs_arrive_so_that_nobody_answers_the_device") else { return };
    let_foreign_sources_in(&site);
    let sinks = [0, 1].map(|number| site.sink(&[at(collector(number), 162)], Options::counts().payloads()));
    let to = format!("udp://{}:162?spoof=true udp://{}:162", collector(0), collector(1));
    let services = site.start(&[CAPTURE, PROXY, TRAP], &[("SEKIWAKE_TRAP_DESTINATIONS", &to)]);
    let texts = [noise(1, 20), noise(2, 300), noise(3, 1_600)];
    let numbered = || (1..).zip(&texts);
    let informs: Vec<Vec<u8>> = numbered().map(|(number, text)| v2c(INFORM, number, text)).collect();
    let traps: Vec<Vec<u8>> = numbered().map(|(number, text)| v2c(TRAP2, number, text)).collect();
    let informs_v3: Vec<Vec<u8>> = numbered().map(|(number, text)| v3(INFORM, 4, number, text)).collect();
    let traps_v3: Vec<Vec<u8>> = numbered().map(|(number, text)| v3(TRAP2, 0, number, text)).collect();
    for (number, payloads) in (1..).zip([&informs, &traps, &informs_v3, &traps_v3]) {
        site.send_payloads(v4(number), at(MIRRORED, 162), payloads);
    }
    for sink in &sinks {
        let _ = sink.wait_for(12, LONG);
    }
    let ledger = closed_books(&services);
    services.stop().unwrap();
    let [spoofed, plain] = sinks.map(|sink| sink.finish());
    assert_eq!(ledger.losses(), Vec::<String>::new());
    // The informs of version 2c are traps of the same content; of version 3, which is signed, nothing is changed.
    let expected = [&traps, &traps, &informs_v3, &traps_v3];
    assert_same_set("plain", in_order(plain), expected.iter().copied().flatten().cloned().collect());
    let found = by_source(&spoofed);
    for (number, payloads) in (1..).zip(expected).filter(|(number, _)| *number != 3) {
        assert!(
            found.get(&v4(number)).is_some_and(|came| came == payloads),
            "of device {number} comes something else; from {:?}",
            found.keys()
        );
    }
    // What a collector would answer all the same has our address, for the device not to hear it.
    assert_eq!(found.get(&v4(3)), None);
    let ours: Vec<_> = found.iter().filter(|(source, _)| source.ip().to_string() == "198.51.100.1").collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].1, &informs_v3);
    let fallbacks = ledger.forwarders[2].count("sekiwake_forward_spoof_fallbacks_total", &["reason=\"inform\""]);
    assert_eq!(fallbacks, 3);
}

#[test]
fn a_forwarder_that_may_not_spoof_says_so_and_ends_with_status_1() {
    let Some(_site) = site("a_forwarder_that_may_not_spoof_says_so_and_ends_with_status_1") else { return };
    let start = |destination: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]).arg(binary(SYSLOG));
        command.env("SEKIWAKE_SYSLOG_DESTINATIONS", destination).env("SEKIWAKE_ADMIN", "127.0.0.1:0");
        Process::spawn(_site.host.exec(&command)).unwrap()
    };
    let mut refused = start("udp://198.51.100.11:514 udp://198.51.100.12:514?spoof=true");
    let status = refused.wait(LONG).unwrap();
    let said = refused.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_NET_RAW") && said.contains("spoof=true"), "{said}");
    // It is the spoofing that takes the privilege.
    let mut runs = start("udp://198.51.100.11:514");
    runs.wait_for_line(LONG, |line| line.contains("admin")).unwrap();
    assert!(runs.is_running().unwrap());
    assert!(runs.stop(LONG).unwrap().success(), "{}", runs.stderr().join("\n"));
}

/// Class selector 1 (RFC 2474 §4.2.2), and expedited forwarding (RFC 3246).
const DSCPS: [u8; 2] = [8, 46];

#[test]
fn the_dscp_is_copied_where_that_is_asked_for() {
    let Some(site) = site("the_dscp_is_copied_where_that_is_asked_for") else { return };
    let_foreign_sources_in(&site);
    let mut tcpdump = program("tcpdump").unwrap();
    // The headers are enough; of whole frames its buffer holds eight.
    tcpdump.args(["-s", "256", "-B", "16384"]);
    tcpdump.args(["-n", "-v", "-l", "--immediate-mode", "-i", "in0", "udp", "dst", "port", "514"]);
    let mut wire = Process::spawn(site.collectors.exec(&tcpdump)).unwrap();
    wire.wait_for_line(LONG, |line| line.contains("listening on")).unwrap();
    let options = ["?dscp=copy", "?dscp=copy&spoof=true", "?dscp=10", ""];
    let places: Vec<[SocketAddr; 2]> =
        (0..4).map(|number| [at(collector(number), 514), at(collector_v6(number), 514)]).collect();
    let uris = places.iter().zip(options).flat_map(|(place, options)| place.map(|to| format!("udp://{to}{options}")));
    let uris: Vec<String> = uris.collect();
    let sinks: Vec<_> = places.iter().map(|place| site.sink(place, Options::counts())).collect();
    let services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &uris.join(" "))]);
    let each = 8;
    for (number, dscp) in (1..).zip(DSCPS) {
        for (device, to) in [(v4(number), at(MIRRORED, 514)), (v6(number), at(MIRRORED_V6, 514))] {
            let socket = site.devices.udp_socket(device).unwrap();
            let tos = u32::from(dscp) << 2;
            match device {
                SocketAddr::V4(_) => SockRef::from(&socket).set_tos_v4(tos).unwrap(),
                SocketAddr::V6(_) => SockRef::from(&socket).set_tclass_v6(tos).unwrap(),
            }
            // Of sizes that are sent as one message, and others.
            for index in 0..each {
                let payload = noise(u64::from(dscp) << 8 | index, 100 + 10 * (index as usize / 4));
                socket.send_to(&payload, to).unwrap();
            }
        }
    }
    let sent = 2 * 2 * each;
    for sink in &sinks {
        sink.wait_for(2 * sent, LONG).unwrap();
    }
    let ledger = closed_books(&services);
    services.stop().unwrap();
    assert_eq!(ledger.losses(), Vec::<String>::new());
    let wanted = |options: &str| match options {
        "?dscp=10" => vec![10],
        "" => vec![0],
        _ => DSCPS.to_vec(),
    };
    let is_seen = || {
        let lines = wire.stdout();
        places.iter().zip(options).all(|(place, options)| {
            place.iter().all(|to| dscps(&lines, *to).into_keys().collect::<Vec<_>>() == wanted(options))
        })
    };
    // tcpdump is a little behind.
    let seen = wait_for("the DSCPs to be seen", LONG, is_seen);
    wire.terminate().unwrap();
    wire.wait(LONG).unwrap();
    let lines = wire.stdout();
    let found: Vec<_> = places.iter().flatten().map(|to| (to, dscps(&lines, *to))).collect();
    seen.unwrap_or_else(|late| panic!("{late}: {found:#?} {}", wire.stderr().join("; ")));
    // And no other one.
    for (place, options) in places.iter().zip(options) {
        for to in place {
            let seen: Vec<u8> = dscps(&lines, *to).into_keys().collect();
            assert_eq!(seen, wanted(options), "{to}{options}: {found:#?}");
        }
    }
}

/// How many packets tcpdump has printed of each DSCP, of those to this address.
fn dscps(lines: &[String], to: SocketAddr) -> BTreeMap<u8, usize> {
    let to = format!(" > {}.{}:", to.ip(), to.port());
    let mut found = BTreeMap::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(&to)) {
        // Of IPv4 the header stands in a line of its own before.
        let header = if line.contains("IP6 (") { line } else { &lines[index - 1] };
        let octet = ["tos 0x", "class 0x"].iter().find_map(|name| {
            let (_, rest) = header.split_once(name)?;
            u8::from_str_radix(rest.get(..2)?, 16).ok()
        });
        // tcpdump is silent about a class of 0.
        *found.entry(octet.unwrap_or(0) >> 2).or_default() += 1;
    }
    found
}
