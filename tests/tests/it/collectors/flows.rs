//! nfcapd, sfcapd and nfacctd, fed by softflowd and by captures of others.

use std::path::Path;

use sekiwake_record::Kind;
use sekiwake_testkit::packets::{Datagram, SaveFile, ethernet, ip_packet};
use sekiwake_tests::collectors::{Nfacctd, Nfcapd, Recipe, Sfcapd, program};

use super::{PLAIN, SPOOFED, Trial, Way, corpus, site_with};

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
fn export_by_softflowd<R: Recipe>(trial: &Trial<'_, R>) {
    let folder = tempfile::tempdir().unwrap();
    let traffic = folder.path().join("traffic.pcap");
    write_traffic(&traffic);
    for version in ["5", "9", "10"] {
        let mut softflowd = program("softflowd").unwrap();
        // With a control socket it does not end at the end of a file.
        softflowd.args(["-d", "-6", "-c", "none", "-v", version, "-n", &trial.address().to_string()]);
        softflowd.arg("-p").arg(folder.path().join("pid")).arg("-r").arg(&traffic);
        assert!(trial.run(&softflowd).success());
    }
}

/// The flow packets of the corpus: those of captures, and those that stand by themselves.
fn of_others(corpus: &Path, captures: &str, singles: Option<&str>, take: fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let captured = corpus::captured(corpus, captures).into_iter().map(|(_, payload)| payload);
    let singles = singles.map(|singles| corpus::datagrams(corpus, singles)).unwrap_or_default();
    // Some of the files are whole sessions over TCP, and no datagram.
    captured.chain(singles).filter(|payload| payload.len() <= LONGEST && take(payload)).collect()
}

fn replay<R: Recipe>(trial: &Trial<'_, R>, way: Way, payloads: &[Vec<u8>]) {
    for (number, of_one) in payloads.chunks(100).enumerate() {
        trial.send(way.exporter(number), of_one);
    }
}

/// softflowd and the exporters of others; `least` records of either at least.
fn check_netflow<R: Recipe>(test: &str, way: Way, singles: Option<&str>, least: [usize; 2]) {
    let Some(site) = site_with(test, &[R::PROGRAM, "softflowd"]) else { return };
    let payloads = corpus::corpus(test).map(|corpus| of_others(&corpus, "1-telemetry-flow", singles, is_netflow));
    let trial = Trial::<R>::start(&site, Kind::Xflow, 2055, way);
    export_by_softflowd(&trial);
    replay(&trial, way, payloads.as_deref().unwrap_or_default());
    let least = least[0] + if payloads.is_some() { least[1] } else { 0 };
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

#[test]
fn nfcapd_writes_what_it_writes_when_it_is_fed_directly() {
    // Version 5 knows two thirds of softflowd's flows, the others all.
    let least = [FLOWS * (2 + 3 + 3), 1_000];
    let singles = Some("9-datagrams-flow");
    check_netflow::<Nfcapd>("nfcapd_writes_what_it_writes_when_it_is_fed_directly", PLAIN, singles, least);
}

#[test]
fn nfacctd_writes_what_it_writes_when_it_is_fed_directly() {
    // Not the datagrams that stand by themselves, cut off from their templates and each other: some of them put pmacct 1.7.7 into
    // an endless loop.
    check_netflow::<Nfacctd>("nfacctd_writes_what_it_writes_when_it_is_fed_directly", PLAIN, None, [FLOWS * 3, 100]);
}

#[test]
fn sfcapd_writes_what_it_writes_when_it_is_fed_directly() {
    let test = "sfcapd_writes_what_it_writes_when_it_is_fed_directly";
    let Some(corpus) = corpus::corpus(test) else { return };
    let Some(site) = site_with(test, &["sfcapd"]) else { return };
    let payloads = of_others(&corpus, "1-telemetry-sflow", Some("9-datagrams-sflow"), is_sflow);
    let trial = Trial::<Sfcapd>::start(&site, Kind::Xflow, 6343, PLAIN);
    replay(&trial, PLAIN, &payloads);
    trial.finish(PLAIN).assert_same(50);
}

#[test]
fn nfcapd_writes_the_same_in_the_names_of_the_devices() {
    let least = [FLOWS * (2 + 3 + 3), 1_000];
    let singles = Some("9-datagrams-flow");
    check_netflow::<Nfcapd>("nfcapd_writes_the_same_in_the_names_of_the_devices", SPOOFED, singles, least);
}

#[test]
fn nfacctd_writes_the_same_in_the_names_of_the_devices() {
    check_netflow::<Nfacctd>("nfacctd_writes_the_same_in_the_names_of_the_devices", SPOOFED, None, [FLOWS * 3, 100]);
}
