//! Messages on their way to one endpoint, and their progress. Logic without I/O.
//!
//! ```text
//!  oldest          flying                       waiting           newest
//!  ┌──────────┬──────────┬───────────────────┐ ┌──────────┬──────────┐
//!  │ load     │ load     │ load              │ │ load     │ load     │
//!  └──────────┴──────────┴───────────────────┘ └──────────┴──────────┘
//!     └ acknowledged: done    └ given: in the connection
//! ```
//! A *load* is a batch from the queue. A *part* is one write to the connection: whole messages of
//! one or several loads, and the position of their end in the stream. When the peer's TCP has
//! acknowledged that position, the part is done. When the connection breaks, everything that is not
//! done is given to the next one, in the same order, before anything newer. A message may arrive
//! twice, but is never lost.

use std::{collections::VecDeque, ops::Range};

use sekiwake_bus::{BootTime, Permission};

use super::{
    frame::{Framing, Messages},
    suspects::Suspects,
};
use crate::queue::Queued;

/// Plaintext in a part, unless one message alone is longer: one TLS record (RFC 8446 §5.1).
pub(crate) const PART_BYTES: usize = 16 * 1024;

/// Sums of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Empty messages, which have no frame.
    pub(crate) empty: u64,
}

/// A batch and its progress, as message numbers: each field is at most the next.
struct Load<B> {
    queued: Queued<B>,
    /// The peer's TCP has acknowledged all before this one.
    acknowledged: usize,
    /// The connection was given all before this one.
    given: usize,
    /// All from this one on are given up.
    end: usize,
    /// Some connection, now or earlier, was given all before this one.
    seen: usize,
}

/// Messages that were given to the connection together.
struct Part {
    /// The position of their end in the stream.
    position: u64,
    /// The load of the last message, counted from the first one on this connection.
    load: u64,
    /// How many messages of that load were given, this part's included.
    given: usize,
    sums: Sums,
}

/// The result of [`Flight::fill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// The buffer has messages, to be given to the connection and then to [`Flight::given`].
    Part,
    /// Nothing waits.
    Nothing,
    /// The next message may not be sent at the moment.
    Lapsed,
}

/// Everything that is taken from the queue and not done.
pub(crate) struct Flight<B> {
    /// Loads that were given to the connection: completely, except perhaps the last one.
    flying: VecDeque<Load<B>>,
    /// The number of the first of them, counted from the first one on this connection.
    first: u64,
    waiting: VecDeque<Load<B>>,
    messages: Messages,
    framing: Framing,
    parts: VecDeque<Part>,
    /// Done or given up, and not yet taken out.
    done: VecDeque<Queued<B>>,
    suspects: Suspects,
    /// Filled and not yet given: the messages, and the capture times of those that were never given
    /// before.
    filled: Sums,
    captured_at_ns: Vec<u64>,
}

impl<B: AsRef<[u8]>> Flight<B> {
    pub(crate) fn new(messages: Messages, framing: Framing) -> Flight<B> {
        Flight {
            messages,
            framing,
            flying: VecDeque::new(),
            first: 0,
            waiting: VecDeque::new(),
            parts: VecDeque::new(),
            done: VecDeque::new(),
            suspects: Suspects::default(),
            filled: Sums::default(),
            captured_at_ns: Vec::new(),
        }
    }

    /// Whether everything is done.
    pub(crate) fn is_empty(&self) -> bool {
        self.flying.is_empty() && self.waiting.is_empty() && self.done.is_empty()
    }

