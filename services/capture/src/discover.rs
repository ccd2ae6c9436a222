//! `sekiwake-capture discover`: lists the UDP ports that have traffic, and its formats, before
//! anything is configured.
//!
//! It runs without a kernel filter and lists the packets that cannot be decoded, because a filter
//! would hide exactly those encapsulations that neither filter nor decoder supports.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use sekiwake_record::{Format, Kind};
use tracing::info;

use crate::{
    decode::{Datagram, Decoder, DecoderSettings, DropReason, Outcome, Packet, UndecodedCounts},
    interface::{self, InterfaceSettings, Opened},
    ports::Ports,
};

/// The most destinations listed; datagrams to others are only counted.
const MAX_DESTINATIONS: usize = 4096;
/// The most sources counted per destination.
const MAX_SOURCES: usize = 4096;
/// The most destinations named in a log line.
const LOGGED: usize = 5;
/// The most ports of one kind that a setting is proposed for.
const MAX_PROPOSED: usize = 16;
/// The most EtherTypes and IP protocols listed.
const MAX_UNDECODED: usize = 20;
/// Size of the kernel's ring buffer, bytes: small, because a capture may run beside this.
const RING_BYTES: usize = 8 << 20;

/// The UDP traffic observed on an interface.
#[derive(Debug, Default)]
pub struct Traffic {
    destinations: HashMap<SocketAddr, Destination>,
    /// Datagrams to destinations past the limit.
    other_datagrams: u64,
    /// Packets that carry no UDP datagram, by EtherType or IP protocol.
    undecoded: UndecodedCounts,
    /// Packets dropped for other reasons.
    dropped: [u64; DropReason::COUNT],
    /// Packets that the kernel dropped, because they arrived faster than they were read.
    kernel_dropped: u32,
    length: Duration,
}

/// The datagrams to one address and port.
#[derive(Debug, Default)]
struct Destination {
    datagrams: u64,
    bytes: u64,
    sources: HashSet<IpAddr>,
    /// Datagrams by code of their format.
    formats: [u64; Format::ALL.len()],
}

/// A setting that would capture ports that are not captured.
#[derive(Debug, PartialEq, Eq)]
struct Proposal {
    kind: Kind,
    /// The ports to add, those with most datagrams first.
    ports: Vec<u16>,
    /// Further ports of the kind, which are not proposed.
    others: usize,
}

/// Observes all UDP traffic of `interface` for `length`, or until `stop` returns true.
pub fn observe(interface: &str, length: Duration, ports: &Ports, stop: impl Fn() -> bool) -> anyhow::Result<Traffic> {
    let settings = InterfaceSettings {
        ring_bytes: RING_BYTES,
        retire: Duration::from_millis(50),
        threads: 1,
        tunnels: true,
        filter: None,
        deduplicate: None,
    };
    let Opened { mut capture, link, .. } = interface::open_unfiltered(interface, &settings)?;
    let mut decoder = Decoder::new(DecoderSettings::default());
    let mut traffic = Traffic::default();
    let started = Instant::now();
    while started.elapsed() < length && !stop() {
        let read = capture
            .dispatch(Some(1024), |packet| {
                let captured_at_ns = interface::captured_at_ns(packet.header);
                let original_length = packet.header.len;
                let packet = Packet { captured_at_ns, link, data: packet.data, original_length };
                let outcome = decoder.decode(&packet, &mut |datagram| traffic.add(datagram, ports));
                if let Outcome::Dropped(reason) = outcome {
                    match decoder.undecoded(reason) {
                        Some(at) => traffic.undecoded.add(at),
                        None => traffic.dropped[reason.index()] += 1,
                    }
                }
            })
            .with_context(|| format!("cannot read packets from {interface}"))?;
        if read == 0 {
            sekiwake_sys::poll_readable(&capture, Duration::from_millis(50))
                .with_context(|| format!("cannot poll {interface}"))?;
        }
    }
    traffic.length = started.elapsed();
    traffic.kernel_dropped = capture.stats().map_or(0, |statistics| statistics.dropped);
    Ok(traffic)
}

impl Traffic {
    fn add(&mut self, datagram: &Datagram<'_>, ports: &Ports) {
        let address = SocketAddr::new(datagram.destination, datagram.destination_port);
        if self.destinations.len() >= MAX_DESTINATIONS && !self.destinations.contains_key(&address) {
            self.other_datagrams += 1;
            return;
        }
        let destination = self.destinations.entry(address).or_default();
        destination.datagrams += 1;
        destination.bytes += datagram.payload.len() as u64;
        if destination.sources.len() < MAX_SOURCES {
            destination.sources.insert(datagram.source);
        }
        let format = sekiwake_identify::identify(ports.kind_of(datagram.destination_port), datagram.payload);
        destination.formats[usize::from(format.code())] += 1;
    }

