//! Settings and the command line, which are the same for every service.

use std::{fs, os::unix::fs::PermissionsExt};

use sekiwake_testkit::{netns::namespaces_or_skipped, process::Process};
use sekiwake_tests::binary;

use crate::{documents::document, support::*};

const SERVICES: [&str; 7] = [CAPTURE, PROXY, SYSLOG, XFLOW, TRAP, "sekiwake-tap", "sekiwake"];

/// Runs a program to its end, without a namespace. Returns its exit status, standard output and
/// standard error.
fn run_to_end(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, Vec<String>, Vec<String>) {
    let mut command = std::process::Command::new(binary(program));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied());
    let mut process = Process::spawn(command).unwrap();
    let status = process.wait(LONG).unwrap();
    (status.code(), process.stdout(), process.stderr())
}

#[test]
fn every_binary_has_help_and_version() {
    for name in SERVICES.into_iter().chain(["sekiwake-sender", "sekiwake-receiver"]) {
        let (status, stdout, stderr) = run_to_end(name, &["--help"], &[]);
        assert_eq!((status, stderr.len()), (Some(0), 0), "{name}");
        assert!(stdout.join("\n").contains(&format!("Usage: {name}")), "{name}: {stdout:?}");
        let (status, stdout, _) = run_to_end(name, &["--version"], &[]);
        assert_eq!(status, Some(0));
        assert!(stdout[0].starts_with(&format!("{name} ")) && stdout[0].contains(char::is_numeric), "{stdout:?}");
        let (status, _, stderr) = run_to_end(name, &["--no-such-option"], &[]);
        assert_eq!(status, Some(2), "{name}: {stderr:?}");
    }
}

#[test]
fn check_prints_the_resolved_settings() {
    for name in SERVICES {
        let (status, stdout, stderr) =
            run_to_end(name, &["--check"], &[("SEKIWAKE_CAPTURE_INTERFACES", "lo"), ("SEKIWAKE_LOG", "debug")]);
        assert_eq!((status, &stderr), (Some(0), &Vec::new()), "{name}");
        assert!(
            stdout.iter().any(|line| line.contains("SEKIWAKE_LOG") && line.contains("debug")),
            "{name}: {stdout:?}"
        );
    }
}

#[test]
fn all_in_one_requires_all_bus_endpoints_or_none() {
    let endpoint = "tcp://198.51.100.1:5559";
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", "lo"), ("SEKIWAKE_BUS_PUBLISH", endpoint)];
    let (status, _, stderr) = run_to_end("sekiwake", &["--check"], &environment);
    assert_eq!((status, stderr.len()), (Some(2), 2), "{stderr:?}");
    assert!(stderr.iter().any(|line| line.contains("SEKIWAKE_BUS_SUBSCRIBE")), "{stderr:?}");
    assert!(stderr.iter().any(|line| line.contains("SEKIWAKE_BUS_CONTROL")), "{stderr:?}");
    let whole = [("SEKIWAKE_BUS_SUBSCRIBE", endpoint), ("SEKIWAKE_BUS_CONTROL", endpoint)];
    let (status, _, stderr) = run_to_end("sekiwake", &["--check"], &[&environment[..], &whole].concat());
    assert_eq!((status, stderr.len()), (Some(0), 0), "{stderr:?}");
}

#[test]
fn both_buses_at_once_are_a_mistake() {
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", "lo"), ("SEKIWAKE_BUS", "nats://198.51.100.1")];
    for name in [CAPTURE, SYSLOG, "sekiwake-tap", "sekiwake"] {
        let (status, stdout, stderr) = run_to_end(name, &["--check", "--no-files"], &environment);
        assert_eq!((status, stderr.len()), (Some(0), 0), "{name}: {stderr:?}");
        assert!(stdout.iter().any(|line| line.contains("nats://198.51.100.1")), "{name}: {stdout:?}");
        let both = [&environment[..], &[("SEKIWAKE_BUS_CONTROL", "tcp://198.51.100.1:5561")]].concat();
        let (status, _, stderr) = run_to_end(name, &["--check"], &both);
        assert_eq!((status, stderr.len()), (Some(2), 1), "{name}: {stderr:?}");
        assert!(stderr[0].contains("SEKIWAKE_BUS_CONTROL"), "{name}: {stderr:?}");
    }
}

