//! nfcapd and sfcapd, read by nfdump.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::{Recipe, Record, programs::program};

/// nfcapd: NetFlow and IPFIX, all versions on one port.
pub struct Nfcapd;

/// sfcapd: sFlow.
pub struct Sfcapd;

impl Recipe for Nfcapd {
    const PROGRAM: &'static str = "nfcapd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        command(Self::PROGRAM, folder, address)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        read(folder, &RUN_FIELDS)
    }

    /// "Ident: 'none' Flows: 12, …, Sequence Errors: 2, …" at its end.
    fn sequence_errors(log: &str) -> Option<u64> {
        let counts =
            log.split("Sequence Errors: ").skip(1).filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok());
        Some(counts.sum())
    }
}

impl Recipe for Sfcapd {
    const PROGRAM: &'static str = "sfcapd";

    fn command(folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
        command(Self::PROGRAM, folder, address)
    }

    fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
        // The times of a sample are its time of arrival.
        read(folder, &[&RUN_FIELDS[..], &["first", "last"]].concat())
    }
}

fn command(name: &str, folder: &Path, address: SocketAddr) -> anyhow::Result<Command> {
    let mut command = program(name)?;
    let ip = address.ip().to_string();
    let port = address.port().to_string();
    // One file per hour, and a larger receive buffer.
    command.arg("-w").arg(folder).args(["-b", &ip, "-p", &port, "-t", "3600", "-B", "4000000"]);
    Ok(command)
}

/// Fields that differ between runs, or number exporters in the order of their first datagram.
const RUN_FIELDS: [&str; 2] = ["received", "export_sysid"];
/// Fields with a flow's exporter.
const EXPORTER: [&str; 2] = ["ip4_router", "ip6_router"];

fn read(folder: &Path, not_compared: &[&str]) -> anyhow::Result<Vec<Record>> {
    // Complete files are renamed.
    let is_complete = |name: String| name.starts_with("nfcapd.2");
    let any =
        fs::read_dir(folder)?.flatten().any(|entry| is_complete(entry.file_name().to_string_lossy().into_owned()));
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
        serde_json::from_str(&text).with_context(|| format!("nfdump printed invalid JSON: {text}"))?;
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
