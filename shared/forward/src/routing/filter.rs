//! Which datagrams a destination gets: by source, format, facility and severity. A datagram must
//! match all filters that are set.

use sekiwake_identify::syslog::Priority;
use sekiwake_record::{Format, Prefix, Record};

use crate::metrics::SkipReason;

/// The filter of a destination. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Only these sources.
    pub sources: Option<Vec<Prefix>>,
    /// Not these, even if [`Filter::sources`] has them.
    pub excluded_sources: Vec<Prefix>,
    /// Only these formats.
    pub formats: Option<Vec<Format>>,
    /// Only these syslog facilities.
    pub facilities: Option<Facilities>,
    /// Only this severity, 0 to 7, and lower numbers, which are more severe.
    pub min_severity: Option<u8>,
}

/// Why a datagram does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    Source,
    Format,
    Facility,
    Severity,
}

impl From<Mismatch> for SkipReason {
    fn from(mismatch: Mismatch) -> SkipReason {
        match mismatch {
            Mismatch::Source => SkipReason::Source,
            Mismatch::Format => SkipReason::Format,
            Mismatch::Facility => SkipReason::Facility,
            Mismatch::Severity => SkipReason::Severity,
        }
    }
}

impl Filter {
    /// Whether it matches everything.
    pub(crate) fn is_open(&self) -> bool {
        *self == Filter::default()
    }

    /// Why this record does not match; `None` if it does.
    ///
    /// A message without a PRI counts as user.notice, as RFC 3164 §4.3.3 has relays treat it.
    pub(crate) fn mismatch(&self, record: &Record<'_>) -> Option<Mismatch> {
        let among = |prefixes: &[Prefix]| {
            let source = record.source.to_canonical();
            prefixes.iter().any(|prefix| prefix.contains(source))
        };
        if self.sources.as_ref().is_some_and(|sources| !among(sources)) || among(&self.excluded_sources) {
            return Some(Mismatch::Source);
        }
        if self.formats.as_ref().is_some_and(|formats| !formats.contains(&record.format)) {
            return Some(Mismatch::Format);
        }
        if self.facilities.is_none() && self.min_severity.is_none() {
            return None;
        }
        let priority = Priority::of(record.payload).unwrap_or(Priority::ABSENT);
        if self.facilities.is_some_and(|facilities| !facilities.contains(priority.facility())) {
            return Some(Mismatch::Facility);
        }
        if self.min_severity.is_some_and(|least| priority.severity() > least) {
            return Some(Mismatch::Severity);
        }
        None
    }
}

/// A set of syslog facilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facilities(u32);

impl Facilities {
    /// These facilities, each 0 to 23.
    pub fn of(facilities: &[u8]) -> Facilities {
        Facilities(facilities.iter().fold(0, |set, &facility| set | 1 << u32::from(facility).min(31)))
    }

    /// Whether it is in the set.
    pub fn contains(self, facility: u8) -> bool {
        self.0 >> u32::from(facility).min(31) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use sekiwake_identify::syslog::{parse_facility, parse_severity};
    use sekiwake_testkit::fixtures;

    use super::*;

    fn record(source: IpAddr, payload: &[u8]) -> Record<'_> {
        let format = sekiwake_identify::identify(None, payload);
        Record { source, format, ..fixtures::record(payload) }
    }

