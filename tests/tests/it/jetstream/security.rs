//! TLS, nkeys, passwords, permissions, and servers that cannot be used.

use std::{fs, path::Path};

use sekiwake_testkit::{
    process::{Process, Signal},
    sink::Options,
    wait::wait_for,
};
use sekiwake_tests::{MIRRORED, Service, collector};
use serde_json::json;

use super::{
    operator::Operator,
    server::{BUS, NatsServer, SINCE, api, pause_until, wait_for_lines},
};
use crate::support::*;

/// What each role needs, as docs/bus-jetstream.md lists it.
const PERMISSIONS: &str = include_str!("../../../../docs/examples/jetstream-permissions.conf");

fn write(folder: &Path, name: &str, contents: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, contents).unwrap();
    path.to_str().unwrap().to_owned()
}

fn log(process: &Process) -> String {
    process.stderr().join("\n")
}

#[test]
fn jetstream_roles_work_with_their_permissions_and_no_more() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let password = write(folder.path(), "password", "secret\n");
    let _server = NatsServer::start(&site.host, PERMISSIONS);
    let user = |name: &'static str| [BUS, ("SEKIWAKE_BUS_USER", name), ("SEKIWAKE_BUS_PASSWORD_FILE", &password)];
    let capture = site.start_one(CAPTURE, &user("capture"));
    // A capture may create no stream in this configuration: the command is printed.
    wait_for("the command for the administrator", LONG, || {
        log(&capture.process).contains("nats stream add SEKIWAKE_STATE --subjects='sekiwake.state.>'")
    })
    .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
    // The administrator's own run creates them.
    let destination = syslog_to(0);
    let forward = ("SEKIWAKE_SYSLOG_DESTINATIONS", destination.as_str());
    let flows = ("SEKIWAKE_XFLOW_DESTINATIONS", destination.as_str());
    for name in [CAPTURE, SYSLOG, XFLOW] {
        let more = [("SEKIWAKE_ADMIN", "127.0.0.1:9700"), forward, flows];
        let mut admin = site.start_one(name, &[&user("admin")[..], &more].concat());
        pause_until("the streams", || admin.is_ready());
        admin.stop().unwrap();
    }
    wait_for("a ready capture", LONG, || capture.is_ready())
        .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 4 --size 100 --count 200"));
    let reader = run(&site.host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &user("reader"));
    wait_for_lines(&reader, sent);
    // A capture must not read records.
    let spy = run(&site.host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &user("capture"));
    wait_for("a refusal", LONG, || log(&spy).contains("Permissions Violation") || log(&spy).contains("cannot be read"))
        .unwrap_or_else(|late| panic!("{late}: {}", log(&spy)));
    assert!(spy.stdout().is_empty());
    // Templates are read by those who may: no exporter has sent any.
    for (name, status) in [("templates", Some(0)), ("capture", Some(1))] {
        let mut templates = run(&site.host, "sekiwake-tap", &["templates/"], &user(name));
        assert_eq!(templates.wait(LONG).unwrap().code(), status, "{name}: {}", log(&templates));
    }
    // A member of a group handles what it may read.
    let sink = site.sink(&[at(collector(0), 514)], Options::counts());
    let member = site.start_one(SYSLOG, &[&user("group")[..], &[forward]].concat());
    wait_for("all at the collector", LONG, || sink.received() == sent)
        .unwrap_or_else(|late| panic!("{late}: {}", log(&member.process)));
    assert!(!log(&member.process).contains("refuse"), "{}", log(&member.process));
}

#[test]
fn jetstream_permission_refused_to_a_member_is_said() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let password = write(folder.path(), "password", "secret\n");
    let destination = syslog_to(0);
    for (permission, subject) in [
        ("\"$KV.SEKIWAKE_GROUPS.>\", ", "$KV.SEKIWAKE_GROUPS.syslog-forwarder=default.syslog.m."),
        ("\"$JS.API.CONSUMER.CREATE.SEKIWAKE_SYSLOG.>\",", "$JS.API.CONSUMER.CREATE.SEKIWAKE_SYSLOG."),
    ] {
        assert!(PERMISSIONS.contains(permission));
        let _server = NatsServer::start(&site.host, &PERMISSIONS.replace(permission, ""));
        let user = |name: &'static str| [BUS, ("SEKIWAKE_BUS_USER", name), ("SEKIWAKE_BUS_PASSWORD_FILE", &password)];
        let start = |name: &'static str, port: &str| {
            let more = [("SEKIWAKE_SYSLOG_DESTINATIONS", destination.as_str()), ("SEKIWAKE_ADMIN", port)];
            site.start_one(SYSLOG, &[&user(name)[..], &more].concat())
        };
        let mut admin = start("admin", "127.0.0.1:9700");
        pause_until("the streams", || admin.is_ready());
        admin.stop().unwrap();
        let member = start("group", "127.0.0.1:9701");
        let is_said = |line: &String| {
            line.contains("permission denied") && line.contains("server n1 of SEKIWAKE_BUS") && line.contains(subject)
        };
        wait_for("the refusal", LONG, || member.process.stderr().iter().any(is_said))
            .unwrap_or_else(|late| panic!("{late}: {}", log(&member.process)));
        wait_for("a member that is not ready", LONG, || member.is_alive() && !member.is_ready()).unwrap();
    }
}

