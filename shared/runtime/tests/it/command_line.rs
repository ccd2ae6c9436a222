//! The whole `main`, in a child process: this test binary runs itself as a service.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    iter,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStderr, Command, ExitCode, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use sekiwake_runtime::{Process, Role};
use sekiwake_testkit::bad_log::{BAD_LOGS, BadLog};

use crate::toys::{First, get, wait_until, works};

/// Makes the test below a service: its command line, separated by spaces.
const ARGUMENTS: &str = "TOY_ARGUMENTS";

/// How the service's worker behaves: `idle`, `panic`, `stuck`, `chatty`, or `hoarding`.
const BEHAVIOUR: &str = "TOY_BEHAVIOUR";

/// More lines than the log's queue and a pipe can take.
const CHATTY_LINES: usize = 20_000;

/// What a chatty service prints when it has logged all of them.
const CHATTED: &str = "everything logged";

#[derive(clap::Subcommand)]
enum Commands {
    /// Fails.
    Fail { how: String },
}

/// Not a test of its own: without the variable it does nothing.
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
        Ok("chatty") => works("first", |worker| {
            for number in 0..CHATTY_LINES {
                tracing::info!(number, "nothing new");
                // As libzmq and libpcap do.
                let _ = io::stderr().write_all(b"a library has something to say\n");
            }
            println!("{CHATTED}");
            worker.stop().wait_forever();
            Ok(())
        }),
        Ok("hoarding") => works("first", |worker| {
            let _hoard: Vec<File> = iter::from_fn(|| File::open("/dev/null").ok()).collect();
            worker.stop().wait_forever();
            Ok(())
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
    // The test harness would replace the status by its own.
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
    // Without the lines that the test harness prints before the service starts.
    let stdout = String::from_utf8(stdout).unwrap();
    let stdout = stdout.split_once("running 1 test\n").map_or(stdout.as_str(), |(_, rest)| rest);
    let stdout = stdout.strip_prefix("test command_line::becomes_a_service ... ").unwrap_or(stdout);
    (status.code(), stdout.to_owned(), String::from_utf8(stderr).unwrap())
}

/// A service that has logged the address of its admin server.
fn started(settings: &[(&str, &str)]) -> (Child, BufReader<ChildStderr>, String) {
    started_by(service("", &[&[("SEKIWAKE_ADMIN", "127.0.0.1:0")], settings].concat()))
}

fn started_by(mut command: Command) -> (Child, BufReader<ChildStderr>, String) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("started") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the service ended before it had started");
    }
    let admin = line.split_once("admin=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    (child, log, admin)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn rest_of(mut log: BufReader<ChildStderr>) -> String {
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
fn check_reads_an_environment_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.env");
    let arguments = format!("--check --env-file {}", file.display());
    let check = |contents: &[u8]| {
        fs::write(&file, contents).unwrap();
        output(&arguments, &[("SEKIWAKE_TICK", "4ms"), ("SEKIWAKE_LOG", "debug")])
    };
    let (status, stdout, stderr) = check(b"# a comment\nSEKIWAKE_TICK=\"5ms\"\nOTHER=1\n");
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("SEKIWAKE_TICK=5ms\n") && stdout.contains("SEKIWAKE_LOG=debug\n"), "{stdout}");
    let name = file.display();
    for (contents, mistake) in [
        (&b"SEKIWAKE_TICK=5ms\nSEKIWAKE_TIK=5ms\n"[..], ":2: SEKIWAKE_TIK=\"5ms\": no such setting"),
        (b"\n\nSEKIWAKE_TICK=5", ":3: SEKIWAKE_TICK=\"5\": expected a duration"),
        (b"SEKIWAKE_TICK 5ms", ":1: expected NAME=value"),
        (b"SEKIWAKE_TICK='5ms\n", ":1: SEKIWAKE_TICK: the quote does not end"),
        (b"\0\xff", ":1: expected UTF-8 text"),
    ] {
        let (status, stdout, stderr) = check(contents);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.starts_with(&format!("{name}{mistake}")) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn environment_file_that_cannot_be_read_is_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    fs::write(&large, vec![b'#'; (1 << 20) + 1]).unwrap();
    for (file, problem) in [
        ("/no-such-file", "No such file"),
        ("/dev/zero", "not a regular file"),
        (large.to_str().unwrap(), "larger than 1 MiB"),
    ] {
        let (status, _, stderr) = output(&format!("--check --env-file {file}"), &[]);
        assert_eq!(status, Some(2), "{stderr}");
        assert!(stderr.contains(file) && stderr.contains(problem) && stderr.lines().count() == 1, "{stderr}");
    }
    let (status, _, stderr) = output("--env-file /dev/null", &[]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("--check"), "{stderr}");
}

