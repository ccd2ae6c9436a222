//! URIs are read strictly, and a mistake names its column.

use std::time::Duration;

use proptest::prelude::*;
use sekiwake_forward::{
    Destination, Destinations, Dscp, Endpoint, Facilities, Host, Mechanism, Options, Transport, Value,
};
use sekiwake_record::{Format, Kind};

fn rejected(kind: Kind, text: &str) -> String {
    Destinations::parse(kind, text).expect_err(text).to_string()
}

fn labels(destination: &Destination) -> Vec<String> {
    destination.endpoints.iter().map(|endpoint| destination.label(endpoint)).collect()
}

fn one(kind: Kind, text: &str) -> Destination {
    Destinations::parse(kind, text).expect(text).iter().next().unwrap().clone()
}

#[test]
fn addresses_names_and_options_are_read() {
    let text = "UDP://198.51.100.7:514  udp://[2001:db8::7]:2055?gso=false\n\tudp://SIEM_1.example.net.:65535?gso=true";
    let destinations = Destinations::parse(Kind::Syslog, text).unwrap();
    let all: Vec<_> = destinations.iter().collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].endpoints, [Endpoint { host: Host::Address([198, 51, 100, 7].into()), port: 514 }]);
    assert_eq!((labels(all[0]), all[0].options.segmentation), (vec!["udp://198.51.100.7:514".to_owned()], true));
    assert_eq!((labels(all[1]), all[1].options.segmentation), (vec!["udp://[2001:db8::7]:2055".to_owned()], false));
    assert_eq!(all[2].endpoints[0].host, Host::Name("siem_1.example.net.".to_owned()));
    assert_eq!(labels(all[2]), ["udp://siem_1.example.net.:65535"]);
    assert_eq!(Destinations::parse(Kind::Syslog, &destinations.to_string()).unwrap(), destinations);
}

#[test]
fn bootstrap_servers_are_one_destination() {
    let text = "kafka://a,[2001:db8::7],198.51.100.7/logs_1.x?value=raw&tls=true&sasl=SCRAM-SHA-256&user=u&password=/p";
    let destination = one(Kind::Xflow, text);
    assert_eq!(labels(&destination), ["kafka://a:9092,[2001:db8::7]:9092,198.51.100.7:9092/logs_1.x"]);
    assert!(!destination.is_pool() && destination.bootstrap.len() == 2);
    assert_eq!(destination.options.delivery.value, Value::Raw);
    assert_eq!(destination.options.delivery.kafka.sasl, Some(Mechanism::ScramSha256));
    assert_eq!(one(Kind::Xflow, "kafka://a/logs").options.delivery.value, Value::Json);
    // Another topic of the same brokers is another destination.
    assert_eq!(Destinations::parse(Kind::Syslog, "kafka://a/x kafka://a/y").unwrap().iter().count(), 2);
    let digest = |text: &str| Destinations::parse(Kind::Syslog, text).unwrap().digest();
    assert_eq!(digest("kafka://a,b/x"), digest("kafka://b:9092,a:9092/x?value=json&compression=gzip"));
    assert_ne!(digest("kafka://a,b/x"), digest("kafka://a/x"));
    assert_ne!(digest("kafka://a/x"), digest("kafka://a/x?value=raw"));
}

#[test]
fn nats_servers_are_one_destination() {
    let destination = one(Kind::SnmpTrap, "nats://a:4222,[2001:db8::7]:4223/logs.traps?tls=true&nkey=/n");
    assert_eq!(labels(&destination), ["nats://a:4222,[2001:db8::7]:4223/logs.traps"]);
    assert!(!destination.is_pool() && destination.options.delivery.is_encrypted);
    assert_eq!(destination.options.delivery.value, Value::Json);
    assert_eq!(labels(&one(Kind::Xflow, "nats://a/x")), ["nats://a:4222/x"]);
    let digest = |text: &str| Destinations::parse(Kind::Syslog, text).unwrap().digest();
    assert_eq!(digest("nats://a,b/x"), digest("nats://b:4222,a:4222/x?value=json&tls=true&creds=/c"));
    assert_ne!(digest("nats://a/x"), digest("nats://a/x?value=raw"));
}

#[test]
fn ipv4_mapped_address_is_the_ipv4_address() {
    let destinations = Destinations::parse(Kind::Syslog, "udp://[::ffff:198.18.0.77]:514").unwrap();
    assert_eq!(destinations.iter().next().unwrap().endpoints[0].host, Host::Address([198, 18, 0, 77].into()));
    assert_eq!(Destinations::parse(Kind::Syslog, &destinations.to_string()).unwrap(), destinations);
}

