//! One URI: its scheme, its endpoints, its options.

use sekiwake_record::Kind;

use super::{
    Destination, Endpoint, Transport,
    endpoint::{self, Written},
    error::{Mistake, mistake},
    options,
};

pub(super) fn parse(kind: Kind, word: &str) -> Result<Destination, Mistake> {
    let Some((scheme, rest)) = word.split_once("://") else {
        return mistake(0, format!("\"{word}\" is not a URI, expected one such as udp://host:port"));
    };
    let transport = parse_scheme(kind, scheme)?;
    let authority_at = scheme.len() + "://".len();
    if let Some(at) = comma_before_uri(rest) {
        return mistake(authority_at + at, "a comma between two URIs, expected white space between destinations");
    }
    let before_options = &rest[..rest.find('?').unwrap_or(rest.len())];
    if let Some(at) = before_options.find("://") {
        return mistake(authority_at + at, "another scheme, expected white space between URIs");
    }
    let authority_length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let path_length = match transport.is_delivery() {
        true => rest[authority_length..].find(['?', '#']).unwrap_or(rest.len() - authority_length),
        false => 0,
    };
    let (authority, rest) = rest.split_at(authority_length);
    let (path, tail) = rest.split_at(path_length);
    let path = parse_path(path).map_err(|mistake| mistake.moved(authority_at + authority_length))?;
    let path_at = authority_at + authority_length;
    match transport {
        Transport::Kafka => check_topic(&path).map_err(|mistake| mistake.moved(path_at))?,
        Transport::Nats => check_subject(&path).map_err(|mistake| mistake.moved(path_at))?,
        _ => {}
    }
    let tail_at = path_at + path_length;
    let mut endpoints = parse_endpoints(kind, transport, authority).map_err(|mistake| mistake.moved(authority_at))?;
    let query = match tail.as_bytes().first() {
        None => None,
        Some(b'?') => Some(&tail[1..]),
        Some(b'/') if transport == Transport::Tls => {
            let nats = "for NATS nats://host:port/subject?tls=true";
            return mistake(tail_at, format!("a path is not supported, expected ? or the end, or {nats}"));
        }
        Some(b'/') => return mistake(tail_at, "a path is not supported, expected ? or the end"),
        Some(_) => return mistake(tail_at, "a fragment is not supported, expected ? or the end"),
    };
    let options = options::parse(kind, transport, query).map_err(|mistake| mistake.moved(tail_at + 1))?;
    // The others are only other ways to the same cluster.
    let bootstrap = if transport.is_cluster() { endpoints.split_off(1) } else { Vec::new() };
    Ok(Destination { transport, endpoints, bootstrap, path, options, text: word.to_owned() })
}

/// The offset of a comma after which another URI begins. A comma separates the members of a pool,
/// and the values of an option.
fn comma_before_uri(rest: &str) -> Option<usize> {
    let is_uri = |after: &str| after.split_once("://").is_some_and(|(scheme, _)| transport_of(scheme).is_some());
    rest.match_indices(',').map(|(at, _)| at).find(|at| is_uri(&rest[at + 1..]))
}

fn transport_of(scheme: &str) -> Option<Transport> {
    use Transport::{Kafka, Nats, OtlpHttp, OtlpHttps, Tcp, Tls, Udp};
    let known = [Udp, Tcp, Tls, OtlpHttp, OtlpHttps, Kafka, Nats];
    known.into_iter().find(|transport| transport.scheme().eq_ignore_ascii_case(scheme))
}

fn parse_scheme(kind: Kind, scheme: &str) -> Result<Transport, Mistake> {
    let expected = match kind {
        Kind::Syslog => "udp, tcp, tls, otlp+http, otlp+https, kafka or nats",
        Kind::Xflow | Kind::SnmpTrap => "udp, otlp+http, otlp+https, kafka or nats",
    };
    match transport_of(scheme) {
        Some(transport) if !transport.is_stream() || kind == Kind::Syslog => Ok(transport),
        Some(_) => mistake(0, format!("scheme \"{scheme}\" is for syslog only, expected {expected}")),
        None if scheme.eq_ignore_ascii_case("otlp+grpc") => mistake(
            0,
            "OTLP over gRPC is not supported, expected otlp+http: every collector that takes one takes the other, usually \
             at port 4318",
        ),
        None => mistake(0, format!("scheme \"{scheme}\", expected {expected}")),
    }
}

/// The longest path.
const MAX_PATH: usize = 200;

