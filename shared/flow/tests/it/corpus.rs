//! Public captures, used in place if `../shared/corpus` exists beside the workspace.

use std::{collections::BTreeMap, fs, net::SocketAddr};

use sekiwake_flow::Sequence;
use sekiwake_identify::identify;
use sekiwake_record::{Format, Kind};
use sekiwake_testkit::corpus::{corpus_or_skipped, manifest, table};
use sha2::{Digest, Sha256};

use crate::datagram::{exporters, known};

/// The payload of a row in a table of expected datagrams: the bytes that follow its ports in the
/// file and have its hash.
fn payload<'a>(file: &'a [u8], row: &[String], from: &mut usize) -> Option<&'a [u8]> {
    let ports = [row[8].parse::<u16>().ok()?.to_be_bytes(), row[9].parse::<u16>().ok()?.to_be_bytes()].concat();
    let length = row[11].parse::<usize>().ok()?;
    let starts = file[*from..].windows(4).enumerate().filter(|(_, window)| *window == ports);
    for start in starts.map(|(start, _)| *from + start + 8) {
        let Some(bytes) = file.get(start..start + length) else { continue };
        if Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>() == row[12] {
            *from = start + length;
            return Some(bytes);
        }
    }
    None
}

#[test]
fn templates_and_sequences_of_captures_are_tracked() {
    let Some(folder) = corpus_or_skipped() else { return };
    let mut datagrams = 0;
    let mut malformed = 0;
    let mut templates = 0;
    let mut carried = 0;
    let mut outcomes = BTreeMap::new();
    for row in manifest(&folder) {
        let is_capture = row[6].starts_with("pcap") && row[15].starts_with("expected/");
        if !is_capture || !row[0].contains('.') || !row[11].contains("flow") && !row[11].contains("ipfix") {
            continue;
        }
        let file = fs::read(folder.join(&row[0])).unwrap();
        let mut exporters = exporters();
        let mut from = 0;
        let mut last = BTreeMap::new();
        for datagram in table(&folder.join(&row[15])).iter().filter(|row| row.get(19).is_some_and(|it| it == "yes")) {
            if !matches!(datagram[18].as_str(), "nf5" | "nf9" | "ipfix" | "sflow5") {
                continue;
            }
            let (Some(payload), Ok(address)) = (payload(&file, datagram, &mut from), datagram[6].parse()) else {
                continue;
            };
            let source = SocketAddr::new(address, datagram[8].parse().unwrap());
            let format = identify(Some(Kind::Xflow), payload);
            let observed = exporters.observe(source, format, payload, 1, 1);
            datagrams += 1;
            malformed += usize::from(observed.malformed);
            let name = format!("{:?}", observed.sequence);
            let name = name.split('(').next().unwrap().to_owned();
            *outcomes.entry((format.as_str(), name)).or_insert(0) += 1;
            if let Sequence::Gap(units) = observed.sequence {
                eprintln!("  {} frame {}: {} gap of {units}", row[0], datagram[0], format.as_str());
            }
            if matches!(format, Format::NetFlow9 | Format::Ipfix) && payload.len() >= 20 {
                let domain = if format == Format::NetFlow9 { &payload[16..20] } else { &payload[12..16] };
                last.insert((source, format.as_str(), domain.to_vec()), (format, payload));
            }
        }
        // The datagrams sent ahead of the last one of each exporter have all its templates.
        let mut collector = self::exporters();
        for ((source, ..), (format, payload)) in last {
            exporters.forget_slot(0);
            exporters.observe(source, format, payload, 2, 1);
            let mut out = Vec::new();
            exporters.template_datagrams(source, format, payload, 1400, &mut out);
            for ahead in &out {
                assert!(!collector.observe(source, format, ahead, 2, 1).malformed);
            }
        }
        assert_eq!(known(&collector), known(&exporters), "{}", row[0]);
        templates += known(&exporters).len();
        carried += known(&collector).len();
    }
    eprintln!(
        "{datagrams} datagrams, {malformed} malformed, {templates} templates, {carried} sent ahead: {outcomes:#?}"
    );
    assert!(datagrams > 300 && templates > 20, "{datagrams} datagrams, {templates} templates");
}
