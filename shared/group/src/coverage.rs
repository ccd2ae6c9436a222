//! The records of one topic of one stream that a group has handled, as a few ranges of sequence
//! numbers.
//!
//! ```text
//! from the beginning    [0 ═══════════ 50)                          one range: everything below 50
//! from a guess          ·········[20 ═ 50)                          nothing before 20 is owed
//! a gap was left behind [0 ═ 20) owed [35 ═ 50)                     20 to 35 are owed
//! a guess, known later  [0 ═ 10) owed [20 ═ 50)                     the same, once a party reports 0 to 10
//! ```
//!
//! Coverage only grows: reports of any party merge by union, in any order. Records between two
//! ranges are owed. A range may be empty: at the place where a member started.

use crate::{BootTime, MAX_NUMBER};

/// The most ranges. A member leaves no more gaps than that. Only the union of several parties'
/// reports can have more: the smallest ranges are then forgotten, and their records owed again.
pub(crate) const MAX_RANGES: usize = 8;

/// A range of sequence numbers, without `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Span {
    pub(crate) fn len(self) -> u64 {
        self.to - self.from
    }
}

/// Sorted ranges that do not touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage(Vec<Span>);

impl Coverage {
    /// Everything from the beginning up to `next`.
    pub(crate) fn up_to(next: u64) -> Coverage {
        Coverage(vec![Span { from: 0, to: next }])
    }

    /// The union of these ranges. Invalid ones are ignored.
    pub(crate) fn of(spans: impl IntoIterator<Item = Span>) -> Coverage {
        let mut coverage = Coverage::default();
        let valid = spans.into_iter().filter(|span| span.from <= span.to && span.to < MAX_NUMBER);
        valid.for_each(|span| coverage.insert(span.from, span.to));
        coverage
    }

    /// Whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.0
    }

    /// Where the known part begins.
    pub(crate) fn first(&self) -> Option<u64> {
        self.0.first().map(|span| span.from)
    }

    /// Where it ends.
    pub(crate) fn end(&self) -> Option<u64> {
        self.0.last().map(|span| span.to)
    }

    /// The sequence number below which nothing is owed.
    pub(crate) fn prefix_end(&self) -> Option<u64> {
        self.0.first().map(|span| span.to)
    }

    /// The sequence number below which nothing is owed of what begins at `oldest`.
    pub(crate) fn handled_from(&self, oldest: u64) -> u64 {
        let owed = self.gaps().find(|gap| gap.to > oldest).map(|gap| gap.from);
        owed.or(self.end()).unwrap_or(0)
    }

    /// The end, if everything from the beginning up to there is covered.
    pub(crate) fn single(&self) -> Option<u64> {
        match self.0[..] {
            [Span { from: 0, to }] => Some(to),
            _ => None,
        }
    }

    /// The part below `end`.
    pub(crate) fn clamped(&self, end: u64) -> Coverage {
        Coverage::of(self.0.iter().map(|span| Span { from: span.from.min(end), to: span.to.min(end) }))
    }

    /// Whether one more gap may be left behind.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < MAX_RANGES
    }

    /// Adds a range, which may be empty.
    pub(crate) fn insert(&mut self, from: u64, to: u64) {
        // The usual case: the next records.
        if let Some(last) = self.0.last_mut()
            && (last.from..=last.to).contains(&from)
        {
            last.to = last.to.max(to);
            return;
        }
        let start = self.0.partition_point(|span| span.to < from);
        let end = self.0.partition_point(|span| span.from <= to);
        let mut merged = Span { from, to };
        for span in &self.0[start..end] {
            merged = Span { from: merged.from.min(span.from), to: merged.to.max(span.to) };
        }
        self.0.splice(start..end, [merged]);
        self.trim();
    }

    /// Adds everything that the other one has. Returns whether anything is new.
    pub(crate) fn union(&mut self, other: &Coverage) -> bool {
        if self.contains(other) {
            return false;
        }
        other.0.iter().for_each(|span| self.insert(span.from, span.to));
        true
    }

    /// Whether the other one adds nothing: its records are covered, and it neither begins earlier
    /// nor ends later.
    pub(crate) fn contains(&self, other: &Coverage) -> bool {
        let begins = |first| self.first().is_some_and(|own| own <= first);
        let ends = |end| self.end().is_some_and(|own| own >= end);
        let covers =
            |span: &Span| span.len() == 0 || self.0.iter().any(|own| own.from <= span.from && span.to <= own.to);
        other.first().is_none_or(begins) && other.end().is_none_or(ends) && other.0.iter().all(covers)
    }

    /// The owed records: the gaps between the ranges.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Span> {
        self.0.windows(2).map(|pair| Span { from: pair[0].to, to: pair[1].from })
    }

    /// The number of covered records in a range.
    pub(crate) fn count_within(&self, within: Span) -> u64 {
        self.0.iter().map(|span| span.to.min(within.to).saturating_sub(span.from.max(within.from))).sum()
    }

    /// Forgets empty ranges between others, and the smallest ranges when there are too many. The
    /// last one stays, because the next records follow it.
    fn trim(&mut self) {
        let last = self.0.len().saturating_sub(1);
        let mut index = 0;
        self.0.retain(|span| {
            let stays = index == 0 || index == last || span.len() > 0;
            index += 1;
            stays
        });
        while self.0.len() > MAX_RANGES {
            let smallest = (0..self.0.len() - 1).min_by_key(|&index| self.0[index].len());
            let Some(index) = smallest else { return };
            if index == 0 {
                // Its start must stay known, or its records would not be owed.
                let first = self.0[0].from;
                if self.0[0].len() > 0 {
                    self.0[0].to = first;
                }
                let smallest = (1..self.0.len() - 1).min_by_key(|&index| self.0[index].len());
                let Some(index) = smallest else { return };
                self.0.remove(index);
            } else {
                self.0.remove(index);
            }
        }
    }
}

