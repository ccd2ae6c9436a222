//! The options of a destination: the part of its URI after the question mark.
//!
//! ```text
//! udp       gso=true|false             send runs as one message with UDP_SEGMENT (true)
//!           spoof=true|false           keep the device's address and port as the source (false)
//!           dscp=copy|0..63            DSCP: as captured, or this one (the system's, 0)
//! syslog    add_source=true|false      add the device's address as structured data (false)
//!           facility=NAME,...          only these facilities: names or 0..23
//!           min_severity=NAME          only this severity and more severe ones: a name or 0..7
//! trap      add_source=true|false      append the device's address to v2c traps (false)
//!           snmpv3=trap|inform         what encrypted messages are that may be either, for spoof (inform)
//! xflow     template_refresh=TIME      resend templates at this interval, or never (never; 1m with spoof)
//! tcp, tls  framing=NAME               octet-counting or newline (octet-counting)
//!           spool=SIZE                 bytes on disk for missed messages (none), also otlp, kafka,
//!                                      nats
//!           replay=RATE                messages per second sent from the spool (5000)
//! otlp      value=NAME                 raw, json or decoded (raw; json for kafka and nats)
//!           encoding=NAME              protobuf or json (protobuf)
//!           compression=NAME           gzip or none (gzip)
//!           headers=FILE               HTTP headers, such as those with API keys (none)
//! kafka     value=NAME                 as above
//!           compression=NAME           none, gzip or zstd (none)
//!           tls=true|false             encrypted connections (false)
//!           sasl=NAME                  plain, scram-sha-256 or scram-sha-512 (no authentication)
//!           user=NAME password=FILE    of that
//! nats      value=NAME                 as above
//!           tls=true|false             encrypted connections (false)
//!           user=NAME password=FILE    name and password (no authentication)
//!           nkey=FILE                  seed of an nkey (no authentication)
//!           creds=FILE                 credentials: a JWT and a seed (no authentication)
//!           pipeline=N                 messages of a source on their way (1)
//! tls, https, kafka, nats
//!           ca=FILE                    authorities to trust, PEM (the system's)
//!           cert=FILE key=FILE         client certificate and key, PEM (none)
//!           server_name=NAME           name in the server's certificate (the host); not for nats
//! all       source=PREFIX,...          only these sources, for example 10.0.0.0/8,2001:db8::/32
//!           exclude_source=PREFIX,...  not these, even if `source` names them
//!           format=NAME,...            only these formats, by the names in /metrics and `explain`
//!           rate=N                     at most N datagrams per second, in bursts of N (no limit)
//! ```
//! In a value, `%` and two hexadecimal digits stand for a byte, as in every URI.

use std::{path::PathBuf, time::Duration};

use sekiwake_identify::syslog::{parse_facility, parse_severity};
use sekiwake_record::{Format, Kind, Prefix};
use sekiwake_settings::{ByteSize, Setting, percent_decoded};

use super::{
    Transport,
    error::{Mistake, mistake},
};
use crate::{
    delivery::{
        Value,
        kafka::{Compression, Mechanism},
        otlp::Encoding,
        spool::LEAST_SPOOL_BYTES,
    },
    routing::filter::{Facilities, Filter},
    stream::Framing,
};

/// The options of one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Whether runs of datagrams may be sent as one message, which kernel or device segments.
    pub segmentation: bool,
    /// Whether the device's address and port are kept as the source.
    pub spoof: bool,
    /// The DSCP of sent datagrams.
    pub dscp: Dscp,
    /// Whether the device's address is added to syslog messages, or to SNMPv2c traps.
    pub add_source: bool,
    /// Whether encrypted SNMPv3 messages that may be traps or informs count as traps, and are
    /// spoofed.
    pub encrypted_are_traps: bool,
    /// Which records are sent there.
    pub filter: Filter,
    /// Maximum number of datagrams per second.
    pub rate: Option<u32>,
    /// How often templates are resent; `None`: only to endpoints that may lack them.
    pub template_refresh: Option<Duration>,
    /// How messages are told apart in a TCP or TLS connection.
    pub framing: Framing,
    /// Maximum bytes on disk for messages that the destination missed; not for UDP.
    pub spool: Option<u64>,
    /// Messages per second from the spool.
    pub replay: u32,
    /// Certificates and names.
    pub tls: TlsFiles,
    /// Of destinations that acknowledge messages.
    pub delivery: DeliveryOptions,
}

