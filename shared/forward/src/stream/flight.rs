//! What is on its way to one destination, and how far it has come. Logic without I/O.
//!
//! ```text
//!  oldest                                                                newest
//!  ┌──────────┬──────────┬───────────────────┬──────────┬──────────┐
//!  │ load     │ load     │ load              │ load     │ load     │     a load is a batch from the queue
//!  └──────────┴──────────┴───────────────────┴──────────┴──────────┘
//!     └ acknowledged: done    └ given: in the connection      └ end: what is wanted of it; the rest was given up
//! ```
//! A *part* is what is given to the connection in one go: whole messages of one or several loads, and where in the stream they end.
//! When the peer's TCP has acknowledged the stream up to there, the part is done; when the connection breaks, everything that is
//! not done is given to the next one again, in the same order, before anything newer. A message may arrive twice, never not at all.

use std::{collections::VecDeque, ops::Range};

use sekiwake_bus::Permission;

use super::frame::{count, frame, message};
use crate::queue::Queued;

/// Plaintext in a part, unless one message alone is longer: one TLS record (RFC 8446 §5.1).
pub(crate) const PART_BYTES: usize = 16 * 1024;

/// Sums of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Messages without a byte, which have no frame.
    pub(crate) empty: u64,
}

/// A batch, and how far it has come.
pub(crate) struct Load<B> {
    pub(crate) queued: Queued<B>,
    acknowledged: usize,
    given: usize,
    end: usize,
}

impl<B: AsRef<[u8]>> Load<B> {
    fn is_done(&self) -> bool {
        self.acknowledged == self.end
    }
}

/// Messages that were given together.
struct Part {
    /// Where in the stream they end.
    position: u64,
    /// The load that the last message is of, counted from the first load there ever was.
    load: u64,
    /// How many messages of that load were given, this part's among them.
    given: usize,
    sums: Sums,
}

/// What [`Flight::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Messages are in the buffer: to be given to the connection, and then [`Flight::given`].
    Part,
    /// Nothing waits.
    Nothing,
    /// What comes next may not be sent for the moment.
    Lapsed,
}

/// Everything that was taken from the queue and is not done.
pub(crate) struct Flight<B> {
    loads: VecDeque<Load<B>>,
    /// The number of the first of them, counted from the first there ever was.
    first: u64,
    /// The first of them that has messages which were not given; their number, if none has.
    next: usize,
    parts: VecDeque<Part>,
    /// What was filled and is not yet given: its messages, and when each was captured if it is given for the first time.
    filled: Sums,
    captured_at_ns: Vec<u64>,
    /// Messages before this load were given to a connection before.
    fresh_from: (u64, usize),
}

