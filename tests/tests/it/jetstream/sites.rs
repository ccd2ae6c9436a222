//! A remote site: its own server as a leaf node, whose streams the hub copies. With the
//! configurations in `deploy/nats`, as docs/bus-jetstream.md describes it.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sekiwake_testkit::{netns::Namespace, process::Process, wait::wait_for};
use sekiwake_tests::MIRRORED;
use serde_json::{Value, json};

use super::server::{NatsServer, SINCE, api, pause_until, python, wait_for_lines};
use crate::support::*;

/// Where clients connect to each server, and where the hub waits for sites.
const HUB_PORT: u16 = 4222;
const SITE_PORT: u16 = 4322;
const LINK_PORT: u16 = 7422;
const HUB: (&str, &str) = ("SEKIWAKE_BUS", "nats://127.0.0.1:4222");
const SITE: (&str, &str) = ("SEKIWAKE_BUS", "nats://127.0.0.1:4322");
const HUB_URL: &str = "nats://site1:secret@127.0.0.1:7422";
/// How long the link is cut.
const CUT: Duration = Duration::from_secs(20);
/// The hub reads a site's stream again some 30 to 36 s after the link is back.
const RESUMED_WITHIN: Duration = Duration::from_secs(180);

/// Starts a server with one of the configurations, on loopback.
fn server(namespace: &Namespace, folder: &Path, name: &str, port: u16) -> Process {
    let file = format!("../deploy/nats/{name}.conf");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let text = text
        .replace("store_dir: /data", &format!("store_dir: \"{}/{name}\"", folder.display()))
        .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
        .replace("127.0.0.1:8222", &format!("127.0.0.1:{}", port + 1))
        .replace("0.0.0.0:7422", &format!("127.0.0.1:{LINK_PORT}"));
    let path = folder.join(format!("{name}.conf"));
    fs::write(&path, text).unwrap();
    let program: PathBuf = python().with_file_name("nats-server");
    let mut command = namespace.command(program);
    command.arg("-c").arg(path).env("SITE1_PASSWORD", "secret").env("HUB_URL", HUB_URL);
    let process = Process::spawn(command).unwrap();
    process.wait_for_line(LONG, |line| line.contains("Server is ready")).unwrap();
    process
}

/// The settings of a stream, once it exists.
fn stream(namespace: &Namespace, port: u16, name: &str) -> Value {
    let mut found = Value::Null;
    wait_for("a stream", LONG, || {
        found = api(namespace, port, &format!("STREAM.INFO.{name}"), &json!({}))["config"].take();
        found.is_object()
    })
    .unwrap();
    found
}

/// Where a stream is copied from.
fn source(stream: &str, domain: &str, filter: &str) -> Value {
    json!([{"name": stream, "filter_subject": filter, "external": {"api": format!("$JS.{domain}.API")}}])
}

/// Creates or changes a stream, which must succeed.
fn put(namespace: &Namespace, port: u16, what: &str, config: &Value) {
    let answer = api(namespace, port, &format!("STREAM.{what}.{}", config["name"].as_str().unwrap()), config);
    assert!(answer["error"].is_null(), "{what}: {answer}");
}

/// Adds or deletes the rule that resets the connection of the site to the hub.
fn iptables(namespace: &Namespace, action: &str) {
    for port in ["--dport", "--sport"] {
        let mut command = namespace.command("iptables");
        command.args([action, "OUTPUT", "-p", "tcp", port, &LINK_PORT.to_string(), "-j", "REJECT"]);
        command.args(["--reject-with", "tcp-reset"]);
        assert!(command.status().unwrap().success());
    }
}

#[test]
#[ignore = "make chaos runs it: the hub reads a site again half a minute after the link is back"]
fn jetstream_site_whose_link_is_cut_loses_nothing() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let host = &site.host;
    let _hub = server(host, folder.path(), "hub", HUB_PORT);
    let _leaf = server(host, folder.path(), "leaf", SITE_PORT);
    let capture = site.start_one(CAPTURE, &[SITE]);
    pause_until("a ready capture", || capture.is_ready());
    // What docs/bus-jetstream.md tells the administrator of the hub to do.
    for (name, filter) in [("SEKIWAKE_SYSLOG", ""), ("SEKIWAKE_XFLOW", ""), ("SEKIWAKE_SNMPTRAP", "")] {
        let mut config = stream(host, SITE_PORT, name);
        config["sources"] = source(name, "site1", filter);
        put(host, HUB_PORT, "CREATE", &config);
    }
    let mut state = stream(host, SITE_PORT, "SEKIWAKE_STATE");
    state["sources"] = source("SEKIWAKE_STATE", "site1", "sekiwake.state.at.>");
    put(host, HUB_PORT, "CREATE", &state);
    state["sources"] = source("SEKIWAKE_STATE", "hub", "sekiwake.state.own.>");
    put(host, SITE_PORT, "UPDATE", &state);

    let tap = run(host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &[HUB]);
    let status = run(host, "sekiwake-tap", &["status/"], &[HUB]);
    let mut sender = site.start_sender(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 200 --rate 1000 --duration 40s"
    ));
    wait_for("records at the hub", LONG, || tap.stdout().len() > 2_000).unwrap();
    iptables(host, "-I");
    // The outage itself is what is tested.
    std::thread::park_timeout(CUT);
    let before = tap.stdout().len();
    iptables(host, "-D");
    let sent = sent_by(&mut sender) - site.dropped_by_wire().unwrap();
    assert!((before as u64) < sent, "the link was not cut");
    wait_for("records of the outage at the hub", RESUMED_WITHIN, || tap.stdout().len() > before).unwrap();
    wait_for_lines(&tap, sent);
    let printed = tap.stdout();
    let distinct: HashSet<&String> = printed.iter().collect();
    assert_eq!((printed.len() as u64, distinct.len()), (sent, printed.len()));

    // Status crosses the link, and destinations that are registered at the hub reach the site.
    wait_for("status of the site's capture", LONG, || {
        status.stdout().iter().any(|line| line.contains("\"service\":\"capture\""))
    })
    .unwrap();
    let destination = "198.51.100.200:514";
    let registered =
        run(host, "sekiwake-sender", &["--to", destination, "--register", "--rate", "10", "--count", "40"], &[HUB]);
    wait_for("the registration at the site's capture", RESUMED_WITHIN, || {
        capture.page("/status").unwrap().contains(destination)
    })
    .unwrap_or_else(|late| panic!("{late}: {}", registered.stderr().join("\n")));
}
