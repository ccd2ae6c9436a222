//! nfcapd and sfcapd, read back by nfdump.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::{Recipe, Record, programs::program};

/// nfcapd: NetFlow and IPFIX, all versions at one port.
pub struct Nfcapd;

/// sfcapd: sFlow.
pub struct Sfcapd;

impl Recipe for Nfcapd {
    const PROGRAM: &'static str = "nfcapd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        command(Self::PROGRAM, folder, address)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        read(folder, &OF_THE_RUN)
    }
}

impl Recipe for Sfcapd {
    const PROGRAM: &'static str = "sfcapd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        command(Self::PROGRAM, folder, address)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        // A sample has no time of its own: it is the time of arrival.
        read(folder, &[&OF_THE_RUN[..], &["first", "last"]].concat())
    }
}

fn command(name: &str, folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
    let mut command = program(name)?;
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    // A file an hour, and a receive buffer of its own.
    command.arg("-w").arg(folder).args(["-b", &ip, "-p", &port, "-t", "3600", "-B", "4000000"]);
    Ok(command)
}

/// What differs from one run to the next, or numbers exporters in the order in which they were first seen.
const OF_THE_RUN: [&str; 2] = ["received", "export_sysid"];
/// Who exported a flow.
const EXPORTER: [&str; 2] = ["ip4_router", "ip6_router"];

fn read(folder: &Path, not_compared: &[&str]) -> anyhow::Result<Vec<Record>> {
    // Files are renamed when they are whole; the one under way is not.
    let whole = |name: String| name.starts_with("nfcapd.2");
    let any = fs::read_dir(folder)?.flatten().any(|entry| whole(entry.file_name().to_string_lossy().into_owned()));
    if !any {
        return Ok(Vec::new());
    }
    let mut nfdump = program("nfdump")?;
    let output = nfdump.arg("-R").arg(folder).args(["-o", "json"]).output().context("cannot run nfdump")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "nfdump: {}; {text}", String::from_utf8_lossy(&output.stderr));
    if text.trim().is_empty() || text.contains("No matching flows") {
        return Ok(Vec::new());
    }
    let flows: Vec<Map<String, Value>> =
        serde_json::from_str(&text).with_context(|| format!("what nfdump printed is no JSON: {text}"))?;
    Ok(flows.into_iter().map(|flow| record(flow, not_compared)).collect())
}

fn record(mut flow: Map<String, Value>, not_compared: &[&str]) -> Record {
    for name in not_compared {
        flow.remove(*name);
    }
    let exporters: Vec<String> =
        EXPORTER.iter().filter_map(|name| flow.remove(*name)).map(|ip| ip.to_string()).collect();
    Record { source: exporters.join(" ").replace('"', ""), content: Value::Object(flow).to_string() }
}
