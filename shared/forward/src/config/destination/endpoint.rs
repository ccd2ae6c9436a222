//! One endpoint: a host and a port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::error::{Mistake, mistake};

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The receiving host.
    pub host: Host,
    /// Its port, never 0.
    pub port: u16,
}

/// A host as it is written in a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name for the system's resolver, in lower case.
    Name(String),
}

/// An endpoint as it is written: the port may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// Reads `host[:port]`.
pub(super) fn parse(authority: &str) -> Result<Written, Mistake> {
    if authority.contains('@') {
        return mistake(0, "user information is not supported, expected host:port");
    }
    let (host, after_host) = match authority.strip_prefix('[') {
        Some(inner) => {
            let Some((literal, after)) = inner.split_once(']') else {
                return mistake(0, "bracket not closed, expected an IPv6 address such as [2001:db8::7]");
            };
            (parse_ipv6(literal).map_err(|problem| Mistake::new(1, problem))?, after)
        }
        None => {
            let (text, after) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            // A second colon can only be an IPv6 address, whose port would be a guess.
            if after[after.len().min(1)..].contains(':') {
                return mistake(0, "expected an IPv6 address in brackets such as [2001:db8::7]:514");
            }
            (parse_host(text).map_err(|problem| Mistake::new(0, problem))?, after)
        }
    };
    let after_at = authority.len() - after_host.len();
    match after_host.strip_prefix(':') {
        Some(digits) => match parse_port(digits) {
            Some(port) => Ok(Written { host, port: Some(port) }),
            None => mistake(after_at + 1, format!("port \"{digits}\", expected a number from 1 to 65535")),
        },
        None if after_host.is_empty() => Ok(Written { host, port: None }),
        None => mistake(after_at, "expected a colon and a port from 1 to 65535"),
    }
}

fn parse_ipv6(literal: &str) -> Result<Host, String> {
    match literal.parse::<Ipv6Addr>() {
        Ok(address) => parse_address(address.into()),
        Err(_) => Err(format!("\"{literal}\", expected an IPv6 address (without a zone) in the brackets")),
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return parse_address(address.into());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    // Resolvers interpret a name that ends in a number as an address, and this one is not a valid
    // IPv4 address.
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if name.is_empty() || name.len() > 253 || last_is_number || !name.split('.').all(is_label) {
        return Err(format!("host \"{text}\", expected an IPv4 address, an IPv6 address in brackets, or a name"));
    }
    Ok(Host::Name(text.to_ascii_lowercase()))
}

fn parse_address(written: IpAddr) -> Result<Host, String> {
    let address = written.to_canonical();
    match never_reached(address) {
        Some(why) => Err(format!("{written} cannot be a destination: {why}")),
        None => Ok(Host::Address(address)),
    }
}

/// Why no datagram to this canonical address without a zone ever arrives; `None` if one may.
pub(crate) fn never_reached(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => match address.octets()[0] {
            0 => Some(
                "0.0.0.0/8 means \"this host\" and receives nothing (RFC 1122 §3.2.1.3), expected a host's address",
            ),
            240.. if !address.is_broadcast() => {
                Some("240.0.0.0/4 is reserved (RFC 1112 §4), expected a host's address")
            }
            _ => None,
        },
        IpAddr::V6(address) if address.is_unspecified() => {
            Some("the unspecified address receives nothing (RFC 4291 §2.5.2), expected a host's address")
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            Some("a link-local address needs a zone, and zones are not supported, expected a wider scope")
        }
        IpAddr::V6(address) if address.is_multicast() => match address.segments()[0] & 0xf {
            0 => Some("multicast scope 0 is reserved (RFC 4291 §2.7), expected site-local (ff05::/16) or wider"),
            1 | 2 => Some(
                "a multicast group of this scope needs a zone, and zones are not supported, expected a wider scope",
            ),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

fn parse_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&port| plain && port != 0)
}
