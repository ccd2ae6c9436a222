//! Checks of the images.

use serde_json::Value;

use crate::project::{Project, docker};

/// Services that run without root.
const UNPRIVILEGED: [&str; 7] =
    ["proxy", "syslog-forwarder", "xflow-forwarder", "trap-forwarder", "storer", "anomaly-detector", "console"];
const TOOLS: [&str; 3] = ["sender", "receiver", "tap"];

pub(crate) fn check(project: &Project) {
    for name in UNPRIVILEGED.iter().chain(&TOOLS).chain(&["capture"]) {
        let image = project.image(name);
        let described: Value =
            serde_json::from_str(&docker(&["image", "inspect", "-f", "{{json .Config}}", &image])).unwrap();
        let user = if *name == "capture" { "0:0" } else { "65532:65532" };
        assert_eq!(described["User"], user, "{name}");
        assert_eq!(described["Entrypoint"], serde_json::json!([format!("/usr/bin/sekiwake-{name}")]));
        for label in ["title", "description", "version", "revision", "licenses"] {
            let label = format!("org.opencontainers.image.{label}");
            assert!(described["Labels"][&label].as_str().is_some_and(|text| !text.is_empty()), "{name}: {label}");
        }
        if !TOOLS.contains(name) {
            let check = serde_json::json!(["CMD", format!("/usr/bin/sekiwake-{name}"), "healthcheck"]);
            assert_eq!(described["Healthcheck"]["Test"], check);
        }
        let locked = [
            "run",
            "--rm",
            "--cap-drop",
            "ALL",
            "--read-only",
            "--network",
            "none",
            "--security-opt",
            "no-new-privileges",
        ];
        let version = docker(&[&locked[..], &[&image, "--version"]].concat());
        assert!(version.starts_with(&format!("sekiwake-{name} ")), "{version}");
        let files = files(&image);
        let libpcap = files.iter().any(|file| file.contains("libpcap"));
        assert_eq!(libpcap, *name == "capture", "{name}: libpcap");
        for shell in ["bin/sh", "bin/bash", "bin/busybox"] {
            assert!(!files.iter().any(|file| file.ends_with(shell)), "{name} has {shell}");
        }
        // Vulnerability scanners read the versions of libraries from it.
        assert!(
            files.iter().any(|file| file.ends_with("var/lib/dpkg/status.d/libc6")),
            "{name} has no record of its packages"
        );
        eprintln!("        sekiwake-{name}: {} MB", size(&image));
    }
}

/// The size of an image in megabytes, rounded.
fn size(image: &str) -> u64 {
    (docker(&["image", "inspect", "-f", "{{.Size}}", image]).parse::<u64>().unwrap() + 500_000) / 1_000_000
}

/// The names of the files in an image.
fn files(image: &str) -> Vec<String> {
    let container = docker(&["create", image]);
    let script = format!("docker export {container} | tar -t");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    docker(&["rm", "--volumes", &container]);
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
