//! Destinations as they are configured: URIs, separated by white space.
//!
//! ```text
//! udp://host:port[?gso=true|false]
//!       host  an IPv4 address, an IPv6 address in brackets, or a name
//!       port  1 to 65535; there is no default, for a guess would send to the wrong place without a word
//! ```
//! Whatever is not of this form is refused with the column where it begins: a typing error must not change where data goes.
//!
//! An IPv4 address in the form of an IPv6 one (`[::ffff:198.51.100.7]`) is that IPv4 address. Multicast groups and the broadcast
//! addresses of IPv4 are destinations as any other: their datagrams leave by the interface that the routes name, 255.255.255.255
//! by that of the default route. Addresses to which no datagram ever leads are refused ([`never_reached`]).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use sekiwake_settings::Setting;

/// Where to send, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The host that receives.
    pub host: Host,
    /// Its UDP port, never 0.
    pub port: u16,
    /// Whether runs of datagrams may leave as one message that the kernel or the device cuts up (`gso=`, on by default).
    pub segmentation: bool,
    label: Arc<str>,
}

/// A host as it is written in a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, in lower case, which the system's resolver knows.
    Name(String),
}

/// What is wrong with a list of destinations, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct DestinationError {
    /// The place, in characters from the beginning of the whole list, which is column 1.
    pub column: usize,
    /// What is wrong there and what was expected.
    pub problem: String,
}

/// All destinations of one forwarder: none is there twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations(Vec<Destination>);

impl Destinations {
    /// Reads a list of URIs.
    ///
    /// # Errors
    /// The first mistake: where it is, and what was expected there.
    pub fn parse(text: &str) -> Result<Destinations, DestinationError> {
        let mut destinations: Vec<Destination> = Vec::new();
        for (start, word) in words(text) {
            let at = |(offset, problem): Mistake| DestinationError {
                column: text[..start + offset].chars().count() + 1,
                problem,
            };
            let destination = parse_uri(word).map_err(at)?;
            if let Some(twin) = destinations.iter().find(|other| other.same_place(&destination)) {
                return Err(at((0, format!("{destination} is the same place as {twin}, expected each once"))));
            }
            destinations.push(destination);
        }
        Ok(Destinations(destinations))
    }

    /// Whether there is nowhere to send to.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The destinations, in the order in which they were written.
    pub fn iter(&self) -> std::slice::Iter<'_, Destination> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Destinations {
    type Item = &'a Destination;
    type IntoIter = std::slice::Iter<'a, Destination>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Destinations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, destination) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            let options = if destination.segmentation { "" } else { "?gso=false" };
            write!(f, "{separator}{destination}{options}")?;
        }
        Ok(())
    }
}

impl Setting for Destinations {
    fn takes() -> &'static str {
        "URIs such as udp://198.51.100.7:514, separated by white space"
    }

    fn parse(text: &str) -> Result<Destinations, String> {
        Destinations::parse(text).map_err(|error| error.to_string())
    }
}

impl Destination {
    /// The URI without its options, as it was written: the value of the label `destination` in metrics and logs.
    pub fn label(&self) -> &str {
        &self.label
    }

    fn same_place(&self, other: &Destination) -> bool {
        self.host == other.host && self.port == other.port
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// A byte offset into the word, and what is wrong there.
type Mistake = (usize, String);

fn mistake<T>(offset: usize, problem: impl Into<String>) -> Result<T, Mistake> {
    Err((offset, problem.into()))
}

/// The words of a text, each with its byte offset.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_whitespace().map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

fn parse_uri(word: &str) -> Result<Destination, Mistake> {
    let Some((scheme, rest)) = word.split_once("://") else {
        return mistake(0, format!("\"{word}\" is no URI, expected udp://host:port"));
    };
    if scheme != "udp" {
        return mistake(0, format!("scheme \"{scheme}\" is not supported by this version, expected udp"));
    }
    let authority_at = scheme.len() + "://".len();
    let authority_length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_length);
    let tail_at = authority_at + authority_length;
    let (host, port) = parse_authority(authority).map_err(|(offset, problem)| (authority_at + offset, problem))?;
    let segmentation = match tail.as_bytes().first() {
        None => true,
        Some(b'?') => parse_options(&tail[1..]).map_err(|(offset, problem)| (tail_at + 1 + offset, problem))?,
        Some(b'/') => return mistake(tail_at, "a path has no meaning here, expected ? or the end"),
        Some(_) => return mistake(tail_at, "a fragment has no meaning here, expected ? or the end"),
    };
    Ok(Destination { host, port, segmentation, label: word[..tail_at].into() })
}

fn parse_authority(authority: &str) -> Result<(Host, u16), Mistake> {
    if authority.contains('@') {
        return mistake(0, "user information has no meaning here, expected host:port");
    }
    let (host, after_host) = match authority.strip_prefix('[') {
        Some(inner) => {
            let Some((literal, after)) = inner.split_once(']') else {
                return mistake(0, "the bracket is never closed, expected an IPv6 address such as [2001:db8::7]");
            };
            (parse_ipv6(literal).map_err(|problem| (1, problem))?, after)
        }
        None => {
            let (text, after) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            if after[after.len().min(1)..].contains(':') {
                return mistake(0, "expected an IPv6 address in brackets such as [2001:db8::7]:514");
            }
            (parse_host(text).map_err(|problem| (0, problem))?, after)
        }
    };
    let after_at = authority.len() - after_host.len();
    match after_host.strip_prefix(':') {
        Some(digits) => match parse_port(digits) {
            Some(port) => Ok((host, port)),
            None => mistake(after_at + 1, format!("port \"{digits}\", expected a number from 1 to 65535")),
        },
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
    // What ends in a number is an address by the rules of every resolver, and this one is no IPv4 address.
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

/// Why no datagram to this canonical address, which has no zone, ever arrives anywhere; `None` if one may.
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

/// Reads what stands after the question mark; gives whether segmentation is wanted.
fn parse_options(query: &str) -> Result<bool, Mistake> {
    let mut segmentation = None;
    let mut offset = 0;
    for option in query.split('&') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if name != "gso" {
            return mistake(offset, format!("option \"{name}\" is not supported by this version, expected gso"));
        }
        let wanted = match value {
            "true" => true,
            "false" => false,
            _ => return mistake(offset + name.len(), format!("gso=\"{value}\", expected true or false")),
        };
        if segmentation.replace(wanted).is_some() {
            return mistake(offset, "option \"gso\" for the second time, expected it once");
        }
        offset += option.len() + 1;
    }
    Ok(segmentation.unwrap_or(true))
}