#[test]
fn help_is_aligned_in_a_hundred_columns() {
    let (status, help, _) = output("--help", &[]);
    assert_eq!(status, Some(0));
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    let column =
        |name: &str, text: &str| help.lines().find(|line| line.contains(name)).and_then(|line| line.find(text));
    let descriptions = [column("SEKIWAKE_DRAIN", "time limit"), column("SEKIWAKE_BUS_SERVER_KEY_FILE", "the proxy's")];
    assert!(descriptions[0].is_some() && descriptions[0] == descriptions[1], "{help}");
    assert!(!help.contains("SEKIWAKE_STORE_DIR"), "{help}");
    assert!(help.contains("A duration is a whole number and a unit (us, ms,"), "{help}");
    let (status, version, _) = output("--version", &[]);
    assert_eq!(status, Some(0));
    assert!(version.starts_with(&format!("sekiwake-toy {} (", env!("CARGO_PKG_VERSION"))), "{version}");
    assert_eq!(output("--nonsense", &[]).0, Some(2));
}

#[test]
fn check_is_not_ignored_beside_a_subcommand() {
    for arguments in ["--check fail x", "--check healthcheck", "--check --no-files fail x"] {
        let (status, _, text) = output(arguments, &[]);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains("cannot be used with"), "{text}");
    }
}

#[test]
fn failing_subcommand_prints_the_error_chain_once() {
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
fn second_signal_ends_a_stuck_process() {
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
fn late_workers_are_named() {
    for (drain, expected) in [
        ("1h", "still draining waiting_for=\"first toy-0\""),
        ("0s", "drain deadline exceeded, exiting anyway late=\"first toy-0\""),
    ] {
        let (mut child, mut log, _) = started(&[(BEHAVIOUR, "stuck"), ("SEKIWAKE_DRAIN", drain)]);
        signal(&child, Signal::TERM);
        let mut line = String::new();
        while !line.contains(expected) {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "no line with {expected}");
        }
        signal(&child, Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn admin_server_answers_when_no_descriptor_is_left() {
    let service = service("", &[(BEHAVIOUR, "hoarding"), ("SEKIWAKE_ADMIN", "127.0.0.1:0")]);
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=64").arg(service.get_program()).args(service.get_args()).stdout(Stdio::piped());
    limited.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?)))).stderr(Stdio::piped());
    let (mut child, _log, admin) = started_by(limited);
    let admin = admin.parse().unwrap();
    let open = || fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap().count();
    wait_until("no descriptor is left", || open() >= 56);
    for _ in 0..50 {
        assert_eq!(get(admin, "/healthz").0, 200);
        let (status, metrics) = get(admin, "/metrics");
        assert!(status == 200 && metrics.contains("process_open_fds "), "{status} {metrics}");
    }
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn panic_is_logged_as_json_with_worker_and_location() {
    let settings = [(BEHAVIOUR, "panic"), ("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_LOG_FORMAT", "json")];
    let (status, _, stderr) = output("", &settings);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{stderr}");
    assert!(stderr.contains(r#""worker":"toy-0""#) && stderr.contains("command_line.rs:"), "{stderr}");
}

#[test]
fn taken_admin_port_is_status_1_and_names_the_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, _, stderr) = output("", &[("SEKIWAKE_ADMIN", &address)]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains(&format!("cannot bind {address} (SEKIWAKE_ADMIN)")), "{stderr}");
}

#[test]
fn a_service_with_a_bad_log_works_and_stops() {
    // Its log does not tell the port, so the address is this process's own.
    let [.., high, low] = std::process::id().to_be_bytes();
    let admin = format!("127.66.{high}.{low}:9600");
    for log in BAD_LOGS {
        let (stderr, _reader) = log.open().unwrap();
        let settings = [(BEHAVIOUR, "chatty"), ("SEKIWAKE_ADMIN", admin.as_str()), ("SEKIWAKE_DRAIN", "1h")];
        let mut child = service("", &settings).stderr(stderr).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains(CHATTED) {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "{log:?}: it ended: {:?}", child.wait());
        }
        let reason = if log == BadLog::FullPipe { "queue_full" } else { "write_failed" };
        let zero = format!("sekiwake_log_dropped_total{{reason=\"{reason}\"}} 0\n");
        wait_until("dropped lines are counted", || {
            let (_, metrics) = get(admin.parse().unwrap(), "/metrics");
            metrics.contains(&zero[..zero.len() - 2]) && !metrics.contains(&zero)
        });
        signal(&child, Signal::TERM);
        let status = child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{log:?}");
    }
}

