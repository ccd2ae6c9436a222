//! Encryption keys on the bus, from keygen to the datagram at the collector.

use std::{fs, path::Path, process::Command};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, Samples, Services, binary, collector};

use crate::support::*;

/// Generates a key pair with the real binary. Returns the line for the list of allowed keys.
pub(crate) fn keygen(path: &Path) -> String {
    let output = Command::new(binary(PROXY)).arg("keygen").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn keys_admit_members_and_exclude_others() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    keygen(Path::new(&path("proxy.key")));
    let clients: String = ["capture.key", "forwarder.key"].map(|name| keygen(Path::new(&path(name)))).concat();
    fs::write(path("allowed.keys"), clients).unwrap();
    keygen(Path::new(&path("stranger.key")));

    let to = syslog_to(0);
    let server = path("proxy.key.pub");
    let client =
        |own: &str| [("SEKIWAKE_BUS_KEY_FILE", path(own)), ("SEKIWAKE_BUS_SERVER_KEY_FILE", server.clone())].to_vec();
    let proxy_keys =
        [("SEKIWAKE_BUS_KEY_FILE", path("proxy.key")), ("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", path("allowed.keys"))];
    let start = |name: &str, keys: &[(&'static str, String)]| {
        let keys = keys.iter().map(|(variable, value)| (*variable, value.as_str()));
        let environment: Vec<(&str, &str)> = keys.chain([("SEKIWAKE_SYSLOG_DESTINATIONS", to.as_str())]).collect();
        site.start_one(name, &environment)
    };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let services = Services(vec![
        start(CAPTURE, &client("capture.key")),
        start(PROXY, &proxy_keys),
        start(SYSLOG, &client("forwarder.key")),
    ]);
    services.wait_until_datagrams_flow().unwrap();

    let stranger = client("stranger.key");
    let stranger: Vec<(&str, &str)> = stranger.iter().map(|(variable, value)| (*variable, value.as_str())).collect();
    let taps = [&[][..], &stranger].map(|environment| run(&site.host, "sekiwake-tap", &[], environment));
    for reason in ["reason=\"not_encrypted\"", "reason=\"key_not_allowed\""] {
        let is_counted = |samples: &Samples| samples.count("sekiwake_bus_denied_connections_total", &[reason]) > 0;
        services.get(PROXY).wait_for_metrics(reason, LONG, is_counted).unwrap();
    }

    let sent = site
        .send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --size 100-1400 --rate 5000 --count 5000"));
    let _ = sink.wait_for(sent, LONG);
    balanced_ledger(&services);
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(report.received, sent);
    assert!(report.sequence.is_complete(), "{:?}", report.sequence);
    for tap in taps {
        assert_eq!(tap.stdout(), Vec::<String>::new());
        let log = tap.stderr().join("\n");
        assert!(
            log.contains("WARN") && ["handshake failed", "connection rejected"].iter().any(|text| log.contains(text)),
            "{log}"
        );
    }
}

#[test]
fn all_in_one_uses_keys_without_keys_for_its_roles() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("sekiwake.key");
    let allowed = folder.path().join("allowed.keys");
    keygen(&own);
    fs::write(&allowed, keygen(&folder.path().join("tap.key"))).unwrap();
    let [own_public, tap] = ["sekiwake.key.pub", "tap.key"].map(|name| folder.path().join(name).display().to_string());
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let services = site.start(
        &["sekiwake"],
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0)),
            ("SEKIWAKE_BUS_KEY_FILE", &own.display().to_string()),
            ("SEKIWAKE_BUS_SERVER_KEY_FILE", &own_public),
            ("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", &allowed.display().to_string()),
        ],
    );
    let keys = [("SEKIWAKE_BUS_KEY_FILE", tap.as_str()), ("SEKIWAKE_BUS_SERVER_KEY_FILE", own_public.as_str())];
    let tap = run(&site.host, "sekiwake-tap", &[], &keys);
    let mut sent = 0;
    wait_for("a line of the tap", LONG, || {
        sent += site.send(&format!("--to {MIRRORED} --from 198.19.0.1 --size 100 --count 100 --rate 1000"));
        !tap.stdout().is_empty()
    })
    .unwrap_or_else(|late| panic!("{late}: {}", tap.stderr().join("\n")));
    let _ = sink.wait_for(sent, LONG);
    // What was sent before it started.
    let mut recent = run(&site.host, "sekiwake-tap", &["--since", "1h", "--count", &sent.to_string()], &keys);
    assert!(recent.wait(LONG).unwrap().success(), "{:?}", recent.stderr());
    assert_eq!(recent.stdout().len() as u64, sent);
    services.stop().unwrap();
    assert_eq!(sink.finish().received, sent);
}
