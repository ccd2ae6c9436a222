//! What a group has handled of a shard, as a fact that only grows.

use sekiwake_group::Stream;

/// The most streams of publishers that a position knows in one shard. Beyond that the one that was
/// used least recently is forgotten.
pub const MAX_SHARD_STREAMS: usize = 64;

/// How far a publisher's stream is handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The publisher's stream.
    pub stream: Stream,
    /// The sequence number of the next record.
    pub next: u64,
}

/// How far a shard is handled: everything up to this sequence number of the stored stream that was
/// created at this time, and of each publisher's stream everything below `next`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// When the stored stream was created, nanoseconds since 1970: one that was deleted and created
    /// again begins at sequence number 1.
    pub created: u64,
    /// The sequence number in the stored stream of the last message that is handled.
    pub sequence: u64,
    /// Publishers' streams, the one that was used last first.
    pub progress: Vec<Progress>,
}

impl Position {
    /// The next record of a publisher's stream, if it is known.
    pub fn next(&self, stream: &Stream) -> Option<u64> {
        self.progress.iter().find(|progress| progress.stream == *stream).map(|progress| progress.next)
    }

    /// Moves a publisher's stream up to `next`, never back.
    pub fn advance(&mut self, stream: &Stream, next: u64) {
        match self.progress.iter().position(|progress| progress.stream == *stream) {
            Some(index) => {
                let known = &mut self.progress[index].next;
                *known = next.max(*known);
                self.progress[..=index].rotate_right(1);
            }
            None => {
                self.progress.truncate(MAX_SHARD_STREAMS - 1);
                self.progress.insert(0, Progress { stream: stream.clone(), next });
            }
        }
    }

    /// Moves to a message of the stored stream, never back.
    pub fn reach(&mut self, created: u64, sequence: u64) {
        let reached = (created, sequence).max((self.created, self.sequence));
        (self.created, self.sequence) = reached;
    }

    /// The sequence number after which the stored stream that was created at `created` is to be
    /// read. 0 if this position is in a stream that was deleted since, or beyond its end.
    pub fn read_after(&self, created: u64, last_sequence: u64) -> u64 {
        let is_same = self.created == created && self.sequence <= last_sequence;
        if is_same { self.sequence } else { 0 }
    }

    /// Adopts what another party knows. Returns whether this is a change.
    pub fn merge(&mut self, other: &Position) -> bool {
        let before = (self.created, self.sequence);
        self.reach(other.created, other.sequence);
        let mut changed = before != (self.created, self.sequence);
        for Progress { stream, next } in &other.progress {
            let known = self.progress.iter().position(|progress| progress.stream == *stream);
            match known {
                Some(index) if self.progress[index].next >= *next => {}
                Some(index) => {
                    self.progress[index].next = *next;
                    changed = true;
                }
                None if self.progress.len() < MAX_SHARD_STREAMS => {
                    self.progress.push(Progress { stream: stream.clone(), next: *next });
                    changed = true;
                }
                None => {}
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_record::Name;

    use super::*;

    fn stream(epoch: u64) -> Stream {
        Stream::new(&Name::new("capture").unwrap(), epoch)
    }

    fn at(created: u64, sequence: u64, progress: &[(u64, u64)]) -> Position {
        let progress = progress.iter().map(|&(epoch, next)| Progress { stream: stream(epoch), next });
        Position { created, sequence, progress: progress.collect() }
    }

    #[test]
    fn merged_positions_have_the_most_of_both() {
        let mut position = at(5, 100, &[(1, 40), (2, 7)]);
        assert!(!position.merge(&at(5, 99, &[(1, 39)])));
        assert!(position.merge(&at(5, 101, &[(1, 41), (3, 1)])));
        assert_eq!(position, at(5, 101, &[(1, 41), (2, 7), (3, 1)]));
        // A stream that was created again is a later one, although its numbers are lower.
        assert!(position.merge(&at(6, 2, &[])) && (position.created, position.sequence) == (6, 2));
        assert!(!position.merge(&at(5, 500, &[])));
    }

    #[test]
    fn least_recently_used_stream_is_forgotten() {
        let mut position = Position::default();
        (0..MAX_SHARD_STREAMS as u64).for_each(|epoch| position.advance(&stream(epoch), 1));
        position.advance(&stream(0), 2);
        position.advance(&stream(1_000), 3);
        assert_eq!(position.progress.len(), MAX_SHARD_STREAMS);
        assert_eq!((position.next(&stream(0)), position.next(&stream(1))), (Some(2), None));
        position.advance(&stream(0), 1);
        assert_eq!(position.next(&stream(0)), Some(2));
    }
}