/// The options of a destination that acknowledges messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOptions {
    /// What is delivered of a datagram.
    pub value: Value,
    /// How requests are written.
    pub encoding: Encoding,
    /// Whether requests are compressed.
    pub is_compressed: bool,
    /// The file with HTTP headers.
    pub headers: Option<PathBuf>,
    /// Whether servers of Kafka or NATS are reached by TLS.
    pub is_encrypted: bool,
    /// The user of those.
    pub user: Option<String>,
    /// The file with the user's password.
    pub password: Option<PathBuf>,
    /// Of Kafka.
    pub kafka: KafkaOptions,
    /// Of NATS.
    pub nats: NatsOptions,
}

/// The options of a Kafka topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaOptions {
    /// How batches are compressed.
    pub compression: Compression,
    /// How the user is authenticated.
    pub sasl: Option<Mechanism>,
}

/// The options of a NATS subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsOptions {
    /// The file with the seed of an nkey.
    pub nkey: Option<PathBuf>,
    /// The file with a JWT and a seed.
    pub credentials: Option<PathBuf>,
    /// The most messages of a source that are on their way.
    pub pipeline: u32,
}

impl Default for DeliveryOptions {
    fn default() -> DeliveryOptions {
        DeliveryOptions {
            value: Value::Raw,
            encoding: Encoding::Protobuf,
            is_compressed: true,
            headers: None,
            is_encrypted: false,
            user: None,
            password: None,
            kafka: KafkaOptions { compression: Compression::None, sasl: None },
            nats: NatsOptions { nkey: None, credentials: None, pipeline: 1 },
        }
    }
}

/// The DSCP of sent datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// The system's: 0.
    System,
    /// That of the captured datagram.
    Copy,
    /// This one, 0 to 63.
    Fixed(u8),
}

/// Files and names of a TLS destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities to trust; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// The client certificate, with its chain.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have; the host as written if `None`.
    pub server_name: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segmentation: true,
            spoof: false,
            dscp: Dscp::System,
            add_source: false,
            encrypted_are_traps: false,
            filter: Filter::default(),
            rate: None,
            template_refresh: None,
            framing: Framing::OctetCounting,
            spool: None,
            replay: 5000,
            tls: TlsFiles::default(),
            delivery: DeliveryOptions::default(),
        }
    }
}

/// Which destinations may have an option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AppliesTo {
    All,
    Kind(Kind),
    /// Where datagrams or messages are sent as such, and may be changed: not by deliveries.
    Sent(Kind, Kind),
    Udp,
    Stream,
    Spooled,
    Encrypted,
    /// Where the name in the certificate may be another than the host.
    Named,
    Delivered,
    Compressed,
    Otlp,
    Kafka,
    Nats,
    /// Kafka and NATS.
    Cluster,
}

/// How often templates are resent to a spoofing destination, unless it says otherwise: its ICMP
/// errors go to the devices.
const SPOOFED_TEMPLATE_REFRESH: Duration = Duration::from_secs(60);

const OPTIONS: [(&str, AppliesTo); 30] = [
    ("gso", AppliesTo::Udp),
    ("spoof", AppliesTo::Udp),
    ("dscp", AppliesTo::Udp),
    ("add_source", AppliesTo::Sent(Kind::Syslog, Kind::SnmpTrap)),
    ("facility", AppliesTo::Kind(Kind::Syslog)),
    ("min_severity", AppliesTo::Kind(Kind::Syslog)),
    ("snmpv3", AppliesTo::Sent(Kind::SnmpTrap, Kind::SnmpTrap)),
    ("template_refresh", AppliesTo::Sent(Kind::Xflow, Kind::Xflow)),
    ("framing", AppliesTo::Stream),
    ("spool", AppliesTo::Spooled),
    ("replay", AppliesTo::Stream),
    ("value", AppliesTo::Delivered),
    ("encoding", AppliesTo::Otlp),
    ("compression", AppliesTo::Compressed),
    ("headers", AppliesTo::Otlp),
    ("tls", AppliesTo::Cluster),
    ("sasl", AppliesTo::Kafka),
    ("user", AppliesTo::Cluster),
    ("password", AppliesTo::Cluster),
    ("nkey", AppliesTo::Nats),
    ("creds", AppliesTo::Nats),
    ("pipeline", AppliesTo::Nats),
    ("ca", AppliesTo::Encrypted),
    ("cert", AppliesTo::Encrypted),
    ("key", AppliesTo::Encrypted),
    ("server_name", AppliesTo::Named),
    ("source", AppliesTo::All),
    ("exclude_source", AppliesTo::All),
    ("format", AppliesTo::All),
    ("rate", AppliesTo::All),
];

