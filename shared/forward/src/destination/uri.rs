//! One URI: its scheme, its places, its options.

use sekiwake_record::Kind;

use super::{Destination, Place, Transport, options, place};

/// A byte offset into the word, and what is wrong there.
pub(super) type Mistake = (usize, String);

pub(super) fn mistake<T>(offset: usize, problem: impl Into<String>) -> Result<T, Mistake> {
    Err((offset, problem.into()))
}

pub(super) fn parse(kind: Kind, word: &str) -> Result<Destination, Mistake> {
    let Some((scheme, rest)) = word.split_once("://") else {
        return mistake(0, format!("\"{word}\" is no URI, expected udp://host:port"));
    };
    let transport = parse_scheme(kind, scheme)?;
    let authority_at = scheme.len() + "://".len();
    let authority_length = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_length);
    let tail_at = authority_at + authority_length;
    let moved = |by: usize| move |(offset, problem): Mistake| (by + offset, problem);
    let places = parse_places(transport, authority).map_err(moved(authority_at))?;
    let query = match tail.as_bytes().first() {
        None => None,
        Some(b'?') => Some(&tail[1..]),
        Some(b'/') => return mistake(tail_at, "a path has no meaning here, expected ? or the end"),
        Some(_) => return mistake(tail_at, "a fragment has no meaning here, expected ? or the end"),
    };
    let options = options::parse(kind, transport, query).map_err(moved(tail_at + 1))?;
    Ok(Destination { transport, places, options, text: word.to_owned() })
}

fn parse_scheme(kind: Kind, scheme: &str) -> Result<Transport, Mistake> {
    let known = [Transport::Udp, Transport::Tcp, Transport::Tls];
    match known.into_iter().find(|transport| transport.scheme() == scheme) {
        Some(transport) if transport == Transport::Udp || kind == Kind::Syslog => Ok(transport),
        Some(_) => mistake(0, format!("scheme \"{scheme}\" is for syslog only, expected udp")),
        None if kind == Kind::Syslog => mistake(0, format!("scheme \"{scheme}\", expected udp, tcp or tls")),
        None => mistake(0, format!("scheme \"{scheme}\", expected udp")),
    }
}

/// Reads places separated by commas.
fn parse_places(transport: Transport, authority: &str) -> Result<Vec<Place>, Mistake> {
    let mut places: Vec<Place> = Vec::new();
    let mut offset = 0;
    for text in authority.split(',') {
        let place = place::parse(text).map_err(|(at, problem)| (offset + at, problem))?;
        if places.contains(&place) {
            return mistake(offset, format!("{place} for the second time, expected each member of a pool once"));
        }
        if offset > 0 && transport != Transport::Udp {
            let scheme = transport.scheme();
            return mistake(offset, format!("a pool of {scheme} places is not supported, expected one place or udp"));
        }
        places.push(place);
        offset += text.len() + 1;
    }
    Ok(places)
}
