//! A savefile that is a pipe.

use std::{process::Command, time::Duration};

use sekiwake_testkit::process::Process;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn capture_that_waits_for_a_pipe_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-capture"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
        command.env_remove(name);
    }
    command.env("SEKIWAKE_CAPTURE_FILE", &pipe).env("SEKIWAKE_ADMIN", "127.0.0.1:0");
    let mut capture = Process::spawn(command).unwrap();
    capture.wait_for_line(LONG, |line| line.contains("service started")).unwrap();
    assert_eq!(capture.stop(LONG).unwrap().code(), Some(0), "{:?}", capture.stderr());
}
