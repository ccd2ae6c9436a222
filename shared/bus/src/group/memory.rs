//! A member of a group without sockets: the traits implemented a second time, for tests of what is
//! above them.

use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

use sekiwake_group::{Member, MemberSettings, Stream};
use sekiwake_record::{Batch, BatchBuilder, Flags, Format, Kind, Name, Record, Shard, Topic, Vlans};

use super::{Acks, Completion};
use crate::{BusError, Frame, GroupDelivery, GroupSource, HandoffEntry, HandoffState, RegisteredDestination, boot_now};

/// The shards that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    All,
    Some,
    None,
}

/// Records of one topic, each in a batch of its own.
pub(super) struct MemoryMember {
    pub(super) owned: Owned,
    pub(super) has_lease: bool,
    pub(super) can_release: bool,
    /// How often it must try to release its shards; `None` if it never succeeds.
    pub(super) tries: Option<u32>,
    pub(super) is_leaving: bool,
    queue: VecDeque<Batch<Frame>>,
    /// The sequence number of the first batch in `queue`.
    next: u64,
    /// The first record that is not acknowledged.
    pub(super) position: u64,
    acknowledged: Vec<u64>,
    stream: Stream,
    acks: Acks,
}

impl MemoryMember {
    pub(super) fn new(records: u32) -> MemoryMember {
        let name = |text| Name::new(text).unwrap();
        let settings = MemberSettings::new(name("storer.default"), Kind::Syslog, name("m1"));
        MemoryMember {
            owned: Owned::All,
            has_lease: true,
            can_release: true,
            tries: Some(1),
            is_leaving: false,
            queue: (0..records).map(|_| batch()).collect(),
            next: 0,
            position: 0,
            acknowledged: Vec::new(),
            stream: Stream::new(&name("wire-1"), 7),
            acks: Acks::new(Member::<()>::new(settings, 1, boot_now()).permit()),
        }
    }

    fn collect_acks(&mut self) {
        self.acknowledged.extend(self.acks.take().map(|completion| completion.first_sequence));
        while let Some(index) = self.acknowledged.iter().position(|sequence| *sequence == self.position) {
            self.acknowledged.swap_remove(index);
            self.position += 1;
        }
    }

    fn release(&mut self) {
        if self.is_leaving
            && self.can_release
            && let Some(tries) = &mut self.tries
        {
            *tries = tries.saturating_sub(1);
            if *tries == 0 {
                self.owned = Owned::None;
            }
        }
    }
}

fn batch() -> Batch<Frame> {
    let mut builder = BatchBuilder::new(Vec::new());
    builder.push(&Record {
        captured_at_ns: 1,
        source: Ipv4Addr::new(198, 51, 100, 1).into(),
        source_port: 5000,
        destination: Ipv4Addr::new(198, 51, 100, 2).into(),
        destination_port: 514,
        format: Format::Unknown,
        flags: Flags::default(),
        payload: b"x",
        vlans: Vlans::new(),
        dscp_ttl: 0,
        origin: None,
    });
    builder.into_batch().unwrap()
}

impl HandoffState for MemoryMember {
    fn put_handoff_entry(&mut self, _shard: Shard, _key: &[u8], _value: &[u8], _at_ns: u64) -> bool {
        false
    }

    fn pending_handoff(&self) -> usize {
        0
    }

    fn handoff_complete(&self, _shard: Shard) -> bool {
        false
    }

    fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
        None
    }

    fn shard_to_present(&mut self) -> Option<Shard> {
        None
    }
}

impl GroupSource for MemoryMember {
    fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
        self.poll_control(timeout)?;
        self.try_receive()
    }

    fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
        let Some(batch) = self.queue.pop_front() else { return Ok(None) };
        let topic = Topic::all().find(|topic| topic.kind == Kind::Syslog).unwrap();
        let first_sequence = self.next;
        self.next += 1;
        let completion = Completion { stream: self.stream.clone(), shard: topic.shard, generation: 1, first_sequence };
        Ok(Some(GroupDelivery {
            topic,
            stream: self.stream.clone(),
            first_sequence,
            first_captured_at_ns: 1,
            last_captured_at_ns: 1,
            batch,
            ack_token: self.acks.token(completion),
        }))
    }

    fn has_outstanding(&self) -> bool {
        self.acks.has_outstanding()
    }

    fn poll_control(&mut self, _timeout: Duration) -> Result<(), BusError> {
        self.collect_acks();
        self.release();
        Ok(())
    }

    fn set_is_full(&mut self, _is_full: bool) {}

    fn set_destinations(&mut self, _destinations: Vec<RegisteredDestination>) {}

    fn set_destinations_digest(&mut self, _digest: u64) {}

    fn may_use_destinations(&self) -> bool {
        true
    }

    fn is_caught_up(&self) -> bool {
        self.queue.is_empty() && self.position == self.next
    }

    fn has_received_all(&self) -> bool {
        self.queue.is_empty()
    }

    fn owns_all(&self) -> bool {
        self.owned == Owned::All
    }

    fn owns_any(&self) -> bool {
        self.owned != Owned::None
    }

    fn leave(&mut self) {
        self.is_leaving = true;
    }

    fn has_left(&self) -> bool {
        self.is_leaving && self.owned == Owned::None
    }

    fn has_lease(&self) -> bool {
        self.has_lease
    }

    fn can_release(&self) -> bool {
        self.can_release
    }
}