impl AppliesTo {
    fn includes(self, kind: Kind, transport: Transport) -> bool {
        match self {
            AppliesTo::All => true,
            AppliesTo::Kind(only) => only == kind,
            AppliesTo::Sent(one, other) => (one == kind || other == kind) && !transport.is_delivery(),
            AppliesTo::Udp => transport == Transport::Udp,
            AppliesTo::Stream => transport.is_stream(),
            AppliesTo::Spooled => transport != Transport::Udp,
            AppliesTo::Encrypted => transport.is_encrypted() || transport.is_cluster(),
            AppliesTo::Named => transport.is_encrypted() || transport == Transport::Kafka,
            AppliesTo::Delivered => transport.is_delivery(),
            AppliesTo::Compressed => transport.is_otlp() || transport == Transport::Kafka,
            AppliesTo::Otlp => transport.is_otlp(),
            AppliesTo::Kafka => transport == Transport::Kafka,
            AppliesTo::Nats => transport == Transport::Nats,
            AppliesTo::Cluster => transport.is_cluster(),
        }
    }
}

/// Reads the part after the question mark, if there is one.
pub(super) fn parse(kind: Kind, transport: Transport, query: Option<&str>) -> Result<Options, Mistake> {
    let mut options = Options::default();
    options.delivery.value = default_value(transport);
    let mut seen: Vec<&str> = Vec::new();
    let mut offset = 0;
    for option in query.into_iter().flat_map(|query| query.split('&')) {
        let (name, written) = option.split_once('=').unwrap_or((option, ""));
        check_name(kind, transport, name).map_err(|problem| Mistake::new(offset, problem))?;
        if seen.contains(&name) {
            return mistake(offset, format!("option \"{name}\" is set twice, expected it once"));
        }
        seen.push(name);
        let at_value = offset + name.len();
        let value = percent_decoded(written)
            .map_err(|problem| Mistake::new(at_value, format!("{name}=\"{written}\", {problem}")))?;
        set(&mut options, kind, transport, name, &value)
            .map_err(|expected| Mistake::new(at_value, format!("{name}=\"{value}\", expected {expected}")))?;
        offset += option.len() + 1;
    }
    check_together(transport, &options, &seen).map_err(|problem| Mistake::new(0, problem))?;
    if kind == Kind::Xflow && options.spoof && !seen.contains(&"template_refresh") {
        options.template_refresh = Some(SPOOFED_TEMPLATE_REFRESH);
    }
    Ok(options)
}

