//! Destinations as they are configured: URIs, separated by white space.
//!
//! ```text
//! udp://host[:port][,host[:port]...][?option=value[&option=value...]]
//! tcp://host:port[?...]   syslog only (RFC 6587)
//! tls://host[:port][?...] syslog only (RFC 5425)
//! otlp+http://host:port[,host:port...][/path][?...]   OpenTelemetry logs, also otlp+https://
//! kafka://host[:port][,host[:port]...]/topic[?...]    bootstrap servers, and a topic of Kafka
//! nats://host[:port][,host[:port]...]/subject[?...]   servers, and a subject that a stream takes
//!       host  an IPv4 address, an IPv6 address in brackets, or a name
//!       port  1 to 65535; without it the registered one, where there is exactly one:
//!             514 for syslog over udp, 162 for traps over udp, 6514 for tls, 4318 for otlp,
//!             9092 for kafka, 4222 for nats
//! ```
//! Several endpoints after `udp://` or `otlp+http://` are a pool: each source is sent to one of
//! them. The options are in [`options`]. Anything else is rejected with the column where it begins:
//! a typing error must not change where data goes.
//!
//! An IPv4-mapped address (`[::ffff:198.51.100.7]`) is that IPv4 address. Multicast groups and the
//! broadcast addresses of IPv4 are destinations like any other: their datagrams leave by the
//! interface that the routes name, 255.255.255.255 by that of the default route. Addresses that can
//! never receive a datagram are rejected ([`never_reached`]).

mod digest;
mod endpoint;
mod error;
mod options;
mod uri;

use std::fmt;

use sekiwake_record::Kind;

pub(crate) use endpoint::never_reached;
pub use endpoint::{Endpoint, Host};
pub use error::DestinationError;
use error::Mistake;
pub use options::{DeliveryOptions, Dscp, KafkaOptions, NatsOptions, Options, TlsFiles};

/// Maximum number of endpoints of one forwarder; each member of a pool counts.
pub const MAX_ENDPOINTS: usize = 64;

/// One destination: where to send, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The transport of the datagrams.
    pub transport: Transport,
    /// The endpoints: one, or the members of a pool.
    pub endpoints: Vec<Endpoint>,
    /// Bootstrap servers after the first one, which is the endpoint.
    pub bootstrap: Vec<Endpoint>,
    /// The path after the endpoints, with its first slash and without a last one, or nothing.
    pub path: String,
    /// Everything else that the URI says.
    pub options: Options,
    /// The URI as it was written.
    text: String,
}

/// The transport of datagrams to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Each as a UDP datagram.
    Udp,
    /// In a TCP connection.
    Tcp,
    /// The same, encrypted.
    Tls,
    /// As OpenTelemetry logs over HTTP.
    OtlpHttp,
    /// The same, encrypted.
    OtlpHttps,
    /// As records of a Kafka topic.
    Kafka,
    /// As messages of a NATS subject, which a stream acknowledges.
    Nats,
}

impl Transport {
    /// The scheme of its URIs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::OtlpHttp => "otlp+http",
            Transport::OtlpHttps => "otlp+https",
            Transport::Kafka => "kafka",
            Transport::Nats => "nats",
        }
    }

    /// Whether the other side acknowledges messages.
    pub(crate) const fn is_delivery(self) -> bool {
        self.is_otlp() || self.is_cluster()
    }

    /// Whether messages are those of OTLP.
    pub(crate) const fn is_otlp(self) -> bool {
        matches!(self, Transport::OtlpHttp | Transport::OtlpHttps)
    }

    /// Whether several endpoints are servers that know each other, and one destination together.
    pub(crate) const fn is_cluster(self) -> bool {
        matches!(self, Transport::Kafka | Transport::Nats)
    }

    /// Whether messages follow each other in a connection.
    pub(crate) const fn is_stream(self) -> bool {
        matches!(self, Transport::Tcp | Transport::Tls)
    }

    /// Whether it is encrypted, whatever the options.
    pub(crate) const fn is_encrypted(self) -> bool {
        matches!(self, Transport::Tls | Transport::OtlpHttps)
    }
}

/// All destinations of one forwarder, without an endpoint twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Destinations(Vec<Destination>);

impl Destinations {
    /// Reads a list of URIs for datagrams of this kind.
    ///
    /// # Errors
    /// The first mistake: where it is, and what was expected there.
    pub fn parse(kind: Kind, text: &str) -> Result<Destinations, DestinationError> {
        let mut destinations: Vec<Destination> = Vec::new();
        let mut endpoints = 0;
        for (start, word) in words(text) {
            let in_list = |mistake: Mistake| mistake.in_list(text, start);
            let destination = uri::parse(kind, word).map_err(in_list)?;
            if let Some((label, twin)) = twin_among(&destinations, &destination) {
                let problem = format!("{label} is already listed as {twin}, expected each endpoint once");
                return Err(in_list(Mistake::new(0, problem)));
            }
            endpoints += destination.endpoints.len();
            if endpoints > MAX_ENDPOINTS {
                let problem = format!("more than {MAX_ENDPOINTS} endpoints, expected at most that many");
                return Err(in_list(Mistake::new(0, problem)));
            }
            destinations.push(destination);
        }
        Ok(Destinations(destinations))
    }

    /// Whether there is no destination.
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
    /// The name of one of its endpoints: the value of the label `destination` in metrics and logs.
    pub fn label(&self, endpoint: &Endpoint) -> String {
        let further: String = self.bootstrap.iter().map(|server| format!(",{server}")).collect();
        format!("{}://{endpoint}{further}{}", self.transport.scheme(), self.path)
    }

    /// Everything that the URI names before the path.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().chain(&self.bootstrap)
    }

    /// What is allowed and probably not meant.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let options = &self.options;
        if self.transport.is_delivery() && options.spool.is_none() {
            let text = "no spool=: an outage of more than ten seconds loses records";
            warnings.push(format!("{self}: {text}"));
        }
        if options.delivery.headers.is_some() && !self.transport.is_encrypted() {
            let text = "headers= over a plain connection shows them to everybody on the path, use otlp+https";
            warnings.push(format!("{self}: {text}"));
        }
        if options.delivery.password.is_some() && !options.delivery.is_encrypted {
            let text =
                "password= over a plain connection can be read or guessed by everybody on the path, use tls=true";
            warnings.push(format!("{self}: {text}"));
        }
        warnings
    }

    /// Whether datagrams are distributed among several endpoints.
    pub fn is_pool(&self) -> bool {
        self.endpoints.len() > 1
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The first endpoint of `new` that is already listed, and the destination that has it.
fn twin_among<'a>(known: &'a [Destination], new: &Destination) -> Option<(String, &'a Destination)> {
    new.servers().find_map(|endpoint| {
        let is_twin = |other: &&Destination| {
            let has_endpoint = || other.servers().any(|known| known == endpoint);
            other.transport == new.transport && other.path == new.path && has_endpoint()
        };
        let twin = known.iter().find(is_twin)?;
        Some((new.label(endpoint), twin))
    })
}

/// The words of a text, each with its byte offset.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_whitespace().map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}
