//! Status of all services, as a tap reads it from the bus.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, collector};
use serde_json::Value;

use crate::support::*;

const STORER: &str = "sekiwake-storer";
const DETECTOR: &str = "sekiwake-anomaly-detector";

/// Field names that every part has.
const COMMON: &str = "Every part";

/// The documented fields by part, with `[]` and `<…>`.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status.md");
    let page = fs::read_to_string(path).unwrap();
    let (_, tables) = page.split_once("<!-- status: checked by a test -->").unwrap();
    let mut fields: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut part = String::new();
    for line in tables.lines() {
        if let Some(heading) = line.strip_prefix("**") {
            let (name, _) = heading.split_once("**").unwrap();
            part = name.trim_matches('`').split('.').next().unwrap().to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let (names, _) = row.split_once(" | ").unwrap();
            fields
                .entry(part.clone())
                .or_default()
                .extend(names.split(", ").map(|name| name.trim_matches('`').to_owned()));
        }
    }
    fields
}

/// The paths of all values that are neither lists nor objects.
fn paths(prefix: &str, value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            paths(&if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") }, value, out);
        }),
        Value::Array(elements) => elements.iter().for_each(|value| paths(&format!("{prefix}[]"), value, out)),
        // An object that is missing as a whole.
        Value::Null if !prefix.is_empty() => {}
        _ => {
            out.insert(prefix.to_owned());
        }
    }
}

/// Whether a documented path, in which `<…>` stands for a name, describes this one.
fn describes(documented: &str, path: &str) -> bool {
    let Some((before, rest)) = documented.split_once('<') else { return documented == path };
    let (_, after) = rest.split_once('>').unwrap();
    let Some(rest) = path.strip_prefix(before) else { return false };
    // Names may contain dots themselves.
    rest.match_indices('.').map(|(at, _)| at).chain([rest.len()]).any(|at| at > 0 && describes(after, &rest[at..]))
}

#[test]
fn every_service_is_shown_with_documented_fields_and_no_secret() {
    is_shown(Bus::ZeroMq);
}

#[test]
fn every_service_is_shown_with_documented_fields_and_no_secret_on_jetstream() {
    is_shown(Bus::JetStream);
}

fn is_shown(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().display().to_string();
    let syslog = format!("{} tls://{}:6514", syslog_to(0), collector(1));
    let _sink = site.sink(&[at(collector(0), 514)], numbered());
    let flows = format!("udp://{}:2055", collector(0));
    let mut services = site.start(
        &[CAPTURE, PROXY, SYSLOG, XFLOW, STORER, DETECTOR],
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
            ("SEKIWAKE_XFLOW_DESTINATIONS", &flows),
            ("SEKIWAKE_STORE_DIR", &directory),
            ("SEKIWAKE_NOTIFY", "webhook+http://user:password@198.51.100.9/secret-path?token=secret-token"),
        ],
    );
    let mut tap = run(&site.host, "sekiwake-tap", &["status/"], site.bus());
    let count = site.send(&format!("--to {MIRRORED} --rate 500 --duration 2s"));
    assert!(count > 0);
    let expected = [
        ("capture", "process"),
        ("capture", "stream"),
        ("capture", "interfaces.0"),
        ("proxy", "process"),
        ("proxy", "control"),
        ("syslog-forwarder", "process"),
        ("syslog-forwarder", "group"),
        ("syslog-forwarder", "destinations.0"),
        ("syslog-forwarder", "destinations.1"),
        ("xflow-forwarder", "group"),
        ("storer", "store"),
        ("anomaly-detector", "detector"),
    ];
    let mut parts: BTreeMap<(String, String), Value> = BTreeMap::new();
    let shown = wait_for("all parts", LONG, || {
        for line in tap.stdout() {
            let part: Value = serde_json::from_str(&line).unwrap();
            let name = |field: &str| part[field].as_str().unwrap().to_owned();
            parts.insert((name("service"), name("part")), part);
        }
        let has = |(service, part): &(&str, &str)| parts.contains_key(&((*service).to_owned(), (*part).to_owned()));
        let sent = &parts.get(&("syslog-forwarder".to_owned(), "destinations.0".to_owned()));
        let has_sent = sent.is_some_and(|part| part["sent"].as_u64() > Some(0));
        expected.iter().filter(|(service, _)| bus == Bus::ZeroMq || *service != "proxy").all(has) && has_sent
    });
    shown.unwrap_or_else(|late| panic!("{late}: {:?}\n{}", parts, tap.stderr().join("\n")));
    let documented = documented();
    let mut unknown = BTreeSet::new();
    for ((_, name), part) in &parts {
        let of_part = &documented[name.split('.').next().unwrap()];
        let mut found = BTreeSet::new();
        paths("", part, &mut found);
        let is_known = |path: &String| of_part.iter().chain(&documented[COMMON]).any(|known| describes(known, path));
        unknown.extend(found.into_iter().filter(|path| !is_known(path)).map(|path| format!("{name}: {path}")));
    }
    assert!(unknown.is_empty(), "not in docs/status.md: {unknown:#?}");
    for line in tap.stdout() {
        assert!(line.len() <= 16 << 10, "{line}");
        for secret in ["user:", "password", "secret-path", "secret-token"] {
            assert!(!line.contains(secret), "{secret}: {line}");
        }
    }
    let process = &parts[&("syslog-forwarder".to_owned(), "process".to_owned())];
    assert_eq!((&process["state"], &process["group"]), (&"running".into(), &"default".into()));
    // The second destination cannot be reached.
    let down = &parts[&("syslog-forwarder".to_owned(), "destinations.1".to_owned())];
    assert!(down["state"] != "up", "{down}");
    for service in [SYSLOG, CAPTURE] {
        services.take(service).stop().unwrap();
        let name = format!(r#""service":"{}""#, service.trim_start_matches("sekiwake-"));
        wait_for("the stop", LONG, || {
            tap.stdout().iter().any(|line| line.contains(r#""state":"stopping""#) && line.contains(&name))
        })
        .unwrap();
    }
    services.stop().unwrap();
    tap.stop(LONG).unwrap();
}