fn check_name(kind: Kind, transport: Transport, name: &str) -> Result<(), String> {
    let usable = || {
        let names = OPTIONS.iter().filter(|(_, applies)| applies.includes(kind, transport));
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    match OPTIONS.iter().find(|(known, _)| *known == name) {
        Some((_, applies)) if applies.includes(kind, transport) => Ok(()),
        Some(_) => {
            let scheme = transport.scheme();
            Err(format!("option \"{name}\" does not apply to {kind} over {scheme}, expected one of {}", usable()))
        }
        None => Err(format!("unknown option \"{name}\", expected one of {}", usable())),
    }
}

/// Checks options that depend on each other.
fn check_together(transport: Transport, options: &Options, seen: &[&str]) -> Result<(), String> {
    let tls = &options.tls;
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err("cert= or key= alone, expected both for a client certificate".to_owned());
    }
    if seen.contains(&"snmpv3") && !options.spoof {
        return Err("snmpv3= without spoof=true, expected both: it says what is spoofed".to_owned());
    }
    if seen.contains(&"replay") && options.spool.is_none() {
        return Err("replay= without spool=, expected both: it is the rate at which a spool is sent".to_owned());
    }
    let DeliveryOptions { is_encrypted, user, password, kafka, nats, .. } = &options.delivery;
    let of_tls = ["ca", "cert", "key", "server_name"].into_iter().find(|name| seen.contains(name));
    if let Some(name) = of_tls.filter(|_| transport.is_cluster() && !is_encrypted) {
        return Err(format!("{name}= without tls=true, expected both"));
    }
    let set = [kafka.sasl.is_some(), user.is_some(), password.is_some()];
    if transport == Transport::Kafka && set.contains(&true) && set.contains(&false) {
        return Err("expected sasl=, user= and password= together, or none of them".to_owned());
    }
    if user.is_some() != password.is_some() {
        return Err("user= or password= alone, expected both".to_owned());
    }
    if [user.is_some(), nats.nkey.is_some(), nats.credentials.is_some()].iter().filter(|&&is_set| is_set).count() > 1 {
        return Err("expected one of user= with password=, nkey= and creds=".to_owned());
    }
    if transport.is_delivery() && options.spool.is_some_and(|size| size < LEAST_SPOOL_BYTES) {
        return Err(format!(
            "spool= is too small, expected at least {}MiB over {}",
            LEAST_SPOOL_BYTES >> 20,
            transport.scheme()
        ));
    }
    Ok(())
}

/// What is delivered unless an option says otherwise: records of OTLP have the rest of the envelope
/// as attributes.
pub(super) const fn default_value(transport: Transport) -> Value {
    match transport {
        Transport::Kafka | Transport::Nats => Value::Json,
        _ => Value::Raw,
    }
}

/// Sets one option. The error is what was expected instead of the value.
fn set(options: &mut Options, kind: Kind, transport: Transport, name: &str, value: &str) -> Result<(), String> {
    let filter = &mut options.filter;
    match name {
        "gso" => options.segmentation = boolean(value)?,
        "spoof" => options.spoof = boolean(value)?,
        "add_source" => options.add_source = boolean(value)?,
        "dscp" => options.dscp = dscp(value)?,
        "snmpv3" => {
            options.encrypted_are_traps = match value {
                "trap" => true,
                "inform" => false,
                _ => return Err("trap or inform".to_owned()),
            }
        }
        "facility" => {
            let names = list(value, "facilities by name or number (0 to 23), separated by commas", parse_facility)?;
            filter.facilities = Some(Facilities::of(&names));
        }
        "min_severity" => {
            let expected = "a severity: emerg, alert, crit, err, warning, notice, info, debug, or 0 to 7";
            filter.min_severity = Some(parse_severity(value).ok_or(expected)?);
        }
        "template_refresh" => {
            options.template_refresh = match value {
                "never" => None,
                _ => Some(setting::<Duration>(value, "more than 0s, or never", |time| !time.is_zero())?),
            }
        }
        "framing" => options.framing = framing(value)?,
        "spool" => options.spool = Some(setting::<ByteSize>(value, "at least 1MiB", |size| size.0 >= MIN_SPOOL)?.0),
        "replay" => options.replay = setting(value, "at least 1", |&rate: &u32| rate > 0)?,
        "rate" => options.rate = Some(setting(value, "at least 1", |&rate: &u32| rate > 0)?),
        "value" => {
            options.delivery.value = match value {
                "raw" => Value::Raw,
                "json" => Value::Json,
                "decoded" => Value::Decoded,
                _ => return Err("raw, json or decoded".to_owned()),
            }
        }
        "encoding" => {
            options.delivery.encoding = match value {
                "protobuf" => Encoding::Protobuf,
                "json" => Encoding::Json,
                _ => return Err("protobuf or json".to_owned()),
            }
        }
        "compression" if transport == Transport::Kafka => {
            options.delivery.kafka.compression = match value {
                "none" => Compression::None,
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                _ => return Err("none, gzip or zstd".to_owned()),
            }
        }
        "tls" => options.delivery.is_encrypted = boolean(value)?,
        "sasl" => {
            let known = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];
            let found = known.into_iter().find(|mechanism| mechanism.name().eq_ignore_ascii_case(value));
            options.delivery.kafka.sasl = Some(found.ok_or("plain, scram-sha-256 or scram-sha-512")?);
        }
        "user" if !value.is_empty() && value.len() <= MAX_USER => {
            options.delivery.user = Some(value.to_owned());
        }
        "user" => return Err(format!("a name of at most {MAX_USER} bytes")),
        "password" => options.delivery.password = Some(path(value)?),
        "nkey" => options.delivery.nats.nkey = Some(path(value)?),
        "pipeline" => {
            options.delivery.nats.pipeline = setting(value, "1 to 256", |number: &u32| (1..=256).contains(number))?;
        }
        "creds" => options.delivery.nats.credentials = Some(path(value)?),
        "compression" => {
            options.delivery.is_compressed = match value {
                "gzip" => true,
                "none" => false,
                _ => return Err("gzip or none".to_owned()),
            }
        }
        "headers" => options.delivery.headers = Some(path(value)?),
        "ca" => options.tls.ca = Some(path(value)?),
        "cert" => options.tls.certificate = Some(path(value)?),
        "key" => options.tls.key = Some(path(value)?),
        "server_name" if !value.is_empty() => options.tls.server_name = Some(value.to_owned()),
        "server_name" => return Err("a name".to_owned()),
        "source" => filter.sources = Some(prefixes(value)?),
        "exclude_source" => filter.excluded_sources = prefixes(value)?,
        "format" => {
            let names = formats_of(kind).map(Format::as_str).collect::<Vec<_>>().join(", ");
            let parse = |text: &str| formats_of(kind).find(|format| format.as_str() == text);
            filter.formats = Some(list(value, &format!("formats out of {names}, separated by commas"), parse)?);
        }
        _ => return Err("a known option".to_owned()),
    }
    Ok(())
}

