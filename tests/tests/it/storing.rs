//! Stored syslog is complete and unmodified, over failures of the storer, its disk and its
//! replicas.

mod kinds;
mod two_captures;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use base64::prelude::{BASE64_STANDARD, Engine};
use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{FIRST_DEVICE, Ledger, MIRRORED, Service, Services, binary};
use sekiwake_traffic::sequence_of;
use serde_json::Value;

use crate::{
    collectors::corpus::{corpus, lines},
    payloads::awkward,
    replicas::owned_shards,
    support::*,
};

const STORER: &str = "sekiwake-storer";
const STORING_PATH: [&str; 3] = [CAPTURE, PROXY, STORER];

/// The messages found by a search.
fn search(storer: &Service<'_>, query: &str) -> Vec<Value> {
    let page = storer.page(&format!("/search?{query}")).unwrap();
    page.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The payload of a stored message.
fn payload(message: &Value) -> Vec<u8> {
    match (message["payload"].as_str(), message["payload_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => BASE64_STANDARD.decode(text).unwrap(),
        _ => panic!("no payload in {message}"),
    }
}

/// How often each of the sender's numbers is stored.
fn numbers(messages: &[Value]) -> BTreeMap<(u64, u64), u64> {
    let mut counts = BTreeMap::new();
    for message in messages {
        let number = sequence_of(&payload(message)).expect("a numbered message");
        *counts.entry((number.stream(), number.sequence)).or_default() += 1;
    }
    counts
}

/// Waits until everything that was received is on the disk.
fn wait_until_written(storer: &Service<'_>, records: u64) {
    storer
        .wait_for_metrics("everything to be written", LONG, |samples| {
            samples.count("sekiwake_store_written_records_total", &[]) >= records
        })
        .unwrap();
}

fn check_ledger(storer: &Service<'_>) {
    let close = || Ledger::check_storer(&storer.metrics().unwrap());
    let _ = wait_for("the storer's ledger to balance", LONG, || close().is_ok());
    close().unwrap();
}

/// The files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
    found.sort();
    found
}

fn start<'a>(site: &'a TestSite, dir: &Path, more: &[(&str, &str)]) -> Services<'a> {
    let dir = dir.display().to_string();
    site.start(&STORING_PATH, &[&[("SEKIWAKE_STORE_DIR", dir.as_str())], more].concat())
}

#[test]
fn search_and_files_return_payloads_verbatim() {
    return_payloads_verbatim(Bus::ZeroMq, &["json", "text"]);
}

#[test]
fn search_and_files_return_payloads_verbatim_on_jetstream() {
    return_payloads_verbatim(Bus::JetStream, &["json"]);
}

fn return_payloads_verbatim(bus: Bus, formats: &[&str]) {
    let Some(site) = site_on(bus) else { return };
    let mut sent = awkward();
    if let Some(corpus) = corpus() {
        sent.extend(lines(&corpus, "9-text").into_iter().filter(|line| line.len() <= 60_000).take(20_000));
    }
    for &format in formats {
        let dir = tempfile::tempdir().unwrap();
        let more = [("SEKIWAKE_STORE_FORMAT", format), ("SEKIWAKE_STORE_COMMIT", "50ms")];
        let services = start(&site, dir.path(), &more);
        let source = at(FIRST_DEVICE, 5_140);
        for (number, part) in sent.chunks(1000).enumerate() {
            site.send_payloads(source, at(MIRRORED, 514), part);
            wait_until_written(services.get(STORER), (number * 1000 + part.len()) as u64);
        }
        let storer = services.get(STORER);
        let found = search(storer, "");
        assert_same("search", &found.iter().map(payload).collect::<Vec<_>>(), &sent);
        let first = &found[1];
        assert_eq!(
            ["source", "source_port", "destination", "destination_port"].map(|name| first[name].to_string()),
            [format!("\"{FIRST_DEVICE}\""), "5140".to_owned(), format!("\"{MIRRORED}\""), "514".to_owned()]
        );
        assert!(found.is_sorted_by_key(|message| message["captured_at"].as_str().unwrap().to_owned()));
        check_ledger(storer);
        // By severity, and by text.
        let found = search(storer, "severity=notice&text=CONFIG_I&limit=1");
        assert_eq!(
            (found.len(), &found[0]["severity"], &found[0]["facility"]),
            (1, &"notice".into(), &"local7".into())
        );
        assert!(search(storer, "source=203.0.113.0/24").is_empty());
        services.stop().unwrap();
        // Without a service, and with common tools: one line per message, with the device's
        // address.
        let by_variable = (vec![], dir.path());
        let by_option = (vec![OsStr::new("--dir"), dir.path().as_os_str()], Path::new("/no-such-folder"));
        for (options, variable) in [by_variable, by_option] {
            let mut command = Command::new(binary(STORER));
            command.arg("search").args(options).env("SEKIWAKE_STORE_DIR", variable);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let lines = String::from_utf8(output.stdout).unwrap();
            let offline: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_same("offline", &offline.iter().map(payload).collect::<Vec<_>>(), &sent);
        }
        let text: String = files(dir.path()).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(text.lines().count(), sent.len());
        assert!(text.lines().all(|line| line.contains(&FIRST_DEVICE.to_string()) && !line.contains('\r')));
    }
}

