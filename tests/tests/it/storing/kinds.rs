//! Flows and traps are stored as completely as syslog, and common tools read their files.

use std::process::{Output, Stdio};

use sekiwake_tests::{MIRRORED_V6, collectors::installed_or_skipped};

use super::*;

/// Traffic of all kinds.
const TRAFFIC: &str = "--protocol all --from 198.19.0.0/16 --sources 8 --size 120-1400";

fn start_all<'a>(site: &'a TestSite, dir: &Path, more: &[(&str, &str)]) -> Services<'a> {
    start(site, dir, &[&[("SEKIWAKE_STORE_KINDS", "all")], more].concat())
}

fn kind_of(message: &Value) -> &str {
    message["kind"].as_str().unwrap_or("syslog")
}

/// What a command prints whose input is a stored file.
fn reads(path: &Path, command: &mut Command) -> Output {
    let mut zstdcat = Command::new("zstd").args(["-dcf"]).arg(path).stdout(Stdio::piped()).spawn().unwrap();
    let output = command.stdin(zstdcat.stdout.take().unwrap()).output().unwrap();
    assert!(zstdcat.wait().unwrap().success());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The fields of each packet, as tshark prints them.
fn tshark(path: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r", "-", "-T", "fields", "-E", "separator=|", "-Y", filter]);
    // Its samples contain the beginnings of other packets.
    command.args(["--disable-protocol", "sflow"]);
    command.args(["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]);
    for port in [2055, 4739] {
        command.args(["-d", &format!("udp.port=={port},cflow")]);
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = String::from_utf8(reads(path, &mut command).stdout).unwrap();
    output.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

fn files_of(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let mut all = files(dir);
    all.retain(|path| path.file_name().unwrap().to_str().unwrap().contains(&format!(".{kind}.pcapng")));
    all
}

#[test]
fn all_kinds_are_stored_and_read_by_common_tools() {
    if !installed_or_skipped(&["tshark", "zstd"]) {
        return;
    }
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = [("SEKIWAKE_STORE_COMMIT", "50ms"), ("SEKIWAKE_STORE_ROTATE_BYTES", "512KiB")];
    let services = start_all(&site, dir.path(), &more);
    let storer = services.get(STORER);
    let mut sent = site.send(&format!("--to {MIRRORED} {TRAFFIC} --rate 3000 --count 9000"));
    sent += site.send(&format!(
        "--to {MIRRORED_V6} --protocol all --from 2001:db8:18:1::/64 --sources 8 --size 120-1400 --rate 3000 --count 3000"
    ));
    wait_until_written(storer, sent);
    check_ledger(storer);
    wait_for("full files to be compressed", LONG, || {
        files_of(dir.path(), "xflow").iter().filter(|path| path.extension().unwrap() == "zst").count() >= 4
    })
    .unwrap();

    // Search.
    let all = search(storer, "kind=all");
    assert_eq!(all.len() as u64, sent);
    assert!(all.is_sorted_by_key(|message| message["captured_at"].as_str().unwrap().to_owned()));
    let of = |kind: &str| all.iter().filter(|message| kind_of(message) == kind).cloned().collect::<Vec<_>>();
    for kind in ["syslog", "xflow", "snmptrap"] {
        let found = search(storer, &format!("kind={kind}"));
        assert!(!found.is_empty());
        assert_eq!(found, of(kind), "{kind}");
        let mut newest = search(storer, &format!("kind={kind}&order=newest&limit=100"));
        newest.reverse();
        assert_eq!(newest, found[found.len() - 100..], "{kind}");
        let rows = search(storer, &format!("kind={kind}&decode=true&limit=500"));
        assert!(rows.iter().all(|row| row["kind"] == kind && row["error"].is_null()), "{kind}");
    }
    assert_eq!(search(storer, ""), of("syslog"));
    let netflow9 = search(storer, "kind=xflow&format=netflow9&source=198.19.0.0/16");
    assert!(!netflow9.is_empty());
    assert!(netflow9.iter().all(|message| message["format"] == "netflow9" && message["publisher"].is_string()));
    let mut command = Command::new(binary(STORER));
    let output = command.args(["search", "--kind", "all", "--dir"]).arg(dir.path()).output().unwrap();
    let offline = String::from_utf8(output.stdout).unwrap();
    assert!(offline.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).eq(all.iter().cloned()));
    services.stop().unwrap();

    // Every packet, its bytes and its addresses, by tshark.
    for kind in ["xflow", "snmptrap"] {
        let mut packets = Vec::new();
        for path in files_of(dir.path(), kind) {
            let fields = ["frame.time_epoch", "ip.src", "ipv6.src", "udp.srcport", "udp.payload"];
            packets.extend(tshark(&path, "!frame.comment", &fields).into_iter().map(|mut fields| {
                let nanoseconds = fields[0].len() - 9;
                fields[0].drain(..nanoseconds);
                fields
            }));
            let wrong = "_ws.malformed || ip.checksum.status == 0 || udp.checksum.status == 0 || icmp || icmpv6";
            let fields = ["frame.number", "frame.protocols", "_ws.expert.message"];
            assert_eq!(tshark(&path, wrong, &fields), Vec::<Vec<String>>::new(), "{path:?}");
        }
        let mut expected: Vec<Vec<String>> = of(kind)
            .iter()
            .map(|message| {
                let text = |name: &str| message[name].as_str().unwrap().to_owned();
                let source = text("source");
                let (v4, v6) = if source.contains(':') { (String::new(), source) } else { (source, String::new()) };
                let nanoseconds = text("captured_at")[20..29].to_owned();
                vec![nanoseconds, v4, v6, message["source_port"].to_string(), hexadecimal(&payload(message))]
            })
            .collect();
        packets.sort();
        expected.sort();
        assert!(packets == expected, "{kind}: {} and {} packets", packets.len(), expected.len());
    }

    // Any file of flows is decoded by itself: its templates come first.
    let paths = files_of(dir.path(), "xflow");
    for path in &paths[1..] {
        assert!(!tshark(path, "frame.comment && cflow.template_id", &["frame.number"]).is_empty(), "{path:?}");
        let undecoded = "!frame.comment && cflow.version >= 9 && _ws.expert.message contains \"template\"";
        assert_eq!(tshark(path, undecoded, &["frame.number"]), Vec::<Vec<String>>::new(), "{path:?}");
        let data = "!frame.comment && cflow.version == 10 && cflow.template_frame";
        assert!(!tshark(path, data, &["frame.number"]).is_empty(), "{path:?}");
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn storer_of_all_kinds_killed_under_load_loses_nothing() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = [
        ("SEKIWAKE_STORE_DIR", dir.path().to_str().unwrap()),
        ("SEKIWAKE_STORE_COMMIT", "200ms"),
        ("SEKIWAKE_STORE_KINDS", "all"),
    ];
    let mut services = start(&site, dir.path(), &store[1..]);
    let mut sender = site.start_sender(&format!("--to {MIRRORED} {TRAFFIC} --rate 12000 --duration 8s"));
    let mut recovered = 0;
    for _ in 0..2 {
        wait_until_written(services.get(STORER), 8_000);
        let mut victim = services.take(STORER);
        victim.kill().unwrap();
        services.add(site.start_one(STORER, &store));
        services.get(STORER).wait_until_ready().unwrap();
        recovered += services.get(STORER).metrics().unwrap().count("sekiwake_store_recovered_files_total", &[]);
    }
    let sent = sent_by(&mut sender);
    let stored = || numbers(&search(services.get(STORER), "kind=all"));
    wait_for("everything to be stored", LONG, || stored().len() as u64 >= sent).unwrap();
    let counts = stored();
    let lost = services.get(STORER).metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
    check_ledger(services.get(STORER));
    services.stop().unwrap();
    assert_eq!((counts.len() as u64, lost), (sent, 0));
    // A file between two commits has nothing to recover.
    assert!(recovered > 0);
    let repeated = counts.values().filter(|&&count| count > 1).count() as u64;
    assert!(repeated <= sent / 2, "{repeated} of {sent}");
}

#[test]
fn full_disk_costs_no_flow() {
    let Some(site) = site() else { return };
    let disk = SmallDisk::new("2m");
    let services = start_all(&site, disk.0.path(), &[("SEKIWAKE_STORE_COMMIT", "200ms")]);
    let storer = services.get(STORER);
    let sent = site.send(&format!("--to {MIRRORED} {TRAFFIC} --rate 4000 --duration 2s"));
    wait_for("the storer not to be ready", LONG, || !storer.is_ready()).unwrap();
    assert!(storer.metrics().unwrap().count("sekiwake_store_failed_commits_total", &[]) > 0);
    assert!((search(storer, "kind=all").len() as u64) < sent);
    disk.grow("64m");
    wait_until_written(storer, sent);
    wait_for("the storer to be ready", LONG, || storer.is_ready()).unwrap();
    let counts = numbers(&search(storer, "kind=all"));
    assert_eq!((counts.len() as u64, counts.values().max()), (sent, Some(&1)));
    check_ledger(storer);
    services.stop().unwrap();
}

#[test]
fn store_of_an_earlier_release_is_read_and_kept_beside_new_kinds() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = [("SEKIWAKE_STORE_COMMIT", "50ms")];
    let services = start(&site, dir.path(), &more);
    let before = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 4 --rate 1000 --count 500"));
    wait_until_written(services.get(STORER), before);
    services.stop().unwrap();
    let services =
        start_all(&site, dir.path(), &[&more[..], &[("SEKIWAKE_STORE_KEEP", "syslog=90d,xflow=2d")]].concat());
    let storer = services.get(STORER);
    let after = site.send(&format!("--to {MIRRORED} {TRAFFIC} --rate 1000 --count 500"));
    wait_until_written(storer, after);
    assert_eq!(search(storer, "kind=all").len() as u64, before + after);
    assert!(search(storer, "").len() as u64 > before);
    services.stop().unwrap();
    // Without flows and traps their files stay, and are found on request.
    let services = start(&site, dir.path(), &more);
    assert_eq!(search(services.get(STORER), "kind=all").len() as u64, before + after);
    services.stop().unwrap();
}
