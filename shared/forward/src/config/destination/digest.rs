//! A hash of destinations as they are configured, by which members of a group notice that theirs
//! differ.
//!
//! ```text
//! digest       XXH3-64 (seed 0) over the sorted lines of the destinations
//! destination  scheme "://" endpoints, sorted path " " options, sorted "\n"
//! option       name "=" value, as it was understood; not if that is the default
//! ```
//! The way in which destinations are written does not matter: the order of destinations, pool
//! members, options and lists, white space, a default written out, `1m` or `60s`. A later version
//! with another option has the same digest as long as the option is not used. An endpoint counts as
//! written, not by its addresses: a name may resolve differently on two hosts. Options that do not
//! change which datagram goes where, or how it looks, may differ between hosts and are left out:
//! files, limits of a spool, segmentation.

use std::fmt::Display;

use xxhash_rust::xxh3::xxh3_64;

use super::{DeliveryOptions, Destination, Destinations, Dscp, Options, TlsFiles, options::default_value};
use crate::{delivery::otlp::Encoding, routing::filter::Filter, stream::Framing};

impl Destinations {
    /// The hash, the same on every host and in every later version; never 0.
    pub fn digest(&self) -> u64 {
        let mut lines: Vec<String> = self.iter().map(line).collect();
        lines.sort_unstable();
        xxh3_64(lines.concat().as_bytes()).max(1)
    }
}

fn line(destination: &Destination) -> String {
    let endpoints = sorted(destination.servers());
    let options = options(destination).join("&");
    format!("{}://{endpoints}{} {options}\n", destination.transport.scheme(), destination.path)
}

/// The options that all members must have in common, by name, without those at their default.
fn options(destination: &Destination) -> Vec<String> {
    // Named one by one: a new option must be added here, or be left out deliberately.
    let Options {
        segmentation: _,
        spoof,
        dscp,
        add_source,
        encrypted_are_traps,
        filter,
        rate,
        template_refresh,
        framing,
        spool: _,
        replay: _,
        tls: TlsFiles { ca: _, certificate: _, key: _, server_name },
        delivery:
            DeliveryOptions {
                value,
                encoding,
                is_compressed: _,
                headers: _,
                is_encrypted: _,
                user: _,
                password: _,
                kafka: _,
                nats: _,
            },
    } = &destination.options;
    let Filter { sources, excluded_sources, formats, facilities, min_severity } = filter;
    let facilities: Option<Vec<u8>> =
        facilities.map(|set| (0..24).filter(|&facility| set.contains(facility)).collect());
    let dscp = match dscp {
        Dscp::System | Dscp::Fixed(0) => None,
        Dscp::Copy => Some("copy".to_owned()),
        Dscp::Fixed(number) => Some(number.to_string()),
    };
    let host = destination.endpoints.first().map(|endpoint| endpoint.host.to_string());
    // Names in certificates have no case.
    let server_name = server_name.as_ref().map(|name| name.to_ascii_lowercase());
    let set = [
        ("add_source", add_source.then(|| "true".to_owned())),
        ("dscp", dscp),
        ("encoding", (*encoding != Encoding::Protobuf).then(|| encoding.name().to_owned())),
        ("exclude_source", (!excluded_sources.is_empty()).then(|| sorted(excluded_sources))),
        ("facility", facilities.as_deref().map(sorted)),
        ("format", formats.as_ref().map(|formats| sorted(formats.iter().map(|format| format.as_str())))),
        ("framing", (*framing == Framing::Newline).then(|| "newline".to_owned())),
        ("min_severity", min_severity.map(|severity| severity.to_string())),
        ("rate", rate.map(|rate| rate.to_string())),
        ("server_name", server_name.filter(|name| Some(name) != host.as_ref())),
        ("snmpv3", encrypted_are_traps.then(|| "trap".to_owned())),
        ("source", sources.as_ref().map(sorted)),
        ("spoof", spoof.then(|| "true".to_owned())),
        ("template_refresh", template_refresh.map(|interval| format!("{}us", interval.as_micros()))),
        ("value", (*value != default_value(destination.transport)).then(|| value.name().to_owned())),
    ];
    set.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect()
}

