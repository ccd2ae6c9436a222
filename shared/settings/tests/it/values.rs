use std::{net::SocketAddr, time::Duration};

use proptest::prelude::*;
use sekiwake_settings::{BindEndpoint, ByteSize, Endpoint, List, Ports, Setting, show_duration};

#[test]
fn duration_is_a_whole_number_and_a_unit() {
    for (text, microseconds) in [
        ("500us", 500),
        ("2ms", 2_000),
        ("0s", 0),
        ("1m", 60_000_000),
        ("1h", 3_600_000_000),
        ("7d", 604_800_000_000),
        ("1w", 604_800_000_000),
    ] {
        assert_eq!(Duration::parse(text), Ok(Duration::from_micros(microseconds)), "{text}");
    }
    for text in [
        "",
        "2",
        "ms",
        "-1s",
        "1y",
        "+1s",
        "1.5s",
        "1 s",
        "1S",
        "99999999999999999999s",
        "18446744073709551615d",
        "１s",
    ] {
        assert!(Duration::parse(text).is_err(), "{text}");
    }
}

#[test]
fn size_is_a_whole_number_and_a_binary_unit() {
    for (text, bytes) in [("16384", 16384), ("1B", 1), ("64KiB", 65536), ("1GiB", 1 << 30), ("1TiB", 1 << 40)] {
        assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)), "{text}");
    }
    for text in ["", "KiB", "1KB", "1k", "1kib", "1.5MiB", "-1", "+1", "17179869184GiB"] {
        assert!(ByteSize::parse(text).is_err(), "{text}");
    }
}

#[test]
fn endpoint_to_connect_to_is_strict() {
    let fine = [
        "tcp://127.0.0.1:5559",
        "tcp://proxy:1",
        "tcp://[2001:db8::1]:65535",
        "tcp://a-b_c.example:5559",
        "ipc:///run/x",
    ];
    for text in fine {
        assert_eq!(Endpoint::parse(text).map(|endpoint| endpoint.to_string()), Ok(text.to_owned()));
    }
    let wrong = [
        "",
        "127.0.0.1:5559",
        "udp://127.0.0.1:5559",
        "inproc://x",
        "tcp://127.0.0.1",
        "tcp://:5559",
        "tcp://*:5559",
        "tcp://a:*",
        "tcp://a:0",
        "tcp://a:65536",
        "tcp://a:+1",
        "tcp://a:",
        "tcp://2001:db8::1:5559",
        "tcp://[2001:db8::g]:1",
        "tcp://1.2.3:4",
        "tcp://a b:1",
        "tcp://a;b:1",
        "tcp://a/:1",
        "ipc://",
        "ipc://a b",
    ];
    for text in wrong {
        assert!(Endpoint::parse(text).is_err(), "{text}");
    }
    let in_lower_case = Ok("tcp://Proxy:1".to_owned());
    assert_eq!(Endpoint::parse("TCP://Proxy:1").map(|endpoint| endpoint.to_string()), in_lower_case);
    assert!(Endpoint::parse(&format!("ipc://{}", "x".repeat(108))).is_err());
}

#[test]
fn endpoint_to_bind_accepts_wildcards() {
    for text in ["tcp://*:5559", "tcp://0.0.0.0:5559", "tcp://127.0.0.1:*", "tcp://[::]:0", "tcp://eth0:5559"] {
        assert!(BindEndpoint::parse(text).is_ok(), "{text}");
    }
    assert!(BindEndpoint::parse("tcp://**:5559").is_err());
}

#[test]
fn only_loopback_and_ipc_endpoints_are_local() {
    for (text, is_local) in [
        ("tcp://127.0.0.1:1", true),
        ("tcp://[::1]:1", true),
        ("tcp://localhost:1", true),
        ("ipc:///x", true),
        ("tcp://*:1", false),
        ("tcp://0.0.0.0:1", false),
        ("tcp://198.51.100.1:1", false),
        ("tcp://[::]:1", false),
    ] {
        assert_eq!(BindEndpoint::parse(text).map(|endpoint| endpoint.is_local()), Ok(is_local), "{text}");
    }
}

#[test]
fn lists_are_separated_by_commas_or_white_space() {
    let numbers = |text| List::<u16>::parse(text).map(|list| list.0);
    assert_eq!(numbers("1, 2\n3  4,5"), Ok(vec![1, 2, 3, 4, 5]));
    assert_eq!(numbers("1,,2"), Err("an entry is empty".to_owned()));
    assert_eq!(numbers("1,"), Err("an entry is empty".to_owned()));
    assert_eq!(numbers("1,x"), Err("in \"x\"".to_owned()));
}

#[test]
fn ports_are_listed_once() {
    assert_eq!(Ports::parse("514, 1514").map(|ports| ports.to_string()), Ok("514,1514".to_owned()));
    for text in ["0", "65536", "514,514", "514-520", "", ","] {
        assert!(Ports::parse(text).is_err(), "{text}");
    }
}

#[test]
fn numbers_are_finite_and_may_have_a_fraction() {
    assert_eq!(["3", "2.5", "0", "10.0"].map(f64::parse), [Ok(3.0), Ok(2.5), Ok(0.0), Ok(10.0)]);
    for text in ["-1", "+1", "1e3", ".5", "5.", "inf", "NaN", "1,5", "0x1", &"9".repeat(400)] {
        assert!(f64::parse(text).is_err(), "{text}");
    }
}

#[test]
fn address_may_omit_the_host() {
    assert_eq!(SocketAddr::parse(":9600"), Ok(SocketAddr::from(([0, 0, 0, 0], 9600))));
    assert!(SocketAddr::parse("[::]:9600").is_ok_and(|address| address.is_ipv6()));
    for text in ["9600", "localhost:9600", ":x", ":65536", "::1:9600x"] {
        assert!(SocketAddr::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn shown_values_are_parsed_to_the_same_value(microseconds in 0u64..1 << 50, bytes: u64) {
        let duration = Duration::from_micros(microseconds);
        prop_assert_eq!(Duration::parse(&show_duration(duration)), Ok(duration));
        prop_assert_eq!(ByteSize::parse(&ByteSize(bytes).to_string()), Ok(ByteSize(bytes)));
    }

    #[test]
    fn parsers_never_panic(text in ".{0,40}") {
        let _ = (Duration::parse(&text), ByteSize::parse(&text), Ports::parse(&text), SocketAddr::parse(&text));
        let _ = (List::<Endpoint>::parse(&text), BindEndpoint::parse(&format!("tcp://{text}")));
    }
}
