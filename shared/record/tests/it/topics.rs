//! Topics, shards and names, on which publishers and subscribers of all versions and languages have
//! to agree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sekiwake_record::{Announcement, Kind, Name, NameError, SHARDS, Shard, Topic};

use crate::address;

#[test]
fn topics_are_parsed_from_their_names() {
    let topics: Vec<Topic> = Topic::all().collect();
    assert_eq!(topics.len(), 192);
    for (index, topic) in topics.into_iter().enumerate() {
        assert_eq!(topic.index(), index);
        assert_eq!(Topic::from_index(index), Some(topic));
        assert_eq!(Topic::parse(topic.as_str().as_bytes()), Some(topic));
        assert_eq!(topic.to_string(), format!("{}/{:02x}", topic.kind, topic.shard.index()));
    }
    assert_eq!(Topic::from_index(192), None);
    assert_eq!(Topic::parse(b"snmptrap/3f").map(Topic::index), Some(191));
}

#[test]
fn other_names_are_not_topics() {
    for name in [
        "",
        "/",
        "syslog",
        "syslog/",
        "syslog/3",
        "syslog/3F",
        "syslog/40",
        "syslog/ff",
        "syslog/3ff",
        "syslog/03f",
        "syslog/3f/",
        "syslog//3f",
        "syslog/3g",
        "syslog/+3",
        "syslog/ 3",
        "syslog/3 ",
        "Syslog/3f",
        "trap/3f",
        "/3f",
        "syslog 3f",
        "@stream/host/",
        "syslog/3f\0",
        "anomaly/00",
    ] {
        assert_eq!(Topic::parse(name.as_bytes()), None, "{name:?}");
    }
    assert_eq!(Topic::parse(b"\xff/3f"), None);
}

/// The hashes were computed with `xxhash.xxh3_64_intdigest(bytes, seed=0)` of the Python package
/// xxhash 4.1.0 over the 16 packed bytes of `ipaddress`, those of IPv4 after ten bytes 00 and two
/// bytes ff. The shard is the digest shifted right by 58 bits.
#[test]
fn shards_are_those_of_other_implementations() {
    for (text, shard) in [
        ("192.0.2.1", 0x9fe2_8067_5064_061a_u64 >> 58),
        ("198.51.100.7", 0x814f_efa8_f062_ad5c >> 58),
        ("203.0.113.254", 0x829c_01c5_2ca8_6693 >> 58),
        ("10.0.0.1", 12),
        ("2001:db8::1", 9),
        ("2001:db8:ffff:1::53", 49),
        ("::", 52),
        ("fe80::1", 9),
    ] {
        assert_eq!(Shard::of(address(text)).index() as u64, shard, "{text}");
    }
    assert_eq!(Topic::of(Kind::Syslog, address("192.0.2.1")).as_str(), "syslog/27");
}

#[test]
fn ipv4_address_and_its_mapped_form_share_a_shard() {
    for last in 0..=255 {
        let v4 = Ipv4Addr::new(198, 51, 100, last);
        assert_eq!(Shard::of(IpAddr::V4(v4)), Shard::of(IpAddr::V6(v4.to_ipv6_mapped())));
    }
}

/// Sources are consecutive addresses, as in a management network. With 63 degrees of freedom a
/// chi-square over 112 has a probability under 0.0001. The hash is fixed, so the result is the same
/// in every run.
#[test]
fn sources_are_distributed_evenly() {
    let v4 = (0..10_000_u32).map(|number| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)));
    let v6 = (0..10_000_u128).map(|number| IpAddr::V6(Ipv6Addr::from((0x2001_0db8 << 96) + number)));
    for sources in [v4.collect::<Vec<_>>(), v6.collect()] {
        let mut counts = [0_f64; SHARDS];
        sources.iter().for_each(|&source| counts[Shard::of(source).index()] += 1.0);
        let expected = sources.len() as f64 / SHARDS as f64;
        let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        assert!(chi_square < 112.0, "{chi_square}: {counts:?}");
    }
}

#[test]
fn shards_end_at_63() {
    assert_eq!(Shard::new(63).map(Shard::index), Some(63));
    assert_eq!(Shard::new(64), None);
}

#[test]
fn kinds_are_parsed_from_their_names() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_name(kind.as_str()), Some(kind));
        assert_eq!(Kind::ALL[kind.index()], kind);
    }
    assert_eq!(Kind::from_name("Syslog"), None);
}

#[test]
fn names_have_1_to_63_allowed_characters() {
    let longest = "n".repeat(63);
    for name in ["a", "0", "-", "router-1.example_net", &longest] {
        assert_eq!(Name::new(name).map(|name| name.to_string()), Ok(name.to_owned()));
        assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
    }
    let too_long = "n".repeat(64);
    for name in ["", " ", "a b", "a/b", "@a", "a\n", "é", "a\0", &too_long] {
        assert_eq!(Name::new(name), Err(NameError), "{name:?}");
    }
}

#[test]
fn announcement_topic_ends_in_a_slash() {
    assert_eq!(Announcement::topic(&Name::new("host-1").unwrap()), "@stream/host-1/");
}
