//! The position up to which each stream of a shard has been counted, so that duplicates are not
//! counted again.

/// The most streams per shard; the least recently used is evicted.
const MAX_STREAMS: usize = 64;

/// The streams of one shard, most recently used last.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Positions {
    streams: Vec<Position>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Position {
    name: Box<str>,
    epoch: u64,
    /// The first sequence number that has not been counted.
    next: u64,
}

impl Positions {
    /// Whether decoded positions are within their bounds.
    pub(crate) fn is_valid(&self) -> bool {
        self.streams.len() <= MAX_STREAMS
    }

    /// Marks `count` records from `first` as counted. Returns how many of them had been counted
    /// before.
    pub(crate) fn advance(&mut self, name: &str, epoch: u64, first: u64, count: usize) -> usize {
        let end = first.saturating_add(count as u64);
        let found = self.streams.iter().rposition(|stream| stream.epoch == epoch && *stream.name == *name);
        let Some(at) = found else {
            if self.streams.len() >= MAX_STREAMS {
                self.streams.remove(0);
            }
            self.streams.push(Position { name: name.into(), epoch, next: end });
            return 0;
        };
        self.streams[at..].rotate_left(1);
        let Some(stream) = self.streams.last_mut() else { return 0 };
        let old = stream.next.clamp(first, end) - first;
        stream.next = stream.next.max(end);
        old as usize
    }
}
