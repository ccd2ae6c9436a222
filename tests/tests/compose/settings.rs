//! Checks of the resolved compose file.

use std::collections::BTreeSet;

use sekiwake_settings::{EVERY_SERVICE, VARIABLES};
use serde_json::Value;

use crate::project::Project;

/// Set by the images or by a separate file (keys), and not passed on from the user's environment.
const NOT_PASSED_ON: [&str; 11] = [
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
];
const SERVICES: [&str; 7] =
    ["capture", "proxy", "syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector"];

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
    let restart = if name == "demo-devices" { "no" } else { "unless-stopped" };
    assert_eq!(service["restart"], restart, "{name}");
    for port in service["ports"].as_array().into_iter().flatten() {
        assert_eq!(port["host_ip"], "127.0.0.1", "{name}: {port}");
    }
}
