//! Spoofing through the whole pipeline: the devices' addresses and ports at the collector, without
//! loops and without second answers.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::Duration};

use sekiwake_testkit::{
    process::Process,
    sink::{Datagram, Options, Report, Sink},
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
    // Every eighth device sends from the port of its protocol, as many devices do.
    let port = if number.is_multiple_of(8) { 514 } else { 10_000 + 501 * number };
    at(std::net::Ipv4Addr::from(u32::from(FIRST_DEVICE) + u32::from(number)), port)
}

fn v6(number: u16) -> SocketAddr {
    let port = if number.is_multiple_of(8) { 162 } else { 20_000 + 503 * number };
    at(std::net::Ipv6Addr::from(u128::from(FIRST_DEVICE_V6) + u128::from(number)), port)
}

/// Per IP version, one destination with spoofing and one without.
fn destinations(options: &str) -> String {
    let [first, second] = [0, 1].map(collector);
    let [first_v6, second_v6] = [0, 1].map(collector_v6);
    format!(
        "udp://{first}:514?spoof=true{options} udp://{second}:514 \
         udp://[{first_v6}]:514?spoof=true{options} udp://[{second_v6}]:514"
    )
}

/// Sinks for these destinations, in their order.
fn sinks(site: &TestSite, options: &Options) -> [Sink; 4] {
    let addresses = [at(collector(0), 514), at(collector(1), 514), at(collector_v6(0), 514), at(collector_v6(1), 514)];
    addresses.map(|address| site.sink(&[address], options.clone()))
}

/// The payloads of each source, in order of arrival.
fn by_source(report: &Report) -> BTreeMap<SocketAddr, Vec<&[u8]>> {
    let mut found: BTreeMap<SocketAddr, Vec<&[u8]>> = BTreeMap::new();
    for Datagram { source, payload, .. } in &report.payloads {
        found.entry(*source).or_default().push(payload);
    }
    found
}

#[test]
fn spoofing_destinations_see_device_addresses_others_do_not() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
    let sinks = sinks(&site, &Options::counts().payloads());
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations(""))]);
    let mut sent: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
    for number in 0..DEVICES {
        for (device, to) in [(v4(number), at(MIRRORED, 514)), (v6(number), at(MIRRORED_V6, 514))] {
            // Runs of equal size and single sizes, which are sent differently.
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
        // The comparison reports missing datagrams.
        let _ = sink.wait_for(count, LONG);
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    let reports = sinks.map(|sink| sink.finish());
    assert_eq!(ledger.losses(), Vec::<String>::new());
    for (report, is_v6, spoofed) in
        [(&reports[0], false, true), (&reports[1], false, false), (&reports[2], true, true), (&reports[3], true, false)]
    {
        assert_eq!((report.received, report.dropped), (count, Some(0)));
        let found = by_source(report);
        // Devices of the other IP version cannot be spoofed.
        let mut kept = 0;
        let mut others = Vec::new();
        for (device, payloads) in &sent {
            if spoofed && device.is_ipv6() == is_v6 {
                assert!(
                    found.get(device).is_some_and(|received| received == payloads),
                    "payloads from {device} differ"
                );
                kept += 1;
            } else {
                others.extend(payloads.iter().cloned());
            }
        }
        assert_eq!(kept, if spoofed { DEVICES } else { 0 });
        let forwarder = if is_v6 { "2001:db8:51::1" } else { "198.51.100.1" };
        let from_forwarder = report.payloads.iter().filter(|datagram| !sent.contains_key(&datagram.source));
        let from_forwarder: Vec<&Datagram> = from_forwarder.collect();
        assert!(from_forwarder.iter().all(|datagram| datagram.source.ip().to_string() == forwarder));
        assert_same_set(forwarder, from_forwarder.iter().map(|datagram| datagram.payload.clone()).collect(), others);
    }
    let fallbacks = ledger.forwarders[0].count("sekiwake_forward_spoof_fallbacks_total", &["reason=\"family\""]);
    assert_eq!(fallbacks, count, "half of them at each spoofing destination");
    assert_eq!(ledger.forwarders[0].count("sekiwake_forward_spoof_fallbacks_total", &[]), count);
}

#[test]
fn datagrams_arrive_once_when_both_interfaces_are_captured() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
    let sinks = sinks(&site, &numbered());
    let both = format!("{WIRE},out0");
    let settings = [("SEKIWAKE_SYSLOG_DESTINATIONS", &*destinations("")), ("SEKIWAKE_CAPTURE_INTERFACES", &both)];
    let services = site.start(&SYSLOG_PATH, &settings);
    // Long enough for a loop to show, with fragments too.
    let load = "--sources 16 --size 100-3000 --rate 1000 --count 3000";
    let mut sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 {load}"));
    sent += site.send(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 {load}"));
    for sink in &sinks {
        let _ = sink.wait_for(sent, LONG);
        sink.wait_for_silence(Duration::from_secs(1), LONG).unwrap();
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for sink in sinks {
        let report = sink.finish();
        assert_eq!(report.received, sent, "{:?}", ledger.losses());
    }
    let capture = &ledger.capture;
    assert_eq!(capture.count("sekiwake_capture_claimed_datagrams_total", &[]), sent);
    // Capture saw the forwarded datagrams, except that a GSO run crosses the link as one frame.
    let own = capture.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"own_destination\""]);
    assert!(own > sent, "{own} own datagrams of {sent} forwarded to four");
}

