//! Decoded rows against those of other programs, by the script that users run on captures of their
//! own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

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

/// Exit status and output of the comparison with one program. `None` if it is not installed.
fn compare(judge: &str, path: &Path) -> Option<(Option<i32>, String)> {
    let installed =
        |program: &str| std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join(program).exists());
    if ["tshark", judge].iter().any(|program| installed(program).is_none()) {
        skip(format!("{judge} or tshark is not installed"));
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/decode/compare");
    let mut command = Command::new(script);
    command.args(["--with", judge, "--capture"]).arg(binary("sekiwake-capture")).arg(path);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.code(), text))
}

/// A savefile with these datagrams.
fn savefile(folder: &Path, datagrams: Vec<(u16, Vec<u8>)>) -> PathBuf {
    let mut file = SaveFile::new(1);
    for (second, (port, payload)) in (1..).zip(datagrams) {
        let datagram = Datagram::new("198.51.100.7:50000", &format!("203.0.113.1:{port}"), payload);
        file = file.packet(second * 1_000_000_000, &ethernet(&datagram.packet()));
    }
    let path = folder.join("datagrams.pcap");
    std::fs::write(&path, file.into_bytes()).unwrap();
    path
}

#[test]
fn decoded_rows_agree_with_tshark() {
    let folder = tempfile::tempdir().unwrap();
    let path = savefile(folder.path(), vec![(2055, netflow5()), (2055, netflow9()), (6343, sflow5())]);
    let Some((status, report)) = compare("tshark", &path) else { return };
    assert_eq!(status, Some(0), "{report}");
    assert!(report.contains("1 files, 3 datagrams, 33 records: "), "{report}");
    // A payload is wrapped into a savefile. What tshark leaves out is a difference.
    std::fs::write(&path, [&netflow9()[..3], &[1], &netflow9()[4..]].concat()).unwrap();
    let Some((status, report)) = compare("tshark", &path) else { return };
    assert_eq!(status, Some(1), "{report}");
    assert!(report.contains("1 × number of records"), "{report}");
}

#[test]
fn decoded_flows_agree_with_nfdump() {
    let folder = tempfile::tempdir().unwrap();
    let path = savefile(folder.path(), vec![(2055, netflow9())]);
    let Some((status, report)) = compare("nfdump", &path) else { return };
    assert_eq!(status, Some(0), "{report}");
    assert!(report.contains("nfdump has 2 of the flows"), "{report}");
}

/// The seeds of the fuzz target: a trap of each version that needs no key, and an inform.
#[test]
fn decoded_traps_agree_with_tshark_and_snmptrapd() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/trap_decode");
    let traps = ["v1-trap", "v2c-inform", "v3-trap"].map(|name| (162, std::fs::read(seeds.join(name)).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let path = savefile(folder.path(), traps.into());
    for judge in ["tshark", "snmptrapd"] {
        let Some((status, report)) = compare(judge, &path) else { return };
        assert_eq!(status, Some(0), "{judge}: {report}");
        let printed = if judge == "snmptrapd" { "3 of 3" } else { "0 of 0" };
        assert!(report.contains(&format!("3 SNMP messages, 0 hidden values; snmptrapd printed {printed}")), "{report}");
    }
}
