//! Losses are counted only of exporters whose sequence numbers can be believed.

use sekiwake_flow::{Countable, Exporters, Losses};

use crate::datagram::{exporters, ipfix, netflow5, netflow9, observe, set};

/// The losses of all datagrams, and whether the exporter is countable at the end.
fn losses(exporters: &mut Exporters, datagrams: impl IntoIterator<Item = Vec<u8>>) -> (Losses, bool) {
    let mut sum = Losses::default();
    let mut countable = Countable::Yes;
    for datagram in datagrams {
        let observed = observe(exporters, &datagram, 1, 1);
        sum.gaps += observed.losses.gaps;
        sum.missing += observed.losses.missing;
        sum.late += observed.losses.late;
        countable = observed.countable;
    }
    (sum, countable == Countable::Yes)
}

fn netflow9s(sequences: impl IntoIterator<Item = u32>) -> impl Iterator<Item = Vec<u8>> {
    sequences.into_iter().map(|sequence| netflow9(sequence, 1, &[]))
}

const NONE: Losses = Losses { gaps: 0, missing: 0, late: 0 };

/// A NetFlow v9 datagram of so many records.
fn of_records(sequence: u32, records: u8) -> Vec<u8> {
    let mut datagram = netflow9(sequence, 1, &[set(256, &vec![0; 4 * usize::from(records)])]);
    datagram[3] = records;
    datagram
}

#[test]
fn gap_counts_when_as_many_datagrams_have_followed() {
    let mut exporters = exporters();
    assert_eq!(losses(&mut exporters, netflow9s((0..10).chain(15..19))).0, NONE);
    let counted = Losses { gaps: 1, missing: 5, late: 0 };
    assert_eq!(losses(&mut exporters, netflow9s(19..21)), (counted, true));
    // A long one when 256 have followed; late ones are subtracted.
    assert_eq!(losses(&mut exporters, netflow9s((5021..5276).chain([5276]))).0, NONE);
    assert_eq!(losses(&mut exporters, netflow9s([5277])).0, Losses { gaps: 1, missing: 5000, late: 0 });
    let late = losses(&mut exporters, netflow9s([5278, 5280, 5279].into_iter().chain(5281..5300)));
    assert_eq!(late, (Losses { gaps: 1, missing: 1, late: 1 }, true));
}

#[test]
fn loss_of_three_datagrams_in_ten_is_counted() {
    let mut exporters = exporters();
    let mut random = 1_u32;
    let arrives = |_: &u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random >> 16 > u32::from(u16::MAX) / 10 * 3
    };
    let arrived: Vec<u32> = (0..10_000).filter(arrives).chain(10_000..10_100).collect();
    let lost = 10_100 - arrived.len() as u64 - u64::from(arrived[0]);
    let (losses, is_countable) = losses(&mut exporters, netflow9s(arrived));
    assert!(is_countable);
    assert_eq!(losses.missing, lost);
}

#[test]
fn processes_that_share_an_id_are_not_countable() {
    for (first, other) in [(100, 60_000), (100, 105), (100, 100), (5_000_000, 100), (100, 9_000)] {
        for burst in [1, 7, 30, 100] {
            let datagrams = (0..4000 / burst).flat_map(|round| {
                let round = round * burst;
                (first + round..first + round + burst).chain(other + round..other + round + burst)
            });
            let mut exporters = exporters();
            let (losses, is_countable) = losses(&mut exporters, netflow9s(datagrams));
            assert!(!is_countable, "{first} {other} {burst}");
            assert!(losses.missing <= u64::from(burst), "{first} {other} {burst}: {losses:?}");
            // One of them ends: the other one can be counted again.
            assert_eq!(self::losses(&mut exporters, netflow9s(80_000..80_800)), (NONE, true));
        }
    }
}

#[test]
fn records_counted_as_datagrams_are_not_losses() {
    for records in [[5, 5, 5], [1, 2, 1], [1, 1, 30]] {
        let mut next = 1000;
        let datagrams: Vec<Vec<u8>> = (0..90)
            .map(|number| {
                let count = records[number % 3];
                next += u32::from(count);
                of_records(next - u32::from(count), count)
            })
            .collect();
        assert_eq!(losses(&mut exporters(), datagrams), (NONE, false), "{records:?}");
    }
}

#[test]
fn messages_counted_as_records_are_not_losses() {
    for records in [[4, 4, 4], [1, 4, 1]] {
        let template = ipfix(0, 1, &[set(2, &[256, 2, 8, 4, 12, 4])]);
        let data = |number: u32| ipfix(number, 1, &[set(256, &vec![0; 4 * records[number as usize % 3]])]);
        let (losses, is_countable) = losses(&mut exporters(), [template].into_iter().chain((1..60).map(data)));
        assert_eq!((losses, is_countable), (NONE, false), "{records:?}");
    }
    // NetFlow v5 that counts datagrams.
    assert_eq!(losses(&mut exporters(), (0..60).map(|number| netflow5(number, 30))), (NONE, false));
}

#[test]
fn exporter_that_doubts_ended_counts_again() {
    let mut exporters = exporters();
    let bad: Vec<Vec<u8>> = (0..40).map(|number| of_records(1000 + 5 * number, 5)).collect();
    assert_eq!(losses(&mut exporters, bad), (NONE, false));
    assert_eq!(losses(&mut exporters, (0..800).map(|number| of_records(number, 5))), (NONE, true));
    let counted = losses(&mut exporters, (802..810).map(|number| of_records(number, 5)));
    assert_eq!(counted, (Losses { gaps: 1, missing: 2, late: 0 }, true));
}

#[test]
fn exporter_is_reported_once_as_not_countable() {
    let mut exporters = exporters();
    let outcomes: Vec<Countable> =
        (0..40).map(|number| observe(&mut exporters, &of_records(5 * number, 5), 1, 1).countable).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Countable::NoLonger).count(), 1);
    assert_eq!(outcomes.last(), Some(&Countable::No));
}
