//! One shard at its owner: which records of a stored message are new, which are missing, and how
//! far everything is handled.

use std::collections::VecDeque;

use sekiwake_group::Stream;

use crate::{beginning::Owed, mutants::Mutants, position::Position};

/// A shard that a member owns. Its messages are taken in the order in which they are stored.
#[derive(Debug)]
pub struct Handling {
    generation: u64,
    /// What is handled.
    committed: Position,
    /// What is delivered.
    delivered: Position,
    /// Messages between the two, the oldest first.
    open: VecDeque<Open>,
    pub(crate) mutants: Mutants,
}

/// A message that is delivered, and not known to be handled.
#[derive(Debug)]
struct Open {
    created: u64,
    sequence: u64,
    stream: Stream,
    first: u64,
    next: u64,
    is_handled: bool,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Records before it that were never read: they are lost. `from` is the first.
    pub missing: u64,
    /// The first missing record.
    pub missing_from: u64,
    /// How many records at its beginning were delivered before.
    pub skip: u32,
    /// How many are new. If there are none, there is nothing to deliver or to acknowledge.
    pub new: u32,
    /// Whether fewer may be missing than `missing`, because nobody knows where the group began.
    pub is_bound: bool,
}

impl Handling {
    /// A shard that begins at this position, in this generation.
    pub fn new(generation: u64, position: Position) -> Handling {
        Handling {
            generation,
            delivered: position.clone(),
            committed: position,
            open: VecDeque::new(),
            mutants: Mutants::default(),
        }
    }

    /// The generation in which the member owns it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is handled.
    pub fn committed(&self) -> &Position {
        if self.mutants.commits_delivered() { &self.delivered } else { &self.committed }
    }

    /// What has been taken.
    pub fn delivered(&self) -> &Position {
        &self.delivered
    }

