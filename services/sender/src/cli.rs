//! The command line.

use std::{net::IpAddr, num::NonZeroU64, str::FromStr, time::Duration};

use clap::Parser;

use crate::{
    Protocol,
    protocol::{Share, ShareError},
    sizes::Sizes,
    sources::From,
};

/// Sends test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps, paced and numbered.
///
/// Every datagram carries a number per source, so that a receiver can tell what is missing. The last line on standard output says
/// what was really sent. SIGINT and SIGTERM end the run early, with that line and exit status 0.
#[derive(Clone, Debug, Parser)]
#[command(name = "sekiwake-sender", version)]
pub struct Arguments {
    /// What to send: rfc3164, rfc5424, netflow5, netflow9, ipfix, sflow, snmp1-trap, snmp2c-trap, snmp2c-inform, snmp3-trap; syslog for the first two, all
    /// for everything. With a weight: rfc5424:3.
    #[arg(long, short, value_name = "NAME[:WEIGHT]", value_delimiter = ',', default_value = "rfc5424", value_parser = shares)]
    pub protocol: Vec<Shares>,
    /// Where to. Without a port each protocol goes to its own: 514, 2055, 4739 (IPFIX), 6343 (sFlow), 162.
    #[arg(long, short, value_name = "ADDRESS[:PORT]")]
    pub to: To,
    /// Source addresses: a list, or a prefix such as 198.18.0.0/16. They need not be on an interface if this process may use
    /// IP_TRANSPARENT (CAP_NET_RAW). By default the kernel chooses.
    #[arg(long, short, value_name = "ADDRESS[,ADDRESS…]|PREFIX")]
    pub from: Option<From>,
    /// How many addresses of --from to use: by default all of a list, the first one of a prefix.
    #[arg(long, value_name = "NUMBER", requires = "from", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sources: Option<u32>,
    /// The number of the first source. Receivers tell streams apart by it, also those of several runs.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub first_source: u32,
    /// How many source ports each address uses. Each of them is a source with numbers of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub source_ports: u32,
    /// The first source port; by default the kernel chooses.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub first_source_port: Option<u16>,
    /// Datagrams per second over all sources; 0 is as fast as possible.
    #[arg(long, short, value_name = "NUMBER", default_value_t = 1000)]
    pub rate: u64,
    /// How many datagrams to send. Without it and without --duration: until interrupted.
    #[arg(long, short, value_name = "NUMBER", conflicts_with = "duration")]
    pub count: Option<NonZeroU64>,
    /// How long to send: 500ms, 10s, 2m.
    #[arg(long, short, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Payload size in bytes: fixed (200), a range (200-1400), or a list (200,500,1400); at most 65507. Flow protocols take as many records as fit.
    #[arg(long, short, default_value = "200")]
    pub size: Sizes,
    /// What the content depends on.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// How many datagrams of one source are sent in a row, at most. By default 8, or 64 from a single source, and fewer at low rates.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub run: Option<u64>,
    /// Sends templates again after this many datagrams of a source.
    #[arg(long, value_name = "NUMBER", default_value = "1000")]
    pub template_every: NonZeroU64,
    /// And after this time.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub template_interval: Duration,
    /// Lets the kernel cut runs of equal size into datagrams (UDP_SEGMENT).
    #[arg(long)]
    pub gso: bool,
    /// Adds up a hash of each payload, to compare with a receiver's: the sum, modulo 2^128, of XXH3 (128 bits).
    #[arg(long)]
    pub digest: bool,
    /// Makes the last line a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The protocols that one name stands for.
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
    /// Its port, when it was given.
    pub port: Option<u16>,
}

/// A mistake in [`To`].
#[derive(Debug, thiserror::Error)]
#[error("expected an address with or without a port: 198.51.100.7, 198.51.100.7:514, 2001:db8::7, [2001:db8::7]:514")]
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

/// A whole number of `ms`, `s`, `m` or `h`, and more than nothing.
///
/// # Errors
/// Anything else, with what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
    match parsed {
        Some(milliseconds @ 1..) => Ok(Duration::from_millis(milliseconds)),
        _ => Err("expected a duration such as 500ms, 10s or 2m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_come_one_by_one_by_list_by_weight_and_by_group() {
        let parse = |arguments: &[&str]| {
            let arguments = Arguments::try_parse_from([&["x", "--to", "127.0.0.1"], arguments].concat()).unwrap();
            arguments
                .protocol
                .into_iter()
                .flat_map(|Shares(shares)| shares)
                .map(|share| (share.protocol, share.weight))
                .collect::<Vec<_>>()
        };
        assert_eq!(parse(&[]), [(Protocol::Rfc5424, 1)]);
        assert_eq!(
            parse(&["-p", "ipfix:3,sflow", "-p", "syslog:2"]),
            [(Protocol::Ipfix, 3), (Protocol::Sflow, 1), (Protocol::Rfc3164, 2), (Protocol::Rfc5424, 2)]
        );
        assert_eq!(parse(&["-p", "all"]).len(), 10);
    }

    #[test]
    fn mistakes_are_refused() {
        for mistake in [
            &["--protocol", "syslog-ng"][..],
            &["--protocol", "ipfix:0"],
            &["--to", "somewhere"],
            &["--to", "127.0.0.1:0"],
            &["--sources", "3"],
            &["--count", "0"],
            &["--count", "1", "--duration", "1s"],
            &["--duration", "1"],
            &["--size", "70000"],
            &["--from", "198.18.0.0/33"],
        ] {
            let destination: &[&str] = if mistake[0] == "--to" { &[] } else { &["--to", "127.0.0.1"] };
            let arguments = [&["x"], mistake, destination].concat();
            assert!(Arguments::try_parse_from(&arguments).is_err(), "{arguments:?}");
        }
    }
}