/// One BER element (X.690 §8.1) with a length in the long form from 128 bytes on.
fn ber(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let head = if length < 128 { vec![tag, length as u8] } else { vec![tag, 0x82, (length >> 8) as u8, length as u8] };
    [head, contents.to_vec()].concat()
}

/// A notification PDU (RFC 3416 §3): request id, no error, sysUpTime.0, snmpTrapOID.0 = linkUp,
/// sysName.0.
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

/// A message of version 3 without security (RFC 3412 §6): `flags` has the reportable bit, 4, in
/// informs.
fn v3(tag: u8, flags: u8, request: u8, text: &[u8]) -> Vec<u8> {
    let engine = [0x80, 0, 0x7e, 0xd9, 5, 1, 2, 3];
    let header = [ber(2, &[request]), ber(2, &[0x40, 0]), ber(4, &[flags]), ber(2, &[3])].concat();
    let security = [ber(4, &engine), ber(2, &[1]), ber(2, &[1]), ber(4, b"nobody"), ber(4, b""), ber(4, b"")].concat();
    let scoped = [ber(4, &engine), ber(4, b""), pdu(tag, request, text)].concat();
    // A receiver cannot decrypt it, and the forwarder does not try.
    let scoped = if flags & ENCRYPTED != 0 { ber(4, &scoped) } else { ber(0x30, &scoped) };
    let parts = [ber(2, &[3]), ber(0x30, &header), ber(4, &ber(0x30, &security)), scoped];
    ber(0x30, &parts.concat())
}

/// privFlag in msgFlags (RFC 3412 §6).
const ENCRYPTED: u8 = 2;

#[test]
fn v3_traps_are_spoofed_by_their_pdu() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
    let sinks = [0, 1].map(|number| site.sink(&[at(collector(number), 162)], Options::counts().payloads()));
    let to = format!("udp://{}:162?spoof=true udp://{}:162?spoof=true&snmpv3=trap", collector(0), collector(1));
    let services = site.start(&[CAPTURE, PROXY, TRAP], &[("SEKIWAKE_TRAP_DESTINATIONS", &to)]);
    // The flag "reportable" is wrong in a trap, and some agents set it.
    let messages = [
        (TRAP2, 0, [true, true]),
        (TRAP2, 4, [true, true]),
        (TRAP2, 5, [true, true]),
        (TRAP2, 3, [true, true]),
        (INFORM, 0, [false, false]),
        (INFORM, 4, [false, false]),
        (TRAP2, 7, [false, true]),
        (INFORM, 7, [false, true]),
    ];
    for (number, (tag, flags, _)) in (1..).zip(messages) {
        site.send_payloads(v4(number), at(MIRRORED, 162), &[v3(tag, flags, number as u8, b"text")]);
    }
    for sink in &sinks {
        let _ = sink.wait_for(messages.len() as u64, LONG);
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    assert_eq!(ledger.losses(), Vec::<String>::new());
    for (index, sink) in sinks.into_iter().enumerate() {
        let report = sink.finish();
        let found = by_source(&report);
        for (number, (tag, flags, is_spoofed)) in (1..).zip(messages) {
            assert_eq!(found.contains_key(&v4(number)), is_spoofed[index], "{index}: {tag:x} with flags {flags}");
        }
        assert_eq!(found.values().map(Vec::len).sum::<usize>(), messages.len());
    }
}

