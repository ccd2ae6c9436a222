//! Batches for the unit tests.

use std::{net::Ipv4Addr, sync::Arc};

use sekiwake_record::{Batch, BatchBuilder, Flags, Format, Header, Record, Vlans};

use crate::Parcel;

/// A parcel with these payloads, from one source.
pub(crate) fn batch(payloads: &[&[u8]]) -> Arc<Parcel<Vec<u8>>> {
    let mut builder = BatchBuilder::new(Vec::new());
    for payload in payloads {
        builder.push(&Record {
            captured_at_ns: 1,
            source: Ipv4Addr::new(198, 51, 100, 1).into(),
            source_port: 514,
            destination: Ipv4Addr::new(203, 0, 113, 1).into(),
            destination_port: 514,
            format: Format::Unknown,
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
        });
    }
    let closed = builder.close().unwrap();
    let header = Header {
        stream_name: "test",
        stream_epoch: 1,
        first_sequence: 0,
        count: closed.count,
        first_captured_at_ns: 1,
        last_captured_at_ns: 1,
    };
    Arc::new(Batch::decode(&header, closed.body).unwrap().into())
}