#[test]
fn all_invalid_settings_are_reported_at_once() {
    let common = [
        ("SEKIWAKE_LOG_FORMAT", "xml"),
        ("SEKIWAKE_NO_SUCH_THING", "1"),
        ("SEKIWAKE_SYSLOG_DESTINATION", "udp://198.51.100.7:514"),
    ];
    let served = [("SEKIWAKE_ADMIN", "everywhere"), ("SEKIWAKE_DRAIN", "soon")];
    let capture = [
        ("SEKIWAKE_SYSLOG_PORTS", "514,70000"),
        ("SEKIWAKE_CAPTURE_RING", "much"),
        ("SEKIWAKE_CAPTURE_FILTER", "not host and"),
        ("SEKIWAKE_CAPTURE_INTERFACES", "an-interface-with-a-long-name"),
    ];
    let destinations = |variable| [(variable, "tcp:/198.51.100.7")];
    let subscribe = [("SEKIWAKE_BUS_SUBSCRIBE", "nowhere")];
    let proxy = [("SEKIWAKE_PROXY_PUBLISH", "tcp://")];
    let [to_syslog, to_xflow, to_trap] =
        ["SEKIWAKE_SYSLOG_DESTINATIONS", "SEKIWAKE_XFLOW_DESTINATIONS", "SEKIWAKE_TRAP_DESTINATIONS"].map(destinations);
    for (name, own) in [
        (CAPTURE, [&served[..], &capture].concat()),
        (PROXY, [&served[..], &proxy].concat()),
        (SYSLOG, [&served[..], &to_syslog, &subscribe].concat()),
        (XFLOW, [&served[..], &to_xflow, &subscribe].concat()),
        (TRAP, [&served[..], &to_trap, &subscribe].concat()),
        ("sekiwake-tap", subscribe.to_vec()),
        ("sekiwake", [&served[..], &capture, &proxy, &to_syslog, &to_xflow, &to_trap].concat()),
    ] {
        let environment = [&common[..], &own].concat();
        for arguments in [&[][..], &["--check"]] {
            let (status, stdout, stderr) = run_to_end(name, arguments, &environment);
            let log = stderr.join("\n");
            assert_eq!((status, stdout.len()), (Some(2), 0), "{name}: {log}");
            assert_eq!(stderr.len(), environment.len(), "{name}: {log}");
            for (variable, value) in &environment {
                let line = stderr.iter().find(|line| line.starts_with(&format!("{variable}=")));
                let line = line.unwrap_or_else(|| panic!("{name} does not report {variable}: {log}"));
                assert!(value.split(',').any(|part| line.contains(part)), "{line}");
                let takes = ["expected", "no such setting"];
                assert!(takes.iter().any(|words| line.contains(words)), "{line}");
            }
            let hint = stderr.iter().find(|line| line.starts_with("SEKIWAKE_SYSLOG_DESTINATION=")).unwrap();
            assert!(hint.contains("SEKIWAKE_SYSLOG_DESTINATIONS"), "{hint}");
        }
    }
}