#[test]
fn broadcast_and_multicast_addresses_are_accepted() {
    let hosts = ["198.18.255.255", "255.255.255.255", "224.1.2.3", "239.255.255.255", "[ff05::1:3]", "[ff3e::1]"];
    for host in hosts {
        Destinations::parse(Kind::Syslog, &format!("udp://{host}:514")).expect(host);
    }
}

#[test]
fn templates_are_resent_by_default_when_spoofing() {
    let refresh = |text: &str| one(Kind::Xflow, text).options.template_refresh;
    let minute = Some(Duration::from_secs(60));
    assert_eq!(refresh("udp://c:2055"), None);
    assert_eq!(refresh("udp://c:2055?spoof=true"), minute);
    assert_eq!(refresh("udp://c:2055?template_refresh=5s&spoof=true"), Some(Duration::from_secs(5)));
    assert_eq!(refresh("udp://c:2055?spoof=true&template_refresh=never"), None);
    assert_eq!(one(Kind::Syslog, "udp://c?spoof=true").options.template_refresh, None);
    let error = rejected(Kind::Xflow, "udp://c:2055?template_refresh=0s");
    assert!(error.contains("more than 0s, or never"), "{error}");
}

#[test]
fn source_is_added_to_syslog_and_traps() {
    for kind in [Kind::Syslog, Kind::SnmpTrap] {
        assert!(one(kind, "udp://c?add_source=true").options.add_source);
    }
    let error = rejected(Kind::Xflow, "udp://c:2055?add_source=true");
    assert!(error.contains("\"add_source\" does not apply to xflow"), "{error}");
}

#[test]
fn white_space_is_an_empty_list() {
    assert!(Destinations::parse(Kind::Syslog, " \n").unwrap().is_empty());
}

