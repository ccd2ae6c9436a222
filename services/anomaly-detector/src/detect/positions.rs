//! How far each stream of a shard has been counted, so that what comes twice is counted once.

/// Streams that are known of one shard; the least recently used goes first.
const MAX_STREAMS: usize = 64;

/// The streams of one shard, most recently used last.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Positions {
    streams: Vec<(Box<str>, u64, u64)>,
}

impl Positions {
    /// Whether there are no more than there may be: not so of one that was read.
    pub(crate) fn is_sound(&self) -> bool {
        self.streams.len() <= MAX_STREAMS
    }

    /// How many of `count` records that begin at `first` have been counted before; from now on all of them have.
    pub(crate) fn take(&mut self, name: &str, epoch: u64, first: u64, count: usize) -> usize {
        let end = first.saturating_add(count as u64);
        let found = self.streams.iter().rposition(|(n, e, _)| *e == epoch && **n == *name);
        let Some(at) = found else {
            if self.streams.len() >= MAX_STREAMS {
                self.streams.remove(0);
            }
            self.streams.push((name.into(), epoch, end));
            return 0;
        };
        self.streams[at..].rotate_left(1);
        let Some((_, _, next)) = self.streams.last_mut() else { return 0 };
        let old = (*next).clamp(first, end) - first;
        *next = (*next).max(end);
        old as usize
    }
}
