//! Payloads of any kind arrive unmodified, in the device's order.

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{FIRST_DEVICE, FIRST_DEVICE_V6, MIRRORED, MIRRORED_V6, collector};

use crate::support::*;

/// Payloads that parsers, templates or line endings could modify.
pub(crate) fn awkward() -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = [
        &b"no PRI at all"[..],
        b"<999>priority out of range",
        b"<13>",
        b"<",
        b"<13>1 - - - - - -",
        b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured",
        b"<34>1 2026-01-02T03:04:05.000Z host app 1 - - \xef\xbb\xbfbyte order mark",
        b"\xef\xbb\xbf<13>byte order mark first",
        b"<13>NUL \0 in the middle and at the end\0\0",
        b"\0",
        b"<13>invalid \xff\xfe\xc3\x28 UTF-8",
        b"<13>two\nlines\r\nand a trailing feed\n",
        b"\n",
        b" ",
        b"{\"json\": [1, 2.50, \"\\u00e9\"], \"json\": null}",
        b"12 <13>octet counting is for TCP",
        b"<13>percent %s%n$@#(&*",
        b"",
        b"x",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    payloads.push((0..=255).collect());
    payloads.extend((0..=255).map(|byte| vec![byte]));
    payloads.extend([2, 3, 7, 63, 1_023, 1_471, 1_472, 1_473, 2_960, 9_001].map(|length| noise(length as u64, length)));
    payloads.push(Vec::new());
    payloads
}

/// Flow packets: complete, truncated, and with trailing bytes.
fn flows() -> Vec<Vec<u8>> {
    let v5_header = [0, 5, 0, 1, 0, 0, 0, 1, 0x65, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0];
    let v5 = [&v5_header[..], &[7; 48]].concat();
    let v9 = [&[0, 9, 0, 1][..], &[1; 16], &[1, 0, 0, 8], &[9; 4]].concat();
    let ipfix = [&[0, 10, 0, 24][..], &[1; 12], &[1, 0, 0, 8], &[9; 4]].concat();
    let sflow = [&[0, 0, 0, 5, 0, 0, 0, 1, 198, 19, 0, 1][..], &[0; 16]].concat();
    let mut payloads = Vec::new();
    for packet in [v5, v9, ipfix, sflow] {
        payloads.push([&packet[..], b"trailing bytes\0\xff"].concat());
        payloads.push(packet[..packet.len() / 2].to_vec());
        payloads.push(packet);
    }
    payloads.extend([Vec::new(), b"<13>syslog on a flow port".to_vec(), noise(5, 20_000)]);
    payloads
}

#[test]
fn payloads_arrive_unmodified_and_in_order() {
    arrive_unmodified_and_in_order(Bus::ZeroMq);
}

#[test]
fn payloads_arrive_unmodified_and_in_order_on_jetstream() {
    arrive_unmodified_and_in_order(Bus::JetStream);
}

fn arrive_unmodified_and_in_order(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let sink = site.sink(&[at(collector(0), 514)], Options::counts().payloads());
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let payloads = awkward();
    site.send_payloads(at(FIRST_DEVICE, 5140), at(MIRRORED, 514), &payloads);
    let _ = sink.wait_for(payloads.len() as u64, LONG);
    site.send_payloads(at(FIRST_DEVICE_V6, 5140), at(MIRRORED_V6, 514), &payloads);
    let _ = sink.wait_for(payloads.len() as u64 * 2, LONG);
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    assert_same(&format!("{:?}", ledger.losses()), &in_order(sink.finish()), &[payloads.clone(), payloads].concat());
}

/// Traffic of one kind.
struct KindTraffic {
    /// The variable of its destinations.
    variable: &'static str,
    ports: &'static [u16],
    /// Sent to each port.
    payloads: Vec<Vec<u8>>,
}

#[test]
fn kind_follows_the_port_not_the_payload() {
    follows_the_port(Bus::ZeroMq);
}

#[test]
fn kind_follows_the_port_not_the_payload_on_jetstream() {
    follows_the_port(Bus::JetStream);
}

fn follows_the_port(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let kind = |variable, ports, payloads| KindTraffic { variable, ports, payloads };
    let kinds = [
        kind("SEKIWAKE_SYSLOG_DESTINATIONS", &[514, 5514], [awkward(), flows()].concat()),
        kind("SEKIWAKE_XFLOW_DESTINATIONS", &[2055, 9995, 9996, 4739, 6343], flows()),
        kind("SEKIWAKE_TRAP_DESTINATIONS", &[162], [awkward(), flows()].concat()),
    ];
    let sinks: Vec<_> =
        (0..3).map(|number| site.sink(&[at(collector(number), 7_000)], Options::counts().payloads())).collect();
    let destinations: Vec<String> = (0..3).map(|number| format!("udp://{}:7000", collector(number))).collect();
    let mut environment = vec![("SEKIWAKE_SYSLOG_PORTS", "514,5514")];
    environment.extend(kinds.iter().zip(&destinations).map(|(kind, to)| (kind.variable, to.as_str())));
    let services = site.start(&ALL, &environment);
    let mut expected = Vec::new();
    for KindTraffic { ports, payloads, .. } in &kinds {
        let mut sent = Vec::new();
        for &port in *ports {
            site.send_payloads(at(FIRST_DEVICE, 6_000), at(MIRRORED, port), payloads);
            sent.extend(payloads.iter().cloned());
        }
        expected.push(sent);
    }
    for (sink, expected) in sinks.iter().zip(&expected) {
        let _ = sink.wait_for(expected.len() as u64, LONG);
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for ((sink, expected), kind) in sinks.into_iter().zip(&expected).zip(&kinds) {
        assert_same(&format!("{}, {:?}", kind.variable, ledger.losses()), &in_order(sink.finish()), expected);
    }
}
