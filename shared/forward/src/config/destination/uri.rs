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
    let (authority, tail) = rest.split_at(authority_length);
    let tail_at = authority_at + authority_length;
    let endpoints = parse_endpoints(kind, transport, authority).map_err(|mistake| mistake.moved(authority_at))?;
    let query = match tail.as_bytes().first() {
        None => None,
        Some(b'?') => Some(&tail[1..]),
        Some(b'/') => return mistake(tail_at, "a path is not supported, expected ? or the end"),
        Some(_) => return mistake(tail_at, "a fragment is not supported, expected ? or the end"),
    };
    let options = options::parse(kind, transport, query).map_err(|mistake| mistake.moved(tail_at + 1))?;
    Ok(Destination { transport, endpoints, options, text: word.to_owned() })
}

/// The offset of a comma after which another URI begins. A comma separates the members of a pool,
/// and the values of an option.
fn comma_before_uri(rest: &str) -> Option<usize> {
    let is_uri = |after: &str| after.split_once("://").is_some_and(|(scheme, _)| transport_of(scheme).is_some());
    rest.match_indices(',').map(|(at, _)| at).find(|at| is_uri(&rest[at + 1..]))
}

fn transport_of(scheme: &str) -> Option<Transport> {
    let known = [Transport::Udp, Transport::Tcp, Transport::Tls];
    known.into_iter().find(|transport| transport.scheme().eq_ignore_ascii_case(scheme))
}

fn parse_scheme(kind: Kind, scheme: &str) -> Result<Transport, Mistake> {
    match transport_of(scheme) {
        Some(transport) if transport == Transport::Udp || kind == Kind::Syslog => Ok(transport),
        Some(_) => mistake(0, format!("scheme \"{scheme}\" is for syslog only, expected udp")),
        None if kind == Kind::Syslog => mistake(0, format!("scheme \"{scheme}\", expected udp, tcp or tls")),
        None => mistake(0, format!("scheme \"{scheme}\", expected udp")),
    }
}

/// Reads endpoints separated by commas.
fn parse_endpoints(kind: Kind, transport: Transport, authority: &str) -> Result<Vec<Endpoint>, Mistake> {
    let members = authority.split(',').count();
    if members > 1 && transport != Transport::Udp {
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
/// has none: 514 is registered for `rsh` (RFC 6587 §3.1).
fn default_port(kind: Kind, transport: Transport) -> Option<u16> {
    match (kind, transport) {
        (Kind::Syslog, Transport::Udp) => Some(514),
        (Kind::Syslog, Transport::Tls) => Some(6514),
        (Kind::SnmpTrap, Transport::Udp) => Some(162),
        _ => None,
    }
}
