//! rsyslog and syslog-ng, which write each message unmodified and unparsed.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Context;

use super::{
    Recipe, Record, marked,
    programs::{program, unpacked_with},
};

const CONFIGURATION: &str = "daemon.conf";
const WRITTEN: &str = "messages";

/// rsyslog with its UDP input.
pub struct Rsyslogd;

impl Recipe for Rsyslogd {
    const PROGRAM: &'static str = "rsyslogd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        let octal = |mark: char| format!("\\{:03o}", u32::from(mark));
        let [begin, middle, end] = [marked::BEGIN, marked::MIDDLE, marked::END].map(octal);
        let ip = address.ip();
        let port = address.port();
        let shown = folder.display();
        let text = format!(
            r#"global(workDirectory="{shown}" maxMessageSize="64k" net.enableDNS="off")
module(load="imudp")
template(name="marked" type="string" string="{begin}%fromhost-ip%{middle}%rawmsg%{end}\n")
ruleset(name="write") {{ action(type="omfile" file="{shown}/{WRITTEN}" template="marked") }}
input(type="imudp" address="{ip}" port="{port}" ruleset="write")
"#
        );
        fs::write(folder.join(CONFIGURATION), text)?;
        let mut command = program(Self::PROGRAM)?;
        command.arg("-n").arg("-f").arg(folder.join(CONFIGURATION)).arg("-i").arg(folder.join("pid"));
        Ok(command)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        read(folder)
    }
}

/// syslog-ng with its network source.
pub struct SyslogNg;

impl Recipe for SyslogNg {
    const PROGRAM: &'static str = "syslog-ng";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        let ip = address.ip();
        let port = address.port();
        let version = if address.is_ipv4() { 4 } else { 6 };
        let begin = marked::BEGIN;
        let middle = marked::MIDDLE;
        let end = marked::END;
        let shown = folder.display();
        // A configuration must name its version; `current` is the installed one.
        let text = format!(
            r#"@version: current
options {{ use-dns(no); dns-cache(no); use-fqdn(no); chain-hostnames(no); keep-hostname(no); flush-lines(1); log-msg-size(65536); stats-freq(0); }};
source s {{ network(transport("udp") ip-protocol({version}) ip("{ip}") port({port}) flags(no-parse)); }};
destination d {{ file("{shown}/{WRITTEN}" template("{begin}$SOURCEIP{middle}${{MSG}}{end}\n")); }};
log {{ source(s); destination(d); }};
"#
        );
        fs::write(folder.join(CONFIGURATION), text)?;
        let mut command = program(Self::PROGRAM)?;
        command.args(["--foreground", "--stderr", "--no-caps", "--cfgfile"]).arg(folder.join(CONFIGURATION));
        for (option, file) in [("--persist-file", "persist"), ("--control", "control"), ("--pidfile", "pid")] {
            command.arg(option).arg(folder.join(file));
        }
        if let Some(package) = unpacked_with(Self::PROGRAM) {
            command.arg("--module-path").arg(modules(&package)?);
        }
        Ok(command)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        read(folder)
    }
}

/// The folder of modules in an unpacked package, named after the version.
fn modules(package: &Path) -> anyhow::Result<std::path::PathBuf> {
    let folder = package.join("usr/lib/syslog-ng");
    let mut versions = folder.read_dir()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    versions.next().with_context(|| format!("no modules in {}", folder.display()))
}

fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
    let path = folder.join(WRITTEN);
    // The file is created with the first message.
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(marked::read(&fs::read(path)?))
}
