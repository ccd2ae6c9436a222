//! ra, the client of Argus, as a receiver of NetFlow v9. It does not show the exporter.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use super::{Recipe, Record, programs::program};

const WRITTEN: &str = "flows.csv";

/// ra: addresses, ports, bytes and packets of each flow.
pub struct Ra;

impl Recipe for Ra {
    const PROGRAM: &'static str = "ra";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        let ra = program(Self::PROGRAM)?;
        // It writes to standard output only.
        let mut command = Command::new("sh");
        command
            .args(["-c", "out=$1; shift; exec \"$@\" >\"$out\"", "sh"])
            .arg(folder.join(WRITTEN))
            .arg(ra.get_program());
        for (name, value) in ra.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.args(["-n", "-c", ",", "-C", &address.to_string(), "-s", "saddr", "sport", "dport", "bytes", "pkts"]);
        Ok(command)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        let text = fs::read_to_string(folder.join(WRITTEN)).unwrap_or_default();
        // The first line names the columns, and an empty file has none. The last may be incomplete.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).skip(1);
        Ok(lines.map(|line| Record { source: String::new(), content: line.trim_end().to_owned() }).collect())
    }
}