#[test]
fn informs_arrive_without_a_second_answer_to_the_device() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
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
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    let [spoofed, plain] = sinks.map(|sink| sink.finish());
    assert_eq!(ledger.losses(), Vec::<String>::new());
    // Informs of version 2c become traps with the same content. Version 3 is authenticated, and so
    // unmodified.
    let expected = [&traps, &traps, &informs_v3, &traps_v3];
    assert_same_set("plain", in_order(plain), expected.iter().copied().flatten().cloned().collect());
    let found = by_source(&spoofed);
    for (number, payloads) in (1..).zip(expected).filter(|(number, _)| *number != 3) {
        assert!(
            found.get(&v4(number)).is_some_and(|received| received == payloads),
            "payloads of device {number} differ; sources {:?}",
            found.keys()
        );
    }
    // Informs that a collector answers have the forwarder's address, so that the answer does not
    // reach the device.
    assert_eq!(found.get(&v4(3)), None);
    let not_spoofed: Vec<_> = found.iter().filter(|(source, _)| source.ip().to_string() == "198.51.100.1").collect();
    assert_eq!(not_spoofed.len(), 1);
    assert_eq!(not_spoofed[0].1, &informs_v3);
    let fallbacks = ledger.forwarders[2].count("sekiwake_forward_spoof_fallbacks_total", &["reason=\"inform\""]);
    assert_eq!(fallbacks, 3);
}

#[test]
fn forwarder_without_net_raw_exits_with_status_1() {
    let Some(site) = site() else { return };
    let start = |destination: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]).arg(binary(SYSLOG));
        command.env("SEKIWAKE_SYSLOG_DESTINATIONS", destination).env("SEKIWAKE_ADMIN", "127.0.0.1:0");
        Process::spawn(site.host.exec(&command)).unwrap()
    };
    let mut rejected = start("udp://198.51.100.11:514 udp://198.51.100.12:514?spoof=true");
    let status = rejected.wait(LONG).unwrap();
    let log = rejected.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("CAP_NET_RAW") && log.contains("spoof=true"), "{log}");
    // Without spoofing no privilege is required.
    let mut runs = start("udp://198.51.100.11:514");
    runs.wait_for_line(LONG, |line| line.contains("admin")).unwrap();
    assert!(runs.is_running().unwrap());
    assert!(runs.stop(LONG).unwrap().success(), "{}", runs.stderr().join("\n"));
}

/// Class selector 1 (RFC 2474 §4.2.2), and expedited forwarding (RFC 3246).
const DSCPS: [u8; 2] = [8, 46];

#[test]
fn dscp_is_copied_where_configured() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
    let mut tcpdump = program("tcpdump").unwrap();
    // Only headers: its buffer would hold only eight whole frames.
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
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &uris.join(" "))]);
    let each = 8;
    for (number, dscp) in (1..).zip(DSCPS) {
        for (device, to) in [(v4(number), at(MIRRORED, 514)), (v6(number), at(MIRRORED_V6, 514))] {
            let socket = site.devices.udp_socket(device).unwrap();
            let tos = u32::from(dscp) << 2;
            match device {
                SocketAddr::V4(_) => SockRef::from(&socket).set_tos_v4(tos).unwrap(),
                SocketAddr::V6(_) => SockRef::from(&socket).set_tclass_v6(tos).unwrap(),
            }
            // Sizes that are sent as one GSO message, and others.
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
    let ledger = balanced_ledger(&services);
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
    // tcpdump prints with a delay.
    let seen = wait_for("the DSCPs in tcpdump's output", LONG, is_seen);
    wire.terminate().unwrap();
    wire.wait(LONG).unwrap();
    let lines = wire.stdout();
    let found: Vec<_> = places.iter().flatten().map(|to| (to, dscps(&lines, *to))).collect();
    seen.unwrap_or_else(|late| panic!("{late}: {found:#?} {}", wire.stderr().join("; ")));
    // And no other DSCPs.
    for (place, options) in places.iter().zip(options) {
        for to in place {
            let seen: Vec<u8> = dscps(&lines, *to).into_keys().collect();
            assert_eq!(seen, wanted(options), "{to}{options}: {found:#?}");
        }
    }
}

/// The number of packets to this address in tcpdump's output, by DSCP.
fn dscps(lines: &[String], to: SocketAddr) -> BTreeMap<u8, usize> {
    let to = format!(" > {}.{}:", to.ip(), to.port());
    let mut found = BTreeMap::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(&to)) {
        // For IPv4 the header is on the line before.
        let header = if line.contains("IP6 (") { line } else { &lines[index - 1] };
        let octet = ["tos 0x", "class 0x"].iter().find_map(|name| {
            let (_, rest) = header.split_once(name)?;
            u8::from_str_radix(rest.get(..2)?, 16).ok()
        });
        // tcpdump omits a class of 0.
        *found.entry(octet.unwrap_or(0) >> 2).or_default() += 1;
    }
    found
}