#[test]
fn mistakes_are_rejected_with_their_column() {
    let table = [
        ("198.51.100.7:514", 1, "not a URI"),
        ("udp:/198.51.100.7:514", 1, "not a URI"),
        ("http://198.51.100.7:514", 1, "expected udp, tcp, tls, otlp+http, otlp+https, kafka or nats"),
        ("otlp+grpc://a:4317", 1, "OTLP over gRPC is not supported, expected otlp+http"),
        ("otlp+http://a/x%20y", 16, "expected a path of letters"),
        ("otlp+http://a/../b", 14, "without empty or dotted segments"),
        ("otlp+http://a?value=text", 20, "expected raw, json or decoded"),
        ("otlp+http://a?spool=1MiB", 15, "expected at least 16MiB over otlp+http"),
        ("otlp+http://a?ca=/a.pem", 15, "does not apply to syslog over otlp+http"),
        ("otlp+http://a?spoof=true", 15, "does not apply to syslog over otlp+http"),
        ("otlp+http://a?add_source=true", 15, "does not apply to syslog over otlp+http"),
        ("otlp+http://a otlp+http://a:4318/", 15, "is already listed"),
        ("kafka://a", 10, "the topic is missing"),
        ("kafka://a/", 10, "the topic is missing"),
        ("kafka://a/x/y", 11, "topic \"x/y\", expected at most 249 letters"),
        ("kafka://a,a/x", 11, "is listed twice"),
        ("kafka://a,b:9092/x", 10, "expected a port for each"),
        ("kafka://a/x?encoding=json", 13, "does not apply to syslog over kafka"),
        ("kafka://a/x?compression=lz4", 24, "expected none, gzip or zstd"),
        ("kafka://a/x?ca=/a.pem", 13, "ca= without tls=true"),
        ("kafka://a/x?sasl=gssapi", 17, "expected plain, scram-sha-256 or scram-sha-512"),
        ("nats://a", 9, "the subject is missing"),
        ("nats://a/x..y", 10, "subject \"x..y\", expected tokens"),
        ("nats://a/x/y", 10, "subject \"x/y\", expected tokens"),
        ("nats://a,a/x", 10, "is listed twice"),
        ("nats://a/x?compression=gzip", 12, "does not apply to syslog over nats"),
        ("nats://a/x?server_name=b", 12, "does not apply to syslog over nats"),
        ("nats://a/x?ca=/a.pem", 12, "ca= without tls=true"),
        ("nats://a/x?pipeline=0", 20, "1 to 256"),
        ("nats://a/x?user=u", 12, "user= or password= alone"),
        ("nats://a/x?nkey=/a&creds=/b", 12, "expected one of user="),
        ("tls://a:4222/x", 13, "for NATS nats://host:port/subject?tls=true"),
        ("kafka://a/x?sasl=plain&user=u", 13, "expected sasl=, user= and password= together"),
        ("kafka://a/x?spool=1MiB", 13, "expected at least 16MiB over kafka"),
        ("kafka://a,b/x kafka://b,c/x", 15, "is already listed"),
        ("udp://a:1?headers=/a", 11, "does not apply to syslog over udp"),
        ("tcp://198.51.100.7", 19, "syslog over tcp has no default port"),
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
        ("udp://a,b:515", 8, "a port for each member of the pool, or for no member"),
        ("udp://a:515,b", 14, "a port for each member of the pool, or for no member"),
        ("udp://a,a:514", 8, "a port for each member"),
        ("udp://a:2055,b:2055,a:2055", 21, "twice"),
        ("udp://a:2055,", 14, "host"),
        ("tcp://a:514,b:514", 13, "a pool over tcp"),
        ("udp://2001:db8::7:514", 7, "IPv6 address in brackets"),
        ("udp://[2001:db8::7:514", 7, "bracket not closed"),
        ("tcp://[2001:db8::7]", 20, "syslog over tcp has no default port"),
        ("udp://2001:db8::7", 7, "IPv6 address in brackets"),
        ("tls://::1", 7, "IPv6 address in brackets"),
        ("udp://a:514 udp://a", 13, "already listed"),
        ("udp://a,A", 9, "twice"),
        ("udp://[2001:db8::7]514", 20, "a port"),
        ("udp://[fe80::1%eth0]:514", 8, "without a zone"),
        ("udp://[198.51.100.7]:514", 8, "IPv6"),
        ("udp://user@198.51.100.7:514", 7, "user information"),
        ("udp://198.51.100.7:514/", 23, "path"),
        ("udp://198.51.100.7:514#x", 23, "fragment"),
        ("udp://198.51.100.7:514?", 24, "unknown option \"\""),
        ("udp://198.51.100.7:514?spoof=yes", 29, "expected true or false"),
        ("udp://198.51.100.7:514?spool=1GiB", 24, "does not apply to syslog over udp"),
        ("tcp://198.51.100.7:514?spoof=true", 24, "does not apply to syslog over tcp"),
        ("tcp://198.51.100.7:514?ca=x", 24, "does not apply to syslog over tcp"),
        ("tcp://198.51.100.7:514?spool=1GB", 29, "unknown unit"),
        ("tcp://198.51.100.7:514?spool=1KiB", 29, "at least 1MiB"),
        ("tcp://198.51.100.7:514?replay=5", 24, "replay= without spool="),
        ("udp://198.51.100.7:514?snmpv3=trap", 24, "does not apply to syslog"),
        ("tls://198.51.100.7:514?cert=x", 24, "cert= or key= alone"),
        ("tls://198.51.100.7:514?ca=", 26, "a path"),
        ("udp://198.51.100.7:514?facility=auth,sys", 32, "\"sys\" is not one"),
        ("udp://198.51.100.7:514?min_severity=8", 36, "a severity"),
        ("udp://198.51.100.7:514?source=10.0.0.0/33", 30, "is not one"),
        ("udp://198.51.100.7:514?format=netflow5", 30, "rfc3164, rfc5424, unknown"),
        ("udp://198.51.100.7:514?rate=0", 28, "a whole number, at least 1"),
        ("udp://198.51.100.7:514?dscp=64", 28, "copy, or a number from 0 to 63"),
        ("udp://198.51.100.7:514?source=%3", 30, "two hexadecimal digits"),
        ("udp://198.51.100.7:514?template_refresh=1m", 24, "does not apply to syslog"),
        ("udp://198.51.100.7:514?gso", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=no", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=true&gso=false", 33, "set twice"),
        ("udp://198.51.100.7:514?gso=true&", 33, "unknown option \"\""),
        ("udp://a.example:514\nudp://A.example:514?gso=false", 21, "already listed"),
        ("udp://[2001:db8::7]:1 udp://[2001:db8:0::7]:1", 23, "already listed"),
        ("udp://198.18.0.77:514 udp://[::ffff:198.18.0.77]:514", 23, "already listed"),
        ("udp://a:514;udp://b:514", 16, "white space between URIs"),
        ("udp://a:514,udp://b:514?rate=5", 12, "comma between two URIs, expected white space"),
        ("udp://a:514?rate=5,TCP://b:514", 19, "comma between two URIs, expected white space"),
        ("udp://a:514?source=10.0.0.0/8,198.18.0.0/15,udp://b:514", 44, "comma between two URIs"),
        ("tcp://198.51.100.7:514?framing=lf", 31, "octet-counting, or newline"),
        ("udp://198.51.100.7:514?framing=newline", 24, "does not apply to syslog over udp"),
        ("udp://198.51.100.7\u{200b}:514", 7, "host \"198.51.100.7\\u{200b}\""),
        ("\u{feff}udp://a:514", 1, "scheme \"\\u{feff}udp\""),
        ("udp://é:514 udp://b:0", 7, "host"),
        ("udp://b:1 udp://é.example:0", 17, "host"),
    ];
    for (text, column, problem) in table {
        let error = rejected(Kind::Syslog, text);
        assert!(error.starts_with(&format!("column {column}: ")), "{text}: {error}");
        assert!(error.contains(problem), "{text}: {error}");
    }
}