#[test]
fn exit_statuses_do_not_depend_on_the_log() {
    let mistake = ("SEKIWAKE_TICK", "x");
    let admin = ("SEKIWAKE_ADMIN", "127.0.0.1:0");
    for log in BAD_LOGS {
        for (arguments, settings, expected) in [
            ("", [mistake, admin], 2),
            ("--check", [mistake, admin], 2),
            ("--nonsense", [admin, admin], 2),
            ("fail x", [admin, admin], 1),
            ("", [(BEHAVIOUR, "panic"), admin], 1),
            ("", [admin, ("SEKIWAKE_ADMIN", "198.51.100.1:1")], 1),
        ] {
            let (stderr, _reader) = log.open().unwrap();
            let status = service(arguments, &settings).stderr(stderr).status().unwrap();
            assert_eq!((status.code(), status.signal()), (Some(expected), None), "{log:?} {arguments} {settings:?}");
        }
    }
}

#[test]
fn everything_logged_is_written_before_the_exit() {
    let settings = [(BEHAVIOUR, "panic"), ("SEKIWAKE_ADMIN", "127.0.0.1:0")];
    let (status, _, stderr) = output("", &settings);
    assert_eq!(status, Some(1));
    // The worker may panic before the start of the service is logged.
    assert!(stderr.contains("service started"), "{stderr}");
    let lines = ["thread panicked", "worker panicked", "service ended"].map(|line| stderr.find(line));
    assert!(lines.iter().all(Option::is_some) && lines.is_sorted(), "{stderr}");
}

#[test]
fn nonsense_as_log_filter_is_status_2() {
    let nonsense = ["-1", "tcp://", "ä☃", "inof", "info,", "sekiwake_bus", "=debug", "a=b", "a=debug=info", "[x]=info"];
    for filter in nonsense.into_iter().chain(["info sekiwake_bus=debug", "{}", "a-b=info", "a::=info", "1=info"]) {
        for arguments in ["", "--check", "fail x"] {
            let (status, _, stderr) = output(arguments, &[("SEKIWAKE_LOG", filter), ("SEKIWAKE_ADMIN", "127.0.0.1:0")]);
            assert_eq!(status, Some(2), "{filter} {arguments}: {stderr}");
            assert!(stderr.starts_with("SEKIWAKE_LOG="), "{filter}: {stderr}");
        }
    }
    for filter in ["DEBUG", "off", "info, sekiwake_bus::relay=trace", "hyper=off", "3"] {
        assert_eq!(output("--check", &[("SEKIWAKE_LOG", filter)]).0, Some(0), "{filter}");
    }
}
