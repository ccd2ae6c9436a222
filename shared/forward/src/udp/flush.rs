//! The datagrams of the batches that were taken from the queue together, and how many of them are
//! sent.

use std::{io::IoSlice, net::SocketAddr};

use arrayvec::ArrayVec;
use sekiwake_bus::{BootTime, Permission};
use sekiwake_record::{Kind, Shard};
use sekiwake_sys::{MAX_MESSAGES, Outgoing};

use super::plan::{Datagram, Message, Ranks, arrange, plan};
use crate::{
    config::destination::{Dscp, Options},
    queue::Queued,
    rewrite::{Rewriting, Rewritten, must_not_be_spoofed},
    spoof::Spoofed,
};

/// Maximum number of datagrams in the window of a spoofing sender.
const SPOOFED_WINDOW: usize = 256;

/// The options of a destination that concern single datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatagramOptions {
    /// Whether runs may leave as one message.
    pub(crate) segmentation: bool,
    pub(crate) dscp: Dscp,
    pub(crate) spoof: bool,
    /// Encrypted SNMPv3 messages that may be informs are spoofed as well.
    pub(crate) encrypted_are_traps: bool,
    /// `None`: payloads are sent unmodified.
    pub(crate) rewriting: Option<Rewriting>,
}

impl DatagramOptions {
    pub(crate) fn of(kind: Kind, options: &Options) -> DatagramOptions {
        DatagramOptions {
            segmentation: options.segmentation,
            dscp: options.dscp,
            spoof: options.spoof,
            encrypted_are_traps: options.encrypted_are_traps,
            rewriting: Rewriting::of(kind, options.add_source),
        }
    }

    pub(crate) fn tos(&self, dscp_ttl: u16) -> Option<u8> {
        match self.dscp {
            Dscp::System => None,
            Dscp::Copy => Some(((dscp_ttl >> 8) as u8 & 0x3f) << 2),
            Dscp::Fixed(dscp) => Some(dscp << 2),
        }
    }
}

/// The datagrams of one flush, in the order of options.
pub(crate) struct Flush<'a> {
    datagrams: Vec<Datagram<'a>>,
    payloads: Vec<IoSlice<'a>>,
    /// The devices, by the index of the datagram; empty when nothing is spoofed.
    sources: Vec<SocketAddr>,
    messages: Vec<Message>,
    /// The next message.
    next: usize,
    /// One batch per permission that the datagrams need.
    permits: Vec<usize>,
}

/// A datagram that has not been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsent {
    /// The index of its batch.
    pub(crate) batch: usize,
    /// Its position among the batch's records for this destination.
    pub(crate) position: usize,
}

