//! Completeness by sequence numbers: for each stream, what is missing, doubled, or late.

use std::collections::{BTreeMap, HashMap};

/// The number of a datagram. In a complete stream the next one begins `step` later: 1 where datagrams are counted, the number
/// of flows where flows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Which series the number belongs to.
    pub stream: u64,
    /// The number, from 0.
    pub sequence: u64,
    /// How many numbers the datagram takes; at least 1.
    pub step: u64,
}

/// What the numbers of all streams say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceReport {
    /// Streams seen.
    pub streams: u64,
    /// Numbers between 0 and the highest of each stream that never came. What is cut off at the end does not show.
    pub missing: u64,
    /// Datagrams whose number had come before.
    pub doubled: u64,
    /// Datagrams that came after one with a higher number.
    pub out_of_order: u64,
    /// Datagrams without a readable number.
    pub unreadable: u64,
    /// The number that would come next, by stream.
    pub next: BTreeMap<u64, u64>,
}

impl SequenceReport {
    /// True when nothing is missing, doubled or unreadable; order is another matter.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.doubled == 0 && self.unreadable == 0
    }
}

/// Takes the numbers in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    streams: HashMap<u64, Stream>,
    doubled: u64,
    out_of_order: u64,
    unreadable: u64,
}

#[derive(Debug, Default)]
struct Stream {
    /// One past the highest number that came.
    next: u64,
    /// Holes below `next`: first number and one past the last.
    holes: BTreeMap<u64, u64>,
}

impl Tracker {
    pub(super) fn take(&mut self, number: Option<Numbered>) {
        let Some(Numbered { stream, sequence, step }) = number else {
            self.unreadable += 1;
            return;
        };
        let stream = self.streams.entry(stream).or_default();
        let end = sequence.saturating_add(step.max(1));
        if sequence >= stream.next {
            if sequence > stream.next {
                stream.holes.insert(stream.next, sequence);
            }
            stream.next = end;
        } else if stream.fill(sequence, end) {
            self.out_of_order += 1;
        } else {
            self.doubled += 1;
        }
    }

    pub(super) fn report(&self) -> SequenceReport {
        let holes = self.streams.values().flat_map(|stream| &stream.holes);
        SequenceReport {
            streams: self.streams.len() as u64,
            missing: holes.map(|(first, end)| end - first).sum(),
            doubled: self.doubled,
            out_of_order: self.out_of_order,
            unreadable: self.unreadable,
            next: self.streams.iter().map(|(&name, stream)| (name, stream.next)).collect(),
        }
    }
}

impl Stream {
    /// Takes `sequence..end` out of the hole that holds all of it, or says that there is none.
    fn fill(&mut self, sequence: u64, end: u64) -> bool {
        let Some((&first, &hole_end)) = self.holes.range(..=sequence).next_back() else { return false };
        if hole_end < end {
            return false;
        }
        self.holes.remove(&first);
        if first < sequence {
            self.holes.insert(first, sequence);
        }
        if end < hole_end {
            self.holes.insert(end, hole_end);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(numbers: &[(u64, u64, u64)]) -> SequenceReport {
        let mut tracker = Tracker::default();
        for &(stream, sequence, step) in numbers {
            tracker.take(Some(Numbered { stream, sequence, step }));
        }
        tracker.report()
    }

    #[test]
    fn streams_with_steps_are_complete() {
        let report = report(&[(1, 0, 3), (2, 0, 1), (1, 3, 2), (2, 1, 1)]);
        assert!(report.is_complete());
        assert_eq!(report.next, BTreeMap::from([(1, 5), (2, 2)]));
    }

    #[test]
    fn a_lost_first_datagram_is_missing() {
        assert_eq!(report(&[(1, 2, 1)]).missing, 2);
    }

    #[test]
    fn late_ones_fill_holes_from_any_side_and_twice_is_doubled() {
        let late = report(&[(1, 10, 1), (1, 4, 2), (1, 0, 4), (1, 8, 2), (1, 6, 2)]);
        assert_eq!((late.missing, late.out_of_order, late.doubled), (0, 4, 0));
        let twice = report(&[(1, 0, 1), (1, 2, 1), (1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 0, 1)]);
        assert_eq!((twice.missing, twice.out_of_order, twice.doubled), (0, 1, 3));
    }
}
