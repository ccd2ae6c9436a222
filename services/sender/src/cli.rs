//! The command line.

use std::{net::IpAddr, num::NonZeroU64, str::FromStr, time::Duration};

use sekiwake_settings::positive_duration;
use sekiwake_traffic::Protocol;

use crate::{
    share::{Share, ShareError},
    sizes::Sizes,
    sources::From,
};

/// Sends test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps, paced and numbered.
///
/// Every datagram carries a number per source, so that a receiver can detect missing ones. The
/// last line on standard output has the totals. SIGINT and SIGTERM end the run early, with
/// that line and exit status 0.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Protocols: rfc3164, rfc5424, netflow5, netflow9, ipfix, sflow, snmp1-trap, snmp2c-trap,
    /// snmp2c-inform, snmp3-trap; syslog for the first two, all for all. With a weight: rfc5424:3
    #[arg(long, short, value_name = "NAME[:WEIGHT]", value_delimiter = ',', default_value = "rfc5424", value_parser = shares)]
    pub protocol: Vec<Shares>,
    /// Destination. Without a port each protocol uses its own: 514, 2055, 4739 (IPFIX), 6343
    /// (sFlow), 162
    #[arg(long, short, value_name = "ADDRESS[:PORT]")]
    pub to: To,
    /// Source addresses: a list, or a prefix such as 198.18.0.0/16. They need not be on an
    /// interface if this process may use IP_TRANSPARENT (CAP_NET_RAW). By default the kernel
    /// chooses
    #[arg(long, short, value_name = "ADDRESS[,ADDRESS…]|PREFIX")]
    pub from: Option<From>,
    /// Number of addresses of --from to use: by default all of a list, one of a prefix
    #[arg(long, value_name = "NUMBER", requires = "from", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sources: Option<u32>,
    /// Number of the first source. Receivers identify streams by it, across runs too
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub first_source: u32,
    /// Number of source ports per address. Each of them is a source with its own sequence numbers
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub source_ports: u32,
    /// First source port; by default the kernel chooses
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub first_source_port: Option<u16>,
    /// Datagrams per second over all sources; 0 is as fast as possible
    #[arg(long, short, value_name = "NUMBER", default_value_t = 1000)]
    pub rate: u64,
    /// Maximum number of datagrams sent at once. By default the number per millisecond; 1 spaces
    /// them evenly, at the cost of a wake-up per datagram
    #[arg(long, value_name = "NUMBER")]
    pub burst: Option<NonZeroU64>,
    /// Number of datagrams to send. Without it and without --duration: until interrupted
    #[arg(long, short, value_name = "NUMBER", conflicts_with = "duration")]
    pub count: Option<NonZeroU64>,
    /// How long to send: 500ms, 10s, 2m
    #[arg(long, short, value_name = "DURATION", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// Payload size in bytes: fixed (200), a range (200-1400), or a list (200,500,1400); at most
    /// 65507. Flow protocols fill it with records
    #[arg(long, short, default_value = "200")]
    pub size: Sizes,
    /// Seed of the content
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Maximum number of consecutive datagrams from one source. By default 8, or 64 from a single
    /// source, and fewer at low rates
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub run: Option<u64>,
    /// Send templates again after this many datagrams of a source
    #[arg(long, value_name = "NUMBER", default_value = "1000")]
    pub template_every: NonZeroU64,
    /// Send templates again after this time
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    pub template_interval: Duration,
    /// Register the destinations with the proxy first: captures do not publish what is sent to
    /// them, until 10 seconds after the end. The proxy logs the registration
    #[arg(long)]
    pub register: bool,
    /// Send runs of equal size with GSO (UDP_SEGMENT)
    #[arg(long)]
    pub gso: bool,
    /// Compute a digest to compare with a receiver's: the sum, modulo 2^128, of the payloads' XXH3
    /// (128 bits)
    #[arg(long)]
    pub digest: bool,
    /// Print the last line as a JSON object
    #[arg(long)]
    pub json: bool,
}

/// The protocols that a name on the command line selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares(pub Vec<Share>);

fn shares(text: &str) -> Result<Shares, ShareError> {
    let all: &[Protocol] = match text.split(':').next() {
        Some("syslog") => &Protocol::ALL[..2],
        Some("all") => &Protocol::ALL,
        _ => return text.parse().map(|share| Shares(vec![share])),
    };
    let weight = text.split_once(':').map_or("1", |(_, weight)| weight);
    all.iter().map(|protocol| format!("{protocol}:{weight}").parse()).collect::<Result<_, _>>().map(Shares)
}

/// A destination, with one port for all protocols or each protocol's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// The collector's address.
    pub address: IpAddr,
    /// Its port, if given.
    pub port: Option<u16>,
}

/// An error in [`To`].
#[derive(Debug, thiserror::Error)]
#[error("expected an address, optionally with a port: 198.51.100.7, 198.51.100.7:514, 2001:db8::7, [2001:db8::7]:514")]
pub struct ToError;

impl FromStr for To {
    type Err = ToError;

    fn from_str(text: &str) -> Result<To, ToError> {
        if let Ok(address) = text.parse() {
            return Ok(To { address, port: None });
        }
        let socket: std::net::SocketAddr = text.parse().map_err(|_| ToError)?;
        if socket.port() == 0 { Err(ToError) } else { Ok(To { address: socket.ip(), port: Some(socket.port()) }) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Line::try_parse_from([&["x"], arguments].concat()).map(|line| line.arguments)
    }

    #[test]
    fn protocols_are_read_singly_as_lists_and_as_groups() {
        let shares = |arguments: &[&str]| {
            let arguments = parse(&[&["--to", "127.0.0.1"], arguments].concat()).unwrap();
            arguments
                .protocol
                .into_iter()
                .flat_map(|Shares(shares)| shares)
                .map(|share| (share.protocol, share.weight))
                .collect::<Vec<_>>()
        };
        assert_eq!(shares(&[]), [(Protocol::Rfc5424, 1)]);
        assert_eq!(
            shares(&["-p", "ipfix:3,sflow", "-p", "syslog:2"]),
            [(Protocol::Ipfix, 3), (Protocol::Sflow, 1), (Protocol::Rfc3164, 2), (Protocol::Rfc5424, 2)]
        );
        assert_eq!(shares(&["-p", "all"]).len(), 10);
    }

    #[test]
    fn mistakes_are_rejected() {
        for mistake in [
            &["--protocol", "syslog-ng"][..],
            &["--protocol", "ipfix:0"],
            &["--to", "somewhere"],
            &["--to", "127.0.0.1:0"],
            &["--sources", "3"],
            &["--count", "0"],
            &["--burst", "0"],
            &["--count", "1", "--duration", "1s"],
            &["--duration", "1"],
            &["--size", "70000"],
            &["--from", "198.18.0.0/33"],
        ] {
            let destination: &[&str] = if mistake[0] == "--to" { &[] } else { &["--to", "127.0.0.1"] };
            let arguments = [mistake, destination].concat();
            assert!(parse(&arguments).is_err(), "{arguments:?}");
        }
    }
}
