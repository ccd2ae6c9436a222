//! The proxy as a process, between a publisher and a subscriber of the real bus.
#![allow(clippy::unwrap_used)]

mod descriptors;

use std::{
    fs,
    io::{self, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use sekiwake_testkit::process::Process;

const LONG: Duration = Duration::from_secs(60);

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

/// The endpoints in the log of a proxy: for subscribers, publishers and control.
fn bound(proxy: &Process) -> Vec<String> {
    proxy.wait_for_line(LONG, |line| line.contains(" started")).unwrap();
    let lines = proxy.stderr();
    let bound = lines.iter().filter(|line| line.contains("bound"));
    bound.map(|line| line.split("endpoint=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn sigterm_ends_the_proxy_with_status_0() {
    let mut proxy = proxy("tcp://127.0.0.1:0", "tcp://127.0.0.1:0");
    assert_eq!(bound(&proxy).len(), 3, "{:?}", proxy.stderr());
    assert_eq!(proxy.stop(LONG).unwrap().code(), Some(0));
}

#[test]
fn port_in_use_is_named_and_status_is_1() {
    let first = proxy("tcp://127.0.0.1:0", "tcp://127.0.0.1:0");
    let taken = bound(&first)[1].clone();
    let mut second = proxy(&taken, "tcp://127.0.0.1:0");
    assert_eq!(second.wait(LONG).unwrap().code(), Some(1));
    let reason = format!("cannot bind {taken} (SEKIWAKE_PROXY_PUBLISH): Address already in use");
    assert!(second.stderr().iter().any(|line| line.contains(&reason)), "{:?}", second.stderr());
}

#[test]
fn unencrypted_bus_on_the_network_is_a_warning() {
    let open = proxy("tcp://0.0.0.0:0", "tcp://127.0.0.1:0");
    open.wait_for_line(LONG, |line| line.contains("WARN") && line.contains("without encryption")).unwrap();
}

#[test]
fn check_prints_the_memory_of_a_stalled_subscriber() {
    let output = command("tcp://127.0.0.1:0", "tcp://127.0.0.1:0").arg("--check").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("about 78 MiB of ordinary batches, at most 395 MiB of the largest datagrams"), "{text}");
}

#[test]
fn check_ends_although_nobody_reads_its_output() {
    let (reader, mut writer) = io::pipe().unwrap();
    // Full, but for less than one answer.
    writer.write_all(&[b'x'; 65_536 - 16]).unwrap();
    let mut check = command("tcp://127.0.0.1:0", "tcp://127.0.0.1:0");
    let mut check = check.arg("--check").stdout(Stdio::from(writer)).spawn().unwrap();
    assert!(check.wait().unwrap().success());
    drop(reader);
}

fn keygen(path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sekiwake-proxy")).arg("keygen").arg(path).output().unwrap()
}

#[test]
fn keygen_writes_a_pair_and_does_not_overwrite_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture-1.key");
    let made = keygen(&path);
    assert_eq!((made.status.code(), made.stderr.len()), (Some(0), 0));
    let line = String::from_utf8(made.stdout).unwrap();
    assert!(line.ends_with(" capture-1\n") && line.len() == 40 + " capture-1\n".len(), "{line}");
    let public = folder.path().join("capture-1.key.pub");
    assert_eq!(fs::read_to_string(&public).unwrap(), line);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = fs::read_to_string(&path).unwrap();
    assert!(secret.starts_with('#') && secret.contains("\nsecret ") && secret.contains(&line[..40]));

    let again = keygen(&path);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(1), 0));
    let stderr = String::from_utf8(again.stderr).unwrap();
    assert!(
        stderr.contains("cannot create") && stderr.contains("capture-1.key") && stderr.contains("exists"),
        "{stderr}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), secret);
}

/// As Kubernetes mounts a Secret for a pod with an fsGroup: root owns the files, and the pod's
/// group may read them.
#[test]
fn key_of_root_may_be_readable_by_the_group() {
    const USER: u32 = 65532;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("proxy.key");
    assert!(keygen(&path).status.success());
    if let Err(error) = chown(&path, Some(0), Some(USER)) {
        eprintln!("SKIPPED: needs root ({error})");
        return;
    }
    // A copy that this user can execute.
    let binary = folder.path().join("proxy");
    fs::copy(env!("CARGO_BIN_EXE_sekiwake-proxy"), &binary).unwrap();
    let check = |mode: u32| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mut check = Command::new(&binary);
        check.arg("--check").env_clear().uid(USER).gid(USER);
        check.env("SEKIWAKE_BUS_KEY_FILE", &path);
        check.env("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", folder.path().join("proxy.key.pub"));
        let output = check.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(0o440), (Some(0), String::new()));
    let (status, stderr) = check(0o444);
    assert!(status == Some(2) && stderr.contains("mode 0444"), "{status:?} {stderr}");
}

#[test]
fn encrypted_bus_is_no_warning_and_check_hides_keys() {
    let folder = tempfile::tempdir().unwrap();
    let [own, client] = ["proxy.key", "client.key"].map(|name| folder.path().join(name));
    assert!(keygen(&own).status.success() && keygen(&client).status.success());
    let keyed = |more: &[&str]| {
        let mut command = command("tcp://0.0.0.0:0", "tcp://127.0.0.1:0");
        command.env("SEKIWAKE_BUS_KEY_FILE", &own).args(more);
        command.env("SEKIWAKE_BUS_ALLOWED_KEYS_FILE", folder.path().join("client.key.pub"));
        command
    };
    let secrets = fs::read_to_string(&own).unwrap();
    let secret = secrets.lines().find_map(|line| line.strip_prefix("secret ")).unwrap();
    let checked = keyed(&["--check"]).output().unwrap();
    let text = String::from_utf8(checked.stdout).unwrap();
    assert!(text.contains("SEKIWAKE_BUS_KEY_FILE=") && !text.contains(secret), "{text}");

    let mut proxy = Process::spawn(keyed(&[])).unwrap();
    assert_eq!(bound(&proxy).len(), 3, "{:?}", proxy.stderr());
    assert_eq!(proxy.stop(LONG).unwrap().code(), Some(0));
    let stderr = proxy.stderr().join("\n");
    assert!(!stderr.contains("without encryption") && stderr.contains("restricted to allowed keys"), "{stderr}");
    assert!(!stderr.contains(secret), "{stderr}");
}

#[test]
fn missing_half_of_the_keys_is_named_and_status_is_2() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("proxy.key");
    assert!(keygen(&own).status.success());
    let output = command("tcp://127.0.0.1:0", "tcp://127.0.0.1:0").env("SEKIWAKE_BUS_KEY_FILE", &own).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.starts_with("SEKIWAKE_BUS_ALLOWED_KEYS_FILE is not set"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
}