#[test]
fn example_environment_is_accepted_as_a_file() {
    let example = fs::read_to_string(document(".env.example")).unwrap();
    // With every default set, as an operator who removes all comment signs.
    let active: String = example.lines().map(|line| format!("{}\n", uncommented(line))).collect();
    let active = active.replace("SEKIWAKE_CAPTURE_INTERFACES=\n", "SEKIWAKE_CAPTURE_INTERFACES=lo\n");
    assert!(active.lines().filter(|line| line.starts_with("SEKIWAKE_")).count() > 50, "{active}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sekiwake.env");
    for contents in [&example, &active] {
        fs::write(&file, contents).unwrap();
        for name in SERVICES {
            let arguments = ["--check", "--env-file", file.to_str().unwrap()];
            let (status, stdout, stderr) = run_to_end(name, &arguments, &[("SEKIWAKE_CAPTURE_INTERFACES", "lo")]);
            assert_eq!((status, &stderr), (Some(0), &Vec::new()), "{name}");
            assert!(stdout.iter().any(|line| line == "SEKIWAKE_LOG=info"), "{name}: {stdout:?}");
        }
    }
}

/// A line of the example with its setting in effect.
fn uncommented(line: &str) -> &str {
    if line.starts_with("#SEKIWAKE_") { &line[1..] } else { line }
}

#[test]
fn mistakes_in_an_environment_file_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sekiwake.env");
    let path = file.to_str().unwrap();
    fs::write(&file, "SEKIWAKE_SYSLOG_DESTINATIONS=\"udp://198.51.100.7\n  upd://198.51.100.8\"\nSEKIWAKE_LOGG=info\n")
        .unwrap();
    for name in [SYSLOG, "sekiwake"] {
        let (status, stdout, stderr) =
            run_to_end(name, &["--check", "--env-file", path], &[("SEKIWAKE_CAPTURE_INTERFACES", "lo")]);
        assert_eq!((status, stdout.len(), stderr.len()), (Some(2), 0, 2), "{name}: {stderr:?}");
        assert!(stderr[0].starts_with(&format!("{path}:3: SEKIWAKE_LOGG=")), "{stderr:?}");
        assert!(stderr[1].starts_with(&format!("{path}:1: SEKIWAKE_SYSLOG_DESTINATIONS=")), "{stderr:?}");
    }
}

#[test]
fn capture_without_permission_exits_with_status_1() {
    if !namespaces_or_skipped() {
        return;
    }
    // An unprivileged user may not have access to the build directory.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join(CAPTURE);
    fs::copy(binary(CAPTURE), &program).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program);
    command.env("SEKIWAKE_CAPTURE_INTERFACES", "lo").env("SEKIWAKE_ADMIN", "127.0.0.1:0");
    let mut process = Process::spawn(command).unwrap();
    let status = process.wait(LONG).unwrap();
    let log = process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("no permission to capture on lo") && last.contains("NET_RAW"), "{log}");
    assert!(!log.contains("drain"), "{log}");
}

#[test]
fn destinations_file_is_parsed_as_strictly_as_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("destinations");
    let path = file.to_str().unwrap();
    let rejected = |more: &[(&str, &str)]| {
        let (status, _, stderr) =
            run_to_end(SYSLOG, &[], &[&[("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", path)], more].concat());
        assert_eq!((status, stderr.len()), (Some(2), 1), "{stderr:?}");
        stderr.into_iter().next().unwrap()
    };
    assert!(rejected(&[]).contains("No such file"));
    fs::write(&file, "udp://198.51.100.7:514\n# a comment\n  udp://198.51.100.7:514?spoof=perhaps\n").unwrap();
    let line = rejected(&[]);
    assert!(line.contains("SEKIWAKE_SYSLOG_DESTINATIONS_FILE") && line.contains("line 3, column 31: "), "{line}");
    fs::write(&file, "udp://198.51.100.7:514").unwrap();
    let line = rejected(&[("SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.8:514")]);
    assert!(line.contains("not both"), "{line}");
    let (status, ..) = run_to_end(SYSLOG, &["--check"], &[("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", path)]);
    assert_eq!(status, Some(0));
}

