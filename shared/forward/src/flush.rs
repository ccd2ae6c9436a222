//! What leaves in one go: the datagrams of the batches that were taken together, and how far their sending has come.

use std::io::IoSlice;

use arrayvec::ArrayVec;
use sekiwake_bus::Permission;
use sekiwake_record::Shard;
use sekiwake_sys::{MAX_MESSAGES, Outgoing};

use crate::{
    plan::{Datagram, Message, Ranks, arrange, plan},
    queue::Queued,
};

/// The datagrams of one flush, in the order of sending.
pub(crate) struct Flush<'a> {
    datagrams: Vec<Datagram<'a>>,
    payloads: Vec<IoSlice<'a>>,
    messages: Vec<Message>,
    /// The next message.
    next: usize,
    /// One batch for each permission that the datagrams need.
    permits: Vec<usize>,
}

impl<'a> Flush<'a> {
    /// Plans the sending of everything in `taken`. `max_segment_bytes` as for [`plan`].
    pub(crate) fn of<B: AsRef<[u8]>>(taken: &'a [Queued<B>], max_segment_bytes: usize) -> Flush<'a> {
        let count = taken.iter().map(Queued::records).sum();
        let mut datagrams: Vec<Datagram<'a>> = Vec::with_capacity(count);
        let mut ranks = Ranks::new();
        let mut permits: Vec<usize> = Vec::new();
        for (batch, queued) in taken.iter().enumerate() {
            // All records of a batch are of one topic, and so of one shard.
            let Some(first) = queued.parcel.batch.get(0) else { continue };
            let shard = Shard::of(first.source).index();
            let key = queued.parcel.permit_key();
            if key.is_some() && !permits.iter().any(|&known| taken[known].parcel.permit_key() == key) {
                permits.push(batch);
            }
            datagrams.extend(queued.parcel.batch.records().map(|record| Datagram {
                payload: record.payload,
                captured_at_ns: record.captured_at_ns,
                batch: batch as u32,
                rank: ranks.next(shard),
            }));
        }
        if max_segment_bytes > 0 {
            arrange(&mut datagrams, &ranks);
        }
        let payloads: Vec<IoSlice<'a>> = datagrams.iter().map(|datagram| IoSlice::new(datagram.payload)).collect();
        let mut messages = Vec::with_capacity(count);
        plan(&payloads, 0, max_segment_bytes, &mut messages);
        Flush { datagrams, payloads, messages, next: 0, permits }
    }

    /// The next message; `None` when all are sent or given up.
    pub(crate) fn message(&self) -> Option<Message> {
        self.messages.get(self.next).copied()
    }

    /// Which of the batches the next message begins in.
    pub(crate) fn batch(&self) -> Option<usize> {
        self.message().map(|message| self.datagrams[message.first as usize].batch as usize)
    }

    /// The next messages, as many as one call sends.
    pub(crate) fn window(&self) -> ArrayVec<Outgoing<'_>, MAX_MESSAGES> {
        let upcoming = self.messages[self.next..].iter().take(MAX_MESSAGES);
        upcoming
            .map(|message| Outgoing {
                slices: &self.payloads[message.datagrams()],
                segment_bytes: message.segment_bytes,
                ..Outgoing::default()
            })
            .collect()
    }

    /// Goes past the next `count` messages, and gives their datagrams.
    pub(crate) fn advance(&mut self, count: usize) -> &[Datagram<'a>] {
        let passed = &self.messages[self.next..self.next + count];
        let range = match (passed.first(), passed.last()) {
            (Some(first), Some(last)) => first.datagrams().start..last.datagrams().end,
            _ => 0..0,
        };
        self.next += count;
        &self.datagrams[range]
    }

    /// Whether everything that is left may be sent at `now`: all of it, nothing for the moment, or not what is revoked.
    pub(crate) fn permission<B>(&self, taken: &[Queued<B>], now: u64) -> Permission {
        let mut worst = Permission::Granted;
        for &batch in &self.permits {
            match taken[batch].parcel.permission(now) {
                Permission::Granted => {}
                Permission::Lapsed => worst = Permission::Lapsed,
                Permission::Revoked => return Permission::Revoked,
            }
        }
        worst
    }

    /// Takes out what another member of the group has become responsible for, and says how many datagrams that were.
    pub(crate) fn leave_out_revoked<B>(&mut self, taken: &[Queued<B>], now: u64, max_segment_bytes: usize) -> usize {
        let is_revoked = |batch: usize| taken[batch].parcel.permission(now) == Permission::Revoked;
        self.permits.retain(|&batch| !is_revoked(batch));
        let Some(message) = self.message() else { return 0 };
        let first = message.first as usize;
        let before = self.datagrams.len();
        let left = self.datagrams.split_off(first);
        self.datagrams.clear();
        for datagram in left {
            let batch = datagram.batch as usize;
            if is_revoked(batch) {
                // What was not sent must not be committed, not even by a member that stops.
                taken[batch].parcel.leave_to_group();
            } else {
                self.datagrams.push(datagram);
            }
        }
        self.payloads.clear();
        self.payloads.extend(self.datagrams.iter().map(|datagram| IoSlice::new(datagram.payload)));
        plan(&self.payloads, 0, max_segment_bytes, &mut self.messages);
        self.next = 0;
        before - first - self.datagrams.len()
    }

    /// How many messages are left.
    pub(crate) fn messages_left(&self) -> usize {
        self.messages.len() - self.next
    }

    /// Plans what is left again, with another largest segment.
    pub(crate) fn plan_again(&mut self, max_segment_bytes: usize) {
        if let Some(message) = self.message() {
            plan(&self.payloads, message.first as usize, max_segment_bytes, &mut self.messages);
            self.next = 0;
        }
    }
}
