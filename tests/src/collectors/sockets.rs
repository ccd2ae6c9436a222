//! The kernel's socket tables of this thread's namespace.

use std::{fs, net::SocketAddr};

use anyhow::Context;

/// A UDP socket as proc(5) lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// Memory of unread datagrams; 0 when all are read.
    pub queued_bytes: u64,
    /// Datagrams dropped because the receive buffer was full.
    pub dropped: u64,
}

/// The state of the UDP socket that is bound to `address`.
pub fn socket_state(address: SocketAddr) -> anyhow::Result<SocketState> {
    let path = if address.is_ipv4() { "/proc/thread-self/net/udp" } else { "/proc/thread-self/net/udp6" };
    let table = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let shown = table_form(address);
    let row = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let row = row.into_iter().find(|row| row.get(1) == Some(&shown.as_str()));
    let row = row.with_context(|| format!("no socket is bound to {address}"))?;
    let parse = || -> Option<SocketState> {
        let (_, queued) = row.get(4)?.split_once(':')?;
        Some(SocketState { queued_bytes: u64::from_str_radix(queued, 16).ok()?, dropped: row.last()?.parse().ok()? })
    };
    parse().with_context(|| format!("cannot parse {path}: {row:?}"))
}

/// An address in the table's format: hexadecimal words in the host's byte order.
fn table_form(address: SocketAddr) -> String {
    let octets = match address {
        SocketAddr::V4(address) => address.ip().octets().to_vec(),
        SocketAddr::V6(address) => address.ip().octets().to_vec(),
    };
    let (words, _) = octets.as_chunks::<4>();
    let words: String = words.iter().map(|&word| format!("{:08X}", u32::from_ne_bytes(word))).collect();
    format!("{words}:{:04X}", address.port())
}

/// Datagrams sent so far in this thread's namespace, IPv4 and IPv6.
pub fn sent_datagrams() -> anyhow::Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut rows = table.lines().filter(|line| line.starts_with("Udp: "));
    let (names, values) = rows.next().zip(rows.next()).context("no counters of UDP")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let v4 = both.find(|(name, _)| *name == "OutDatagrams").context("no counter of datagrams")?.1;
    let table = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
    let v6 = table.lines().find_map(|line| line.strip_prefix("Udp6OutDatagrams")).unwrap_or("0");
    Ok(v4.parse::<u64>()? + v6.trim().parse::<u64>()?)
}