    /// Destinations with a recognised format first, each group by number of datagrams.
    fn ranked(&self) -> Vec<(&SocketAddr, &Destination)> {
        let mut destinations: Vec<_> = self.destinations.iter().collect();
        destinations.sort_by_key(|(address, destination)| {
            (destination.format() == Format::Unknown, u64::MAX - destination.datagrams, **address)
        });
        destinations
    }

    /// The settings that would capture the ports that are not captured, although most of their
    /// datagrams have formats of one kind.
    fn proposals(&self, ports: &Ports) -> Vec<Proposal> {
        let mut unclaimed: BTreeMap<u16, [u64; Format::ALL.len()]> = BTreeMap::new();
        for (address, destination) in &self.destinations {
            if ports.kind_of(address.port()).is_none() {
                let counts = unclaimed.entry(address.port()).or_default();
                counts.iter_mut().zip(destination.formats).for_each(|(sum, count)| *sum += count);
            }
        }
        let proposal = |kind| {
            let mut found: Vec<(u64, u16)> = Vec::new();
            for (port, counts) in &unclaimed {
                let of_kind = Format::ALL.into_iter().zip(counts).filter(|(format, _)| kind_of(*format) == Some(kind));
                let of_kind: u64 = of_kind.map(|(_, count)| count).sum();
                if of_kind * 2 > counts.iter().sum::<u64>() {
                    found.push((of_kind, *port));
                }
            }
            found.sort_by_key(|(datagrams, port)| (Reverse(*datagrams), *port));
            let others = found.len().saturating_sub(MAX_PROPOSED);
            let ports = found.into_iter().take(MAX_PROPOSED).map(|(_, port)| port).collect();
            Proposal { kind, ports, others }
        };
        Kind::ALL.into_iter().map(proposal).filter(|proposal| !proposal.ports.is_empty()).collect()
    }

    /// Writes a table with one line per destination, and what follows from it.
    pub fn write(&self, interface: &str, ports: &Ports, out: &mut impl Write) -> io::Result<()> {
        let seconds = self.length.as_secs_f64().max(0.001);
        writeln!(out, "{interface}: {} destinations in {seconds:.1} s", self.destinations.len())?;
        writeln!(
            out,
            "{:<46} {:>11} {:>9} {:>8}  {:<11}  formats",
            "destination", "datagrams/s", "bytes/s", "sources", "captured as"
        )?;
        for (address, destination) in self.ranked() {
            let claimed = ports.kind_of(address.port()).map_or("-", Kind::as_str);
            writeln!(
                out,
                "{:<46} {:>11.1} {:>9.0} {:>8}  {claimed:<11}  {}",
                address.to_string(),
                destination.datagrams as f64 / seconds,
                destination.bytes as f64 / seconds,
                destination.sources.len(),
                destination.shares(),
            )?;
        }
        if self.other_datagrams > 0 {
            writeln!(out, "and {} datagrams to other destinations", self.other_datagrams)?;
        }
        self.write_undecoded(out)?;
        self.write_proposals(ports, out)?;
        self.write_advice(interface, out)
    }

    fn write_proposals(&self, ports: &Ports, out: &mut impl Write) -> io::Result<()> {
        for Proposal { kind, ports: added, others } in self.proposals(ports) {
            let all = ports.of(kind).iter().chain(&added).map(u16::to_string).collect::<Vec<_>>().join(",");
            let noun = if added.len() == 1 { "port" } else { "ports" };
            let added = added.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let setting = match kind {
                Kind::Syslog => "SEKIWAKE_SYSLOG_PORTS",
                Kind::Xflow => "SEKIWAKE_XFLOW_PORTS",
                Kind::SnmpTrap => "SEKIWAKE_TRAP_PORTS",
            };
            writeln!(out, "{kind} to {noun} {added} is not captured; to capture it: {setting}={all}")?;
            if others > 0 {
                writeln!(out, "and {others} more ports with {kind}")?;
            }
        }
        Ok(())
    }

