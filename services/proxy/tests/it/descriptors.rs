//! A proxy without free descriptors.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use sekiwake_testkit::{process::Process, wait::wait_for};

use crate::{LONG, bound, command};

/// The first bytes of a subscriber (ZeroMQ RFC 23): a greeting of 64 bytes, and its READY.
fn handshake() -> Vec<u8> {
    const READY: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB";
    let mut bytes = [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, b'N', b'U', b'L', b'L'].to_vec();
    bytes.resize(64, 0);
    [&bytes, READY].concat()
}

/// The same command with fewer descriptors.
fn limited(command: &Command, descriptors: u32) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={descriptors}")).arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

/// Fails if the process spins.
fn wait_until_idle(process: &Process) {
    wait_for("a second with little work", LONG, || {
        let before = process.cpu_time().unwrap();
        thread::sleep(Duration::from_secs(1));
        process.cpu_time().unwrap() - before < Duration::from_millis(150)
    })
    .unwrap();
}

#[test]
fn connections_wait_while_no_descriptor_is_left() {
    let local = "tcp://127.0.0.1:0";
    let mut proxy = Process::spawn(limited(&command(local, local), 128)).unwrap();
    let subscribe = bound(&proxy)[0].strip_prefix("tcp://").unwrap().to_owned();
    let started = proxy.wait_for_line(LONG, |line| line.contains(" started")).unwrap();
    let admin = started.split("admin=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let strangers: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stranger = TcpStream::connect(&subscribe).unwrap();
            stranger.write_all(&handshake()).unwrap();
            stranger
        })
        .collect();
    proxy.wait_for_line(LONG, |line| line.contains("no file descriptor left")).unwrap();

    wait_until_idle(&proxy);
    for _ in 0..20 {
        let mut healthcheck = Command::new(env!("CARGO_BIN_EXE_sekiwake-proxy"));
        healthcheck.arg("healthcheck").env("SEKIWAKE_ADMIN", &admin).stdout(Stdio::null());
        assert!(healthcheck.status().unwrap().success());
    }
    wait_until_idle(&proxy);

    // The next one is served once they have left.
    drop(strangers);
    let mut next = TcpStream::connect(&subscribe).unwrap();
    next.set_read_timeout(Some(LONG)).unwrap();
    next.write_all(&handshake()).unwrap();
    let mut greeting = [0; 64];
    next.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..10], handshake()[..10]);
    assert_eq!(proxy.stop(LONG).unwrap().code(), Some(0));
}
