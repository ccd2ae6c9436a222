//! nfcapd, sfcapd and nfacctd with traffic from softflowd and third-party captures.

use std::path::Path;

use sekiwake_record::Kind;
use sekiwake_testkit::packets::{Datagram, SaveFile, ethernet, ip_packet};
use sekiwake_tests::collectors::{Nfacctd, Nfcapd, Recipe, Sfcapd, program};

use super::{PLAIN, SPOOFED, Trial, Way, corpus, site_with};

/// Flows per IP version in the traffic for softflowd.
const FLOWS: usize = 60;

/// The longest payload of the single datagrams.
const MAX_BYTES: usize = 9_000;

/// Traffic for softflowd: TCP and UDP, IPv4 and IPv6, two packets per flow, one second apart.
fn write_traffic(path: &Path) {
    let mut file = SaveFile::new(1);
    for (second, number) in (0..2 * FLOWS).enumerate() {
        let flow = number % FLOWS;
        let client = 1_024 + flow;
        let size = 40 + flow;
        let v4 = Datagram::new(&format!("198.18.1.{}:{client}", flow + 1), "203.0.113.53:53", vec![7; size]);
        let v6 = Datagram::new(&format!("[2001:db8:18:2::{flow:x}]:{client}"), "[2001:db8:53::53]:53", vec![7; size]);
        let ports = [u16::try_from(client).unwrap().to_be_bytes(), 443_u16.to_be_bytes()].concat();
        // Sequence, acknowledgement, five words of header, ACK, window, checksum, urgent pointer
        // (RFC 9293 §3.1).
        let tcp = [&ports[..], &[0; 8], &[0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]].concat();
        let tcp = ip_packet(&format!("198.18.2.{}", flow + 1), "203.0.113.80", 6, &tcp);
        let at = 1_700_000_000_000_000_000 + second as u64 * 1_000_000_000;
        for packet in [v4.packet(), v6.packet(), tcp] {
            file = file.packet(at, &ethernet(&packet));
        }
    }
    file.write_to(path).unwrap();
}

/// Lets softflowd read the traffic and export it in each version.
fn export_by_softflowd<R: Recipe>(trial: &Trial<'_, R>) {
    let folder = tempfile::tempdir().unwrap();
    let traffic = folder.path().join("traffic.pcap");
    write_traffic(&traffic);
    for version in ["5", "9", "10"] {
        let mut softflowd = program("softflowd").unwrap();
        // With a control socket it does not exit at the end of the file.
        softflowd.args(["-d", "-6", "-c", "none", "-v", version, "-n", &trial.address().to_string()]);
        softflowd.arg("-p").arg(folder.path().join("pid")).arg("-r").arg(&traffic);
        assert!(trial.run(&softflowd).success());
    }
}

/// The flow datagrams of the corpus: from captures, and single ones.
fn third_party_flows(
    corpus: &Path,
    captures: &str,
    singles: Option<&str>,
    is_wanted: fn(&[u8]) -> bool,
) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, captures).into_iter().map(|datagram| datagram.payload);
    let singles = singles.map(|singles| corpus::datagrams(corpus, singles)).unwrap_or_default();
    // Some of the files are TCP sessions, not datagrams.
    captured.chain(singles).filter(|payload| payload.len() <= MAX_BYTES && is_wanted(payload)).collect()
}

fn replay<R: Recipe>(trial: &Trial<'_, R>, way: Way, payloads: &[Vec<u8>]) {
    for (number, chunk) in payloads.chunks(100).enumerate() {
        trial.send(way.exporter(number), chunk);
    }
}

/// Minimum numbers of records that a collector must write.
#[derive(Clone, Copy)]
struct Least {
    from_softflowd: usize,
    from_corpus: usize,
}

/// Compares collectors of the traffic of softflowd and of third-party exporters.
fn check_netflow<R: Recipe>(way: Way, singles: Option<&str>, least: Least) {
    let Some(site) = site_with(&[R::PROGRAM, "softflowd"]) else { return };
    let payloads = corpus::corpus().map(|corpus| third_party_flows(&corpus, "1-telemetry-flow", singles, is_netflow));
    let trial = Trial::<R>::start(&site, Kind::Xflow, 2055, way);
    export_by_softflowd(&trial);
    replay(&trial, way, payloads.as_deref().unwrap_or_default());
    let least = least.from_softflowd + if payloads.is_some() { least.from_corpus } else { 0 };
    trial.finish(way).assert_same(least);
}

/// nfcapd writes each flow per version; version 5 has no IPv6, a third of softflowd's flows.
const NFCAPD: Least = Least { from_softflowd: FLOWS * (2 + 3 + 3), from_corpus: 1_000 };
/// nfacctd aggregates the flows of all versions.
const NFACCTD: Least = Least { from_softflowd: FLOWS * 3, from_corpus: 100 };

/// NetFlow v5, v9 or IPFIX, by the version number.
fn is_netflow(payload: &[u8]) -> bool {
    matches!(payload, [0, 5 | 9 | 10, ..])
}

/// sFlow version 5.
fn is_sflow(payload: &[u8]) -> bool {
    payload.starts_with(&[0, 0, 0, 5])
}

#[test]
fn nfcapd_writes_the_same_as_when_fed_directly() {
    check_netflow::<Nfcapd>(PLAIN, Some("9-datagrams-flow"), NFCAPD);
}

#[test]
fn nfacctd_writes_the_same_as_when_fed_directly() {
    // Without the single datagrams, which lack their templates: some of them put pmacct 1.7.7 into
    // an endless loop.
    check_netflow::<Nfacctd>(PLAIN, None, NFACCTD);
}

#[test]
fn sfcapd_writes_the_same_as_when_fed_directly() {
    let Some(corpus) = corpus::corpus() else { return };
    let Some(site) = site_with(&["sfcapd"]) else { return };
    let payloads = third_party_flows(&corpus, "1-telemetry-sflow", Some("9-datagrams-sflow"), is_sflow);
    let trial = Trial::<Sfcapd>::start(&site, Kind::Xflow, 6343, PLAIN);
    replay(&trial, PLAIN, &payloads);
    trial.finish(PLAIN).assert_same(50);
}

#[test]
fn nfcapd_writes_the_same_when_spoofing() {
    check_netflow::<Nfcapd>(SPOOFED, Some("9-datagrams-flow"), NFCAPD);
}

#[test]
fn nfacctd_writes_the_same_when_spoofing() {
    check_netflow::<Nfacctd>(SPOOFED, None, NFACCTD);
}