#[test]
fn jetstream_secret_is_read_again_on_sighup() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let password = write(folder.path(), "password", "right\n");
    let _server = NatsServer::start(&site.host, "authorization { users: [{user: a, password: right}] }");
    let destination = syslog_to(0);
    let environment = [
        BUS,
        ("SEKIWAKE_BUS_USER", "a"),
        ("SEKIWAKE_BUS_PASSWORD_FILE", &password),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &destination),
    ];
    let services = [CAPTURE, SYSLOG].map(|name| site.start_one(name, &environment));
    // Replaced by a file of the same age: only SIGHUP says that it has changed.
    let replace = |secret: &str| {
        let modified = fs::metadata(&password).unwrap().modified().unwrap();
        let new = write(folder.path(), "new", secret);
        fs::File::options().append(true).open(&new).unwrap().set_modified(modified).unwrap();
        fs::rename(new, &password).unwrap();
        services.iter().for_each(|service| service.process.signal(Signal::HUP).unwrap());
    };
    let all_ready = || services.iter().all(Service::is_ready);
    pause_until("ready services", all_ready);
    replace("wrong\n");
    pause_until("services that are refused", || services.iter().all(|service| !service.is_ready()));
    let is_refused = |service: &Service<'_>| log(&service.process).to_lowercase().contains("authorization violation");
    pause_until("the reason", || services.iter().all(is_refused));
    replace("right\n");
    pause_until("ready services", all_ready);
}

#[test]
fn jetstream_credentials_file_is_accepted() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let operator = Operator::new();
    let _server = NatsServer::start(&site.host, operator.configuration());
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "user.creds", &operator.wrong_credentials());
    let capture = site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_BUS_CREDENTIALS_FILE", &file)]);
    wait_for("a refusal", LONG, || log(&capture.process).to_lowercase().contains("authorization violation"))
        .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
    write(folder.path(), "user.creds", &operator.credentials());
    wait_for("a ready capture", LONG, || capture.is_ready())
        .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
}

#[test]
fn jetstream_client_certificate_is_presented() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let issue = |name: &str| {
        let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let cert = write(folder.path(), &format!("{name}.pem"), &issued.cert.pem());
        (cert, write(folder.path(), &format!("{name}.key"), &issued.signing_key.serialize_pem()))
    };
    let [(cert, key), (client_cert, client_key)] = ["127.0.0.1", "capture"].map(issue);
    let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{client_cert}\", verify: true }}");
    let _server = NatsServer::start(&site.host, &tls);
    let environment = [("SEKIWAKE_BUS", "tls://127.0.0.1:4222"), ("SEKIWAKE_BUS_TLS_CA_FILE", cert.as_str())];
    {
        let stranger = site.start_one(CAPTURE, &environment);
        wait_for("the reason", LONG, || log(&stranger.process).contains("no connection to a NATS server"))
            .unwrap_or_else(|late| panic!("{late}: {}", log(&stranger.process)));
        assert!(!stranger.is_ready());
    }
    let own =
        [("SEKIWAKE_BUS_TLS_CERT_FILE", client_cert.as_str()), ("SEKIWAKE_BUS_TLS_KEY_FILE", client_key.as_str())];
    let capture = site.start_one(CAPTURE, &[&environment[..], &own].concat());
    wait_for("a ready capture", LONG, || capture.is_ready())
        .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
}

/// A key pair for this test only.
const NKEY: &str = "UAXXR2LHZ5JBIQOSJQCXH7SHLVNRNCAZBLM54ATAIBKDA26XZT2S2BFN";
const NKEY_SEED: &str = "SUACUSHYYGWY7S52EE5YB5JYHYBHRB53TBV7KNYVVKI7QWPSDHIRPB2GTY";

#[test]
fn jetstream_nkey_is_accepted_and_its_absence_refused() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let seed = write(folder.path(), "nkey", NKEY_SEED);
    let _server = NatsServer::start(&site.host, &format!("authorization {{ users: [{{nkey: {NKEY}}}] }}"));
    let stranger = site.start_one(CAPTURE, &[BUS]);
    wait_for("a refusal", LONG, || log(&stranger.process).to_lowercase().contains("authorization violation"))
        .unwrap_or_else(|late| panic!("{late}: {}", log(&stranger.process)));
    drop(stranger);
    let capture = site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_BUS_NKEY_FILE", &seed)]);
    wait_for("a ready capture", LONG, || capture.is_ready()).unwrap_or_else(|late| {
        panic!("{late}: {}", log(&capture.process));
    });
}

