//! Records and batches for tests.

use std::net::{IpAddr, Ipv4Addr};

use sekiwake_record::{BatchBuilder, Flags, Format, Record, Vlans};

/// A record with this payload and arbitrary metadata: syslog from 198.51.100.7:40000 to
/// 203.0.113.1:514.
pub fn record(payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: 1_700_000_000_000_000_000,
        source: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
        source_port: 40_000,
        destination: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        destination_port: 514,
        format: Format::Rfc3164,
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 64,
        origin: None,
    }
}

/// An open batch of these records.
pub fn batch_of<'a>(records: impl IntoIterator<Item = Record<'a>>) -> BatchBuilder {
    let mut builder = BatchBuilder::new(Vec::new());
    records.into_iter().for_each(|record| builder.push(&record));
    builder
}
