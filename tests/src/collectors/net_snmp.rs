//! snmptrapd and the tools that send to it.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use super::{Recipe, Record, marked, programs::program};

/// The engine of the agents. The sender's engine is authoritative for a trap (RFC 3412 §7.1.9).
pub const TRAP_ENGINE: &str = "0x8000000001020304";

const CONFIGURATION: &str = "daemon.conf";
const WRITTEN: &str = "notifications";

/// net-snmp's receiver of notifications. It accepts any community, and these users:
/// `nobody` (noAuthNoPriv), `author` (SHA) and `secret` (SHA, AES), as agents of [`TRAP_ENGINE`]
/// for traps and as its own for informs, with the passphrases `authenticate` and `keepsecret`.
///
/// All instances have the same engine id, because an inform of version 3 can be read only by the
/// engine to which it is addressed.
pub struct Snmptrapd;

impl Recipe for Snmptrapd {
    const PROGRAM: &'static str = "snmptrapd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        let mut text = "disableAuthorization yes\nexactEngineID 0x80001f8880aabbccdd01\n".to_owned();
        for engine in [format!("-e {TRAP_ENGINE} "), String::new()] {
            text += &format!(
                "createUser {engine}nobody
createUser {engine}author SHA authenticate
createUser {engine}secret SHA authenticate AES keepsecret
"
            );
        }
        fs::write(folder.join(CONFIGURATION), text)?;
        let begin = marked::BEGIN;
        let middle = marked::MIDDLE;
        let end = marked::END;
        let listen = match address {
            SocketAddr::V4(address) => format!("udp:{address}"),
            SocketAddr::V6(address) => format!("udp6:{address}"),
        };
        let mut command = tool(Self::PROGRAM, folder)?;
        command.args(["-f", "-n", "-C", "-On", "-c"]).arg(folder.join(CONFIGURATION));
        command.arg("-Lf").arg(folder.join(WRITTEN));
        command.args(["-F", &format!("{begin}%b{middle}%a %N %w %q %W %P %v{end}\\n"), &listen]);
        Ok(command)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        let path = folder.join(WRITTEN);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let mut records = marked::read(&fs::read(path)?);
        // "UDP: [source]:port->[destination]:port"
        for record in &mut records {
            record.source.truncate(record.source.find("->").unwrap_or(record.source.len()));
        }
        Ok(records)
    }
}

/// A program of net-snmp without the system's configuration, with its state in `folder`.
pub fn tool(name: &str, folder: &Path) -> anyhow::Result<Command> {
    let mut command = program(name)?;
    command.env("SNMP_PERSISTENT_DIR", folder.join("persistent")).env("SNMPCONFPATH", folder).env("MIBS", "");
    Ok(command)
}