impl<'a> Flush<'a> {
    /// Plans messages for everything in `taken`. `max_segment_bytes` as for [`plan`].
    pub(crate) fn of<B: AsRef<[u8]>>(
        taken: &'a [Queued<B>],
        rewritten: &'a Rewritten,
        options: &DatagramOptions,
        max_segment_bytes: usize,
    ) -> Flush<'a> {
        let count = taken.iter().map(Queued::len).sum();
        let mut datagrams: Vec<Datagram<'a>> = Vec::with_capacity(count);
        let mut sources = Vec::with_capacity(if options.spoof { count } else { 0 });
        let mut ranks = Ranks::new();
        let mut permits: Vec<usize> = Vec::new();
        for (batch, queued) in taken.iter().enumerate() {
            // All records of a batch from the bus have one topic, and so one shard. Others, as
            // those of a replay, have any.
            let Some(first) = queued.parcel.batch.get(0) else { continue };
            let shard = queued.parcel.has_ack_token().then(|| Shard::of(first.source));
            let key = queued.parcel.permit_key();
            if key.is_some() && !permits.iter().any(|&known| taken[known].parcel.permit_key() == key) {
                permits.push(batch);
            }
            for record in queued.selected() {
                if options.spoof {
                    sources.push(SocketAddr::new(record.source.to_canonical(), record.source_port));
                }
                let index = datagrams.len();
                datagrams.push(Datagram {
                    payload: rewritten.payload(index, record.payload),
                    captured_at_ns: record.captured_at_ns,
                    batch: batch as u32,
                    rank: ranks.next(shard.unwrap_or_else(|| Shard::of(record.source)).index()),
                    tos: options.tos(record.dscp_ttl),
                    unspoofable: options.spoof && must_not_be_spoofed(&record, options.encrypted_are_traps),
                    is_synthetic: queued.parcel.is_synthetic(),
                    index: index as u32,
                });
            }
        }
        if options.spoof {
            // Makes runs of one source. The sort is stable, so a source keeps its order, whatever
            // ports it sends from.
            datagrams.sort_by_key(|datagram| sources[datagram.index as usize].ip());
        } else if max_segment_bytes > 0 {
            arrange(&mut datagrams, &ranks);
        }
        let payloads: Vec<IoSlice<'a>> = datagrams.iter().map(|datagram| IoSlice::new(datagram.payload)).collect();
        let mut messages = Vec::with_capacity(count);
        plan(&datagrams, 0, max_segment_bytes, &mut messages);
        Flush { datagrams, payloads, sources, messages, next: 0, permits }
    }

    /// The next message; `None` once all are sent or given up.
    pub(crate) fn message(&self) -> Option<Message> {
        self.messages.get(self.next).copied()
    }

    /// Which of the batches the next message begins in.
    pub(crate) fn batch(&self) -> Option<usize> {
        self.message().map(|message| self.datagrams[message.first as usize].batch as usize)
    }

    /// The next messages, as many as one system call takes.
    pub(crate) fn window(&self) -> ArrayVec<Outgoing<'_>, MAX_MESSAGES> {
        let upcoming = self.messages[self.next..].iter().take(MAX_MESSAGES);
        upcoming
            .map(|message| Outgoing {
                slices: &self.payloads[message.datagrams()],
                segment_bytes: message.segment_bytes,
                tos: self.datagrams[message.first as usize].tos,
                ..Outgoing::default()
            })
            .collect()
    }

    /// The next datagrams with their sources, for a sender that plans its own messages: here each
    /// datagram is one message.
    pub(crate) fn spoofed_window(&self) -> ArrayVec<Spoofed<'_>, SPOOFED_WINDOW> {
        let upcoming = self.messages[self.next..].iter().take(SPOOFED_WINDOW);
        upcoming
            .map(|message| {
                let datagram = &self.datagrams[message.first as usize];
                Spoofed {
                    source: self.sources[datagram.index as usize],
                    payload: datagram.payload,
                    tos: datagram.tos,
                    own_address: datagram.unspoofable,
                }
            })
            .collect()
    }

    /// Skips the next `count` messages, and gives their datagrams.
    pub(crate) fn advance(&mut self, count: usize) -> &[Datagram<'a>] {
        let passed = &self.messages[self.next..self.next + count];
        let range = match (passed.first(), passed.last()) {
            (Some(first), Some(last)) => first.datagrams().start..last.datagrams().end,
            _ => 0..0,
        };
        self.next += count;
        &self.datagrams[range]
    }

    /// Whether the remaining datagrams may be sent at `now`: all, none for the moment, or all but
    /// those of revoked batches.
    pub(crate) fn permission<B>(&self, taken: &[Queued<B>], now: BootTime) -> Permission {
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

    /// Takes out the datagrams whose shard belongs to another member of the group now, and returns
    /// how many there were.
    pub(crate) fn leave_out_revoked<B>(
        &mut self,
        taken: &[Queued<B>],
        now: BootTime,
        max_segment_bytes: usize,
    ) -> usize {
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
                // Unsent records must not be committed, not even by a member that stops.
                taken[batch].parcel.leave_to_group();
            } else {
                self.datagrams.push(datagram);
            }
        }
        self.payloads.clear();
        self.payloads.extend(self.datagrams.iter().map(|datagram| IoSlice::new(datagram.payload)));
        plan(&self.datagrams, 0, max_segment_bytes, &mut self.messages);
        self.next = 0;
        before - first - self.datagrams.len()
    }

    /// The datagrams of the messages that are left. Nothing has been left out of the flush.
    pub(crate) fn unsent<B>(&self, taken: &[Queued<B>]) -> Vec<Unsent> {
        let Some(message) = self.message() else { return Vec::new() };
        let mut starts = Vec::with_capacity(taken.len());
        let mut start = 0;
        for queued in taken {
            starts.push(start);
            start += queued.len();
        }
        let left = self.datagrams[message.first as usize..].iter();
        left.map(|datagram| {
            let batch = datagram.batch as usize;
            Unsent { batch, position: datagram.index as usize - starts[batch] }
        })
        .collect()
    }

    /// How many messages are left.
    pub(crate) fn messages_left(&self) -> usize {
        self.messages.len() - self.next
    }

    /// Plans the remaining datagrams again with another segment limit.
    pub(crate) fn plan_again(&mut self, max_segment_bytes: usize) {
        if let Some(message) = self.message() {
            plan(&self.datagrams, message.first as usize, max_segment_bytes, &mut self.messages);
            self.next = 0;
        }
    }
}
