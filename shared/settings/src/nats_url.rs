//! URLs of NATS servers.

use std::fmt;

use crate::{
    Setting,
    endpoint::{Wildcards, check_host, check_port, with_scheme_in_lower_case},
};

/// The port of NATS (IANA).
const DEFAULT_PORT: &str = "4222";

/// A NATS server: `nats://host:port`, or `tls://host:port` where TLS is required. Without a port it
/// is 4222. User and password have settings of their own, because a URL appears in logs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NatsUrl(String);

impl NatsUrl {
    /// The URL, with the port.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the connection must be encrypted.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("tls://")
    }
}

impl Setting for NatsUrl {
    fn takes() -> &'static str {
        "NATS servers such as nats://n1:4222,nats://n2:4222 or tls://n1:4222"
    }

    fn parse(text: &str) -> Result<NatsUrl, String> {
        let text = with_scheme_in_lower_case(text);
        let Some((scheme @ ("nats" | "tls"), rest)) = text.split_once("://") else {
            return Err("neither nats:// nor tls://".to_owned());
        };
        if rest.contains('@') {
            return Err("user and password belong in SEKIWAKE_BUS_USER and SEKIWAKE_BUS_PASSWORD_FILE".to_owned());
        }
        let address = rest.trim_end_matches('/');
        let has_port = address.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let (host, port) = match has_port {
            true => address.rsplit_once(':').unwrap_or((address, DEFAULT_PORT)),
            false => (address, DEFAULT_PORT),
        };
        check_host(host, Wildcards::Rejected)?;
        check_port(port, Wildcards::Rejected)?;
        Ok(NatsUrl(format!("{scheme}://{host}:{port}")))
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_gets_the_default_port() {
        let parsed = |text| NatsUrl::parse(text).map(|url| url.to_string());
        for (text, expected) in [
            ("nats://n1", "nats://n1:4222"),
            ("NATS://n1:4223/", "nats://n1:4223"),
            ("tls://198.51.100.1", "tls://198.51.100.1:4222"),
            ("nats://[2001:db8::1]", "nats://[2001:db8::1]:4222"),
            ("nats://[2001:db8::1]:1", "nats://[2001:db8::1]:1"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in [
            "n1:4222",
            "tcp://n1:4222",
            "nats://",
            "nats://u:p@n1",
            "nats://n1:0",
            "nats://n1:x",
            "nats://2001:db8::1:4222",
            "nats://*:4222",
            "nats://n1/path",
        ] {
            assert!(NatsUrl::parse(wrong).is_err(), "{wrong}");
        }
    }
}
