//! Which records of a batch are for a destination.

/// All records of a batch, or some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    Some(RecordSet),
}

/// A set of records by their index in the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordSet {
    words: Box<[u64]>,
    count: usize,
}

impl Selection {
    /// Whether the record at `index` is selected.
    pub(crate) fn contains(&self, index: usize) -> bool {
        match self {
            Selection::All => true,
            Selection::Some(records) => records.contains(index),
        }
    }

    /// How many records of a batch of `len` are selected.
    pub(crate) fn count(&self, len: usize) -> usize {
        match self {
            Selection::All => len,
            Selection::Some(records) => records.count,
        }
    }
}

impl RecordSet {
    /// An empty set for a batch of `len` records.
    pub(crate) fn empty(len: usize) -> RecordSet {
        RecordSet { words: vec![0; len.div_ceil(64)].into_boxed_slice(), count: 0 }
    }

    /// Adds a record within the length. Adding it twice has no effect.
    pub(crate) fn add(&mut self, index: usize) {
        let word = &mut self.words[index / 64];
        let bit = 1 << (index % 64);
        self.count += usize::from(*word & bit == 0);
        *word |= bit;
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// The first record.
    pub(crate) fn first(&self) -> Option<usize> {
        let word = self.words.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// The number of records.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_once() {
        let mut records = RecordSet::empty(130);
        assert_eq!((records.count(), records.first()), (0, None));
        for index in [0, 63, 64, 129, 64] {
            records.add(index);
        }
        let selection = Selection::Some(records);
        assert_eq!(selection.count(130), 4);
        let found: Vec<usize> = (0..200).filter(|&index| selection.contains(index)).collect();
        assert_eq!(found, [0, 63, 64, 129]);
        assert_eq!(Selection::All.count(7), 7);
    }
}