    /// Whether something is given and not acknowledged.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.parts.is_empty()
    }

    /// How many loads are waiting completely.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The load with the oldest waiting messages.
    pub(crate) fn longest_waiting(&self) -> Option<&Queued<B>> {
        self.all_waiting().next().map(|(queued, _)| queued)
    }

    /// All loads with waiting messages, and their numbers.
    pub(crate) fn all_waiting(&self) -> impl Iterator<Item = (&Queued<B>, Range<usize>)> {
        let begun = self.flying.back().filter(|load| load.given < load.end);
        begun.into_iter().chain(&self.waiting).map(|load| (&load.queued, load.given..load.end))
    }

    /// The loads that are waiting completely, the oldest first.
    pub(crate) fn all_waiting_whole(&mut self) -> impl Iterator<Item = &mut Queued<B>> {
        self.waiting.iter_mut().map(|load| &mut load.queued)
    }

    pub(crate) fn take_in(&mut self, queued: Queued<B>) {
        let end = queued.len();
        self.waiting.push_back(Load { queued, acknowledged: 0, given: 0, end, seen: 0 });
    }

    /// Fills `out` with the next messages, at most `limit`. Those whose shard belongs to another
    /// member now are left out and added to `handed_over`.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, limit: u64, now: BootTime, handed_over: &mut u64) -> Filled {
        out.clear();
        self.filled = Sums::default();
        self.captured_at_ns.clear();
        while let Some(queued) = self.longest_waiting() {
            match queued.parcel.permission(now) {
                Permission::Granted => {}
                Permission::Lapsed if self.filled == Sums::default() => return Filled::Lapsed,
                Permission::Lapsed => return Filled::Part,
                Permission::Revoked => {
                    // Unsent records must not be committed, not even by a member that stops.
                    queued.parcel.leave_to_group();
                    *handed_over += self.give_up_waiting();
                    continue;
                }
            }
            if self.fill_from_one(out, limit) {
                return Filled::Part;
            }
        }
        if self.filled == Sums::default() { Filled::Nothing } else { Filled::Part }
    }

    /// Fills `out` with messages of the longest waiting load. `true`: it is full.
    fn fill_from_one(&mut self, out: &mut Vec<u8>, limit: u64) -> bool {
        if self.flying.back().is_none_or(|load| load.given == load.end) {
            let Some(load) = self.waiting.pop_front() else { return true };
            self.flying.push_back(load);
        }
        let Some(load) = self.flying.back_mut() else { return true };
        let Load { queued, given, end, seen, .. } = load;
        let filled = &mut self.filled;
        let captured_at_ns = &mut self.captured_at_ns;
        let framing = self.framing;
        let mut full = false;
        if given < end {
            self.messages.each(queued, *given, |payload, captured_at| {
                full = filled.messages >= limit || !out.is_empty() && out.len() + payload.len() > PART_BYTES;
                if full {
                    return false;
                }
                if framing.frame(payload, out) {
                    filled.messages += 1;
                    filled.bytes += payload.len() as u64;
                    if given >= seen {
                        captured_at_ns.push(captured_at);
                    }
                } else {
                    filled.empty += 1;
                }
                *given += 1;
                *seen = (*seen).max(*given);
                given < end
            });
        }
        if !full {
            // Corrects a batch that has fewer messages than it says.
            load.end = load.given;
        }
        full
    }

    /// The filled messages were given to the connection, and end at this position of the stream.
    /// Returns the capture times of those that were never given before, and the number of the
    /// retransmitted ones.
    pub(crate) fn given(&mut self, position: u64) -> (&[u64], u64) {
        let sums = std::mem::take(&mut self.filled);
        if let Some(last) = self.flying.back() {
            let load = self.first + self.flying.len() as u64 - 1;
            self.parts.push_back(Part { position, load, given: last.given, sums });
        }
        (&self.captured_at_ns, sums.messages - self.captured_at_ns.len() as u64)
    }

    /// The peer's TCP has acknowledged the stream up to this position. Returns the sums of the
    /// messages that it covers.
    pub(crate) fn acknowledged(&mut self, position: u64) -> Sums {
        let mut sums = Sums::default();
        while let Some(part) = self.parts.pop_front_if(|part| part.position <= position) {
            sums.messages += part.sums.messages;
            sums.bytes += part.sums.bytes;
            sums.empty += part.sums.empty;
            while self.first < part.load
                && let Some(load) = self.flying.pop_front()
            {
                self.done.push_back(load.queued);
                self.first += 1;
            }
            if let Some(load) = self.flying.front_mut() {
                load.acknowledged = part.given;
            }
            self.take_off_done();
        }
        self.suspects.survived(sums.messages);
        sums
    }

    /// The suspects among the oldest messages.
    pub(crate) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// The peer has ended the connection. Returns whether it may be because of a message here.
    pub(crate) fn suspect(&mut self) -> bool {
        let given = self.parts.iter().map(|part| part.sums.messages).sum();
        self.suspects.ended(given);
        given > 0
    }

    /// Drops the oldest waiting message. Returns it, and how many empty ones before it are done.
    pub(crate) fn reject_oldest(&mut self) -> (Option<Vec<u8>>, u64) {
        let mut oldest = None;
        let mut empty = 0;
        while oldest.is_none() {
            if self.flying.back().is_none_or(|load| load.given == load.end) {
                let Some(load) = self.waiting.pop_front() else { break };
                self.flying.push_back(load);
            }
            let Some(load) = self.flying.back_mut() else { break };
            let Load { queued, given, end, .. } = load;
            self.messages.each(queued, *given, |payload, _| {
                *given += 1;
                match self.framing.framed(payload) {
                    [] => empty += 1,
                    _ => oldest = Some(payload.to_vec()),
                }
                oldest.is_none() && given < end
            });
            if oldest.is_none() {
                load.end = load.given;
            }
            load.seen = load.seen.max(load.given);
            load.acknowledged = load.given;
            self.take_off_done();
        }
        self.suspects.removed(1);
        (oldest, empty)
    }

    /// Takes off flying loads whose messages are all acknowledged or given up.
    fn take_off_done(&mut self) {
        while let Some(load) = self.flying.pop_front_if(|load| load.acknowledged == load.end) {
            self.done.push_back(load.queued);
            self.first += 1;
        }
    }

    /// The next batch that is done or given up; each once.
    pub(crate) fn take_done(&mut self) -> Option<Queued<B>> {
        self.done.pop_front()
    }

    /// The connection is closed: unacknowledged messages wait again, before all others.
    pub(crate) fn broken(&mut self) {
        self.parts.clear();
        self.first = 0;
        while let Some(mut load) = self.flying.pop_back() {
            if load.acknowledged == load.end {
                self.done.push_back(load.queued);
            } else {
                load.given = load.acknowledged;
                self.waiting.push_front(load);
            }
        }
    }

    /// The oldest load that is not acknowledged.
    pub(crate) fn oldest_flying(&self) -> Option<&Queued<B>> {
        self.flying.front().map(|load| &load.queued)
    }

    /// All loads that end when something given is acknowledged: those with messages that are given
    /// and not acknowledged, and those behind them of which nothing waits any more.
    pub(crate) fn all_flying(&mut self) -> impl Iterator<Item = &mut Queued<B>> {
        let ends_later = |load: &&mut Load<B>| load.acknowledged < load.given || load.given == load.end;
        self.flying.iter_mut().filter(ends_later).map(|load| &mut load.queued)
    }

    /// Calls `visit` with the messages that are given and not acknowledged, as [`Messages::each`].
    pub(crate) fn each_flying(&mut self, mut visit: impl FnMut(&[u8], u64) -> bool) {
        for load in self.flying.iter().filter(|load| load.acknowledged < load.given) {
            let mut left = load.given - load.acknowledged;
            self.messages.each(&load.queued, load.acknowledged, |payload, captured_at_ns| {
                left = left.saturating_sub(1);
                visit(payload, captured_at_ns) && left > 0
            });
        }
    }

    /// Counts given, unacknowledged messages as done, although they may not arrive: none of them is
    /// given again, and its acknowledgement is ignored. Returns its sums. Other messages wait as
    /// before.
    pub(crate) fn forget_flying(&mut self) -> Sums {
        let mut sums = Sums::default();
        for part in self.parts.drain(..) {
            sums.messages += part.sums.messages;
            sums.bytes += part.sums.bytes;
            sums.empty += part.sums.empty;
        }
        while let Some(mut load) = self.flying.pop_back() {
            if load.given < load.end {
                load.acknowledged = load.given;
                self.waiting.push_front(load);
            } else {
                self.done.push_back(load.queued);
            }
        }
        sums
    }

    /// Calls `visit` with the waiting messages of the first `loads` waiting loads, as
    /// [`Messages::each`].
    pub(crate) fn each_waiting(&mut self, loads: usize, mut visit: impl FnMut(&[u8], u64) -> bool) {
        let begun = self.flying.back().filter(|load| load.given < load.end);
        for load in begun.into_iter().chain(&self.waiting).take(loads) {
            let mut left = load.end - load.given;
            self.messages.each(&load.queued, load.given, |payload, captured_at_ns| {
                left = left.saturating_sub(1);
                visit(payload, captured_at_ns) && left > 0
            });
        }
    }

    /// Gives up the waiting messages of the longest waiting load, and returns how many there were.
    pub(crate) fn give_up_waiting(&mut self) -> u64 {
        if let Some(begun) = self.flying.back_mut().filter(|load| load.given < load.end) {
            let left = begun.end - begun.given;
            begun.end = begun.given;
            self.suspects.removed(left as u64);
            self.take_off_done();
            return left as u64;
        }
        let Some(load) = self.waiting.pop_front() else { return 0 };
        let left = (load.end - load.given) as u64;
        self.suspects.removed(left);
        self.done.push_back(load.queued);
        left
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use prometheus::IntGauge;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        queue::{Waited, queue},
        routing::selection::Selection,
        testing::batch,
    };

    /// Batches of these payloads, as taken from a queue.
    fn queued(batches: &[Vec<Vec<u8>>]) -> Vec<Queued<Vec<u8>>> {
        let gauge = || IntGauge::new("gauge", "gauge").unwrap();
        let (mut intake, outlet) = queue(gauge(), gauge());
        let take = |payloads: &Vec<Vec<u8>>| {
            let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
            assert!(intake.offer(&batch(&payloads), Selection::All, Instant::now()));
            assert_eq!(intake.flush(), 0);
            match outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => queued,
                _ => panic!("nothing is queued"),
            }
        };
        batches.iter().map(take).collect()
    }

    /// The messages of a stream of frames whose end may be cut off.
    fn messages(mut stream: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(space) = stream.iter().position(|&byte| byte == b' ') {
            let length: usize = std::str::from_utf8(&stream[..space]).unwrap().parse().unwrap();
            let Some(message) = stream.get(space + 1..space + 1 + length) else { break };
            messages.push(message.to_vec());
            stream = &stream[space + 1 + length..];
        }
        messages
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        Give,
        /// This many thousandths of the data that is given and not acknowledged.
        Acknowledge(u64),
        Break,
        GiveUp,
        /// Of the oldest message, when nothing is given.
        Reject,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            3 => Just(Step::Give),
            3 => (0..=1000u64).prop_map(Step::Acknowledge),
            1 => Just(Step::Break),
            1 => Just(Step::GiveUp),
            1 => Just(Step::Reject),
        ]
    }

    /// A part ended before the first message of the second batch, which is then given up.
    #[test]
    fn batch_given_up_behind_a_part_that_is_never_acknowledged_can_be_detached() {
        let mut flight = Flight::new(Messages::default(), Framing::OctetCounting);
        for queued in queued(&[vec![vec![b'x'; PART_BYTES]], vec![vec![b'y'; 100]]]) {
            flight.take_in(queued);
        }
        let mut out = Vec::new();
        assert_eq!(flight.fill(&mut out, u64::MAX, BootTime::ZERO, &mut 0), Filled::Part);
        flight.given(out.len() as u64);
        assert_eq!((flight.waiting(), flight.all_flying().count()), (0, 1), "the second batch is begun, and waits");
        assert_eq!(flight.give_up_waiting(), 1);
        assert!(flight.take_done().is_none(), "it is done after the first one");
        assert_eq!(flight.all_flying().count(), 2);
    }

    proptest! {
        /// In any order of events: every message is acknowledged, empty or given up, once; every
        /// batch is done, once; and everything acknowledged on any connection arrived in order.
        #[test]
        fn every_message_is_accounted_for_once(
            sizes in prop::collection::vec(prop::collection::vec(0..9000usize, 1..12), 1..12),
            steps in prop::collection::vec(step(), 0..120),
            limit in prop_oneof![1..4u64, Just(u64::MAX)],
        ) {
            let mut number = 0u32;
            let batches: Vec<Vec<Vec<u8>>> = sizes.iter().map(|sizes| sizes.iter().map(|&size| {
                number += 1;
                let mut payload = vec![b'x'; size];
                number.to_be_bytes().iter().zip(&mut payload).for_each(|(from, to)| *to = *from);
                payload
            }).collect()).collect();
            let all: Vec<Vec<u8>> = batches.iter().flatten().filter(|payload| payload.len() >= 4).cloned().collect();
            let mut upcoming = queued(&batches).into_iter();
            let mut flight = Flight::new(Messages::default(), Framing::OctetCounting);
            let mut stream = Vec::new();
            let mut acknowledged = 0usize;
            let mut arrived = Vec::new();
            let mut sums = Sums::default();
            let mut given_up = 0;
            let mut done = 0;
            let mut retransmitted = 0;
            let mut out = Vec::new();
            let end = [Step::Break].into_iter().chain(std::iter::repeat_n([Step::Take, Step::Give, Step::Acknowledge(1000)], 300).flatten());
            for step in steps.into_iter().chain(end) {
                match step {
                    Step::Take => upcoming.next().into_iter().for_each(|queued| flight.take_in(queued)),
                    Step::Give => if flight.fill(&mut out, limit, BootTime::ZERO, &mut 0) == Filled::Part {
                        stream.extend_from_slice(&out);
                        retransmitted += flight.given(stream.len() as u64).1;
                    },
                    Step::Acknowledge(thousandths) => {
                        acknowledged += ((stream.len() - acknowledged) as u64 * thousandths / 1000) as usize;
                        let more = flight.acknowledged(acknowledged as u64);
                        sums = Sums {
                            messages: sums.messages + more.messages,
                            bytes: sums.bytes + more.bytes,
                            empty: sums.empty + more.empty,
                        };
                    }
                    Step::Break => {
                        flight.broken();
                        arrived.extend(messages(&stream[..acknowledged]));
                        (stream, acknowledged) = (Vec::new(), 0);
                    }
                    Step::GiveUp => given_up += flight.give_up_waiting(),
                    Step::Reject if flight.awaits_acknowledgement() => {}
                    Step::Reject => {
                        let (oldest, empty) = flight.reject_oldest();
                        given_up += u64::from(oldest.is_some()) + empty;
                    }
                }
                while flight.take_done().is_some() {
                    done += 1;
                }
            }
            arrived.extend(messages(&stream[..acknowledged]));
            prop_assert!(flight.is_empty());
            prop_assert_eq!(done, batches.len());
            prop_assert_eq!(sums.messages + sums.empty + given_up, u64::from(number));
            prop_assert!(arrived.len() as u64 >= sums.messages);
            if given_up == 0 {
                prop_assert!(arrived.len() as u64 <= sums.messages + retransmitted);
                // Without retransmitted ones, each message follows its predecessor.
                let mut next = 0;
                for message in arrived.iter().filter(|message| message.len() >= 4) {
                    if all.get(next) == Some(message) {
                        next += 1;
                    } else {
                        prop_assert!(all[..next].contains(message), "message {} is missing", next);
                    }
                }
                prop_assert_eq!(next, all.len());
            }
        }
    }
}
