//! Decoded rows against tshark's, by the script that users run on captures of their own.

use std::process::Command;

use sekiwake_testkit::{
    packets::{Datagram, SaveFile, ethernet},
    skip::skip,
};
use sekiwake_tests::binary;

/// NetFlow v5: 30 records, of which each byte is different.
fn netflow5() -> Vec<u8> {
    let header = [0, 5, 0, 30, 0, 0, 39, 16, 105, 87, 17, 37, 0, 0, 0, 7, 0, 0, 0, 99, 1, 2, 0x40, 100];
    header.into_iter().chain((0..30 * 48).map(|byte| (byte % 251) as u8)).collect()
}

/// NetFlow v9: a template with addresses, ports, octets and uptimes, and two records.
fn netflow9() -> Vec<u8> {
    let header = [0, 9, 0, 3, 0, 0, 39, 16, 105, 87, 17, 37, 0, 0, 0, 21, 0, 0, 0, 7];
    let template = [
        0, 0, 0, 36, 1, 0, 0, 7, 0, 8, 0, 4, 0, 12, 0, 4, 0, 7, 0, 2, 0, 11, 0, 2, 0, 1, 0, 4, 0, 22, 0, 4, 0, 21, 0, 4,
    ];
    let record = [198, 18, 0, 1, 198, 18, 0, 2, 0, 53, 16, 146, 0, 0, 16, 104, 0, 0, 31, 64, 0, 0, 37, 28];
    [&header[..], &template, &[1, 0, 0, 52], &record, &record].concat()
}

/// sFlow v5: counters of an interface.
fn sflow5() -> Vec<u8> {
    let words = [5, 1, 0xc633_6409, 3, 21, 10_000, 1, 2, 108, 5, 9, 1, 1, 88_u32];
    let counters = 1..=22_u32;
    words.into_iter().chain(counters).flat_map(u32::to_be_bytes).collect()
}

#[test]
fn decoded_rows_agree_with_tshark() {
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip("tshark is not installed");
    }
    let mut file = SaveFile::new(1);
    for (second, (port, payload)) in (1..).zip([(2055, netflow5()), (2055, netflow9()), (6343, sflow5())]) {
        let datagram = Datagram::new("198.51.100.7:50000", &format!("203.0.113.1:{port}"), payload);
        file = file.packet(second * 1_000_000_000, &ethernet(&datagram.packet()));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flows.pcap");
    std::fs::write(&path, file.into_bytes()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/decode/compare");
    let compare = |path| {
        let mut command = Command::new(script);
        let output = command.arg("--capture").arg(binary("sekiwake-capture")).arg(path).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (status, report) = compare(&path);
    assert_eq!(status, Some(0), "{report}");
    assert!(report.contains("1 files, 3 datagrams, 33 records: "), "{report}");
    // A payload is wrapped into a savefile. What tshark leaves out is a difference.
    std::fs::write(&path, [&netflow9()[..3], &[1], &netflow9()[4..]].concat()).unwrap();
    let (status, report) = compare(&path);
    assert_eq!(status, Some(1), "{report}");
    assert!(report.contains("1 × number of records"), "{report}");
}
