//! Batches captured before publishing may begin. Once the list of own destinations is known,
//! records addressed to them are left out.

use std::collections::VecDeque;

use sekiwake_group::OwnList;
use sekiwake_record::{Batch, BatchBuilder, ClosedBatch, Kind, Outbound, Record};

/// The memory cost of an early batch in addition to its body, bytes.
const ENTRY_BYTES: usize = 96;

/// Batches that may not be published yet, oldest first.
#[derive(Debug)]
pub(crate) struct EarlyQueue {
    batches: VecDeque<Outbound>,
    bytes: [usize; Kind::ALL.len()],
    /// Maximum bytes of each kind that [`EarlyQueue::try_push`] accepts.
    limits: [usize; Kind::ALL.len()],
    records: u64,
}

impl EarlyQueue {
    pub(crate) fn new(limits: [usize; Kind::ALL.len()]) -> EarlyQueue {
        EarlyQueue { batches: VecDeque::new(), bytes: [0; Kind::ALL.len()], limits, records: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// Appends a batch, or returns it if there is no room for its kind.
    pub(crate) fn try_push(&mut self, mut outbound: Outbound) -> Result<(), Outbound> {
        let kind = outbound.topic.kind.index();
        if self.bytes[kind] >= self.limits[kind] {
            return Err(outbound);
        }
        // The buffer has room for a full batch, and may be kept for long.
        outbound.batch.body.shrink_to_fit();
        self.push(outbound);
        Ok(())
    }

    /// Appends a batch without regard to the limit.
    pub(crate) fn push(&mut self, outbound: Outbound) {
        self.bytes[outbound.topic.kind.index()] += cost(&outbound.batch);
        self.records += u64::from(outbound.batch.count);
        self.batches.push_back(outbound);
    }

    pub(crate) fn pop(&mut self) -> Option<Outbound> {
        let outbound = self.batches.pop_front()?;
        self.bytes[outbound.topic.kind.index()] -= cost(&outbound.batch);
        self.records -= u64::from(outbound.batch.count);
        Some(outbound)
    }
}

fn cost(batch: &ClosedBatch) -> usize {
    batch.body.len() + ENTRY_BYTES
}

/// A batch without the records to own destinations.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filtered {
    /// `None` if no records are left.
    pub(crate) kept: Option<ClosedBatch>,
    /// How many records were left out.
    pub(crate) left_out: u32,
}

/// Leaves out the records addressed to `own`, and counts those to destinations of clients.
pub(crate) fn without_own(batch: ClosedBatch, own: &OwnList) -> Filtered {
    let position = |record: &Record<'_>| own.position(record.destination, record.destination_port);
    let is_foreign = |record: &Record<'_>| position(record).is_none();
    // Decoding cannot fail, because this process encoded the batch.
    let decoded = Batch::decode(&batch.body, batch.count).ok();
    let Some(decoded) = decoded.filter(|decoded| !decoded.records().all(|record| is_foreign(&record))) else {
        return Filtered { kept: Some(batch), left_out: 0 };
    };
    let mut kept = BatchBuilder::new(Vec::with_capacity(batch.body.len()));
    for record in decoded.records() {
        match position(&record) {
            Some(index) => own.count(index),
            None => kept.push(&record),
        }
    }
    let left_out = batch.count - kept.count();
    Filtered { kept: kept.close(), left_out }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sekiwake_group::OwnDestinations;
    use sekiwake_record::{Flags, Format, Topic, Vlans};

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
            origin: None,
        }
    }

    fn batch(destinations: &[&str]) -> ClosedBatch {
        let mut builder = BatchBuilder::new(Vec::new());
        destinations.iter().for_each(|destination| builder.push(&record(destination)));
        builder.close().unwrap()
    }

    #[test]
    fn only_records_to_own_destinations_are_left_out() {
        let address: SocketAddr = "198.51.100.7:514".parse().unwrap();
        let destinations = OwnDestinations::default();
        destinations.set(1, [address], &[address]);
        let own = destinations.list();
        let mixed = batch(&["198.51.100.7:514", "198.51.100.8:514", "198.51.100.7:515"]);
        let kept = Some(batch(&["198.51.100.8:514", "198.51.100.7:515"]));
        assert_eq!(without_own(mixed, &own), Filtered { kept, left_out: 1 });
        assert_eq!(without_own(batch(&["198.51.100.7:514"]), &own), Filtered { kept: None, left_out: 1 });
        let foreign = batch(&["198.51.100.8:514"]);
        assert_eq!(without_own(foreign.clone(), &own), Filtered { kept: Some(foreign), left_out: 0 });
        assert_eq!(own.left_alone().collect::<Vec<_>>(), [(address, 2)]);
    }

    #[test]
    fn early_queue_is_bounded_by_kind_and_empties_in_order() {
        let mut queue = EarlyQueue::new([ENTRY_BYTES + 1, 1, 0]);
        let topic = |kind| Topic::all().find(|topic| topic.kind == kind).unwrap();
        let outbound = |kind, destinations: &[&str]| Outbound { topic: topic(kind), batch: batch(destinations) };
        let first = outbound(Kind::Syslog, &["198.51.100.8:1", "198.51.100.8:2"]);
        let second = outbound(Kind::Xflow, &["198.51.100.8:3"]);
        assert_eq!(queue.try_push(first.clone()), Ok(()));
        assert_eq!(queue.try_push(first.clone()), Err(first.clone()), "syslog is full");
        assert_eq!(queue.try_push(second.clone()), Ok(()), "another kind is not");
        assert_eq!(queue.records(), 3);
        let trap = outbound(Kind::SnmpTrap, &["198.51.100.8:4"]);
        assert!(queue.try_push(trap.clone()).is_err());
        queue.push(trap.clone());
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(first), Some(second), Some(trap), None]);
        assert_eq!((queue.is_empty(), queue.bytes(), queue.records()), (true, 0, 0));
    }
}
