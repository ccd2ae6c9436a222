//! URIs are read strictly, and a mistake says where it is.

use std::time::Duration;

use proptest::prelude::*;
use sekiwake_forward::{Destination, Destinations, Dscp, Facilities, Host, Options, Place, Transport};
use sekiwake_record::{Format, Kind};

fn refused(kind: Kind, text: &str) -> String {
    Destinations::parse(kind, text).expect_err(text).to_string()
}

fn labels(destination: &Destination) -> Vec<String> {
    destination.places.iter().map(|place| destination.label(place)).collect()
}

fn one(kind: Kind, text: &str) -> Destination {
    Destinations::parse(kind, text).expect(text).iter().next().unwrap().clone()
}

#[test]
fn addresses_names_and_options_are_understood() {
    let text = "udp://198.51.100.7:514  udp://[2001:db8::7]:2055?gso=false\n\tudp://SIEM_1.example.net.:65535?gso=true";
    let destinations = Destinations::parse(Kind::Syslog, text).unwrap();
    let all: Vec<_> = destinations.iter().collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].places, [Place { host: Host::Address([198, 51, 100, 7].into()), port: 514 }]);
    assert_eq!((labels(all[0]), all[0].options.segmentation), (vec!["udp://198.51.100.7:514".to_owned()], true));
    assert_eq!((labels(all[1]), all[1].options.segmentation), (vec!["udp://[2001:db8::7]:2055".to_owned()], false));
    assert_eq!(all[2].places[0].host, Host::Name("siem_1.example.net.".to_owned()));
    assert_eq!(labels(all[2]), ["udp://siem_1.example.net.:65535"]);
    assert_eq!(Destinations::parse(Kind::Syslog, &destinations.to_string()).unwrap(), destinations);
}

#[test]
fn an_ipv4_address_in_the_form_of_an_ipv6_one_is_that_ipv4_address() {
    let destinations = Destinations::parse(Kind::Syslog, "udp://[::ffff:198.18.0.77]:514").unwrap();
    assert_eq!(destinations.iter().next().unwrap().places[0].host, Host::Address([198, 18, 0, 77].into()));
    assert_eq!(Destinations::parse(Kind::Syslog, &destinations.to_string()).unwrap(), destinations);
}

#[test]
fn broadcast_addresses_and_multicast_groups_are_destinations() {
    let hosts = ["198.18.255.255", "255.255.255.255", "224.1.2.3", "239.255.255.255", "[ff05::1:3]", "[ff3e::1]"];
    for host in hosts {
        Destinations::parse(Kind::Syslog, &format!("udp://{host}:514")).expect(host);
    }
}

