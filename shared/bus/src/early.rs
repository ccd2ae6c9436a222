//! What is captured before publishing may begin: it waits, and what turns out to be addressed to ourselves is left out.

use std::net::SocketAddr;

use sekiwake_record::{Batch, BatchBuilder, ClosedBatch, Header};

use crate::own::is_own;

/// A batch without the records that are addressed to one of these, and how many those were. `None`: nothing is left of it.
pub(crate) fn without_own(batch: ClosedBatch, own: &[SocketAddr]) -> (Option<ClosedBatch>, u32) {
    let header = Header {
        stream_name: "early",
        stream_epoch: 0,
        first_sequence: 0,
        count: batch.count,
        first_captured_at_ns: batch.first_captured_at_ns,
        last_captured_at_ns: batch.last_captured_at_ns,
    };
    // It was encoded in this process a moment ago.
    let Ok(decoded) = Batch::decode(&header, &batch.body) else { return (Some(batch), 0) };
    let foreign = |record: &sekiwake_record::Record<'_>| !is_own(own, record.destination, record.destination_port);
    if decoded.records().all(|record| foreign(&record)) {
        return (Some(batch), 0);
    }
    let mut kept = BatchBuilder::new(Vec::with_capacity(batch.body.len()));
    decoded.records().filter(foreign).for_each(|record| kept.push(&record));
    let left_out = batch.count - kept.count();
    (kept.close(), left_out)
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Flags, Format, Record, Vlans};

    use super::*;

    fn record(destination: &str) -> Record<'static> {
        let destination: SocketAddr = destination.parse().unwrap();
        Record {
            captured_at_ns: 1,
            source: "198.51.100.1".parse().unwrap(),
            source_port: 5000,
            destination: destination.ip(),
            destination_port: destination.port(),
            format: Format::Unknown,
            flags: Flags::default(),
            payload: b"x",
            vlans: Vlans::new(),
            dscp_ttl: 0,
        }
    }

    #[test]
    fn only_what_is_addressed_to_ourselves_is_left_out() {
        let own = ["198.51.100.7:514".parse().unwrap()];
        let batch = |destinations: &[&str]| {
            let mut builder = BatchBuilder::new(Vec::new());
            destinations.iter().for_each(|destination| builder.push(&record(destination)));
            builder.close().unwrap()
        };
        let mixed = batch(&["198.51.100.7:514", "198.51.100.8:514", "198.51.100.7:515"]);
        let (kept, left_out) = without_own(mixed, &own);
        assert_eq!((kept, left_out), (Some(batch(&["198.51.100.8:514", "198.51.100.7:515"])), 1));
        assert_eq!(without_own(batch(&["198.51.100.7:514"]), &own), (None, 1));
    }
}
