//! Mistakes in the settings of a capture.

use std::process::{Command, Output};

fn capture(arguments: &[&str], interfaces: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-capture"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("SEKIWAKE_CAPTURE_INTERFACES", interfaces).output().expect("the binary runs")
}

#[test]
fn interface_that_cannot_exist_is_a_mistake_with_status_2() {
    let wrong = [
        "\"eth0\"",
        "'eth0'",
        "`eth0`",
        "\u{201c}eth0\u{201d}",
        "eth*",
        "eth?",
        "eth[01]",
        "${IFACE}",
        "a\\b",
        "eth0;eth1",
        "eth0:1",
        "../eth0",
        "\u{feff}eth0",
        "sixteen-bytes-it",
    ];
    for name in wrong {
        for setting in [name.to_owned(), format!("lo,{name}")] {
            let output = capture(&["--check"], &setting);
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{setting}: {log}");
            assert!(log.contains("SEKIWAKE_CAPTURE_INTERFACES") && log.contains("without quotes"), "{log}");
        }
        assert_eq!(capture(&["discover", name], "lo").status.code(), Some(2), "discover {name}");
    }
    // In the setting, white space separates two names.
    for name in ["eth0 eth1", " eth0", "eth\t0", ""] {
        assert_eq!(capture(&["discover", name], "lo").status.code(), Some(2), "discover {name:?}");
    }
    for name in ["lo", "eth0", "bond0.20", "br-2f9c", "wlp3s0", "vlan@eth0", "any", "enx00e04c68"] {
        let output = capture(&["--check"], name);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