/// The smallest spool. A smaller one has no room for two segments of the largest message.
const MIN_SPOOL: u64 = 1 << 20;

/// The longest name of a user.
const MAX_USER: usize = 255;

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "true or false".to_owned())
}

fn framing(value: &str) -> Result<Framing, String> {
    match value {
        "octet-counting" => Ok(Framing::OctetCounting),
        "newline" => Ok(Framing::Newline),
        _ => Err("octet-counting, or newline for a receiver that reads lines".to_owned()),
    }
}

fn dscp(value: &str) -> Result<Dscp, String> {
    match value {
        "copy" => Ok(Dscp::Copy),
        _ => match u32::parse(value) {
            Ok(number @ 0..=63) => Ok(Dscp::Fixed(number as u8)),
            _ => Err("copy, or a number from 0 to 63".to_owned()),
        },
    }
}

fn setting<T: Setting>(value: &str, bound: &str, is_valid: impl Fn(&T) -> bool) -> Result<T, String> {
    match T::parse(value) {
        Ok(parsed) if is_valid(&parsed) => Ok(parsed),
        Ok(_) => Err(format!("{}, {bound}", T::takes())),
        Err(wrong) if wrong.is_empty() => Err(T::takes().to_owned()),
        Err(wrong) => Err(format!("{} ({wrong})", T::takes())),
    }
}

fn path(value: &str) -> Result<PathBuf, String> {
    if value.is_empty() { Err("a path".to_owned()) } else { Ok(PathBuf::from(value)) }
}

fn prefixes(value: &str) -> Result<Vec<Prefix>, String> {
    list(value, "addresses or prefixes such as 10.0.0.0/8,2001:db8::/32, separated by commas", |text| text.parse().ok())
}

fn list<T>(value: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let parse = |text: &str| parse(text).ok_or_else(|| format!("{expected} (\"{text}\" is not one)"));
    value.split(',').map(parse).collect()
}

/// The formats of records of this kind.
fn formats_of(kind: Kind) -> impl Iterator<Item = Format> {
    use Format::{
        Ipfix, NetFlow5, NetFlow9, Rfc3164, Rfc5424, Sflow5, Snmp1Trap, Snmp2cInform, Snmp2cTrap, Snmp3, Unknown,
    };
    let formats: &[Format] = match kind {
        Kind::Syslog => &[Rfc3164, Rfc5424, Unknown],
        Kind::Xflow => &[NetFlow5, NetFlow9, Ipfix, Sflow5, Unknown],
        Kind::SnmpTrap => &[Snmp1Trap, Snmp2cTrap, Snmp2cInform, Snmp3, Unknown],
    };
    formats.iter().copied()
}