#[test]
fn check_reads_secrets_of_deliveries_and_warns() {
    let folder = tempfile::tempdir().unwrap();
    let headers = folder.path().join("headers");
    fs::write(&headers, "Authorization: Bearer secret\nnonsense secret\n").unwrap();
    let uri = |scheme: &str| format!("{scheme}://198.51.100.7?headers={}", headers.display());
    for (service, variable) in [
        (SYSLOG, "SEKIWAKE_SYSLOG_DESTINATIONS"),
        (XFLOW, "SEKIWAKE_XFLOW_DESTINATIONS"),
        (TRAP, "SEKIWAKE_TRAP_DESTINATIONS"),
    ] {
        let check = |uri: &str| run_to_end(service, &["--check"], &[(variable, uri)]);
        for (mode, expected) in
            [(0o644, "has mode 0644, expected no permissions for others"), (0o600, "line 2: expected")]
        {
            fs::set_permissions(&headers, fs::Permissions::from_mode(mode)).unwrap();
            let (status, _, stderr) = check(&uri("otlp+http"));
            let line = stderr.iter().find(|line| line.starts_with(&format!("{variable}="))).unwrap();
            assert!(status == Some(2) && line.contains(expected), "{stderr:?}");
            assert!(!stderr.concat().contains("secret"), "{stderr:?}");
        }
        fs::write(&headers, "Authorization: Bearer secret\n").unwrap();
        let (status, _, stderr) = check(&uri("otlp+http"));
        assert_eq!((status, stderr.len()), (Some(0), 2), "{stderr:?}");
        assert!(stderr.iter().all(|line| line.starts_with(&format!("warning: {variable}: "))), "{stderr:?}");
        assert!(stderr[0].contains("no spool=") && stderr[1].contains("plain connection"), "{stderr:?}");
        let (status, _, stderr) = check("otlp+http://198.51.100.7?spool=16MiB");
        assert_eq!((status, stderr.len()), (Some(0), 0), "{stderr:?}");
        fs::write(&headers, "Authorization: Bearer secret\nnonsense secret\n").unwrap();
    }
}

#[test]
fn check_names_mistakes_of_topics_and_reads_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    let uri = |options: &str| {
        let user = format!("sasl=plain&user=u&password={}", password.display());
        format!("kafka://198.51.100.7/logs?{user}{options}")
    };
    let check = |uri: &str| run_to_end(SYSLOG, &["--check"], &[("SEKIWAKE_SYSLOG_DESTINATIONS", uri)]);
    let rejected = |uri: &str, expected: &str| {
        let (status, _, stderr) = check(uri);
        let line = stderr.iter().find(|line| line.starts_with("SEKIWAKE_SYSLOG_DESTINATIONS=")).unwrap();
        assert!(status == Some(2) && line.contains(expected), "{stderr:?}");
        assert!(!stderr.concat().contains("secret"), "{stderr:?}");
    };
    rejected("kafka://198.51.100.7", "column 21: the topic is missing");
    rejected("kafka://198.51.100.7/logs?acks=1", "column 27: unknown option \"acks\"");
    rejected(&uri(""), "password: no such file");
    fs::write(&password, "secret\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    rejected(&uri(""), "has mode 0644, expected no permissions for others");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    rejected(&uri("&tls=true&ca=/nowhere/ca.pem"), "/nowhere/ca.pem: no such file");
    let (status, _, stderr) = check(&uri(""));
    assert_eq!((status, stderr.len()), (Some(0), 2), "{stderr:?}");
    assert!(stderr[0].contains("no spool=") && stderr[1].contains("plain connection"), "{stderr:?}");
    let (status, _, stderr) = check("kafka://198.51.100.7/logs?spool=16MiB");
    assert_eq!((status, stderr.len()), (Some(0), 0), "{stderr:?}");
}