#[test]
fn nothing_is_a_list_of_none() {
    assert!(Destinations::parse(Kind::Syslog, " \n").unwrap().is_empty());
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let table = [
        ("198.51.100.7:514", 1, "no URI"),
        ("udp:/198.51.100.7:514", 1, "no URI"),
        ("UDP://198.51.100.7:514", 1, "scheme \"UDP\""),
        ("http://198.51.100.7:514", 1, "expected udp, tcp or tls"),
        ("udp://198.51.100.7", 19, "a port"),
        ("udp://198.51.100.7:", 20, "port \"\""),
        ("udp://198.51.100.7:0", 20, "port \"0\""),
        ("udp://198.51.100.7:65536", 20, "port \"65536\""),
        ("udp://198.51.100.7:+514", 20, "port \"+514\""),
        ("udp://198.51.100.7:syslog", 20, "port \"syslog\""),
        ("udp://:514", 7, "host \"\""),
        ("udp://198.51.100.256:514", 7, "host \"198.51.100.256\""),
        ("udp://198.51.100:514", 7, "host \"198.51.100\""),
        ("udp://0.0.0.0:514", 7, "0.0.0.0/8"),
        ("udp://0.1.2.3:514", 7, "0.0.0.0/8"),
        ("udp://240.0.0.1:514", 7, "reserved"),
        ("udp://255.255.255.254:514", 7, "reserved"),
        ("udp://b:1 udp://[::ffff:240.0.0.1]:514", 18, "reserved"),
        ("udp://[::ffff:0.0.0.0]:514", 8, "0.0.0.0/8"),
        ("udp://[fe80::1]:514", 8, "needs a zone"),
        ("udp://[febf::1]:514", 8, "needs a zone"),
        ("udp://[ff00::1]:514", 8, "scope 0"),
        ("udp://[ff01::1]:514", 8, "needs a zone"),
        ("udp://[ff32::1]:514", 8, "needs a zone"),
        ("udp://[::]:514", 8, "unspecified"),
        ("udp://a..example:514", 7, "host"),
        ("udp://-a.example:514", 7, "host"),
        ("udp://a,b:514", 8, "expected a colon and a port"),
        ("udp://a:2055,b:2055,a:2055", 21, "second time"),
        ("udp://a:2055,", 14, "host"),
        ("tcp://a:514,b:514", 13, "a pool of tcp places"),
        ("udp://2001:db8::7:514", 7, "IPv6 address in brackets"),
        ("udp://[2001:db8::7:514", 7, "never closed"),
        ("udp://[2001:db8::7]", 20, "a port"),
        ("udp://[2001:db8::7]514", 20, "a port"),
        ("udp://[fe80::1%eth0]:514", 8, "without a zone"),
        ("udp://[198.51.100.7]:514", 8, "IPv6"),
        ("udp://user@198.51.100.7:514", 7, "user information"),
        ("udp://198.51.100.7:514/", 23, "path"),
        ("udp://198.51.100.7:514#x", 23, "fragment"),
        ("udp://198.51.100.7:514?", 24, "such option: \"\""),
        ("udp://198.51.100.7:514?spoof=yes", 29, "expected true or false"),
        ("udp://198.51.100.7:514?spool=1GiB", 24, "has no meaning for syslog over udp"),
        ("tcp://198.51.100.7:514?spoof=true", 24, "has no meaning for syslog over tcp"),
        ("tcp://198.51.100.7:514?ca=x", 24, "has no meaning for syslog over tcp"),
        ("tcp://198.51.100.7:514?spool=1GB", 29, "no such unit"),
        ("tcp://198.51.100.7:514?spool=1KiB", 29, "and more of it"),
        ("tcp://198.51.100.7:514?replay=5", 24, "there is no spool="),
        ("tls://198.51.100.7:514?cert=x", 24, "both cert= and key="),
        ("tls://198.51.100.7:514?ca=", 26, "a path"),
        ("udp://198.51.100.7:514?facility=auth,sys", 32, "\"sys\" is none"),
        ("udp://198.51.100.7:514?min_severity=8", 36, "a severity"),
        ("udp://198.51.100.7:514?source=10.0.0.0/33", 30, "is none"),
        ("udp://198.51.100.7:514?format=netflow5", 30, "rfc3164, rfc5424, unknown"),
        ("udp://198.51.100.7:514?rate=0", 28, "a whole number"),
        ("udp://198.51.100.7:514?dscp=64", 28, "copy, or a number from 0 to 63"),
        ("udp://198.51.100.7:514?source=%3", 30, "two hexadecimal digits"),
        ("udp://198.51.100.7:514?template_refresh=1m", 24, "has no meaning for syslog"),
        ("udp://198.51.100.7:514?gso", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=no", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=true&gso=false", 33, "second time"),
        ("udp://198.51.100.7:514?gso=true&", 33, "such option: \"\""),
        ("udp://a.example:514\nudp://A.example:514?gso=false", 21, "already, expected each place once"),
        ("udp://[2001:db8::7]:1 udp://[2001:db8:0::7]:1", 23, "already, expected each place once"),
        ("udp://198.18.0.77:514 udp://[::ffff:198.18.0.77]:514", 23, "already, expected each place once"),
        ("udp://é:514 udp://b:0", 7, "host"),
        ("udp://b:1 udp://é.example:0", 17, "host"),
    ];
    for (text, column, problem) in table {
        let error = refused(Kind::Syslog, text);
        assert!(error.starts_with(&format!("column {column}: ")), "{text}: {error}");
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn streams_are_for_syslog_only() {
    for kind in [Kind::Xflow, Kind::SnmpTrap] {
        let error = refused(kind, "udp://b:1 tls://siem.example:6514");
        assert_eq!(error, "column 11: scheme \"tls\" is for syslog only, expected udp");
    }
    assert!(refused(Kind::Xflow, "udp://b:1?facility=auth").contains("no meaning for xflow over udp"));
}

#[test]
fn options_say_what_is_sent_and_how() {
    let text = "udp://a:514,b:515?spoof=true&dscp=copy&source=10.0.0.0/8,2001:db8::/32&exclude_source=10.9.0.0/16\
        &facility=auth,local7,0&min_severity=warning&format=rfc3164,unknown&rate=100&add_source=true&gso=false";
    let destination = one(Kind::Syslog, text);
    assert_eq!(labels(&destination), ["udp://a:514", "udp://b:515"]);
    let options = &destination.options;
    assert!(options.spoof && options.add_source && !options.segmentation);
    assert_eq!((options.dscp, options.rate), (Dscp::Copy, Some(100)));
    let filter = &options.filter;
    assert_eq!(filter.sources.as_ref().unwrap().len(), 2);
    assert_eq!(filter.excluded_sources, ["10.9.0.0/16".parse().unwrap()]);
    assert_eq!(filter.facilities, Some(Facilities::of(&[4, 23, 0])));
    assert_eq!(filter.min_severity, Some(4));
    assert_eq!(filter.formats, Some(vec![Format::Rfc3164, Format::Unknown]));

    let destination = one(Kind::Xflow, "udp://c:2055?dscp=46&template_refresh=1m&format=ipfix");
    assert_eq!(destination.options.dscp, Dscp::Fixed(46));
    assert_eq!(destination.options.template_refresh, Some(Duration::from_secs(60)));

    let destination = one(
        Kind::Syslog,
        "tls://siem.example:6514?spool=1GiB&replay=100&ca=/etc/my%20ca.pem&cert=c&key=k&server_name=x",
    );
    assert_eq!((destination.transport, destination.options.spool), (Transport::Tls, Some(1 << 30)));
    assert_eq!(destination.options.replay, 100);
    assert_eq!(destination.options.tls.ca.as_ref().unwrap().to_str(), Some("/etc/my ca.pem"));
    assert_eq!(destination.options.tls.server_name.as_deref(), Some("x"));
    assert_eq!(one(Kind::SnmpTrap, "udp://c:162").options, Options::default());
}

#[test]
fn there_are_64_places_at_most() {
    let list = |count: u32| (0..count).map(|n| format!("udp://h{n}:514")).collect::<Vec<_>>().join(" ");
    assert!(Destinations::parse(Kind::Syslog, &list(64)).is_ok());
    assert!(refused(Kind::Syslog, &list(65)).contains("more than 64 places"));
}

/// Pieces that URIs are made of, and pieces that break them.
const PIECES: [&str; 44] = [
    "udp://",
    "tcp://",
    "tls://",
    "UDP://",
    "://",
    "a",
    "b.example",
    "198.51.100.7",
    "[2001:db8::7]",
    "[",
    "]",
    ":",
    ":514",
    ":0",
    ",",
    "?",
    "&",
    "=",
    "%",
    "%2",
    "%26",
    "é",
    " ",
    "\t",
    "\n",
    "#",
    "/",
    "@",
    "spoof=true",
    "source=",
    "10.0.0.0/8",
    "::/0",
    "format=",
    "ipfix",
    "rate=",
    "18446744073709551616",
    "spool=",
    "1GiB",
    "template_refresh=",
    "1m",
    "dscp=copy",
    "facility=auth",
    "min_severity=err",
    "key=",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn whatever_is_written_is_understood_or_refused_at_a_place_within_it(
        pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..12),
        kind in proptest::sample::select(&[Kind::Syslog, Kind::Xflow, Kind::SnmpTrap][..]),
    ) {
        let text = pieces.concat();
        match Destinations::parse(kind, &text) {
            Ok(destinations) => {
                let again = Destinations::parse(kind, &destinations.to_string());
                prop_assert_eq!(again, Ok(destinations));
            }
            Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}: {}", text, error),
        }
    }
}