impl<B: AsRef<[u8]>> Flight<B> {
    pub(crate) fn new() -> Flight<B> {
        Flight {
            loads: VecDeque::new(),
            first: 0,
            next: 0,
            parts: VecDeque::new(),
            filled: Sums::default(),
            captured_at_ns: Vec::new(),
            fresh_from: (0, 0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// Whether something was given and is not done.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.parts.is_empty()
    }

    /// How many loads have messages that were not given.
    pub(crate) fn waiting(&self) -> usize {
        self.loads.len() - self.next
    }

    /// The load that has waited longest to be given.
    pub(crate) fn longest_waiting(&self) -> Option<&Queued<B>> {
        self.loads.get(self.next).map(|load| &load.queued)
    }

    pub(crate) fn take_in(&mut self, queued: Queued<B>) {
        let end = count(&queued);
        self.loads.push_back(Load { queued, acknowledged: 0, given: 0, end });
    }

    /// Fills `out` with the next messages. What another member has become responsible for is left out, and their number is added
    /// to `handed_over`.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, now: u64, handed_over: &mut u64) -> Filled {
        out.clear();
        self.filled = Sums::default();
        self.captured_at_ns.clear();
        while let Some(load) = self.loads.get_mut(self.next) {
            match load.queued.parcel.permission(now) {
                Permission::Granted => {}
                Permission::Lapsed if self.filled == Sums::default() => return Filled::Lapsed,
                Permission::Lapsed => return Filled::Part,
                Permission::Revoked => {
                    // What was not sent must not be committed, not even by a member that stops.
                    load.queued.parcel.leave_to_group();
                    *handed_over += (load.end - load.given) as u64;
                    load.end = load.given;
                }
            }
            let number = self.first + self.next as u64;
            while load.given < load.end {
                let Some(message) = message(&load.queued, load.given) else {
                    load.end = load.given;
                    break;
                };
                if !out.is_empty() && out.len() + message.payload.len() > PART_BYTES {
                    return Filled::Part;
                }
                if frame(message.payload, out) {
                    self.filled.messages += 1;
                    self.filled.bytes += message.payload.len() as u64;
                    if (number, load.given) >= self.fresh_from {
                        self.captured_at_ns.push(message.captured_at_ns);
                    }
                } else {
                    self.filled.empty += 1;
                }
                load.given += 1;
            }
            self.next += 1;
        }
        if self.filled == Sums::default() { Filled::Nothing } else { Filled::Part }
    }

    /// What was filled was given to the connection and ends at this position of the stream. Gives the capture times of those
    /// messages that were never given before, and how many the others are.
    pub(crate) fn given(&mut self, position: u64) -> (&[u64], u64) {
        let (index, given) = match self.loads.get(self.next) {
            Some(load) if load.given > 0 => (self.next, load.given),
            _ => match self.next.checked_sub(1).and_then(|index| Some((index, self.loads.get(index)?.given))) {
                Some(place) => place,
                None => return (&[], 0),
            },
        };
        let load = self.first + index as u64;
        self.parts.push_back(Part { position, load, given, sums: self.filled });
        self.fresh_from = self.fresh_from.max((load, given));
        let repeated = self.filled.messages - self.captured_at_ns.len() as u64;
        self.filled = Sums::default();
        (&self.captured_at_ns, repeated)
    }

    /// The peer's TCP has the stream up to this position. Gives what is done by that.
    pub(crate) fn acknowledged(&mut self, position: u64) -> Sums {
        let mut sums = Sums::default();
        while let Some(part) = self.parts.front()
            && part.position <= position
        {
            sums.messages += part.sums.messages;
            sums.bytes += part.sums.bytes;
            sums.empty += part.sums.empty;
            let index = part.load.saturating_sub(self.first) as usize;
            for load in self.loads.iter_mut().take(index) {
                load.acknowledged = load.given;
            }
            if let Some(load) = self.loads.get_mut(index) {
                load.acknowledged = part.given;
            }
            self.parts.pop_front();
        }
        sums
    }

    /// Takes out the oldest load, if everything that is wanted of it is done.
    pub(crate) fn take_done(&mut self) -> Option<Queued<B>> {
        self.loads.front().filter(|load| load.is_done())?;
        self.take_front()
    }

    /// The connection is gone: what is not done is given again from now on.
    pub(crate) fn broken(&mut self) {
        self.parts.clear();
        self.next = 0;
        for load in &mut self.loads {
            load.given = load.acknowledged;
        }
    }

    /// Gives up what was not given of the load that has waited longest to be given, and says how many messages that are.
    pub(crate) fn give_up_waiting(&mut self) -> u64 {
        let Some(load) = self.loads.get_mut(self.next) else { return 0 };
        let left = load.end - load.given;
        load.end = load.given;
        self.next += 1;
        left as u64
    }

    /// All loads with messages that were not given, and which those are.
    pub(crate) fn all_waiting(&self) -> impl Iterator<Item = (&Queued<B>, Range<usize>)> {
        self.loads.iter().skip(self.next).map(|load| (&load.queued, load.given..load.end))
    }

    fn take_front(&mut self) -> Option<Queued<B>> {
        let load = self.loads.pop_front()?;
        self.first += 1;
        self.next = self.next.saturating_sub(1);
        Some(load.queued)
    }
}