/// Messages of devices, without a PRI, and hostile ones.
#[test]
fn stored_messages_are_found_decoded() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let services = start(&site, dir.path(), &[("SEKIWAKE_STORE_COMMIT", "50ms")]);
    let mut sent: Vec<Vec<u8>> = [
        &b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured from console"[..],
        b"<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [a@32473 iut=\"3\"] entry",
        b"Jan  5 10:11:12 sw-1 sshd[42]: without a PRI",
        b"<38>Feb  5 17:32:18 h x: \x1b[2J\r\n{\"captured_at\":\"forged\"}",
        b"\x16\x03\x01\x00\xff",
        b"\xff\xfe",
        b"",
    ]
    .map(<[u8]>::to_vec)
    .into();
    sent.extend(awkward());
    if let Some(corpus) = corpus() {
        sent.extend(lines(&corpus, "9-text").into_iter().filter(|line| line.len() <= 60_000).take(2_000));
    }
    let storer = services.get(STORER);
    for (number, part) in sent.chunks(1000).enumerate() {
        site.send_payloads(at(FIRST_DEVICE, 5_140), at(MIRRORED, 514), part);
        wait_until_written(storer, (number * 1000 + part.len()) as u64);
    }
    let rows = search(storer, "decode=true");
    assert_eq!(rows.len(), sent.len());
    assert!(rows.iter().all(|row| row["kind"] == "syslog" && row["source"] == FIRST_DEVICE.to_string()));
    assert!(rows.is_sorted_by_key(|row| row["captured_at"].as_str().unwrap().to_owned()));
    let shown = |row: &Value, names: [&str; 3]| names.map(|name| row[name].as_str().unwrap_or("-").to_owned());
    assert_eq!(
        shown(&rows[0], ["severity", "app_name", "message"]),
        ["notice", "%SYS-5-CONFIG_I", "Configured from console"]
    );
    assert_eq!(rows[1]["structured_data"]["a@32473"]["iut"], "3");
    assert_eq!(shown(&rows[2], ["hostname", "procid", "error"]), ["sw-1", "42", "the PRI is missing"]);
    assert_eq!(rows[3]["message"], "\u{1b}[2J\r\n{\"captured_at\":\"forged\"}");
    assert_eq!(rows[4]["bytes"], "16030100ff");
    assert_eq!((&rows[5]["type"], &rows[5]["lossy"]), (&"message".into(), &true.into()));
    assert_eq!(rows[6]["reason"], "datagram has no text");
    // Filters apply to the stored messages, and to the last ones first where that is asked for.
    assert_eq!(search(storer, "decode=true&order=newest&limit=3").len(), 3);
    assert_eq!(search(storer, "decode=true&text=FROM+console"), rows[..1]);
    assert_eq!(search(storer, "decode=false&limit=1"), search(storer, "limit=1"));
    services.stop().unwrap();
    let offline = |options: &[&str]| {
        let output =
            Command::new(binary(STORER)).args(["search", "--dir"]).arg(dir.path()).args(options).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (is_success, lines, _) = offline(&["--decode"]);
    let again: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(is_success && again == rows, "{lines}");
    let (_, text, _) = offline(&["--decode", "--output", "text"]);
    assert_eq!(text.lines().count(), sent.len(), "{text}");
    assert!(text.contains(" unknown sw-1 sshd[42]: \"without a PRI\" (the PRI is missing)\n"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text}");
    let (_, text, _) = offline(&["--output", "text", "--limit", "1"]);
    assert!(text.ends_with(
        " local7.notice rfc3164 <189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured from console\n"
    ));
    let (is_success, _, error) = offline(&["--output", "xml"]);
    assert!(!is_success && error.contains("expected text or json"), "{error}");
}

#[test]
fn storer_killed_under_load_loses_nothing() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = [("SEKIWAKE_STORE_DIR", dir.path().to_str().unwrap()), ("SEKIWAKE_STORE_COMMIT", "200ms")];
    let mut services = start(&site, dir.path(), &store[1..]);
    let mut sender = site.start_sender(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --size 100-500 --rate 20000 --duration 8s"
    ));
    let mut recovered = 0;
    for _ in 0..2 {
        wait_until_written(services.get(STORER), 10_000);
        let mut victim = services.take(STORER);
        victim.kill().unwrap();
        services.add(site.start_one(STORER, &store));
        services.get(STORER).wait_until_ready().unwrap();
        recovered += services.get(STORER).metrics().unwrap().count("sekiwake_store_recovered_files_total", &[]);
    }
    let sent = sent_by(&mut sender);
    let stored = || numbers(&search(services.get(STORER), "")).len() as u64;
    wait_for("everything to be stored", LONG, || stored() >= sent).unwrap();
    let counts = numbers(&search(services.get(STORER), ""));
    let lost = services.get(STORER).metrics().unwrap().count("sekiwake_bus_lost_records_total", &[]);
    check_ledger(services.get(STORER));
    services.stop().unwrap();
    let repeated = counts.values().filter(|&&count| count > 1).count();
    println!("{repeated} of {sent} stored twice, {recovered} files recovered");
    assert_eq!((counts.len() as u64, lost), (sent, 0));
    assert!(recovered >= 2, "{recovered}");
    // Per kill, the records since the last commit to the bus; on a busy machine commits are late.
    assert!(repeated as u64 <= sent / 2, "{repeated} of {sent}");
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let disk = SmallDisk(tempfile::tempdir().unwrap());
        disk.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        disk
    }

    fn grow(&self, size: &str) {
        self.mount(&["-o", &format!("remount,size={size}")]);
    }

    fn mount(&self, arguments: &[&str]) {
        let output = Command::new("mount").args(arguments).arg(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn full_disk_is_reported_and_records_are_stored_later() {
    let Some(site) = site() else { return };
    let disk = SmallDisk::new("2m");
    let services = start(&site, disk.0.path(), &[("SEKIWAKE_STORE_COMMIT", "200ms")]);
    let storer = services.get(STORER);
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --size 1000 --rate 5000 --duration 2s"));
    wait_for("the storer not to be ready", LONG, || !storer.is_ready()).unwrap();
    let error = storer.page("/readyz").unwrap_err().to_string();
    assert!(error.contains("storer"), "{error}");
    assert!(storer.is_alive());
    let samples = storer.metrics().unwrap();
    assert_eq!(samples.count("sekiwake_store_up", &[]), 0);
    assert!(samples.count("sekiwake_store_failed_commits_total", &[]) > 0);
    assert!(samples.count("sekiwake_store_unsynced_records", &[]) > 0);
    // Stored records can still be searched.
    let stored = search(storer, "").len() as u64;
    assert!(stored < sent, "{stored} of {sent} fit into 2 MiB");
    disk.grow("64m");
    wait_until_written(storer, sent);
    assert!(storer.is_ready());
    let counts = numbers(&search(storer, ""));
    assert_eq!((counts.len() as u64, counts.values().max()), (sent, Some(&1)));
    check_ledger(storer);
    // Every failed commit is counted, and only some are logged.
    storer.process.wait_for_line(LONG, |line| line.contains("write failed")).unwrap();
    let logged = storer.process.stderr().iter().filter(|line| line.contains("write failed")).count() as u64;
    let failed = storer.metrics().unwrap().count("sekiwake_store_failed_commits_total", &[]);
    assert!(logged >= 1 && logged < failed, "{logged} of {failed}: {}", storer.process.stderr().join("\n"));
    services.stop().unwrap();
}

#[test]
fn replicas_share_the_sources_and_a_directory() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut services = start(&site, dir.path(), &[("SEKIWAKE_MEMBER", "a")]);
    let store = ("SEKIWAKE_STORE_DIR", dir.path().to_str().unwrap());
    // A second replica with the same name exits with an error.
    let mut twin = site.start_one(STORER, &[store, ("SEKIWAKE_MEMBER", "a"), ("SEKIWAKE_ADMIN", "127.0.0.1:9704")]);
    assert_eq!(twin.process.wait(LONG).unwrap().code(), Some(1));
    assert!(twin.process.stderr().join("\n").contains("SEKIWAKE_MEMBER"), "{}", twin.process.stderr().join("\n"));
    let second = site.start_one(STORER, &[store, ("SEKIWAKE_MEMBER", "b"), ("SEKIWAKE_ADMIN", "127.0.0.1:9705")]);
    wait_for("two halves", LONG, || [services.get(STORER), &second].map(owned_shards) == [32, 32]).unwrap();
    let sent = site
        .send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --size 100-500 --rate 5000 --duration 2s"));
    let written = |storer: &Service<'_>| storer.metrics().unwrap().count("sekiwake_store_written_records_total", &[]);
    wait_for("everything to be written", LONG, || written(services.get(STORER)) + written(&second) == sent).unwrap();
    assert!(written(&second) > 0);
    // Each replica searches the whole directory.
    let counts = numbers(&search(&second, ""));
    assert_eq!((counts.len() as u64, counts.values().max()), (sent, Some(&1)));
    let members: BTreeSet<String> = files(dir.path())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().split('@').nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(members, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    services.add(second);
    services.stop().unwrap();
}

#[test]
fn full_files_are_compressed_and_deleted_oldest_first() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = [
        ("SEKIWAKE_STORE_ROTATE_BYTES", "64KiB"),
        ("SEKIWAKE_STORE_COMMIT", "50ms"),
        ("SEKIWAKE_STORE_PATH", "{date}/{hour}/{source}"),
    ];
    let services = start(&site, dir.path(), &more);
    let sent = site
        .send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 3 --size 200-400 --rate 1000 --duration 3s"));
    let storer = services.get(STORER);
    wait_until_written(storer, sent);
    let compressed =
        || files(dir.path()).iter().filter(|path| path.extension().is_some_and(|end| end == "zst")).count();
    wait_for("full files to be compressed", LONG, || {
        let plain = files(dir.path()).len() - compressed();
        compressed() >= 6 && plain <= 3
    })
    .unwrap();
    assert_eq!(numbers(&search(storer, "")).len() as u64, sent);
    let from_one = search(storer, "source=198.19.0.0/32");
    assert!(from_one.iter().all(|message| message["source"] == "198.19.0.0"));
    // With common tools.
    let mut zst: Vec<PathBuf> =
        files(dir.path()).into_iter().filter(|path| path.extension().is_some_and(|end| end == "zst")).collect();
    let output = Command::new("zstdcat").args(&zst).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap().lines().count() as u64;
    assert!(lines > 0 && lines <= sent);
    services.stop().unwrap();
    // With a size limit the oldest files are deleted.
    let before = files(dir.path()).len();
    zst.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let bounded = start(&site, dir.path(), &[&more[..], &[("SEKIWAKE_STORE_MAX_BYTES", "100KiB")]].concat());
    let total = || files(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    wait_for("the oldest to be deleted", LONG, || total() <= 100 << 10 && files(dir.path()).len() < before).unwrap();
    let samples = bounded.get(STORER).metrics().unwrap();
    assert!(samples.count("sekiwake_store_deleted_files_total", &["reason=\"size\""]) > 0);
    let kept = files(dir.path());
    assert!(!kept.is_empty() && !kept.contains(&zst[0]), "{kept:?}");
    // The log names the rule and the files.
    let is_named = |line: &str| line.contains("rule=\"SEKIWAKE_STORE_MAX_BYTES=100KiB\"");
    let line = bounded.get(STORER).process.wait_for_line(LONG, is_named).unwrap();
    assert!(line.contains(zst[0].file_name().unwrap().to_str().unwrap()), "{line}");
    bounded.stop().unwrap();
}

#[test]
fn invalid_search_is_rejected_with_a_reason() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let services = start(&site, dir.path(), &[]);
    let storer = services.get(STORER);
    for (query, reason) in [
        ("severity=loud", "severity"),
        ("from=yesterday", "from"),
        ("colour=red", "colour"),
        ("limit=-1", "limit"),
        ("source=300.1.1.1", "source"),
        ("limit=1&limit=2", "limit"),
        ("decode=yes", "decode=\"yes\": expected true or false"),
    ] {
        let error = storer.page(&format!("/search?{query}")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(" 400 ") && error.contains(reason), "{query}: {error}");
    }
    assert!(search(storer, "from=-1h&to=now").is_empty());
    services.stop().unwrap();
}