/// A list as text: its order, and what it names twice, do not matter.
fn sorted<T: Display>(list: impl IntoIterator<Item = T>) -> String {
    let mut texts: Vec<String> = list.into_iter().map(|item| item.to_string()).collect();
    texts.sort_unstable();
    texts.dedup();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use sekiwake_record::Kind;

    use super::*;

    fn digest(text: &str) -> u64 {
        digest_of(Kind::Syslog, text)
    }

    fn digest_of(kind: Kind, text: &str) -> u64 {
        Destinations::parse(kind, text).unwrap().digest()
    }

    #[test]
    fn digest_is_the_same_however_destinations_are_written() {
        let written =
            "udp://198.51.100.7?spoof=true&source=10.0.0.0/8 tls://SIEM.example.net:6514?min_severity=warning";
        for same in [
            "tls://siem.example.net?min_severity=warning\n  udp://198.51.100.7:514?source=10.0.0.0/8&spoof=true",
            "udp://198.51.100.7?spoof=true&source=10.0.0.0%2F8\ttls://siem.example.net?min_severity=warning&spool=1GiB&ca=/a.pem",
            "udp://[::ffff:198.51.100.7]?spoof=true&source=10.0.0.0/8&gso=false \
             tls://siem.example.net?cert=/b.pem&min_severity=warning&key=/b.key",
        ] {
            assert_eq!(digest(same), digest(written), "{same}");
        }
        assert_eq!(digest("udp://a:1,b:2"), digest("udp://b:2,a:1"));
    }

    #[test]
    fn values_count_and_not_their_texts() {
        use Kind::{SnmpTrap, Syslog, Xflow};
        for (kind, one, other) in [
            (Syslog, "udp://a:1", "udp://a:1?spoof=false&dscp=0&add_source=false&gso=true"),
            (Syslog, "udp://a:1?format=rfc3164,rfc5424", "udp://a:1?format=rfc5424,rfc3164,rfc5424"),
            (Syslog, "udp://a:1?facility=auth,local0", "udp://a:1?facility=16,4"),
            (Syslog, "udp://a:1?min_severity=warning", "udp://a:1?min_severity=4"),
            (Syslog, "udp://a:1?source=10.0.0.0/8,2001:db8::", "udp://a:1?source=2001:DB8:0::/128,::ffff:10.1.2.3/104"),
            (Syslog, "udp://a:1?exclude_source=10.0.0.1,10.0.0.2", "udp://a:1?exclude_source=10.0.0.2/32,10.0.0.1"),
            (Syslog, "tcp://a:1?rate=10", "tcp://a:1?rate=010&framing=octet-counting&spool=1GiB&replay=9"),
            (Syslog, "tls://a.example.net", "tls://a.example.net?server_name=A.example.net"),
            (Xflow, "udp://a:1?template_refresh=60s", "udp://a:1?template_refresh=1m"),
            (Xflow, "udp://a:1?spoof=true", "udp://a:1?spoof=true&template_refresh=60000ms"),
            (Xflow, "udp://a:1", "udp://a:1?template_refresh=never"),
            (SnmpTrap, "udp://a:1?spoof=true", "udp://a:1?snmpv3=inform&spoof=true"),
        ] {
            assert_eq!(digest_of(kind, one), digest_of(kind, other), "{one} and {other}");
        }
    }

    #[test]
    fn every_shared_option_counts() {
        use Kind::{SnmpTrap, Syslog, Xflow};
        for (kind, one, other) in [
            (Syslog, "udp://a:1", "udp://a:1?dscp=copy"),
            (Syslog, "udp://a:1?dscp=46", "udp://a:1?dscp=copy"),
            (Syslog, "udp://a:1", "udp://a:1?add_source=true"),
            (Syslog, "udp://a:1?source=10.0.0.1", "udp://a:1?exclude_source=10.0.0.1"),
            (Syslog, "udp://a:1?source=0.0.0.0/0", "udp://a:1?source=::/0"),
            (Syslog, "udp://a:1?source=10.0.0.0/8", "udp://a:1?source=10.0.0.0/9"),
            (Syslog, "udp://a:1?format=rfc3164", "udp://a:1?format=rfc5424"),
            (Syslog, "udp://a:1?facility=auth", "udp://a:1?facility=auth,cron"),
            (Syslog, "udp://a:1?min_severity=err", "udp://a:1"),
            (Syslog, "udp://a:1?rate=10", "udp://a:1"),
            (Syslog, "tcp://a:1", "tcp://a:1?framing=newline"),
            (Syslog, "tls://a:1", "tls://a:1?server_name=b"),
            (Xflow, "udp://a:1?spoof=true&template_refresh=never", "udp://a:1?spoof=true"),
            (Xflow, "udp://a:1?template_refresh=1m", "udp://a:1?template_refresh=1s"),
            (SnmpTrap, "udp://a:1?snmpv3=trap&spoof=true", "udp://a:1?spoof=true"),
        ] {
            assert_ne!(digest_of(kind, one), digest_of(kind, other), "{one} and {other}");
        }
    }

    #[test]
    fn digest_tells_what_is_sent_where() {
        let different = [
            "",
            "udp://198.51.100.7:514",
            "udp://198.51.100.8:514",
            "udp://198.51.100.7:515",
            "tcp://198.51.100.7:514",
            "udp://198.51.100.7:514?spoof=true",
            "udp://198.51.100.7:514?source=10.0.0.0/8",
            "udp://198.51.100.7:514,198.51.100.8:514",
            "udp://198.51.100.7:514 udp://198.51.100.8:514",
        ];
        for (index, one) in different.iter().enumerate() {
            for other in &different[..index] {
                assert_ne!(digest(one), digest(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn digest_is_this_number() {
        // Members of every version and architecture compare it.
        assert_eq!(digest("udp://198.51.100.7:514?spoof=true"), xxh3_64(b"udp://198.51.100.7:514 spoof=true\n"));
        assert_eq!(digest("udp://198.51.100.7:514?spoof=true"), 0x0014_b6f4_b4cc_5aa1);
    }
}
