//! Sequence numbers, modulo 2³²: what came in order, what is missing, what came late.
//!
//! A datagram that is late, or there twice, steps back a little and does not move what is expected. An exporter that restarted begins
//! anywhere: far ahead, far behind, or a little behind if it had not counted far, which looks like late datagrams until several of them
//! continue each other.

use crate::header::Unit;

/// So many late datagrams that continue each other are an exporter that began anew.
const LATE_RUN_IS_RESTART: u8 = 8;

/// Where a datagram stands in its exporter's sequence. The units are what the protocol counts: flows of NetFlow v5, data records of
/// IPFIX, datagrams of NetFlow v9 and sFlow v5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sequence {
    /// It has no sequence: a header that cannot be read, or no flow format.
    #[default]
    None,
    /// The first that is seen of this exporter.
    First,
    /// It continues the one before it.
    InOrder,
    /// So many units before it have not come, or will come late.
    Gap(u32),
    /// It came late, or a second time. The units it holds, 0 if they cannot be counted: units of gaps less those of late datagrams is
    /// what is lost, except for what came twice.
    Late(u32),
    /// The exporter began to count anew: a step of more than 1,000,000 records or 100,000 datagrams forward, of more than 100,000
    /// records or 10,000 datagrams back, or eight late datagrams that continue each other.
    Restarted,
    /// The datagram before it held records that could not be counted (IPFIX data without a template): counting begins again here.
    Resynchronised,
}

/// How far an exporter has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tracker {
    seen: bool,
    /// The sequence number of the next datagram, if it is known.
    expected: Option<u32>,
    /// What would continue the latest late datagram, and how many continued each other.
    late_next: Option<u32>,
    late_run: u8,
}

impl Tracker {
    /// Places a datagram. `units`: by how much it moves the sequence on, if that can be told.
    pub(crate) fn place(&mut self, sequence: u32, unit: Unit, units: Option<u32>) -> Sequence {
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

    /// Counts late datagrams that continue each other; true if they are too many to be late.
    fn late_run_ends(&mut self, sequence: u32, next: Option<u32>) -> bool {
        self.late_run = if self.late_next == Some(sequence) { self.late_run + 1 } else { 1 };
        self.late_next = next;
        self.late_run >= LATE_RUN_IS_RESTART
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_all(unit: Unit, datagrams: &[(u32, u32)]) -> Vec<Sequence> {
        let mut tracker = Tracker::default();
        datagrams.iter().map(|&(sequence, units)| tracker.place(sequence, unit, Some(units))).collect()
    }

    #[test]
    fn a_late_datagram_makes_up_for_its_gap() {
        let outcomes = place_all(Unit::Records, &[(10, 5), (25, 5), (15, 10), (30, 1)]);
        assert_eq!(outcomes, [Sequence::First, Sequence::Gap(10), Sequence::Late(10), Sequence::InOrder]);
    }

    #[test]
    fn the_sequence_wraps() {
        let outcomes = place_all(Unit::Datagrams, &[(u32::MAX - 1, 1), (u32::MAX, 1), (0, 1), (u32::MAX, 1), (2, 1)]);
        let expected = [Sequence::First, Sequence::InOrder, Sequence::InOrder, Sequence::Late(1), Sequence::Gap(1)];
        assert_eq!(outcomes, expected);
    }

    #[test]
    fn far_steps_are_restarts() {
        assert_eq!(place_all(Unit::Datagrams, &[(0, 1), (100_001, 1)])[1], Sequence::Gap(100_000));
        assert_eq!(place_all(Unit::Datagrams, &[(0, 1), (100_002, 1)])[1], Sequence::Restarted);
        assert_eq!(place_all(Unit::Datagrams, &[(10_000, 1), (1, 1)])[1], Sequence::Late(1));
        assert_eq!(place_all(Unit::Datagrams, &[(10_000, 1), (0, 1)])[1], Sequence::Restarted);
        assert_eq!(place_all(Unit::Records, &[(0, 1), (1_000_001, 1)])[1], Sequence::Gap(1_000_000));
        assert_eq!(place_all(Unit::Records, &[(0, 1), (1_000_002, 1)])[1], Sequence::Restarted);
    }

    #[test]
    fn a_restart_near_zero_is_told_by_datagrams_that_continue_each_other() {
        let mut datagrams = vec![(500, 1)];
        datagrams.extend((0..9).map(|sequence| (sequence, 1)));
        let outcomes = place_all(Unit::Datagrams, &datagrams);
        assert!(outcomes[1..8].iter().all(|outcome| *outcome == Sequence::Late(1)), "{outcomes:?}");
        assert_eq!(outcomes[8..], [Sequence::Restarted, Sequence::InOrder]);
    }

    #[test]
    fn what_cannot_be_counted_is_no_gap() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.place(0, Unit::Records, None), Sequence::First);
        assert_eq!(tracker.place(700, Unit::Records, Some(3)), Sequence::Resynchronised);
        assert_eq!(tracker.place(703, Unit::Records, Some(3)), Sequence::InOrder);
    }
}
