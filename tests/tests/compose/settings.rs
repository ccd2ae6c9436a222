//! Checks of the resolved compose file.

use std::collections::BTreeSet;

use sekiwake_settings::{EVERY_SERVICE, VARIABLES};
use serde_json::Value;

use crate::project::{JETSTREAM, Project};

/// Set by the images or by a separate file (keys), and not passed on from the user's environment.
const NOT_PASSED_ON: [&str; 22] = [
    // A savefile would be published again at each restart.
    "SEKIWAKE_CAPTURE_FILE",
    "SEKIWAKE_CAPTURE_WAIT",
    "SEKIWAKE_ADMIN",
    "SEKIWAKE_PROXY_PUBLISH",
    "SEKIWAKE_PROXY_SUBSCRIBE",
    "SEKIWAKE_PROXY_CONTROL",
    "SEKIWAKE_STORE_DIR",
    "SEKIWAKE_SPOOL_DIR",
    "SEKIWAKE_BUS_KEY_FILE",
    "SEKIWAKE_BUS_SERVER_KEY_FILE",
    "SEKIWAKE_BUS_ALLOWED_KEYS_FILE",
    // The compose file has a proxy.
    "SEKIWAKE_BUS",
    "SEKIWAKE_BUS_TLS_CA_FILE",
    "SEKIWAKE_BUS_TLS_CERT_FILE",
    "SEKIWAKE_BUS_TLS_KEY_FILE",
    "SEKIWAKE_BUS_NKEY_FILE",
    "SEKIWAKE_BUS_CREDENTIALS_FILE",
    "SEKIWAKE_BUS_USER",
    "SEKIWAKE_BUS_PASSWORD_FILE",
    "SEKIWAKE_BUS_REPLICAS",
    "SEKIWAKE_BUS_MAX_BYTES",
    "SEKIWAKE_BUS_MAX_AGE",
];
const SERVICES: [&str; 8] = [
    "capture",
    "proxy",
    "syslog-forwarder",
    "xflow-forwarder",
    "trap-forwarder",
    "storer",
    "anomaly-detector",
    "console",
];