#[test]
fn jetstream_wrong_password_is_said() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let password = write(folder.path(), "password", "wrong\n");
    let _server = NatsServer::start(&site.host, "authorization { users: [{user: a, password: right}] }");
    let environment = [BUS, ("SEKIWAKE_BUS_USER", "a"), ("SEKIWAKE_BUS_PASSWORD_FILE", &password)];
    let capture = site.start_one(CAPTURE, &environment);
    wait_for("the reason", LONG, || log(&capture.process).to_lowercase().contains("authorization violation"))
        .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
    // A password that is put right is read without a restart.
    fs::write(folder.path().join("password"), "right\n").unwrap();
    wait_for("a ready capture", LONG, || capture.is_ready()).unwrap_or_else(|late| {
        panic!("{late}: {}", log(&capture.process));
    });
}

#[test]
fn jetstream_tls_is_never_left_out() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let cert = write(folder.path(), "cert.pem", &issued.cert.pem());
    let key = write(folder.path(), "key.pem", &issued.signing_key.serialize_pem());
    let environment = [("SEKIWAKE_BUS", "tls://127.0.0.1:4222"), ("SEKIWAKE_BUS_TLS_CA_FILE", cert.as_str())];
    {
        let _plain = NatsServer::start(&site.host, "");
        let capture = site.start_one(CAPTURE, &environment);
        wait_for("the reason", LONG, || log(&capture.process).contains("no connection to a NATS server")).unwrap();
        assert!(!capture.is_ready());
    }
    let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\" }}");
    let _server = NatsServer::start(&site.host, &tls);
    let capture = site.start_one(CAPTURE, &environment);
    wait_for("a ready capture", LONG, || capture.is_ready()).unwrap_or_else(|late| {
        panic!("{late}: {}", log(&capture.process));
    });
}

#[test]
fn jetstream_servers_that_cannot_be_used_are_named() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let expect = |configuration: &str, text: &str| {
        let _server = NatsServer::start(&site.host, configuration);
        let capture = site.start_one(CAPTURE, &[BUS]);
        wait_for(text, LONG, || log(&capture.process).contains(text))
            .unwrap_or_else(|late| panic!("{late}: {}", log(&capture.process)));
        assert!(!capture.is_ready());
    };
    expect("max_payload: 100000", "accepts messages of at most 100000 bytes, expected max_payload of at least");
    expect("accounts { A { users: [{user: a, password: a}] } }\nno_auth_user: a", "JetStream");
}

#[test]
fn jetstream_check_says_what_existing_streams_break() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let [syslog, xflow] = ["SYSLOG", "XFLOW"].map(|kind| format!("SEKIWAKE_{kind}_DESTINATIONS"));
    let destination = syslog_to(0);
    let environment = [
        BUS,
        ("SEKIWAKE_CAPTURE_INTERFACES", "lo"),
        (syslog.as_str(), destination.as_str()),
        (xflow.as_str(), destination.as_str()),
    ];
    let check = |name: &str, more: &[&str]| {
        let mut process = run(&site.host, name, &[&["--check"], more].concat(), &environment);
        let status = process.wait(LONG).unwrap();
        (status.code(), log(&process))
    };
    {
        let _server = NatsServer::start(&site.host, "");
        let config = json!({
            "name": "SEKIWAKE_XFLOW", "subjects": ["sekiwake.xflow.*"], "retention": "workqueue", "storage": "file",
            "max_msg_size": 1000, "duplicate_window": 120_000_000_000_u64, "allow_direct": true,
        });
        let answer = api(&site.host, 4222, "STREAM.CREATE.SEKIWAKE_XFLOW", &config);
        assert!(answer["error"].is_null(), "{answer}");
        assert_eq!(check(SYSLOG, &[]), (Some(0), String::new()), "it does not use that stream");
        for name in [CAPTURE, XFLOW, "sekiwake"] {
            let (status, text) = check(name, &[]);
            assert_eq!((status, text.lines().count()), (Some(2), 1), "{name}: {text}");
            assert!(text.contains("SEKIWAKE_XFLOW cannot be used: its retention is not limits"), "{name}: {text}");
            assert!(text.contains("at most 1000 bytes, expected 524288"), "{name}: {text}");
        }
        assert_eq!(check(XFLOW, &["--no-files"]), (Some(0), String::new()));
    }
    let (status, text) = check("sekiwake", &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("warning: no NATS server") && text.lines().count() == 1, "{text}");
}
