//! Destinations as they are configured: URIs, separated by white space.
//!
//! ```text
//! udp://host:port[,host:port...][?option=value[&option=value...]]
//! tcp://host:port[?...]   tls://host:port[?...]          syslog only, octet-counted (RFC 6587 §3.4.1, RFC 5425 §4.3)
//!       host  an IPv4 address, an IPv6 address in brackets, or a name
//!       port  1 to 65535; there is no default, for a guess would send to the wrong place without a word
//! ```
//! Several places after `udp://` are a pool: each source has one of them. The options are in [`options`]. Whatever is not of this form
//! is refused with the column where it begins: a typing error must not change where data goes.
//!
//! An IPv4 address in the form of an IPv6 one (`[::ffff:198.51.100.7]`) is that IPv4 address. Multicast groups and the broadcast
//! addresses of IPv4 are destinations as any other: their datagrams leave by the interface that the routes name, 255.255.255.255
//! by that of the default route. Addresses to which no datagram ever leads are refused ([`never_reached`]).

mod options;
mod place;
mod uri;

use std::fmt;

use sekiwake_record::Kind;

pub use options::{Dscp, Options, TlsFiles};
pub(crate) use place::never_reached;
pub use place::{Host, Place};

/// The most places that one forwarder sends to, the members of pools counted singly.
pub const MAX_PLACES: usize = 64;

/// Where to send, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// What carries the datagrams.
    pub transport: Transport,
    /// The places: one, or the members of a pool.
    pub places: Vec<Place>,
    /// What is asked for besides.
    pub options: Options,
    /// The URI as it was written.
    text: String,
}

/// What carries datagrams to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Each as a UDP datagram.
    Udp,
    /// Octet-counted in a TCP connection.
    Tcp,
    /// The same, encrypted.
    Tls,
}

impl Transport {
    /// The scheme of its URIs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        }
    }
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

/// All destinations of one forwarder: no place is there twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Destinations(Vec<Destination>);

impl Destinations {
    /// Reads a list of URIs for datagrams of this kind.
    ///
    /// # Errors
    /// The first mistake: where it is, and what was expected there.
    pub fn parse(kind: Kind, text: &str) -> Result<Destinations, DestinationError> {
        let mut destinations: Vec<Destination> = Vec::new();
        let mut places = 0;
        for (start, word) in words(text) {
            let at = |(offset, problem): uri::Mistake| DestinationError {
                column: text[..start + offset].chars().count() + 1,
                problem,
            };
            let destination = uri::parse(kind, word).map_err(at)?;
            if let Some((label, twin)) = twin_among(&destinations, &destination) {
                return Err(at((0, format!("{label} is in {twin} already, expected each place once"))));
            }
            places += destination.places.len();
            if places > MAX_PLACES {
                return Err(at((0, format!("more than {MAX_PLACES} places to send to"))));
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
            write!(f, "{separator}{destination}")?;
        }
        Ok(())
    }
}

impl Destination {
    /// The name of one of its places: the value of the label `destination` in metrics and logs.
    pub fn label(&self, place: &Place) -> String {
        format!("{}://{place}", self.transport.scheme())
    }

    /// Whether datagrams are shared out among several places.
    pub fn is_pool(&self) -> bool {
        self.places.len() > 1
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The first place of `new` that is there already, and where.
fn twin_among<'a>(known: &'a [Destination], new: &Destination) -> Option<(String, &'a Destination)> {
    new.places.iter().find_map(|place| {
        let twin = known.iter().find(|other| other.transport == new.transport && other.places.contains(place))?;
        Some((new.label(place), twin))
    })
}

/// The words of a text, each with its byte offset.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_whitespace().map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}
