//! The console's settings.

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use sekiwake_bus::{Controlling, Subscribing};
use sekiwake_settings::{List, Reader};

use crate::guard::{Access, Token};

const TOKEN_FILE: &str = "SEKIWAKE_CONSOLE_TOKEN_FILE";
const STORERS: &str = "SEKIWAKE_CONSOLE_STORERS";
const HOSTS: &str = "SEKIWAKE_CONSOLE_HOSTS";

/// The word instead of a path: no token.
const NO_TOKEN: &str = "none";
/// The largest file of a token, bytes.
const MAX_TOKEN_FILE: u64 = 4096;
/// The most storers.
const MAX_STORERS: usize = 16;
/// The most host names.
const MAX_HOSTS: usize = 64;

/// What the console reads, and who may see it.
#[derive(Clone, Debug)]
pub struct ConsoleSettings {
    /// The bus.
    pub subscribing: Subscribing,
    /// The control plane, for templates of flows.
    pub controlling: Controlling,
    /// The storers that are searched, as `host:port`.
    pub storers: Vec<String>,
    /// Who may see the page.
    pub access: Access,
    /// Whether status is read only while somebody looks, and now and then. Every part of status
    /// costs the services of this process system calls.
    pub reads_on_demand: bool,
}

impl ConsoleSettings {
    /// Reads `SEKIWAKE_CONSOLE_*`, and the address that the page is served on.
    pub fn read(reader: &mut Reader) -> ConsoleSettings {
        let storers: Option<List<String>> = reader.optional(STORERS);
        let storers = storers.map(|list| list.0).unwrap_or_default();
        let storers: Vec<String> =
            storers.iter().map(|text| text.trim_start_matches("http://").trim_end_matches('/').to_owned()).collect();
        for wrong in storers.iter().filter(|storer| !is_address(storer)) {
            reader.mistake(STORERS, wrong, "admin addresses of storers, such as 127.0.0.1:9605 or storer:9605");
        }
        if storers.len() > MAX_STORERS {
            reader.mistake(STORERS, &storers.join(","), "at most 16 addresses");
        }
        let hosts: Option<List<String>> = reader.optional(HOSTS);
        let hosts: Vec<String> = hosts.map(|list| list.0).unwrap_or_default();
        for wrong in hosts.iter().filter(|host| !is_host(host)) {
            reader.mistake(HOSTS, wrong, "names of hosts without a port, such as console.example.net");
        }
        if hosts.len() > MAX_HOSTS {
            reader.mistake(HOSTS, &hosts.join(","), "at most 64 names");
        }
        let token = read_token(reader);
        let admin: Option<SocketAddr> = reader.optional("SEKIWAKE_ADMIN");
        let is_loopback = admin.is_none_or(|address| address.ip().to_canonical().is_loopback());
        ConsoleSettings {
            subscribing: Subscribing::read(reader),
            controlling: Controlling::read(reader),
            storers,
            access: Access {
                token: token.unwrap_or(if is_loopback { Token::NotNeeded } else { Token::Missing }),
                hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
            },
            reads_on_demand: false,
        }
    }
}

/// The token as set; `None` if the variable is not set.
fn read_token(reader: &mut Reader) -> Option<Token> {
    let path: PathBuf = reader.optional(TOKEN_FILE)?;
    if path.as_os_str() == NO_TOKEN {
        return Some(Token::NotNeeded);
    }
    if !reader.reads_files() {
        return Some(Token::Missing);
    }
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text));
    let shown = path.to_string_lossy();
    match read {
        Err(error) => {
            reader.mistake(TOKEN_FILE, &shown, &format!("a file that can be read, or the word none: {error}"));
            None
        }
        Ok(_) => match Token::new(text.trim()) {
            Some(token) => Some(token),
            None => {
                let expected =
                    "a file with one line of 16 to 512 printable ASCII characters, without spaces, ; , \" and \\";
                reader.mistake(TOKEN_FILE, &shown, expected);
                None
            }
        },
    }
}

/// `host:port`.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
        None => is_host(host),
    };
    host_is_valid && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A name or an IPv4 address.
fn is_host(text: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storers_are_hosts_with_ports() {
        for valid in ["127.0.0.1:9605", "storer:9605", "[2001:db8::1]:9605", "a.example.net:1"] {
            assert!(is_address(valid), "{valid}");
        }
        for wrong in ["", "storer", ":9605", "a:0", "a:99999", "a:+1", "a/b:1", "2001:db8::1:9605", "[::1]", "u@h:1"] {
            assert!(!is_address(wrong), "{wrong}");
        }
    }
}
