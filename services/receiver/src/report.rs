//! The counts as a line.

use std::collections::BTreeMap;

use sekiwake_traffic::sink::Report;
use serde_json::{Value, json};

use crate::tcp::TcpCounts;

/// As text.
pub(crate) fn text(report: &Report) -> String {
    if report.received == 0 {
        return "no datagrams received yet".to_owned();
    }
    let ports: Vec<String> = report
        .by_port
        .iter()
        .filter(|(_, one)| one.received > 0)
        .map(|(port, one)| format!("{port}: {}", one.received))
        .collect();
    let mut line = format!(
        "received {} datagrams from {}{} addresses (port {})",
        report.received,
        report.sources.len(),
        if report.other_sources > 0 { " and more" } else { "" },
        ports.join(", "),
    );
    let sequence = &report.sequence;
    if sequence.streams > 0 {
        line += &format!(", {} missing, {} duplicates", sequence.missing, sequence.duplicates);
    }
    let others = [
        (sequence.out_of_order, "out of order"),
        (report.dropped.unwrap_or(0), "dropped by this receiver's own socket"),
    ];
    for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
        line += &format!(", {count} {what}");
    }
    line + &format!(", digest {:032x}", report.digest)
}

/// What arrived over TCP, as text.
pub(crate) fn tcp_text(counts: &TcpCounts) -> String {
    format!("received {} messages over TCP", counts.messages())
}

/// As JSON.
pub(crate) fn json(report: &Report, by_source: bool, tcp: Option<&TcpCounts>) -> Value {
    let sequence = &report.sequence;
    let by_port: BTreeMap<String, u64> =
        report.by_port.iter().map(|(port, one)| (port.to_string(), one.received)).collect();
    let mut value = json!({
        "received": report.received,
        "bytes": report.bytes,
        "dropped": report.dropped,
        "by_port": by_port,
        "sources": report.sources.len(),
        "from_other_sources": report.other_sources,
        "numbered": {
            "streams": sequence.streams,
            "missing": sequence.missing,
            "duplicates": sequence.duplicates,
            "out_of_order": sequence.out_of_order,
            "unreadable": sequence.unreadable,
        },
        "digest": format!("{:032x}", report.digest),
    });
    if let Some(tcp) = tcp {
        value["tcp"] = json!({ "messages": tcp.messages(), "bytes": tcp.bytes() });
    }
    if by_source {
        let sources: BTreeMap<String, u64> =
            report.sources.iter().map(|(address, count)| (address.to_string(), *count)).collect();
        value["by_source"] = json!(sources);
    }
    value
}
