//! The wire format: its exact bytes, its extensions, and hostile input.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its own input has failed")]

mod batcher;
mod compatibility;
mod golden;
mod hostile;
mod round_trip;
mod topics;

use std::net::IpAddr;

use sekiwake_record::{Batch, BatchBuilder, ClosedBatch, Flags, Format, Header, Origin, Record, Vlans};

/// A record with a value in every field.
fn record() -> Record<'static> {
    Record {
        captured_at_ns: 1_700_000_000_123_456_789,
        source: address("198.51.100.7"),
        source_port: 514,
        destination: address("2001:db8::1"),
        destination_port: 162,
        format: Format::Rfc3164,
        flags: Flags::REASSEMBLED.with(Flags::DECAPSULATED, true),
        payload: b"<13>hi",
        vlans: Vlans::from_iter([100, 4094]),
        dscp_ttl: sekiwake_record::dscp_ttl(46, 64),
        origin: Some(Origin { ip_id: Some(0xbeef), interface: 1 }),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn header(count: u32) -> Header<'static> {
    Header {
        stream_name: "router-tap",
        stream_epoch: 0x1122_3344_5566_7788,
        first_sequence: 1000,
        count,
        first_captured_at_ns: 1_700_000_000_123_456_789,
        last_captured_at_ns: 1_700_000_000_123_456_790,
    }
}

fn batch_of(records: &[Record<'_>]) -> ClosedBatch {
    let mut builder = BatchBuilder::new(Vec::new());
    records.iter().for_each(|record| builder.push(record));
    builder.close().unwrap()
}

/// Decodes a body of `count` records.
fn decode(count: u32, body: &[u8]) -> Result<Batch<&[u8]>, sekiwake_record::DecodeError> {
    Batch::decode(body, count)
}