#[test]
fn check_names_mistakes_of_subjects_and_reads_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("nkey");
    fs::write(&seed, "secret\n").unwrap();
    fs::set_permissions(&seed, fs::Permissions::from_mode(0o600)).unwrap();
    let bus = ("SEKIWAKE_BUS", "nats://n1,nats://n2:4223");
    let check = |uri: &str| run_to_end(SYSLOG, &["--check"], &[bus, ("SEKIWAKE_SYSLOG_DESTINATIONS", uri)]);
    let of_bus = "expected a subject that does not begin with \"sekiwake.\"";
    for (uri, expected) in [
        ("nats://198.51.100.7", "column 20: the subject is missing"),
        ("nats://n1/sekiwake.syslog.05", of_bus),
        ("nats://198.51.100.7:4222,N2:4223/sekiwake.other", of_bus),
        (&format!("nats://n1/logs?nkey={}", seed.display()), "nkey: "),
        ("nats://n1/logs?creds=/nowhere/creds", "/nowhere/creds: no such file"),
    ] {
        let (status, _, stderr) = check(uri);
        let line = stderr.iter().find(|line| line.starts_with("SEKIWAKE_SYSLOG_DESTINATIONS=")).unwrap();
        assert!(status == Some(2) && line.contains(expected), "{stderr:?}");
        assert!(!stderr.concat().contains("secret"), "{stderr:?}");
    }
    for uri in ["nats://n3/sekiwake.other?spool=16MiB", "nats://n1/logs?spool=16MiB"] {
        let (status, _, stderr) = check(uri);
        // No server of the bus runs.
        let is_expected = |line: &String| line.starts_with("warning: no NATS server of SEKIWAKE_BUS=");
        assert!(status == Some(0) && stderr.iter().all(is_expected), "{stderr:?}");
    }
}

#[test]
fn check_reads_certificates_and_keys_unless_told_not_to() {
    let tls = "tls://198.51.100.7:6514?ca=/nowhere/ca.pem udp://198.51.100.8:514";
    let settings = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", tls),
        ("SEKIWAKE_BUS_KEY_FILE", "/nowhere/own.key"),
        ("SEKIWAKE_BUS_SERVER_KEY_FILE", "/nowhere/proxy.key.pub"),
    ];
    for arguments in [&["--check"][..], &[]] {
        let (status, _, stderr) = run_to_end(SYSLOG, arguments, &settings);
        assert_eq!((status, stderr.len()), (Some(2), 3), "{stderr:?}");
        let line = stderr.iter().find(|line| line.starts_with("SEKIWAKE_SYSLOG_DESTINATIONS=")).unwrap();
        assert!(line.contains("ca=/nowhere/ca.pem") && line.contains("/nowhere/ca.pem: no such file"), "{line}");
        assert!(!line.contains("198.51.100.8"), "only the wrong one: {line}");
    }
    let (status, stdout, stderr) = run_to_end(SYSLOG, &["--check", "--no-files"], &settings);
    assert_eq!((status, stderr.len()), (Some(0), 0), "{stderr:?}");
    assert!(stdout.iter().any(|line| line == &format!("SEKIWAKE_SYSLOG_DESTINATIONS={tls}")), "{stdout:?}");
    // Mistakes that need no file are found all the same.
    let half = [("SEKIWAKE_SYSLOG_DESTINATIONS", "tls://198.51.100.7?key=/nowhere/key.pem"), settings[1]];
    let (status, _, stderr) = run_to_end(SYSLOG, &["--check", "--no-files"], &half);
    assert_eq!((status, stderr.len()), (Some(2), 2), "{stderr:?}");
    // In a file of destinations, too.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("destinations");
    fs::write(&file, tls).unwrap();
    let from_file = [("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", file.to_str().unwrap())];
    let (status, _, stderr) = run_to_end(SYSLOG, &["--check"], &from_file);
    assert!(status == Some(2) && stderr[0].contains("/nowhere/ca.pem: no such file"), "{stderr:?}");
    let (status, ..) = run_to_end(SYSLOG, &["--no-files"], &[]);
    assert_eq!(status, Some(2), "it is for --check only");
}
