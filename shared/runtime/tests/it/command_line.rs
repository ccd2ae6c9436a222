//! The whole `main`, in a child process: this test binary runs itself, and the child becomes a service.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sekiwake_runtime::{Process, Role};

use crate::toys::{First, works};

/// What makes the test below become a service: its command line, separated by spaces.
const ARGUMENTS: &str = "TOY_ARGUMENTS";

/// How the service's worker behaves: `idle`, `panic`, or `stuck`.
const BEHAVIOUR: &str = "TOY_BEHAVIOUR";

#[derive(clap::Subcommand)]
enum Commands {
    /// Fails.
    Fail { how: String },
}

/// No test of its own: without the variable it does nothing.
#[test]
fn becomes_a_service() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    match std::env::var(BEHAVIOUR).as_deref() {
        Ok("panic") => works("first", |_| panic!("a bug")),
        Ok("stuck") => works("first", |_| {
            loop {
                std::thread::park();
            }
        }),
        _ => {}
    }
    let process = Process::of::<First>().commands(|command: Commands, environment| {
        let Commands::Fail { how } = command;
        sekiwake_settings::read(environment, First::read)?;
        Err(anyhow::anyhow!("no such file").context(format!("cannot read {how}")))
    });
    let arguments = ["sekiwake-toy"].into_iter().chain(arguments.split_whitespace());
    let code = process.run_from(arguments);
    // The harness would turn any status into its own.
    let status = (0..=u8::MAX).find(|status| ExitCode::from(*status) == code).unwrap();
    std::process::exit(status.into());
}

fn service(arguments: &str, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "command_line::becomes_a_service", "--nocapture", "--test-threads=1"])
        .env(ARGUMENTS, arguments)
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output(arguments: &str, settings: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = service(arguments, settings).output().unwrap();
    // What the test harness prints before the service begins.
    let stdout = String::from_utf8(stdout).unwrap();
    let stdout = stdout.split_once("running 1 test\n").map_or(stdout.as_str(), |(_, rest)| rest);
    let stdout = stdout.strip_prefix("test command_line::becomes_a_service ... ").unwrap_or(stdout);
    (status.code(), stdout.to_owned(), String::from_utf8(stderr).unwrap())
}

/// A service that has said where its admin server is.
fn started(settings: &[(&str, &str)]) -> (Child, BufReader<std::process::ChildStderr>, String) {
    let mut child = service("", &[&[("SEKIWAKE_ADMIN", "127.0.0.1:0")], settings].concat()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("started") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended before it had started");
    }
    let admin = line.split_once("admin=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    (child, log, admin)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn rest_of(mut log: BufReader<std::process::ChildStderr>) -> String {
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn check_prints_the_resolved_settings_in_the_order_of_the_table() {
    let (status, stdout, _) = output("--check", &[("SEKIWAKE_TICK", " 5ms "), ("SEKIWAKE_LOG", "debug,hyper=off")]);
    let expected = "SEKIWAKE_TICK=5ms\nSEKIWAKE_ADMIN=127.0.0.1:0\nSEKIWAKE_DRAIN=10s\n\
        SEKIWAKE_LOG=debug,hyper=off\nSEKIWAKE_LOG_FORMAT=text\n";
    assert_eq!((status, stdout.as_str()), (Some(0), expected));
}

#[test]
fn mistakes_are_plain_lines_on_standard_error_and_status_2() {
    let settings = [("SEKIWAKE_TICK", "x"), ("SEKIWAKE_LOGS", "info")];
    let expected = "SEKIWAKE_LOGS=\"info\": no such setting, did you mean SEKIWAKE_LOG?\n\
        SEKIWAKE_TICK=\"x\": expected a duration such as 2ms, 10s or 1m\n";
    for arguments in ["", "--check", "fail x"] {
        let (status, stdout, stderr) = output(arguments, &settings);
        let stderr = if arguments.starts_with("fail") { stderr.lines().take(1).collect() } else { stderr };
        assert_eq!(status, Some(2), "{arguments}: {stdout}{stderr}");
        assert!(expected.starts_with(&stderr) && !stderr.is_empty(), "{arguments}: {stderr}");
    }
}

#[test]
fn help_fits_in_a_hundred_columns_and_version_is_plain() {
    let (status, help, _) = output("--help", &[]);
    assert_eq!(status, Some(0));
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    assert!(help.contains("SEKIWAKE_DRAIN"), "{help}");
    assert!(!help.contains("SEKIWAKE_STORE_DIR"), "{help}");
    let (status, version, _) = output("--version", &[]);
    assert_eq!(status, Some(0));
    assert!(version.starts_with(&format!("sekiwake-toy {} (", env!("CARGO_PKG_VERSION"))), "{version}");
    assert_eq!(output("--nonsense", &[]).0, Some(2));
}

#[test]
fn a_subcommand_that_fails_prints_the_whole_chain_once() {
    let (status, _, stderr) = output("fail x.pcap", &[]);
    assert_eq!((status, stderr.as_str()), (Some(1), "sekiwake-toy: cannot read x.pcap: no such file\n"));
}

#[test]
fn sigterm_drains_and_ends_with_status_0() {
    for stop in [Signal::TERM, Signal::INT] {
        let (mut child, log, admin) = started(&[]);
        let settings = [("SEKIWAKE_ADMIN", admin.as_str())];
        assert_eq!(output("healthcheck", &settings).0, Some(0));
        assert_eq!(output("healthcheck --ready", &settings).0, Some(0));
        signal(&child, stop);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let log = rest_of(log);
        assert!(log.contains("stopping") && log.contains("ended") && !log.contains('\u{1b}'), "{log}");
        assert_eq!(output("healthcheck", &settings).0, Some(1));
    }
}

#[test]
fn a_second_signal_ends_a_stuck_process_at_once() {
    let (mut child, mut log, _) = started(&[(BEHAVIOUR, "stuck"), ("SEKIWAKE_DRAIN", "1h")]);
    signal(&child, Signal::TERM);
    let mut line = String::new();
    while !line.contains("stopping") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0);
    }
    signal(&child, Signal::TERM);
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(1), None));
}

#[test]
fn who_is_late_is_named() {
    let (mut child, log, _) = started(&[(BEHAVIOUR, "stuck"), ("SEKIWAKE_DRAIN", "2200ms")]);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let log = rest_of(log);
    assert!(log.contains("still draining waiting_for=\"first toy-0\""), "{log}");
    assert!(log.contains("not drained in time, ending all the same late=\"first toy-0\""), "{log}");
}

#[test]
fn a_panic_is_logged_with_the_worker_and_the_place_as_json_when_asked() {
    let settings = [(BEHAVIOUR, "panic"), ("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_LOG_FORMAT", "json")];
    let (status, _, stderr) = output("", &settings);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{stderr}");
    assert!(stderr.contains(r#""worker":"toy-0""#) && stderr.contains("command_line.rs:"), "{stderr}");
}

#[test]
fn a_taken_admin_port_is_status_1_and_names_the_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, _, stderr) = output("", &[("SEKIWAKE_ADMIN", &address)]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains(&format!("cannot bind {address} (SEKIWAKE_ADMIN)")), "{stderr}");
}