    /// Whether everything that was taken is handled.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() || self.mutants.releases_unhandled()
    }

    /// See [`Position::read_after`].
    pub fn read_after(&self, created: u64, last_sequence: u64) -> u64 {
        if self.mutants.ignores_created() {
            return self.delivered.sequence;
        }
        self.delivered.read_after(created, last_sequence)
    }

    /// Takes a message with the records `first` to `first + count` of a publisher's stream.
    /// `owed` says what the group is owed of it if nothing of it is known.
    pub fn take(&mut self, created: u64, sequence: u64, stream: &Stream, first: u64, count: u32, owed: Owed) -> Taken {
        let next = first + u64::from(count);
        let expected = self.expected(stream, first, owed);
        let missing = first.saturating_sub(expected);
        let skip = expected.saturating_sub(first).min(u64::from(count)) as u32;
        let is_bound = self.is_bound(stream, owed);
        self.delivered.advance(stream, next);
        self.delivered.reach(created, sequence);
        let taken = Taken { missing, missing_from: expected.min(first), skip, new: count - skip, is_bound };
        let first = first + u64::from(skip);
        self.open.push_back(Open {
            created,
            sequence,
            stream: stream.clone(),
            first,
            next,
            is_handled: taken.new == 0,
        });
        self.settle();
        taken
    }

    /// Nothing of the shard is stored between what was taken and this place in the stored stream.
    pub fn passed(&mut self, created: u64, sequence: u64) {
        self.delivered.reach(created, sequence);
        if self.open.is_empty() {
            self.committed.reach(created, sequence);
        }
    }

    /// A publisher has announced that its records below `next` are stored up to a message that
    /// can no longer be read, and everything before that has been taken. Returns how many records
    /// are missing at the end, and the first of them.
    pub fn announced(&mut self, stream: &Stream, next: u64, owed: Owed) -> Taken {
        let expected = self.expected(stream, next, owed);
        let missing = if self.mutants.counts_no_eviction() { 0 } else { next.saturating_sub(expected) };
        let is_bound = self.is_bound(stream, owed);
        if missing > 0 {
            self.delivered.advance(stream, next);
            let Position { created, sequence, .. } = self.delivered;
            let stream = stream.clone();
            self.open.push_back(Open { created, sequence, stream, first: next, next, is_handled: true });
            self.settle();
        }
        Taken { missing, missing_from: expected, skip: 0, new: 0, is_bound }
    }

    /// Whether records below `next` of a publisher's stream have not been taken.
    pub fn is_behind(&self, stream: &Stream, next: u64, owed: Owed) -> bool {
        self.expected(stream, next, owed) < next
    }

    /// Records below `next` of a publisher's stream that are not handled.
    pub fn lag(&self, stream: &Stream, next: u64, owed: Owed) -> u64 {
        let delivered = || self.open.iter().find(|open| open.stream == *stream).map(|open| open.first);
        let handled = self.committed.next(stream).or_else(delivered).unwrap_or_else(|| owed.next(next));
        next.saturating_sub(handled)
    }

    /// The next record of a stream, where the first one that is known to be stored is `first`.
    fn expected(&self, stream: &Stream, first: u64, owed: Owed) -> u64 {
        self.delivered.next(stream).unwrap_or_else(|| owed.next(first))
    }

    /// Whether a count of missing records of a stream is an upper bound.
    fn is_bound(&self, stream: &Stream, owed: Owed) -> bool {
        matches!(owed, Owed::AtMostFrom(_)) && self.delivered.next(stream).is_none()
    }

    /// The delivery that began with this record is handled.
    pub fn handled(&mut self, stream: &Stream, first: u64) {
        let delivery =
            self.open.iter_mut().find(|open| !open.is_handled && open.first == first && open.stream == *stream);
        if let Some(delivery) = delivery {
            delivery.is_handled = true;
            self.settle();
        }
    }

    /// Moves the position past the oldest messages that are handled.
    fn settle(&mut self) {
        while let Some(open) = self.open.pop_front_if(|open| open.is_handled) {
            self.committed.advance(&open.stream, open.next);
            self.committed.reach(open.created, open.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_record::Name;

    use super::*;

    /// Of a stream that began after the group.
    const BORN: Owed = Owed::From(0);

    fn stream(epoch: u64) -> Stream {
        Stream::new(&Name::new("capture").unwrap(), epoch)
    }

    fn taken(missing: u64, missing_from: u64, skip: u32, new: u32) -> Taken {
        Taken { missing, missing_from, skip, new, is_bound: false }
    }

    #[test]
    fn gaps_are_missing_and_repeats_are_skipped() {
        let mut shard = Handling::new(1, Position::default());
        assert_eq!(shard.take(9, 1, &stream(1), 0, 10, BORN), taken(0, 0, 0, 10));
        assert_eq!(shard.take(9, 2, &stream(1), 15, 5, BORN), taken(5, 10, 0, 5));
        assert_eq!(shard.take(9, 3, &stream(1), 15, 5, BORN), taken(0, 15, 5, 0));
        assert_eq!(shard.take(9, 4, &stream(1), 18, 5, BORN), taken(0, 18, 2, 3));
        // A stream that began after the group is owed from its first record.
        assert_eq!(shard.take(9, 5, &stream(2), 7, 1, BORN), taken(7, 0, 0, 1));
        assert_eq!(shard.take(9, 6, &stream(3), 7, 1, Owed::AsRead), taken(0, 7, 0, 1));
    }

    #[test]
    fn position_moves_past_handled_messages_in_order() {
        let mut shard = Handling::new(1, Position::default());
        shard.take(9, 5, &stream(1), 0, 10, BORN);
        shard.take(9, 6, &stream(1), 0, 10, BORN);
        shard.take(9, 8, &stream(1), 10, 10, BORN);
        shard.handled(&stream(1), 10);
        assert_eq!(*shard.committed(), Position::default());
        shard.handled(&stream(1), 0);
        assert!(shard.is_idle());
        assert_eq!((shard.committed().sequence, shard.committed().next(&stream(1))), (8, Some(20)));
        assert_eq!(shard.committed(), shard.delivered());
    }

    #[test]
    fn lag_is_what_is_not_handled() {
        let mut shard = Handling::new(1, Position::default());
        let lags = |shard: &Handling| [shard.lag(&stream(1), 25, BORN), shard.lag(&stream(2), 25, Owed::AsRead)];
        assert_eq!(lags(&shard), [25, 0]);
        shard.take(9, 5, &stream(1), 0, 10, BORN);
        shard.take(9, 6, &stream(2), 15, 10, Owed::AsRead);
        assert_eq!(lags(&shard), [25, 10]);
        shard.handled(&stream(1), 0);
        assert_eq!(lags(&shard), [15, 10]);
        shard.handled(&stream(2), 15);
        assert_eq!(lags(&shard), [15, 0]);
    }

    #[test]
    fn evicted_end_is_counted_once() {
        let mut shard = Handling::new(1, Position::default());
        shard.take(9, 5, &stream(1), 0, 10, BORN);
        assert_eq!(shard.announced(&stream(1), 25, BORN), taken(15, 10, 0, 0));
        assert_eq!(shard.announced(&stream(1), 25, BORN).missing, 0);
        assert_eq!(shard.committed().next(&stream(1)), None, "the first batch is not handled");
        shard.handled(&stream(1), 0);
        assert_eq!(shard.committed().next(&stream(1)), Some(25));
        assert_eq!(shard.take(9, 9, &stream(1), 20, 10, BORN), taken(0, 20, 5, 5));
    }

    #[test]
    fn older_stream_is_owed_from_where_it_was() {
        let mut shard = Handling::new(1, Position::default());
        // Nothing of it was read, and everything after the group's beginning is evicted.
        assert!(!shard.is_behind(&stream(1), 30, Owed::From(30)));
        assert!(shard.is_behind(&stream(1), 45, Owed::From(30)));
        assert_eq!(shard.announced(&stream(1), 45, Owed::From(30)), taken(15, 30, 0, 0));
        assert_eq!(shard.take(9, 2, &stream(1), 45, 5, Owed::From(30)), taken(0, 45, 0, 5));
        // What is read from before it is delivered as well.
        assert_eq!(shard.take(9, 3, &stream(2), 25, 10, Owed::From(30)), taken(0, 25, 0, 10));
        assert_eq!(shard.take(9, 4, &stream(3), 35, 10, Owed::From(30)), taken(5, 30, 0, 10));
    }

    #[test]
    fn count_of_a_stream_that_nobody_knew_is_an_upper_bound() {
        let mut shard = Handling::new(1, Position::default());
        let bound = |missing, from, new| Taken { is_bound: true, ..taken(missing, from, 0, new) };
        assert_eq!(shard.announced(&stream(1), 45, Owed::AtMostFrom(30)), bound(15, 30, 0));
        assert_eq!(shard.announced(&stream(1), 50, Owed::AtMostFrom(30)), taken(5, 45, 0, 0));
        assert_eq!(shard.take(9, 4, &stream(2), 35, 10, Owed::AtMostFrom(30)), bound(5, 30, 10));
        assert_eq!(shard.take(9, 5, &stream(2), 50, 1, Owed::AtMostFrom(30)), taken(5, 45, 0, 1));
    }

    #[test]
    fn stream_that_was_created_again_is_read_from_its_beginning() {
        let mut shard = Handling::new(1, Position::default());
        shard.take(9, 500, &stream(1), 0, 10, BORN);
        assert_eq!((shard.read_after(9, 600), shard.read_after(9, 499), shard.read_after(10, 600)), (500, 0, 0));
        assert_eq!(shard.take(10, 1, &stream(1), 10, 10, BORN), taken(0, 10, 0, 10));
        assert_eq!((shard.delivered().created, shard.delivered().sequence), (10, 1));
    }
}
