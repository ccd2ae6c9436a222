//! What is on its way to one destination, and how far it has come. Logic without I/O.
//!
//! ```text
//!  oldest          flying                       waiting           newest
//!  ┌──────────┬──────────┬───────────────────┐ ┌──────────┬──────────┐
//!  │ load     │ load     │ load              │ │ load     │ load     │     a load is a batch from the queue
//!  └──────────┴──────────┴───────────────────┘ └──────────┴──────────┘
//!     └ acknowledged: done    └ given: in the connection
//! ```
//! A *part* is what is given to the connection in one go: whole messages of one or several loads, and where in the stream they end.
//! When the peer's TCP has acknowledged the stream up to there, the part is done; when the connection breaks, everything that is
//! not done is given to the next one again, in the same order, before anything newer. A message may arrive twice, never not at all.

use std::{collections::VecDeque, ops::Range};

use sekiwake_bus::Permission;

use super::frame::{Messages, frame};
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

/// A batch, and how far it has come: message numbers within it, each of them at most the next.
struct Load<B> {
    queued: Queued<B>,
    /// The peer's TCP has all before this one.
    acknowledged: usize,
    /// The connection was given all before this one.
    given: usize,
    /// All from this one on were given up.
    end: usize,
    /// Some connection was given all before this one.
    seen: usize,
}

/// Messages that were given together.
struct Part {
    /// Where in the stream they end.
    position: u64,
    /// The load that the last message is of, counted from the first that flew on this connection.
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
    /// Loads of which the connection was given something; all of it, except perhaps of the last one.
    flying: VecDeque<Load<B>>,
    /// The number of the first of them, counted from the first that flew on this connection.
    first: u64,
    waiting: VecDeque<Load<B>>,
    messages: Messages,
    parts: VecDeque<Part>,
    /// What is done or given up, and not yet taken out.
    done: VecDeque<Queued<B>>,
    /// What was filled and is not yet given: its messages, and when each was captured that was never given before.
    filled: Sums,
    captured_at_ns: Vec<u64>,
}

impl<B: AsRef<[u8]>> Flight<B> {
    pub(crate) fn new(messages: Messages) -> Flight<B> {
        Flight {
            messages,
            flying: VecDeque::new(),
            first: 0,
            waiting: VecDeque::new(),
            parts: VecDeque::new(),
            done: VecDeque::new(),
            filled: Sums::default(),
            captured_at_ns: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flying.is_empty() && self.waiting.is_empty() && self.done.is_empty()
    }

    /// Whether something was given and is not acknowledged.
    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.parts.is_empty()
    }

    /// How many loads wait of which nothing was given.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The load that has waited longest for messages of it to be given.
    pub(crate) fn longest_waiting(&self) -> Option<&Queued<B>> {
        self.all_waiting().next().map(|(queued, _)| queued)
    }

    /// All loads with messages that were not given, and which those are.
    pub(crate) fn all_waiting(&self) -> impl Iterator<Item = (&Queued<B>, Range<usize>)> {
        let begun = self.flying.back().filter(|load| load.given < load.end);
        begun.into_iter().chain(&self.waiting).map(|load| (&load.queued, load.given..load.end))
    }

    pub(crate) fn take_in(&mut self, queued: Queued<B>) {
        let end = queued.len();
        self.waiting.push_back(Load { queued, acknowledged: 0, given: 0, end, seen: 0 });
    }

