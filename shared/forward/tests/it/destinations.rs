//! URIs are read strictly, and a mistake says where it is.

use sekiwake_forward::{Destinations, Host};

fn refused(text: &str) -> String {
    Destinations::parse(text).expect_err(text).to_string()
}

#[test]
fn addresses_names_and_options_are_understood() {
    let text = "udp://198.51.100.7:514  udp://[2001:db8::7]:2055?gso=false\n\tudp://SIEM_1.example.net.:65535?gso=true";
    let destinations = Destinations::parse(text).unwrap();
    let all: Vec<_> = destinations.iter().collect();
    assert_eq!(all.len(), 3);
    assert_eq!((&all[0].host, all[0].port), (&Host::Address([198, 51, 100, 7].into()), 514));
    assert_eq!((all[0].label(), all[0].segmentation), ("udp://198.51.100.7:514", true));
    assert_eq!((all[1].label(), all[1].segmentation), ("udp://[2001:db8::7]:2055", false));
    assert_eq!(all[2].host, Host::Name("siem_1.example.net.".to_owned()));
    assert_eq!(all[2].label(), "udp://SIEM_1.example.net.:65535");
    assert_eq!(Destinations::parse(&destinations.to_string()).unwrap(), destinations);
}

#[test]
fn an_ipv4_address_in_the_form_of_an_ipv6_one_is_that_ipv4_address() {
    let destinations = Destinations::parse("udp://[::ffff:198.18.0.77]:514").unwrap();
    assert_eq!(destinations.iter().next().unwrap().host, Host::Address([198, 18, 0, 77].into()));
    assert_eq!(Destinations::parse(&destinations.to_string()).unwrap(), destinations);
}

#[test]
fn broadcast_addresses_and_multicast_groups_are_destinations() {
    let hosts = ["198.18.255.255", "255.255.255.255", "224.1.2.3", "239.255.255.255", "[ff05::1:3]", "[ff3e::1]"];
    for host in hosts {
        Destinations::parse(&format!("udp://{host}:514")).expect(host);
    }
}

#[test]
fn nothing_is_a_list_of_none() {
    assert!(Destinations::parse(" \n").unwrap().is_empty());
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let table = [
        ("198.51.100.7:514", 1, "no URI"),
        ("udp:/198.51.100.7:514", 1, "no URI"),
        ("UDP://198.51.100.7:514", 1, "scheme \"UDP\""),
        ("tcp://198.51.100.7:514", 1, "scheme \"tcp\" is not supported by this version"),
        ("udp://198.51.100.7:514 tls://siem.example:6514", 24, "scheme \"tls\" is not supported by this version"),
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
        ("udp://a,b:514", 7, "host"),
        ("udp://a:2055,b:2055", 7, "IPv6 address in brackets"),
        ("udp://2001:db8::7:514", 7, "IPv6 address in brackets"),
        ("udp://[2001:db8::7:514", 7, "never closed"),
        ("udp://[2001:db8::7]", 20, "a port"),
        ("udp://[2001:db8::7]514", 20, "a port"),
        ("udp://[fe80::1%eth0]:514", 8, "without a zone"),
        ("udp://[198.51.100.7]:514", 8, "IPv6"),
        ("udp://user@198.51.100.7:514", 7, "user information"),
        ("udp://198.51.100.7:514/", 23, "path"),
        ("udp://198.51.100.7:514#x", 23, "fragment"),
        ("udp://198.51.100.7:514?", 24, "option \"\""),
        ("udp://198.51.100.7:514?spoof=true", 24, "option \"spoof\" is not supported by this version"),
        ("udp://198.51.100.7:514?gso", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=no", 27, "expected true or false"),
        ("udp://198.51.100.7:514?gso=true&gso=false", 33, "second time"),
        ("udp://198.51.100.7:514?gso=true&", 33, "option \"\""),
        ("udp://a.example:514\nudp://A.example:514?gso=false", 21, "same place"),
        ("udp://[2001:db8::7]:1 udp://[2001:db8:0::7]:1", 23, "same place"),
        ("udp://198.18.0.77:514 udp://[::ffff:198.18.0.77]:514", 23, "same place"),
        ("udp://é:514 udp://b:0", 7, "host"),
        ("udp://b:1 udp://é.example:0", 17, "host"),
    ];
    for (text, column, problem) in table {
        let error = refused(text);
        assert!(error.starts_with(&format!("column {column}: ")), "{text}: {error}");
        assert!(error.contains(problem), "{text}: {error}");
    }
}