#[test]
fn encrypted_v3_messages_are_traps_only_where_configured() {
    let options = |text| one(Kind::SnmpTrap, text).options;
    assert!(options("udp://198.51.100.7?spoof=true&snmpv3=trap").encrypted_are_traps);
    assert!(!options("udp://198.51.100.7?spoof=true&snmpv3=inform").encrypted_are_traps);
    assert!(!options("udp://198.51.100.7?spoof=true").encrypted_are_traps);
    let error = rejected(Kind::SnmpTrap, "udp://198.51.100.7?spoof=true&snmpv3=traps");
    assert!(error.contains("expected trap or inform"), "{error}");
    let error = rejected(Kind::SnmpTrap, "udp://198.51.100.7?snmpv3=trap");
    assert!(error.contains("snmpv3= without spoof=true"), "{error}");
}

#[test]
fn missing_port_is_the_registered_one() {
    let read = |kind, text: &str| Destinations::parse(kind, text).expect(text);
    for (kind, text, label) in [
        (Kind::Syslog, "udp://198.51.100.7", "udp://198.51.100.7:514"),
        (Kind::Syslog, "udp://[2001:db8::7]?gso=false", "udp://[2001:db8::7]:514"),
        (Kind::Syslog, "udp://[::ffff:198.51.100.7]", "udp://198.51.100.7:514"),
        (Kind::Syslog, "tls://siem.example.net", "tls://siem.example.net:6514"),
        (Kind::Syslog, "tls://[2001:db8::7]?min_severity=err", "tls://[2001:db8::7]:6514"),
        (Kind::SnmpTrap, "udp://nms.example.net.?spoof=true", "udp://nms.example.net.:162"),
        (Kind::Syslog, "udp://198.51.100.7:5140", "udp://198.51.100.7:5140"),
    ] {
        let destinations = read(kind, text);
        assert_eq!(labels(destinations.iter().next().unwrap()), [label]);
        assert_eq!(destinations.to_string(), text, "shown as it was written");
    }
    let pool = one(Kind::Syslog, "udp://a,[2001:db8::7],198.51.100.7?spoof=true");
    assert_eq!(labels(&pool), ["udp://a:514", "udp://[2001:db8::7]:514", "udp://198.51.100.7:514"]);
}

#[test]
fn flows_have_no_default_port() {
    let error = rejected(Kind::Xflow, "udp://198.51.100.7");
    assert_eq!(error, "column 19: expected a colon and a port: xflow has no default port");
    let error = rejected(Kind::Xflow, "udp://a,b:2055");
    assert_eq!(error, "column 8: expected a colon and a port: xflow has no default port");
    let error = rejected(Kind::Xflow, "udp://[2001:db8::7]?spoof=true");
    assert_eq!(error, "column 20: expected a colon and a port: xflow has no default port");
}

#[test]
fn tcp_and_tls_are_for_syslog_only() {
    for kind in [Kind::Xflow, Kind::SnmpTrap] {
        let error = rejected(kind, "udp://b:1 tls://siem.example:6514");
        assert_eq!(
            error,
            "column 11: scheme \"tls\" is for syslog only, expected udp, otlp+http, otlp+https, kafka or nats"
        );
    }
    assert!(rejected(Kind::Xflow, "udp://b:1?facility=auth").contains("does not apply to xflow over udp"));
}

#[test]
fn options_are_read() {
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
fn more_than_64_endpoints_are_rejected() {
    let list = |count: u32| (0..count).map(|n| format!("udp://h{n}:514")).collect::<Vec<_>>().join(" ");
    assert!(Destinations::parse(Kind::Syslog, &list(64)).is_ok());
    assert!(rejected(Kind::Syslog, &list(65)).contains("more than 64 endpoints"));
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
    fn any_text_is_read_or_rejected_at_a_column_within_it(
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
