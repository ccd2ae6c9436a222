//! `sekiwake-capture discover`: what talks to which port, and what it looks like, before anything is configured.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    io::{self, Write},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use sekiwake_record::{Format, Kind};
use tracing::info;

use crate::{
    decode::{Datagram, Decoder, DecoderSettings, Packet},
    filter,
    interface::{self, InterfaceSettings, Opened},
    live::nanoseconds,
    ports::Ports,
};

/// Targets that are told apart; the rest is counted together.
const MAX_TARGETS: usize = 4096;
/// Sources of a target that are told apart.
const MAX_SOURCES: usize = 4096;
/// Targets that a log line names.
const LOGGED: usize = 5;
/// Memory of the ring, bytes: this looks on beside the capture proper.
const RING_BYTES: usize = 8 << 20;

/// What was seen on an interface.
#[derive(Debug, Default)]
pub struct Seen {
    targets: HashMap<(IpAddr, u16), Target>,
    /// Datagrams to targets past the limit.
    others: u64,
    length: Duration,
}

/// An address and port that datagrams went to.
#[derive(Debug, Default)]
struct Target {
    datagrams: u64,
    bytes: u64,
    sources: HashSet<IpAddr>,
    formats: [u64; Format::ALL.len()],
}

/// Looks at all UDP traffic of `interface` for `length`, or until `stop` says so.
///
/// # Errors
/// An interface that cannot be opened, or fails meanwhile.
pub fn observe(interface: &str, length: Duration, ports: &Ports, stop: impl Fn() -> bool) -> anyhow::Result<Seen> {
    let settings = InterfaceSettings {
        ring_bytes: RING_BYTES,
        retire: Duration::from_millis(50),
        threads: 1,
        tunnels: true,
        filter: None,
    };
    let Opened { mut capture, link, .. } = interface::open_bare(interface, &settings)?;
    interface::set_filter(&mut capture, interface, &filter::any_udp(link))?;
    let mut decoder = Decoder::new(DecoderSettings::default());
    let mut seen = Seen::default();
    let started = Instant::now();
    while started.elapsed() < length && !stop() {
        let read = capture
            .dispatch(Some(1024), |packet| {
                let (captured_at_ns, original_length) = (nanoseconds(packet.header), packet.header.len);
                let packet = Packet { captured_at_ns, link, data: packet.data, original_length };
                decoder.decode(&packet, &mut |datagram| seen.note(datagram, ports));
            })
            .with_context(|| format!("{interface} failed"))?;
        if read == 0 {
            sekiwake_sys::poll_readable(&capture, Duration::from_millis(50)).context("poll")?;
        }
    }
    seen.length = started.elapsed();
    Ok(seen)
}

impl Seen {
    fn note(&mut self, datagram: &Datagram<'_>, ports: &Ports) {
        let key = (datagram.destination, datagram.destination_port);
        if self.targets.len() >= MAX_TARGETS && !self.targets.contains_key(&key) {
            self.others += 1;
            return;
        }
        let target = self.targets.entry(key).or_default();
        target.datagrams += 1;
        target.bytes += datagram.payload.len() as u64;
        if target.sources.len() < MAX_SOURCES {
            target.sources.insert(datagram.source);
        }
        let format = sekiwake_identify::identify(ports.kind_of(datagram.destination_port), datagram.payload);
        target.formats[usize::from(format.code())] += 1;
    }

    /// Targets, the busiest of recognised format first.
    fn ranked(&self) -> Vec<(&(IpAddr, u16), &Target)> {
        let mut targets: Vec<_> = self.targets.iter().collect();
        targets.sort_by_key(|(key, target)| (target.format() == Format::Unknown, u64::MAX - target.datagrams, **key));
        targets
    }

    /// Writes a table for people: one line a target.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn write(&self, interface: &str, ports: &Ports, out: &mut impl Write) -> io::Result<()> {
        let seconds = self.length.as_secs_f64().max(0.001);
        writeln!(out, "{interface}: {} targets in {seconds:.1} s", self.targets.len())?;
        writeln!(
            out,
            "{:<46} {:>11} {:>9} {:>8}  {:<15} captured as",
            "destination", "datagrams/s", "bytes/s", "sources", "looks like"
        )?;
        for ((address, port), target) in self.ranked() {
            let claimed = ports.kind_of(*port).map_or("-", Kind::as_str);
            let destination = std::net::SocketAddr::new(*address, *port).to_string();
            writeln!(
                out,
                "{destination:<46} {:>11.1} {:>9.0} {:>8}  {:<15} {claimed}",
                target.datagrams as f64 / seconds,
                target.bytes as f64 / seconds,
                target.sources.len(),
                target.format().as_str(),
            )?;
        }
        if self.others > 0 {
            writeln!(out, "and {} datagrams to further targets", self.others)?;
        }
        Ok(())
    }

    /// Says in one log line what is there, for a capture that claims none of it.
    pub(crate) fn log(&self, interface: &str) {
        let mut text = String::new();
        for ((address, port), target) in self.ranked().into_iter().take(LOGGED) {
            let separator = if text.is_empty() { "" } else { ", " };
            let format = target.format();
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{} to port {port} of {address} (looks like {format})", target.datagrams);
        }
        let saw = if text.is_empty() { "no UDP datagram at all" } else { &text };
        info!(interface, seconds = self.length.as_secs(), saw, "nothing that the port settings claim for a minute");
    }
}

impl Target {
    /// What most of its datagrams look like.
    fn format(&self) -> Format {
        let most =
            self.formats.iter().enumerate().skip(1).max_by_key(|(_, count)| **count).filter(|(_, count)| **count > 0);
        most.map_or(Format::Unknown, |(code, _)| Format::from_code(code as u64))
    }
}
