//! nfcapd, sfcapd and nfacctd, fed by softflowd and by captures of others.

use std::path::Path;

use sekiwake_record::Kind;
use sekiwake_testkit::packets::{Datagram, SaveFile, ethernet, ip_packet};
use sekiwake_tests::collectors::{Nfacctd, Nfcapd, Recipe, Sfcapd, program};

use super::{PLAIN, Trial, Way, corpus, site_with};

/// Flows of each family in the traffic that softflowd observes.
const FLOWS: usize = 60;

/// The longest payload of the datagrams that stand by themselves.
const LONGEST: usize = 9_000;

/// Traffic for softflowd: TCP and UDP, both families, two packets a flow, a second apart.
fn write_traffic(path: &Path) {
    let mut file = SaveFile::new(1);
    for (second, number) in (0..2 * FLOWS).enumerate() {
        let flow = number % FLOWS;
        let (client, size) = (1_024 + flow, 40 + flow);
        let v4 = Datagram::new(&format!("198.18.1.{}:{client}", flow + 1), "203.0.113.53:53", vec![7; size]);
        let v6 = Datagram::new(&format!("[2001:db8:18:2::{flow:x}]:{client}"), "[2001:db8:53::53]:53", vec![7; size]);
        let ports = [u16::try_from(client).unwrap().to_be_bytes(), 443_u16.to_be_bytes()].concat();
        // Sequence, acknowledgement, five words of header, ACK, window, checksum, urgent pointer (RFC 9293 §3.1).
        let tcp = [&ports[..], &[0; 8], &[0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]].concat();
        let tcp = ip_packet(&format!("198.18.2.{}", flow + 1), "203.0.113.80", 6, &tcp);
        let at = 1_700_000_000_000_000_000 + second as u64 * 1_000_000_000;
        for packet in [v4.packet(), v6.packet(), tcp] {
            file = file.packet(at, &ethernet(&packet));
        }
    }
    file.write_to(path).unwrap();
}

/// softflowd reads the traffic and exports it in each version.
fn check_softflowd<R: Recipe>(test: &str, way: Way, least: usize) {
    let Some(site) = site_with(test, &[R::PROGRAM, "softflowd"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let traffic = folder.path().join("traffic.pcap");
    write_traffic(&traffic);
    let trial = Trial::<R>::start(&site, Kind::Xflow, 2055, way);
    for version in ["5", "9", "10"] {
        let mut softflowd = program("softflowd").unwrap();
        // With a control socket it does not end at the end of a file.
        softflowd.args(["-d", "-6", "-c", "none", "-v", version, "-n", &trial.address().to_string()]);
        softflowd.arg("-p").arg(folder.path().join("pid")).arg("-r").arg(&traffic);
        assert!(trial.run(&softflowd).success());
    }
    trial.finish(way).assert_same(least);
}

/// Flow packets of many exporters: those of captures, and those that stand by themselves.
fn check_corpus<R: Recipe>(test: &str, way: Way, port: u16, take: impl Fn(&[u8]) -> bool, of: [&str; 2], least: usize) {
    let Some(corpus) = corpus::corpus(test) else { return };
    let Some(site) = site_with(test, &[R::PROGRAM, "mergecap", "tshark"]) else { return };
    let captured = corpus::captured(&corpus, of[0]).into_iter().map(|(_, payload)| payload);
    // Some of the files are whole sessions over TCP, and no datagram.
    let take = |payload: &Vec<u8>| payload.len() <= LONGEST && take(payload);
    let payloads: Vec<_> = captured.chain(corpus::datagrams(&corpus, of[1])).filter(take).collect();
    let trial = Trial::<R>::start(&site, Kind::Xflow, port, way);
    for (number, of_one) in payloads.chunks(100).enumerate() {
        trial.send(way.exporter(number), of_one);
    }
    trial.finish(way).assert_same(least);
}

/// NetFlow v5, v9 or IPFIX, by the version number that each begins with.
fn is_netflow(payload: &[u8]) -> bool {
    matches!(payload, [0, 5 | 9 | 10, ..])
}

/// sFlow version 5.
fn is_sflow(payload: &[u8]) -> bool {
    payload.starts_with(&[0, 0, 0, 5])
}

const FLOW: [&str; 2] = ["1-telemetry-flow", "9-datagrams-flow"];
const SFLOW: [&str; 2] = ["1-telemetry-sflow", "9-datagrams-sflow"];

#[test]
fn nfcapd_writes_of_softflowd_what_it_writes_when_it_is_fed_directly() {
    // Version 5 knows two thirds of the flows, the others all.
    let test = "nfcapd_writes_of_softflowd_what_it_writes_when_it_is_fed_directly";
    check_softflowd::<Nfcapd>(test, PLAIN, FLOWS * (2 + 3 + 3));
}

#[test]
fn nfacctd_writes_of_softflowd_what_it_writes_when_it_is_fed_directly() {
    let test = "nfacctd_writes_of_softflowd_what_it_writes_when_it_is_fed_directly";
    check_softflowd::<Nfacctd>(test, PLAIN, FLOWS * 3);
}

#[test]
fn nfcapd_writes_of_the_exporters_of_others_what_it_writes_when_it_is_fed_directly() {
    let test = "nfcapd_writes_of_the_exporters_of_others_what_it_writes_when_it_is_fed_directly";
    check_corpus::<Nfcapd>(test, PLAIN, 2055, is_netflow, FLOW, 1_000);
}

#[test]
fn nfacctd_writes_of_the_exporters_of_others_what_it_writes_when_it_is_fed_directly() {
    let test = "nfacctd_writes_of_the_exporters_of_others_what_it_writes_when_it_is_fed_directly";
    check_corpus::<Nfacctd>(test, PLAIN, 2055, is_netflow, FLOW, 100);
}

#[test]
fn sfcapd_writes_of_the_switches_of_others_what_it_writes_when_it_is_fed_directly() {
    let test = "sfcapd_writes_of_the_switches_of_others_what_it_writes_when_it_is_fed_directly";
    check_corpus::<Sfcapd>(test, PLAIN, 6343, is_sflow, SFLOW, 50);
}