/// Reads the path of a delivery: `/`, or segments of characters that need no encoding.
fn parse_path(path: &str) -> Result<String, Mistake> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    if let Some(at) = path.bytes().position(|byte| !is_plain(byte)) {
        return mistake(at, "expected a path of letters, digits, and / - . _ ~");
    }
    if path.len() > MAX_PATH || path.contains("//") || path.split('/').any(|segment| segment == ".." || segment == ".")
    {
        return mistake(
            0,
            format!("expected a path of at most {MAX_PATH} characters, without empty or dotted segments"),
        );
    }
    Ok(path.strip_suffix('/').unwrap_or(path).to_owned())
}

/// The longest name of a topic.
const MAX_TOPIC: usize = 249;

/// Checks that a path is a topic that Kafka allows.
fn check_topic(path: &str) -> Result<(), Mistake> {
    let topic = path.strip_prefix('/').unwrap_or_default();
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if topic.is_empty() {
        return mistake(
            0,
            "the topic is missing, expected it after the servers, such as kafka://broker:9092/telemetry",
        );
    }
    match topic.len() <= MAX_TOPIC && topic.bytes().all(is_allowed) {
        true => Ok(()),
        false => mistake(1, format!("topic \"{topic}\", expected at most {MAX_TOPIC} letters, digits, and - . _")),
    }
}

/// The longest subject.
const MAX_SUBJECT: usize = 200;

/// Checks that a path is a subject that may be published to.
fn check_subject(path: &str) -> Result<(), Mistake> {
    let subject = path.strip_prefix('/').unwrap_or_default();
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_token = |token: &str| !token.is_empty() && token.bytes().all(is_allowed);
    if subject.is_empty() {
        return mistake(
            0,
            "the subject is missing, expected it after the servers, such as nats://server:4222/telemetry.syslog",
        );
    }
    match subject.len() <= MAX_SUBJECT && subject.split('.').all(is_token) {
        true => Ok(()),
        false => mistake(
            1,
            format!(
                "subject \"{subject}\", expected tokens of letters, digits, - and _, separated by dots, at most \
                 {MAX_SUBJECT} characters"
            ),
        ),
    }
}

/// Reads endpoints separated by commas.
fn parse_endpoints(kind: Kind, transport: Transport, authority: &str) -> Result<Vec<Endpoint>, Mistake> {
    let members = authority.split(',').count();
    if members > 1 && transport.is_stream() {
        let second_at = authority.find(',').map_or(0, |comma| comma + 1);
        let scheme = transport.scheme();
        return mistake(second_at, format!("a pool over {scheme} is not supported, expected one endpoint, or udp"));
    }
    let has_any_port = authority.split(',').any(|text| endpoint::parse(text).is_ok_and(|found| found.port.is_some()));
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut offset = 0;
    for text in authority.split(',') {
        let Written { host, port } = endpoint::parse(text).map_err(|mistake| mistake.moved(offset))?;
        let end = offset + text.len();
        let port = match (port, default_port(kind, transport)) {
            (Some(port), _) => port,
            (None, None) => {
                let protocol = if kind == Kind::Syslog { "syslog over tcp" } else { "xflow" };
                return mistake(end, format!("expected a colon and a port: {protocol} has no default port"));
            }
            // In `a,b:515` the port may be meant for both, so the default would be a guess.
            (None, Some(_)) if has_any_port => {
                return mistake(end, "expected a port for each member of the pool, or for no member");
            }
            (None, Some(port)) => port,
        };
        let endpoint = Endpoint { host, port };
        if endpoints.contains(&endpoint) {
            return mistake(offset, format!("{endpoint} is listed twice, expected each member of a pool once"));
        }
        endpoints.push(endpoint);
        offset = end + 1;
    }
    Ok(endpoints)
}

/// The registered port, where there is exactly one: RFC 5426 §3.3, RFC 5425 §4.1, RFC 3417 §3.2.
/// Flows have one per protocol (IPFIX 4739, sFlow 6343, NetFlow none), and syslog over plain TCP
/// has none: 514 is registered for `rsh` (RFC 6587 §3.1). 4318 is that of OTLP over HTTP,
/// 9092 the usual one of Kafka, 4222 that of NATS.
fn default_port(kind: Kind, transport: Transport) -> Option<u16> {
    match (kind, transport) {
        (Kind::Syslog, Transport::Udp) => Some(514),
        (Kind::Syslog, Transport::Tls) => Some(6514),
        (Kind::SnmpTrap, Transport::Udp) => Some(162),
        (_, Transport::OtlpHttp | Transport::OtlpHttps) => Some(4318),
        (_, Transport::Kafka) => Some(9092),
        (_, Transport::Nats) => Some(4222),
        _ => None,
    }
}