    /// Fills `out` with the next messages. What another member has become responsible for is left out, and their number is added
    /// to `handed_over`.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, now: u64, handed_over: &mut u64) -> Filled {
        out.clear();
        self.filled = Sums::default();
        self.captured_at_ns.clear();
        while let Some(queued) = self.longest_waiting() {
            match queued.parcel.permission(now) {
                Permission::Granted => {}
                Permission::Lapsed if self.filled == Sums::default() => return Filled::Lapsed,
                Permission::Lapsed => return Filled::Part,
                Permission::Revoked => {
                    // What was not sent must not be committed, not even by a member that stops.
                    queued.parcel.leave_to_group();
                    *handed_over += self.give_up_waiting();
                    continue;
                }
            }
            if self.fill_from_one(out) {
                return Filled::Part;
            }
        }
        if self.filled == Sums::default() { Filled::Nothing } else { Filled::Part }
    }

    /// Fills `out` with messages of the load that has waited longest. `true`: it is full.
    fn fill_from_one(&mut self, out: &mut Vec<u8>) -> bool {
        if self.flying.back().is_none_or(|load| load.given == load.end) {
            let Some(load) = self.waiting.pop_front() else { return true };
            self.flying.push_back(load);
        }
        let Some(load) = self.flying.back_mut() else { return true };
        let Load { queued, given, end, seen, .. } = load;
        let (filled, captured_at_ns, mut full) = (&mut self.filled, &mut self.captured_at_ns, false);
        if given < end {
            self.messages.each(queued, *given, |payload, captured_at| {
                full = !out.is_empty() && out.len() + payload.len() > PART_BYTES;
                if full {
                    return false;
                }
                if frame(payload, out) {
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
            // There are as many messages as the batch says.
            load.end = load.given;
        }
        full
    }

    /// What was filled was given to the connection and ends at this position of the stream. Gives the capture times of those
    /// messages that were never given before, and how many the others are.
    pub(crate) fn given(&mut self, position: u64) -> (&[u64], u64) {
        let sums = std::mem::take(&mut self.filled);
        if let Some(last) = self.flying.back() {
            let load = self.first + self.flying.len() as u64 - 1;
            self.parts.push_back(Part { position, load, given: last.given, sums });
        }
        (&self.captured_at_ns, sums.messages - self.captured_at_ns.len() as u64)
    }

    /// The peer's TCP has the stream up to this position. Gives what is acknowledged by that.
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
        sums
    }

    /// The oldest flying load is done when all that is wanted of it is acknowledged.
    fn take_off_done(&mut self) {
        while let Some(load) = self.flying.pop_front_if(|load| load.acknowledged == load.end) {
            self.done.push_back(load.queued);
            self.first += 1;
        }
    }

    /// A batch that is done or was given up, each once.
    pub(crate) fn take_done(&mut self) -> Option<Queued<B>> {
        self.done.pop_front()
    }

    /// The connection is gone: what is not acknowledged waits again, before everything that waits already.
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

    /// Shows `heed` the messages that were not given, of the first `loads` loads that wait, as [`Messages::each`] does.
    pub(crate) fn each_waiting(&mut self, loads: usize, mut heed: impl FnMut(&[u8], u64) -> bool) {
        let begun = self.flying.back().filter(|load| load.given < load.end);
        for load in begun.into_iter().chain(&self.waiting).take(loads) {
            let mut left = load.end - load.given;
            self.messages.each(&load.queued, load.given, |payload, captured_at_ns| {
                left = left.saturating_sub(1);
                heed(payload, captured_at_ns) && left > 0
            });
        }
    }

    /// Gives up what was not given of the load that has waited longest, and says how many messages that are.
    pub(crate) fn give_up_waiting(&mut self) -> u64 {
        if let Some(begun) = self.flying.back_mut().filter(|load| load.given < load.end) {
            let left = begun.end - begun.given;
            begun.end = begun.given;
            self.take_off_done();
            return left as u64;
        }
        let Some(load) = self.waiting.pop_front() else { return 0 };
        self.done.push_back(load.queued);
        (load.end - load.given) as u64
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
        selection::Selection,
        testing::batch,
    };

    /// Batches of these payloads, as the queue hands them out.
    fn queued(batches: &[Vec<Vec<u8>>]) -> Vec<Queued<Vec<u8>>> {
        let gauge = || IntGauge::new("gauge", "gauge").unwrap();
        let (intake, outlet) = queue(gauge(), gauge());
        let take = |payloads: &Vec<Vec<u8>>| {
            let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
            assert!(intake.offer(&batch(&payloads), Selection::All, Instant::now()));
            match outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => queued,
                _ => panic!("nothing is queued"),
            }
        };
        batches.iter().map(take).collect()
    }

    /// The messages of a stream of frames that may be cut off at its end.
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
        /// So many thousandths of what was given and not acknowledged.
        Acknowledge(u64),
        Break,
        GiveUp,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Take),
            3 => Just(Step::Give),
            3 => (0..=1000u64).prop_map(Step::Acknowledge),
            1 => Just(Step::Break),
            1 => Just(Step::GiveUp),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: every message is acknowledged, empty or given up, once; every batch is done, once;
        /// and what arrived on all connections, up to what was acknowledged on each, is everything in order.
        #[test]
        fn nothing_is_missing_and_everything_is_accounted_for(
            sizes in prop::collection::vec(prop::collection::vec(0..9000usize, 1..12), 1..12),
            steps in prop::collection::vec(step(), 0..120),
        ) {
            let mut number = 0u32;
            let batches: Vec<Vec<Vec<u8>>> = sizes.iter().map(|sizes| sizes.iter().map(|&size| {
                number += 1;
                let mut payload = vec![b'x'; size];
                number.to_be_bytes().iter().zip(&mut payload).for_each(|(from, to)| *to = *from);
                payload
            }).collect()).collect();
            let all: Vec<Vec<u8>> = batches.iter().flatten().filter(|payload| payload.len() >= 4).cloned().collect();
            let (mut upcoming, mut flight) = (queued(&batches).into_iter(), Flight::new(Messages::default()));
            let (mut stream, mut acknowledged, mut arrived) = (Vec::new(), 0usize, Vec::new());
            let (mut sums, mut given_up, mut done, mut repeated) = (Sums::default(), 0, 0, 0);
            let mut out = Vec::new();
            let end = [Step::Break].into_iter().chain(std::iter::repeat_n([Step::Take, Step::Give, Step::Acknowledge(1000)], 300).flatten());
            for step in steps.into_iter().chain(end) {
                match step {
                    Step::Take => upcoming.next().into_iter().for_each(|queued| flight.take_in(queued)),
                    Step::Give => if flight.fill(&mut out, 0, &mut 0) == Filled::Part {
                        stream.extend_from_slice(&out);
                        repeated += flight.given(stream.len() as u64).1;
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
                prop_assert!(arrived.len() as u64 <= sums.messages + repeated);
                // Without those that came again: one message follows the other.
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