pub(crate) fn check(project: &Project) {
    let page = project.compose(&["--profile", "demo", "--profile", "monitoring", "config", "--format", "json"]);
    let resolved: Value = serde_json::from_str(&page).unwrap();
    let services = resolved["services"].as_object().unwrap();
    for name in SERVICES {
        check_passed_settings(name, &services[name]);
    }
    for (name, service) in services {
        check_restrictions(name, service);
    }
    // Sekiwake's images have their own health checks.
    for name in ["prometheus", "alertmanager", "grafana"] {
        assert!(services[name]["healthcheck"]["test"].is_array(), "{name}");
    }
    // With the additional files the project is valid, and services in host networks have the same
    // restrictions.
    let files = ["docker-compose.yml", "deploy/compose.keys.yml", "deploy/compose.spoof.yml"];
    let files = files.iter().flat_map(|file| ["-f", file]);
    let page = project.compose(&files.chain(["config", "--format", "json"]).collect::<Vec<_>>());
    let merged: Value = serde_json::from_str(&page).unwrap();
    for name in ["syslog-forwarder", "xflow-forwarder", "trap-forwarder"] {
        let service = &merged["services"][name];
        check_restrictions(name, service);
        assert_eq!((&service["user"], &service["network_mode"]), (&"0:0".into(), &"host".into()), "{name}");
        assert_eq!(service["cap_add"], serde_json::json!(["NET_RAW"]), "{name}");
        assert!(service["environment"]["SEKIWAKE_BUS_KEY_FILE"].is_string(), "{name}");
    }
    check_jetstream(project);
    // The replay runs once, may send from foreign addresses, and cannot write to the store.
    let page = project.compose(&["--profile", "replay", "config", "--format", "json"]);
    let resolved_replay: Value = serde_json::from_str(&page).unwrap();
    let replay = &resolved_replay["services"]["replay"];
    check_restrictions("replay", replay);
    assert_eq!((&replay["user"], &replay["network_mode"]), (&"0:0".into(), &"host".into()));
    assert_eq!(replay["cap_add"], serde_json::json!(["NET_RAW", "DAC_READ_SEARCH"]));
    let mut volumes = replay["volumes"].as_array().unwrap().iter();
    assert!(volumes.any(|volume| volume["target"] == "/var/lib/sekiwake" && volume["read_only"] == true), "{replay}");
    // The capture that binds ports has one capability more.
    let files = ["-f", "docker-compose.yml", "-f", "deploy/compose.bind-ports.yml", "config", "--format", "json"];
    let merged: Value = serde_json::from_str(&project.compose(&files)).unwrap();
    let capture = &merged["services"]["capture"];
    check_restrictions("capture", capture);
    let added: BTreeSet<&str> = capture["cap_add"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(added, BTreeSet::from(["NET_BIND_SERVICE", "NET_RAW"]));
    assert_eq!(capture["environment"]["SEKIWAKE_CAPTURE_BIND_PORTS"], "true");
    // Only services that need NET_RAW have it.
    let privileged: BTreeSet<&str> =
        services.iter().filter(|(_, service)| !service["cap_add"].is_null()).map(|(name, _)| name.as_str()).collect();
    let expected = [
        "capture",
        "demo-capture",
        "demo-devices",
        "demo-syslog-forwarder",
        "demo-trap-forwarder",
        "demo-xflow-forwarder",
    ];
    assert_eq!(privileged, BTreeSet::from(expected));
    assert!(services.values().filter_map(|service| service["cap_add"].as_array()).all(|added| *added == ["NET_RAW"]));
}

/// With `deploy/compose.jetstream.yml`, services use the NATS server, and there is no proxy.
fn check_jetstream(project: &Project) {
    let files = JETSTREAM.split(':').flat_map(|file| ["-f", file]);
    let rest = ["--profile", "demo", "config", "--format", "json"];
    let merged: Value = serde_json::from_str(&project.compose(&files.chain(rest).collect::<Vec<_>>())).unwrap();
    let services = merged["services"].as_object().unwrap();
    assert!(!services.contains_key("proxy"));
    check_restrictions("nats", &services["nats"]);
    let mut on_the_bus = 0;
    for (name, service) in services {
        let depends_on_proxy = service["depends_on"]["proxy"].is_object();
        assert!(!depends_on_proxy, "{name} waits for the proxy");
        let environment = &service["environment"];
        if environment["SEKIWAKE_BUS"].is_null() {
            continue;
        }
        on_the_bus += 1;
        // The address of the server in the project's network.
        let address = &services["nats"]["networks"]["default"]["ipv4_address"];
        let url = format!("nats://{}:4222", address.as_str().unwrap());
        assert_eq!(environment["SEKIWAKE_BUS"], url, "{name}");
        assert!(service["depends_on"]["nats"].is_object(), "{name} does not wait for the server");
        for endpoint in ["SEKIWAKE_BUS_PUBLISH", "SEKIWAKE_BUS_SUBSCRIBE", "SEKIWAKE_BUS_CONTROL"] {
            assert_eq!(environment[endpoint], "", "{name}: both buses");
        }
    }
    // All but the proxy, and those of the demonstration: a capture, four forwarders, a detector, a
    // tap.
    assert_eq!(on_the_bus, SERVICES.len() - 1 + 7);
}

/// Each setting that a service reads can be set in `.env`, and no other is passed on.
fn check_passed_settings(name: &str, service: &Value) {
    let reads = |readers: &[&str]| readers.contains(&name) || readers.contains(&EVERY_SERVICE);
    let read: BTreeSet<&str> = VARIABLES
        .iter()
        .filter(|variable| reads(variable.read_by) && !NOT_PASSED_ON.contains(&variable.name))
        .map(|variable| variable.name)
        .collect();
    let environment = service["environment"].as_object().unwrap();
    let passed_on: BTreeSet<&str> =
        environment.keys().map(String::as_str).filter(|variable| !NOT_PASSED_ON.contains(variable)).collect();
    assert_eq!(passed_on, read, "{name}");
}

fn check_restrictions(name: &str, service: &Value) {
    assert_eq!(service["read_only"], true, "{name}");
    assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
    assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{name}");
    assert!(service["privileged"].is_null() && service["pid"].is_null() && service["ipc"].is_null(), "{name}");
    assert!(service["stop_grace_period"] == "30s", "{name}: longer than SEKIWAKE_DRAIN");
    assert!(!service["mem_limit"].is_null() && !service["pids_limit"].is_null(), "{name}");
    assert!(service["logging"]["options"]["max-size"].is_string(), "{name}");
    let restart = if ["demo-devices", "demo-tap", "replay"].contains(&name) { "no" } else { "unless-stopped" };
    assert_eq!(service["restart"], restart, "{name}");
    for port in service["ports"].as_array().into_iter().flatten() {
        assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
    }
}