    /// What to look at when there is nothing to capture.
    fn write_advice(&self, interface: &str, out: &mut impl Write) -> io::Result<()> {
        if self.destinations.values().any(|destination| destination.format() != Format::Unknown) {
            return Ok(());
        }
        let datagrams: u64 = self.destinations.values().map(|destination| destination.datagrams).sum();
        let undecoded: u64 = self.undecoded.ranked().iter().map(|(_, packets)| packets).sum();
        let packets = undecoded + self.dropped.iter().sum::<u64>();
        let seen = match (datagrams, packets) {
            (0, 0) => "no packets".to_owned(),
            (0, packets) => format!("no UDP datagrams, but {packets} other packets"),
            (datagrams, _) => format!("{datagrams} UDP datagrams, but none of syslog, flow records or SNMP traps"),
        };
        writeln!(out, "{seen} on {interface}. Look at:")?;
        let state = interface::link_state(interface).map(|state| format!("; {state}")).unwrap_or_default();
        writeln!(out, "- the interface: `ip -s link show {interface}` counts what it receives{state}")?;
        writeln!(
            out,
            "- the mirror session: it must be active, end at this interface, and cover the devices' ports or VLANs"
        )?;
        match (datagrams, packets) {
            (0, 0) => writeln!(out, "- on a virtual machine, the hypervisor: it must allow promiscuous mode")?,
            (0, _) => writeln!(
                out,
                "- the list above: an EtherType or protocol of nearly all packets is an encapsulation that is not decoded"
            )?,
            _ => {}
        }
        writeln!(out, "- the devices: they must send over UDP, because syslog over TCP or TLS is not captured")?;
        writeln!(out, "- the time: quiet devices need longer, `sekiwake-capture discover --seconds 300 {interface}`")
    }

    /// Writes the packets without a datagram: by EtherType and IP protocol, then by other reasons.
    fn write_undecoded(&self, out: &mut impl Write) -> io::Result<()> {
        let undecoded = self.undecoded.ranked();
        let (listed, rest) = undecoded.split_at(undecoded.len().min(MAX_UNDECODED));
        let rest: u64 = rest.iter().map(|(_, packets)| packets).sum();
        let listed = listed.iter().map(|(at, packets)| (at.to_string(), *packets));
        let reasons = DropReason::ALL.into_iter().map(|reason| (reason.to_string(), self.dropped[reason.index()]));
        let lines = listed.chain([("other types".to_owned(), rest)]).chain(reasons);
        let mut lines = lines.filter(|(_, packets)| *packets > 0).peekable();
        if lines.peek().is_some() {
            writeln!(out, "{:<46} {:>11}", "not decoded", "packets")?;
        }
        for (what, packets) in lines {
            writeln!(out, "{what:<46} {packets:>11}")?;
        }
        if self.kernel_dropped > 0 {
            writeln!(out, "and {} packets dropped by the kernel, not counted above", self.kernel_dropped)?;
        }
        Ok(())
    }

    /// Logs the traffic in one line, for a capture whose ports have none.
    pub(crate) fn log(&self, interface: &str) {
        let mut found = String::new();
        for (address, destination) in self.ranked().into_iter().take(LOGGED) {
            let separator = if found.is_empty() { "" } else { ", " };
            let datagrams = destination.datagrams;
            let format = destination.format();
            // Writing to a String cannot fail.
            let _ = write!(found, "{separator}{datagrams} to {address} (looks like {format})");
        }
        if found.is_empty() {
            found.push_str("no UDP datagrams");
        }
        let undecoded = self.undecoded.ranked().into_iter().take(LOGGED);
        let undecoded: Vec<String> = undecoded.map(|(at, packets)| format!("{packets} of {at}")).collect();
        let undecoded = undecoded.join(", ");
        info!(interface, seconds = self.length.as_secs(), found, undecoded, "no traffic on the configured ports");
    }
}

impl Destination {
    /// The most frequent format, `Unknown` only where no datagram was recognised.
    fn format(&self) -> Format {
        let recognised = self.formats.iter().enumerate().skip(1).filter(|(_, count)| **count > 0);
        let most = recognised.max_by_key(|(_, count)| **count);
        most.map_or(Format::Unknown, |(code, _)| Format::from_code(code as u64))
    }

    /// Its formats, the most frequent first, with their shares of the datagrams:
    /// `rfc5424 62%, rfc3164 38%`.
    fn shares(&self) -> String {
        let mut formats: Vec<(u64, Format)> = self.formats.into_iter().zip(Format::ALL).collect();
        formats.retain(|(count, _)| *count > 0);
        formats.sort_by_key(|(count, format)| (*format == Format::Unknown, Reverse(*count)));
        let share = |(count, format): &(u64, Format)| format!("{format} {}", percentage(*count, self.datagrams));
        formats.iter().map(share).collect::<Vec<_>>().join(", ")
    }
}

