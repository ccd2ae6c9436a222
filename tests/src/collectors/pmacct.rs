//! nfacctd: bytes and packets by addresses, ports and protocol.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Context;
use sekiwake_testkit::process::Signal;
use serde_json::{Map, Value};

use super::{Recipe, Record, programs::program};

const CONFIGURATION: &str = "daemon.conf";
const WRITTEN: &str = "flows.json";

/// nfacctd with its print plugin.
pub struct Nfacctd;

impl Recipe for Nfacctd {
    const PROGRAM: &'static str = "nfacctd";
    const END: Signal = Signal::INT;

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        let ip = address.ip();
        let port = address.port();
        let written = folder.join(WRITTEN);
        let written = written.display();
        let text = format!(
            "daemonize: false
nfacctd_ip: {ip}
nfacctd_port: {port}
nfacctd_disable_checks: false
plugins: print
print_output: json
print_output_file: {written}
print_output_file_append: true
print_refresh_time: 3600
aggregate: peer_src_ip, src_host, dst_host, src_port, dst_port, proto
"
        );
        fs::write(folder.join(CONFIGURATION), text)?;
        let mut command = program(Self::PROGRAM)?;
        command.arg("-f").arg(folder.join(CONFIGURATION));
        Ok(command)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        let path = folder.join(WRITTEN);
        // The file is created with the first flow.
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path)?;
        // A key may have several lines, because the cache is flushed several times.
        let mut sums: BTreeMap<(String, String), [i128; 2]> = BTreeMap::new();
        for line in text.lines() {
            let (key, counts) = counted(line).with_context(|| format!("cannot parse {line}"))?;
            let sum = sums.entry(key).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more);
        }
        let records = sums.into_iter().map(|((source, flow), [packets, bytes])| Record {
            source,
            content: format!("{flow} packets {packets} bytes {bytes}"),
        });
        Ok(records.collect())
    }

    /// A line "expecting flow '105' but received '104' …" for each.
    fn sequence_errors(log: &str) -> Option<u64> {
        Some(log.matches("expecting flow '").count() as u64)
    }
}

/// Exporter and flow of a line, and its packets and bytes.
fn counted(line: &str) -> Option<((String, String), [i128; 2])> {
    let mut flow: Map<String, Value> = serde_json::from_str(line).ok()?;
    // An exporter may count only one of them, and pmacct prints the highest bit as a sign.
    let mut count = |name: &str| flow.remove(name).map_or(Some(0), |count| integer(&count));
    let counts = [count("packets")?, count("bytes")?];
    let exporter = flow.remove("peer_ip_src")?.as_str()?.to_owned();
    Some(((exporter, Value::Object(flow).to_string()), counts))
}

fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}
