//! Completeness by sequence numbers: missing, duplicate and late datagrams of each stream.

use std::collections::{BTreeMap, HashMap};

/// The number of a datagram. In a complete stream the next datagram's number is greater by `step`:
/// 1 where datagrams are counted, the number of flows where flows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// The series to which the number belongs.
    pub stream: u64,
    /// The number, from 0.
    pub sequence: u64,
    /// Count of numbers that the datagram uses, at least 1.
    pub step: u64,
}

/// The result for all streams together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceReport {
    /// Streams seen.
    pub streams: u64,
    /// Numbers between 0 and the highest of each stream that did not arrive. Numbers missing at the
    /// end of a stream are not known.
    pub missing: u64,
    /// Datagrams whose number had arrived before.
    pub duplicates: u64,
    /// Datagrams that arrived after one with a higher number.
    pub out_of_order: u64,
    /// Datagrams without a readable number.
    pub unreadable: u64,
    /// The expected next number, by stream.
    pub next: BTreeMap<u64, u64>,
}

impl SequenceReport {
    /// True when no datagram is missing, duplicate or unreadable, in any order.
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.duplicates == 0 && self.unreadable == 0
    }
}

/// Checks numbers in their order of arrival.
#[derive(Debug, Default)]
pub(super) struct SequenceCheck {
    streams: HashMap<u64, Stream>,
    duplicates: u64,
    out_of_order: u64,
    unreadable: u64,
}

#[derive(Debug, Default)]
struct Stream {
    /// One past the highest number that arrived.
    next: u64,
    /// Gaps below `next`: first number and one past the last.
    gaps: BTreeMap<u64, u64>,
}

impl SequenceCheck {
    pub(super) fn take(&mut self, number: Option<Numbered>) {
        let Some(Numbered { stream, sequence, step }) = number else {
            self.unreadable += 1;
            return;
        };
        let stream = self.streams.entry(stream).or_default();
        let end = sequence.saturating_add(step.max(1));
        if sequence >= stream.next {
            if sequence > stream.next {
                stream.gaps.insert(stream.next, sequence);
            }
            stream.next = end;
        } else if stream.fill(sequence, end) {
            self.out_of_order += 1;
        } else {
            self.duplicates += 1;
        }
    }

    pub(super) fn report(&self) -> SequenceReport {
        let gaps = self.streams.values().flat_map(|stream| &stream.gaps);
        SequenceReport {
            streams: self.streams.len() as u64,
            missing: gaps.map(|(first, end)| end - first).sum(),
            duplicates: self.duplicates,
            out_of_order: self.out_of_order,
            unreadable: self.unreadable,
            next: self.streams.iter().map(|(&name, stream)| (name, stream.next)).collect(),
        }
    }
}

impl Stream {
    /// Removes `sequence..end` from the gap that contains it. Returns false when there is no such
    /// gap.
    fn fill(&mut self, sequence: u64, end: u64) -> bool {
        let Some((&first, &gap_end)) = self.gaps.range(..=sequence).next_back() else { return false };
        if gap_end < end {
            return false;
        }
        self.gaps.remove(&first);
        if first < sequence {
            self.gaps.insert(first, sequence);
        }
        if end < gap_end {
            self.gaps.insert(end, gap_end);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(numbers: &[(u64, u64, u64)]) -> SequenceReport {
        let mut check = SequenceCheck::default();
        for &(stream, sequence, step) in numbers {
            check.take(Some(Numbered { stream, sequence, step }));
        }
        check.report()
    }

    #[test]
    fn streams_with_steps_are_complete() {
        let report = report(&[(1, 0, 3), (2, 0, 1), (1, 3, 2), (2, 1, 1)]);
        assert!(report.is_complete());
        assert_eq!(report.next, BTreeMap::from([(1, 5), (2, 2)]));
    }

    #[test]
    fn lost_first_datagram_is_missing() {
        assert_eq!(report(&[(1, 2, 1)]).missing, 2);
    }

    #[test]
    fn late_datagrams_fill_gaps_and_repeated_ones_are_duplicates() {
        let late = report(&[(1, 10, 1), (1, 4, 2), (1, 0, 4), (1, 8, 2), (1, 6, 2)]);
        assert_eq!((late.missing, late.out_of_order, late.duplicates), (0, 4, 0));
        let twice = report(&[(1, 0, 1), (1, 2, 1), (1, 1, 1), (1, 1, 1), (1, 2, 1), (1, 0, 1)]);
        assert_eq!((twice.missing, twice.out_of_order, twice.duplicates), (0, 1, 3));
    }
}