/// The known age of something. Parties exchange ages, because their clocks cannot be compared; the
/// greatest known age is the right one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Age {
    nanos: u64,
    at: BootTime,
}

impl Age {
    /// The age now.
    pub(crate) fn nanos(self, now: BootTime) -> u64 {
        self.nanos.saturating_add(crate::time::nanos(now - self.at)).min(MAX_AGE)
    }

    /// The age of something that begins to exist now.
    pub(crate) fn new(now: BootTime) -> Age {
        Age { nanos: 0, at: now }
    }

    /// Adopts another party's age if it is greater.
    pub(crate) fn learn(&mut self, now: BootTime, nanos: u64) {
        if nanos > self.nanos(now) {
            *self = Age { nanos: nanos.min(MAX_AGE), at: now };
        }
    }
}

/// The greatest age: a year.
const MAX_AGE: u64 = 365 * 24 * 3600 * 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDS: u64 = 64;

    /// The covered records as bits, and where the known part begins and ends.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Model {
        bits: u64,
        known: Option<(u64, u64)>,
    }

    impl Model {
        fn insert(&mut self, from: u64, to: u64) {
            self.bits |= bits(from, to);
            let (first, end) = self.known.unwrap_or((from, to));
            self.known = Some((first.min(from), end.max(to)));
        }

        fn owed(self) -> u64 {
            self.known.map_or(0, |(first, end)| bits(first, end) & !self.bits)
        }
    }

    fn bits(from: u64, to: u64) -> u64 {
        (from..to).fold(0, |bits, record| bits | 1 << record)
    }

    fn model(coverage: &Coverage) -> Model {
        let mut model = Model::default();
        coverage.spans().iter().for_each(|span| model.insert(span.from, span.to));
        model
    }

    fn is_normal(coverage: &Coverage) -> bool {
        let spans = coverage.spans();
        spans.len() <= MAX_RANGES
            && spans.windows(2).all(|pair| pair[0].to < pair[1].from)
            && spans.iter().skip(1).rev().skip(1).all(|span| span.len() > 0)
    }

    fn spans() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..RECORDS, 0..16_u64), 0..12)
            .prop_map(|spans| spans.into_iter().map(|(from, len)| (from, (from + len).min(RECORDS))).collect())
    }

    proptest! {
        #[test]
        fn ranges_are_the_union_of_what_was_inserted(inserted in spans()) {
            let (mut coverage, mut expected, mut overflowed) = (Coverage::default(), Model::default(), false);
            for (from, to) in inserted {
                let full = coverage.spans().len() == MAX_RANGES;
                coverage.insert(from, to);
                expected.insert(from, to);
                overflowed |= full;
                prop_assert!(is_normal(&coverage), "{coverage:?}");
                let now = model(&coverage);
                prop_assert_eq!(now.known, expected.known, "where it begins and ends is always known");
                prop_assert_eq!(now.bits & !expected.bits, 0, "nothing is covered that was not inserted");
                if !overflowed {
                    prop_assert_eq!(now, expected);
                    let owed = coverage.gaps().fold(0, |owed, gap| owed | bits(gap.from, gap.to));
                    prop_assert_eq!(owed, expected.owed());
                }
            }
        }

        #[test]
        fn union_has_both_in_any_order(one in spans(), other in spans()) {
            let of = |spans: &[(u64, u64)]| Coverage::of(spans[..spans.len().min(4)].iter().map(|&(from, to)| Span { from, to }));
            let (one, other) = (of(&one), of(&other));
            let (mut left, mut right) = (one.clone(), other.clone());
            prop_assert_eq!(left.union(&other), !one.contains(&other));
            right.union(&one);
            prop_assert!(left.contains(&one) && left.contains(&other));
            prop_assert_eq!(&left, &right);
            prop_assert!(!left.union(&one));
            let both = model(&one).bits | model(&other).bits;
            prop_assert_eq!(model(&left).bits, both);
        }

        #[test]
        fn contains_and_count_agree_with_bits(one in spans(), other in spans(), from in 0..RECORDS, len in 0..RECORDS) {
            let of = |spans: &[(u64, u64)]| Coverage::of(spans[..spans.len().min(6)].iter().map(|&(from, to)| Span { from, to }));
            let (one, other) = (of(&one), of(&other));
            let (ours, theirs) = (model(&one), model(&other));
            let is_outside = match (ours.known, theirs.known) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some((first, end)), Some((other_first, other_end))) => other_first < first || other_end > end,
            };
            prop_assert_eq!(one.contains(&other), theirs.bits & !ours.bits == 0 && !is_outside);
            let to = (from + len).min(RECORDS);
            let count = (ours.bits & bits(from, to)).count_ones();
            prop_assert_eq!(one.count_within(Span { from, to }), u64::from(count));
        }
    }

    #[test]
    fn too_many_ranges_make_records_owed_again() {
        let mut coverage = Coverage::default();
        (0..20_u64).for_each(|n| coverage.insert(n * 10, n * 10 + 1 + (n % 5)));
        assert_eq!(coverage.spans().len(), MAX_RANGES);
        assert_eq!((coverage.first(), coverage.end()), (Some(0), Some(195)));
    }

    #[test]
    fn oldest_age_is_right() {
        let at = |seconds: u64| BootTime::from_nanos(seconds * 1_000_000_000);
        let mut age = Age::new(at(10));
        assert_eq!(age.nanos(at(15)), 5_000_000_000);
        age.learn(at(15), 2_000_000_000);
        assert_eq!(age.nanos(at(15)), 5_000_000_000);
        age.learn(at(15), 60_000_000_000);
        assert_eq!(age.nanos(at(16)), 61_000_000_000);
    }
}
