//! ZeroMQ endpoints.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::{Setting, setting::digits};

/// `sun_path` of `sockaddr_un` has 108 bytes with the terminating NUL (unix(7)).
const MAX_IPC_PATH_BYTES: usize = 107;

/// RFC 1035 §2.3.4, without the final dot.
const MAX_HOST_BYTES: usize = 253;

/// An endpoint to connect to: `tcp://host:port` with a port from 1 to 65535, or `ipc://path`.
/// libzmq accepts more, and reports some mistakes only with the first message; this is strict.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

/// An endpoint to bind: as [`Endpoint`], and `*` for all interfaces, `*` or 0 for any free port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BindEndpoint(String);

macro_rules! endpoint {
    ($endpoint:ident, $wildcards:expr, $takes:literal) => {
        impl $endpoint {
            /// The text for libzmq.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether it can be reached from this host only: `ipc`, or a loopback address. A name
            /// other than `localhost` counts as remote, because it is not resolved here.
            pub fn is_local(&self) -> bool {
                is_local(&self.0)
            }
        }

        impl Setting for $endpoint {
            fn takes() -> &'static str {
                $takes
            }

            fn parse(text: &str) -> Result<$endpoint, String> {
                let text = with_scheme_in_lower_case(text);
                check(&text, $wildcards).map(|()| $endpoint(text))
            }
        }

        impl FromStr for $endpoint {
            type Err = String;

            fn from_str(text: &str) -> Result<$endpoint, String> {
                $endpoint::parse(text)
            }
        }

        impl AsRef<str> for $endpoint {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $endpoint {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

endpoint!(
    Endpoint,
    Wildcards::Rejected,
    "a ZeroMQ endpoint such as tcp://127.0.0.1:5559 or ipc:///run/sekiwake/publish"
);
endpoint!(BindEndpoint, Wildcards::Accepted, "a ZeroMQ endpoint such as tcp://*:5559 or ipc:///run/sekiwake/publish");

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wildcards {
    Accepted,
    Rejected,
}

/// Schemes are case-insensitive (RFC 3986 §3.1), but not for libzmq.
pub(crate) fn with_scheme_in_lower_case(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => format!("{}://{rest}", scheme.to_ascii_lowercase()),
        None => text.to_owned(),
    }
}

fn check(text: &str, wildcards: Wildcards) -> Result<(), String> {
    if let Some(path) = text.strip_prefix("ipc://") {
        return check_path(path);
    }
    let Some(address) = text.strip_prefix("tcp://") else {
        return Err("neither tcp:// nor ipc://".to_owned());
    };
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("missing port".to_owned());
    };
    check_host(host, wildcards)?;
    check_port(port, wildcards)
}

fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("missing path".to_owned());
    }
    if path.len() > MAX_IPC_PATH_BYTES {
        return Err(format!("the path has {} bytes, expected at most {MAX_IPC_PATH_BYTES}", path.len()));
    }
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("white space in the path".to_owned());
    }
    Ok(())
}

pub(crate) fn check_host(host: &str, wildcards: Wildcards) -> Result<(), String> {
    if host == "*" {
        return match wildcards {
            Wildcards::Accepted => Ok(()),
            Wildcards::Rejected => Err("* is not a host to connect to".to_owned()),
        };
    }
    if host.is_empty() {
        return Err("missing host".to_owned());
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, _zone) = address.split_once('%').unwrap_or((address, ""));
        return match address.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{host} is not an IPv6 address")),
        };
    }
    if host.contains(':') {
        return Err("an IPv6 address needs brackets: tcp://[2001:db8::1]:5559".to_owned());
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return match host.parse::<Ipv4Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{host} is not an IPv4 address")),
        };
    }
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.len() > MAX_HOST_BYTES || !host.bytes().all(is_host_byte) {
        return Err(format!("{host:?} is not a host name"));
    }
    Ok(())
}

pub(crate) fn check_port(port: &str, wildcards: Wildcards) -> Result<(), String> {
    match (port, wildcards) {
        ("*" | "0", Wildcards::Accepted) => Ok(()),
        _ => match digits(port).ok().and_then(|port| port.parse::<u16>().ok()) {
            Some(1..) => Ok(()),
            _ => Err(format!("{port:?} is not a port from 1 to 65535")),
        },
    }
}

fn is_local(text: &str) -> bool {
    let Some(address) = text.strip_prefix("tcp://") else { return true };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
}
