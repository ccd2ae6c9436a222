//! Settings and the command line, the same for every service.

use std::{fs, os::unix::fs::PermissionsExt};

use sekiwake_testkit::{netns::available_or_skipped, process::Process};
use sekiwake_tests::binary;

use crate::support::*;

const SERVICES: [&str; 7] = [CAPTURE, PROXY, SYSLOG, XFLOW, TRAP, "sekiwake-tap", "sekiwake"];

/// Runs a program without a namespace.
fn ended(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, Vec<String>, Vec<String>) {
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
fn every_binary_tells_what_it_is_and_its_version() {
    for name in SERVICES.into_iter().chain(["sekiwake-sender"]) {
        let (status, stdout, stderr) = ended(name, &["--help"], &[]);
        assert_eq!((status, stderr.len()), (Some(0), 0), "{name}");
        assert!(stdout.join("\n").contains(&format!("Usage: {name}")), "{name}: {stdout:?}");
        let (status, stdout, _) = ended(name, &["--version"], &[]);
        assert_eq!(status, Some(0));
        assert!(stdout[0].starts_with(&format!("{name} ")) && stdout[0].contains(char::is_numeric), "{stdout:?}");
        let (status, _, stderr) = ended(name, &["--no-such-option"], &[]);
        assert_eq!(status, Some(2), "{name}: {stderr:?}");
    }
}

#[test]
fn check_prints_the_resolved_settings() {
    for name in SERVICES {
        let (status, stdout, stderr) =
            ended(name, &["--check"], &[("SEKIWAKE_CAPTURE_INTERFACES", "lo"), ("SEKIWAKE_LOG", "debug")]);
        assert_eq!((status, &stderr), (Some(0), &Vec::new()), "{name}");
        assert!(
            stdout.iter().any(|line| line.contains("SEKIWAKE_LOG") && line.contains("debug")),
            "{name}: {stdout:?}"
        );
    }
}

#[test]
fn an_all_in_one_takes_a_whole_bus_or_none() {
    let endpoint = "tcp://198.51.100.1:5559";
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", "lo"), ("SEKIWAKE_BUS_PUBLISH", endpoint)];
    let (status, _, stderr) = ended("sekiwake", &["--check"], &environment);
    assert_eq!((status, stderr.len()), (Some(2), 2), "{stderr:?}");
    assert!(stderr.iter().any(|line| line.contains("SEKIWAKE_BUS_SUBSCRIBE")), "{stderr:?}");
    assert!(stderr.iter().any(|line| line.contains("SEKIWAKE_BUS_CONTROL")), "{stderr:?}");
    let whole = [("SEKIWAKE_BUS_SUBSCRIBE", endpoint), ("SEKIWAKE_BUS_CONTROL", endpoint)];
    let (status, _, stderr) = ended("sekiwake", &["--check"], &[&environment[..], &whole].concat());
    assert_eq!((status, stderr.len()), (Some(0), 0), "{stderr:?}");
}

#[test]
fn all_mistakes_are_told_at_once_one_line_each_with_what_the_variable_takes() {
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
            let (status, stdout, stderr) = ended(name, arguments, &environment);
            let said = stderr.join("\n");
            assert_eq!((status, stdout.len()), (Some(2), 0), "{name}: {said}");
            assert_eq!(stderr.len(), environment.len(), "{name}: {said}");
            for (variable, value) in &environment {
                let line = stderr.iter().find(|line| line.starts_with(&format!("{variable}=")));
                let line = line.unwrap_or_else(|| panic!("{name} says nothing of {variable}: {said}"));
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
fn a_capture_without_the_right_to_capture_says_so_and_ends_with_status_1() {
    let test = "a_capture_without_the_right_to_capture_says_so_and_ends_with_status_1";
    if !available_or_skipped(test) {
        return;
    }
    // Where the build is nobody may be allowed to look.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join(CAPTURE);
    fs::copy(binary(CAPTURE), &program).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program);
    command.env("SEKIWAKE_CAPTURE_INTERFACES", "lo").env("SEKIWAKE_ADMIN", "127.0.0.1:0");
    let mut process = Process::spawn(command).unwrap();
    let status = process.wait(LONG).unwrap();
    let said = process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no permission to capture on lo") && said.contains("NET_RAW"), "{said}");
}

#[test]
fn a_file_of_destinations_is_read_as_strictly_as_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("destinations");
    let path = file.to_str().unwrap();
    let refused = |more: &[(&str, &str)]| {
        let (status, _, stderr) = ended(SYSLOG, &[], &[&[("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", path)], more].concat());
        assert_eq!((status, stderr.len()), (Some(2), 1), "{stderr:?}");
        stderr.into_iter().next().unwrap()
    };
    assert!(refused(&[]).contains("No such file"));
    fs::write(&file, "udp://198.51.100.7:514\n# a comment\n  udp://198.51.100.7:514?spoof=perhaps\n").unwrap();
    let line = refused(&[]);
    assert!(line.contains("SEKIWAKE_SYSLOG_DESTINATIONS_FILE") && line.contains("line 3, column 31: "), "{line}");
    fs::write(&file, "udp://198.51.100.7:514").unwrap();
    let line = refused(&[("SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.8:514")]);
    assert!(line.contains("not both"), "{line}");
    let (status, ..) = ended(SYSLOG, &["--check"], &[("SEKIWAKE_SYSLOG_DESTINATIONS_FILE", path)]);
    assert_eq!(status, Some(0));
}