/// The kind whose forwarder sends datagrams of this format.
fn kind_of(format: Format) -> Option<Kind> {
    match format {
        Format::Unknown => None,
        Format::Rfc3164 | Format::Rfc5424 => Some(Kind::Syslog),
        Format::NetFlow5 | Format::NetFlow9 | Format::Ipfix | Format::Sflow5 => Some(Kind::Xflow),
        Format::Snmp1Trap | Format::Snmp2cTrap | Format::Snmp2cInform | Format::Snmp3 => Some(Kind::SnmpTrap),
    }
}

/// `part` of `all` in whole per cent, such that only nothing is 0% and only all is 100%.
fn percentage(part: u64, all: u64) -> String {
    let percent = (part as f64 * 100.0 / all.max(1) as f64).round();
    match part {
        0 => "0%".to_owned(),
        _ if part >= all => "100%".to_owned(),
        _ if percent < 1.0 => "<1%".to_owned(),
        _ => format!("{}%", percent.min(99.0)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    fn destination(counts: &[(Format, u64)]) -> Destination {
        let mut destination = Destination::default();
        for (format, count) in counts {
            destination.datagrams += count;
            destination.formats[usize::from(format.code())] += count;
        }
        destination
    }

    fn traffic(destinations: &[(u16, &[(Format, u64)])]) -> Traffic {
        let mut traffic = Traffic { length: Duration::from_secs(10), ..Traffic::default() };
        for (port, counts) in destinations {
            traffic.destinations.insert(SocketAddr::from((TO, *port)), destination(counts));
        }
        traffic
    }

    fn written(traffic: &Traffic) -> String {
        let mut out = Vec::new();
        traffic.write("no-such-interface", &Ports::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_formats_are_listed_with_their_shares() {
        let shares = |counts: &[(Format, u64)]| destination(counts).shares();
        assert_eq!(shares(&[(Format::Rfc5424, 7)]), "rfc5424 100%");
        assert_eq!(shares(&[(Format::Rfc3164, 1), (Format::Rfc5424, 2)]), "rfc5424 67%, rfc3164 33%");
        assert_eq!(shares(&[(Format::Unknown, 9_999), (Format::Snmp3, 1)]), "snmp3 <1%, unknown 99%");
    }

    #[test]
    fn ports_that_no_setting_claims_are_proposed_with_the_present_ones() {
        let text = written(&traffic(&[
            (514, &[(Format::Rfc5424, 10)]),
            (5514, &[(Format::Rfc3164, 5), (Format::Unknown, 4)]),
            (1514, &[(Format::Rfc5424, 50)]),
            (9000, &[(Format::NetFlow9, 5)]),
            // Not most of the datagrams.
            (53, &[(Format::Rfc3164, 5), (Format::Unknown, 5)]),
        ]));
        let proposals: Vec<&str> = text.lines().filter(|line| line.contains("not captured")).collect();
        let expected = [
            "syslog to ports 1514, 5514 is not captured; to capture it: SEKIWAKE_SYSLOG_PORTS=514,1514,5514",
            "xflow to port 9000 is not captured; to capture it: SEKIWAKE_XFLOW_PORTS=2055,9995,9996,4739,6343,9000",
        ];
        assert_eq!(proposals, expected, "{text}");
        assert!(!text.contains("Look at"), "{text}");
    }

    #[test]
    fn proposed_ports_are_bounded() {
        let counts = [(Format::Rfc3164, 1)];
        let many: Vec<(u16, &[(Format, u64)])> = (10_000..10_100).map(|port| (port, &counts[..])).collect();
        let text = written(&traffic(&many));
        let line = text.lines().find(|line| line.contains("SEKIWAKE_SYSLOG_PORTS")).unwrap();
        assert_eq!(line.matches(',').count(), 2 * MAX_PROPOSED - 1, "{line}");
        assert!(text.contains("and 84 more ports with syslog"), "{text}");
    }

    #[test]
    fn advice_depends_on_what_was_seen() {
        let nothing = written(&traffic(&[]));
        assert!(nothing.contains("no packets on no-such-interface. Look at:"), "{nothing}");
        assert!(nothing.contains("promiscuous"), "{nothing}");
        let mut others = traffic(&[]);
        others.undecoded.add(crate::decode::Undecoded::EtherType(0x88cc));
        let others = written(&others);
        assert!(others.contains("no UDP datagrams, but 1 other packets on"), "{others}");
        assert!(others.contains("encapsulation"), "{others}");
        let strange = written(&traffic(&[(53, &[(Format::Unknown, 3)])]));
        assert!(strange.contains("3 UDP datagrams, but none of syslog"), "{strange}");
    }
}
