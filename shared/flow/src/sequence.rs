//! Sequence numbers, modulo 2³²: datagrams in order, gaps, and late datagrams.
//!
//! A late or duplicate datagram has a slightly lower number and does not change the expected one.
//! An exporter that restarted may continue at any number: far ahead, far behind, or slightly behind
//! if its count was still low. The last case looks like late datagrams until several of them are
//! consecutive.

use crate::header::Unit;

/// This many consecutive late datagrams mean that the exporter has restarted.
const LATE_RUN_IS_RESTART: u8 = 8;

/// The position of a datagram in its exporter's sequence. The unit is that of the protocol: flows
/// of NetFlow v5, data records of IPFIX, datagrams of NetFlow v9 and sFlow v5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sequence {
    /// No sequence: the header is invalid, or the format is not a flow format.
    #[default]
    None,
    /// The first datagram of this exporter.
    First,
    /// The next datagram in order.
    InOrder,
    /// This many units before it are missing, or will arrive late.
    Gap(u32),
    /// Late or duplicate, with its units, or 0 if they cannot be counted. Units in gaps minus units
    /// of late datagrams are the losses, apart from duplicates.
    Late(u32),
    /// The exporter has restarted: a step of more than 1,000,000 records or 100,000 datagrams
    /// forward, of more than 100,000 records or 10,000 datagrams back, or eight consecutive late
    /// datagrams.
    Restarted,
    /// The records of the previous datagram could not be counted (IPFIX data without a template),
    /// so counting resumes here.
    Resynchronised,
}

/// What a datagram says about an exporter that counts in another unit than its protocol says:
/// records of NetFlow v9, messages of IPFIX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OtherUnit {
    /// Nothing: its number is the next one in both units, or in neither.
    #[default]
    Unknown,
    /// Its number is the next one in the other unit only.
    FitsAlone,
    /// Its number is the next one in the protocol's unit only.
    Contradicted,
}

/// The place of a datagram in its exporter's sequence, in both units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) sequence: Sequence,
    pub(crate) other_unit: OtherUnit,
}

/// The sequence of one exporter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tracker {
    seen: bool,
    /// The sequence number of the next datagram, if it is known.
    expected: Option<u32>,
    /// The number of the next datagram if the exporter counts in the other unit.
    expected_otherwise: Option<u32>,
    /// The number that would follow the last late datagram, and the length of the run of
    /// consecutive ones.
    late_next: Option<u32>,
    late_run: u8,
}

impl Tracker {
    /// Classifies a datagram. `units`: the units that it has, if they could be counted.
    /// `other_units`: those in the other unit.
    pub(crate) fn step(&mut self, sequence: u32, unit: Unit, units: Option<u32>, other_units: u32) -> Step {
        let is_next = self.expected == Some(sequence);
        let is_next_otherwise = self.expected_otherwise == Some(sequence);
        let other_unit = match (is_next, is_next_otherwise) {
            (false, true) if self.expected.is_some() => OtherUnit::FitsAlone,
            (true, false) => OtherUnit::Contradicted,
            _ => OtherUnit::Unknown,
        };
        let step = Step { sequence: self.classify(sequence, unit, units), other_unit };
        self.expected_otherwise = Some(sequence.wrapping_add(other_units));
        step
    }

    fn classify(&mut self, sequence: u32, unit: Unit, units: Option<u32>) -> Sequence {
        let next = units.map(|units| sequence.wrapping_add(units));
        let Some(expected) = self.expected else {
            let outcome = if self.seen { Sequence::Resynchronised } else { Sequence::First };
            *self = Tracker { seen: true, expected: next, ..Tracker::default() };
            return outcome;
        };
        let (most_ahead, most_behind) = match unit {
            Unit::Records => (1_000_000, 100_000),
            Unit::Datagrams => (100_000, 10_000),
        };
        let ahead = sequence.wrapping_sub(expected);
        let behind = expected.wrapping_sub(sequence);
        let outcome = if ahead == 0 {
            Sequence::InOrder
        } else if ahead <= most_ahead {
            Sequence::Gap(ahead)
        } else if behind <= most_behind && !self.late_run_ends(sequence, next) {
            return Sequence::Late(units.unwrap_or(0));
        } else {
            Sequence::Restarted
        };
        *self = Tracker { seen: true, expected: next, ..Tracker::default() };
        outcome
    }

    /// Counts consecutive late datagrams. True if they indicate a restart.
    fn late_run_ends(&mut self, sequence: u32, next: Option<u32>) -> bool {
        self.late_run = if self.late_next == Some(sequence) { self.late_run + 1 } else { 1 };
        self.late_next = next;
        self.late_run >= LATE_RUN_IS_RESTART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify_all(unit: Unit, datagrams: &[(u32, u32)]) -> Vec<Sequence> {
        let mut tracker = Tracker::default();
        datagrams.iter().map(|&(sequence, units)| tracker.classify(sequence, unit, Some(units))).collect()
    }

    #[test]
    fn late_datagram_fills_its_gap() {
        let outcomes = classify_all(Unit::Records, &[(10, 5), (25, 5), (15, 10), (30, 1)]);
        assert_eq!(outcomes, [Sequence::First, Sequence::Gap(10), Sequence::Late(10), Sequence::InOrder]);
    }

    #[test]
    fn sequence_wraps() {
        let outcomes =
            classify_all(Unit::Datagrams, &[(u32::MAX - 1, 1), (u32::MAX, 1), (0, 1), (u32::MAX, 1), (2, 1)]);
        let expected = [Sequence::First, Sequence::InOrder, Sequence::InOrder, Sequence::Late(1), Sequence::Gap(1)];
        assert_eq!(outcomes, expected);
    }

    #[test]
    fn far_steps_are_restarts() {
        assert_eq!(classify_all(Unit::Datagrams, &[(0, 1), (100_001, 1)])[1], Sequence::Gap(100_000));
        assert_eq!(classify_all(Unit::Datagrams, &[(0, 1), (100_002, 1)])[1], Sequence::Restarted);
        assert_eq!(classify_all(Unit::Datagrams, &[(10_000, 1), (1, 1)])[1], Sequence::Late(1));
        assert_eq!(classify_all(Unit::Datagrams, &[(10_000, 1), (0, 1)])[1], Sequence::Restarted);
        assert_eq!(classify_all(Unit::Records, &[(0, 1), (1_000_001, 1)])[1], Sequence::Gap(1_000_000));
        assert_eq!(classify_all(Unit::Records, &[(0, 1), (1_000_002, 1)])[1], Sequence::Restarted);
    }

    #[test]
    fn consecutive_late_datagrams_are_a_restart() {
        let mut datagrams = vec![(500, 1)];
        datagrams.extend((0..9).map(|sequence| (sequence, 1)));
        let outcomes = classify_all(Unit::Datagrams, &datagrams);
        assert!(outcomes[1..8].iter().all(|outcome| *outcome == Sequence::Late(1)), "{outcomes:?}");
        assert_eq!(outcomes[8..], [Sequence::Restarted, Sequence::InOrder]);
    }

    #[test]
    fn uncountable_records_are_not_a_gap() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.classify(0, Unit::Records, None), Sequence::First);
        assert_eq!(tracker.classify(700, Unit::Records, Some(3)), Sequence::Resynchronised);
        assert_eq!(tracker.classify(703, Unit::Records, Some(3)), Sequence::InOrder);
    }
}
