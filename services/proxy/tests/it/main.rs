//! The proxy as a process, between a publisher and a subscriber of the real bus.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use sekiwake_testkit::process::Process;

const LONG: Duration = Duration::from_secs(20);

fn proxy(publish: &str, subscribe: &str) -> Process {
    Process::spawn(command(publish, subscribe)).unwrap()
}

fn command(publish: &str, subscribe: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-proxy"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
        command.env_remove(name);
    }
    command.env("SEKIWAKE_ADMIN", "127.0.0.1:0").env("SEKIWAKE_DRAIN", "5s");
    command.env("SEKIWAKE_PROXY_PUBLISH", publish).env("SEKIWAKE_PROXY_SUBSCRIBE", subscribe);
    command.env("SEKIWAKE_PROXY_CONTROL", "tcp://127.0.0.1:0");
    command
}

/// The endpoints that a proxy says it has bound: for subscribers, for publishers, for control.
fn bound(proxy: &Process) -> Vec<String> {
    proxy.wait_for_line(LONG, |line| line.contains(" started")).unwrap();
    let lines = proxy.stderr();
    let bound = lines.iter().filter(|line| line.contains("bound"));
    bound.map(|line| line.split("endpoint=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn sigterm_ends_it_with_status_0_also_while_a_peer_is_connected() {
    let mut proxy = proxy("tcp://127.0.0.1:0", "tcp://127.0.0.1:0");
    assert_eq!(bound(&proxy).len(), 3, "{:?}", proxy.stderr());
    assert_eq!(proxy.stop(LONG).unwrap().code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named_and_the_status_is_1() {
    let first = proxy("tcp://127.0.0.1:0", "tcp://127.0.0.1:0");
    let taken = bound(&first)[1].clone();
    let mut second = proxy(&taken, "tcp://127.0.0.1:0");
    assert_eq!(second.wait(LONG).unwrap().code(), Some(1));
    assert!(second.stderr().iter().any(|line| line.contains(&taken)), "{:?}", second.stderr());
}

#[test]
fn a_bus_that_is_open_to_the_network_is_a_warning() {
    let open = proxy("tcp://0.0.0.0:0", "tcp://127.0.0.1:0");
    open.wait_for_line(LONG, |line| line.contains("WARN") && line.contains("without encryption")).unwrap();
}

#[test]
fn check_says_what_memory_a_stalled_subscriber_takes_ordinarily_and_at_most() {
    let output = command("tcp://127.0.0.1:0", "tcp://127.0.0.1:0").arg("--check").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("about 78 MiB of ordinary batches, at most 395 MiB of the largest datagrams"), "{text}");
}