    /// The bits of an address.
    fn bits(address: IpAddr) -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
    }

    /// An obviously right reference: families apart, bits compared one by one.
    fn reference(network: IpAddr, length: usize, address: IpAddr) -> bool {
        let (network, length) = match (network, network.to_canonical()) {
            (IpAddr::V6(_), canonical @ IpAddr::V4(_)) if length >= 96 => (canonical, length - 96),
            (network, _) => (network, length),
        };
        let address = address.to_canonical();
        network.is_ipv4() == address.is_ipv4() && bits(network)[..length] == bits(address)[..length]
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits))),
            (0u32..16).prop_map(|low| IpAddr::from(Ipv4Addr::from(0x0a00_0000 | low))),
            any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits))),
            (0u128..16).prop_map(|low| IpAddr::from(Ipv6Addr::from(0x2001_0db8 << 96 | low))),
            any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits).to_ipv6_mapped())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn prefixes_agree_with_a_bitwise_comparison(
            network in address(), other in address(), length in 0usize..=128, flip in proptest::option::of(0usize..128),
        ) {
            let width = bits(network).len();
            let length = length.min(width);
            let prefix: Prefix = format!("{network}/{length}").parse().unwrap();
            // Addresses that differ from the network in one bit are the interesting ones.
            let near = match (network, flip) {
                (address, None) => address,
                (IpAddr::V4(address), Some(bit)) => Ipv4Addr::from(address.to_bits() ^ 1 << (bit % 32)).into(),
                (IpAddr::V6(address), Some(bit)) => Ipv6Addr::from(address.to_bits() ^ 1 << bit).into(),
            };
            for address in [other, near] {
                prop_assert_eq!(prefix.contains(address), reference(network, length, address), "{} in {}/{}", address, network, length);
            }
        }
    }

    #[test]
    fn edges_of_prefixes() {
        let holds = |prefix: &str, address: &str| prefix.parse::<Prefix>().unwrap().contains(address.parse().unwrap());
        for (prefix, inside, outside) in [
            ("0.0.0.0/0", "255.255.255.255", "2001:db8::1"),
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("198.18.0.128/25", "198.18.0.255", "198.18.0.127"),
            ("198.18.0.1/32", "198.18.0.1", "198.18.0.0"),
            ("198.18.0.1", "::ffff:198.18.0.1", "::198.18.0.1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2000::/3", "3fff::1", "4000::1"),
            ("2001:db8::/48", "2001:db8:0:ffff::1", "2001:db8:1::"),
            ("2001:db8::/64", "2001:db8::ffff:1", "2001:db8:0:1::"),
            ("2001:db8::/127", "2001:db8::1", "2001:db8::2"),
            ("2001:db8::1/128", "2001:db8::1", "2001:db8::"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
        ] {
            assert!(holds(prefix, inside), "{inside} in {prefix}");
            assert!(!holds(prefix, outside), "{outside} not in {prefix}");
        }
        for wrong in
            ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "2001:db8::/129", "a/8", "10.0.0.0/8/8"]
        {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_filters_have_to_match() {
        let source = IpAddr::from(Ipv4Addr::new(10, 1, 2, 3));
        let filter = Filter {
            sources: Some(vec!["10.0.0.0/8".parse().unwrap()]),
            excluded_sources: vec!["10.9.0.0/16".parse().unwrap()],
            formats: Some(vec![Format::Rfc3164, Format::Unknown]),
            facilities: Some(Facilities::of(&[4, 23, 1])),
            min_severity: Some(5),
        };
        let mismatch = |source: IpAddr, payload: &[u8]| filter.mismatch(&record(source, payload));
        assert_eq!(mismatch(source, b"<189>local7.notice"), None);
        assert_eq!(mismatch(source, b"<36>auth.warning"), None);
        assert_eq!(mismatch(source, b"no PRI: user.notice"), None);
        assert_eq!(mismatch(Ipv4Addr::new(11, 0, 0, 1).into(), b"<189>x"), Some(Mismatch::Source));
        assert_eq!(mismatch(Ipv4Addr::new(10, 9, 0, 1).into(), b"<189>x"), Some(Mismatch::Source));
        assert_eq!(mismatch(source, b"<189>1 2003-10-11T22:14:15Z h a p m -"), Some(Mismatch::Format));
        assert_eq!(mismatch(source, b"<22>mail.info"), Some(Mismatch::Facility));
        assert_eq!(mismatch(source, b"<190>local7.info"), Some(Mismatch::Severity));
        assert!(Filter::default().is_open() && !filter.is_open());
    }

    #[test]
    fn facilities_and_severities_have_names_and_numbers() {
        assert_eq!((parse_facility("local7"), parse_facility("23"), parse_facility("24")), (Some(23), Some(23), None));
        assert_eq!(
            (parse_severity("warn"), parse_severity("warning"), parse_severity("4")),
            (Some(4), Some(4), Some(4))
        );
        assert_eq!((parse_severity("8"), parse_severity("+4"), parse_severity("")), (None, None, None));
    }
}
