//! The command line, resolved: which source sends what to which destination, and in which order.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use sekiwake_traffic::{Protocol, generate::Source};

use crate::{
    cli::{Arguments, Shares},
    share::Share,
    sources::TooFew,
};

/// Default number of consecutive datagrams from one of several sources: enough to save system
/// calls, few enough to mix sources.
const DEFAULT_RUN: u64 = 8;
/// Default from a single source: the limit of one system call.
const MAX_RUN: u64 = 64;

/// An error in a combination of options.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// --from has fewer addresses than --sources.
    #[error(transparent)]
    Sources(#[from] TooFew),
    /// One address is IPv4, the other IPv6.
    #[error("--from {from} and --to {to} have different address families")]
    Families {
        /// A source.
        from: IpAddr,
        /// The destination.
        to: IpAddr,
    },
    /// Ports above 65535.
    #[error("--first-source-port {first} with --source-ports {count} exceeds port 65535")]
    Ports {
        /// The first port.
        first: u16,
        /// Number of ports.
        count: u32,
    },
}

/// A source and the port that it binds.
#[derive(Clone, Copy, Debug)]
pub struct BoundSource {
    /// The source.
    pub source: Source,
    /// Its port; 0 is any.
    pub port: u16,
}

/// The contents of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sources, by index.
    pub sources: Vec<BoundSource>,
    /// The protocols without repetition, in the order given.
    pub protocols: Vec<Protocol>,
    /// Indices of `protocols`, each as often as its weight, evenly mixed.
    pub turns: Vec<usize>,
    /// The destination of each of `protocols`.
    pub destinations: Vec<SocketAddr>,
    /// Maximum number of consecutive datagrams from one source.
    pub run: u64,
    /// Number of datagrams, if limited.
    pub count: Option<u64>,
    /// Duration, if limited.
    pub duration: Option<Duration>,
}

impl Plan {
    /// Resolves the command line.
    pub fn new(arguments: &Arguments) -> Result<Plan, PlanError> {
        let to = arguments.to;
        let shares = arguments.protocol.iter().flat_map(|Shares(shares)| shares.iter().copied());
        let (protocols, weights) = merge(shares);
        let destination = |protocol: &Protocol| SocketAddr::new(to.address, to.port.unwrap_or(protocol.default_port()));
        let destinations = protocols.iter().map(destination).collect();
        let unspecified: IpAddr =
            if to.address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let addresses =
            arguments.from.as_ref().map_or(Ok(vec![unspecified]), |from| from.addresses(arguments.sources))?;
        if let Some(&from) = addresses.iter().find(|from| from.is_ipv4() != to.address.is_ipv4()) {
            return Err(PlanError::Families { from, to: to.address });
        }
        let count = arguments.source_ports;
        let ports = match arguments.first_source_port {
            None => vec![0; count as usize],
            Some(first) if u32::from(first) + count - 1 <= u32::from(u16::MAX) => {
                (0..count).map(|offset| first + offset as u16).collect()
            }
            Some(first) => return Err(PlanError::Ports { first, count }),
        };
        let endpoints = addresses.iter().flat_map(|&address| ports.iter().map(move |&port| (address, port)));
        let sources: Vec<_> = (arguments.first_source..)
            .zip(endpoints)
            .map(|(index, (address, port))| BoundSource { source: Source { index, address }, port })
            .collect();
        let turns = interleave(&weights);
        let run = run_length(arguments, sources.len() as u64 * protocols.len() as u64);
        let count = arguments.count.map(std::num::NonZeroU64::get);
        Ok(Plan { sources, protocols, turns, destinations, run, count, duration: arguments.duration })
    }
}

/// A few runs per millisecond and, when a number of datagrams is given, equal shares for all
/// sources.
fn run_length(arguments: &Arguments, streams: u64) -> u64 {
    if let Some(run) = arguments.run {
        return run;
    }
    let most = if streams == 1 { MAX_RUN } else { DEFAULT_RUN };
    let by_rate = if arguments.rate == 0 { most } else { arguments.rate / 2000 };
    let by_count = arguments.count.map_or(most, |count| count.get() / streams);
    most.min(by_rate).min(by_count).max(1)
}

fn merge(shares: impl Iterator<Item = Share>) -> (Vec<Protocol>, Vec<u32>) {
    let mut protocols = Vec::new();
    let mut weights = Vec::new();
    for Share { protocol, weight } in shares {
        match protocols.iter().position(|&known| known == protocol) {
            Some(index) => weights[index] += weight,
            None => {
                protocols.push(protocol);
                weights.push(weight);
            }
        }
    }
    (protocols, weights)
}

/// Each index as often as its weight, spread evenly: the index furthest behind its share is next.
fn interleave(weights: &[u32]) -> Vec<usize> {
    let total: i64 = weights.iter().copied().map(i64::from).sum();
    let mut credits = vec![0_i64; weights.len()];
    let mut turns = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, &weight) in credits.iter_mut().zip(weights) {
            *credit += i64::from(weight);
        }
        let next = (0..credits.len()).rev().max_by_key(|&index| credits[index]).unwrap_or(0);
        credits[next] -= total;
        turns.push(next);
    }
    turns
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

    fn plan(arguments: &str) -> Result<Plan, PlanError> {
        Plan::new(&Line::try_parse_from(format!("x {arguments}").split(' ')).unwrap().arguments)
    }

    #[test]
    fn turns_follow_the_weights_evenly() {
        assert_eq!(interleave(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(interleave(&[3, 1]), [0, 0, 1, 0]);
    }

    #[test]
    fn each_address_and_port_is_a_source() {
        let plan = plan("--to 198.51.100.7 --from 198.18.0.0/24 --sources 2 --source-ports 2 --first-source-port 5000 -p rfc3164,ipfix").unwrap();
        let sources: Vec<_> = plan
            .sources
            .iter()
            .map(|one| format!("{} {}:{}", one.source.index, one.source.address, one.port))
            .collect();
        assert_eq!(sources, ["0 198.18.0.1:5000", "1 198.18.0.1:5001", "2 198.18.0.2:5000", "3 198.18.0.2:5001"]);
        assert_eq!(plan.destinations.iter().map(SocketAddr::port).collect::<Vec<_>>(), [514, 4739]);
    }

    #[test]
    fn sources_are_numbered_from_the_first() {
        let plan = plan("--to 198.51.100.7 --from 198.18.0.0/24 --sources 2 --first-source 64").unwrap();
        assert_eq!(plan.sources.iter().map(|one| one.source.index).collect::<Vec<_>>(), [64, 65]);
    }

    #[test]
    fn contradicting_options_are_rejected() {
        assert!(plan("--to 198.51.100.7 --from 2001:db8::1").is_err());
        assert!(plan("--to 198.51.100.7 --from 198.18.0.1 --sources 2").is_err());
        assert!(plan("--to 198.51.100.7 --first-source-port 65535 --source-ports 2").is_err());
    }

    #[test]
    fn runs_are_short_at_low_rates_and_small_counts() {
        let run = |arguments: &str| plan(&format!("--to 198.51.100.7 {arguments}")).unwrap().run;
        assert_eq!(run("--rate 100"), 1);
        assert_eq!(run("--rate 0"), 64);
        assert_eq!(run("--rate 0 -p all"), 8);
        assert_eq!(run("--rate 0 -p all --count 30"), 3);
        assert_eq!(run("--rate 10 --run 5"), 5);
    }
}
